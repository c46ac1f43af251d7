r"""Variance-exploding schedules: alpha = 1, noise is added to data that keep their scale."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from trueward.schedules.forward_process import Schedule, Time, as_time, require_positive


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
        require_positive(self, sigma_min=self.sigma_min, sigma_max=self.sigma_max)
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
        require_positive(self, sigma_min=self.sigma_min, sigma_max=self.sigma_max)
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
