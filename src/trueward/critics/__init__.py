"""Critics: time-dependent networks that judge noisy data, shared by every method that needs a density ratio.

A critic answers `log_ratio(x_t, t)` (and its gradient) on any schedule. Discriminator Guidance adds the gradient to the
score, diffusion rejection sampling accepts with the ratio, importance-reweighted training weights with it.
"""

from trueward.critics.critic import Critic
from trueward.critics.discriminator import Discriminator
from trueward.critics.exact import TruthCritic
from trueward.critics.training import Calibration, CriticRecord, calibration, train_critic

__all__ = [
    "Calibration",
    "Critic",
    "CriticRecord",
    "Discriminator",
    "TruthCritic",
    "calibration",
    "train_critic",
]
