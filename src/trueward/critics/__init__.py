"""Critics: time-dependent networks that judge noisy data, shared by every method that needs a density ratio.

A critic answers `log_ratio(x_t, t)` (and its gradient) on any schedule. Discriminator Guidance adds the gradient to the
score, diffusion rejection sampling accepts with the ratio, importance-reweighted training weights with it. What was trained
for a model (:func:`trueward.fitting.fit_critic`) is stored beside it, where :func:`with_critic` finds it.
"""

from trueward.critics.calibration import Calibration, calibration
from trueward.critics.critic import Critic, Tally, tallied
from trueward.critics.discriminator import Discriminator
from trueward.critics.exact import TruthCritic
from trueward.critics.extractor import ExtractorCritic
from trueward.critics.features import FeatureCritic, FeatureHead
from trueward.critics.stored import (
    CriticOfAnotherSampler,
    critic_fingerprint,
    critic_folder,
    load_critic,
    read_facts,
    save_critic,
    warn_of_another_sampler,
    with_critic,
)
from trueward.critics.training import CriticRecord, train_critic

__all__ = [
    "Calibration",
    "Critic",
    "CriticOfAnotherSampler",
    "CriticRecord",
    "Discriminator",
    "ExtractorCritic",
    "FeatureCritic",
    "FeatureHead",
    "Tally",
    "TruthCritic",
    "calibration",
    "critic_fingerprint",
    "critic_folder",
    "load_critic",
    "read_facts",
    "save_critic",
    "tallied",
    "train_critic",
    "warn_of_another_sampler",
    "with_critic",
]
