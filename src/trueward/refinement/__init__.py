"""Corrections that go on the model you already have, without touching its weights.

Discriminator Guidance moves every step along the gradient of a critic; it is a denoiser around your denoiser, so every
sampler takes it; :class:`BoostedHeun` and :class:`MeanShift` are samplers for published variants of it. Diffusion rejection
sampling (DiffRS) keeps a step only if the critic finds its result real enough, and goes back to more noise if not; it takes
every sampler that can be stepped row by row.
:class:`RefinedSampler` stands where a sampler stands and does either or both.
"""

from trueward.refinement.boosted_heun import BoostedHeun
from trueward.refinement.calibration import Calibration, Constants, calibrate
from trueward.refinement.chain import Chain, SamplerChain
from trueward.refinement.cost import Cost
from trueward.refinement.discriminator_guidance import DiscriminatorGuidance
from trueward.refinement.mean_shift import MeanShift
from trueward.refinement.refined_sampler import Drawn, RefinedSampler
from trueward.refinement.rejection import CostlyRejection, DiffRS, Refined, Tested

__all__ = [
    "BoostedHeun",
    "Calibration",
    "Chain",
    "Constants",
    "Cost",
    "CostlyRejection",
    "DiffRS",
    "DiscriminatorGuidance",
    "Drawn",
    "MeanShift",
    "Refined",
    "RefinedSampler",
    "SamplerChain",
    "Tested",
    "calibrate",
]
