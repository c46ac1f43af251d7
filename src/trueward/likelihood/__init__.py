"""How probable data are under a model: bounds in bits per dimension, with every term and its standard error.

:func:`elbo` is the bound of the discrete chain for any reverse variance and trajectory, :func:`continuous_elbo` its limit;
a decoder says what the last term is; :func:`edge_costs` tabulates the terms between all levels, from which the best
trajectory of any variance follows.
"""

from trueward.likelihood.bound import Bound
from trueward.likelihood.continuous import continuous_elbo
from trueward.likelihood.decoder import Decoder, DiscretizedGaussian, GaussianDensity, decoder_variance
from trueward.likelihood.edges import edge_costs, optimal_trajectory_of
from trueward.likelihood.elbo import divergence, elbo, gaussian_kl, prior_divergence

__all__ = [
    "Bound",
    "Decoder",
    "DiscretizedGaussian",
    "GaussianDensity",
    "continuous_elbo",
    "decoder_variance",
    "divergence",
    "edge_costs",
    "elbo",
    "gaussian_kl",
    "optimal_trajectory_of",
    "prior_divergence",
]
