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

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from trueward.naming import check_name
from trueward.noise import Noise
from trueward.refinement.calibration import Constants, checked
from trueward.refinement.chain import Chain


@dataclass(frozen=True)
class Refined:
    """Samples of diffusion rejection sampling and what they cost.

    Attributes:
        x: (n, *shape), the samples.
        indices: (n,), their indices: 0 ... n-1 in slot mode, in order of completion in stream mode.
        condition: the condition of every sample, row by row.
        nfe: (n,), network evaluations on the path of each sample since its last restart.
        nfe_total: all network evaluations, abandoned and unfinished paths included.
        critic_evaluations: rows the critic was asked about.
        restarts: samples given up because of `max_nfe`.
        tested, accepted: (2, levels): transition tests (row 0) and marginal tests (row 1) at each level.
        moves: (levels, levels): how often a sample was moved from a level (row) to another one by rejection.
        occupancy: share of the batch's rows that a network call of the base sampler worked on while samples were waiting
            for a slot (the drain at the end is left out); nan if none was.
    """

    x: Tensor
    indices: Tensor
    condition: dict[str, Any]
    nfe: Tensor
    nfe_total: int
    critic_evaluations: int
    restarts: int
    tested: Tensor
    accepted: Tensor
    moves: Tensor
    occupancy: float

    @property
    def nfe_per_sample(self) -> float:
        """All network evaluations divided by the number of samples: the honest cost."""
        return self.nfe_total / len(self.nfe)

    @property
    def acceptance(self) -> Tensor:
        """(2, levels): share of accepted transition and marginal tests, nan where none was made."""
        return self.accepted / self.tested


@dataclass(frozen=True)
class Tested:
    """What `observe` sees after every round of tests.

    Attributes:
        x: (rows, *shape), the states that were tested.
        level: (rows,) their levels.
        indices: (rows,) which samples they belong to.
        log_ratio: (rows,) what the critic said of them.
        passed: (rows,) whether they were accepted.
        transition: was this the test after a step (else the marginal test)?
    """

    x: Tensor
    level: Tensor
    indices: Tensor
    log_ratio: Tensor
    passed: Tensor
    transition: bool


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
        prior_rounds: give up if a sample's prior draws are rejected so often in a row.
    """

    chain: Chain
    constants: Constants
    on_reject: str = "forward"
    max_nfe: int | None = None
    backsteps: int = 1
    min_level: int = 0
    max_level: int | None = None
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
        if self.max_nfe is not None and self.max_nfe < base:
            raise ValueError(
                f"max_nfe={self.max_nfe} is less than the {base} evaluations of the base sampler: nothing could finish."
            )
        if self.backsteps < 1:
            raise ValueError(f"backsteps must be at least 1, got {self.backsteps}.")
        if not 0 <= self.min_level < n:
            raise ValueError(f"min_level must lie in 0 ... {n - 1}, got {self.min_level}.")
        if self.max_level is not None and not self.min_level < self.max_level <= n:
            raise ValueError(f"max_level must lie in {self.min_level + 1} ... {n}, got {self.max_level}.")
        if self.on_reject == "resample":
            still = [i for i in range(n) if not self.chain.random(i)]
            last = self._last
            if last <= self.min_level or any(self.min_level <= i < last for i in still):
                raise ValueError(
                    "on_reject='resample' needs steps that draw noise: a deterministic step proposes the same point for ever; use 'forward'."
                )

    @property
    def _last(self) -> int:
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
        indices: Tensor | None = None,
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
            indices: which ones, (n,) int64.
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
        """
        check_name("mode", mode, ["slots", "stream"])
        if indices is None:
            if n is None or n < 1:
                raise ValueError(f"n must be at least 1, got {n}.")
            indices = torch.arange(n)
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
        job = _Job(self, indices, seed, min(batch_size, n), mode == "stream", condition, observe)
        finished = 0
        while finished < n:
            job.advance()
            if job.finished > finished:
                if bar is not None:
                    bar.update(min(job.finished, n) - finished)
                finished = min(job.finished, n)
                if callback is not None:
                    callback(finished, n)
        if bar is not None:
            bar.close()
        return job.result(n)


class _Job:
    """One call: the slots and the accounts. Slot arrays are on the CPU, `x` where the model is."""

    def __init__(
        self,
        rule: DiffRS,
        indices: Tensor,
        seed: int,
        slots: int,
        stream: bool,
        condition: dict[str, Any],
        observe: Callable[[Tested], None] | None,
    ) -> None:
        self.observe = observe
        self.rule, self.chain, self.indices, self.seed, self.stream = rule, rule.chain, indices, seed, stream
        self.condition, self.slots = condition, slots
        self.n, levels = self.chain.steps, self.chain.steps + 1
        cost = torch.tensor([self.chain.cost(i) for i in range(self.n)] + [0])
        self.cost, self.rest = cost, cost.flip(0).cumsum(0).flip(0)  # rest[i]: from level i to the end
        self.tested, self.accepted = (
            torch.zeros(2, levels, dtype=torch.int64),
            torch.zeros(2, levels, dtype=torch.int64),
        )
        self.moves = torch.zeros(levels, levels, dtype=torch.int64)
        self.nfe_total = self.critic_evaluations = self.restarts = self.finished = 0
        self.worked = self.offered = 0
        self.results: list[tuple[int, int, Tensor, int]] = []
        self.next = slots  # the next position in the queue
        self.position = torch.arange(slots)  # which entry of the queue each slot works on
        self.level = torch.zeros(slots, dtype=torch.int64)
        self.nfe = torch.zeros(slots, dtype=torch.int64)
        self.parent = torch.zeros(slots, dtype=torch.float64)  # log ratio of the accepted x
        self.normals = torch.zeros(slots, dtype=torch.int64)  # draws used of each row's streams
        self.uniforms = torch.zeros(slots, dtype=torch.int64)
        everyone = torch.arange(slots)
        self.x = self.chain.prior(self._noise(everyone), self._normal(everyone))
        self._test_prior(everyone)

    # --- random streams and conditions of rows ------------------------------------------------------------------------

    def _index(self, position: Tensor) -> Tensor:
        if not self.stream:
            return self.indices[position]
        lap = position // len(self.indices)  # a stream needs more samples than were asked for
        return self.indices[position % len(self.indices)] + lap * (int(self.indices.max()) + 1)

    def _noise(self, rows: Tensor) -> Noise:
        return Noise(self.seed, self._index(self.position[rows]))

    def _normal(self, rows: Tensor) -> Tensor:
        draw = self.normals[rows].clone()
        self.normals[rows] += 1
        return draw

    def _log_u(self, rows: Tensor) -> Tensor:
        u = self._noise(rows).uniform(self.uniforms[rows].clone())
        self.uniforms[rows] += 1
        return u.log()

    def _condition(self, rows: Tensor) -> dict[str, Any]:
        at = self.position[rows] % len(self.indices)
        return {k: v[at.to(v.device)] if isinstance(v, Tensor) and v.ndim else v for k, v in self.condition.items()}

    def _log_ratio(self, rows: Tensor) -> Tensor:
        self.critic_evaluations += len(rows)
        level = self.level[rows]
        return checked(self.chain.log_ratio(self.x[rows.to(self.x.device)], level, self._condition(rows)), level)

    def _put(self, rows: Tensor, x: Tensor) -> None:
        self.x[rows.to(self.x.device)] = x

    # --- the process ---------------------------------------------------------------------------------------------------

    def advance(self) -> None:
        """One step of the base sampler for all slots, the tests it leads to, and the refilling of finished slots."""
        rows = torch.arange(len(self.position))
        if self.stream or self.next < len(self.indices):
            stages = int(self.cost[self.level].max())
            self.worked += int(self.cost[self.level].sum())
            self.offered += stages * self.slots
        spent = self.cost[self.level]
        before = self.x.clone() if self.rule.on_reject == "resample" else None
        self.x = self.chain.step(self.x, self.level, self._noise(rows), self._normal(rows), self._condition(rows))
        self.nfe += spent
        self.nfe_total += int(spent.sum())
        self.level += 1
        anchor = (self.level == self.rule.min_level).nonzero()[:, 0]
        if len(anchor):
            self.parent[anchor] = self._log_ratio(anchor)
        todo = ((self.level > self.rule.min_level) & (self.level <= self.rule._last)).nonzero()[:, 0]
        if before is not None:
            self._resample(todo, before)
        else:
            self._cascade(todo)
        if self.rule.max_nfe is not None:
            over = (self.level < self.n) & (self.nfe + self.rest[self.level] > self.rule.max_nfe)
            if bool(over.any()):
                self._restart(over.nonzero()[:, 0])
        self._collect()

    def _judge(self, rows: Tensor, threshold: Tensor, kind: int) -> Tensor:
        """Tests the rows; notes the log ratio of those that pass. Returns which passed."""
        logit = self._log_ratio(rows)
        passed = self._log_u(rows) <= logit - threshold
        if self.observe is not None:
            x = self.x[rows.to(self.x.device)]
            self.observe(Tested(x, self.level[rows], self._index(self.position[rows]), logit, passed, kind == 0))
        self.parent[rows[passed]] = logit[passed]
        self.tested[kind].index_add_(0, self.level[rows], torch.ones_like(rows))
        self.accepted[kind].index_add_(0, self.level[rows[passed]], torch.ones_like(rows[passed]))
        return passed

    def _cascade(self, todo: Tensor) -> None:
        constants = self.rule.constants
        first = True
        while len(todo):
            level = self.level[todo]
            threshold = (
                constants.log_m_transition[level] + self.parent[todo] if first else constants.log_m_marginal[level]
            )
            rejected = todo[~self._judge(todo, threshold, 0 if first else 1)]
            first = False
            if not len(rejected):
                return
            level = self.level[rejected]
            to = (level - self.rule.backsteps).clamp(min=0)
            self._put(
                rejected,
                self.chain.forward(
                    self.x[rejected.to(self.x.device)], level, to, self._noise(rejected), self._normal(rejected)
                ),
            )
            self.moves.index_put_((level, to), torch.ones_like(level), accumulate=True)
            self.level[rejected] = to
            top = rejected[to == 0]
            self._test_prior(top)
            anchor = rejected[(to == self.rule.min_level) & (to > 0)]
            if len(anchor):
                self.parent[anchor] = self._log_ratio(anchor)
            todo = rejected[to > self.rule.min_level]

    def _resample(self, todo: Tensor, before: Tensor) -> None:
        rejected = todo[
            ~self._judge(todo, self.rule.constants.log_m_transition[self.level[todo]] + self.parent[todo], 0)
        ]
        self._put(rejected, before[rejected.to(before.device)])
        self.moves.index_put_(
            (self.level[rejected], self.level[rejected] - 1), torch.ones_like(rejected), accumulate=True
        )
        self.level[rejected] -= 1

    def _test_prior(self, rows: Tensor) -> None:
        """Rows at level 0 are tested as they are; those that fail are replaced by fresh draws until they pass."""
        if self.rule.min_level > 0:
            return
        for _ in range(self.rule.prior_rounds):
            if not len(rows):
                return
            rows = rows[~self._judge(rows, self.rule.constants.log_m_marginal[self.level[rows]], 1)]
            if len(rows):
                self._put(rows, self.chain.prior(self._noise(rows), self._normal(rows)))
        if len(rows):
            rate = self.accepted[1, 0].item() / max(1, self.tested[1, 0].item())
            raise ValueError(
                f"The prior test accepts only {rate:.2g} of the draws: the critic should be near zero at the prior; calibrate again or set min_level=1."
            )

    def _restart(self, rows: Tensor) -> None:
        self.restarts += len(rows)
        self._put(rows, self.chain.prior(self._noise(rows), self._normal(rows)))
        self.level[rows], self.nfe[rows] = 0, 0
        self._test_prior(rows)

    def _collect(self) -> None:
        done = (self.level == self.n).nonzero()[:, 0]
        if not len(done):
            return
        for row in done.tolist():
            x = self.x[row].clone()
            self.results.append((int(self.position[row]), int(self._index(self.position[row])), x, int(self.nfe[row])))
        self.finished += len(done)
        waiting = len(done) if self.stream else min(len(done), len(self.indices) - self.next)
        refill, idle = done[:waiting], done[waiting:]
        if len(refill):
            self.position[refill] = torch.arange(self.next, self.next + len(refill))
            self.next += len(refill)
            self.level[refill], self.nfe[refill], self.normals[refill], self.uniforms[refill] = 0, 0, 0, 0
            self._put(refill, self.chain.prior(self._noise(refill), self._normal(refill)))
            self._test_prior(refill)
        if len(idle):
            keep = torch.ones(len(self.position), dtype=torch.bool)
            keep[idle] = False
            self.x = self.x[keep.to(self.x.device)]
            for name in ("position", "level", "nfe", "parent", "normals", "uniforms"):
                setattr(self, name, getattr(self, name)[keep])

    def result(self, n: int) -> Refined:
        """The first n finished samples, in the order of the queue (slots) or of completion (stream)."""
        chosen = self.results[:n] if self.stream else sorted(self.results, key=lambda r: r[0])
        at = torch.tensor([r[0] for r in chosen]) % len(self.indices)
        return Refined(
            torch.stack([r[2] for r in chosen]),
            torch.tensor([r[1] for r in chosen]),
            {k: v[at.to(v.device)] if isinstance(v, Tensor) and v.ndim else v for k, v in self.condition.items()},
            torch.tensor([r[3] for r in chosen]),
            self.nfe_total,
            self.critic_evaluations,
            self.restarts,
            self.tested,
            self.accepted,
            self.moves,
            self.worked / self.offered if self.offered else float("nan"),
        )
