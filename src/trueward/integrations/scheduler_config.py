r"""What a diffusers scheduler's configuration says: the forward process, the prediction, the nodes that are visited.

The process is x_n = sqrt(abar_n) x_0 + sqrt(1 - abar_n) eps for n = 0 ... N-1, abar_n = prod_{i<=n} (1 - beta_i), with betas

    linear              beta from b_0 to b_1
    scaled_linear       sqrt(beta) from sqrt(b_0) to sqrt(b_1)                      (Rombach et al. 2022)
    squaredcos_cap_v2   beta_n = min(1 - f((n+1)/N)/f(n/N), 0.999)                  (Nichol and Dhariwal 2021)
    sigmoid             beta = b_0 + (b_1 - b_0) sigmoid(u), u from -6 to 6

and with a zero terminal SNR the roots r_n = sqrt(abar_n) are stretched to end in 0 (Lin et al. 2024, algorithm 1):

    r'_n = (r_n - r_{N-1}) r_0 / (r_0 - r_{N-1})

The network's time input is the integer n. diffusers computes these tables in float32, trueward in float64.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from trueward.naming import check_name, look_up
from trueward.schedules import EDM, DiscreteSchedule, FlowMatching, Schedule

PREDICTIONS = {"epsilon": "eps", "sample": "x0", "v_prediction": "v", "flow_prediction": "flow"}
SPACINGS = ("leading", "linspace", "trailing")


def _linear(n: int, start: float, end: float) -> Tensor:
    return torch.linspace(start, end, n, dtype=torch.float64)


_BETAS = {
    "linear": _linear,
    "scaled_linear": lambda n, start, end: _linear(n, start**0.5, end**0.5) ** 2,
    "squaredcos_cap_v2": lambda n, start, end: torch.tensor(DiscreteSchedule.cosine(n).betas, dtype=torch.float64),
    "sigmoid": lambda n, start, end: start + (end - start) * torch.sigmoid(_linear(n, -6.0, 6.0)),
}


def configuration(scheduler: Any) -> dict[str, Any]:
    """The configuration of a scheduler, as a plain dictionary; a mapping passes through."""
    if isinstance(scheduler, Mapping):
        return dict(scheduler)
    return {"_class_name": type(scheduler).__name__, **scheduler.config}


def alphas_cumprod(config: Mapping[str, Any]) -> Tensor:
    """abar_0 ... abar_{N-1}, float64.

    Args:
        config: num_train_timesteps, beta_start, beta_end, beta_schedule, trained_betas, rescale_betas_zero_snr, with
            diffusers' defaults for what is missing.
    """
    trained = config.get("trained_betas")
    if trained is not None:
        betas = torch.as_tensor(np.asarray(trained), dtype=torch.float64)
    else:
        make = look_up("beta_schedule", config.get("beta_schedule", "linear"), _BETAS)
        n = int(config.get("num_train_timesteps", 1000))
        betas = make(n, float(config.get("beta_start", 1e-4)), float(config.get("beta_end", 0.02)))
    product = torch.exp(torch.cumsum(torch.log1p(-betas), 0))
    if config.get("rescale_betas_zero_snr"):
        root = product.sqrt()
        root = (root - root[-1]) * (root[0] / (root[0] - root[-1]))
        product = root**2
    return product


def schedule_of(scheduler: Any, half_log_snr_clip: float = -5.1) -> Schedule:
    """The forward process of a diffusers scheduler (or of its configuration).

    Args:
        scheduler: any scheduler with a table of betas, an EDM scheduler, or a flow-matching one.
        half_log_snr_clip: nodes noisier than this are not visited (see :class:`~trueward.DiscreteSchedule`); the network
            is still asked with the integers it was trained on.
    """
    config = configuration(scheduler)
    if is_flow(config):
        return FlowMatching(label_scale=float(config.get("num_train_timesteps", 1000)))
    if is_edm(config):
        return EDM(float(config["sigma_min"]), float(config["sigma_max"]))
    return DiscreteSchedule.from_alphas_cumprod(alphas_cumprod(config), half_log_snr_clip=half_log_snr_clip)


def is_edm(config: Mapping[str, Any]) -> bool:
    """Does the configuration describe EDM's preconditioned network (it has sigma_data)?"""
    return "sigma_data" in config


def is_flow(config: Mapping[str, Any]) -> bool:
    """Does the configuration describe straight lines x_t = (1 - t) x_0 + t eps?"""
    name = str(config.get("_class_name", ""))
    return name.startswith("FlowMatch") or bool(config.get("use_flow_sigmas"))


def prediction_of(scheduler: Any) -> str:
    """What the network predicts, in trueward's words: eps, x0, v, flow or edm."""
    config = configuration(scheduler)
    if is_flow(config):
        return "flow"
    if is_edm(config):
        if config.get("prediction_type", "epsilon") != "epsilon":
            raise ValueError(f"An EDM scheduler with prediction_type={config['prediction_type']!r} is not supported.")
        return "edm"
    return look_up("prediction_type", config.get("prediction_type", "epsilon"), PREDICTIONS)


def visited_nodes(config: Mapping[str, Any], steps: int) -> np.ndarray:
    """The integers n that DDPM and DDIM schedulers of this configuration visit, noisiest first, (steps,) int64.

    With the stride r = N / steps: leading n = 0, [r], 2[r], ... plus `steps_offset`; trailing n = N-1, N-1-r, ...; linspace
    from 0 to N-1.
    """
    nodes = int(config.get("num_train_timesteps", 1000))
    if not 1 <= steps <= nodes:
        raise ValueError(f"steps must lie in 1 ... {nodes}, the length of the table, got {steps}.")
    spacing = check_name("timestep_spacing", config.get("timestep_spacing", "leading"), SPACINGS)
    if spacing == "leading":
        return np.arange(steps)[::-1] * (nodes // steps) + int(config.get("steps_offset", 0))
    if spacing == "trailing":
        return np.round(nodes - np.arange(steps) * (nodes / steps)).astype(np.int64) - 1
    return np.round(np.linspace(0, nodes - 1, steps)).astype(np.int64)[::-1]


def times_of_nodes(schedule: DiscreteSchedule, nodes: np.ndarray) -> tuple[float, ...]:
    """The times of these nodes, for :class:`~trueward.Times`: a sampler on that grid visits what the scheduler visits.

    Raises:
        ValueError: if the schedule has dropped one of them as too noisy.
    """
    if nodes.max() >= schedule.nodes:
        raise ValueError(
            f"Node {int(nodes.max())} is noisier than half_log_snr_clip={schedule.half_log_snr_clip} allows; the last node kept is {schedule.nodes - 1}."
        )
    return tuple(schedule.time_of_node(torch.as_tensor(nodes.copy())).tolist())
