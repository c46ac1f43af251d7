"""From noise to data: every sampler of trueward, by class or by name.

A sampler is an immutable set of options; `sampler.sample(denoiser, n=...)` draws with exact accounting of network
evaluations, and `sampler.step` takes single steps for those who drive it themselves.
"""

from trueward.samplers.ancestral import DDIM, Ancestral
from trueward.samplers.dpm_adaptive import DPMSolverAdaptive
from trueward.samplers.dpm_multistep import DPMSolverMultistep, DPMSolverSDE
from trueward.samplers.dpm_singlestep import DPMSolverFast, DPMSolverSinglestep
from trueward.samplers.dpm_solver import DPMSolver
from trueward.samplers.edm import EDMHeun
from trueward.samplers.plan import Plan, Table, combine
from trueward.samplers.probability_flow import ProbabilityFlow
from trueward.samplers.registry import register_sampler, sampler, sampler_names
from trueward.samplers.run import Run, Samples, Step, Transition
from trueward.samplers.sampler import NonFiniteSamples, Sampler
from trueward.samplers.thresholding import DynamicThresholding, StaticThresholding, Thresholding

__all__ = [
    "DDIM",
    "Ancestral",
    "DPMSolver",
    "DPMSolverAdaptive",
    "DPMSolverFast",
    "DPMSolverMultistep",
    "DPMSolverSDE",
    "DPMSolverSinglestep",
    "DynamicThresholding",
    "EDMHeun",
    "NonFiniteSamples",
    "Plan",
    "ProbabilityFlow",
    "Run",
    "Sampler",
    "Samples",
    "StaticThresholding",
    "Step",
    "Table",
    "Thresholding",
    "Transition",
    "combine",
    "register_sampler",
    "sampler",
    "sampler_names",
]
