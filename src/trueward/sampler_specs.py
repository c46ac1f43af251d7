"""A sampler written as text: ``name[+correction...][:option=value,...]``.

    ddim                                   a sampler with its defaults
    dpm-solver++:order=3,grid=karras       with options
    edm+dg                                 with a correction of the model
    ddim,dpm-solver++:order=3,grid=karras  a list of two: a piece ``option=value`` belongs to the sampler before it

Values are numbers, true, false, none, or text. This is the only place that reads such text; the command line, reports and
configuration files all use it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trueward.denoisers import Denoiser
    from trueward.samplers import Sampler

_CORRECTIONS: dict[str, Callable[[Denoiser], Denoiser]] = {}
_OPTION = re.compile(r"^\s*[A-Za-z_][A-Za-z_0-9]*\s*=")


def register_correction(name: str, correct: Callable[[Denoiser], Denoiser]) -> None:
    """Makes a correction known as ``+name``: `correct` turns a model into the corrected one.

    Raises:
        ValueError: if the name is taken, or is not made of letters, digits and dashes.
    """
    if name in _CORRECTIONS:
        raise ValueError(f"There is a correction {name!r} already; choose another name.")
    if not re.fullmatch(r"[A-Za-z0-9-]+", name):
        raise ValueError(f"A correction's name is made of letters, digits and dashes, got {name!r}.")
    _CORRECTIONS[name] = correct


def parse_value(text: str) -> Any:
    """A number, true/false, none, or the text itself."""
    text = text.strip()
    words: dict[str, Any] = {"true": True, "false": False, "none": None}
    if text.lower() in words:
        return words[text.lower()]
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def parse_option(text: str) -> tuple[str, Any]:
    """``key=value`` as (key, value); a dash in the key may stand for an underscore.

    Raises:
        ValueError: if there is no ``=``, no key or no value.
    """
    key, equals, value = text.partition("=")
    key = key.strip().replace("-", "_")
    if not equals or not key.isidentifier() or not value.strip():
        raise ValueError(f"An option is written key=value, e.g. order=3, but got {text!r}.")
    return key, parse_value(value)


def parse_options(texts: Iterable[str]) -> dict[str, Any]:
    """Several ``key=value`` as a dictionary; a key given twice is an error."""
    options: dict[str, Any] = {}
    for text in texts:
        key, value = parse_option(text)
        if key in options:
            raise ValueError(f"The option {key!r} is given twice.")
        options[key] = value
    return options


@dataclass(frozen=True)
class SamplerSpec:
    """What the text says.

    Attributes:
        name: name of the sampler.
        options: its options.
        corrections: corrections of the model, in the order in which they are applied.
    """

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)
    corrections: tuple[str, ...] = ()

    @classmethod
    def parse(cls, text: str, known: Iterable[str] | None = None) -> SamplerSpec:
        """Reads ``name[+correction...][:option=value,...]``.

        Args:
            text: what to read.
            known: names of samplers, which may themselves end in plus signs (default: all of trueward's).

        Raises:
            ValueError: for an unknown name (with the closest known one) or a malformed option.
        """
        if known is None:
            from trueward.samplers.registry import sampler_names

            known = sampler_names()
        from trueward.naming import check_name

        head, colon, tail = text.strip().partition(":")
        head = head.strip()
        if not head:
            raise ValueError(f"A sampler is written name or name:option=value, but got {text!r}.")
        if colon and not tail.strip():
            raise ValueError(f"{text!r} ends in ':' without an option; write e.g. {head}:order=2, or {head} alone.")
        options = parse_options(tail.split(",") if colon else ())
        known = list(known)
        fits = [name for name in known if head == name or head.startswith(name + "+")]
        if not fits:
            check_name("sampler", head, known)
        name = max(fits, key=len)
        corrections = tuple(head[len(name) :].split("+")[1:])
        if "" in corrections:
            raise ValueError(f"{head!r} names an empty correction; write e.g. {name}+dg, or {name} alone.")
        return cls(name, options, corrections)

    def __str__(self) -> str:
        options = ",".join(
            f"{k}={str(v).lower() if v is None or v is True or v is False else v}" for k, v in self.options.items()
        )
        return "+".join([self.name, *self.corrections]) + (f":{options}" if options else "")

    def with_options(self, options: Mapping[str, Any]) -> SamplerSpec:
        """The same sampler with more options; one that is set already to another value is an error."""
        for key, value in options.items():
            if key in self.options and self.options[key] != value:
                raise ValueError(f"The option {key!r} is given twice: {self.options[key]!r} and {value!r}.")
        return SamplerSpec(self.name, {**self.options, **options}, self.corrections)

    def corrected(self, denoiser: Denoiser) -> Denoiser:
        """The model with the corrections the text names, in their order, and with the covariance that the sampler reads.

        Raises:
            ValueError: for a correction that is not known, or a covariance that was not fitted.
        """
        from trueward.covariance import for_sampler
        from trueward.naming import look_up

        folder = getattr(denoiser, "folder", None)
        for name in self.corrections:
            if not _CORRECTIONS:
                raise ValueError(f"Unknown correction {name!r} in {str(self)!r}: no correction is registered.")
            denoiser = look_up("correction", name, _CORRECTIONS)(denoiser)
        return for_sampler(denoiser, self.build(), folder)

    def build(self, steps: int | None = None, nfe: int | None = None) -> Sampler:
        """The sampler, by number of steps or by network evaluations (or neither: the default number of steps)."""
        from trueward.samplers.registry import sampler

        try:
            return sampler(self.name, steps=steps, nfe=nfe, **self.options)
        except TypeError as error:  # a text where a number belongs, say
            raise ValueError(
                f"An option of the sampler {str(self)!r} has a value of the wrong kind ({error})."
            ) from None


def parse_samplers(text: str, known: Iterable[str] | None = None) -> list[SamplerSpec]:
    """A comma-separated list of samplers; a piece ``option=value`` belongs to the sampler before it.

    Raises:
        ValueError: for an empty list or item, an unknown name, or the same sampler twice.
    """
    items: list[str] = []
    for piece in text.split(","):
        if _OPTION.match(piece) and items and ":" in items[-1]:
            items[-1] += "," + piece
        elif not piece.strip():
            raise ValueError(f"The list of samplers has an empty item: {text!r}.")
        else:
            items.append(piece)
    specs = [SamplerSpec.parse(item, known) for item in items]
    seen: set[str] = set()
    for spec in specs:
        if str(spec) in seen:
            raise ValueError(f"The sampler {str(spec)!r} is listed twice.")
        seen.add(str(spec))
    return specs


def parse_counts(name: str, text: str) -> list[int]:
    """A comma-separated list of whole numbers >= 1, sorted, each once.

    Raises:
        ValueError: naming `name` and the item that is not a whole number >= 1.
    """
    counts = []
    for piece in text.split(","):
        try:
            count = int(piece)
        except ValueError:
            raise ValueError(
                f"{name} must be whole numbers separated by commas, e.g. 5,10,20, but got {piece!r} in {text!r}."
            ) from None
        if count < 1:
            raise ValueError(f"{name} must be whole numbers >= 1, but got {count}.")
        counts.append(count)
    return sorted(set(counts))
