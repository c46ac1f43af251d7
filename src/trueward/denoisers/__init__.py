r"""Denoisers: what a network knows about x_0 given x_t.

``denoiser(x_t, t, **condition) -> Posterior`` is the only thing that samplers, guidance, likelihood and metrics know of a
model. A parametrisation is a subclass; corrections (guidance, discriminator, covariance)
are wrappers that are denoisers themselves. Your own network becomes one in three lines::

    schedule = trueward.VPLinear()
    denoiser = trueward.denoiser(my_network, schedule, prediction="eps", shape=(3, 32, 32))
    samples = trueward.sampler("dpm-solver++", steps=20).sample(denoiser, n=16)
"""

from trueward.denoisers.contract import Denoiser, Rescheduled
from trueward.denoisers.guidance import ClassifierFreeGuidance, ClassifierGuidance, Guided
from trueward.denoisers.parametrisations import (
    DataDenoiser,
    EDMDenoiser,
    EpsDenoiser,
    FlowDenoiser,
    NetworkDenoiser,
    ScoreDenoiser,
    VDenoiser,
    denoiser,
    prediction_names,
)
from trueward.denoisers.posterior import Coefficient, Posterior

__all__ = [
    "ClassifierFreeGuidance",
    "ClassifierGuidance",
    "Coefficient",
    "DataDenoiser",
    "Denoiser",
    "EDMDenoiser",
    "EpsDenoiser",
    "FlowDenoiser",
    "Guided",
    "NetworkDenoiser",
    "Posterior",
    "Rescheduled",
    "ScoreDenoiser",
    "VDenoiser",
    "denoiser",
    "prediction_names",
]
