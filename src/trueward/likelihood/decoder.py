r"""The last term of a likelihood bound: how probable the data are, given the model's mean of x_0 at the cleanest level.

For data of L grey levels on [a, b], half a bin is w = (b - a) / (2 (L - 1)), and every channel has the probability

    P(x | mean) = F((x + w - mean) / std) - F((x - w - mean) / std)

with the lowest bin open to -inf and the highest to +inf, at least 1e-12. F is the normal distribution function, or the tanh
approximation that the published code uses,

    F(z) = (1 + tanh(sqrt(2 / pi) (z + 0.044715 z^3))) / 2.

The variance is a fixed number for all methods, beta~ between the two cleanest levels of the schedule (Bao et al. 2022). For
data that are not quantised the decoder is a density.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from trueward.full_covariance import FullCovariance
from trueward.naming import check_name
from trueward.samplers.reverse_step import ReverseSteps
from trueward.schedules import DiscreteSchedule, Schedule

Variance = float | Tensor | FullCovariance
FLOOR = 1e-12


def decoder_variance(schedule: Schedule, t_1: float) -> float:
    """The variance of the decoder that ends at `t_1`.

    beta~_{1|2} = beta_2 sigma_1^2 / sigma_2^2 between this node and the next for a discrete schedule; for a continuous one
    (sigma / alpha)^2 / 2, which is beta~ against a level of half the signal-to-noise ratio.
    """
    if isinstance(schedule, DiscreteSchedule):
        return float(ReverseSteps.between(schedule, t_1, t_1 + 1.0 / schedule.nodes).beta_tilde)
    return 0.5 * math.exp(-schedule.log_snr(t_1).item())


class Decoder(ABC):
    """-log p(x_0 | x_1), given the mean and the variance of x_0."""

    variance: float | str | None

    @abstractmethod
    def nll(self, x_0: Tensor, mean: Tensor, variance: Variance) -> Tensor:
        """Negative log-probability in nats of every channel, (batch, d) float64 (its sum is all that counts)."""

    def _check(self) -> None:
        if isinstance(self.variance, str):
            check_name("decoder variance", self.variance, ["posterior"])
        elif self.variance is not None and not (math.isfinite(self.variance) and self.variance > 0):
            raise ValueError(f"variance must be positive, None or 'posterior', got {self.variance}.")


@dataclass(frozen=True)
class DiscretizedGaussian(Decoder):
    """The probability of the bin that each value lies in.

    Args:
        levels: L, number of grey levels.
        data_range: (a, b), values of the lowest and the highest level.
        cdf: erf (exact) or tanh (as published).
        variance: a number; None for :func:`decoder_variance`; "posterior" for what the denoiser says.
    """

    levels: int = 256
    data_range: tuple[float, float] = (-1.0, 1.0)
    cdf: str = "erf"
    variance: float | str | None = None

    def __post_init__(self) -> None:
        if self.levels < 2:
            raise ValueError(f"levels must be at least 2, got {self.levels}.")
        if not self.data_range[0] < self.data_range[1]:
            raise ValueError(f"data_range must be (low, high) with low < high, got {self.data_range}.")
        check_name("cdf", self.cdf, ["erf", "tanh"])
        self._check()

    def nll(self, x_0: Tensor, mean: Tensor, variance: Variance) -> Tensor:
        if isinstance(variance, FullCovariance):
            variance = variance.diagonal.view(-1, *x_0.shape[1:])
        low, high = self.data_range
        half = (high - low) / (2.0 * (self.levels - 1))
        off = 0.5 * half  # a value within rounding of the first or last level belongs to it
        x, mean = x_0.double(), mean.double()
        std = variance.double().sqrt() if isinstance(variance, Tensor) else math.sqrt(variance)
        below, above = (x - half - mean) / std, (x + half - mean) / std
        # the mass between two points, taken in the tail where it does not cancel
        flip = (below + above) > 0
        first, second = torch.where(flip, -above, below), torch.where(flip, -below, above)
        infinite = torch.full_like(first, math.inf)
        is_low, is_high = x < low + off, x > high - off
        first = torch.where(torch.where(flip, is_high, is_low), -infinite, first)
        second = torch.where(torch.where(flip, is_low, is_high), infinite, second)
        mass = self._distribution(second) - self._distribution(first)
        return -mass.clamp(min=FLOOR).log().flatten(1)

    def _distribution(self, z: Tensor) -> Tensor:
        if self.cdf == "erf":
            return torch.special.ndtr(z)
        z = z.clamp(-1e3, 1e3)
        return 0.5 * (1.0 + torch.tanh(math.sqrt(2.0 / math.pi) * (z + 0.044715 * z**3)))


@dataclass(frozen=True)
class GaussianDensity(Decoder):
    """The density N(x_0; mean, variance), for data that are not quantised.

    Args:
        variance: a number; None for :func:`decoder_variance`; "posterior" (default) for what the denoiser says.
    """

    variance: float | str | None = "posterior"

    def __post_init__(self) -> None:
        self._check()

    def nll(self, x_0: Tensor, mean: Tensor, variance: Variance) -> Tensor:
        difference = (x_0 - mean).double().flatten(1)
        if isinstance(variance, FullCovariance):
            difference, spread = variance.to(dtype=torch.float64).rotate(difference), variance.values.double()
        elif isinstance(variance, Tensor):
            spread = variance.double().expand(x_0.shape).flatten(1)
        else:
            spread = torch.full_like(difference, variance)
        return 0.5 * (difference.square() / spread + spread.log() + math.log(2.0 * math.pi))
