r"""Slots of a batch, each holding a sample at its own level: what carries out diffusion rejection sampling.

In one round every slot makes one step of the base sampler, all of them in one call of the network; then the results are
tested, rejected samples climb until they pass or arrive at the prior, and finished samples hand their slots to the next ones
of the queue. Numbers are drawn from the streams of the samples, not of the slots, so a sample does not depend on its slot,
its neighbours or their number. That also lets samples be started ahead of time: a batch of them is drawn and put to the
prior's test together, and waits for slots. The rule itself is in :mod:`trueward.refinement.rejection`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from trueward.noise import Noise
from trueward.refinement.calibration import checked
from trueward.refinement.refined import Refined, Tested

if TYPE_CHECKING:
    from trueward.refinement.rejection import DiffRS


_ROW = ("position", "level", "nfe", "parent", "normals", "uniforms", "log_u")
_AHEAD = 2048  # uniforms drawn together, since for few of them the generator costs the same as for one


class Slots:
    """One call: the slots and the accounts. Arrays are on the CPU, `x` where the model is.

    The first `active` rows of every array are the slots; the rows after them are the waiting room, whose rows `ready` hold
    samples at level 0 that passed the prior's test.
    """

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
        self.is_tested = rule.tested
        here, parents = torch.arange(levels), rule.parents
        # a climb that would end at a level without a test goes on to one, or to where tests begin
        self.landing = torch.where(self.is_tested | (here <= rule.min_level), here, parents)
        self.tested, self.accepted = (
            torch.zeros(2, levels, dtype=torch.int64),
            torch.zeros(2, levels, dtype=torch.int64),
        )
        self.moves = torch.zeros(levels, levels, dtype=torch.int64)
        self.nfe_total = self.critic_evaluations = self.restarts = self.finished = 0
        self.worked = self.offered = 0
        self.results: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []  # positions, indices, samples and costs
        self.next, self.active = 0, slots  # the next position in the queue
        rows = slots + (slots if stream else min(slots, len(indices) - slots))
        self.position = torch.arange(rows)  # which entry of the queue each row works on
        self.level = torch.zeros(rows, dtype=torch.int64)
        self.nfe = torch.zeros(rows, dtype=torch.int64)
        self.parent = torch.zeros(rows, dtype=torch.float64)  # log ratio of the accepted x
        self.normals = torch.zeros(rows, dtype=torch.int64)  # draws used of each row's streams
        self.uniforms = torch.zeros(rows, dtype=torch.int64)
        self.log_u = torch.zeros(rows, max(1, min(_AHEAD // slots, 32)), dtype=torch.float64)  # of the next uniforms
        self.ready = torch.arange(0)
        like = self.chain.prior(self._noise(self.position[:1]), self.normals[:1])
        self.x = like.new_empty(rows, *like.shape[1:])
        self._start(self.position[:slots].clone())

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
        ahead = self.log_u.shape[1]
        at = self.uniforms[rows] % ahead
        empty = rows[at == 0]
        if len(empty):
            noise = Noise(self.seed, self._index(self.position[empty]).repeat_interleave(ahead))
            draws = self.uniforms[empty, None] + torch.arange(ahead)
            self.log_u[empty] = noise.uniform(draws.flatten()).log().view(-1, ahead)
        self.uniforms[rows] += 1
        return self.log_u[rows, at]

    def _condition(self, rows: Tensor) -> dict[str, Any]:
        at = self.position[rows] % len(self.indices)
        return {k: v[at.to(v.device)] if isinstance(v, Tensor) and v.ndim else v for k, v in self.condition.items()}

    def _log_ratio(self, rows: Tensor) -> Tensor:
        self.critic_evaluations += len(rows)
        level = self.level[rows]
        return checked(
            self.chain.log_ratio(self.x[rows.to(self.x.device)], level, self._condition(rows)), level, self.chain
        )

    def _put(self, rows: Tensor, x: Tensor) -> None:
        self.x[rows.to(self.x.device)] = x

    # --- the process ---------------------------------------------------------------------------------------------------

    def advance(self) -> None:
        """One step of the base sampler for all slots, the tests it leads to, and the refilling of finished slots."""
        rows = torch.arange(self.active)
        x, level = self.x[: self.active], self.level[: self.active]
        spent = self.cost[level]
        if self._waiting:
            self.worked += int(spent.sum())
            self.offered += int(spent.max()) * self.slots
        before = x.clone() if self.rule.on_reject == "resample" else None
        x.copy_(self.chain.step(x, level, self._noise(rows), self._normal(rows), self._condition(rows)))
        self.nfe[: self.active] += spent
        self.nfe_total += int(spent.sum())
        level += 1
        anchor = (level == self.rule.min_level).nonzero()[:, 0]
        if len(anchor):
            self.parent[anchor] = self._log_ratio(anchor)
        todo = self.is_tested[level].nonzero()[:, 0]
        if before is not None:
            self._resample(todo, before)
        else:
            self._cascade(todo)
        if self.rule.max_nfe is not None:
            over = (level < self.n) & (self.nfe[: self.active] + self.rest[level] > self.rule.max_nfe)
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
        self.parent[rows] = torch.where(passed, logit, self.parent[rows])
        level = self.level[rows]
        self.tested[kind].index_add_(0, level, torch.ones_like(rows))
        self.accepted[kind].index_add_(0, level, passed.to(torch.int64))
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
            to = self.landing[(level - self.rule.backsteps).clamp(min=0)]
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
        done = (self.level[: self.active] == self.n).nonzero()[:, 0]
        if not len(done):
            return
        position = self.position[done]
        self.results.append((position, self._index(position), self.x[done.to(self.x.device)], self.nfe[done]))
        self.finished += len(done)
        idle = self._refill(done)
        if len(idle):  # nobody waits any more: the batch shrinks, and the waiting room is closed
            keep = torch.arange(self.active)
            keep = keep[~torch.isin(keep, idle)]
            self.active = len(keep)
            self.x = self.x[keep.to(self.x.device)]
            for name in _ROW:
                setattr(self, name, getattr(self, name)[keep])

    # --- the queue -----------------------------------------------------------------------------------------------------

    @property
    def _waiting(self) -> bool:
        """Are there samples without a slot?"""
        return self.stream or len(self.ready) > 0 or self.next < len(self.indices)

    def _start(self, rows: Tensor) -> None:
        """The next entries of the queue begin in these rows."""
        self.position[rows] = torch.arange(self.next, self.next + len(rows))
        self.next += len(rows)
        for name in ("level", "nfe", "normals", "uniforms"):
            getattr(self, name)[rows] = 0
        self._put(rows, self.chain.prior(self._noise(rows), self._normal(rows)))
        self._test_prior(rows)

    def _refill(self, free: Tensor) -> Tensor:
        """Gives free slots to samples of the waiting room, which is filled when it is empty; returns what is left over."""
        while len(free) and self._waiting:
            if not len(self.ready):
                room = torch.arange(self.active, len(self.position))
                self.ready = room if self.stream else room[: len(self.indices) - self.next]
                self._start(self.ready)
            source, slot = self.ready[: len(free)], free[: len(self.ready)]
            self._put(slot, self.x[source.to(self.x.device)])
            for name in _ROW:
                getattr(self, name)[slot] = getattr(self, name)[source]
            self.ready, free = self.ready[len(source) :], free[len(slot) :]
        return free

    def result(self, n: int) -> Refined:
        """The first n finished samples, in the order of the queue (slots) or of completion (stream)."""
        position, index, x, nfe = (torch.cat(parts) for parts in zip(*self.results))
        chosen = torch.arange(n) if self.stream else position.argsort()
        at = position[chosen] % len(self.indices)
        return Refined(
            x[chosen.to(x.device)],
            index[chosen],
            {k: v[at.to(v.device)] if isinstance(v, Tensor) and v.ndim else v for k, v in self.condition.items()},
            nfe[chosen],
            self.nfe_total,
            self.critic_evaluations,
            self.restarts,
            self.tested,
            self.accepted,
            self.moves,
            self.worked / self.offered if self.offered else float("nan"),
        )
