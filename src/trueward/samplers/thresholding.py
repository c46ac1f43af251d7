"""Keeping the predicted data inside their range, so that strong guidance does not saturate.

A rule is called as ``rule(x_0, data_range)`` with x_0: (batch, *shape) and returns x_0 within [low, high]. Each sample is
treated alone. For data without a range, such as latents, there is nothing to keep.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from trueward.naming import look_up


class Thresholding(ABC):
    """A rule that brings x_0 back into [low, high]."""

    citation: ClassVar[tuple[str, ...]] = ()

    def __call__(self, x_0: Tensor, data_range: tuple[float, float] | None) -> Tensor:
        """x_0 within `data_range`.

        Raises:
            ValueError: if the data have no range.
        """
        if data_range is None:
            raise ValueError(
                "Thresholding needs bounded data, but the denoiser has data_range=None (latents have none)."
            )
        return self.apply(x_0, *data_range)

    @abstractmethod
    def apply(self, x_0: Tensor, low: float, high: float) -> Tensor:
        """x_0 within [low, high]."""


@dataclass(frozen=True)
class StaticThresholding(Thresholding):
    """x_0 clamped to the range."""

    def apply(self, x_0: Tensor, low: float, high: float) -> Tensor:
        return x_0.clamp(low, high)


@dataclass(frozen=True)
class DynamicThresholding(Thresholding):
    r"""The dynamic thresholding of Imagen (Saharia et al. 2022).

    In units in which the range is [-1, 1], per sample: s = max(quantile_p(abs x_0), `max_value`), x_0 <- clamp(x_0, -s, s) / s.
    The result lies in the range whatever `max_value` is.

    Args:
        quantile: p, over all entries of a sample, linearly interpolated.
        max_value: the smallest s; 1 leaves samples alone that are (nearly) inside the range.
    """

    quantile: float = 0.995
    max_value: float = 1.0
    citation: ClassVar[tuple[str, ...]] = ("saharia2022photorealistic",)

    def __post_init__(self) -> None:
        if not 0.0 < self.quantile <= 1.0:
            raise ValueError(f"quantile must lie in (0, 1], got {self.quantile}.")
        if not (math.isfinite(self.max_value) and self.max_value > 0):
            raise ValueError(f"max_value must be finite and positive, got {self.max_value}.")

    def apply(self, x_0: Tensor, low: float, high: float) -> Tensor:
        center, half = 0.5 * (low + high), 0.5 * (high - low)
        x = (x_0 - center) / half
        s = upper_quantile(x.abs().flatten(1), self.quantile).clamp(min=self.max_value)
        s = s.view((-1,) + (1,) * (x.ndim - 1))
        return (x.clamp(-s, s) / s) * half + center


def upper_quantile(values: Tensor, p: float) -> Tensor:
    """The p-quantile of every row, linearly interpolated, from the largest entries alone. values: (rows, n); returns (rows,)."""
    position = p * (values.shape[1] - 1)
    below = math.floor(position)
    largest = torch.topk(values, values.shape[1] - below, dim=1).values
    floor = largest[:, -1]
    return floor if position == below else torch.lerp(floor, largest[:, -2], position - below)


_NAMED: dict[str, type[Thresholding]] = {"dynamic": DynamicThresholding, "static": StaticThresholding}


def thresholding(rule: Thresholding | str | None) -> Thresholding | None:
    """A rule by its name: dynamic, static; a rule (or None) passes through."""
    return look_up("thresholding", rule, _NAMED)() if isinstance(rule, str) else rule
