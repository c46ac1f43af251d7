r"""Variance-preserving schedules: alpha^2 + sigma^2 = 1, so that everything follows from log alpha."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from trueward.schedules.forward_process import Schedule, Time, as_time, require_positive


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
        require_positive(self, beta_min=self.beta_min, beta_max=self.beta_max)
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
        require_positive(self, s=self.s)
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
