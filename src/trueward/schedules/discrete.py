r"""Schedules given by a table of betas, as in DDPM, continued between the nodes of the table."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from trueward.naming import check_name
from trueward.schedules.forward_process import Time, as_time
from trueward.schedules.variance_preserving import VariancePreserving, log_alpha_of_log_snr


@functools.lru_cache(maxsize=64)
def _one_copy(betas: tuple[float, ...]) -> tuple[float, ...]:
    """The first of all equal tables: equal schedules that share it are compared at a glance, not entry by entry."""
    return betas


@dataclass(frozen=True)
class DiscreteSchedule(VariancePreserving):
    """A variance-preserving process given by a table beta_0, ..., beta_{N-1} (DDPM), continued between its nodes.

    Node n has the time t_n = (n+1)/N_eff and alpha(t_n)^2 = prod_{i<=n} (1 - beta_i), exactly; between nodes log alpha is
    piecewise linear in t, as in DPM-Solver. Trailing nodes whose half-log-SNR is below `half_log_snr_clip` are dropped
    (the cosine table ends in five that no sampler can use), which leaves N_eff of N.

    The network's time input is the index of the node in the original table, t N_eff - 1, times `label_scale` / N
    (`label_scale` = N gives 0 ... N-1; 1000 is the rescaled input of Improved DDPM). `label_mapping="reference"` reproduces
    the official DPM-Solver code, which divides by N_eff and so feeds clipped tables a label that was never trained.

    Raises:
        ValueError: betas outside (0, 1), fewer than two of them, or a time before the first node 1/N_eff.
    """

    betas: tuple[float, ...]
    half_log_snr_clip: float = -5.1
    label_scale: float | None = None
    label_mapping: str = "exact"
    _log_alpha: Tensor = field(init=False, repr=False, compare=False)
    _cache: dict[Any, Tensor] = field(init=False, repr=False, compare=False, default_factory=dict)
    _hash: int = field(
        init=False, repr=False, compare=False
    )  # asked for at every step by what is remembered per schedule
    citation: ClassVar[tuple[str, ...]] = ("ho2020denoising", "lu2022dpmsolver")

    def __post_init__(self) -> None:
        object.__setattr__(self, "betas", _one_copy(tuple(float(b) for b in self.betas)))
        betas = torch.tensor(self.betas, dtype=torch.float64)
        if betas.numel() < 2:
            raise ValueError(f"DiscreteSchedule needs at least two betas, got {betas.numel()}.")
        outside = ~((betas > 0) & (betas < 1))
        if outside.any():
            n = int(outside.nonzero()[0])
            raise ValueError(f"DiscreteSchedule needs every beta in (0, 1), but beta[{n}] is {self.betas[n]}.")
        check_name("label_mapping", self.label_mapping, ["exact", "reference"])
        log_alpha = 0.5 * torch.cumsum(torch.log1p(-betas), 0)
        half_log_snr = log_alpha - 0.5 * torch.log(-torch.expm1(2.0 * log_alpha))
        kept = int((half_log_snr >= self.half_log_snr_clip).sum())
        if kept < 2:
            raise ValueError(
                f"half_log_snr_clip={self.half_log_snr_clip} leaves {kept} of {len(self.betas)} nodes; at least two are needed."
            )
        object.__setattr__(self, "_log_alpha", log_alpha[:kept])
        # numbers only: their hashes are the same in every process, so a pickled schedule keeps its own
        identity = (self.betas, self.half_log_snr_clip, self.label_scale or 0.0, self.label_mapping == "exact")
        object.__setattr__(self, "_hash", hash(identity))
        self.validate()

    @classmethod
    def linear(
        cls, steps: int = 1000, beta_start: float = 1e-4, beta_end: float = 0.02, **options: Any
    ) -> DiscreteSchedule:
        """The table of DDPM: betas linear from `beta_start` to `beta_end` (Ho et al. 2020)."""
        return cls(tuple(torch.linspace(beta_start, beta_end, steps, dtype=torch.float64).tolist()), **options)

    @classmethod
    def scaled_linear(
        cls, steps: int = 1000, beta_start: float = 0.00085, beta_end: float = 0.012, **options: Any
    ) -> DiscreteSchedule:
        """The table of latent diffusion: sqrt(beta) linear (Rombach et al. 2022)."""
        root = torch.linspace(math.sqrt(beta_start), math.sqrt(beta_end), steps, dtype=torch.float64)
        return cls(tuple((root**2).tolist()), **options)

    @classmethod
    def cosine(cls, steps: int = 1000, s: float = 0.008, beta_max: float = 0.999, **options: Any) -> DiscreteSchedule:
        """The squared-cosine table (Nichol and Dhariwal 2021): beta_n = min(1 - f((n+1)/N)/f(n/N), beta_max)."""
        u = torch.arange(steps + 1, dtype=torch.float64) / steps
        f = torch.cos(0.5 * math.pi * (u + s) / (1.0 + s)) ** 2
        return cls(tuple((1.0 - f[1:] / f[:-1]).clamp(max=beta_max).tolist()), **options)

    @classmethod
    def from_alphas_cumprod(cls, alphas_cumprod: Sequence[float] | Tensor, **options: Any) -> DiscreteSchedule:
        """From the running product of (1 - beta); zero terminal SNR is allowed (the node is dropped by the clip)."""
        product = torch.as_tensor(alphas_cumprod, dtype=torch.float64)
        if product.ndim != 1 or not bool(((product >= 0) & (product < 1)).all()):
            raise ValueError("alphas_cumprod must be one-dimensional with values in [0, 1).")
        before = torch.cat([torch.ones(1, dtype=torch.float64), product[:-1]])
        betas = (1.0 - product / before).clamp(max=1.0 - 1e-12)
        return cls(tuple(betas.tolist()), **options)

    def __hash__(self) -> int:
        return self._hash

    @property
    def nodes(self) -> int:
        """N_eff, the number of nodes left by the clip."""
        return self._log_alpha.numel()

    @property
    def t_min(self) -> float:  # type: ignore[override]
        return 1.0 / self.nodes

    @property
    def t_max(self) -> float:  # type: ignore[override]
        return 1.0

    def time_of_node(self, n: int | Tensor) -> Tensor:
        """t_n = (n+1)/N_eff for the index n = 0 ... N_eff-1 into the table."""
        return (as_time(n) + 1.0) / self.nodes

    def _table(self, device: torch.device) -> Tensor:
        if device not in self._cache:
            self._cache[device] = self._log_alpha.to(device)
        return self._cache[device]

    def _segment(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Index of the node to the left of each time (clamped, so that the end segments extend) and the distance to it."""
        position = t * self.nodes - 1.0
        if bool((position < -1e-6).any()):
            raise ValueError(
                f"t={t.min().item():.6g} lies before the first node of the table, {self.t_min:.6g} (sampling ends there)."
            )
        nearest = position.round()  # at a node, exactly the node
        position = torch.where((position - nearest).abs() < 1e-9, nearest, position)
        left = position.floor().clamp(0, self.nodes - 2)
        return left.long(), position - left

    def log_alpha(self, t: Time) -> Tensor:
        t = as_time(t)
        table = self._table(t.device)
        left, weight = self._segment(t)
        return table[left] + weight * (table[left + 1] - table[left])

    def time_of_log_snr(self, log_snr: Time) -> Tensor:
        log_alpha = log_alpha_of_log_snr(log_snr)
        table = self._table(log_alpha.device)
        right = torch.searchsorted(-table, -log_alpha.contiguous()).clamp(1, self.nodes - 1)
        weight = (table[right - 1] - log_alpha) / (table[right - 1] - table[right])
        return (right + weight) / self.nodes

    def drift(self, t: Time) -> Tensor:
        t = as_time(t)
        table = self._table(t.device)
        left, _ = self._segment(t)
        return (table[left + 1] - table[left]) * self.nodes

    def label(self, t: Time) -> Tensor:
        scale = len(self.betas) if self.label_scale is None else self.label_scale
        divisor = len(self.betas) if self.label_mapping == "exact" else self.nodes
        return (as_time(t) * self.nodes - 1.0) * (scale / divisor)

    def to_config(self) -> dict[str, Any]:
        options = ("betas", "half_log_snr_clip", "label_scale", "label_mapping")
        return {"schedule": type(self).__name__, **{name: getattr(self, name) for name in options}}
