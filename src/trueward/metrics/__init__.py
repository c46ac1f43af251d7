"""How far samples are from the truth, as numbers one may believe: unbiased where that can be, with standard errors, each checked
against a closed form.

:func:`evaluate` computes several metrics at once, in the space of any features: the values themselves, the classifiers of digits
and MNIST that are bundled, a TorchScript network, Inception from a file of your own, or any callable.
"""

from trueward.metrics.classifier import (
    Classifier,
    classifier_record,
    load_classifier,
    save_classifier,
    train_classifier,
)
from trueward.metrics.estimate import Estimate, Interval, class_wise, interval
from trueward.metrics.evaluation import DEFAULT, METRICS, evaluate
from trueward.metrics.features import Features, class_accuracy, default_features, feature_extractor
from trueward.metrics.frechet import (
    frechet_distance,
    frechet_infinity,
    frechet_of_moments,
    frechet_with_error,
)
from trueward.metrics.manifolds import DensityCoverage, PrecisionRecall, density_coverage, precision_recall
from trueward.metrics.mmd import MMD, median_bandwidth, mmd
from trueward.metrics.sliced import sliced_wasserstein, wasserstein_1d
from trueward.metrics.statistics import FrechetStatistics
from trueward.metrics.two_sample import C2ST, c2st

__all__ = [
    "C2ST",
    "DEFAULT",
    "METRICS",
    "MMD",
    "Classifier",
    "DensityCoverage",
    "Estimate",
    "Features",
    "FrechetStatistics",
    "Interval",
    "PrecisionRecall",
    "c2st",
    "class_accuracy",
    "class_wise",
    "classifier_record",
    "default_features",
    "density_coverage",
    "evaluate",
    "feature_extractor",
    "frechet_distance",
    "frechet_infinity",
    "frechet_of_moments",
    "frechet_with_error",
    "interval",
    "load_classifier",
    "median_bandwidth",
    "mmd",
    "precision_recall",
    "save_classifier",
    "sliced_wasserstein",
    "train_classifier",
    "wasserstein_1d",
]
