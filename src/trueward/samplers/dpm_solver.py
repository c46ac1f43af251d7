r"""What all DPM-Solvers share: the form of the ODE, the end of sampling, thresholding and inversion.

DPM-Solver integrates the probability-flow ODE in lambda = log(alpha / sigma); only the network's part of it is approximated
(see :mod:`trueward.samplers.exponential`). The single-step, multistep and adaptive solvers are subclasses:

    dpm_multistep     one evaluation per step, the answers of the steps before are used again
    dpm_singlestep    as many evaluations per step as the order; rows may stand at different levels
    dpm_adaptive      step sizes chosen by an error estimate
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
from torch import Tensor

from trueward.denoisers import Coefficient, Denoiser
from trueward.naming import check_name
from trueward.samplers.run import Run, Samples
from trueward.samplers.sampler import Sampler
from trueward.samplers.thresholding import Thresholding, thresholding
from trueward.schedules import Schedule
from trueward.times import Levels, TimeGrid, Times

ALGORITHMS = ("data", "noise")
SOLVER_TYPES = ("dpmsolver", "taylor")


@dataclass(frozen=True)
class Backwards(TimeGrid):
    """Another grid walked from its end to its start."""

    inner: TimeGrid

    def __call__(
        self, schedule: Schedule, steps: int, start: float | None = None, end: float | None = None
    ) -> np.ndarray:
        return self.inner(schedule, steps, end, start)[::-1].copy()

    def place(self, schedule: Schedule, steps: int, start: float, end: float) -> np.ndarray:
        return self.inner.place(schedule, steps, end, start)[::-1]


@dataclass(frozen=True)
class DPMSolver(Sampler):
    """Base of DPM-Solver (noise form) and DPM-Solver++ (data form) (Lu et al. 2022).

    Sampling ends at `t_end`, by default `schedule.t_min`; the authors take 1e-3 for up to 15 evaluations on a continuous
    schedule and 1e-4 for more.

    Args:
        order: of the solver, 1 ... 3; 1 is DDIM.
        algorithm: "data" is DPM-Solver++, the stable choice under guidance; "noise" is DPM-Solver.
        solver_type: "dpmsolver" or "taylor", two variants of the same order.
        thresholding: None, "dynamic", "static" or a :class:`~trueward.samplers.thresholding.Thresholding`: keeps the
            predicted data in the denoiser's `data_range`. Data form only.
        denoise_to_zero: end with the posterior mean at `t_end`, one more evaluation.
    """

    order: int = 2
    algorithm: str = "data"
    solver_type: str = "dpmsolver"
    thresholding: Thresholding | str | None = None
    denoise_to_zero: bool = False

    citation: ClassVar[tuple[str, ...]] = ("lu2022dpmsolver", "lu2022dpmsolverpp")
    orders: ClassVar[tuple[int, ...]] = (1, 2, 3)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.order not in self.orders or isinstance(self.order, bool):
            raise ValueError(f"order must be one of {', '.join(map(str, self.orders))}, got {self.order!r}.")
        check_name("algorithm", self.algorithm, ALGORITHMS)
        check_name("solver type", self.solver_type, SOLVER_TYPES)
        object.__setattr__(self, "thresholding", thresholding(self.thresholding))
        if self.thresholding is not None and self.algorithm == "noise":
            raise ValueError(
                "thresholding acts on the predicted data: it needs algorithm='data', got algorithm='noise'."
            )

    @property
    @abstractmethod
    def convergence_order(self) -> int:
        """The order in the step size that the method has, which its `order` need not be."""

    @property
    def _final_steps(self) -> int:
        return 1 if self.denoise_to_zero else 0

    def visited(self, schedule: Schedule, times: np.ndarray) -> Levels:
        """The levels at the times, checked: inside the schedule, lambda finite and strictly monotone.

        Raises:
            ValueError: naming the time that is not so.
        """
        highest = max(times[0], times[-1])
        if highest > schedule.t_max * (1.0 + 1e-9):
            raise ValueError(f"t={highest:g} lies beyond the schedule, which ends at t_max={schedule.t_max:g}.")
        levels = Levels.of(schedule, times)
        half_log_snr = levels.half_log_snr
        if not np.isfinite(half_log_snr).all():
            t = times[~np.isfinite(half_log_snr)][0]
            raise ValueError(
                f"The log-SNR is not finite at t={t:g}: end at a small positive time (and use denoise_to_zero)."
            )
        steps = np.diff(half_log_snr)
        if not ((steps > 0).all() or (steps < 0).all()):
            raise ValueError(
                "The log-SNR must change strictly from level to level: the grid repeats or reverses a time."
            )
        return levels

    def scaled_answer(
        self, run: Run, x: Tensor, t: float | Tensor, buffer: str, rows: Tensor | None = None, stage: int = 0
    ) -> tuple[Coefficient, Tensor]:
        """(c, y) with m(x, t) = c y; m is eps in noise form, the mean (thresholded) in data form.

        What has to be computed from the network's prediction is written to the scratch buffer of the name `buffer`.
        """
        posterior = run.denoise(x, t, rows, stage)
        if self.algorithm == "noise":
            return posterior.scaled_eps(lambda: run.scratch(buffer, x))
        if self.thresholding is not None:
            return 1.0, self.thresholding(posterior.mean, run.denoiser.data_range)  # type: ignore[operator]
        return posterior.scaled_mean(lambda: run.scratch(buffer, x))

    def answer(
        self, run: Run, x: Tensor, t: float | Tensor, buffer: str, rows: Tensor | None = None, stage: int = 0
    ) -> Tensor:
        """m(x, t) itself."""
        c, y = self.scaled_answer(run, x, t, buffer, rows, stage)
        return y if isinstance(c, float) and c == 1.0 else y.mul_(c)  # where c is not 1, y is the buffer

    def invert(
        self,
        denoiser: Denoiser,
        x_0: Tensor,
        **options: Any,
    ) -> Samples:
        """The latent x_T that leads to `x_0`: the same solver, on the same levels, from the end to the start.

        The round trip is exact to the order of the solver. `denoise_to_zero` has no inverse and is left out.

        Args:
            denoiser: the model.
            x_0: (batch, *shape), the state at `t_end`.
            **options: see :meth:`~trueward.samplers.sampler.Sampler.sample`.

        Raises:
            ValueError: with thresholding, which cannot be undone.
        """
        if self.thresholding is not None:
            raise ValueError("A sampler with thresholding cannot be inverted: use thresholding=None.")
        schedule = denoiser.schedule
        start = schedule.t_max if self.t_start is None else self.t_start
        end = schedule.t_min if self.t_end is None else self.t_end
        grid = Backwards(self.grid) if isinstance(self.grid, Times) else self.grid
        backwards = replace(self, grid=grid, t_start=end, t_end=start, denoise_to_zero=False)
        return backwards.sample(denoiser, x_0, **options)
