r"""The ways a network can be misread, as data: one `Reading` for each, so that a check can try them all.

A reading says how x_t is made and what the network's answer means. With data x_0 in the units of the network,

    x_t = alpha x_0 + sigma eps,   answer = sign network(frame x_t, label(t)),   mean = prediction(answer)

Changing one entry of a reading is one mistake that a user may have made: :func:`misreadings` lists them, the simplest first.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from trueward.denoisers import Denoiser, EDMDenoiser, NetworkDenoiser, denoiser, prediction_names
from trueward.schedules import EDM, VE, DiscreteSchedule, FlowMatching, Schedule, VarianceExploding, VPCosine, VPLinear

Label = Callable[[Tensor], Tensor]

FRAMES = {
    "as it is": lambda alpha, sigma: 1.0,
    "without alpha": lambda alpha, sigma: 1.0 / alpha,
    "variance preserved": lambda alpha, sigma: (alpha**2 + sigma**2) ** -0.5,
}


@dataclass(frozen=True)
class Reading:
    """One way to read a model.

    Attributes:
        model: the denoiser as the user made it.
        schedule, prediction, sigma_data: of the network; `prediction` is None where only the model as a whole is known.
        label: the network's time input; None is the schedule's own.
        sign, frame: of the answer and of the input.
        scale, shift: from the user's data to the network's: x_0 = scale data + shift.
        label_shift: added to class labels.
    """

    model: Denoiser
    schedule: Schedule
    prediction: str | None
    label: Label | None = None
    sigma_data: float = 0.5
    sign: float = 1.0
    frame: str = "as it is"
    scale: float = 1.0
    shift: float = 0.0
    label_shift: int = 0

    @classmethod
    def of(cls, model: Denoiser) -> Reading:
        """The model as it is."""
        if not (isinstance(model, NetworkDenoiser) and type(model).prediction in prediction_names()):
            return cls(model, model.schedule, None)
        sigma_data = model.sigma_data if isinstance(model, EDMDenoiser) else 0.5
        return cls(model, model.schedule, model.prediction, model._label, sigma_data)

    @property
    def is_own(self) -> bool:
        """Is this how the user reads the model (up to the data and their labels)?"""
        own = Reading.of(self.model)
        return dataclasses.replace(self, scale=1.0, shift=0.0, label_shift=0) == own

    def time_label(self, t: Tensor) -> Tensor:
        """The network's time input."""
        if self.label is not None:
            return self.label(t)
        return -self.schedule.log_snr(t) / 8.0 if self.prediction == "edm" else self.schedule.label(t)

    def mean(self, x_t: Tensor, t: float, condition: dict[str, Any]) -> Tensor:
        """The predicted x_0, in the units of the network."""
        if self.is_own:
            return self.model(x_t, t, **condition).mean
        assert isinstance(self.model, NetworkDenoiser)
        assert self.prediction is not None
        options: dict[str, Any] = {"sigma_data": self.sigma_data} if self.prediction == "edm" else {}
        read = denoiser(self.model.network, self.schedule, self.prediction, label=self.label, **options)
        factor, call = FRAMES[self.frame](*self.schedule.at(t)), read.call_network
        read.call_network = lambda x, t, condition: self.sign * call(x * factor, t, condition)  # type: ignore[method-assign]
        return read(x_t, t, **condition).mean


@dataclass(frozen=True)
class Misreading:
    """A mistake and its remedy.

    Attributes:
        name: of the kind of mistake.
        remedy: what to change, a sentence.
        reading: the model read the other way.
    """

    name: str
    remedy: str
    reading: Reading


def misreadings(own: Reading, data: Tensor, has_labels: bool) -> Iterator[Misreading]:
    """Every other way to read a model, the simplest first.

    Args:
        own: how it is read now.
        data: (n, *shape), some of the user's data.
        has_labels: are class labels given?
    """

    def changed(name: str, remedy: str, **changes: Any) -> Misreading:
        return Misreading(name, remedy, dataclasses.replace(own, **changes))

    if own.prediction is not None:
        for prediction in prediction_names():
            if prediction != own.prediction:
                label = own.time_label if "edm" in (own.prediction, prediction) and own.label is None else own.label
                yield changed("prediction", f"Use prediction={prediction!r}.", prediction=prediction, label=label)
                if prediction == "edm":
                    yield changed(
                        "prediction", "Use prediction='edm' with its own time input.", prediction="edm", label=None
                    )
        yield changed("sign", "The network answers with the opposite sign: negate its output.", sign=-own.sign)
        yield from _times(own)
        yield from _frames(own)
        yield from _schedules(own)
        if own.prediction == "edm":
            for sd in (1.0, 0.5, float(data.std())):
                yield changed("sigma_data", f"Use sigma_data={sd:.4g}.", sigma_data=sd)
    yield from _ranges(own, data)
    if has_labels:
        for shift in (-1, 1):
            yield changed("labels", f"The class labels are shifted: add {shift}.", label_shift=shift)


def _times(own: Reading) -> Iterator[Misreading]:
    """Other inputs for the same times."""
    s = own.schedule
    span = abs((own.time_label(torch.tensor(s.t_max)) - own.time_label(torch.tensor(s.t_min))).item())
    nodes = len(s.betas) if isinstance(s, DiscreteSchedule) else 1000

    def changed(name: str, remedy: str, label: Label) -> Misreading:
        return Misreading(name, remedy, dataclasses.replace(own, label=label))

    for factor in {1000.0, float(nodes)} if span < 20.0 else {1e-3, 1.0 / nodes}:
        yield changed("time scale", f"Multiply the network's time input by {factor:g}.", _affine(own, factor, 0.0))
    one = 1.0 if span > 20.0 else 1.0 / nodes
    for shift in (one, -one):
        yield changed("off by one", f"Add {shift:g} to the network's time input.", _affine(own, 1.0, shift))
    yield changed(
        "reversed time",
        "The network's time runs from noise to data: give it the mirrored time.",
        lambda t: own.time_label(s.t_max + s.t_min - t),
    )
    noise = "Give the network {} as its time input."
    yield changed("time input", noise.format("sigma / alpha"), lambda t: torch.exp(-0.5 * s.log_snr(t)))
    yield changed("time input", noise.format("log(sigma / alpha) / 4"), lambda t: -s.log_snr(t) / 8.0)
    yield changed("time input", noise.format("log(alpha^2 / sigma^2)"), s.log_snr)
    yield changed("time input", noise.format("the time itself"), lambda t: t)


def _affine(own: Reading, factor: float, shift: float) -> Label:
    return lambda t: factor * own.time_label(t) + shift


def _frames(own: Reading) -> Iterator[Misreading]:
    """The same noise levels with data that keep their scale, or that shrink."""
    if isinstance(own.schedule, VarianceExploding):
        yield Misreading(
            "missing alpha",
            "The network expects x_t of constant variance, divided by sqrt(1 + sigma^2).",
            dataclasses.replace(own, frame="variance preserved"),
        )
    else:
        yield Misreading(
            "superfluous alpha",
            "The network expects x_0 + (sigma/alpha) eps: data that keep their scale.",
            dataclasses.replace(own, frame="without alpha"),
        )


def _schedules(own: Reading) -> Iterator[Misreading]:
    """Other forward processes."""
    n = len(own.schedule.betas) if isinstance(own.schedule, DiscreteSchedule) else 1000
    k = 1000.0 / n
    candidates: dict[str, tuple[Schedule, Label | None]] = {
        "DiscreteSchedule.linear()": (DiscreteSchedule.linear(n, 1e-4 * k, min(0.02 * k, 0.9)), None),
        "DiscreteSchedule.cosine()": (DiscreteSchedule.cosine(n), None),
        "DiscreteSchedule.scaled_linear()": (DiscreteSchedule.scaled_linear(n, 8.5e-4 * k, min(0.012 * k, 0.9)), None),
        "VPLinear()": (VPLinear(), None),
        "VPCosine()": (VPCosine(), None),
        "FlowMatching()": (FlowMatching(), None),
        "FlowMatching(label_scale=1000)": (FlowMatching(label_scale=1000.0), None),
        "EDM()": (EDM(), None),
        "EDM() with sigma as its time input": (EDM(), lambda t: t),
        "VE()": (VE(), None),
        "VE() with sigma as its time input": (VE(), VE().sigma),
    }
    exploding = isinstance(own.schedule, VarianceExploding)
    for text, (schedule, label) in candidates.items():
        if schedule == own.schedule:
            continue
        name = "schedule"
        if isinstance(schedule, VarianceExploding) != exploding:
            name = "missing alpha" if exploding else "superfluous alpha"
        yield Misreading(name, f"Use the schedule {text}.", dataclasses.replace(own, schedule=schedule, label=label))
        both_continuous = not isinstance(schedule, DiscreteSchedule) and not isinstance(own.schedule, DiscreteSchedule)
        if own.label is not None and both_continuous:
            yield Misreading(
                name,
                f"Use the schedule {text}, with the same function of time as its label.",
                dataclasses.replace(own, schedule=schedule),
            )


def _ranges(own: Reading, data: Tensor) -> Iterator[Misreading]:
    """Other units of the data."""
    low, high = float(data.min()), float(data.max())
    ranges = [(-1.0, 1.0), (0.0, 1.0), (0.0, 255.0)]
    mine = min(ranges, key=lambda r: abs(r[0] - low) + abs(r[1] - high))
    for theirs in ranges:
        if theirs != mine:
            scale = (theirs[1] - theirs[0]) / (mine[1] - mine[0])
            yield Misreading(
                "data range",
                f"The network knows data in [{theirs[0]:g}, {theirs[1]:g}], not in [{mine[0]:g}, {mine[1]:g}]: rescale the data.",
                dataclasses.replace(own, scale=scale, shift=theirs[0] - scale * mine[0]),
            )
    mean, std = float(data.mean()), float(data.std())
    if std > 0:
        yield Misreading(
            "data range",
            f"The network knows standardised data: subtract {mean:.4g} and divide by {std:.4g}.",
            dataclasses.replace(own, scale=1.0 / std, shift=-mean / std),
        )
