"""trueward: move generative models toward the true distribution.

Train score-based and diffusion models from imperfect data, sample them in few steps, correct a trained model where it is
wrong, and measure how far it still is from the truth::

    import trueward

    denoiser = trueward.load("digits")
    samples = trueward.sampler("dpm-solver++", steps=10).sample(denoiser, n=16, seed=0)

Public names are imported when they are first used, so ``import trueward`` is instant and no optional library is touched.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from trueward.citations import citations
from trueward.methods import method, methods
from trueward.version import __version__

if TYPE_CHECKING:
    from trueward.certification import Certificate as Certificate
    from trueward.certification import certify as certify
    from trueward.checking import check as check
    from trueward.covariance import AnalyticCovariance as AnalyticCovariance
    from trueward.covariance import NPRCovariance as NPRCovariance
    from trueward.covariance import SNCovariance as SNCovariance
    from trueward.covariance import estimate_gamma as estimate_gamma
    from trueward.covariance import with_covariance as with_covariance
    from trueward.critics import Critic as Critic
    from trueward.critics import with_critic as with_critic
    from trueward.data import Dataset as Dataset
    from trueward.data import load_data as load_data
    from trueward.denoisers import ClassifierFreeGuidance as ClassifierFreeGuidance
    from trueward.denoisers import ClassifierGuidance as ClassifierGuidance
    from trueward.denoisers import DataDenoiser as DataDenoiser
    from trueward.denoisers import Denoiser as Denoiser
    from trueward.denoisers import EDMDenoiser as EDMDenoiser
    from trueward.denoisers import EpsDenoiser as EpsDenoiser
    from trueward.denoisers import FlowDenoiser as FlowDenoiser
    from trueward.denoisers import Posterior as Posterior
    from trueward.denoisers import ScoreDenoiser as ScoreDenoiser
    from trueward.denoisers import VDenoiser as VDenoiser
    from trueward.denoisers import denoiser as denoiser
    from trueward.designs import design as design
    from trueward.drawing import Drawing as Drawing
    from trueward.fitting import fit_critic as fit_critic
    from trueward.integrations import from_k_diffusion as from_k_diffusion
    from trueward.integrations import from_pipeline as from_pipeline
    from trueward.integrations import load_pipeline as load_pipeline
    from trueward.integrations import to_k_diffusion as to_k_diffusion
    from trueward.integrations import to_pipeline as to_pipeline
    from trueward.likelihood import elbo as elbo
    from trueward.loading import load as load
    from trueward.loading import save_run as save_run
    from trueward.loading import zoo_names as zoo_names
    from trueward.metrics import evaluate as evaluate
    from trueward.networks import MLP as MLP
    from trueward.networks import UNet as UNet
    from trueward.networks import network as network
    from trueward.networks import register_network as register_network
    from trueward.noise import Noise as Noise
    from trueward.objectives import DSM as DSM
    from trueward.objectives import Objective as Objective
    from trueward.refinement import DiffRS as DiffRS
    from trueward.refinement import DiscriminatorGuidance as DiscriminatorGuidance
    from trueward.refinement import RefinedSampler as RefinedSampler
    from trueward.reports import Comparison as Comparison
    from trueward.reports.compare import compare as compare
    from trueward.runs import continue_run as continue_run
    from trueward.runs import start_run as start_run
    from trueward.sampler_specs import SamplerSpec as SamplerSpec
    from trueward.sampler_specs import register_correction as register_correction
    from trueward.samplers import DDIM as DDIM
    from trueward.samplers import Ancestral as Ancestral
    from trueward.samplers import DPMSolver as DPMSolver
    from trueward.samplers import DPMSolverAdaptive as DPMSolverAdaptive
    from trueward.samplers import DPMSolverFast as DPMSolverFast
    from trueward.samplers import DPMSolverMultistep as DPMSolverMultistep
    from trueward.samplers import DPMSolverSDE as DPMSolverSDE
    from trueward.samplers import DPMSolverSinglestep as DPMSolverSinglestep
    from trueward.samplers import EDMHeun as EDMHeun
    from trueward.samplers import ProbabilityFlow as ProbabilityFlow
    from trueward.samplers import Sampler as Sampler
    from trueward.samplers import Samples as Samples
    from trueward.samplers import Step as Step
    from trueward.samplers import register_sampler as register_sampler
    from trueward.samplers import sampler as sampler
    from trueward.samplers import sampler_names as sampler_names
    from trueward.schedules import EDM as EDM
    from trueward.schedules import VE as VE
    from trueward.schedules import DiscreteSchedule as DiscreteSchedule
    from trueward.schedules import FlowMatching as FlowMatching
    from trueward.schedules import Schedule as Schedule
    from trueward.schedules import VPCosine as VPCosine
    from trueward.schedules import VPLinear as VPLinear
    from trueward.schedules import schedule as schedule
    from trueward.schedules import schedule_names as schedule_names
    from trueward.shards import ShardFolder as ShardFolder
    from trueward.shards import sample_to_folder as sample_to_folder
    from trueward.times import EvenNodes as EvenNodes
    from trueward.times import Karras as Karras
    from trueward.times import QuadraticTime as QuadraticTime
    from trueward.times import TimeGrid as TimeGrid
    from trueward.times import Times as Times
    from trueward.times import UniformLogSNR as UniformLogSNR
    from trueward.times import UniformTime as UniformTime
    from trueward.times import time_grid as time_grid
    from trueward.times import time_grid_names as time_grid_names
    from trueward.training import EMA as EMA
    from trueward.training import Trainer as Trainer
    from trueward.training import TrainingConfig as TrainingConfig
    from trueward.training import recipe as recipe
    from trueward.training import train as train

_NAMES = {
    "schedules": "Schedule VPLinear VPCosine VE EDM DiscreteSchedule FlowMatching schedule schedule_names",
    "denoisers": "Denoiser Posterior EpsDenoiser DataDenoiser VDenoiser ScoreDenoiser EDMDenoiser FlowDenoiser denoiser ClassifierFreeGuidance ClassifierGuidance",
    "times": "TimeGrid UniformLogSNR UniformTime QuadraticTime Karras EvenNodes Times time_grid time_grid_names",
    "noise": "Noise",
    "samplers": "Sampler Samples Step Ancestral DDIM EDMHeun ProbabilityFlow DPMSolver DPMSolverMultistep DPMSolverSDE DPMSolverSinglestep DPMSolverFast DPMSolverAdaptive sampler sampler_names register_sampler",
    "training": "Trainer TrainingConfig EMA train recipe",
    "loading": "load save_run zoo_names",
    "data": "Dataset load_data",
    "certification": "certify Certificate",
    "networks": "UNet MLP network register_network",
    "objectives": "Objective DSM",
    "reports": "Comparison",
    "reports.compare": "compare",
    "critics": "Critic with_critic",
    "fitting": "fit_critic",
    "integrations": "from_pipeline load_pipeline to_pipeline from_k_diffusion to_k_diffusion",
    "refinement": "DiscriminatorGuidance DiffRS RefinedSampler",
    "covariance": "AnalyticCovariance SNCovariance NPRCovariance estimate_gamma with_covariance",
    "likelihood": "elbo",
    "designs": "design",
    "sampler_specs": "SamplerSpec register_correction",
    "drawing": "Drawing",
    "shards": "sample_to_folder ShardFolder",
    "runs": "start_run continue_run",
    "metrics": "evaluate",
    "checking": "check",
}
_HOME = {name: module for module, names in _NAMES.items() for name in names.split()}
_ROOMS = (
    "certification",
    "covariance",
    "critics",
    "data",
    "denoisers",
    "integrations",
    "likelihood",
    "loading",
    "metrics",
    "networks",
    "noise",
    "objectives",
    "refinement",
    "reports",
    "reproduce",
    "samplers",
    "schedules",
    "times",
    "training",
    "truth",
    "zoo",
)

__all__ = ["__version__", "citations", "method", "methods", *_HOME, *_ROOMS]


def __getattr__(name: str) -> Any:
    if name in _ROOMS:
        return importlib.import_module(f"{__name__}.{name}")
    if name in _HOME:
        value = getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
        globals()[name] = value  # found without this function the next time
        return value
    import difflib

    close = difflib.get_close_matches(name, __all__, n=1)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}.{hint}", name=name)


def __dir__() -> list[str]:
    return sorted(__all__)
