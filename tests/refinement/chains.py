"""Chains with known answers: four states on three levels, and a one-dimensional mixture under Heun."""

from __future__ import annotations

import torch
from torch import Tensor

from trueward.critics import TruthCritic
from trueward.refinement import Chain, Constants, SamplerChain
from trueward.samplers import EDMHeun
from trueward.schedules import EDM
from trueward.truth import GaussianMixture

F64 = torch.float64


class FourStates(Chain):
    """q_0 = (.4, .1, .2, .3), p_0 = (.1, .4, .3, .2), forward kernels (1-b) I + b/4, base step = Bayes reversal of p."""

    steps = 3

    def __init__(self, scale: float = 1.0) -> None:
        self.q, self.p = (
            [torch.tensor([0.4, 0.1, 0.2, 0.3], dtype=F64)],
            [torch.tensor([0.1, 0.4, 0.3, 0.2], dtype=F64)],
        )
        self.kernels = [(1 - b) * torch.eye(4, dtype=F64) + b / 4 for b in (0.2, 0.4, 0.6)]
        for kernel in self.kernels:
            self.q.append(self.q[-1] @ kernel)
            self.p.append(self.p[-1] @ kernel)
        self.ratio = torch.stack([q / p for q, p in zip(self.q, self.p)])  # by t; level = 3 - t
        self.scale = scale

    def reversal(self, marginals: list[Tensor], t: int) -> Tensor:
        """p(x_t | x_{t+1}), rows x_{t+1}."""
        return (marginals[t][:, None] * self.kernels[t] / marginals[t + 1]).T

    def cost(self, level):
        return 1

    def random(self, level):
        return True

    @staticmethod
    def _pick(probabilities, noise, draw):
        u = torch.special.ndtr(noise.normal(draw, (1,), F64))
        return (u > probabilities.cumsum(1)).sum(1).clamp(max=3)

    def prior(self, noise, draw):
        return self._pick(self.p[3].expand(len(draw), 4), noise, draw)

    def step(self, x, level, noise, draw, condition):
        table = torch.stack([self.reversal(self.p, 2 - i) for i in range(3)])
        return self._pick(table[level, x], noise, draw)

    def forward(self, x, level, to, noise, draw):
        probabilities = torch.nn.functional.one_hot(x, 4).to(F64)
        for i in range(3, 0, -1):
            crossed = (level >= i) & (to < i)
            probabilities[crossed] = probabilities[crossed] @ self.kernels[3 - i]
        return self._pick(probabilities, noise, draw)

    def log_ratio(self, x, level, condition):
        return self.scale * self.ratio[3 - level, x].log()


def constants(transition, marginal):
    """From values by t = 0 ... : stored by level, noisiest first."""
    return Constants(
        torch.tensor([1.0, *reversed(transition)], dtype=F64).log(),
        torch.tensor([*reversed(marginal)], dtype=F64).log(),
    )


SUPREMUM = constants((11.3846154, 5.1486603, 2.2800455), (4.0, 2.8461538, 1.8089888, 1.2603978))
PERCENTILE_90 = constants((1.4054054, 1.5733397, 1.5280929), (4.0, 2.8461538, 1.8089888, 1.2603978))

REAL = GaussianMixture([0.5, 0.5], [[-0.5], [0.5]], 0.01)
MODEL = GaussianMixture([0.2, 0.8], [[-0.5], [0.5]], 0.01)


def numbers(text: str) -> Tensor:
    return torch.tensor([float(v) for v in text.split()], dtype=F64)


HEUN_CONSTANTS = Constants(
    numbers("0 .002 .003 .004 .006 .010 .016 .026 .045 .078 .142 .261 .254 .006 0 0 0 0 0"),
    numbers(".005 .007 .010 .014 .020 .030 .046 .073 .117 .196 .338 .617 .909 .916 .916 .916 .916 .916 .916"),
)
STRICT_CONSTANTS = Constants(
    numbers("0 .006 .009 .013 .018 .027 .04 .062 .1 .16 .27 .45 .9 1.0 .4 .02 0 0 0"),
    numbers(".01 .013 .018 .025 .036 .052 .078 .12 .18 .27 .42 .65 .88 .916 .916 .916 .916 .916 .916"),
)


def heun_chain(churn: float = 0.0, scale: float = 1.0) -> SamplerChain:
    return SamplerChain(EDMHeun(18, churn=churn), MODEL.denoiser(EDM()), TruthCritic(REAL, MODEL, EDM(), scale))
