r"""The algebra of one Gaussian step from level t to level s < t, for any (alpha, sigma).

With h = log(alpha / sigma) and what a step loses of the signal-to-noise ratio, `lost` = 1 - SNR_t / SNR_s = 1 - exp(2 (h_t - h_s)),

    beta       = sigma_t^2 lost = sigma_t^2 - (alpha_t / alpha_s)^2 sigma_s^2      (the "big" variance beta_{t|s})
    beta~      = sigma_s^2 lost                                                     (the "small" variance beta~_{s|t})
    lambda^2   = eta^2 beta~,     direction = sqrt(sigma_s^2 - lambda^2)
    q(x_s | x_t, x_0) = N( alpha_s x_0 + direction (x_t - alpha_t x_0) / sigma_t , lambda^2 I )
    kappa      = alpha_s - direction alpha_t / sigma_t        (how far the mean moves with x_0)

A reverse step whose mean uses a guess of x_0 then has the least divergence from the process with the variance
lambda^2 + kappa^2 C, where C is the (co)variance of x_0 about the guess, given x_t (Bao et al. 2022a, eq. 8; 2022b, eq. 9).
1 - SNR_t / SNR_s and kappa are computed from h without cancellation, so steps of any size keep their digits. At the data
themselves, s with alpha = 1 and sigma = 0, `lost` = 1 and kappa = 1.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from trueward.schedules import Schedule
from trueward.times import Levels


@dataclass(frozen=True, eq=False)
class ReverseSteps:
    """Coefficients of steps t -> s, float64 arrays that broadcast against each other.

    Args:
        alpha_s, sigma_s: of the level that is reached; (1, 0) for the data themselves.
        alpha_t, sigma_t: of the noisier level that is left.
        eta: 1 is DDPM, 0 is DDIM.
    """

    alpha_s: np.ndarray
    sigma_s: np.ndarray
    alpha_t: np.ndarray
    sigma_t: np.ndarray
    eta: float = 1.0

    @classmethod
    def along(cls, levels: Levels, eta: float = 1.0) -> ReverseSteps:
        """The steps from each level to the next, (levels - 1,)."""
        return cls(levels.alpha[1:], levels.sigma[1:], levels.alpha[:-1], levels.sigma[:-1], eta)

    @classmethod
    def between(
        cls, schedule: Schedule, s: float | np.ndarray, t: float | np.ndarray, eta: float = 1.0
    ) -> ReverseSteps:
        """The steps from the times `t` to the times `s` (arrays that broadcast).

        s = 0 means the data themselves; for a schedule that itself begins at 0, use a negative s.

        Raises:
            ValueError: if some s is not before its t.
        """
        s, t = np.asarray(s, dtype=np.float64), np.asarray(t, dtype=np.float64)
        if bool((s >= t).any()):
            raise ValueError(f"A reverse step goes from t to an earlier s, got s={s.max():g}, t={t.min():g}.")
        clean = s < 0 if schedule.t_min == 0 else s <= 0
        inside = np.where(clean, schedule.t_max, s)
        alpha_s = np.where(clean, 1.0, schedule.alpha(torch.as_tensor(inside)).numpy())
        sigma_s = np.where(clean, 0.0, schedule.sigma(torch.as_tensor(inside)).numpy())
        alpha_t, sigma_t = (f(torch.as_tensor(t)).numpy() for f in (schedule.alpha, schedule.sigma))
        return cls(alpha_s, sigma_s, alpha_t, sigma_t, eta)

    @property
    def kept(self) -> np.ndarray:
        """SNR_t / SNR_s."""
        return ((self.alpha_t / self.alpha_s) * (self.sigma_s / self.sigma_t)) ** 2

    @property
    def lost(self) -> np.ndarray:
        """1 - SNR_t / SNR_s."""
        with np.errstate(divide="ignore"):
            h_s = np.log(self.alpha_s) - np.log(self.sigma_s)
        return -np.expm1(2.0 * (np.log(self.alpha_t) - np.log(self.sigma_t) - h_s))

    @property
    def beta(self) -> np.ndarray:
        """beta_{t|s} = sigma_t^2 - (alpha_t / alpha_s)^2 sigma_s^2."""
        return self.sigma_t**2 * self.lost

    @property
    def beta_tilde(self) -> np.ndarray:
        """beta~_{s|t}, the variance of q(x_s | x_t, x_0) for eta = 1."""
        return self.sigma_s**2 * self.lost

    @property
    def lambda2(self) -> np.ndarray:
        """lambda^2 = eta^2 beta~, the variance of q(x_s | x_t, x_0)."""
        return self.eta**2 * self.beta_tilde

    @property
    def direction(self) -> np.ndarray:
        """sqrt(sigma_s^2 - lambda^2)."""
        return self.sigma_s * np.sqrt(1.0 - self.eta**2 * self.lost)

    @property
    def kappa(self) -> np.ndarray:
        """alpha_s - direction alpha_t / sigma_t."""
        # alpha_s (1 - sqrt(a kept)) with a = 1 - eta^2 lost, multiplied out so that nothing cancels in short steps
        lost = self.lost
        root = np.sqrt((1.0 - self.eta**2 * lost) * (1.0 - lost))
        return self.alpha_s * lost * (1.0 + self.eta**2 * (1.0 - lost)) / (1.0 + root)
