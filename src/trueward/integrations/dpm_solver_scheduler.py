r"""Multistep DPM-Solver as a diffusers scheduler; the formulas are those of :mod:`trueward.samplers.dpm_multistep`."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from trueward.integrations.scheduler import TruewardScheduler, TruewardSchedulerOutput, split
from trueward.integrations.visited_levels import FINALS, multistep_nodes, spacing_of
from trueward.naming import check_name
from trueward.samplers.exponential import (
    clean_weights,
    first_order,
    ode_interval,
    sde_interval,
    sde_std,
    second_order_multistep,
    third_order_multistep,
)
from trueward.times import Levels

from diffusers.configuration_utils import register_to_config  # isort: skip
from diffusers.schedulers.scheduling_utils import SchedulerMixin  # noqa: F401  # isort: skip  # diffusers looks for it here
from diffusers.utils.torch_utils import randn_tensor  # isort: skip

FORMS = {"dpmsolver": "noise", "dpmsolver++": "data", "sde-dpmsolver++": "data"}
SOLVER_TYPES = {"midpoint": "dpmsolver", "heun": "taylor"}


class TruewardDPMSolverScheduler(TruewardScheduler):
    """Multistep DPM-Solver (noise form), DPM-Solver++ (data form) and its SDE (Lu et al. 2022).

    On the same timesteps it computes what diffusers' DPMSolverMultistepScheduler computes, except where that one is not what
    it says: third order is third order (``third_order="reference"`` restores the usual one, which is of second order), and
    the noise form may end at the data.

    Args:
        num_train_timesteps, beta_start, beta_end, beta_schedule, trained_betas, rescale_betas_zero_snr: the table.
        solver_order: 1, 2 or 3.
        prediction_type: epsilon, sample or v_prediction.
        thresholding, dynamic_thresholding_ratio, sample_max_value: dynamic thresholding, data form only.
        algorithm_type: dpmsolver, dpmsolver++ or sde-dpmsolver++ (orders 1 and 2).
        solver_type: midpoint or heun, two variants of order 2.
        third_order: consistent or reference.
        lower_order_final: runs of fewer than 15 steps end with orders 2 and 1.
        euler_at_final: the last step is of order 1.
        timestep_spacing: linspace, leading, trailing, log_snr or karras; the three switches use_* ask for the last two.
        steps_offset: added to leading timesteps.
        lambda_min_clipped: nodes of lower half-log-SNR are not visited; -5.1 suits cosine tables.
        final_sigmas_type: zero (the data) or sigma_min (the first node).
    """

    citation: ClassVar[tuple[str, ...]] = ("lu2022dpmsolver", "lu2022dpmsolverpp")

    @register_to_config
    def __init__(
        self,
        num_train_timesteps: int = 1000,
        beta_start: float = 0.0001,
        beta_end: float = 0.02,
        beta_schedule: str = "linear",
        trained_betas: list[float] | None = None,
        solver_order: int = 2,
        prediction_type: str = "epsilon",
        thresholding: bool = False,
        dynamic_thresholding_ratio: float = 0.995,
        sample_max_value: float = 1.0,
        algorithm_type: str = "dpmsolver++",
        solver_type: str = "midpoint",
        third_order: str = "consistent",
        lower_order_final: bool = True,
        euler_at_final: bool = False,
        use_karras_sigmas: bool = False,
        use_exponential_sigmas: bool = False,
        use_lu_lambdas: bool = False,
        final_sigmas_type: str = "zero",
        lambda_min_clipped: float | None = None,
        timestep_spacing: str = "linspace",
        steps_offset: int = 0,
        rescale_betas_zero_snr: bool = False,
    ) -> None:
        check_name("algorithm_type", algorithm_type, FORMS)
        check_name("solver_type", solver_type, SOLVER_TYPES)
        check_name("third_order", third_order, ("consistent", "reference"))
        check_name("final_sigmas_type", final_sigmas_type, FINALS)
        spacing_of(self.config)
        highest = 2 if algorithm_type.startswith("sde") else 3
        if solver_order not in range(1, highest + 1):
            raise ValueError(f"solver_order of {algorithm_type} must lie in 1 ... {highest}, got {solver_order}.")
        if thresholding and FORMS[algorithm_type] == "noise":
            raise ValueError(
                "thresholding acts on the predicted data: it needs an algorithm_type of data form, dpmsolver++."
            )
        self._prepare()

    def _place(self, steps: int) -> np.ndarray:
        return multistep_nodes(self.config, self.schedule, steps)

    @property
    def _final(self) -> str:
        return self.config.final_sigmas_type

    def _forget(self) -> None:
        self._answers: list[Tensor] = []  # newest first
        self._weights: dict[tuple[int, int], tuple[float, ...]] = {}

    def _order(self, index: int) -> int:
        """The order of the step that leaves level `index`."""
        steps = len(self.timesteps)
        order = min(self.config.solver_order, len(self._answers))
        if self.config.lower_order_final and steps < 15:
            order = min(order, steps - index)
        if index == steps - 1 and (self.config.euler_at_final or self.levels.sigma[-1] == 0):
            order = 1
        return order

    def _weights_of(self, index: int, order: int) -> tuple[float, ...]:
        """Weights of x, m_0, m_{-1}, ... in the step that leaves level `index`."""
        key = (index, order)
        if key not in self._weights:
            form, sde = FORMS[self.config.algorithm_type], self.config.algorithm_type.startswith("sde")
            s, t = self._level(index), self._level(index + 1)
            if t.sigma[0] == 0:
                weights: Any = clean_weights(form, s)
            else:
                step = sde_interval(s, t) if sde else ode_interval(form, s, t)
                half_log_snr = self.levels.half_log_snr
                h = half_log_snr[index + 1] - half_log_snr[index]
                r = [(half_log_snr[index - j] - half_log_snr[index - j - 1]) / h for j in range(order - 1) if h > 0]
                if order == 1 or h == 0:
                    weights = first_order(step)
                elif order == 2:
                    weights = second_order_multistep(step, r[0], SOLVER_TYPES[self.config.solver_type])
                else:
                    q = 2.0 if self.config.third_order == "consistent" else 1.0
                    weights = third_order_multistep(step, r[0], r[1], q)
            self._weights[key] = tuple(float(np.asarray(w).reshape(-1)[0]) for w in weights)
        return self._weights[key]

    def _level(self, index: int) -> Levels:
        which = slice(index, index + 1)
        return Levels(self.levels.t[which], self.levels.alpha[which], self.levels.sigma[which])

    def step(
        self,
        model_output: Tensor,
        timestep: float | Tensor,
        sample: Tensor,
        generator: Any = None,
        variance_noise: Tensor | None = None,
        return_dict: bool = True,
    ) -> TruewardSchedulerOutput | tuple[Tensor]:
        """One step.

        Args:
            model_output: (batch, channels, ...), the network's raw answer; doubled channels are read by their first half.
            timestep: where `sample` stands; only the first one of a run is looked at.
            sample: the state.
            generator: of the noise of the SDE.
            variance_noise: that noise itself.
            return_dict: False returns a tuple of the next state.
        """
        index = self._advance(timestep)
        x = sample.to(torch.promote_types(sample.dtype, torch.float32))
        mean, eps = self._predicted(split(model_output, sample)[0], x, index)
        if self.config.thresholding:
            mean = self._threshold(mean)
        self._answers.insert(0, eps if FORMS[self.config.algorithm_type] == "noise" else mean)
        del self._answers[self.config.solver_order :]
        of_x, *of_answers = self._weights_of(index, self._order(index))
        following = of_x * x
        for weight, answer in zip(of_answers, self._answers):
            following = following.add(answer, alpha=weight)
        if self.config.algorithm_type.startswith("sde") and self.levels.sigma[index + 1] > 0:
            std = float(sde_std(self._level(index), self._level(index + 1))[0])
            if variance_noise is None:
                variance_noise = randn_tensor(x.shape, generator=generator, device=x.device, dtype=x.dtype)
            following = following.add(variance_noise.to(x), alpha=std)
        following = following.to(sample.dtype)
        return TruewardSchedulerOutput(following, mean.to(sample.dtype)) if return_dict else (following,)
