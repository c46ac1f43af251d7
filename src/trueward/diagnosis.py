r"""Measuring how well a model denoises under a reading of it, and finding the reading that explains it.

At a noise level with s = sigma / alpha and v_i the variance of coordinate i of the data,

    error  = E |x_0 - mean(x_t, t)|^2 / d
    linear = mean_i v_i s^2 / (v_i + s^2),   bound = linear + tolerance,   tolerance = s^2 / 50
    score  = mean over levels of log((error + tolerance) / bound)

The tolerance is what an error of a fiftieth in a predicted noise makes of x_0; below it nothing is lost or won. All readings
are measured on the same data and noise, so that differences are paired.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Container
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from trueward.denoisers import Denoiser
from trueward.readings import Misreading, Reading, misreadings
from trueward.schedules import DiscreteSchedule

Errors = dict[int, np.ndarray]  # level -> squared error per coordinate of every sample, (n,)

NOISE_TOLERANCE = 0.02  # error of a good network's predicted noise, in its variance
MEAN_TOLERANCE = 1.1  # of error / bound, over the levels: what a half-trained network may exceed
MARGIN = 0.02  # a reading must be better by this in the score (or by more at one level and worse at none) ...
Z = 5.0  # ... and by so many standard errors at one level: false alarms below 2e-4 for 40 readings at 12 levels
CLEAR = 0.1  # a gain in the score that outweighs being worse at some level
SCREEN = 64  # samples on which all readings are tried
MOST = 3.0  # no further pair of mistakes is tried once this many times the cost of trying all single ones is spent


@dataclass(frozen=True)
class Level:
    """The model at one noise level: errors per coordinate, in squared data units."""

    t: float
    log_snr: float
    error: float
    linear: float
    identity: float
    constant: float

    @property
    def tolerance(self) -> float:
        """The error of x_0 that a small error of a predicted noise makes."""
        return NOISE_TOLERANCE * self.identity

    @property
    def bound(self) -> float:
        """What the error of a good model lies below."""
        return self.linear + self.tolerance

    @property
    def ratio(self) -> float:
        """error / bound."""
        return self.error / self.bound

    @property
    def score(self) -> float:
        """log((error + tolerance) / bound)."""
        return math.log((self.error + self.tolerance) / self.bound) if math.isfinite(self.error) else math.inf


def log_snrs(model: Denoiser, levels: int) -> np.ndarray:
    """Levels even in log-SNR, little noise first; on a table, at its nodes."""
    if levels < 3:
        raise ValueError(f"levels must be at least 3, got {levels}.")
    s = model.schedule
    low = s.t_min if s.t_min > 0 else 1e-3 * s.t_max
    log_snr = torch.linspace(s.log_snr(low).item(), s.log_snr(s.t_max).item(), levels, dtype=torch.float64)
    if isinstance(s, DiscreteSchedule):
        nodes = (s.time_of_log_snr(log_snr) * s.nodes).round().clamp(1, s.nodes)
        # the first nodes differ most from one another: there a label that is off by one shows
        nodes = torch.cat([torch.tensor([1.0, 2.0], dtype=torch.float64), nodes]).unique()
        log_snr = s.log_snr(nodes / s.nodes)
    return log_snr.numpy()


class Bench:
    """Fixed data and noise on which readings are measured."""

    def __init__(self, x_0: Tensor, condition: dict[str, Any], levels: np.ndarray, seed: int, batch_size: int) -> None:
        self.x_0, self.condition, self.log_snrs, self.batch_size = x_0, condition, levels, batch_size
        self.asked = 0  # rows that the network was given
        self._whole: dict[Reading, Errors] = {}
        generator = torch.Generator().manual_seed(seed)
        self.noise = [torch.randn(x_0.shape, generator=generator, dtype=x_0.dtype) for _ in levels]
        self.variances = x_0.double().flatten(1).var(0).numpy()

    def level(self, reading: Reading, k: int, errors: Errors | None = None) -> Level:
        """Level `k` in the user's units: rescaled data have another s."""
        log_snr = float(self.log_snrs[k])
        t = reading.schedule.time_of_log_snr(log_snr).item()
        s2 = math.exp(-log_snr) / reading.scale**2
        linear = float((self.variances * s2 / (self.variances + s2)).mean())
        error = math.nan if errors is None else float(errors[k].mean())
        return Level(t, log_snr, error, linear, s2, float(self.variances.mean()))

    def reaches(self, reading: Reading, k: int) -> bool:
        """Does the schedule of the reading have level `k`?"""
        s, log_snr = reading.schedule, self.log_snrs[k]
        high = s.log_snr(max(s.t_min, 1e-6)).item()
        return bool(s.log_snr(s.t_max).item() - 1e-6 <= log_snr <= high + 1e-6)

    @torch.no_grad()
    def errors(self, reading: Reading, n: int, label: int | None = None, among: Container[int] | None = None) -> Errors:
        """The errors of the first `n` samples on the levels (all, or those `among` these) that the reading reaches.

        `label` is given to all samples.
        """
        model, rows = reading.model, min(n, len(self.x_0))
        measured = {}
        for k, log_snr in enumerate(self.log_snrs):
            if not self.reaches(reading, k) or (among is not None and k not in among):
                continue
            self.asked += rows
            t = reading.schedule.time_of_log_snr(float(log_snr)).item()
            t = min(max(t, reading.schedule.t_min), reading.schedule.t_max)
            parts = []
            for i in range(0, rows, self.batch_size):
                j = min(i + self.batch_size, rows)
                x_0 = reading.scale * self.x_0[i:j].to(model.device) + reading.shift
                x_t = reading.schedule.add_noise(x_0, t, self.noise[k][i:j].to(model.device))
                mean = reading.mean(x_t.to(model.dtype), t, self._condition(reading, i, j, label))
                error = ((mean.double() - x_0.double()) / reading.scale).flatten(1).square().mean(1)
                parts.append(torch.nan_to_num(error, nan=math.inf).cpu().numpy())
            measured[k] = np.concatenate(parts)
        return measured

    def whole(self, reading: Reading) -> Errors:
        """The errors of all samples on all levels; measured once."""
        if reading not in self._whole:
            self._whole[reading] = self.errors(reading, len(self.x_0))
        return self._whole[reading]

    def _condition(self, reading: Reading, i: int, j: int, label: int | None) -> dict[str, Any]:
        device = reading.model.device
        rows = len(self.x_0)
        condition = {
            name: value[i:j].to(device) if isinstance(value, Tensor) and value.ndim and len(value) == rows else value
            for name, value in self.condition.items()
        }
        classes = reading.model.num_classes
        if label is not None:
            condition["class_labels"] = torch.full((j - i,), label, device=device)
        elif classes is not None and "class_labels" not in condition:
            condition["class_labels"] = torch.full((j - i,), classes, device=device)
        elif reading.label_shift and classes is not None:
            condition["class_labels"] = (condition["class_labels"] + reading.label_shift) % classes
        return condition

    def scores(self, reading: Reading, errors: Errors, among: list[int] | None = None) -> np.ndarray:
        """The terms of the score, one for each level."""
        return np.array([self.level(reading, k, errors).score for k in (sorted(errors) if among is None else among)])

    def explains(self, reading: Reading, errors: Errors) -> bool:
        """Is the model good when it is read like this, and not because it says nothing?

        Some parametrisations of a silent network are the best linear function already.
        """
        score = self.scores(reading, errors).mean()
        if not score <= math.log(MEAN_TOLERANCE):
            return False
        if reading.prediction is None:
            return True
        silent = self.errors(dataclasses.replace(reading, sign=0.0), len(self.x_0))
        return bool(score < self.scores(reading, silent).mean() - MARGIN)


class Gain(NamedTuple):
    """What reading the model another way wins.

    Attributes:
        mean: in the score; a level that the other reading does not reach counts as nothing won.
        most: at the level where it wins most.
        best, worst: largest and smallest number of standard errors over the levels.
    """

    mean: float
    most: float
    best: float
    worst: float

    @property
    def real(self) -> bool:
        """Is it more than chance, and enough to matter?"""
        return self.best > Z and (self.mean > MARGIN or (self.most > 2.5 * MARGIN and self.worst > -Z))

    @property
    def promising(self) -> bool:
        """Is it worth more samples?"""
        return self.best > 0.4 * Z and (self.mean > 0.5 * MARGIN or self.most > MARGIN)


def gain(bench: Bench, old: Reading, before: Errors, new: Reading, after: Errors) -> Gain:
    """What the reading `new` wins over `old`."""
    common = sorted(set(before) & set(after))
    each = bench.scores(old, before, common) - bench.scores(new, after, common)
    if len(common) < max(2, len(before) // 2) or not (each > -math.inf).all():
        return Gain(-math.inf, -math.inf, -math.inf, -math.inf)
    z = []
    for k in common:
        b = after[k] / bench.level(new, k).bound
        difference = (before[k] / bench.level(old, k).bound)[: len(b)] - b
        spread = difference.std(ddof=1) / math.sqrt(len(difference))
        z.append(difference.mean() / spread if spread > 0 else 0.0)
    return Gain(float(each.sum()) / len(before), float(each.max()), max(z), min(z))


@dataclass(frozen=True)
class Remedy:
    """A misreading that explains the model: the geometric means of error / bound before and after mending it."""

    other: Misreading
    before: float
    after: float


def _remedy(bench: Bench, other: Misreading, own: Reading, before: Errors, after: Errors) -> Remedy:
    common = sorted(set(before) & set(after))
    old, new = bench.scores(own, before, common).mean(), bench.scores(other.reading, after, common).mean()
    return Remedy(other, math.exp(min(old, 700.0)), math.exp(min(new, 700.0)))


def _screen(bench: Bench, own: Reading, before: Errors, has_labels: bool, samples: int = SCREEN) -> list[Misreading]:
    """The other readings that look better on a few samples, at the levels of `before`; best first, the simplest of equal ones."""
    found = []
    for order, other in enumerate(misreadings(own, bench.x_0, has_labels)):
        try:
            after = bench.errors(other.reading, samples, among=before)
        except Exception:  # a network that cannot be called like this was not made to be
            continue
        won = gain(bench, own, before, other.reading, after)
        if won.promising:
            found.append((-won.mean, order, other))
    return [other for _, _, other in sorted(found, key=lambda c: c[:2])]


def _best(
    bench: Bench, own: Reading, before: Errors, candidates: list[Misreading], good: bool
) -> tuple[Misreading, Errors] | None:
    """The reading that explains the model, the simplest of equally good ones; None if none does.

    Where the model is good as it is, another reading must be worse nowhere or clearly better on the whole; where it is not,
    it must explain it.
    """
    confirmed = []
    for other in candidates:
        after = bench.whole(other.reading)
        won = gain(bench, own, before, other.reading, after)
        if won.real and (won.worst > -Z or won.mean > CLEAR if good else bench.explains(other.reading, after)):
            confirmed.append((won.mean, other, after))
    if not confirmed:
        return None
    top = max(c[0] for c in confirmed)
    equal = [c for c in confirmed if c[0] >= top - 0.01]
    order = [m.remedy for m in misreadings(own, bench.x_0, True)]
    _, other, after = min(equal, key=lambda c: order.index(c[1].remedy))
    return other, after


def diagnose(bench: Bench, own: Reading, before: Errors, has_labels: bool, good: bool) -> list[Remedy]:
    """One misreading that explains the model; or else, where it is poor, the first two that do so together.

    The most promising first mistake is tried first; the search ends when it has become too long (:data:`MOST`).

    Args:
        own, before: how it is read, and its errors.
        has_labels: are class labels given?
        good: is it good as it is?
    """
    candidates, single = _screen(bench, own, before, has_labels), bench.asked
    found = _best(bench, own, before, candidates[:5], good)
    if found is not None:
        return [_remedy(bench, found[0], own, before, found[1])]
    for first in [] if good else candidates[:4]:
        if bench.asked > MOST * single:
            break
        half_way = bench.whole(first.reading)
        few = {k: half_way[k] for k in sorted(half_way)[::2]}  # every second level is enough to see what is promising
        second = _screen(bench, first.reading, few, has_labels, SCREEN // 2)[:2]
        found = _best(bench, first.reading, half_way, second, good=False)
        if found is not None:
            return [
                _remedy(bench, first, own, before, half_way),
                _remedy(bench, found[0], first.reading, half_way, found[1]),
            ]
    return []


def labels_missing(bench: Bench, own: Reading, before: Errors) -> tuple[float, float] | None:
    """(before, after) if the model is good once every sample is given the class that suits it; else None.

    The class is chosen on every second level and judged on the others, so that choosing is no advantage in itself.
    """
    classes = own.model.num_classes
    if classes is None or classes > 100:
        return None
    each = [bench.errors(own, len(bench.x_0), label) for label in range(classes)]
    chosen = np.stack([sum(e[k] / bench.level(own, k).bound for k in sorted(before)[::2]) for e in each]).argmin(0)
    judged = sorted(before)[1::2]
    after = {k: np.stack([e[k] for e in each])[chosen, np.arange(len(chosen))] for k in judged}
    old, new = bench.scores(own, before, judged).mean(), bench.scores(own, after).mean()
    if new > math.log(MEAN_TOLERANCE) or not gain(bench, own, {k: before[k] for k in judged}, own, after).real:
        return None
    return math.exp(min(old, 700.0)), math.exp(new)
