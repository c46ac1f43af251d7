r"""Noise schedules: the forward process

.. math:: x_t = \alpha(t)\, x_0 + \sigma(t)\, \varepsilon, \qquad \varepsilon \sim N(0, I),

with the signal-to-noise ratio ``alpha^2 / sigma^2`` strictly decreasing in the time ``t``. The same process is the SDE
``dx = f(t) x dt + g(t) dw`` with

    f(t) = d log alpha / dt                               (``drift``)
    g(t)^2 = d sigma^2 / dt - 2 f(t) sigma^2              (``diffusion`` is g)

Throughout, ``log_snr = log(alpha^2 / sigma^2)``; DPM-Solver's ``lambda`` is half of it. Every function of time takes a
float or a tensor of any shape and returns a float64 tensor of that shape: float32 loses three digits of the log-SNR near
t = 0, so schedules and solver coefficients are float64 and are cast to the dtype of the data at the last moment.

A schedule is an immutable value: two schedules with the same numbers compare equal and hash alike.
"""

from __future__ import annotations

import functools
import hashlib
import json
import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any, ClassVar, TypeAlias

import torch
from torch import Tensor

from trueward.naming import check_name, look_up

Time: TypeAlias = float | Tensor

_REGISTRY: dict[str, type[Schedule]] = {}


def as_time(t: Time) -> Tensor:
    """`t` as a float64 tensor on its own device (on the CPU where the device has no float64)."""
    if isinstance(t, Tensor):
        return t.to("cpu", torch.float64) if t.device.type == "mps" else t.to(torch.float64)
    return torch.tensor(t, dtype=torch.float64)


class Schedule(ABC):
    """The forward process x_t = alpha(t) x_0 + sigma(t) eps, for t in [`t_min`, `t_max`].

    `t_max` is where sampling starts; `t_min` is where it ends unless told otherwise (the data themselves, alpha = 1 and
    sigma = 0, are one step further). A subclass gives `log_alpha`, `log_sigma`, `time_of_log_snr`, `drift`, `diffusion`.
    """

    t_min: float
    t_max: float
    citation: ClassVar[tuple[str, ...]] = ()

    def __init_subclass__(cls) -> None:
        _REGISTRY[cls.__name__] = cls

    @abstractmethod
    def log_alpha(self, t: Time) -> Tensor:
        """log alpha(t). Returns float64 of the shape of `t`."""

    @abstractmethod
    def log_sigma(self, t: Time) -> Tensor:
        """log sigma(t). Returns float64 of the shape of `t`."""

    @abstractmethod
    def time_of_log_snr(self, log_snr: Time) -> Tensor:
        """The time t with ``log_snr(t) == log_snr``. Returns float64 of the shape of the argument."""

    @abstractmethod
    def drift(self, t: Time) -> Tensor:
        """f(t) = d log alpha / dt."""

    @abstractmethod
    def diffusion(self, t: Time) -> Tensor:
        """g(t) = sqrt(d sigma^2/dt - 2 f sigma^2)."""

    def alpha(self, t: Time) -> Tensor:
        """alpha(t), the factor of the data."""
        return self.log_alpha(t).exp()

    def sigma(self, t: Time) -> Tensor:
        """sigma(t), the standard deviation of the noise."""
        return self.log_sigma(t).exp()

    def log_snr(self, t: Time) -> Tensor:
        """log(alpha(t)^2 / sigma(t)^2)."""
        return 2.0 * (self.log_alpha(t) - self.log_sigma(t))

    def label(self, t: Time) -> Tensor:
        """What a network made for this schedule expects as its time input. Default: the time itself."""
        return as_time(t)

    def prior_std(self, t: Time | None = None) -> Tensor:
        """Standard deviation of the Gaussian that sampling starts from at `t` (default `t_max`)."""
        return self.sigma(self.t_max if t is None else t)

    def at(self, t: float) -> tuple[float, float]:
        """(alpha(t), sigma(t)) of one time as Python floats, remembered: samplers ask for the same times again and again."""
        return _alpha_sigma(self, t)

    def coefficients(self, t: Time, x: Tensor) -> tuple[Tensor | float, Tensor | float]:
        """(alpha, sigma) ready to multiply `x`: floats for one time, else tensors (batch, 1, ..., 1) in the dtype of `x`.

        Args:
            t: a float, a tensor () or a tensor (batch,).
            x: (batch, *shape).
        """
        if not isinstance(t, Tensor):
            return self.at(float(t))
        if t.ndim == 0:
            return self.at(t.item())
        if t.shape != x.shape[:1]:
            raise ValueError(
                f"t has shape {tuple(t.shape)}, but x has {x.shape[0]} rows: give one time or one time per row."
            )
        view = (-1,) + (1,) * (x.ndim - 1)
        t = as_time(t)
        return self.alpha(t).to(x.device, x.dtype).view(view), self.sigma(t).to(x.device, x.dtype).view(view)

    def add_noise(self, x_0: Tensor, t: Time, noise: Tensor) -> Tensor:
        """x_t = alpha(t) x_0 + sigma(t) noise. `x_0`, `noise`: (batch, *shape); `t`: () or (batch,)."""
        alpha, sigma = self.coefficients(t, x_0)
        return alpha * x_0 + sigma * noise

    # --- identity and storage -----------------------------------------------------------------------------------------

    def to_config(self) -> dict[str, Any]:
        """A JSON-able description; :meth:`from_config` makes an equal schedule of it."""
        return {"schedule": type(self).__name__, **asdict(self)}  # type: ignore[call-overload]

    @staticmethod
    def from_config(config: dict[str, Any]) -> Schedule:
        """The schedule that :meth:`to_config` described."""
        options = dict(config)
        cls = look_up("schedule", options.pop("schedule", "(none)"), _REGISTRY)
        known = {f.name for f in fields(cls) if f.init}  # type: ignore[arg-type]
        for name in options:
            check_name(f"option of {cls.__name__}", name, known)
        return cls(**options)

    @property
    def fingerprint(self) -> str:
        """A short hash of the schedule's numbers: statistics and critics made for another schedule are told by it."""
        return hashlib.sha256(json.dumps(self.to_config(), sort_keys=True).encode()).hexdigest()[:16]

    def validate(self) -> None:
        """Checks that alpha and sigma are finite and positive and that the SNR falls strictly from `t_min` to `t_max`.

        Raises:
            ValueError: with the first time at which one of them is not so.
        """
        if not (math.isfinite(self.t_min) and math.isfinite(self.t_max) and 0 <= self.t_min < self.t_max):
            raise ValueError(
                f"{type(self).__name__} needs 0 <= t_min < t_max, got t_min={self.t_min}, t_max={self.t_max}."
            )
        t = torch.linspace(self.t_min, self.t_max, 1001, dtype=torch.float64)
        if self.t_min == 0:
            t = t[1:]
        log_alpha, log_sigma = self.log_alpha(t), self.log_sigma(t)
        bad = ~(log_alpha.isfinite() & log_sigma.isfinite())
        if bad.any():
            raise ValueError(
                f"{type(self).__name__} has a non-finite or zero alpha or sigma at t={t[bad][0].item():.6g}."
            )
        rising = (log_alpha - log_sigma).diff() >= 0
        if rising.any():
            where = t[1:][rising][0].item()
            raise ValueError(
                f"{type(self).__name__}: the signal-to-noise ratio must fall with t, but it does not at t={where:.6g}."
            )


@functools.lru_cache(maxsize=65536)
def _alpha_sigma(schedule: Schedule, t: float) -> tuple[float, float]:
    return schedule.alpha(t).item(), schedule.sigma(t).item()


@functools.lru_cache(maxsize=64)
def _one_copy(betas: tuple[float, ...]) -> tuple[float, ...]:
    """The first of all equal tables: equal schedules that share it are compared at a glance, not entry by entry."""
    return betas


def _positive(schedule: object, **values: float) -> None:
    for name, value in values.items():
        if not (math.isfinite(value) and value > 0):
            raise ValueError(f"{type(schedule).__name__} needs {name} > 0, got {value}.")


class VariancePreserving(Schedule):
    """alpha^2 + sigma^2 = 1: everything follows from log alpha, and g^2 = -2 f."""

    def log_sigma(self, t: Time) -> Tensor:
        return 0.5 * torch.log(-torch.expm1(2.0 * self.log_alpha(t)))

    def diffusion(self, t: Time) -> Tensor:
        return torch.sqrt(-2.0 * self.drift(t))

    def prior_std(self, t: Time | None = None) -> Tensor:
        return torch.ones_like(as_time(self.t_max if t is None else t))


def log_alpha_of_log_snr(log_snr: Time) -> Tensor:
    """log alpha of a variance-preserving process from its log-SNR: -log(1 + e^(-log_snr)) / 2."""
    return -0.5 * torch.nn.functional.softplus(-as_time(log_snr), threshold=1e9)


@dataclass(frozen=True)
class VPLinear(VariancePreserving):
    """Variance preserving, beta(t) = beta_min + t (beta_max - beta_min) on [0, 1] (Song et al. 2021, eq. 33).

    log alpha(t) = -(beta_max - beta_min) t^2 / 4 - beta_min t / 2.
    """

    beta_min: float = 0.1
    beta_max: float = 20.0
    t_min: float = 1e-3
    t_max: float = 1.0
    citation: ClassVar[tuple[str, ...]] = ("song2021score",)

    def __post_init__(self) -> None:
        _positive(self, beta_min=self.beta_min, beta_max=self.beta_max)
        self.validate()

    def log_alpha(self, t: Time) -> Tensor:
        t = as_time(t)
        return -0.25 * (self.beta_max - self.beta_min) * t**2 - 0.5 * self.beta_min * t

    def time_of_log_snr(self, log_snr: Time) -> Tensor:
        w = -2.0 * log_alpha_of_log_snr(log_snr)
        return 2.0 * w / (torch.sqrt(self.beta_min**2 + 2.0 * (self.beta_max - self.beta_min) * w) + self.beta_min)

    def drift(self, t: Time) -> Tensor:
        return -0.5 * (self.beta_min + (self.beta_max - self.beta_min) * as_time(t))


@dataclass(frozen=True)
class VPCosine(VariancePreserving):
    """Variance preserving, alpha(t) = cos(pi/2 (t+s)/(1+s)) / cos(pi/2 s/(1+s)) (Nichol and Dhariwal 2021, eq. 17).

    alpha vanishes at t = 1, so the process is cut at `t_max` = 0.9946 as in DPM-Solver.
    """

    s: float = 0.008
    t_min: float = 1e-3
    t_max: float = 0.9946
    citation: ClassVar[tuple[str, ...]] = ("nichol2021improved",)

    def __post_init__(self) -> None:
        _positive(self, s=self.s)
        self.validate()

    def _angle(self, t: Time) -> Tensor:
        return 0.5 * math.pi * (as_time(t) + self.s) / (1.0 + self.s)

    def log_alpha(self, t: Time) -> Tensor:
        return torch.log(torch.cos(self._angle(t))) - torch.log(torch.cos(self._angle(0.0)))

    def log_sigma(self, t: Time) -> Tensor:
        # 1 - alpha^2 = sin(a - a0) sin(a + a0) / cos(a0)^2 keeps its digits as t -> 0
        a, a0 = self._angle(t), self._angle(0.0)
        return 0.5 * torch.log(torch.sin(a - a0) * torch.sin(a + a0)) - torch.log(torch.cos(a0))

    def time_of_log_snr(self, log_snr: Time) -> Tensor:
        # sin(a - a0) sin(a + a0) = sin^2 a - sin^2 a0, so sin^2 a = sin^2 a0 + sigma^2 cos^2 a0
        a0 = self._angle(0.0)
        variance = torch.sigmoid(-as_time(log_snr))
        sin2 = torch.sin(a0) ** 2 + variance * torch.cos(a0) ** 2
        cos2 = (1.0 - variance) * torch.cos(a0) ** 2
        return torch.atan2(sin2.sqrt(), cos2.sqrt()) * 2.0 * (1.0 + self.s) / math.pi - self.s

    def drift(self, t: Time) -> Tensor:
        return -0.5 * math.pi / (1.0 + self.s) * torch.tan(self._angle(t))


class VarianceExploding(Schedule):
    """alpha = 1: noise is added to data that keep their scale."""

    def log_alpha(self, t: Time) -> Tensor:
        return torch.zeros_like(as_time(t))

    def drift(self, t: Time) -> Tensor:
        return torch.zeros_like(as_time(t))


@dataclass(frozen=True)
class VE(VarianceExploding):
    """sigma(t) = sigma_min (sigma_max / sigma_min)^t on [0, 1], alpha = 1 (Song et al. 2021, eq. 31)."""

    sigma_min: float = 0.01
    sigma_max: float = 50.0
    t_min: float = 0.0
    t_max: float = 1.0
    citation: ClassVar[tuple[str, ...]] = ("song2021score",)

    def __post_init__(self) -> None:
        _positive(self, sigma_min=self.sigma_min, sigma_max=self.sigma_max)
        self.validate()

    @property
    def _log_ratio(self) -> float:
        return math.log(self.sigma_max / self.sigma_min)

    def log_sigma(self, t: Time) -> Tensor:
        return math.log(self.sigma_min) + as_time(t) * self._log_ratio

    def time_of_log_snr(self, log_snr: Time) -> Tensor:
        return (-0.5 * as_time(log_snr) - math.log(self.sigma_min)) / self._log_ratio

    def diffusion(self, t: Time) -> Tensor:
        return self.sigma(t) * math.sqrt(2.0 * self._log_ratio)


@dataclass(frozen=True)
class EDM(VarianceExploding):
    """sigma(t) = t, alpha = 1: time is the noise level itself (Karras et al. 2022).

    A network made for it expects log(sigma) / 4.
    """

    sigma_min: float = 0.002
    sigma_max: float = 80.0
    citation: ClassVar[tuple[str, ...]] = ("karras2022elucidating",)

    def __post_init__(self) -> None:
        _positive(self, sigma_min=self.sigma_min, sigma_max=self.sigma_max)
        self.validate()

    @property
    def t_min(self) -> float:  # type: ignore[override]
        return self.sigma_min

    @property
    def t_max(self) -> float:  # type: ignore[override]
        return self.sigma_max

    def log_sigma(self, t: Time) -> Tensor:
        return torch.log(as_time(t))

    def time_of_log_snr(self, log_snr: Time) -> Tensor:
        return torch.exp(-0.5 * as_time(log_snr))

    def diffusion(self, t: Time) -> Tensor:
        return torch.sqrt(2.0 * as_time(t))

    def label(self, t: Time) -> Tensor:
        return torch.log(as_time(t)) / 4.0


@dataclass(frozen=True)
class FlowMatching(Schedule):
    """Straight lines from data to noise, x_t = (1 - t) x_0 + t eps (Lipman et al. 2023; Liu et al. 2023).

    alpha vanishes at t = 1, so the process is cut just before it. A network made for it usually predicts the velocity
    dx_t/dt = eps - x_0 (:class:`~trueward.denoisers.FlowDenoiser`); its time input is t times `label_scale`.
    """

    label_scale: float = 1.0
    t_min: float = 1e-3
    t_max: float = 0.999
    citation: ClassVar[tuple[str, ...]] = ("lipman2023flow", "liu2023flow")

    def __post_init__(self) -> None:
        _positive(self, label_scale=self.label_scale)
        self.validate()

    def log_alpha(self, t: Time) -> Tensor:
        return torch.log1p(-as_time(t))

    def log_sigma(self, t: Time) -> Tensor:
        return torch.log(as_time(t))

    def time_of_log_snr(self, log_snr: Time) -> Tensor:
        return torch.sigmoid(-0.5 * as_time(log_snr))

    def drift(self, t: Time) -> Tensor:
        return -1.0 / (1.0 - as_time(t))

    def diffusion(self, t: Time) -> Tensor:
        t = as_time(t)
        return torch.sqrt(2.0 * t / (1.0 - t))

    def label(self, t: Time) -> Tensor:
        return as_time(t) * self.label_scale


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


_NAMED: dict[str, Any] = {
    "vp-linear": VPLinear,
    "vp-cosine": VPCosine,
    "ve": VE,
    "edm": EDM,
    "flow": FlowMatching,
    "ddpm-linear": DiscreteSchedule.linear,
    "ddpm-cosine": DiscreteSchedule.cosine,
    "latent-diffusion": DiscreteSchedule.scaled_linear,
}


def schedule(name: str | Schedule, **options: Any) -> Schedule:
    """A schedule by its name: vp-linear, vp-cosine, ve, edm, flow, ddpm-linear, ddpm-cosine, latent-diffusion."""
    if isinstance(name, Schedule):
        return name
    return look_up("schedule", name, _NAMED)(**options)


def schedule_names() -> list[str]:
    """The names that :func:`schedule` knows."""
    return list(_NAMED)
