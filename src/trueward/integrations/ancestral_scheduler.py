r"""DDPM, DDIM and Analytic-DPM as a diffusers scheduler; the formulas are those of :mod:`trueward.samplers.reverse_step`."""

from __future__ import annotations

from typing import Any, ClassVar, Self

import numpy as np
import torch
from torch import Tensor

from trueward.integrations.scheduler import TruewardScheduler, TruewardSchedulerOutput, split
from trueward.integrations.scheduler_config import configuration, visited_nodes
from trueward.integrations.visited_levels import multistep_nodes, spacing_of
from trueward.naming import check_name
from trueward.samplers.reverse_step import ReverseSteps

from diffusers.configuration_utils import register_to_config  # isort: skip
from diffusers.schedulers.scheduling_utils import SchedulerMixin  # noqa: F401  # isort: skip  # diffusers looks for it here
from diffusers.utils.torch_utils import randn_tensor  # isort: skip

VARIANCES = ("fixed_small", "fixed_large", "learned_range", "posterior")


class TruewardAncestralScheduler(TruewardScheduler):
    """DDPM (eta = 1), DDIM (eta = 0) and what lies between, on any timesteps (Ho et al. 2020; Song et al. 2021).

    Every step goes to the next timestep of the run, whatever the spacing, so that DDIM converges on all of them. The step's
    standard deviation is sqrt(lambda^2 + kappa^2 var) with `var` from a table, one number for every node: that is
    Analytic-DPM (Bao et al. 2022).

    Args:
        num_train_timesteps, beta_start, beta_end, beta_schedule, trained_betas, rescale_betas_zero_snr: the table.
        prediction_type: epsilon, sample or v_prediction.
        eta: 1 is DDPM, 0 is DDIM.
        variance_type: fixed_small (beta~), fixed_large (beta), learned_range (the network interpolates between their
            logarithms) or posterior (`posterior_variance`); the last needs no eta = 1.
        posterior_variance: (num_train_timesteps,), E[(x_0 - mean)^2] per coordinate at every node, squared data units.
        clip_sample, clip_sample_range: clamp the predicted data.
        thresholding, dynamic_thresholding_ratio, sample_max_value: dynamic thresholding.
        timestep_spacing: leading, trailing, linspace, log_snr or karras.
        steps_offset: added to leading timesteps.
        set_alpha_to_one: the last step goes to the data; otherwise to the first node.
    """

    citation: ClassVar[tuple[str, ...]] = ("ho2020denoising", "song2021denoising", "bao2022analytic")

    @register_to_config
    def __init__(
        self,
        num_train_timesteps: int = 1000,
        beta_start: float = 0.0001,
        beta_end: float = 0.02,
        beta_schedule: str = "linear",
        trained_betas: list[float] | None = None,
        prediction_type: str = "epsilon",
        eta: float = 1.0,
        variance_type: str = "fixed_small",
        posterior_variance: list[float] | None = None,
        clip_sample: bool = True,
        clip_sample_range: float = 1.0,
        thresholding: bool = False,
        dynamic_thresholding_ratio: float = 0.995,
        sample_max_value: float = 1.0,
        timestep_spacing: str = "leading",
        steps_offset: int = 0,
        set_alpha_to_one: bool = True,
        rescale_betas_zero_snr: bool = False,
    ) -> None:
        check_name("variance_type", variance_type, VARIANCES)
        spacing_of(self.config)
        if not 0.0 <= eta <= 1.0:
            raise ValueError(f"eta must lie in [0, 1], got {eta}.")
        if variance_type in ("fixed_large", "learned_range") and eta != 1.0:
            raise ValueError(f"variance_type={variance_type!r} belongs to eta=1, got eta={eta}.")
        if (variance_type == "posterior") != (posterior_variance is not None):
            raise ValueError("variance_type='posterior' and posterior_variance belong together: give both or neither.")
        self._prepare()
        if posterior_variance is not None:
            table = np.asarray(posterior_variance, dtype=np.float64)
            if table.shape != (self.schedule.nodes,) or not (np.isfinite(table) & (table >= 0)).all():
                raise ValueError(
                    f"posterior_variance must hold {self.schedule.nodes} finite numbers >= 0, one for every node, got shape {table.shape}."
                )

    def _place(self, steps: int) -> np.ndarray:
        spacing = spacing_of(self.config)
        if spacing in ("log_snr", "karras"):
            final = {"final_sigmas_type": self._final}
            return multistep_nodes({**configuration(self), **final}, self.schedule, steps)
        return visited_nodes(self.config, steps).astype(np.float64)

    @property
    def _final(self) -> str:
        return "zero" if self.config.set_alpha_to_one else "sigma_min"

    @classmethod
    def analytic(cls, scheduler: Any, posterior_variance: Any, eta: float = 1.0, **options: Any) -> Self:
        """The Analytic-DPM version of a scheduler, from the variance of x_0 given x_t at every node."""
        table = [float(v) for v in posterior_variance]
        chosen = {"variance_type": "posterior", "posterior_variance": table, "eta": eta, **options}
        made = cls.from_config(scheduler.config, **chosen)
        assert isinstance(made, cls)
        return made

    def _std(self, step: ReverseSteps, index: int, learned: Tensor | None) -> float | Tensor:
        """Standard deviation of the step; its arrays have one entry."""
        kind = self.config.variance_type
        if kind == "fixed_large":
            return float(np.sqrt(step.beta[0]))
        if kind == "posterior":
            table = self.config.posterior_variance
            var = float(np.interp(float(self.timesteps[index]), np.arange(len(table)), table))
            return float(np.sqrt(step.lambda2[0] + step.kappa[0] ** 2 * var))
        if kind == "learned_range":
            if learned is None:
                raise ValueError("variance_type='learned_range' needs a network that answers with doubled channels.")
            low, high = (float(np.log(np.maximum(v[0], 1e-20))) for v in (step.beta_tilde, step.beta))
            return torch.exp(0.5 * (low + 0.5 * (learned + 1.0) * (high - low)))
        return float(np.sqrt(step.lambda2[0]))

    def step(
        self,
        model_output: Tensor,
        timestep: float | Tensor,
        sample: Tensor,
        generator: Any = None,
        variance_noise: Tensor | None = None,
        return_dict: bool = True,
        **options: Any,
    ) -> TruewardSchedulerOutput | tuple[Tensor]:
        """One step; see :meth:`TruewardDPMSolverScheduler.step`.

        `options` are what DDIM's pipeline tells every scheduler: an `eta` other than the configured one is refused.
        """
        if options.get("eta") not in (None, 0.0, self.config.eta):
            raise ValueError(
                f"eta is set where the scheduler is made ({self.config.eta}), but the pipeline asks for {options['eta']}."
            )
        index = self._advance(timestep)
        x = sample.to(torch.promote_types(sample.dtype, torch.float32))
        answer, learned = split(model_output, sample)
        mean, eps = self._predicted(answer, x, index)
        if self.config.thresholding:
            mean = self._threshold(mean)
        elif self.config.clip_sample:
            mean = mean.clamp(-self.config.clip_sample_range, self.config.clip_sample_range)
        levels, s, t = self.levels, slice(index + 1, index + 2), slice(index, index + 1)
        step = ReverseSteps(levels.alpha[s], levels.sigma[s], levels.alpha[t], levels.sigma[t], self.config.eta)
        if self.config.eta == 1.0:  # in terms of x_t: the same, unless the mean was clamped
            of_x = float(levels.alpha[t][0] / levels.alpha[s][0] * (levels.sigma[s][0] / levels.sigma[t][0]) ** 2)
            following = of_x * x + float(levels.alpha[s][0] * step.lost[0]) * mean
        else:
            following = float(levels.alpha[s][0]) * mean + float(step.direction[0]) * eps
        if levels.sigma[s][0] > 0 and (self.config.eta > 0 or self.config.variance_type == "posterior"):
            if variance_noise is None:
                variance_noise = randn_tensor(x.shape, generator=generator, device=x.device, dtype=x.dtype)
            following = following + self._std(step, index, learned) * variance_noise.to(x)
        following = following.to(sample.dtype)
        return TruewardSchedulerOutput(following, mean.to(sample.dtype)) if return_dict else (following,)
