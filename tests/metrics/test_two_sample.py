"""The classifier two-sample test: chance for equal sets, certainty for separated ones, an honest p-value."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.stats import binom, norm
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.naive_bayes import GaussianNB

from trueward.metrics import c2st


def normal(n: int, d: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("classifier", ["mlp", "logistic", "knn"])
def test_separated_sets_are_told_apart_and_equal_ones_are_not(classifier):
    apart = c2st(normal(300, 3, 1), normal(300, 3, 2) + 10, classifier)
    assert apart.accuracy > 0.99
    assert apart.p_value < 1e-10
    equal = c2st(normal(300, 3, 1), normal(300, 3, 2), classifier)
    # the accuracy of 600 points is within 0.5 +- 0.11 with a chance above 1 - 1e-4 even with folds that depend on each other
    assert abs(equal.accuracy - 0.5) < 0.11


def test_a_shift_gives_the_accuracy_of_the_best_classifier():
    # between N(0, 1) and N(1, 1) the best rule is right with probability Phi(1/2) = 0.6915; a line finds it
    found = c2st(normal(5000, 1, 1), normal(5000, 1, 2) + 1, "logistic")
    assert found.accuracy == pytest.approx(norm.cdf(0.5), abs=0.02)  # four standard deviations
    assert abs(found.accuracy - norm.cdf(0.5)) < 4 * found.standard_error


def test_equal_distributions_are_rejected_no_more_often_than_the_level_says():
    p_values = np.array([c2st(normal(60, 3, i), normal(60, 3, 9000 + i), GaussianNB()).p_value for i in range(100)])
    # at level 5 % more than 14 of 100 have a chance of 1.4e-4
    assert (p_values <= 0.05).sum() <= 14
    assert (p_values < 1).any()


class Fixed(ClassifierMixin, BaseEstimator):
    """Takes a point for the reference if its second value is 1: the number of hits is known beforehand."""

    def fit(self, x, y):
        self.classes_ = np.unique(y)
        return self

    def predict(self, x):
        return (x[:, 1] > 0).astype(int)


def test_the_p_value_is_that_of_the_best_fold_times_the_folds():
    # 50 + 50 points in 5 folds; 45 of the samples and 35 of the reference are marked as what they are
    samples, reference = torch.zeros(50, 2), torch.zeros(50, 2)
    samples[:5, 1], reference[:35, 1] = 1.0, 1.0
    found = c2st(samples, reference, Fixed())
    assert found.accuracy == 0.8
    assert found.standard_error == pytest.approx(math.sqrt((1 / 5 + 1 / 4) * 0.8 * 0.2 / 20))
    possible = [5 * binom.sf(hits - 1, 20, 0.5) for hits in range(16, 21)]  # the best fold has at least the mean of 16
    assert min(abs(found.p_value - p) for p in possible) < 1e-12


def test_a_classifier_of_scikit_learn_is_taken_and_left_as_it_was():
    mine = GaussianNB()
    assert c2st(normal(100, 2, 1), normal(100, 2, 2) * 5, mine).accuracy > 0.8
    assert not hasattr(mine, "theta_")


def test_a_larger_set_is_thinned_so_that_chance_stays_one_half():
    found = c2st(normal(50, 2, 1), normal(2000, 2, 2), "logistic")
    assert found.accuracy < 0.75  # always guessing the larger set would be right 97 % of the time


def test_it_is_the_same_every_time_for_one_seed():
    x, y = normal(200, 2, 1), normal(200, 2, 2) + 0.5
    torch.manual_seed(5)
    np.random.seed(5)
    first = c2st(x, y)
    assert c2st(x, y) == first


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"classifier": "forest"}, "Unknown classifier 'forest'"),
        ({"classifier": 3}, "fit and predict"),
        ({"folds": 1}, "folds"),
        ({"folds": 60}, "at least 120"),
        ({"limit": 3}, "limit must be at least 10"),
    ],
)
def test_a_wrong_call_says_what_is_wrong(arguments, message):
    with pytest.raises(ValueError, match=message):
        c2st(normal(50, 2), normal(50, 2), **arguments)
