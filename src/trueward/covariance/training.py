"""A covariance head as something the trainer trains: a denoiser whose network is the head, and nothing else.

The frozen model rides along unseen: it is no sub-module, so that optimizer, average and checkpoints hold the head alone, and
a run folder of the trainer holds just the head. Fit one with::

    covariance = NPRCovariance(denoiser)
    Trainer(trainable(covariance), data, out, config, objective=MomentMatching()).fit()
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from trueward.covariance.learned import LearnedCovariance
from trueward.denoisers import NetworkDenoiser, Posterior
from trueward.schedules import Time


class TrainableHead(NetworkDenoiser):
    """The view of a :class:`~trueward.covariance.learned.LearnedCovariance` that a trainer is given."""

    def __init__(self, covariance: LearnedCovariance) -> None:
        super().__init__(
            covariance.head,
            covariance.schedule,
            shape=covariance.shape,
            data_range=covariance.data_range,
            num_classes=covariance.num_classes,
        )
        self.prediction = covariance.covariance_kind  # type: ignore[misc]
        self.citation = covariance.citation  # type: ignore[misc]
        self._hidden = (covariance,)  # a tuple, which nn.Module does not look into
        self.train(self.training)

    @property
    def covariance(self) -> LearnedCovariance:
        """The denoiser whose head this is."""
        return self._hidden[0]

    @property
    def dtype(self) -> torch.dtype:
        return self.covariance.dtype

    def train(self, mode: bool = True) -> TrainableHead:
        super().train(mode)
        self.covariance.train(mode)
        return self

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> TrainableHead:
        super()._apply(fn, recurse)
        self.covariance.inner._apply(fn, recurse)
        return self

    def predict(self, x_t: Tensor, t: Time, **condition: Any) -> tuple[Posterior, Tensor]:
        """See :meth:`LearnedCovariance.predict`."""
        return self.covariance.predict(x_t, t, **condition)

    def target(self, eps: Tensor, posterior: Posterior) -> Tensor:
        """See :meth:`LearnedCovariance.target`."""
        return self.covariance.target(eps, posterior)

    def forward(self, x_t: Tensor, t: Time, **condition: Any) -> Posterior:
        return self.covariance(x_t, t, **condition)


def trainable(covariance: LearnedCovariance) -> TrainableHead:
    """`covariance` for the trainer; what is trained is its head, in place."""
    return TrainableHead(covariance)
