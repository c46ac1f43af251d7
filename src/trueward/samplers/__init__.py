"""From noise to data: every sampler of trueward, by class or by name.

A sampler is an immutable set of options; `sampler.sample(denoiser, n=...)` draws with exact accounting of network
evaluations, and `sampler.step` takes single steps for those who drive it themselves.
"""

from trueward.samplers.ancestral import DDIM, Ancestral
from trueward.samplers.sampler import Plan, Run, Sampler, Samples, Step, Table, Transition, combine

__all__ = ["DDIM", "Ancestral", "Plan", "Run", "Sampler", "Samples", "Step", "Table", "Transition", "combine"]
