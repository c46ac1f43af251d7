r"""Which noise levels a diffusers-style configuration visits, with every one of diffusers' spacings.

Levels are placed at (fractional) nodes n of the table of betas; between nodes log alpha is linear, as everywhere in trueward.
The time input of the network is n itself, so a level that lies between two nodes is told to the network exactly and never
rounded. The last step goes to the data ("zero") or to the first node ("sigma_min").
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from trueward.integrations.scheduler_config import SPACINGS, alphas_cumprod
from trueward.naming import check_name
from trueward.schedules import DiscreteSchedule
from trueward.times import Karras, Levels, UniformLogSNR

ALL_SPACINGS = (*SPACINGS, "log_snr", "karras")
FINALS = ("zero", "sigma_min")
_SMALLEST = 2.0**-24  # alpha^2 of a last node without signal: no sampler can start from log-SNR = -infinity


def whole_schedule(config: Mapping[str, Any]) -> DiscreteSchedule:
    """The process of a configuration with all its nodes."""
    product = alphas_cumprod(config)
    if product[-1] <= 0:
        product[-1] = min(_SMALLEST, 0.25 * float(product[-2]))
    return DiscreteSchedule.from_alphas_cumprod(product, half_log_snr_clip=-np.inf)


def spacing_of(config: Mapping[str, Any]) -> str:
    """The spacing that a configuration asks for: one of `ALL_SPACINGS`."""
    if config.get("use_karras_sigmas"):
        return "karras"
    if config.get("use_lu_lambdas") or config.get("use_exponential_sigmas"):  # two names of the same
        return "log_snr"
    return check_name("timestep_spacing", config.get("timestep_spacing", "linspace"), ALL_SPACINGS)


def multistep_nodes(config: Mapping[str, Any], schedule: DiscreteSchedule, steps: int) -> NDArray[np.float64]:
    """The nodes n, noisiest first, (steps,), that solvers of DPM-Solver's kind visit before the last level.

    With M the nodes that `lambda_min_clipped` leaves: linspace and leading are the first `steps` of `steps` + 1 evenly spaced
    nodes down to 0; trailing goes down from M - 1 in strides of N / steps; log_snr and karras are even in log-SNR and in
    (sigma / alpha)^(1/7) from node M - 1 to node 0, which is the last of them only if the data themselves come after it.

    Raises:
        ValueError: fewer steps than one, or more than there are nodes.
    """
    total, kept = schedule.nodes, schedule.nodes
    lowest = config.get("lambda_min_clipped")
    if lowest is not None and np.isfinite(float(lowest)):
        half_log_snr = 0.5 * schedule.log_snr(schedule.time_of_node(torch.arange(total))).numpy()
        kept = int((half_log_snr >= float(lowest)).sum())
    if not 1 <= steps < kept + 1:
        raise ValueError(f"num_inference_steps must lie in 1 ... {kept}, the number of nodes, got {steps}.")
    spacing = spacing_of(config)
    if spacing in ("log_snr", "karras"):
        end_at_data = config.get("final_sigmas_type", "zero") == "zero"
        cells = steps - 1 if end_at_data else steps
        start, end = (schedule.time_of_node(n).item() for n in (kept - 1, 0))
        grid = UniformLogSNR() if spacing == "log_snr" else Karras()
        return (grid(schedule, cells, start, end) * total - 1.0)[:steps]
    if spacing == "linspace":
        nodes: Any = np.round(np.linspace(0, kept - 1, steps + 1))[:0:-1]
    elif spacing == "leading":
        nodes = np.arange(steps, 0, -1, dtype=np.float64) * (kept // (steps + 1)) + int(config.get("steps_offset", 0))
    else:
        nodes = np.round(kept - np.arange(steps) * (total / steps)) - 1.0
        nodes = nodes[nodes >= 0]
    if len(set(nodes.tolist())) < len(nodes):
        raise ValueError(
            f"{steps} steps of timestep_spacing={spacing!r} visit a node twice: take fewer steps, or log_snr or karras spacing."
        )
    return nodes.astype(np.float64)


def levels_at(schedule: DiscreteSchedule, nodes: np.ndarray, final: str) -> Levels:
    """The levels at these nodes and the one that the last step leads to."""
    times = (nodes + 1.0) / schedule.nodes
    if final == "zero":
        return Levels.of(schedule, times, clean=True)
    return Levels.of(schedule, np.append(times, schedule.t_min))
