r"""What diffusion rejection sampling returns, and what can be watched on the way."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor


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
