"""What refined samples cost, in numbers that may be added up over batches, shards and processes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


def _plus(a: list[Any], b: list[Any]) -> list[Any]:
    """Nested lists added entry by entry; an empty one is zero."""
    if not a or not b:
        return a or b
    return [_plus(x, y) if isinstance(x, list) else x + y for x, y in zip(a, b)]


@dataclass(frozen=True)
class Cost:
    """The accounts of some samples.

    Attributes:
        samples: how many were returned.
        nfe: network evaluations in all, abandoned paths included.
        nfe_kept: network evaluations on the paths of the samples that were returned.
        critic: rows that critics were asked about; critic_gradients: how many of these with the gradient.
        restarts: samples given up because of their budget.
        tested, accepted: (2, levels) transition and marginal tests of rejection; moves: (levels, levels). Empty without.
    """

    samples: int = 0
    nfe: int = 0
    nfe_kept: int = 0
    critic: int = 0
    critic_gradients: int = 0
    restarts: int = 0
    tested: list[list[int]] = field(default_factory=list)
    accepted: list[list[int]] = field(default_factory=list)
    moves: list[list[int]] = field(default_factory=list)

    def __add__(self, other: Cost) -> Cost:
        numbers = ("samples", "nfe", "nfe_kept", "critic", "critic_gradients", "restarts")
        tables = ("tested", "accepted", "moves")
        total: dict[str, Any] = {name: getattr(self, name) + getattr(other, name) for name in numbers}
        total |= {name: _plus(getattr(self, name), getattr(other, name)) for name in tables}
        return Cost(**total)

    @property
    def nfe_per_sample(self) -> float:
        """All network evaluations over the samples returned: the honest cost."""
        return self.nfe / max(1, self.samples)

    @property
    def critic_per_sample(self) -> float:
        """Rows the critics judged, over the samples returned."""
        return self.critic / max(1, self.samples)

    def summary(self) -> dict[str, float | int]:
        """Per sample, for records: nfe, nfe_kept, critic_evaluations, critic_gradients; and the restarts in all."""
        n = max(1, self.samples)
        return {
            "nfe": self.nfe / n,
            "nfe_kept": self.nfe_kept / n,
            "critic_evaluations": self.critic / n,
            "critic_gradients": self.critic_gradients / n,
            "restarts": self.restarts,
        }
