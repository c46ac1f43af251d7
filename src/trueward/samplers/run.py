r"""One call of a sampler: what it works on, what a caller sees of it, and what comes out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from trueward.denoisers import Denoiser, Posterior
from trueward.noise import Noise
from trueward.samplers.plan import Coefficient, Level, Plan


class Transition(NamedTuple):
    """One Gaussian step x_s | x_t: `mean` (batch, *shape); `std` a float or a tensor that broadcasts against it."""

    mean: Tensor
    std: Coefficient


class Run:
    """One call of a sampler: the model, its condition, the noise of the rows, and what has been spent.

    Rows may be dropped, added or reordered between steps of a row-wise sampler by replacing `noise` and `condition`.
    """

    __slots__ = (
        "_scratch",
        "accepted",
        "condition",
        "denoiser",
        "history",
        "nfe",
        "noise",
        "plan",
        "posterior",
        "rejected",
    )

    def __init__(self, denoiser: Denoiser, plan: Plan, noise: Noise | None, condition: dict[str, Any]) -> None:
        self.denoiser, self.plan, self.noise, self.condition = denoiser, plan, noise, condition
        self.nfe = 0
        self.posterior: Posterior | None = None
        self.history: list[Any] = []
        self.accepted: int | None = None
        self.rejected: int | None = None
        self._scratch: dict[str, Tensor] = {}

    def denoise(self, x: Tensor, t: float | Tensor, rows: Tensor | None = None, stage: int = 0) -> Posterior:
        """Asks the model once, counts it and remembers the answer for callbacks.

        `rows` (int64) says which rows of the call `x` holds, if not all: their condition is picked. `stage` says which
        evaluation of a step this is, see :meth:`~trueward.denoisers.Denoiser.at_stage`.
        """
        self.nfe += 1
        condition = self.condition
        if rows is not None and condition:
            n = len(self.noise) if self.noise is not None else None
            condition = {
                k: v[rows.to(v.device)] if isinstance(v, Tensor) and v.ndim and v.shape[0] == n else v
                for k, v in condition.items()
            }
        model = self.denoiser if stage == 0 else self.denoiser.at_stage(stage)
        self.posterior = model(x, t, **condition)
        return self.posterior

    def time(self, level: Level) -> float | Tensor:
        """The time of a level, as the denoiser wants it: a float, or float64 (batch,)."""
        return self.plan.times.time(level)

    def scratch(self, name: str, like: Tensor) -> Tensor:
        """A buffer of the shape of `like` that lives as long as the call."""
        buffer = self._scratch.get(name)
        if buffer is None or buffer.shape != like.shape or buffer.dtype != like.dtype:
            buffer = self._scratch[name] = torch.empty_like(like)
        return buffer

    def normal(self, draw: int | Tensor, like: Tensor) -> Tensor:
        """Standard normals in the shape of `like` from the rows' own streams."""
        if self.noise is None:
            raise ValueError("This sampler draws noise: give the call a seed (or a Noise).")
        return self.noise.normal(draw, like.shape[1:], like.dtype, like.device)


@dataclass(frozen=True)
class Step:
    """What `callback(step)` sees after each step.

    Attributes:
        index: number of steps made so far, 1 ... `steps`.
        steps: number of steps in all, or None for an adaptive sampler.
        t: the time reached: a float, or (batch,) where rows differ.
        x: (batch, *shape), the state. It is a live buffer: clone it to keep it.
        posterior: the model's last answer, or None.
        nfe: network evaluations so far.
    """

    index: int
    steps: int | None
    t: float | Tensor
    x: Tensor
    posterior: Posterior | None
    nfe: int


@dataclass(frozen=True)
class Samples:
    """The result of a sampler.

    Attributes:
        x: (batch, *shape), the samples.
        nfe: network evaluations spent on the batch (a guided pair counts as one; an adaptive sampler reports the calls made).
        trajectory: the states from x_T to the sample, if asked for.
        times: the times of these states.
        accepted, rejected: steps of an adaptive sampler.
    """

    x: Tensor
    nfe: int
    trajectory: tuple[Tensor, ...] | None = None
    times: tuple[float | Tensor, ...] | None = None
    accepted: int | None = None
    rejected: int | None = None


def check_condition(denoiser: Denoiser, condition: dict[str, Any], n: int, device: torch.device) -> dict[str, Any]:
    """The condition on the right device, `class_labels` as (n,) int64 in range.

    Raises:
        ValueError: labels for an unconditional model, missing from a conditional one, of wrong length, or out of range.
    """
    condition = dict(condition)
    labels = condition.get("class_labels")
    if denoiser.num_classes is None:
        return {k: v.to(device) if isinstance(v, Tensor) else v for k, v in condition.items() if v is not None}
    if labels is None:
        labels = denoiser.num_classes  # "no class"
    labels = torch.as_tensor(labels, dtype=torch.int64, device=device)
    labels = labels.expand(n) if labels.ndim == 0 else labels
    if labels.shape != (n,):
        raise ValueError(f"class_labels must be one label or one per sample, ({n},), got shape {tuple(labels.shape)}.")
    if bool(((labels < 0) | (labels > denoiser.num_classes)).any()):
        worst = labels[(labels < 0) | (labels > denoiser.num_classes)][0].item()
        raise ValueError(
            f"class_labels must lie in 0 ... {denoiser.num_classes - 1} ({denoiser.num_classes} means no class), got {worst}."
        )
    return {**{k: v.to(device) if isinstance(v, Tensor) else v for k, v in condition.items()}, "class_labels": labels}
