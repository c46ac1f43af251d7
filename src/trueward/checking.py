r"""Do network, parametrisation, time, data range and schedule agree? `check(denoiser, data)` measures it.

At several noise levels the error of the model, per coordinate of x_0 and in squared data units,

    error(t) = E |x_0 - mean(x_t, t)|^2 / d

is put beside what needs no network, with s = sigma / alpha and v_i the variance of coordinate i of the data:

    constant = mean_i v_i                      always answer the mean of the data
    identity = s^2                             answer x_t / alpha
    linear   = mean_i v_i s^2 / (v_i + s^2)    the best linear function of each coordinate: below both of them

A trained network that is read correctly lies below `linear` everywhere, save that at large noise a small error of a predicted
noise is a large one of x_0: the bound it is held to is linear + s^2 / 50. Whether or not it keeps it, it is then read in all
the ways of :mod:`trueward.readings` on the same data and noise; if one of them is better by more than chance, the mistake has
a name. The claim is therefore an experiment, not a guess.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from trueward.denoisers import Denoiser, Guided, NetworkDenoiser, Rescheduled
from trueward.diagnosis import MEAN_TOLERANCE, Bench, Level, diagnose, labels_missing, log_snrs
from trueward.readings import Reading

AGREES, WRONG, WEAK = "agrees", "wrong", "weak"
LEVEL_TOLERANCE = 1.25  # of error / bound at one level: what a half-trained network may exceed

_SENTENCES = {
    AGREES: "Network, parametrisation, time, data range and schedule agree.",
    WRONG: "Something does not agree.",
    WEAK: "The model is no better than a linear function, and no other reading of it is: it is barely trained, or was "
    "trained on other data.",
}


@dataclass(frozen=True)
class Mistake:
    """A likely mistake.

    Attributes:
        name: prediction, sign, time scale, off by one, reversed time, time input, missing alpha, superfluous alpha, schedule,
            sigma_data, data range, labels, labels missing, or call (the model could not be called).
        remedy: what to change.
        before, after: geometric mean over the levels of error / bound, as the model is read now and with the remedy.
    """

    name: str
    remedy: str
    before: float = math.nan
    after: float = math.nan

    def __str__(self) -> str:
        if math.isnan(self.before):
            return f"{self.name}: {self.remedy}"
        return f"{self.name}: {self.remedy} The error falls from {self.before:.3g} to {self.after:.3g} times the bound."


@dataclass(frozen=True)
class Report:
    """What :func:`check` found; printing it shows a table.

    Attributes:
        verdict: "agrees"; "wrong" (a mistake has been named); "weak" (the model is not better than a linear function and no
            other reading of it is either).
        levels: from little noise to much.
        mistakes: the likely one, or two that explain the model together.
        notes: what else is worth knowing.
    """

    verdict: str
    levels: tuple[Level, ...] = ()
    mistakes: tuple[Mistake, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """True if everything agrees."""
        return self.verdict == AGREES

    @property
    def mistake(self) -> str | None:
        """Name of the likely mistake, or None."""
        return self.mistakes[0].name if self.mistakes else None

    def to_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return {**dataclasses.asdict(self), "ok": self.ok}

    def __str__(self) -> str:
        columns = ("t", "log-SNR", "error", "linear", "identity", "constant", "ratio")
        lines = ["".join(f"{c:>11}" for c in columns)]
        for v in self.levels:
            values = (v.t, v.log_snr, v.error, v.linear, v.identity, v.constant, v.ratio)
            lines.append("".join(f"{value:11.4g}" for value in values))
        found = [_SENTENCES[self.verdict], *map(str, self.mistakes), *self.notes]
        return "\n".join([*(lines if self.levels else []), *found])


def check(
    denoiser: Denoiser,
    data: Any,
    labels: Tensor | None = None,
    *,
    n: int = 256,
    levels: int = 10,
    seed: int = 0,
    batch_size: int = 64,
    **condition: Any,
) -> Report:
    """Tells whether a network, its parametrisation, its time convention, the data range and the schedule agree.

    Costs about (n + 30 * 64) * levels evaluations of the network, at most about three times that where it is poor.

    Args:
        denoiser: the model; of a guided one the model without guidance is checked, of a latent one its latents.
        data: samples in the units of the model, (n, *shape): a tensor, an array or a :class:`~trueward.data.Dataset`. Data
            it was trained on will do.
        labels: (n,) class labels of a conditional model; taken from a dataset that has them.
        n: number of samples used.
        levels: number of noise levels, spread evenly in log-SNR (and the first two nodes of a table).
        seed: of the noise.
        batch_size: samples per call of the network.
        **condition: further conditions of the model, row by row.

    Raises:
        ValueError: data of the wrong shape, not finite, or fewer than 16 samples.
    """
    x_0, labels = _samples(data, labels, n)
    model, x_0, notes = _innermost(denoiser, x_0, batch_size)
    if model.shape is not None and tuple(x_0.shape[1:]) != model.shape:
        raise ValueError(f"data holds samples of shape {tuple(x_0.shape[1:])}, but the denoiser takes {model.shape}.")
    has_labels = labels is not None and model.num_classes is not None
    if has_labels:
        condition["class_labels"] = labels
    outside = _outside(model, x_0)
    notes += [outside] if outside else []
    if not isinstance(model, NetworkDenoiser):
        notes.append(
            f"{type(model).__name__} hides its network, so only the range of the data and the labels could be questioned."
        )
    bench = Bench(x_0, condition, log_snrs(model, levels), seed, batch_size)
    own = Reading.of(model)
    try:
        errors = bench.errors(own, n)
    except Exception as error:
        reason = f"Calling the model fails: {type(error).__name__}: {' '.join(str(error).split())[:300]}"
        kind = "labels missing" if "class_label" in str(error) and not has_labels else "call"
        return Report(WRONG, (), (Mistake(kind, reason),), tuple(notes))
    table = tuple(bench.level(own, k, errors) for k in sorted(errors))
    mean = float(np.mean([v.score for v in table]))
    good = mean <= math.log(MEAN_TOLERANCE) and all(v.ratio <= LEVEL_TOLERANCE for v in table)
    mistakes: list[Mistake] = []
    if not good and not has_labels:
        without = labels_missing(bench, own, errors)
        if without is not None:
            remedy = "The model is class-conditional and was asked without labels: give labels."
            mistakes.append(Mistake("labels missing", remedy, *without))
    if not mistakes:
        remedies = diagnose(bench, own, errors, has_labels, good)
        mistakes = [Mistake(r.other.name, r.other.remedy, r.before, r.after) for r in remedies]
    if not mistakes and not good and outside:
        mistakes = [Mistake("data range", outside)]
    return Report(WRONG if mistakes else AGREES if good else WEAK, table, tuple(mistakes), tuple(notes))


def _samples(data: Any, labels: Any, n: int) -> tuple[Tensor, Tensor | None]:
    """The first `n` samples and their labels."""
    if hasattr(data, "batch") and hasattr(data, "labels"):
        batch = data.batch(slice(0, n))
        x, labels = batch["x"], batch.get("class_labels") if labels is None else labels
    else:
        x = torch.as_tensor(data)[:n]
    if not x.is_floating_point():
        x = x.float()
    if x.ndim < 2 or x.shape[0] < 16:
        raise ValueError(f"data must hold at least 16 samples (n, *shape), got shape {tuple(x.shape)}.")
    if not bool(x.isfinite().all()):
        raise ValueError("data holds NaN or infinite values.")
    if labels is not None:
        labels = torch.as_tensor(labels)[:n]
        if labels.shape != x.shape[:1]:
            raise ValueError(f"labels must be ({x.shape[0]},), one for each sample, got {tuple(labels.shape)}.")
    return x, labels


def _innermost(denoiser: Denoiser, x_0: Tensor, batch_size: int) -> tuple[Denoiser, Tensor, list[str]]:
    """The model inside wrappers, the data in its units, and what was taken off."""
    notes = []
    while isinstance(denoiser, Guided | Rescheduled):
        if hasattr(denoiser, "encode"):
            x_0 = torch.cat([denoiser.encode(part) for part in x_0.split(batch_size)])  # type: ignore[operator]
            notes.append("Checked on the latents of the data.")
        else:
            notes.append(f"{type(denoiser).__name__} was taken off: the model inside is what was checked.")
        denoiser = denoiser.inner  # type: ignore[assignment]
    return denoiser, x_0, notes


def _outside(model: Denoiser, x_0: Tensor) -> str | None:
    """A sentence if the data leave the model's declared range."""
    if model.data_range is None:
        return None
    (low, high), least, most = model.data_range, x_0.min().item(), x_0.max().item()
    if least >= low - 1e-3 and most <= high + 1e-3:
        return None
    return f"The data lie in [{least:.4g}, {most:.4g}], outside the model's data_range [{low:g}, {high:g}]."
