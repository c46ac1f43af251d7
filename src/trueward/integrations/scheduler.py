r"""Our samplers as diffusers schedulers: ``pipe.scheduler = TruewardDPMSolverScheduler.from_config(pipe.scheduler.config)``.

A scheduler is told the network's raw answer and returns the next state; the configuration has diffusers' keys, so that any
scheduler's configuration can be taken over. Coefficients are those of :mod:`trueward.samplers`, in float64; the state is
computed in float32 or better whatever the pipeline's dtype. Levels between two nodes are told to the network as they are, not rounded.

    dpm_solver_scheduler    DPM-Solver and DPM-Solver++, multistep, orders 1 ... 3, third order consistent; SDE form
    ancestral_scheduler     DDPM, DDIM and what lies between, with the step's variance from a table or the network

These modules need diffusers, and are imported when one of their names is first used.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from trueward.integrations.peers import peer
from trueward.integrations.scheduler_config import PREDICTIONS
from trueward.integrations.visited_levels import levels_at, whole_schedule
from trueward.naming import check_name
from trueward.samplers.thresholding import upper_quantile

peer("diffusers")
from diffusers.configuration_utils import ConfigMixin  # noqa: E402
from diffusers.schedulers.scheduling_utils import KarrasDiffusionSchedulers, SchedulerMixin  # noqa: E402
from diffusers.utils import BaseOutput  # noqa: E402


@dataclass
class TruewardSchedulerOutput(BaseOutput):
    """The next state, and the prediction of the data that led there."""

    prev_sample: Tensor
    pred_original_sample: Tensor | None = None


class TruewardScheduler(SchedulerMixin, ConfigMixin):  # type: ignore[misc]
    """What both schedulers share: the table, the timesteps, the network's answer, noising, the place in the middle."""

    _compatibles = [e.name for e in KarrasDiffusionSchedulers]  # noqa: RUF012
    config: Any  # registered by the constructor, as diffusers has it
    order = 1
    init_noise_sigma = 1.0

    def _prepare(self) -> None:
        """Called at the end of a constructor, when the configuration is registered."""
        check_name("prediction_type", self.config.prediction_type, ("epsilon", "sample", "v_prediction"))
        self.schedule = whole_schedule(self.config)
        t = self.schedule.time_of_node(torch.arange(self.schedule.nodes))
        self.alphas_cumprod = (self.schedule.alpha(t) ** 2).float()
        self.betas = torch.tensor(self.schedule.betas, dtype=torch.float32)
        self.num_inference_steps: int | None = None
        self._set_levels(np.arange(self.schedule.nodes, dtype=np.float64)[::-1], None)

    def __len__(self) -> int:
        return self.schedule.nodes

    # --- timesteps ----------------------------------------------------------------------------------------------------

    def _place(self, steps: int) -> np.ndarray:
        """The nodes of `steps` steps."""
        raise NotImplementedError

    @property
    def _final(self) -> str:
        """Where the last step leads: zero or sigma_min."""
        raise NotImplementedError

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: str | torch.device | None = None,
        timesteps: list[float] | None = None,
    ) -> None:
        """Chooses the levels to visit.

        Args:
            num_inference_steps: number of steps; or
            timesteps: the nodes themselves, falling, whole or fractional.
            device: of `timesteps`.
        """
        if (num_inference_steps is None) == (timesteps is None):
            raise ValueError("Give num_inference_steps or timesteps, and not both.")
        if timesteps is None:
            assert num_inference_steps is not None
            nodes = self._place(int(num_inference_steps))
        else:
            nodes = np.asarray(timesteps, dtype=np.float64)
            top = self.schedule.nodes - 1
            if nodes.ndim != 1 or not nodes.size or (np.diff(nodes) >= 0).any() or nodes[-1] < 0 or nodes[0] > top:
                raise ValueError(f"timesteps must fall strictly and lie in 0 ... {top}, got {list(timesteps)[:8]}.")
        self.num_inference_steps = len(nodes)
        self._set_levels(nodes, device)

    def _set_levels(self, nodes: np.ndarray, device: str | torch.device | None) -> None:
        self.levels = levels_at(self.schedule, nodes, self._final)
        whole = bool((nodes == np.round(nodes)).all())
        self.timesteps = torch.as_tensor(nodes.copy()).to(torch.int64 if whole else torch.float32).to(device)
        self.sigmas = torch.as_tensor(self.levels.sigma / self.levels.alpha).float()
        self._step_index: int | None = None
        self._begin_index: int | None = None
        self._forget()

    def _forget(self) -> None:
        """Empties what a new run must not see."""

    @property
    def step_index(self) -> int | None:
        """The level the next step leaves, once the first step was taken."""
        return self._step_index

    @property
    def begin_index(self) -> int | None:
        """The level the run starts from, if it was set."""
        return self._begin_index

    def set_begin_index(self, begin_index: int = 0) -> None:
        """Starts the run at this level: image-to-image pipelines start in the middle."""
        self._begin_index = begin_index
        self._step_index = None
        self._forget()

    def index_for_timestep(self, timestep: float | Tensor, schedule_timesteps: Tensor | None = None) -> int:
        """The level of a timestep; the closest one if it is none."""
        known = self.timesteps if schedule_timesteps is None else schedule_timesteps
        return int((known.double() - float(timestep)).abs().argmin())

    def _advance(self, timestep: float | Tensor) -> int:
        """The level of this step; the next call gets the next one."""
        if self.num_inference_steps is None:
            raise ValueError("Call set_timesteps before step.")
        if self._step_index is None:
            begin = self._begin_index
            self._step_index = self.index_for_timestep(timestep) if begin is None else begin
        index = self._step_index
        if index >= len(self.timesteps):
            raise ValueError(f"All {len(self.timesteps)} steps are made: call set_timesteps to start again.")
        self._step_index = index + 1
        return index

    # --- the process --------------------------------------------------------------------------------------------------

    def scale_model_input(self, sample: Tensor, timestep: Any = None) -> Tensor:
        """The state itself: the network is given x_t."""
        return sample

    def _noise_level(self, timesteps: Any, like: Tensor) -> tuple[Tensor, Tensor]:
        t = (torch.as_tensor(timesteps).to("cpu", torch.float64).flatten() + 1.0) / self.schedule.nodes
        view = (-1,) + (1,) * (like.ndim - 1)
        return tuple(f(t).view(view).to(like.device, like.dtype) for f in (self.schedule.alpha, self.schedule.sigma))  # type: ignore[return-value]

    def add_noise(self, original_samples: Tensor, noise: Tensor, timesteps: Any) -> Tensor:
        """alpha x_0 + sigma noise at these timesteps, (batch,) or (1,)."""
        alpha, sigma = self._noise_level(timesteps, original_samples)
        return alpha * original_samples + sigma * noise

    def get_velocity(self, sample: Tensor, noise: Tensor, timesteps: Any) -> Tensor:
        """The target of v prediction, alpha noise - sigma x_0."""
        alpha, sigma = self._noise_level(timesteps, sample)
        return alpha * noise - sigma * sample

    def _predicted(self, answer: Tensor, x: Tensor, index: int) -> tuple[Tensor, Tensor]:
        """(mean, eps) of the raw answer."""
        alpha, sigma = float(self.levels.alpha[index]), float(self.levels.sigma[index])
        kind = PREDICTIONS[self.config.prediction_type]
        if kind == "eps":
            return (x - sigma * answer) / alpha, answer
        if kind == "x0":
            return answer, (x - alpha * answer) / sigma
        return alpha * x - sigma * answer, sigma * x + alpha * answer

    def _threshold(self, mean: Tensor) -> Tensor:
        """Dynamic thresholding: s between 1 and `sample_max_value`, then clamp to [-s, s] and divide by s."""
        s = upper_quantile(mean.abs().flatten(1), self.config.dynamic_thresholding_ratio)
        s = s.clamp(1.0, max(1.0, self.config.sample_max_value)).view((-1,) + (1,) * (mean.ndim - 1))
        return mean.clamp(-s, s) / s


def split(answer: Tensor | tuple[Tensor, Tensor], sample: Tensor) -> tuple[Tensor, Tensor | None]:
    """(prediction, what the network says of the variance), float32 at least: of a pair, or of doubled channels."""
    dtype = torch.promote_types(sample.dtype, torch.float32)
    if isinstance(answer, tuple):
        first, second = answer
        return first.to(dtype), second.to(dtype)
    answer = answer.to(dtype)
    if answer.shape[1] == 2 * sample.shape[1]:
        first, second = answer.chunk(2, dim=1)
        return first, second
    return answer, None
