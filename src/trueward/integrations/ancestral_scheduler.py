r"""DDPM, DDIM and the learned or measured variances as a diffusers scheduler.

The formulas are those of :mod:`trueward.samplers.reverse_step`: a step's standard deviation is sqrt(lambda^2 + kappa^2 var), with

    posterior   var from a table, one number for every node                          (Analytic-DPM)
    sn          var = (sigma / alpha)^2 (h - eps^2)     h from the network, per pixel  (SN-DPM)
    npr         var = (sigma / alpha)^2 h               likewise                       (NPR-DPM)

clipped to [0, r^2] for data in [-r, r], and the noise of the last noisy step to `clip_sigma_pixels` grey levels.
"""

from __future__ import annotations

from typing import Any, ClassVar, Self

import numpy as np
import torch
from torch import Tensor

from trueward.integrations.scheduler import TruewardScheduler, TruewardSchedulerOutput, split
from trueward.integrations.scheduler_config import configuration, visited_nodes
from trueward.integrations.visited_levels import multistep_nodes, spacing_of
from trueward.naming import check_name
from trueward.samplers.ancestral import pixel_variance
from trueward.samplers.reverse_step import ReverseSteps

from diffusers.configuration_utils import register_to_config  # isort: skip
from diffusers.schedulers.scheduling_utils import SchedulerMixin  # noqa: F401  # isort: skip  # diffusers looks for it here
from diffusers.utils.torch_utils import randn_tensor  # isort: skip

GUESSED = ("fixed_small", "fixed_small_log", "fixed_large", "fixed_large_log", "learned_range")
HEADS = ("sn", "npr")
FITTED = ("posterior", *HEADS)
VARIANCES = (*GUESSED, *FITTED)


class TruewardAncestralScheduler(TruewardScheduler):
    """DDPM (eta = 1), DDIM (eta = 0) and what lies between, on any timesteps (Ho et al. 2020; Song et al. 2021).

    Every step goes to the next timestep of the run, whatever the spacing, so that DDIM converges on all of them. The variance
    of a step may come from a table (Analytic-DPM; Bao et al. 2022a) or from a head on the network (SN- and NPR-DPM; Bao et
    al. 2022b); :func:`~trueward.integrations.use_covariance` puts what `trueward fit-covariance` stored into a pipeline.

    Args:
        num_train_timesteps, beta_start, beta_end, beta_schedule, trained_betas, rescale_betas_zero_snr: the table.
        prediction_type: epsilon, sample or v_prediction.
        eta: 1 is DDPM, 0 is DDIM.
        variance_type: fixed_small (beta~), fixed_large (beta), learned_range (the network interpolates between their
            logarithms), posterior (`posterior_variance`), sn or npr (the network answers a pair, or with doubled channels);
            the last three need no eta = 1. The names with `_log` mean the same as without.
        posterior_variance: (num_train_timesteps,), E[(x_0 - mean)^2] per coordinate at every node, squared data units.
        clip_sample, clip_sample_range: clamp the predicted data to [-r, r].
        clip_sigma_pixels: largest expected change, in grey levels of [-r, r], by the noise of the last noisy step, where the
            variance is posterior, sn or npr and samples are clipped; None for no limit. The published choices are 1, and 2
            for eta = 1 on the linear table.
        thresholding, dynamic_thresholding_ratio, sample_max_value: dynamic thresholding.
        timestep_spacing: leading, trailing, linspace, log_snr or karras.
        steps_offset: added to leading timesteps.
        set_alpha_to_one: the last step goes to the data; otherwise to the first node.
    """

    citation: ClassVar[tuple[str, ...]] = (
        "ho2020denoising",
        "song2021denoising",
        "bao2022analytic",
        "bao2022estimating",
    )

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
        clip_sigma_pixels: float | None = 1.0,
    ) -> None:
        check_name("variance_type", variance_type, VARIANCES)
        spacing_of(self.config)
        if not 0.0 <= eta <= 1.0:
            raise ValueError(f"eta must lie in [0, 1], got {eta}.")
        if variance_type in ("fixed_large", "fixed_large_log", "learned_range") and eta != 1.0:
            raise ValueError(f"variance_type={variance_type!r} belongs to eta=1, got eta={eta}.")
        if (variance_type == "posterior") != (posterior_variance is not None):
            raise ValueError("variance_type='posterior' and posterior_variance belong together: give both or neither.")
        if clip_sigma_pixels is not None and not clip_sigma_pixels > 0:
            raise ValueError(f"clip_sigma_pixels must be a positive number of grey levels, got {clip_sigma_pixels}.")
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

    @classmethod
    def learned(cls, scheduler: Any, kind: str, eta: float = 1.0, **options: Any) -> Self:
        """The SN- or NPR-DPM version of a scheduler, for a network that answers a pair (prediction, h).

        Raises:
            ValueError: if the scheduler's network learned its own range of variances, which is another convention.
        """
        check_name("covariance head", kind, HEADS)
        stored = str(scheduler.config.get("variance_type", ""))
        if stored.startswith("learned"):
            raise ValueError(
                f"variance_type={stored!r} says that the network's further channels are a variance of its own; a head of kind {kind!r} cannot be put beside it."
            )
        made = cls.from_config(scheduler.config, variance_type=kind, eta=eta, posterior_variance=None, **options)
        assert isinstance(made, cls)
        return made

    def _posterior_variance(self, index: int, eps: Tensor, h: Tensor | None) -> float | Tensor:
        """The variance of x_0 given x_t, clipped to the range of the data."""
        cap = self.config.clip_sample_range**2 if self.config.clip_sample else None
        if self.config.variance_type == "posterior":
            table = self.config.posterior_variance
            var = float(np.interp(float(self.timesteps[index]), np.arange(len(table)), table))
            return var if cap is None else min(var, cap)
        if h is None:
            raise ValueError(
                f"variance_type={self.config.variance_type!r} needs a network that answers a pair (prediction, h) or with doubled channels."
            )
        if h.shape != eps.shape:
            raise ValueError(f"h has shape {tuple(h.shape)}, but the prediction has {tuple(eps.shape)}.")
        if not bool(h.isfinite().all()):
            raise ValueError(f"h is NaN or infinite at timestep {float(self.timesteps[index]):g}.")
        ratio = float(self.levels.sigma[index] / self.levels.alpha[index])
        return ((h - eps.square() if self.config.variance_type == "sn" else h) * ratio**2).clamp(min=0.0, max=cap)

    def _std(self, step: ReverseSteps, index: int, eps: Tensor, learned: Tensor | None) -> float | Tensor:
        """Standard deviation of the step; its arrays have one entry."""
        kind = self.config.variance_type
        if kind in ("fixed_large", "fixed_large_log"):
            return float(np.sqrt(step.beta[0]))
        if kind in FITTED:
            var = float(step.lambda2[0]) + float(step.kappa[0] ** 2) * self._posterior_variance(index, eps, learned)
            noisy = int((self.levels.sigma[1:] > 0).sum())
            if index == noisy - 1 and self.config.clip_sample and self.config.clip_sigma_pixels is not None:
                r = self.config.clip_sample_range
                limit = pixel_variance(self.config.clip_sigma_pixels, (-r, r))
                var = var.clamp(max=limit) if isinstance(var, Tensor) else min(var, limit)
            return var**0.5
        if kind == "learned_range":
            if learned is None:
                raise ValueError("variance_type='learned_range' needs a network that answers with doubled channels.")
            low, high = (float(np.log(np.maximum(v[0], 1e-20))) for v in (step.beta_tilde, step.beta))
            return torch.exp(0.5 * (low + 0.5 * (learned + 1.0) * (high - low)))
        return float(np.sqrt(step.lambda2[0]))

    def step(
        self,
        model_output: Tensor | tuple[Tensor, Tensor],
        timestep: float | Tensor,
        sample: Tensor,
        generator: Any = None,
        variance_noise: Tensor | None = None,
        return_dict: bool = True,
        **options: Any,
    ) -> TruewardSchedulerOutput | tuple[Tensor]:
        """One step; see :meth:`TruewardDPMSolverScheduler.step`.

        `model_output` may be the pair (prediction, h) of a network with a covariance head, for variance_type sn and npr.
        `options` are what DDIM's pipeline tells every scheduler: an `eta` other than the configured one is refused.
        """
        if options.get("eta") not in (None, 0.0, self.config.eta):
            raise ValueError(
                f"eta is set where the scheduler is made ({self.config.eta}), but the pipeline asks for {options['eta']}."
            )
        if isinstance(model_output, tuple) and self.config.variance_type not in HEADS:
            raise ValueError(
                f"A pair (prediction, h) belongs to variance_type='sn' or 'npr', but this scheduler has {self.config.variance_type!r}."
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
        if levels.sigma[s][0] > 0 and (self.config.eta > 0 or self.config.variance_type in FITTED):
            if variance_noise is None:
                variance_noise = randn_tensor(x.shape, generator=generator, device=x.device, dtype=x.dtype)
            following = following + self._std(step, index, eps, learned) * variance_noise.to(x)
        following = following.to(sample.dtype)
        return TruewardSchedulerOutput(following, mean.to(sample.dtype)) if return_dict else (following,)
