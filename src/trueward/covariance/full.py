r"""The expected full covariance of each noise level, for data of at most 256 dimensions, without any training:

    moment      E Cov[x_0 | x_t] = (sigma_t / alpha_t)^2 (I - E[eps_theta eps_theta^T])          (Bao et al. 2022, Proposition 1)
    residual    (sigma_t / alpha_t)^2 E[(eps - eps_theta)(eps - eps_theta)^T]

the matrix versions of Analytic-DPM's scalar; the second is positive semi-definite as measured and right for any mean. With
the matrix, samplers and bounds are exact on correlated Gaussians, where no diagonal is.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from trueward import processes
from trueward.covariance.analytic import Range
from trueward.covariance.estimate import Moments, measured_times
from trueward.covariance.examples import Held
from trueward.covariance.learned import LARGEST_FULL
from trueward.denoisers import Denoiser, Guided, Posterior
from trueward.full_covariance import FullCovariance
from trueward.naming import check_name
from trueward.schedules import Schedule, Time

FORMS = ("residual", "moment")


@dataclass(frozen=True, eq=False)
class FullTable:
    """E Cov[x_0 | x_t] on the eps scale at some times: `matrices` (T, d, d) in units of (sigma / alpha)^2."""

    schedule: Schedule
    times: np.ndarray
    matrices: Tensor

    def __post_init__(self) -> None:
        if self.matrices.shape[0] != len(self.times) or self.matrices.ndim != 3:
            raise ValueError(f"matrices must be ({len(self.times)}, d, d), got {tuple(self.matrices.shape)}.")
        if bool((np.diff(self.times) <= 0).any()):
            raise ValueError("times must be strictly increasing.")

    def at(self, t: float) -> Tensor:
        """The matrix at `t`, (d, d), linear between the measured times.

        Raises:
            ValueError: for a time outside the measured ones.
        """
        slack = 1e-9 * self.times[-1]
        if not self.times[0] - slack <= t <= self.times[-1] + slack:
            raise ValueError(
                f"The matrices cover t in [{self.times[0]:g}, {self.times[-1]:g}], but t={t:g} was asked for."
            )
        right = int(np.clip(np.searchsorted(self.times, t), 1, max(1, len(self.times) - 1)))
        if len(self.times) == 1:
            return self.matrices[0]
        left = right - 1
        weight = float((t - self.times[left]) / (self.times[right] - self.times[left]))
        return torch.lerp(self.matrices[left], self.matrices[right], min(max(weight, 0.0), 1.0))


@torch.no_grad()
def estimate_full_covariance(
    denoiser: Denoiser,
    data: Any,
    *,
    num_samples: int = 1000,
    times: Any = None,
    form: str = "residual",
    batch_size: int = 256,
    seed: int = 0,
    conditional: bool = False,
    progress: bool = False,
) -> FullTable:
    """Measures the matrices at every time; see :func:`trueward.covariance.estimate_gamma` for the arguments.

    Args:
        form: residual or moment.

    Raises:
        ValueError: more than 256 dimensions, or fewer examples than `num_samples`.
    """
    check_name("form", form, FORMS)
    where = measured_times(denoiser.schedule) if times is None else np.unique(np.asarray(times, dtype=np.float64))
    examples, indices = Held.of(data, num_samples, torch.Generator().manual_seed(seed))
    if len(examples) < num_samples:
        raise ValueError(f"num_samples={num_samples}, but the data hold {len(examples)} examples.")
    size = examples.x[0].numel()
    if size > LARGEST_FULL:
        raise ValueError(f"A full covariance serves up to {LARGEST_FULL} dimensions, these samples have {size}.")
    training = denoiser.training
    denoiser.eval()
    moments = Moments(denoiser, examples, indices, seed, conditional)
    rank, world = processes.here()
    sums = torch.zeros(len(where), size, size, dtype=torch.float64)
    levels: Any = range(len(where))
    if progress and rank == 0:
        from tqdm.auto import tqdm

        levels = tqdm(levels, desc="full covariance", unit="level", leave=False)
    every = torch.as_tensor(where, dtype=torch.float64)
    for level in levels:
        for rows in torch.arange(len(examples))[rank::world].split(batch_size):
            x_t, noise, t, condition = moments.noisy(rows, torch.full_like(rows, level), every)
            eps = denoiser(x_t, t, **condition).eps
            value = (noise - eps if form == "residual" else eps).double().flatten(1)
            sums[level] += (value.T @ value).cpu()
    denoiser.train(training)
    matrices = processes.sum_over_processes(sums) / len(examples)
    if form == "moment":
        matrices = torch.eye(size, dtype=torch.float64) - matrices
    return FullTable(denoiser.schedule, where, matrices)


class FullAnalyticCovariance(Guided):
    """A denoiser whose `Posterior.var` is the expected full covariance of each level, from a table.

    Args:
        inner: the model the table was measured on.
        table: what :func:`estimate_full_covariance` measured.
        data_range: bounds of the data; "inner" takes the denoiser's, None means unbounded.
    """

    covariance_kind: ClassVar[str] = "analytic-full"
    citation: ClassVar[tuple[str, ...]] = ("bao2022analytic",)

    def __init__(self, inner: Denoiser, table: FullTable, data_range: Range | str = "inner") -> None:
        super().__init__(inner)
        if table.schedule.fingerprint != inner.schedule.fingerprint:
            raise ValueError("The matrices were measured under another schedule than the model's; measure them again.")
        self.table = table
        self.bounds: Range = inner.data_range if isinstance(data_range, str) else data_range
        self._known: dict[float, FullCovariance] = {}

    @property
    def measured(self) -> dict[str, Tensor]:
        """The numbers of the table that samples depend on, for fingerprints."""
        return {"full times": torch.as_tensor(self.table.times), "full matrices": self.table.matrices}

    def covariance(self, t: float) -> FullCovariance:
        """E Cov[x_0 | x_t] at one time, eigenvalues clipped to [0, d ((b - a) / 2)^2]; decomposed once per time."""
        if t not in self._known:
            found = FullCovariance.of(self.table.at(t)) * float(torch.exp(-self.schedule.log_snr(t)))
            size = found.values.shape[-1]
            cap = None if self.bounds is None else size * (0.5 * (self.bounds[1] - self.bounds[0])) ** 2
            self._known[t] = found.clamp(min=0.0, max=cap)
        return self._known[t]

    def forward(self, x_t: Tensor, t: Time, **condition: Any) -> Posterior:
        if isinstance(t, Tensor) and t.ndim:
            each = [self.covariance(float(value)) for value in t]
            var = FullCovariance(torch.cat([c.values for c in each]), torch.cat([c.vectors for c in each]))
        else:
            var = self.covariance(float(t))
        return self.inner(x_t, t, **condition).replace(var=var.to(x_t.device, x_t.dtype))  # type: ignore[arg-type]
