r"""The variational bound of the discrete chain, in bits per dimension, for any reverse variance.

For the levels 0 = data < tau_1 < ... < tau_K of a sampler of the ancestral family and one fresh noise per edge,

    L = KL(q(x_K | x_0) || N(0, std_K^2 I))
      + sum over edges (s, t), s >= tau_1, of KL( N(mu~(x_t, x_0), lambda^2 I) || N(mu(x_t), Sigma(x_t)) )
      - log p(x_0 | x_1)                                          (Ho et al. 2020, eq. 5; Bao et al. 2022, section 2)

where mean and covariance of the second are exactly what the sampler would draw with (:meth:`Ancestral.transition`), but for
the clip of its last noisy step, which a likelihood has no use for. eta = 1 is the usual bound; at eta = 0 it is infinite.
"""

from __future__ import annotations

import dataclasses
import math
import warnings
from typing import Any

import torch
from torch import Tensor

from trueward.covariance.examples import Batch, batches
from trueward.denoisers import Denoiser
from trueward.full_covariance import FullCovariance
from trueward.likelihood.bound import Bound
from trueward.likelihood.decoder import Decoder, DiscretizedGaussian, Variance, decoder_variance
from trueward.noise import Noise
from trueward.processes import here
from trueward.samplers.ancestral import Ancestral, AncestralPlan
from trueward.samplers.plan import combine
from trueward.samplers.reverse_step import ReverseSteps
from trueward.samplers.run import Run, check_condition


def gaussian_kl(variance_q: Any, variance_p: Any, difference2: Any) -> Any:
    """KL(N(m, variance_q) || N(m', variance_p)) per dimension, with difference2 = (m - m')^2, in nats:

    (variance_q / variance_p - 1 - log(variance_q / variance_p) + difference2 / variance_p) / 2.
    """
    ratio = variance_q / variance_p
    log = torch.log(ratio) if isinstance(ratio, Tensor) else math.log(ratio)
    return 0.5 * (ratio - 1.0 - log + difference2 / variance_p)


def divergence(variance_q: float, std: float | Tensor | FullCovariance, difference: Tensor) -> Tensor:
    """KL(N(m, variance_q I) || N(m - difference, std^2)) of every row, (batch,) float64 nats."""
    difference = difference.double()
    if isinstance(std, FullCovariance):
        std = std.to(dtype=torch.float64)
        rotated = std.rotate(difference.flatten(1))
        return gaussian_kl(variance_q, std.values.square(), rotated.square()).sum(1)
    spread = std.double().square() if isinstance(std, Tensor) else std**2
    if isinstance(spread, Tensor):
        spread = spread.expand(difference.shape)
    return gaussian_kl(variance_q, spread, difference.square()).flatten(1).sum(1)


def prior_divergence(x_0: Tensor, alpha: float, sigma: float, std: float) -> Tensor:
    """KL(N(alpha x_0, sigma^2 I) || N(0, std^2 I)) of every row, (batch,) float64 nats."""
    return gaussian_kl(sigma**2, std**2, (alpha * x_0.double()).square()).flatten(1).sum(1)


def check_data(x_0: Tensor, data_range: tuple[float, float] | None) -> None:
    """Refuses data that are not finite, or outside the range that predictions are clamped to."""
    if not bool(x_0.isfinite().all()):
        raise ValueError("The data hold NaN or infinity.")
    if data_range is not None:
        low, high = x_0.min().item(), x_0.max().item()
        if low < data_range[0] - 1e-6 or high > data_range[1] + 1e-6:
            raise ValueError(
                f"The data lie in [{low:g}, {high:g}], outside the model's data_range {data_range}, to which predictions are clamped."
            )


def find_decoder(decoder: Decoder | None, data: Any, denoiser: Denoiser) -> Decoder:
    """`decoder`, or the one the data ask for: their levels on their range.

    Raises:
        ValueError: if the data do not say.
    """
    if decoder is not None:
        return decoder
    levels = getattr(data, "levels", None)
    data_range = getattr(data, "data_range", None) or denoiser.data_range
    if levels is None or data_range is None:
        raise ValueError(
            "These data do not say how many grey levels they have on which range: give decoder=DiscretizedGaussian(levels, "
            "data_range), or decoder=GaussianDensity() for data that are not quantised."
        )
    return DiscretizedGaussian(int(levels), tuple(data_range))


def decoder_spread(decoder: Decoder, run: Run, t_1: float) -> Variance:
    """The variance a decoder uses at `t_1`; `run` has just asked the model there."""
    if decoder.variance == "posterior":
        var = run.posterior.var if run.posterior is not None else None
        if var is None:
            raise ValueError("The decoder's variance is to be the posterior's, but the denoiser knows none.")
        return var
    return decoder_variance(run.denoiser.schedule, t_1) if decoder.variance is None else float(decoder.variance)


@torch.no_grad()
def elbo(
    denoiser: Denoiser,
    data: Any,
    sampler: Ancestral | None = None,
    *,
    decoder: Decoder | None = None,
    batch_size: int = 256,
    seed: int = 0,
    conditional: bool = False,
    progress: bool = False,
) -> Bound:
    """The bound of a model and a variance on data.

    With :class:`~trueward.samplers.Ancestral` ``(steps, variance="posterior", grid=...)`` it is that of the denoiser's own
    covariance; "beta" and "beta-tilde" are the handcrafted ones. Example i has the noise (seed, i) whatever the batch size;
    several processes share the batches and return the same bound.

    Args:
        denoiser: the model.
        data: a data set, a tensor (n, *shape), or a loader of batches.
        sampler: levels and variance; default 50 even steps with the denoiser's covariance if it has one, else beta.
        decoder: of the last term; default: from the levels and range of the data.
        batch_size: rows in one call of the network.
        seed: of the noise.
        conditional: give the model the labels of the data.
        progress: show a progress bar.

    Returns:
        the bound with every term.

    Raises:
        ValueError: eta = 0; data that are not finite or outside the range; no decoder where the data do not say one.
    """
    if sampler is None:
        sampler = Ancestral(50, variance="posterior" if hasattr(denoiser, "covariance_kind") else "beta")
    if not isinstance(sampler, Ancestral):
        raise ValueError(f"The bound belongs to the ancestral family, not to {type(sampler).__name__}.")
    if sampler.eta == 0.0:
        raise ValueError("The bound is infinite at eta=0 (DDIM); use eta=1.")
    if sampler.reads_posterior and getattr(denoiser, "covariance_kind", None) == "sn":
        warnings.warn(
            "SN variances fall to their lower bound here and there, and the bound explodes; use npr.", stacklevel=2
        )
    sampler = dataclasses.replace(sampler, clip_sigma_steps=0)
    decoder = find_decoder(decoder, data, denoiser)
    training = denoiser.training
    denoiser.eval()
    rank, world = here()
    rows: list[Tensor] = []
    stream: Any = enumerate(batches(data, batch_size))
    if progress and rank == 0:
        from tqdm.auto import tqdm

        stream = tqdm(stream, desc="likelihood", unit="batch", leave=False)
    plan = sampler.plan(denoiser.schedule)
    for number, (indices, batch) in stream:
        if number % world == rank:
            rows.append(_terms(denoiser, sampler, decoder, indices, batch, seed, conditional))
        else:
            rows.append(torch.zeros(len(indices), plan.steps + 1, dtype=torch.float64))
    denoiser.train(training)
    if not rows:
        raise ValueError("The data hold no example.")
    shape = batch["x"].shape[1:]
    about = {
        "bound": "discrete",
        "variance": getattr(denoiser, "covariance_kind", "posterior") if sampler.reads_posterior else sampler.variance,
        "steps": sampler.steps,
        "eta": sampler.eta,
        "clip": sampler.clip,
        "seed": seed,
        "decoder": repr(decoder),
        "conditional": conditional,
    }
    return Bound.of(torch.cat(rows), plan.levels.t[:-1][::-1].copy(), math.prod(shape), about)


def _terms(
    denoiser: Denoiser,
    sampler: Ancestral,
    decoder: Decoder,
    indices: Tensor,
    batch: Batch,
    seed: int,
    conditional: bool,
) -> Tensor:
    """(batch, K + 1) float64 on the CPU: decoder, edges by increasing t, prior."""
    x_0 = batch["x"].to(denoiser.device, denoiser.dtype)
    check_data(x_0, denoiser.data_range if sampler.clip else None)
    if conditional and "class_labels" not in batch:
        raise ValueError("conditional=True needs data with class labels.")
    condition = {"class_labels": batch["class_labels"]} if conditional else {}
    condition = check_condition(denoiser, condition, len(x_0), x_0.device)
    noise = Noise(seed, indices.to(x_0.device))
    run = sampler.start(denoiser, noise, **condition)
    plan: AncestralPlan = run.plan  # type: ignore[assignment]
    levels = plan.levels
    prior = denoiser.schedule.prior_std(float(levels.t[0])).item()
    terms = [prior_divergence(x_0, float(levels.alpha[0]), float(levels.sigma[0]), prior)]
    base = ReverseSteps.along(levels, sampler.eta).lambda2
    for level in range(plan.steps):
        eps = noise.normal(level + 1, x_0.shape[1:], x_0.dtype, x_0.device)
        x_t = x_0 * float(levels.alpha[level]) + eps * float(levels.sigma[level])
        mean, std = sampler.transition(run, x_t, level)
        if level == plan.steps - 1:
            terms.append(decoder.nll(x_0, mean, decoder_spread(decoder, run, float(levels.t[level]))).sum(1))
        else:
            second = (plan.of_x(level, x_t), x_t) if sampler.eta == 1.0 else (plan.of_eps(level, x_t), eps)
            truth = combine((plan.of_mean(level, x_0), x_0), second)
            terms.append(divergence(float(base[level]), std, truth - mean))
        if not bool(terms[-1].isfinite().all()):
            raise ValueError(f"The bound is not finite at t={levels.t[level]:.6g}: check the model's answer there.")
    return torch.stack(terms[::-1], dim=1).cpu()
