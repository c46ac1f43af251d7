r"""A bound on the negative log-likelihood: its terms, their standard errors, and bits per dimension.

    bits/dim = (sum of terms in nats) / (d ln 2)

The standard error is that of the mean over the examples; every example has noise of its own, so it contains that of the
Monte Carlo estimate too.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from trueward.processes import sum_over_processes


@dataclass(frozen=True, eq=False)
class Bound:
    """What was measured; all numbers in nats per example where not said otherwise.

    Attributes:
        terms, term_errors: (K + 1,) the decoder, the edges in order of increasing t, and the prior; their standard errors.
        totals: (n,) the bound of every example, in the order of the data.
        times: (K,) the levels, increasing.
        dimensions: d.
        about: JSON-able facts about how it was measured.
    """

    terms: np.ndarray
    term_errors: np.ndarray
    totals: np.ndarray
    times: np.ndarray
    dimensions: int
    about: dict[str, Any]

    @classmethod
    def of(cls, terms: Tensor, times: np.ndarray, dimensions: int, about: dict[str, Any]) -> Bound:
        """Of the terms (n, K + 1) of every example; with several processes, rows of other processes are zero here."""
        terms = sum_over_processes(terms.double())
        n = len(terms)
        errors = terms.std(0) / math.sqrt(n) if n > 1 else torch.full_like(terms[0], math.nan)
        return cls(terms.mean(0).numpy(), errors.numpy(), terms.sum(1).numpy(), times, dimensions, about)

    @property
    def total(self) -> float:
        """The bound."""
        return float(self.totals.mean())

    @property
    def total_error(self) -> float:
        """Its standard error."""
        return float(self.totals.std(ddof=1) / math.sqrt(len(self.totals))) if len(self.totals) > 1 else math.nan

    @property
    def decoder(self) -> float:
        """-log p(x_0 | x_1)."""
        return float(self.terms[0])

    @property
    def edges(self) -> float:
        """The divergences of all reverse steps."""
        return float(self.terms[1:-1].sum())

    @property
    def prior(self) -> float:
        """KL(q(x_N | x_0) || p(x_N))."""
        return float(self.terms[-1])

    def bits(self, nats: float) -> float:
        """Nats per example as bits per dimension."""
        return nats / (self.dimensions * math.log(2.0))

    @property
    def bits_per_dim(self) -> float:
        """The bound in bits per dimension."""
        return self.bits(self.total)

    @property
    def standard_error(self) -> float:
        """Standard error of `bits_per_dim`."""
        return self.bits(self.total_error)

    def to_record(self) -> dict[str, Any]:
        """JSON-able: bits per dimension with its parts, and every term."""
        return {
            **self.about,
            "bits_per_dim": self.bits_per_dim,
            "standard_error": self.standard_error,
            "without_decoder": self.bits(self.edges + self.prior),
            "decoder": self.bits(self.decoder),
            "edges": self.bits(self.edges),
            "prior": self.bits(self.prior),
            "examples": len(self.totals),
            "dimensions": self.dimensions,
            "times": self.times.tolist(),
            "terms_nats": self.terms.tolist(),
            "term_errors_nats": self.term_errors.tolist(),
        }

    def __repr__(self) -> str:
        return (
            f"Bound({self.bits_per_dim:.4f} +- {self.standard_error:.4f} bits/dim; decoder {self.bits(self.decoder):.4f}, "
            f"edges {self.bits(self.edges):.4f}, prior {self.bits(self.prior):.2g}; {len(self.totals)} examples)"
        )
