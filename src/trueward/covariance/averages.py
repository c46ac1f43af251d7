r"""Averages with standard errors, gathered in pieces: sums of n values v and of their products,

    mean = S_v / n,     standard error = sqrt((S_vv / n - mean^2) / (n - 1)),

and, with a second value c whose expectation is known to be 1, the regression estimate (control variate)

    mean - b (mean_c - 1),     b = cov(v, c) / var(c),     standard error reduced by sqrt(1 - corr^2).

Sums of different processes, or of different runs over different examples, simply add.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from trueward import processes


@dataclass
class Averages:
    """Sums for `places` averages of `kinds` values each, the last of which has expectation 1 (the control).

    Attributes:
        count: (places,) number of examples.
        first: (places, kinds) sums of the values.
        second: (places, kinds, kinds) sums of their products.
    """

    count: Tensor
    first: Tensor
    second: Tensor

    @classmethod
    def empty(cls, places: int, kinds: int) -> Averages:
        """Nothing gathered yet."""
        return cls(*(torch.zeros(places, *(kinds,) * n, dtype=torch.float64) for n in range(3)))

    def add(self, place: Tensor, values: Tensor) -> None:
        """Gathers `values` (rows, kinds) at the places (rows,)."""
        values = values.to("cpu", torch.float64)
        self.count.index_add_(0, place, torch.ones(len(place), dtype=torch.float64))
        self.first.index_add_(0, place, values)
        self.second.index_add_(0, place, values.unsqueeze(2) * values.unsqueeze(1))

    def __add__(self, other: Averages) -> Averages:
        return Averages(self.count + other.count, self.first + other.first, self.second + other.second)

    def over_processes(self) -> Averages:
        """The sums over all processes of the job."""
        return Averages(*(processes.sum_over_processes(part) for part in (self.count, self.first, self.second)))

    def estimate(self, kind: int, control: bool) -> tuple[np.ndarray, np.ndarray]:
        """(mean, standard error) of one kind of value at every place; with the control variate where more than eight
        examples were gathered."""
        n = self.count
        mean = self.first / n.unsqueeze(1)
        covariance = self.second / n.view(-1, 1, 1) - mean.unsqueeze(2) * mean.unsqueeze(1)
        variance = covariance[:, kind, kind].clamp(min=0.0)
        value, free = mean[:, kind], n - 1.0
        if control:
            spread = covariance[:, -1, -1]
            slope = torch.where((n > 8) & (spread > 0), covariance[:, kind, -1] / spread.clamp(min=1e-300), 0.0)
            value = value - slope * (mean[:, -1] - 1.0)
            variance = (variance - slope**2 * spread).clamp(min=0.0)
            free = torch.where(slope != 0, n - 2.0, free)
        return value.numpy(), torch.sqrt(variance / free.clamp(min=1e-300)).numpy()
