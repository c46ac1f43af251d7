"""A sampler written as text: ``name[+correction...][:option=value,...]``.

    ddim                                   a sampler with its defaults
    dpm-solver++:order=3,grid=karras       with options
    edm+dg:weight=1                        guided by the critic that was fitted to the model
    edm+dg+diffrs:percentile=0.9           and refined by rejection
    diffrs                                 edm+diffrs
    edm+mine                               with a correction of your own, see register_correction
    ddim,dpm-solver++:order=3,grid=karras  a list of two: a piece ``option=value`` belongs to the sampler before it

An option belongs to the correction that has it, else to the sampler. Values are numbers, true, false, none, or text. This is the only place that reads such text; the command line, reports and
configuration files all use it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trueward.critics import Critic
    from trueward.denoisers import Denoiser
    from trueward.refinement import RefinedSampler
    from trueward.samplers import Sampler

GUIDANCE, REJECTION = "dg", "diffrs"
_BASE = "edm"  # what stands before a correction that is written alone: the sampler of both papers
_CORRECTIONS: dict[str, Callable[[Denoiser], Denoiser]] = {}
_OPTION = re.compile(r"^\s*[A-Za-z_][A-Za-z_0-9]*\s*=")


def register_correction(name: str, correct: Callable[[Denoiser], Denoiser]) -> None:
    """Makes a correction known as ``+name``: `correct` turns a model into the corrected one.

    Raises:
        ValueError: if the name is taken, or is not made of letters, digits and dashes.
    """
    if name in _CORRECTIONS or name in (GUIDANCE, REJECTION):
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
        if head.partition("+")[0] in (GUIDANCE, REJECTION) and _BASE in known:
            head = f"{_BASE}+{head}"
        fits = [name for name in known if head == name or head.startswith(name + "+")]
        if not fits:
            check_name("sampler", head, known)
        name = max(fits, key=len)
        corrections = tuple(head[len(name) :].split("+")[1:])
        if "" in corrections:
            raise ValueError(f"{head!r} names an empty correction; write e.g. {name}+dg, or {name} alone.")
        if len(set(corrections)) < len(corrections):
            raise ValueError(f"{head!r} names a correction twice.")
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

    @property
    def refined(self) -> bool:
        """Does it need a critic (``+dg``, ``+diffrs``)?"""
        return GUIDANCE in self.corrections or REJECTION in self.corrections

    def divided(self) -> tuple[dict[str, Any], dict[str, Any] | None, dict[str, Any] | None]:
        """The options of the sampler, of guidance and of rejection; None for a correction that is not named.

        Raises:
            ValueError: for an option that none of them has, with the closest one.
        """
        if not self.refined:
            return dict(self.options), None, None
        from trueward.naming import check_name
        from trueward.refinement.refined_sampler import guidance_options, rejection_options
        from trueward.samplers.registry import sampler

        of_dg = guidance_options() if GUIDANCE in self.corrections else []
        of_diffrs = rejection_options() if REJECTION in self.corrections else []
        own = [f.name for f in fields(sampler(self.name))]
        parts: tuple[dict[str, Any], ...] = ({}, {}, {})
        for key, value in self.options.items():
            check_name(f"option of {'+'.join([self.name, *self.corrections])}", key, [*own, *of_dg, *of_diffrs])
            parts[1 if key in of_dg else 2 if key in of_diffrs else 0][key] = value
        return parts[0], parts[1] if of_dg else None, parts[2] if of_diffrs else None

    def corrected(self, denoiser: Denoiser) -> Denoiser:
        """The model with the registered corrections the text names, in their order, and the covariance its sampler reads.

        Guidance and rejection by a critic are not among them: they belong to the sampler, see :meth:`assemble`.

        Raises:
            ValueError: for a correction that is not known, or a covariance that was not fitted.
        """
        from trueward.covariance import for_sampler
        from trueward.naming import check_name

        folder = getattr(denoiser, "folder", None)
        for name in self.corrections:
            check_name("correction", name, [GUIDANCE, REJECTION, *_CORRECTIONS])
            denoiser = _CORRECTIONS[name](denoiser) if name in _CORRECTIONS else denoiser
        return denoiser if self.refined else for_sampler(denoiser, self.build(), folder)

    def build(self, steps: int | None = None, nfe: int | None = None) -> Sampler:
        """The sampler alone, by number of steps or by network evaluations (or neither: the default number of steps)."""
        from trueward.samplers.registry import sampler

        try:
            return sampler(self.name, steps=steps, nfe=nfe, **self.divided()[0])
        except TypeError as error:  # a text where a number belongs, say
            raise ValueError(
                f"An option of the sampler {str(self)!r} has a value of the wrong kind ({error})."
            ) from None

    def described(self, sampler: Sampler, guidance: float | None = None) -> str:
        """The base sampler in words, e.g. ``edm (18 steps)``: what a critic was trained for."""
        base = SamplerSpec(self.name, {k: v for k, v in self.divided()[0].items() if k != "steps"})
        scale = "" if guidance in (None, 1.0) else f", guidance {guidance:g}"
        return f"{base} ({getattr(sampler, 'steps', '?')} steps{scale})"

    def assemble(
        self,
        denoiser: Denoiser,
        steps: int | None = None,
        nfe: int | None = None,
        *,
        critic: Critic | str | Path | None = None,
        labels: tuple[int, ...] | None = None,
        guidance: float | None = None,
    ) -> tuple[Denoiser, Sampler | RefinedSampler]:
        """Everything the text says: the model and the sampler, ready for a :class:`~trueward.drawing.Drawing`.

        Args:
            denoiser: the model as it was loaded.
            steps, nfe: see :meth:`build`.
            critic: a critic, or the folder where it is stored; default: beside the model.
            labels, guidance: what will be drawn; rejection measures its constants on these.

        Raises:
            ValueError: what :meth:`corrected` and :meth:`build` raise; no critic, or one that does not fit the model.
        """
        model, base = self.corrected(denoiser), self.build(steps, nfe)
        if not self.refined:
            return model, base
        from trueward.critics import critic_folder, warn_of_another_sampler, with_critic
        from trueward.refinement import RefinedSampler

        folder = getattr(denoiser, "folder", None) if critic is None else critic
        if critic is None or isinstance(critic, str | Path):
            critic = with_critic(denoiser, critic)
        warn_of_another_sampler(critic, self.described(base, guidance))
        place = critic_folder(folder) if isinstance(folder, str | Path) else getattr(critic, "folder", None)
        _, of_dg, of_diffrs = self.divided()
        try:
            refined = RefinedSampler(base, critic, of_dg, of_diffrs, labels, place)
            refined.plan(denoiser.schedule)
            refined.check(denoiser)
        except TypeError as error:
            raise ValueError(
                f"An option of the sampler {str(self)!r} has a value of the wrong kind ({error})."
            ) from None
        return model, refined


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
