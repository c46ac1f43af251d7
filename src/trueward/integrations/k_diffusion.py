r"""k-diffusion's convention, and EDM's: ``model(x, sigma, **condition) -> denoised`` with x = x_0 + sigma eps.

That is a :class:`~trueward.Denoiser` under the schedule EDM (alpha = 1, the time is sigma), and every denoiser, whatever its
schedule, is such a model: at the time t of equal noise, sigma(t) / alpha(t) = sigma,

    model(x, sigma) = denoiser(alpha(t) x, t).mean
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from trueward.denoisers import DataDenoiser, Denoiser
from trueward.schedules import EDM


class SigmaNetwork(nn.Module):
    """A function or module ``model(x, sigma, **condition)`` as a module."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor, sigma: Tensor, **condition: Any) -> Tensor:
        return self.model(x, sigma, **condition)


def _time_itself(t: Tensor) -> Tensor:
    return t


def from_k_diffusion(
    model: Any,
    *,
    sigma_min: float | None = None,
    sigma_max: float | None = None,
    shape: Sequence[int] | None = None,
    data_range: tuple[float, float] | None = None,
    num_classes: int | None = None,
) -> DataDenoiser:
    """Any ``model(x, sigma, **condition) -> denoised`` as a `Denoiser` on the schedule EDM.

    Args:
        model: a module or a function; x: (batch, *shape), sigma: (batch,).
        sigma_min, sigma_max: noise levels it knows; default: those it says itself (``model.sigma_min`` and so on, or its
            table ``model.sigmas``), else EDM's 0.002 and 80.
        shape, data_range, num_classes: see :class:`~trueward.Denoiser`.
    """
    if not callable(model):
        raise ValueError(f"model must be callable as model(x, sigma), got {type(model).__name__}.")
    table = getattr(model, "sigmas", None)
    bounds = []
    for given, name, default in ((sigma_min, "sigma_min", 0.002), (sigma_max, "sigma_max", 80.0)):
        value = getattr(model, name, None) if given is None else given
        if value is None and table is not None and len(table) > 1:
            value = table.min() if name == "sigma_min" else table.max()
        bounds.append(float(default if value is None else value))
    denoiser = DataDenoiser(
        SigmaNetwork(model),
        EDM(*bounds),
        label=_time_itself,
        shape=shape,
        data_range=data_range,
        num_classes=num_classes,
    )
    return denoiser.train(model.training) if isinstance(model, nn.Module) else denoiser.eval()


class SigmaModel(nn.Module):
    """A `Denoiser` as a model of k-diffusion: ``model(x, sigma, **condition) -> denoised``.

    Attributes:
        sigma_min, sigma_max: sigma / alpha at the ends of the denoiser's schedule.
    """

    def __init__(self, inner: Denoiser) -> None:
        super().__init__()
        self.inner = inner
        schedule = inner.schedule
        low = schedule.t_min if schedule.t_min > 0 else 1e-6 * schedule.t_max
        self.sigma_min, self.sigma_max = (torch.exp(-0.5 * schedule.log_snr(t)).item() for t in (low, schedule.t_max))

    def forward(self, x: Tensor, sigma: Tensor | float, **condition: Any) -> Tensor:
        """The denoised data.

        Args:
            x: (batch, *shape), x_0 + sigma eps.
            sigma: () or (batch,); levels outside the schedule are taken as its ends, and at 0 the answer is x itself.
        """
        sigma = torch.as_tensor(sigma, dtype=torch.float64)
        known = sigma.clamp(self.sigma_min, self.sigma_max)
        t = self.inner.schedule.time_of_log_snr(-2.0 * known.log())
        t = t.clamp(self.inner.schedule.t_min, self.inner.schedule.t_max)
        alpha, _ = self.inner.schedule.coefficients(t, x)
        mean = self.inner(x * alpha, t, **condition).mean
        if bool((sigma == 0).any()):
            clean = (
                (sigma == 0).to(x.device).view((-1,) + (1,) * (x.ndim - 1)) if sigma.ndim else sigma.to(x.device) == 0
            )
            mean = torch.where(clean, x, mean)
        return mean


def to_k_diffusion(denoiser: Denoiser) -> SigmaModel:
    """Any `Denoiser` as ``model(x, sigma, **condition) -> denoised``, for k-diffusion's samplers and EDM's.

    Raises:
        ValueError: if it is none.
    """
    if not isinstance(denoiser, Denoiser):
        raise ValueError(f"denoiser must be a trueward Denoiser, got {type(denoiser).__name__}.")
    return SigmaModel(denoiser)
