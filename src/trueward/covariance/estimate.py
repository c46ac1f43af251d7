r"""Measuring gamma: Monte Carlo over clean examples and fresh noise, at every noise level,

    gamma(t)    = E || eps_theta(alpha_t x_0 + sigma_t eps, t) ||^2 / d
    residual(t) = E || eps - eps_theta(...) ||^2 / d                                      (Bao et al. 2022, section 3.1)

one network call giving both. Since E ||eps||^2 / d = 1 is known, the same calls give a regression estimate whose error
vanishes where the prediction follows the noise, i.e. at high noise, where 1 - gamma would otherwise drown.

The examples are drawn without replacement and are the same for all levels; the noise is a function of (seed, example, level)
alone, so the table does not depend on the batch size or on the number of processes. With a stated relative error each level
takes as many examples as it needs (few at high noise, many at low): rows of a batch stand at different levels.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from trueward import processes
from trueward.covariance.analytic import CONVENTION, GammaTable
from trueward.covariance.averages import Averages
from trueward.covariance.examples import Held
from trueward.denoisers import Denoiser
from trueward.noise import Noise
from trueward.samplers.run import check_condition
from trueward.schedules import DiscreteSchedule, Schedule
from trueward.times import UniformLogSNR

PILOT_NUMBERS, PILOT = 4096, 16  # before its scatter is believed, a level has at least 16 examples and 4096 numbers


def measured_times(schedule: Schedule, points: int = 256) -> np.ndarray:
    """Where to measure: all nodes of a discrete schedule; else `points` times, even in log-SNR, increasing."""
    if isinstance(schedule, DiscreteSchedule):
        return schedule.time_of_node(torch.arange(schedule.nodes)).numpy()
    start = schedule.t_min if math.isfinite(schedule.log_snr(schedule.t_min).item()) else 1e-5 * schedule.t_max
    return UniformLogSNR()(schedule, points - 1, start, schedule.t_max)


class Moments:
    """Squared noise predictions, squared residuals and squared noise of a model, per example, averaged over dimensions."""

    def __init__(self, denoiser: Denoiser, examples: Held, indices: Tensor, seed: int, conditional: bool) -> None:
        self.denoiser, self.examples, self.indices = denoiser, examples, indices
        self.seed, self.conditional = seed, conditional

    def noisy(self, rows: Tensor, level: Tensor, times: Tensor) -> tuple[Tensor, Tensor, Tensor, dict[str, Any]]:
        """(x_t, eps, t, condition) of the examples `rows` at their levels."""
        device, dtype = self.denoiser.device, self.denoiser.dtype
        batch = self.examples.batch(rows)
        x_0 = batch["x"].to(device, dtype)
        noise = Noise(self.seed, self.indices[rows].to(device)).normal(level.to(device), x_0.shape[1:], dtype)
        t = times[level].to(device) if device.type != "mps" else times[level]
        condition = {"class_labels": batch["class_labels"]} if self.conditional else {}
        x_t = self.denoiser.schedule.add_noise(x_0, t, noise)
        return x_t, noise, t, check_condition(self.denoiser, condition, len(rows), device)

    def __call__(self, rows: Tensor, level: Tensor, times: Tensor) -> Tensor:
        """(rows, 3): mean squared prediction, residual and noise."""
        x_t, noise, t, condition = self.noisy(rows, level, times)
        eps = self.denoiser(x_t, t, **condition).eps
        if eps.shape != x_t.shape:
            raise ValueError(
                f"The model answered shape {tuple(eps.shape)} to {tuple(x_t.shape)}; if it predicts a variance too, split it off."
            )
        flat, eps64 = noise.double().flatten(1), eps.double().flatten(1)
        found = torch.stack([(eps64**2).mean(1), ((flat - eps64) ** 2).mean(1), (flat**2).mean(1)], 1)
        if not bool(found.isfinite().all()):
            where = t[(~found.isfinite()).any(1).to(t.device)][0].item()
            raise ValueError(f"The model answered NaN or infinity at t={where:.6g}.")
        return found


@torch.no_grad()
def estimate_gamma(
    denoiser: Denoiser,
    data: Any,
    *,
    num_samples: int | None = None,
    relative_error: float = 0.01,
    max_samples: int = 10_000,
    batch_size: int = 256,
    times: Sequence[float] | np.ndarray | None = None,
    seed: int = 0,
    conditional: bool = False,
    control_variate: bool = True,
    progress: bool = False,
) -> GammaTable:
    """Measures the statistics of Analytic-DPM, once per model.

    Any denoiser serves, a guided one too (it must then be measured at the scale that is sampled with). Started in several
    processes of one job (``accelerate launch``), they share the work and all return the same table.

    Args:
        denoiser: the model.
        data: clean training examples: a data set, a tensor (n, *shape), or a loader.
        num_samples: M, examples at every level; None: as many as `relative_error` needs.
        relative_error: standard error of gamma relative to gamma, reached at every level (or `max_samples` spent).
        max_samples: most examples at one level.
        batch_size: rows in one network call: speed and memory, not the result.
        times: where to measure; default :func:`measured_times`.
        seed: of the choice of examples and of the noise.
        conditional: give the model the labels of the data.
        control_variate: use that the mean square of the noise is known.
        progress: show a progress bar.

    Returns:
        the table, float64.

    Raises:
        ValueError: fewer than `num_samples` examples, a relative error or batch size that is not positive, a model that
            answers NaN or another shape, labels asked for where there are none.
    """
    if num_samples is not None and num_samples < 1:
        raise ValueError(f"num_samples must be at least 1, got {num_samples}.")
    if not relative_error > 0:
        raise ValueError(f"relative_error must be positive, got {relative_error}.")
    if batch_size < 1 or max_samples < 1:
        raise ValueError(f"batch_size and max_samples must be at least 1, got {batch_size} and {max_samples}.")
    schedule, training = denoiser.schedule, denoiser.training
    denoiser.eval()
    where = measured_times(schedule) if times is None else np.unique(np.asarray(times, dtype=np.float64))
    limit = max_samples if num_samples is None else num_samples
    examples, indices = Held.of(data, limit, torch.Generator().manual_seed(seed))
    if num_samples is not None and len(examples) < num_samples:
        raise ValueError(f"num_samples={num_samples}, but the data hold {len(examples)} examples.")
    if conditional and examples.class_labels is None:
        raise ValueError("conditional=True needs data with class labels.")
    moments = Moments(denoiser, examples, indices, seed, conditional)
    target = None if num_samples is not None else relative_error
    averages, spent = _gather(moments, where, len(examples), target, batch_size, control_variate, progress)
    denoiser.train(training)
    gamma, gamma_error = averages.estimate(0, control_variate)
    residual, residual_error = averages.estimate(1, control=False)
    above = gamma - 1.0 > 5.0 * np.maximum(gamma_error, 1e-6)
    if above.mean() > 0.05:
        warnings.warn(
            f"gamma exceeds 1 at {int(above.sum())} of {len(gamma)} levels: the prediction is not the mean of the noise there "
            "(strong guidance, or a poor model); the variance is clipped to its lower bound. Consider analytic-residual.",
            stacklevel=2,
        )
    about = {
        "convention": CONVENTION,
        "seed": seed,
        "conditional": conditional,
        "control_variate": control_variate,
        "relative_error": None if num_samples is not None else relative_error,
        "num_samples": num_samples,
        "evaluations": spent,
        "shape": list(examples.x.shape[1:]),
        "denoiser": type(denoiser).__name__,
    }
    gamma, residual = np.maximum(gamma, 0.0), np.maximum(residual, 0.0)
    return GammaTable(schedule, where, gamma, residual, gamma_error, residual_error, averages.count.numpy(), about)


def _gather(
    moments: Moments,
    where: np.ndarray,
    available: int,
    target: float | None,
    batch_size: int,
    control: bool,
    progress: bool,
) -> tuple[Averages, int]:
    """Runs rounds until every level has all examples, or the target; each round brings a level to `wanted` examples."""
    times = torch.as_tensor(where, dtype=torch.float64)
    rank, world = processes.here()
    averages = Averages.empty(len(where), 3)
    done = torch.zeros(len(where), dtype=torch.int64)
    pilot = max(PILOT, -(-PILOT_NUMBERS // moments.examples.x[0].numel()))
    wanted = torch.full_like(done, available if target is None else min(pilot, available))
    bar = None
    if progress and rank == 0:
        from tqdm.auto import tqdm

        bar = tqdm(desc="gamma", unit="call", unit_scale=True, leave=False)
    while True:
        extra = (wanted - done).clamp(min=0)
        if not bool(extra.any()):
            break
        level = torch.repeat_interleave(torch.arange(len(where)), extra)
        # example number within the level: done[level], done[level] + 1, ...
        row = torch.arange(len(level)) - torch.repeat_interleave(extra.cumsum(0) - extra, extra) + done[level]
        share = slice(rank, None, world)
        level, row = level[share], row[share]
        fresh = Averages.empty(len(where), 3)
        for first in range(0, len(level), batch_size):
            part = slice(first, first + batch_size)
            fresh.add(level[part], moments(row[part], level[part], times))
            if bar is not None:
                bar.update(len(level[part]))
        averages = averages + fresh.over_processes()
        done = torch.maximum(done, wanted)
        if target is not None:
            gamma, error = (torch.as_tensor(part) for part in averages.estimate(0, control))
            ratio = error / (target * gamma.abs().clamp(min=1e-12))
            needed = (done * ratio**2 * 1.1).clamp(max=1e9).ceil().long()
            grown = torch.minimum(torch.maximum(needed, done + PILOT), 4 * done).clamp(max=available)
            wanted = torch.where(ratio > 1.0, grown, done)
    if bar is not None:
        bar.close()
    return averages, int(done.sum())
