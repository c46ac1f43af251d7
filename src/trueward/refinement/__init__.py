"""Corrections that go on the model you already have, without touching its weights.

Discriminator Guidance moves every step along the gradient of a critic; it is a denoiser around your denoiser, so every
sampler takes it. Diffusion rejection sampling (DiffRS) keeps a step only if the critic finds its result real enough, and
goes back to more noise if not; it takes every sampler that can be stepped row by row.
"""

from trueward.refinement.calibration import Calibration, Constants, calibrate
from trueward.refinement.chain import Chain, SamplerChain
from trueward.refinement.discriminator_guidance import DiscriminatorGuidance
from trueward.refinement.rejection import DiffRS, Refined

__all__ = [
    "Calibration",
    "Chain",
    "Constants",
    "DiffRS",
    "DiscriminatorGuidance",
    "Refined",
    "SamplerChain",
    "calibrate",
]
