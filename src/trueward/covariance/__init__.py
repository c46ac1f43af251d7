"""The right variance for every reverse step, put on a model as a wrapper that fills `Posterior.var`.

:func:`estimate_gamma` measures a table once (Analytic-DPM, no training); :class:`SNCovariance` and :class:`NPRCovariance`
learn a diagonal on the frozen model; full matrices serve data of few dimensions. :func:`with_covariance` finds what was
stored beside a model. One sampler, ``Ancestral(variance="posterior")``, and one bound, :func:`trueward.likelihood.elbo`, use
them all; the optimal trajectory comes from the same table.
"""

from trueward.covariance.analytic import (
    AnalyticCovariance,
    GammaTable,
    optimal_variance,
    posterior_variance,
    variance_bounds,
)
from trueward.covariance.estimate import estimate_gamma, measured_times
from trueward.covariance.full import FullAnalyticCovariance, FullTable, estimate_full_covariance
from trueward.covariance.heads import CovarianceHead, MatrixHead
from trueward.covariance.learned import LearnedCovariance, NPRCovariance, NPRFullCovariance, SNCovariance
from trueward.covariance.stored import (
    for_sampler,
    load_full_table,
    load_head,
    load_table,
    save_full_table,
    save_head,
    save_table,
    with_covariance,
)
from trueward.covariance.training import TrainableHead, trainable
from trueward.covariance.trajectories import (
    PowerNodes,
    least_cost_paths,
    optimal_levels,
    optimal_trajectory,
    simplified_costs,
    step_costs,
    trajectory,
)
from trueward.covariance.trunk import Trunk

__all__ = [
    "AnalyticCovariance",
    "CovarianceHead",
    "FullAnalyticCovariance",
    "FullTable",
    "GammaTable",
    "LearnedCovariance",
    "MatrixHead",
    "NPRCovariance",
    "NPRFullCovariance",
    "PowerNodes",
    "SNCovariance",
    "TrainableHead",
    "Trunk",
    "estimate_full_covariance",
    "estimate_gamma",
    "for_sampler",
    "least_cost_paths",
    "load_full_table",
    "load_head",
    "load_table",
    "measured_times",
    "optimal_levels",
    "optimal_trajectory",
    "optimal_variance",
    "posterior_variance",
    "save_full_table",
    "save_head",
    "save_table",
    "simplified_costs",
    "step_costs",
    "trainable",
    "trajectory",
    "variance_bounds",
    "with_covariance",
]
