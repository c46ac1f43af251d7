r"""What every step between two levels costs in the bound, measured on data: a table from which the best trajectory of any
reverse variance follows (Watson et al. 2021).

With R = (x_0 - x0_hat(x_t))^2 and a variance Sigma(s, t, x_t), at eta = 1,

    F[s, t] = E sum_i ( beta~ / Sigma_i - 1 - log(beta~ / Sigma_i) + kappa^2 R_i / Sigma_i ) / 2
    F[0, t] = E[ -log p(x_0 | x_t) ], the decoder, with variance beta~_{1|2} at the cleanest level and sigma_t^2 elsewhere

One network call per example and level; for a covariance that depends on the state the reductions are one per pair of levels,
so give it some tens of levels rather than all.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from trueward.covariance.examples import Held
from trueward.covariance.trajectories import least_cost_paths
from trueward.denoisers import Denoiser
from trueward.full_covariance import FullCovariance
from trueward.likelihood.decoder import Decoder, decoder_variance
from trueward.likelihood.elbo import check_data, find_decoder, gaussian_kl
from trueward.naming import check_name
from trueward.noise import Noise
from trueward.samplers.reverse_step import ReverseSteps
from trueward.samplers.run import check_condition
from trueward.times import Levels, Times


@torch.no_grad()
def edge_costs(
    denoiser: Denoiser,
    data: Any,
    times: Sequence[float] | np.ndarray,
    *,
    variance: str = "posterior",
    decoder: Decoder | None = None,
    clip: bool = True,
    num_samples: int = 256,
    batch_size: int = 256,
    seed: int = 0,
    conditional: bool = False,
) -> np.ndarray:
    """The table F, (T + 1, T + 1) nats: row and column 0 are the data, n is ``times[n - 1]``; inf unless s < t.

    Args:
        denoiser: the model.
        data: a data set, a tensor, or a loader; choose the trajectory on training data and judge it on others.
        times: (T,) increasing candidate levels.
        variance: beta, beta-tilde, or posterior (what the denoiser says).
        decoder: see :func:`trueward.likelihood.elbo`.
        clip: clamp predictions to the denoiser's range.
        num_samples: examples to average over.
        batch_size, seed, conditional: see :func:`trueward.likelihood.elbo`.
    """
    check_name("variance", variance, ["beta", "beta-tilde", "posterior"])
    where = np.asarray(times, dtype=np.float64)
    if where.ndim != 1 or len(where) < 2 or bool((np.diff(where) <= 0).any()):
        raise ValueError("times must be at least two and strictly increasing.")
    decoder = find_decoder(decoder, data, denoiser)
    examples, indices = Held.of(data, num_samples, torch.Generator().manual_seed(seed))
    levels = Levels.of(denoiser.schedule, where)
    size, device = len(where), denoiser.device
    costs = np.full((size + 1, size + 1), np.inf)
    training = denoiser.training
    denoiser.eval()
    for n in range(size):
        sums = np.zeros(n + 1)
        for rows in torch.arange(len(examples)).split(batch_size):
            batch = examples.batch(rows)
            x_0 = batch["x"].to(device, denoiser.dtype)
            check_data(x_0, denoiser.data_range if clip else None)
            condition = {"class_labels": batch["class_labels"]} if conditional else {}
            condition = check_condition(denoiser, condition, len(rows), device)
            eps = Noise(seed, indices[rows].to(device)).normal(n + 1, x_0.shape[1:], x_0.dtype, device)
            x_t = x_0 * float(levels.alpha[n]) + eps * float(levels.sigma[n])
            posterior = denoiser(x_t, float(where[n]), **condition)
            mean = posterior.mean
            if clip and denoiser.data_range is not None:
                mean = mean.clamp(*denoiser.data_range)
            spread = decoder_variance(denoiser.schedule, float(where[0])) if n == 0 else float(levels.sigma[n]) ** 2
            sums[0] += decoder.nll(x_0, mean, spread).sum().item()
            if n:
                before = ReverseSteps(levels.alpha[:n], levels.sigma[:n], levels.alpha[n], levels.sigma[n])  # type: ignore[arg-type]
                sums[1:] += _edges(before, (x_0 - mean).double(), variance, posterior.var)
        costs[: n + 1, n + 1] = sums / len(examples)
    denoiser.train(training)
    return costs


def _edges(step: ReverseSteps, residual: Tensor, variance: str, var: Any) -> np.ndarray:
    """Sum over the batch of the divergence of the steps to every earlier level, (levels,)."""
    base, kappa2 = step.lambda2, step.kappa**2
    size = residual.numel()
    if variance != "posterior" or isinstance(var, float):
        spread = {"beta": step.beta, "beta-tilde": base}.get(variance)
        spread = base + kappa2 * var if spread is None else spread + 0.0 * base
        ratio = base / spread
        return 0.5 * (size * (ratio - 1.0 - np.log(ratio)) + kappa2 * residual.square().sum().item() / spread)
    if var is None:
        raise ValueError("variance='posterior' needs a denoiser that knows its covariance.")
    if isinstance(var, FullCovariance):
        var = var.to(dtype=torch.float64)
        residual, var = var.rotate(residual.flatten(1)), var.values
    difference2, var = residual.square(), var.double()
    found = [
        gaussian_kl(b, (b + k * var).expand(difference2.shape), k * difference2).sum().item()
        for b, k in zip(base.tolist(), kappa2.tolist(), strict=True)
    ]
    return np.array(found)


def optimal_trajectory_of(costs: np.ndarray, times: Sequence[float] | np.ndarray, levels: int) -> Times:
    """The trajectory of exactly `levels` levels, ending at the last of `times`, with the least sum of :func:`edge_costs`."""
    if costs.shape != (len(times) + 1,) * 2:
        raise ValueError(f"costs must be {(len(times) + 1,) * 2} for {len(times)} times, got {costs.shape}.")
    if not 2 <= levels <= len(times):
        raise ValueError(f"A trajectory has 2 ... {len(times)} levels here, got {levels}.")
    if bool((~np.isfinite(costs[np.triu_indices(len(costs), 1)])).all()) or math.isnan(float(np.nanmin(costs))):
        raise ValueError("costs holds no finite edge.")
    path = least_cost_paths(costs, levels + 1).path(levels + 1)
    return Times([float(times[n - 1]) for n in path[:0:-1]])
