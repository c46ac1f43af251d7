r"""Diffusion Rejection Sampling (DiffRS; Na et al. 2024): keep a step only if the critic finds the result real enough.

With l the critic's log ratio, a step from level i-1 (x', accepted with l') to level i (x) is put to the

    transition test   log u <= l(x) - l' - log M_i.

A rejected x is noised forward to a higher level, where it has no parent, and put to the

    marginal test     log u <= l(x) - log M'_i,

again and again until it passes or arrives at the prior, where it is replaced by fresh draws until one passes. From where it
stands it goes down again. Only steps down cost network evaluations; climbing costs the critic's alone.

Samples that stand at different levels share one batch: a step is one network call for all of them, a finished sample hands
its slot to the next one, so the batch stays full until the last ones drain. Every sample has its own random streams, so it
does not depend on the batch size or on its neighbours.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any, ClassVar

import torch
from torch import Tensor

from trueward.naming import check_name
from trueward.refinement.calibration import Constants
from trueward.refinement.chain import Chain
from trueward.refinement.refined import Refined, Tested
from trueward.refinement.slots import Slots

__all__ = ["CostlyRejection", "DiffRS", "Refined", "Tested"]

COSTLY = 50  # times the plain sampler, from where on a caller is told


class CostlyRejection(UserWarning):
    """Samples cost many times what they cost without rejection, and may never be finished."""


@dataclass(frozen=True)
class DiffRS:
    """Diffusion rejection sampling on a chain.

    Args:
        chain: sampler, model and critic.
        constants: log M and log M', see :meth:`~trueward.refinement.calibration.Calibration.constants`.
        on_reject: forward (noise the rejected point, as in the paper), or resample (the textbook: propose again from the
            same parent; exact for an exact critic and valid constants, and only for steps that draw noise).
        max_nfe: restart a sample that could not finish within this many network evaluations.
        backsteps: levels to climb at a rejection.
        min_level: with m > 0, no tests at levels 0 ... m (the prior's included); 0 tests every level and the prior.
        max_level: no tests below this level; default the last one (in resample mode, the last that noise leads to).
        test_levels: test at these levels only (and at the prior); default: at every one. The parent of a test is then the
            level tested before, which the constants have to be measured for, see :attr:`parents`; a rejected sample climbs on
            to a level that is tested. Saves the critic where it has nothing to say.
        prior_rounds: give up if a sample's prior draws are rejected so often in a row.
    """

    chain: Chain
    constants: Constants
    on_reject: str = "forward"
    max_nfe: int | None = None
    backsteps: int = 1
    min_level: int = 0
    max_level: int | None = None
    test_levels: tuple[int, ...] | str | None = None
    prior_rounds: int = 1000

    citation: ClassVar[tuple[str, ...]] = ("na2024diffusion",)

    def __post_init__(self) -> None:
        n = self.chain.steps
        check_name("on_reject", self.on_reject, ["forward", "resample"])
        if len(self.constants.log_m_marginal) != n + 1:
            raise ValueError(
                f"The constants are for {len(self.constants.log_m_marginal) - 1} steps, the sampler makes {n}."
            )
        base = sum(self.chain.cost(i) for i in range(n))
        for name in ("max_nfe", "backsteps", "min_level", "max_level", "prior_rounds"):
            value = getattr(self, name)
            if not (value is None and name.startswith("max")):
                _whole(name, value)
        if self.max_nfe is not None and self.max_nfe < base:
            raise ValueError(
                f"max_nfe={self.max_nfe} is less than the {base} evaluations of the base sampler: nothing could finish."
            )
        if self.backsteps < 1:
            raise ValueError(f"backsteps must be at least 1, got {self.backsteps}.")
        if self.prior_rounds < 1:
            raise ValueError(f"prior_rounds must be at least 1, got {self.prior_rounds}.")
        if not 0 <= self.min_level < n:
            raise ValueError(f"min_level must lie in 0 ... {n - 1}, got {self.min_level}.")
        if self.max_level is not None and not self.min_level < self.max_level <= n:
            raise ValueError(f"max_level must lie in {self.min_level + 1} ... {n}, got {self.max_level}.")
        self._check_test_levels()
        if self.on_reject == "resample":
            still = [i for i in range(n) if not self.chain.random(i)]
            last = self.last_level
            if last <= self.min_level or any(self.min_level <= i < last for i in still):
                raise ValueError(
                    "on_reject='resample' needs steps that draw noise: a deterministic step proposes the same point for ever; use 'forward'."
                )

    def _check_test_levels(self) -> None:
        if self.test_levels is None:
            return
        given: Any = self.test_levels
        if isinstance(given, str):  # from a command line, where commas separate options
            given = [int(part) if part.strip().isdecimal() else part for part in re.split("[/,]", given)]
        levels = tuple(given) if isinstance(given, list | tuple) else (given,)
        for level in levels:
            _whole("a level of test_levels", level)
        if not levels or not all(self.min_level < level <= self.last_level for level in levels):
            raise ValueError(
                f"test_levels must be levels in {self.min_level + 1} ... {self.last_level}, at least one, got {list(levels)}."
            )
        if self.on_reject == "resample":
            raise ValueError(
                "test_levels belongs to on_reject='forward': resampling proposes again from the level before, so it tests "
                "every one."
            )
        object.__setattr__(self, "test_levels", tuple(sorted(set(levels))))

    @property
    def tested(self) -> Tensor:
        """(levels,) bool: where a sample is tested after a step."""
        level = torch.arange(self.chain.steps + 1)
        every = (level > self.min_level) & (level <= self.last_level)
        chosen: Any = self.test_levels  # numbers since __post_init__
        return every if chosen is None else every & torch.isin(level, torch.tensor(chosen))

    @property
    def parents(self) -> Tensor:
        """(levels,) int64: the level that a test at each level is relative to, for :meth:`Calibration.constants`."""
        return parents_of(self.tested, self.min_level)

    @property
    def last_level(self) -> int:
        """The last level that is tested."""
        n = self.chain.steps
        if self.max_level is not None:
            return self.max_level
        if self.on_reject == "forward":
            return n
        return next((i + 1 for i in reversed(range(n)) if self.chain.random(i)), 0)

    @torch.no_grad()
    def sample(
        self,
        n: int | None = None,
        *,
        seed: int = 0,
        indices: Sequence[int] | Tensor | None = None,
        batch_size: int = 64,
        mode: str = "slots",
        condition: dict[str, Any] | None = None,
        callback: Callable[[int, int], None] | None = None,
        observe: Callable[[Tested], None] | None = None,
        progress: bool = False,
    ) -> Refined:
        """Draws samples.

        Args:
            n: how many; or
            indices: which ones, (n,) whole numbers.
            seed: identity of the samples, together with their index.
            batch_size: slots that are worked on together.
            mode: slots (each sample runs to its end; unbiased) or stream (finished slots are refilled for ever and
                collection stops at the n-th result, so the batch is always full, but samples that took long are
                under-represented by about batch_size / n).
            condition: tensors (n, ...) with one entry per sample, or values for all; in stream mode entry i belongs to the
                sample of the i-th index and is repeated after n.
            callback: called as ``callback(finished, n)``.
            observe: called with a :class:`Tested` after every round of tests; for reports.
            progress: show a progress bar.

        Warns:
            CostlyRejection: once, when a sample has come to cost 50 times what the base sampler takes.

        Raises:
            ValueError: on wrong arguments, a critic that answers NaN or infinity (with the level), or a prior test that
                hardly any draw passes.
        """
        check_name("mode", mode, ["slots", "stream"])
        indices = asked_for(n, indices)
        _whole("batch_size", batch_size)
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}.")
        n = len(indices)
        condition = dict(condition or {})
        for name, value in condition.items():
            if isinstance(value, Tensor) and value.ndim and value.shape[0] != n:
                raise ValueError(f"{name} has {value.shape[0]} rows for {n} samples.")
        bar = None
        if progress:
            from tqdm.auto import tqdm

            bar = tqdm(total=n, desc="DiffRS", unit="sample", leave=False)
        job = Slots(self, indices, seed, min(batch_size, n), mode == "stream", condition, observe)
        base = sum(self.chain.cost(i) for i in range(self.chain.steps))
        finished, told = 0, False
        while finished < n:
            job.advance()
            if not told and job.nfe_total > COSTLY * base * (job.finished + job.active):
                told = True
                warnings.warn(_costly(job, base), CostlyRejection, stacklevel=3)  # 2 is no_grad
            if job.finished > finished:
                if bar is not None:
                    bar.update(min(job.finished, n) - finished)
                finished = min(job.finished, n)
                if callback is not None:
                    callback(finished, n)
        if bar is not None:
            bar.close()
        return job.result(n)


def parents_of(tested: Tensor, min_level: int = 0) -> Tensor:
    """(levels,) int64: the last tested level before each one, `min_level` where there is none; -1 for level 0."""
    last = min_level
    parents = [-1]
    for level in range(1, len(tested)):
        parents.append(min(last, level - 1))
        last = level if bool(tested[level]) else last
    return torch.tensor(parents)


def _costly(job: Slots, base: int) -> str:
    """What to say of a job whose samples are hardly ever finished."""
    rate = job.accepted[0] / job.tested[0]
    worst = int(rate.nan_to_num(nan=2.0).argmin())
    cost = job.nfe_total / (job.finished + job.active)
    return (
        f"Rejection has cost {cost:.0f} network evaluations per sample so far, where the plain sampler takes {base}, and "
        f"{job.finished} samples are finished: of the steps to level {worst}, {float(rate[worst]):.2%} were accepted. The critic "
        "tells most samples from the data: give a lower percentile, another number of steps, or a better model."
    )


def asked_for(n: int | None, indices: Sequence[int] | Tensor | None) -> Tensor:
    """(n,) int64: the samples 0 ... n-1, or those of the given indices.

    Raises:
        ValueError: if there are none, or they are not whole numbers, or `n` says something else.
    """
    if indices is None:
        if not _is_whole(n) or n < 1:  # type: ignore[operator]
            raise ValueError(f"n must be at least 1, a whole number, got {n!r}.")
        return torch.arange(n)  # type: ignore[arg-type]
    found = torch.as_tensor(indices)
    if found.ndim != 1 or not len(found) or found.is_floating_point() or found.dtype == torch.bool:
        raise ValueError(
            f"indices must be whole numbers, at least one, got shape {tuple(found.shape)} of {str(found.dtype)[6:]}."
        )
    if n is not None and n != len(found):
        raise ValueError(f"{len(found)} indices were given for n={n} samples.")
    return found.to("cpu", torch.int64)


def _is_whole(value: object) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


def _whole(name: str, value: object) -> None:
    if not _is_whole(value):
        raise ValueError(f"{name} must be a whole number, got {value!r}.")
