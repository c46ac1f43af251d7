"""Distributions whose every answer is exact: what samplers, likelihoods, covariances and critics are measured against.

A truth gives, under any schedule and at any time, its density, score, posterior mean and covariance of x_0 given x_t,
posterior samples, density ratio to another truth and the probability-flow map; `truth.denoiser(schedule)` is the model a
perfectly trained network would be.
"""

from trueward.truth.denoiser import TruthDenoiser
from trueward.truth.gaussian import Gaussian
from trueward.truth.mixture import Divergence, GaussianMixture
from trueward.truth.standard import bimodal, grid_of_gaussians, point_masses

__all__ = ["Divergence", "Gaussian", "GaussianMixture", "TruthDenoiser", "bimodal", "grid_of_gaussians", "point_masses"]
