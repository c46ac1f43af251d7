r"""The schedule of flow matching: alpha = 1 - t, sigma = t."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from trueward.schedules.forward_process import Schedule, Time, as_time, require_positive


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
        require_positive(self, label_scale=self.label_scale)
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
