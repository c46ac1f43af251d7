r"""A number and how far it may be off: standard errors by analysis where there are formulas, else by the jackknife.

The grouped jackknife leaves out one of G random groups of the samples (or of the reference) at a time,

    var = (G - 1) / G  sum_g (T_(-g) - mean T_(-.))^2,

summed over both sets. It draws nothing twice, unlike the bootstrap, whose repeated points look to nearest neighbours, kernels
and covariances like a narrower distribution and so shift these metrics.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

citation = ("efron1981jackknife",)


@dataclass(frozen=True)
class Estimate:
    """`value` with its `standard_error` (None where unknown); ``float(estimate)`` is the value."""

    value: float
    standard_error: float | None = None

    def __float__(self) -> float:
        return self.value

    def interval(self, confidence: float = 0.95) -> tuple[float, float]:
        """(low, high) of the normal confidence interval.

        Raises:
            ValueError: if there is no standard error, or `confidence` is not in (0, 1).
        """
        from scipy.stats import norm

        if self.standard_error is None:
            raise ValueError("This estimate has no standard error.")
        _check_confidence(confidence)
        half = float(norm.ppf(0.5 + 0.5 * confidence)) * self.standard_error
        return self.value - half, self.value + half

    def to_dict(self) -> dict[str, float | None]:
        """``{"value": ..., "standard_error": ...}``."""
        return {"value": self.value, "standard_error": self.standard_error}


@dataclass(frozen=True)
class Interval(Estimate):
    """An estimate with the ends `low`, `high` of its confidence interval."""

    low: float = math.nan
    high: float = math.nan

    def to_dict(self) -> dict[str, float | None]:
        return {**super().to_dict(), "low": self.low, "high": self.high}


def _check_confidence(confidence: float) -> None:
    if not 0.0 < confidence < 1.0:
        raise ValueError(f"confidence must lie between 0 and 1, got {confidence}.")


def share(inside: Tensor) -> Estimate:
    """The share of n points (n,) bool; at 0 and 1 the standard error is that of a point more on the other side, not 0."""
    n, hits = len(inside), int(inside.sum())
    p = min(max(hits / n, 1.0 / (n + 1)), n / (n + 1.0))
    return Estimate(hits / n, math.sqrt(p * (1.0 - p) / n))


def random_groups(n: int, groups: int, seed: int) -> list[Tensor]:
    """The numbers 0 ... n-1 in `groups` random groups whose sizes differ by at most one."""
    if groups < 2:
        raise ValueError(f"groups must be at least 2, got {groups}.")
    if n < 2 * groups:
        raise ValueError(f"{n} samples are too few for {groups} groups: at least {2 * groups} are needed.")
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    return list(order.tensor_split(groups))


def jackknife_variance(left_out: list[float]) -> float:
    """(G - 1) / G sum (T_g - mean T)^2 for the G values with a group left out."""
    values = torch.tensor(left_out, dtype=torch.float64)
    return float((len(values) - 1) / len(values) * ((values - values.mean()) ** 2).sum())


def interval(
    metric: Callable[..., Any],
    samples: Tensor,
    reference: Tensor,
    *,
    groups: int = 20,
    confidence: float = 0.95,
    seed: int = 0,
    **options: Any,
) -> Interval:
    """Any metric of two sets with a jackknife confidence interval; `metric` is called 2 `groups` + 1 times.

    Give features rather than images, so that they are not computed again each time.

    Args:
        metric: ``metric(samples, reference, **options)`` -> a number or an :class:`Estimate`.
        samples: (n, *shape).
        reference: (m, *shape); its being a sample too is part of the error.
        groups: G; the interval uses the quantiles of Student's t with G - 1 degrees of freedom.
        confidence: in (0, 1).
        seed: of the random groups.
        **options: passed to `metric`.

    Returns:
        value, standard error and ends of the interval. For a metric with a bias that depends on n (Frechet, sliced Wasserstein)
        the interval is about its expectation at this n.

    Raises:
        ValueError: fewer than two samples per group.

    Reference: Efron and Stein 1981.
    """
    from scipy.stats import t as student

    _check_confidence(confidence)
    value = float(metric(samples, reference, **options))
    variance = 0.0
    for side, whole in enumerate((samples, reference)):
        left_out = []
        for group in random_groups(len(whole), groups, seed + side):
            keep = torch.ones(len(whole), dtype=torch.bool)
            keep[group] = False
            kept = whole[keep.to(whole.device)]
            pair = (kept, reference) if side == 0 else (samples, kept)
            left_out.append(float(metric(*pair, **options)))
        variance += jackknife_variance(left_out)
    error = math.sqrt(variance)
    half = float(student.ppf(0.5 + 0.5 * confidence, groups - 1)) * error
    return Interval(value, error, value - half, value + half)


def class_wise(
    metric: Callable[..., Any],
    samples: Tensor,
    labels: Tensor,
    reference: Tensor,
    reference_labels: Tensor,
    **options: Any,
) -> dict[int, Any]:
    """`metric` between the samples and the reference of every class that both have.

    Args:
        metric: ``metric(samples, reference, **options)``.
        samples, reference: (n, *shape), (m, *shape).
        labels, reference_labels: (n,), (m,) whole numbers.
        **options: passed to `metric`.

    Returns:
        label -> what `metric` returns, in the order of the labels.

    Raises:
        ValueError: labels of another length; no common class; what `metric` raises, with the class named.
    """
    for name, y, x in (("labels", labels, samples), ("reference_labels", reference_labels, reference)):
        if tuple(y.shape) != (len(x),):
            raise ValueError(f"{name} must have shape ({len(x)},), one for each sample, got {tuple(y.shape)}.")
    common = sorted(set(labels.tolist()) & set(reference_labels.tolist()))
    if not common:
        raise ValueError("samples and reference have no class in common.")
    found = {}
    for label in common:
        try:
            found[int(label)] = metric(
                samples[(labels == label).to(samples.device)],
                reference[(reference_labels == label).to(reference.device)],
                **options,
            )
        except ValueError as error:
            raise ValueError(f"Class {int(label)}: {error}") from None
    return found
