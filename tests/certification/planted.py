"""Samplers with one defect each, and their sound twins, as a user would write them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from trueward.denoisers import Denoiser
from trueward.noise import Noise
from trueward.samplers import DDIM, Run
from trueward.samplers.plan import Level
from trueward.schedules import Schedule

Function = Callable[..., Any]


def _half_log_snr_grid(schedule: Schedule, steps: int) -> tuple[list[float], list[float]]:
    """Times and half-log-SNR, even in the latter."""
    ends = [0.5 * schedule.log_snr(t).item() for t in (schedule.t_max, schedule.t_min)]
    lam = torch.linspace(*ends, steps + 1, dtype=torch.float64)
    times = schedule.time_of_log_snr(2.0 * lam)
    return [schedule.t_max, *times[1:-1].tolist(), schedule.t_min], lam.tolist()


def multistep(half: float) -> Function:
    """DPM-Solver++(2M); `half` = 1/2 is right."""

    @torch.no_grad()
    def two_m(denoiser: Denoiser, schedule: Schedule, x_T: Tensor, steps: int) -> Tensor:
        times, lam = _half_log_snr_grid(schedule, steps)
        x, old, h_old = x_T, None, 0.0
        for i in range(steps):
            h = lam[i + 1] - lam[i]
            alpha, sigma = schedule.at(times[i + 1])
            mean = denoiser(x, times[i]).mean
            better = mean if old is None else mean + half * (mean - old) * h / h_old
            x = sigma / schedule.at(times[i])[1] * x - alpha * math.expm1(-h) * better
            old, h_old = mean, h
        return x

    two_m.order = 2  # type: ignore[attr-defined]
    return two_m


def single_step(r2: float) -> Function:
    """DPM-Solver-3 in data form; r2 = 2/3 is right."""

    @torch.no_grad()
    def three_s(denoiser: Denoiser, schedule: Schedule, x_T: Tensor, steps: int) -> Tensor:
        times, lam = _half_log_snr_grid(schedule, steps)
        r1, x = 1.0 / 3.0, x_T

        def level(s: float) -> tuple[float, float, float]:
            t = schedule.time_of_log_snr(torch.tensor(2.0 * s, dtype=torch.float64)).item()
            return (t, *schedule.at(t))

        for i in range(steps):
            h = lam[i + 1] - lam[i]
            sigma_s = schedule.at(times[i])[1]
            (t1, a1, s1), (t2, a2, s2) = level(lam[i] + r1 * h), level(lam[i] + r2 * h)
            a, s = schedule.at(times[i + 1])
            m = denoiser(x, times[i]).mean
            u1 = s1 / sigma_s * x - a1 * math.expm1(-r1 * h) * m
            d1 = denoiser(u1, t1).mean - m
            b = math.expm1(-r2 * h) / (r2 * h) + 1.0
            u2 = s2 / sigma_s * x - a2 * math.expm1(-r2 * h) * m + r2 / r1 * a2 * b * d1
            d2 = denoiser(u2, t2).mean - m
            x = s / sigma_s * x - a * math.expm1(-h) * m + (math.expm1(-h) / h + 1.0) / r2 * a * d2
        return x

    three_s.order = 3  # type: ignore[attr-defined]
    return three_s


def stops_converging(denoiser: Denoiser, schedule: Schedule, x_T: Tensor, steps: int) -> Tensor:
    """Rounds its times to 40 nodes, as an integer time grid does: more steps do not help."""
    times, _ = _half_log_snr_grid(schedule, steps)
    nodes = torch.tensor(_half_log_snr_grid(schedule, 40)[0], dtype=torch.float64)
    rounded = sorted({nodes[(nodes - t).abs().argmin()].item() for t in times}, reverse=True)
    x = x_T
    with torch.no_grad():
        for t, s in itertools.pairwise(rounded):
            posterior = denoiser(x, t)
            alpha, sigma = schedule.at(s)
            x = alpha * posterior.mean + sigma * posterior.eps
    return x


def euler_steps(denoiser: Denoiser, schedule: Schedule, x: Tensor, steps: int) -> Tensor:
    """DDIM from t_max to t_min, even in half-log-SNR, out of place."""
    times, _ = _half_log_snr_grid(schedule, steps)
    for t, s in itertools.pairwise(times):
        posterior = denoiser(x, t)
        alpha, sigma = schedule.at(s)
        x = alpha * posterior.mean + sigma * posterior.eps
    return x


@torch.no_grad()
def euler(denoiser: Denoiser, schedule: Schedule, x_T: Tensor, steps: int) -> Tensor:
    """Sound, of order 1."""
    return euler_steps(denoiser, schedule, x_T, steps)


def keeps_graph(denoiser: Denoiser, schedule: Schedule, x_T: Tensor, steps: int) -> Tensor:
    return euler_steps(denoiser, schedule, x_T, steps)


@torch.no_grad()
def mutates_start(denoiser: Denoiser, schedule: Schedule, x_T: Tensor, steps: int) -> Tensor:
    return x_T.copy_(euler_steps(denoiser, schedule, x_T, steps)).clone()


@torch.no_grad()
def hands_back_start(denoiser: Denoiser, schedule: Schedule, x_T: Tensor, steps: int) -> Tensor:
    """Returns x_T itself."""
    return x_T


@torch.no_grad()
def nan_at_one_step(denoiser: Denoiser, schedule: Schedule, x_T: Tensor, steps: int) -> Tensor:
    x = euler_steps(denoiser, schedule, x_T, steps)
    return x * math.nan if steps == 1 else x


@torch.no_grad()
def dies_at_two_steps(denoiser: Denoiser, schedule: Schedule, x_T: Tensor, steps: int) -> Tensor:
    if steps == 2:
        raise IndexError("list index out of range")
    return euler_steps(denoiser, schedule, x_T, steps)


@torch.no_grad()
def looks_at_neighbours(denoiser: Denoiser, schedule: Schedule, x_T: Tensor, steps: int) -> Tensor:
    """Rescales by a statistic of the batch, as adaptive thresholds and shared step sizes do."""
    x = euler_steps(denoiser, schedule, x_T, steps)
    return x * (1.0 + 1e-4 * x.abs().max())


@torch.no_grad()
def flattens(denoiser: Denoiser, schedule: Schedule, x_T: Tensor, steps: int) -> Tensor:
    rows, size = x_T.shape
    return euler_steps(denoiser, schedule, x_T, steps).view(rows, size)


@torch.no_grad()
def double_only(denoiser: Denoiser, schedule: Schedule, x_T: Tensor, steps: int) -> Tensor:
    return euler_steps(denoiser, schedule, x_T.double(), steps)


class RemembersLastAnswer:
    """Mixes in the last answer of the call before: state that outlives a call."""

    order = 1

    def __init__(self) -> None:
        self.last: Tensor | None = None

    @torch.no_grad()
    def __call__(self, denoiser: Denoiser, schedule: Schedule, x_T: Tensor, steps: int) -> Tensor:
        x = euler_steps(denoiser, schedule, x_T, steps)
        if self.last is not None and self.last.shape == x.shape:
            x = x + 1e-3 * self.last
        self.last = x
        return x


class KeepsStateDuringACall:
    """Keeps its position in an attribute, reset at the start of each call: sound alone, not in two threads."""

    order = 1

    @torch.no_grad()
    def __call__(self, denoiser: Denoiser, schedule: Schedule, x_T: Tensor, steps: int) -> Tensor:
        self.times, _ = _half_log_snr_grid(schedule, steps)
        x = x_T
        for i in range(steps):
            posterior = denoiser(x, self.times[i])
            alpha, sigma = schedule.at(self.times[i + 1])
            x = alpha * posterior.mean + sigma * posterior.eps
        return x


def _ancestral(denoiser: Denoiser, schedule: Schedule, x: Tensor, steps: int, draw: Function, factor: float) -> Tensor:
    """DDPM steps; `draw(step, x)` gives the noise, `factor` = 1 its right size."""
    times, lam = _half_log_snr_grid(schedule, steps)
    for i, (t, s) in enumerate(itertools.pairwise(times)):
        posterior = denoiser(x, t)
        alpha, sigma = schedule.at(s)
        kept = math.exp(2.0 * (lam[i] - lam[i + 1]))  # SNR_t / SNR_s
        mean = alpha * (1.0 - kept) * posterior.mean + kept * alpha / schedule.at(t)[0] * x
        x = mean + factor * sigma * math.sqrt(1.0 - kept) * draw(i, x)
    return x


def ancestral(factor: float = 1.0, shared: bool = False) -> Function:
    """With an identity for every sample. `factor` scales the noise, `shared` uses one number for all coordinates."""

    @torch.no_grad()
    def ddpm(denoiser: Denoiser, schedule: Schedule, x_T: Tensor, steps: int, seed: int, indices: list[int]) -> Tensor:
        noise = Noise.rows(seed, indices)

        def draw(i: int, x: Tensor) -> Tensor:
            if shared:
                return noise.normal(i + 1, (1,) * (x.ndim - 1), x.dtype).expand_as(x)
            return noise.normal(i + 1, x.shape[1:], x.dtype)

        return _ancestral(denoiser, schedule, x_T, steps, draw, factor)

    return ddpm


@torch.no_grad()
def noise_of_the_batch(denoiser: Denoiser, schedule: Schedule, x_T: Tensor, steps: int, seed: int) -> Tensor:
    """One stream of noise for the whole batch."""
    generator = torch.Generator().manual_seed(seed)
    return _ancestral(
        denoiser, schedule, x_T, steps, lambda _, x: torch.randn(x.shape, dtype=x.dtype, generator=generator), 1.0
    )


@torch.no_grad()
def noise_of_the_world(denoiser: Denoiser, schedule: Schedule, x_T: Tensor, steps: int) -> Tensor:
    """Noise from the global generator."""
    return _ancestral(denoiser, schedule, x_T, steps, lambda _, x: torch.randn_like(x), 1.0)


def miscounting(claim: Function) -> Function:
    """Euler with a claim about its evaluations."""

    @torch.no_grad()
    def counted(denoiser: Denoiser, schedule: Schedule, x_T: Tensor, steps: int) -> Tensor:
        return euler_steps(denoiser, schedule, x_T, steps)

    counted.nfe = claim  # type: ignore[attr-defined]
    return counted


@dataclass(frozen=True)
class ForgetsToCount(DDIM):
    """A trueward sampler that asks twice and says once."""

    def step(
        self, run: Run, x: Tensor, level: Level, draw: int | Tensor | None = None, out: Tensor | None = None
    ) -> Tensor:
        run.denoiser(x, run.time(level), **run.condition)
        return super().step(run, x, level, draw, out)


@dataclass(frozen=True)
class PromisesTooLittle(DDIM):
    """A trueward sampler whose promised cost leaves out the last step."""

    def cost(self, level: int) -> int:
        return 0 if level == self.steps - 1 else 1


@dataclass(frozen=True)
class BadWord(DDIM):
    """A trueward sampler of which one option gives NaN."""

    square: bool = False

    def step(
        self, run: Run, x: Tensor, level: Level, draw: int | Tensor | None = None, out: Tensor | None = None
    ) -> Tensor:
        x = super().step(run, x, level, draw, out)
        return x * math.nan if self.square else x
