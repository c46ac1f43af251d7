r"""The constants of diffusion rejection sampling, from one run of the base sampler.

With l_i the critic's log ratio at level i of a warm-up sample and gamma a percentile in [0, 1],

    log M'_i = max(0, quantile_gamma{ l_i })             the marginal test, i = 0 ... N
    log M_i  = max(0, quantile_gamma{ l_i - l_parent })  the transition test, i = 1 ... N

where the parent is the level tested before. The raw log ratios are kept, so gamma may be changed without a new run. A ratio
of two densities has a supremum of at least one, hence the floor at 0.
"""

from __future__ import annotations

import json
import math
import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from numbers import Integral, Real
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float64
from torch import Tensor

from trueward import records
from trueward.noise import Noise
from trueward.refinement.chain import Chain


@dataclass(frozen=True)
class Constants:
    """log M of the transition test and log M' of the marginal test, float64 (levels,); index = level reached."""

    log_m_transition: Float64[Tensor, " levels"]
    log_m_marginal: Float64[Tensor, " levels"]

    def __post_init__(self) -> None:
        a, b = self.log_m_transition, self.log_m_marginal
        if a.shape != b.shape or a.ndim != 1 or bool(a.isnan().any() | b.isnan().any()):
            raise ValueError(
                f"Both families need one number per level and no NaN, got shapes {tuple(a.shape)} and {tuple(b.shape)}."
            )


@dataclass(frozen=True)
class Calibration:
    """Log ratios of warm-up samples at every level.

    Attributes:
        log_ratios: (samples, levels) float64.
        fingerprint: the chain they were measured on.
    """

    log_ratios: Float64[Tensor, "samples levels"]
    fingerprint: str = ""

    def __post_init__(self) -> None:
        if self.log_ratios.ndim != 2 or not len(self.log_ratios):
            raise ValueError(f"log_ratios must be (samples, levels), got shape {tuple(self.log_ratios.shape)}.")

    def constants(self, percentile: float = 0.75, *, floor: bool = True, parents: Tensor | None = None) -> Constants:
        """The constants at a percentile.

        Args:
            percentile: gamma in [0, 1]; larger rejects more. The paper uses 0.75.
            floor: keep log M >= 0.
            parents: (levels,) int64, the level each one's ratio refers to; default the level before.
        """
        if isinstance(percentile, bool) or not isinstance(percentile, Real):
            raise ValueError(f"percentile must lie in [0, 1], got {percentile!r}.")
        if not 0.0 <= percentile <= 1.0:
            hint = (
                f"; for the {percentile:g}th percentile give {percentile / 100:g}" if 1.0 < percentile <= 100.0 else ""
            )
            raise ValueError(f"percentile must lie in [0, 1], got {percentile}{hint}.")
        logits = self.log_ratios
        parents = torch.arange(logits.shape[1]) - 1 if parents is None else parents
        steps = logits - logits[:, parents.clamp(min=0)]
        low = 0.0 if floor else -math.inf
        return Constants(
            torch.quantile(steps, percentile, dim=0).clamp(min=low),
            torch.quantile(logits, percentile, dim=0).clamp(min=low),
        )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes `path` (safetensors), at once or not at all."""
        from safetensors.torch import save_file

        about = {"calibration": json.dumps({"fingerprint": self.fingerprint})}
        with records.atomic(Path(path)) as part:
            save_file({"log_ratios": self.log_ratios.contiguous()}, part, metadata=about)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Calibration:
        """Reads what :meth:`save` wrote."""
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, "pt") as file:
                metadata = json.loads((file.metadata() or {}).get("calibration", "null"))
                if metadata is None:
                    raise ValueError(f"{path} holds no calibration of rejection constants.")
                return cls(file.get_tensor("log_ratios"), metadata["fingerprint"])
        except SafetensorError as error:
            raise ValueError(
                f"{path} cannot be read as a calibration, delete it to measure again ({error})."
            ) from error


@torch.no_grad()
def calibrate(
    chain: Chain,
    n: int = 1000,
    *,
    seed: int = 1,
    batch_size: int = 100,
    condition: Callable[[Noise], dict[str, Any]] | dict[str, Any] | None = None,
    progress: bool = False,
) -> Calibration:
    """Runs the base sampler without rejection and records the log ratio at every level.

    Args:
        chain: sampler, model and critic.
        n: number of warm-up samples.
        seed: their seed; take another one than for the samples wanted.
        condition: tensors with one entry per warm-up sample, or a function of the rows' :class:`Noise`.
        progress: show a progress bar.

    Warns:
        UserWarning: if the critic seems to answer probabilities instead of logits.

    Raises:
        ValueError: if the critic answers NaN or infinity, with the level.
    """
    for name, value, least in (("n", n, 2), ("batch_size", batch_size, 1)):
        if not isinstance(value, Integral) or isinstance(value, bool) or value < least:
            raise ValueError(f"{name} must be a whole number >= {least} for a calibration, got {value!r}.")
    if isinstance(condition, dict):
        for name, entries in condition.items():
            if isinstance(entries, Tensor) and entries.ndim and len(entries) != n:
                raise ValueError(f"{name} has {len(entries)} rows for {n} warm-up samples.")
    logits = torch.empty(n, chain.steps + 1, dtype=torch.float64)
    starts: Any = range(0, n, batch_size)
    if progress:
        from tqdm.auto import tqdm

        starts = tqdm(starts, desc="calibrating rejection", unit="batch", leave=False, disable=None)  # silent in a file
    for first in starts:
        rows = torch.arange(first, min(first + batch_size, n))
        noise = Noise(seed, rows)
        if callable(condition):
            own = condition(noise)
        else:
            own = {k: v[rows] if isinstance(v, Tensor) and v.ndim else v for k, v in (condition or {}).items()}
        level = torch.zeros(len(rows), dtype=torch.int64)
        x = chain.prior(noise, level)
        for i in range(chain.steps + 1):
            if i > 0:
                x = chain.step(x, level + i - 1, noise, level + i, own)
            logits[rows, i] = checked(chain.log_ratio(x, level + i, own), i, chain)
    if logits.min() >= 0.0 and logits.max() <= 1.0 and logits[:, 0].mean() > 0.1:  # of a log ratio, E[exp(l)] is 1
        warnings.warn(
            "All log ratios of the calibration lie between 0 and 1: the critic seems to give probabilities, where logits are "
            "wanted.",
            stacklevel=3,  # 2 is no_grad
        )
    return Calibration(logits, chain.fingerprint)


def checked(logit: Tensor, level: int | Tensor, chain: Chain) -> Tensor:
    """The log ratios, if they are finite."""
    if not bool(logit.isfinite().all()):
        worst = level if isinstance(level, int) else int(level[~logit.isfinite()][0])
        known = getattr(chain, "noise_levels", None)
        where = "" if known is None else f" (sigma/alpha = {known[worst]:.4g})"
        raise ValueError(f"The critic answered NaN or infinity at level {worst}{where}.")
    return logit
