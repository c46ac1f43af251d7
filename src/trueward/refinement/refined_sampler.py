r"""A sampler with a critic: any sampler of the library, guided by the critic's gradient, refined by rejection, or both.

It stands where a sampler stands (``sample(denoiser, n=..., seed=...)``), so drawings, folders of shards, comparisons and the
command line take it as it is. The corrections are put on the model that is handed in, in this order: classifier-free
guidance (the caller's), Discriminator Guidance, the covariance the sampler reads; rejection goes around the sampler.

The constants of rejection are measured once for a critic, model, sampler and classes, with samples of a seed that nobody
draws, and kept as raw log ratios beside the critic. Another percentile needs no new run.
"""

from __future__ import annotations

import contextlib
import hashlib
import inspect
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from trueward.covariance import for_sampler
from trueward.critics import Critic, critic_fingerprint, tallied
from trueward.denoisers import ClassifierFreeGuidance, Denoiser
from trueward.fingerprints import measured_of, model_fingerprint, weights_fingerprint
from trueward.naming import check_name
from trueward.refinement.calibration import Calibration, calibrate
from trueward.refinement.chain import SamplerChain
from trueward.refinement.cost import Cost
from trueward.refinement.discriminator_guidance import DiscriminatorGuidance
from trueward.refinement.refined import Refined, Tested
from trueward.refinement.rejection import DiffRS, asked_for
from trueward.samplers.plan import Plan
from trueward.samplers.run import Samples, check_condition
from trueward.samplers.sampler import Sampler
from trueward.schedules import Schedule

WARM_UP_SEED = 0x7A11_5EED_0000_0001  # no seed that anybody types


class Drawn(NamedTuple):
    """Samples (n, *shape), what they cost, and (n,) network evaluations on the path of each."""

    x: Tensor
    cost: Cost
    nfe_kept: Tensor


_OWN = {"percentile": 0.75, "warm_up": 1000}


def _resolved(cls: type, given: Mapping[str, Any]) -> dict[str, Any]:
    """`given` with the defaults of `cls` for what it leaves open."""
    parameters = inspect.signature(cls).parameters
    return {n: p.default for n, p in parameters.items() if p.default is not p.empty} | dict(given)


def guidance_options() -> list[str]:
    """The options of ``+dg``: those of :class:`DiscriminatorGuidance`, its noise range as `low` and `high`."""
    known = [n for n in inspect.signature(DiscriminatorGuidance).parameters if n not in ("inner", "critic")]
    return [n for n in known if n != "noise_range"] + ["low", "high"]


def rejection_options() -> list[str]:
    """The options of ``+diffrs``: those of :class:`DiffRS`, the percentile of its constants and the warm-up's size."""
    return [f.name for f in fields(DiffRS) if f.name not in ("chain", "constants")] + [*_OWN]


@dataclass(frozen=True, eq=False)
class RefinedSampler:
    """A sampler corrected by a critic.

    Args:
        inner: the base sampler.
        critic: log ratio of the data to the base sampler's samples.
        guidance: options of Discriminator Guidance (:func:`guidance_options`), or None to leave it out.
        rejection: options of rejection (:func:`rejection_options`), or None to leave it out.
        labels: the classes that will be drawn, in turn; the constants are measured on these. Default: on all classes if
            ``class_labels`` are given, on samples of no class if not.
        folder: where calibrations are kept; None: in memory, for as long as this object lives.

    Raises:
        ValueError: an option that neither knows, no correction at all, or rejection of a sampler that cannot be stepped row
            by row.
    """

    inner: Sampler
    critic: Critic
    guidance: Mapping[str, Any] | None = None
    rejection: Mapping[str, Any] | None = None
    labels: tuple[int, ...] | None = None
    folder: Path | None = None
    _known: dict[str, Calibration] = field(default_factory=dict, repr=False)

    row_wise = False

    def __post_init__(self) -> None:
        if self.guidance is None and self.rejection is None:
            raise ValueError("A refined sampler needs guidance, rejection or both.")
        for what, given, known in (
            ("dg", self.guidance, guidance_options()),
            ("diffrs", self.rejection, rejection_options()),
        ):
            for name in given or ():
                check_name(f"option of {what}", name, known)
        if self.rejection is not None:
            if not self.inner.row_wise:
                raise ValueError(
                    f"{self.inner.name} cannot be stepped row by row, which rejection needs; use a single-step sampler "
                    "such as edm, ddim, ddpm or dpm-solver++2s."
                )
            percentile: Any = self.rejection.get("percentile", _OWN["percentile"])
            Calibration(torch.zeros(2, 1, dtype=torch.float64)).constants(percentile)
            warm_up = self.rejection.get("warm_up", _OWN["warm_up"])
            if not isinstance(warm_up, int) or isinstance(warm_up, bool) or warm_up < 2:
                raise ValueError(f"warm_up must be at least 2 samples, a whole number, got {warm_up!r}.")

    # --- what a sampler has -------------------------------------------------------------------------------------------

    @property
    def name(self) -> str:
        """Its name, e.g. edm+dg+diffrs."""
        parts = [self.inner.name, *(["dg"] if self.guidance is not None else [])]
        return "+".join(parts + (["diffrs"] if self.rejection is not None else []))

    @property
    def steps(self) -> int:
        """Steps of the base sampler."""
        return self.inner.steps

    @property
    def citation(self) -> tuple[str, ...]:
        """Of the sampler and the corrections."""
        keys = list(self.inner.citation)
        keys += list(DiscriminatorGuidance.citation) if self.guidance is not None else []
        return tuple(dict.fromkeys(keys + (list(DiffRS.citation) if self.rejection is not None else [])))

    def plan(self, schedule: Schedule) -> Plan:
        """The base sampler's plan."""
        return self.inner.plan(schedule)

    def nfe(self, schedule: Schedule) -> int | None:
        """Network evaluations of a run; None with rejection, where only the run can tell."""
        return None if self.rejection is not None else self.inner.nfe(schedule)

    def __repr__(self) -> str:
        """What the samples depend on: two with the same text draw the same samples of a model."""
        rejection = None if self.rejection is None else _resolved(DiffRS, {**_OWN, **self.rejection})
        if rejection is not None and rejection["test_levels"] is None:
            del rejection["test_levels"]  # said where it is used: folders that were begun before it was an option go on
        said = {
            "critic": critic_fingerprint(self.critic),
            "guidance": None if self.guidance is None else _resolved(DiscriminatorGuidance, self.guidance),
            "rejection": rejection,
        }
        return f"RefinedSampler({self.inner!r}, {json.dumps(said, sort_keys=True, default=repr)})"

    # --- drawing ------------------------------------------------------------------------------------------------------

    def model(self, denoiser: Denoiser) -> Denoiser:
        """The model as it is sampled: with guidance, and with the covariance that the sampler reads."""
        folder = getattr(denoiser, "folder", None)
        inner = denoiser
        while folder is None and isinstance(getattr(inner, "inner", None), Denoiser):
            inner = inner.inner  # type: ignore[assignment]
            folder = getattr(inner, "folder", None)
        if self.guidance is not None:
            options = dict(self.guidance)
            low, high = options.pop("low", None), options.pop("high", None)
            if low is not None or high is not None:
                default = inspect.signature(DiscriminatorGuidance).parameters["noise_range"].default
                options["noise_range"] = (default[0] if low is None else low, default[1] if high is None else high)
            denoiser = DiscriminatorGuidance(denoiser, self.critic, **options)
        return for_sampler(denoiser, self.inner, folder)

    def chain(self, denoiser: Denoiser) -> SamplerChain:
        """The chain that rejection walks, on the model as it is sampled."""
        return SamplerChain(self.inner, self.model(denoiser), self.critic)

    def key(self, denoiser: Denoiser) -> str:
        """What a calibration belongs to: model, covariance, critic, sampler, guidance, classes and warm-up."""
        scale, inner = None, denoiser
        while isinstance(getattr(inner, "inner", None), Denoiser):
            scale = inner.scale if isinstance(inner, ClassifierFreeGuidance) else scale
            inner = inner.inner  # type: ignore[assignment]
        said = [
            model_fingerprint(denoiser), scale, critic_fingerprint(self.critic), repr(self.inner), self.guidance,
            self.labels, self._warm_up, WARM_UP_SEED,
        ]  # fmt: skip
        measured = measured_of(self.model(denoiser))
        if measured:  # a covariance that was fitted again gives other samples
            said.append(weights_fingerprint("covariance", measured))
        return hashlib.sha256(json.dumps(said, sort_keys=True, default=repr).encode()).hexdigest()[:16]

    @property
    def _warm_up(self) -> int:
        return int((self.rejection or {}).get("warm_up", _OWN["warm_up"]))

    def calibration(self, denoiser: Denoiser, *, batch_size: int = 64, progress: bool = False) -> Calibration:
        """The log ratios behind the constants, measured if they are not known yet.

        Processes that share the folder may all measure; the first to finish writes, and everyone reads what it wrote.
        """
        key = self.key(denoiser)
        if key in self._known:
            return self._known[key]
        path = None if self.folder is None else Path(self.folder) / f"rejection-{key}.safetensors"
        if path is None or not path.is_file():
            count = None if self.labels is None else torch.arange(self._warm_up) % len(self.labels)
            given = {} if count is None else {"class_labels": torch.tensor(self.labels)[count]}
            condition = check_condition(denoiser, given, self._warm_up, denoiser.device)
            found = calibrate(
                self.chain(denoiser), self._warm_up, seed=WARM_UP_SEED, batch_size=batch_size, condition=condition,
                progress=progress,
            )  # fmt: skip
            found = Calibration(found.log_ratios, key)
            if path is not None:
                with contextlib.suppress(OSError):  # a folder that cannot be written to: the numbers stay in memory
                    _publish(found, path)
        if path is not None and path.is_file():
            found = Calibration.load(path)
            if found.fingerprint != key:
                raise ValueError(f"{path} belongs to another chain: delete it to measure again.")
        self._known[key] = found
        return found

    def rule(self, denoiser: Denoiser, *, batch_size: int = 64, progress: bool = False) -> DiffRS:
        """Rejection on this model, with its constants."""
        options = dict(self.rejection or {})
        percentile = options.pop("percentile", _OWN["percentile"])
        options.pop("warm_up", None)
        found = self.calibration(denoiser, batch_size=batch_size, progress=progress)
        rule = DiffRS(self.chain(denoiser), found.constants(percentile), **options)
        return replace(rule, constants=found.constants(percentile, parents=rule.parents))

    def check(self, denoiser: Denoiser) -> None:
        """Raises what drawing would raise about options, before anything is measured."""
        if self.rejection is None:
            self.model(denoiser)
            return
        chain = self.chain(denoiser)
        zero = Calibration(torch.zeros(2, chain.steps + 1, dtype=torch.float64)).constants(0.5)
        options = {k: v for k, v in self.rejection.items() if k not in ("percentile", "warm_up")}
        DiffRS(chain, zero, **options)

    @torch.no_grad()
    def draw(
        self,
        denoiser: Denoiser,
        indices: Tensor,
        seed: int = 0,
        *,
        batch_size: int = 64,
        advance: Callable[[int], None] | None = None,
        **condition: Any,
    ) -> Drawn:
        """The samples `indices` of a seed, and what they cost.

        Args:
            batch_size: with rejection, slots that are kept filled over all the indices; else samples in one call.
            advance: called with the number of samples finished since the last call.
            **condition: one entry per sample, e.g. ``class_labels``.
        """
        if self.rejection is not None:
            return self._rejected(denoiser, indices, seed, batch_size, advance, None, condition)[0]
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}.")
        model, parts, cost = self.model(denoiser), [], Cost()
        for rows in torch.arange(len(indices)).split(batch_size):
            own: dict[str, Any] = {
                k: v[rows.to(v.device)] if isinstance(v, Tensor) and v.ndim else v for k, v in condition.items()
            }
            with tallied() as tally:
                samples = self.inner.sample(model, indices=indices[rows], seed=seed, **own)
            parts.append(samples.x)
            spent = samples.nfe * len(rows)
            cost += Cost(len(rows), spent, spent, tally.rows, tally.gradients)
            if advance is not None:
                advance(len(rows))
        x = torch.cat(parts)
        return Drawn(x, cost, torch.full((len(x),), cost.nfe // max(1, cost.samples), dtype=torch.int64))

    def _rejected(
        self,
        denoiser: Denoiser,
        indices: Tensor,
        seed: int,
        batch_size: int,
        advance: Callable[[int], None] | None,
        observe: Callable[[Tested], None] | None,
        condition: dict[str, Any],
    ) -> tuple[Drawn, Refined]:
        if self.labels is None and condition.get("class_labels") is not None and denoiser.num_classes is not None:
            own = replace(self, labels=tuple(range(denoiser.num_classes)))  # shares what was measured
            return own._rejected(denoiser, indices, seed, batch_size, advance, observe, condition)
        rule = self.rule(denoiser, batch_size=batch_size)
        condition = check_condition(denoiser, condition, len(indices), denoiser.device)
        reported = 0

        def finished(done: int, n: int) -> None:
            nonlocal reported
            if advance is not None:
                advance(done - reported)
            reported = done

        with tallied() as tally:
            found = rule.sample(
                indices=indices,
                seed=seed,
                batch_size=batch_size,
                condition=condition,
                callback=finished,
                observe=observe,
            )
        tables = (found.tested.tolist(), found.accepted.tolist(), found.moves.tolist())
        cost = Cost(
            len(found.x), found.nfe_total, int(found.nfe.sum()), tally.rows, tally.gradients, found.restarts, *tables
        )
        return Drawn(found.x, cost, found.nfe), found

    def sample(
        self,
        denoiser: Denoiser,
        *,
        n: int | None = None,
        indices: Sequence[int] | Tensor | None = None,
        seed: int = 0,
        batch_size: int = 64,
        observe: Callable[[Tested], None] | None = None,
        **condition: Any,
    ) -> Refined | Samples:
        """Draws samples, as a sampler does; with rejection the answer is a :class:`Refined`.

        Args:
            denoiser: the model.
            n, indices: how many, or which ones.
            seed: identity of the samples, together with their index.
            batch_size: see :meth:`draw`.
            observe: see :meth:`DiffRS.sample`.
            **condition: one number for ``class_labels`` holds for all samples.
        """
        indices = asked_for(n, indices)
        labels = condition.get("class_labels")
        if labels is not None:
            labels = torch.as_tensor(labels)
            condition["class_labels"] = labels if labels.ndim else labels.expand(len(indices))
        if self.rejection is not None:
            return self._rejected(denoiser, indices, seed, batch_size, None, observe, condition)[1]
        drawn = self.draw(denoiser, indices, seed, batch_size=batch_size, **condition)
        return Samples(drawn.x, drawn.cost.nfe // len(indices))


def _publish(calibration: Calibration, path: Path) -> None:
    """Writes a calibration unless another process was faster."""
    path.parent.mkdir(parents=True, exist_ok=True)
    own = path.with_name(f"{path.name}.{os.getpid()}.part")
    calibration.save(own)
    try:
        if not path.exists():
            os.replace(own, path)
    finally:
        own.unlink(missing_ok=True)
