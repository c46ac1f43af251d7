r"""The variational bound of the continuous process: what the discrete one tends to with ever more steps,

    L = KL(q(x_T | x_0) || N(0, std_T^2 I)) + 1/2 int E || eps - eps_theta(x_t, t) ||^2 d log-SNR - log p(x_0 | x_1),

the integral from t_max to t_min (Kingma et al. 2021, eq. 11). Every reverse variance gives the same value: with small steps
only the mean counts. Each example takes `points` log-SNRs, spread evenly with a shift of its own, so the estimate is unbiased.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from trueward.covariance.examples import Batch, batches
from trueward.denoisers import Denoiser
from trueward.likelihood.bound import Bound
from trueward.likelihood.decoder import Decoder
from trueward.likelihood.elbo import check_data, decoder_spread, find_decoder, prior_divergence
from trueward.noise import Noise
from trueward.processes import here
from trueward.samplers.plan import Plan
from trueward.samplers.run import Run, check_condition
from trueward.times import Levels

_SHIFT = 2**30  # number of the draw of the shift, far from those of the noise


@torch.no_grad()
def continuous_elbo(
    denoiser: Denoiser,
    data: Any,
    *,
    decoder: Decoder | None = None,
    points: int = 16,
    batch_size: int = 256,
    seed: int = 0,
    conditional: bool = False,
    t_min: float | None = None,
    progress: bool = False,
) -> Bound:
    """The continuous bound of a model on data, ``points`` + 1 network evaluations per example.

    Args:
        denoiser: the model.
        data: a data set, a tensor (n, *shape), or a loader of batches.
        decoder: of the last term, at `t_min`; default: from the levels and range of the data.
        points: log-SNRs per example.
        batch_size, seed, conditional, progress: see :func:`trueward.likelihood.elbo`.
        t_min: the cleanest level; default that of the schedule.

    Returns:
        the bound; its terms are the decoder, the integral and the prior.

    Raises:
        ValueError: points < 1, data that are not finite, a log-SNR that is infinite at `t_min`.
    """
    if points < 1:
        raise ValueError(f"points must be at least 1, got {points}.")
    schedule = denoiser.schedule
    first = schedule.t_min if t_min is None else t_min
    ends = schedule.log_snr(first).item(), schedule.log_snr(schedule.t_max).item()
    if not all(map(math.isfinite, ends)):
        raise ValueError(f"The log-SNR is not finite at t={first:g}: give t_min a positive time.")
    decoder = find_decoder(decoder, data, denoiser)
    training = denoiser.training
    denoiser.eval()
    rank, world = here()
    rows: list[Tensor] = []
    stream: Any = enumerate(batches(data, batch_size))
    if progress and rank == 0:
        from tqdm.auto import tqdm

        stream = tqdm(stream, desc="likelihood", unit="batch", leave=False)
    for number, (indices, batch) in stream:
        if number % world == rank:
            rows.append(_terms(denoiser, decoder, indices, batch, points, seed, conditional, first, ends))
        else:
            rows.append(torch.zeros(len(indices), 3, dtype=torch.float64))
    denoiser.train(training)
    if not rows:
        raise ValueError("The data hold no example.")
    about = {
        "bound": "continuous",
        "points": points,
        "seed": seed,
        "decoder": repr(decoder),
        "conditional": conditional,
    }
    return Bound.of(torch.cat(rows), np.array([first, schedule.t_max]), math.prod(batch["x"].shape[1:]), about)


def _terms(
    denoiser: Denoiser,
    decoder: Decoder,
    indices: Tensor,
    batch: Batch,
    points: int,
    seed: int,
    conditional: bool,
    first: float,
    ends: tuple[float, float],
) -> Tensor:
    """(batch, 3) float64 on the CPU: decoder, integral, prior."""
    schedule = denoiser.schedule
    x_0 = batch["x"].to(denoiser.device, denoiser.dtype)
    check_data(x_0, denoiser.data_range)
    condition = {"class_labels": batch["class_labels"]} if conditional else {}
    condition = check_condition(denoiser, condition, len(x_0), x_0.device)
    noise = Noise(seed, indices.to(x_0.device))
    alpha, sigma = schedule.at(schedule.t_max)
    prior = prior_divergence(x_0, alpha, sigma, schedule.prior_std().item())
    shift = noise.uniform(_SHIFT)
    integral = torch.zeros(len(x_0), dtype=torch.float64, device=x_0.device)
    span = ends[0] - ends[1]
    for point in range(points):
        t = schedule.time_of_log_snr(ends[1] + span * (point + shift) / points).clamp(min=first, max=schedule.t_max)
        eps = noise.normal(point + 1, x_0.shape[1:], x_0.dtype, x_0.device)
        answer = denoiser(schedule.add_noise(x_0, t, eps), t, **condition).eps
        integral += (eps - answer).double().square().flatten(1).sum(1)
    alpha, sigma = schedule.at(first)
    eps = noise.normal(0, x_0.shape[1:], x_0.dtype, x_0.device)
    run = Run(denoiser, Plan(Levels.of(schedule, np.array([first]))), noise, condition)
    mean = run.denoise(alpha * x_0 + sigma * eps, first).mean
    if denoiser.data_range is not None:
        mean = mean.clamp(*denoiser.data_range)
    last = decoder.nll(x_0, mean, decoder_spread(decoder, run, first)).sum(1)
    return torch.stack([last, 0.5 * span / points * integral, prior], dim=1).cpu()
