r"""The exact probability-flow map of a truth, to measure samplers against.

For one Gaussian N(mu, U diag(w) U^T), with v_t = alpha_t^2 w + sigma_t^2,

    x_e = alpha_e mu + U diag(sqrt(v_e / v_s)) U^T (x_s - alpha_s mu)

For mixtures the ODE is integrated with DOP853 (Hairer, Norsett and Wanner 1993) in the half-log-SNR h = log(alpha / sigma),
after scaling every process to the variance-preserving one, a^2 = 1 / (1 + e^(-2h)), s^2 = 1 - a^2, where it reads

    dx/dh = s^2 x - s eps(x, h)

and all quantities are of order one from start to end. The map therefore depends on a schedule only through the two levels.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from trueward.schedules import Schedule

if TYPE_CHECKING:
    from trueward.truth.mixture import GaussianMixture

# Rows that share one step size; the error estimate is a mean over them, so a chunk bounds how far one row can hide.
_ROWS = 256


def probability_flow(truth: GaussianMixture, x: Tensor, schedule: Schedule, start: float, end: float) -> Tensor:
    """Carries `x` along the probability-flow ODE of `truth` from time `start` to time `end`, in either direction.

    Args:
        truth: the law of the data.
        x: (batch, *shape), states at `start`.
        schedule: the forward process.
        start, end: times in the schedule's range.

    Returns:
        (batch, *shape) float64, states at `end`.

    Raises:
        ValueError: a level without noise for a mixture, where half-log-SNR is infinite.
    """
    alpha_s, sigma_s = schedule.at(float(start))
    alpha_e, sigma_e = schedule.at(float(end))
    flat = truth._flat(x)
    if truth.components == 1:
        w, centre = truth.spectrum.values.unsqueeze(1), truth._centres
        v_s, v_e = alpha_s**2 * w + sigma_s**2, alpha_e**2 * w + sigma_e**2
        y = truth.spectrum.rotate(flat) - alpha_s * centre
        y = y * torch.sqrt(v_e / v_s.clamp(min=1e-300))
        return (truth.spectrum.rotate_back(y) + alpha_e * truth._flat_means).reshape(x.shape)
    if not (sigma_s > 0 and sigma_e > 0):
        raise ValueError(f"The flow of a mixture needs noise at both ends, got sigma={sigma_s:g} and {sigma_e:g}.")
    h_s, h_e = math.log(alpha_s / sigma_s), math.log(alpha_e / sigma_e)
    norm_s, norm_e = math.hypot(alpha_s, sigma_s), math.hypot(alpha_e, sigma_e)
    parts = [_integrate(truth, rows / norm_s, h_s, h_e) * norm_e for rows in flat.split(_ROWS)]
    return torch.cat(parts).reshape(x.shape)


def _integrate(truth: GaussianMixture, x: Tensor, h_s: float, h_e: float) -> Tensor:
    from scipy.integrate import solve_ivp

    if h_s == h_e:
        return x
    rows, size = x.shape

    def slope(h: float, state: np.ndarray) -> np.ndarray:
        a, s = 1.0 / math.sqrt(1.0 + math.exp(-2.0 * h)), 1.0 / math.sqrt(1.0 + math.exp(2.0 * h))
        now = torch.from_numpy(state).view(rows, size).to(truth.device)
        return (s**2 * now - s * truth.answer(now, a, s).eps).reshape(-1).cpu().numpy()

    with torch.no_grad():
        result = solve_ivp(
            slope, (h_s, h_e), x.reshape(-1).cpu().numpy(), method="DOP853", rtol=1e-13, atol=1e-14, t_eval=[h_e]
        )
    if not result.success:
        raise ValueError(f"The reference integration of the probability flow failed: {result.message}")
    return torch.from_numpy(result.y[:, -1].copy()).view(rows, size).to(truth.device)
