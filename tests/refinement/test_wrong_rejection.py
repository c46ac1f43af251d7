"""Mistakes that are easy to make in rejection sampling, made on purpose: each has another law, or another cost, on four states.

The figures are exact laws of absorbing Markov chains. Every mistake is sampled, agrees with its own law where that is known, and
lies outside the band in which the tests of rejection want the right one (4 standard errors; false alarm below 1e-4).
"""

from __future__ import annotations

import pytest
import torch

from trueward.refinement import DiffRS
from trueward.refinement.slots import Slots

from .chains import PERCENTILE_90, FourStates

N = 160_000
RIGHT, STEPS = torch.tensor([0.296900, 0.129685, 0.248317, 0.325098]), 6.508
BAND = 4.0 * torch.sqrt(RIGHT * (1.0 - RIGHT) / N)


class NoParentRatio(Slots):
    """The marginal test after every step."""

    def _judge(self, rows, threshold, kind):
        return super()._judge(rows, self.rule.constants.log_m_marginal[self.level[rows]], kind)


class Inverted(Slots):
    """Parent over child in the transition test."""

    def _judge(self, rows, threshold, kind):
        if kind == 1:
            return super()._judge(rows, threshold, kind)
        log_m = self.rule.constants.log_m_transition[self.level[rows]]
        logit, parent = self._log_ratio(rows), threshold - log_m  # l - (2 l - parent + log M) = parent - l - log M
        return super()._judge(rows, 2.0 * logit - parent + log_m, kind)


class SharedConstants(Slots):
    """The constants of the transitions in the marginal tests after a climb."""

    def _judge(self, rows, threshold, kind):
        if kind == 1:
            level = self.level[rows]
            threshold = torch.where(level > 0, self.rule.constants.log_m_transition[level], threshold)
        return super()._judge(rows, threshold, kind)


class NoRetest(Slots):
    """A climbed sample goes on untested, from the prior too."""

    started = False

    def _judge(self, rows, threshold, kind):
        passed = super()._judge(rows, threshold, kind)
        if kind == 1 and self.started:
            self.parent[rows] = self._log_ratio(rows)
            return torch.ones_like(passed)
        return passed

    def _cascade(self, todo):
        self.started = True
        super()._cascade(todo)
        self.started = False


class NoPriorTest(Slots):
    """Every draw of the prior is taken."""

    def _test_prior(self, rows):
        self.parent[rows] = self._log_ratio(rows)


class StaleParent(Slots):
    """A sample that passes on its way up keeps the log ratio of before."""

    def _judge(self, rows, threshold, kind):
        before = self.parent.clone()
        passed = super()._judge(rows, threshold, kind)
        if kind == 1:
            kept = rows[self.level[rows] > 0]
            self.parent[kept] = before[kept]
        return passed


class StalePrior(Slots):
    """A sample that arrives at the prior keeps the log ratio of before."""

    climbing = False

    def _judge(self, rows, threshold, kind):
        before = self.parent.clone()
        passed = super()._judge(rows, threshold, kind)
        if self.climbing and kind == 1:
            kept = rows[self.level[rows] == 0]
            self.parent[kept] = before[kept]
        return passed

    def _cascade(self, todo):
        self.climbing = True
        super()._cascade(todo)
        self.climbing = False


class ThrownAway(Slots):
    """A sample that arrives at the prior is replaced before it is tested."""

    climbing = False

    def _test_prior(self, rows):
        if self.climbing and len(rows):
            self._put(rows, self.chain.prior(self._noise(rows), self._normal(rows)))
        super()._test_prior(rows)

    def _cascade(self, todo):
        self.climbing = True
        super()._cascade(todo)
        self.climbing = False


def sampled(kind, monkeypatch):
    """Law and steps of the rule with the slots of another class."""
    monkeypatch.setattr("trueward.refinement.rejection.Slots", kind)
    found = DiffRS(FourStates(), PERCENTILE_90).sample(N, batch_size=80_000)
    return torch.bincount(found.x, minlength=4) / N, found.nfe.double().mean().item()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "law", "steps"),
    [
        (NoParentRatio, [0.6095, 0.0275, 0.0934, 0.2697], None),
        (Inverted, [0.0420, 0.5630, 0.2731, 0.1220], None),
        (SharedConstants, [0.2747, 0.1352, 0.2576, 0.3325], None),
        (NoRetest, None, None),
        (NoPriorTest, [0.2833, 0.1383, 0.2552, 0.3232], None),
        (StaleParent, [0.3053, 0.1217, 0.2432, 0.3298], 6.698),
        (StalePrior, [0.2974, 0.1292, 0.2486, 0.3247], 6.701),
        (ThrownAway, [0.3046, 0.1257, 0.2441, 0.3257], 6.477),
    ],
    ids=lambda v: v.__name__ if isinstance(v, type) else "",
)
def test_a_mistake_has_its_own_law_and_would_be_noticed(kind, law, steps, monkeypatch):
    found, cost = sampled(kind, monkeypatch)
    if law is not None:
        expected = torch.tensor(law)
        assert ((found - expected).abs() < 4.5 * torch.sqrt(expected * (1.0 - expected) / N)).all()
    if steps is not None:
        assert cost == pytest.approx(steps, abs=0.08)
    assert ((found - RIGHT).abs() > BAND).any() or abs(cost - STEPS) > 0.08
