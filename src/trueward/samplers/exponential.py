r"""Exponential integrators in lambda = log(alpha / sigma): the coefficients of DPM-Solver and DPM-Solver++.

With m the model's answer along the trajectory, the probability-flow ODE from s to t, h = lambda_t - lambda_s, has the solution

    noise form (DPM-Solver, m = eps):      x_t = (alpha_t / alpha_s) x_s - alpha_t int e^(-l) m(l) dl
    data form (DPM-Solver++, m = mean):    x_t = (sigma_t / sigma_s) x_s + sigma_t int e^(+l) m(l) dl

The linear part is exact; only m is approximated. For m(l) = m_0 + m_1 tau + m_2 tau^2 / 2 with tau = (l - lambda_s) / h both
integrals are the same expression

.. math:: x_t = L x_s - c\,u\,(\varphi_1(u)\, m_0 + \varphi_2(u)\, m_1 + \varphi_3(u)\, m_2) \qquad (T)

    noise:  L = alpha_t / alpha_s,   c = sigma_t,   u = +h
    data:   L = sigma_t / sigma_s,   c = alpha_t,   u = -h
    SDE:    L = (sigma_t / sigma_s) e^(-h),   c = alpha_t,   u = -2h      (data form, plus sigma_t sqrt(1 - e^(-2h)) noise)

    phi_1(u) = (e^u - 1)/u,   phi_2(u) = (e^u - 1 - u)/u^2,   phi_3(u) = (e^u - 1 - u - u^2/2)/u^3

for either sign of h and any (alpha, sigma). In the letters of the papers A = u phi_1, B = h phi_2 and E = u phi_3. Every
function here is float64 and works on arrays: over the steps of a plan, or over the rows of a batch. Weights are returned in
the order (x, m_0, m_1, ...).

References: Lu et al. 2022 (DPM-Solver, eqs. 3.4-3.7, algorithms 1-2, 4), Lu et al. 2022 (DPM-Solver++, algorithms 1-2);
Hochbruck and Ostermann 2005 for the method.
"""

from __future__ import annotations

import math
from typing import NamedTuple, TypeAlias

import numpy as np

from trueward.times import Levels

Array: TypeAlias = np.ndarray
Weights: TypeAlias = tuple[Array, ...]

_SERIES_BELOW = (
    0.5  # direct evaluation of phi_3 loses 1e-16 / |u|^2; sixteen terms of the series lose nothing below this
)
_TERMS = 16


def u_phi(k: int, u: Array) -> Array:
    """u phi_k(u) for k = 1, 2, 3, accurate for every u including 0."""
    u = np.asarray(u, dtype=np.float64)
    if k == 1:
        return np.expm1(u)
    small = np.abs(u) < _SERIES_BELOW
    v = np.where(small, u, 0.0)
    series = np.zeros_like(v)
    for j in reversed(range(_TERMS)):  # sum of v^j / (j + k)!
        series = series * v + 1.0 / math.factorial(j + k)
    w = np.where(small, 1.0, u)
    direct = np.expm1(w) / w - 1.0
    if k == 3:
        direct = direct / w - 0.5
    return np.where(small, series * v, direct)


class Interval(NamedTuple):
    """Steps from s to t in the letters of (T): arrays of one entry per step."""

    L: Array
    c: Array
    u: Array


def ode_interval(algorithm: str, s: Levels, t: Levels) -> Interval:
    """The interval of the probability-flow ODE, in ``"noise"`` or ``"data"`` form."""
    h = t.half_log_snr - s.half_log_snr
    if algorithm == "data":
        return Interval(t.sigma / s.sigma, t.alpha, -h)
    return Interval(t.alpha / s.alpha, t.sigma, h)


def sde_interval(s: Levels, t: Levels) -> Interval:
    """The interval of the reverse SDE in data form; its noise has the standard deviation :func:`sde_std`."""
    h = t.half_log_snr - s.half_log_snr
    return Interval(t.sigma / s.sigma * np.exp(-h), t.alpha, -2.0 * h)


def sde_std(s: Levels, t: Levels) -> Array:
    """sigma_t sqrt(1 - e^(-2h)): the noise of one step of the reverse SDE."""
    return t.sigma * np.sqrt(-np.expm1(2.0 * (s.half_log_snr - t.half_log_snr)))


def clean_weights(algorithm: str, s: Levels) -> tuple[float, float]:
    """The step from the last of the levels `s` to the data (h = infinity): the posterior mean, from x and the model's answer."""
    alpha, sigma = float(s.alpha[-1]), float(s.sigma[-1])
    return (0.0, 1.0) if algorithm == "data" else (1.0 / alpha, -sigma / alpha)


# --- single-step: model values inside the step, at lambda_s + r_j h ---------------------------------------------------


def first_order(step: Interval) -> Weights:
    """Order 1, DDIM: L x - c A m_0."""
    return step.L, -step.c * u_phi(1, step.u)


def second_order(step: Interval, r1: Array | float, solver_type: str) -> Weights:
    """Order 2 from m_0 and m_1 = m(lambda_s + r1 h)."""
    A = u_phi(1, step.u)
    slope = 0.5 * A if solver_type == "dpmsolver" else u_phi(2, step.u)
    of_1 = -step.c * slope / r1
    return step.L, -step.c * A - of_1, of_1


def third_order_stage(stage: Interval, r1: Array | float, r2: Array | float) -> Weights:
    """The inner point at r2 of order 3; `stage` goes from s to that point, so that its u belongs to r2 h."""
    of_1 = -stage.c * u_phi(2, stage.u) * (r2 / r1)
    return stage.L, -stage.c * u_phi(1, stage.u) - of_1, of_1


def third_order(step: Interval, r1: Array | float, r2: Array | float, solver_type: str) -> Weights:
    """Order 3 from m_0, m_1, m_2 at 0, r1, r2; needs r2 = 2/3 to be of third order."""
    A, B, E = (step.c * u_phi(k, step.u) for k in (1, 2, 3))
    if solver_type == "dpmsolver":
        of_2 = -B / r2
        return step.L, -A - of_2, np.zeros_like(of_2), of_2
    # D_1j = (m_j - m_0) / r_j;  m_1 = (r2 D_11 - r1 D_12) / (r2 - r1),  m_2 = 2 (D_12 - D_11) / (r2 - r1)
    of_1 = -(B * r2 - 2.0 * E) / ((r2 - r1) * r1)
    of_2 = -(2.0 * E - B * r1) / ((r2 - r1) * r2)
    return step.L, -A - of_1 - of_2, of_1, of_2


# --- multistep: model values of the steps before, at lambda_s - h0 and lambda_s - h0 - h1 -----------------------------


def second_order_multistep(step: Interval, r0: Array, solver_type: str) -> Weights:
    """Order 2 from m_0 and the one before, m_{-1}; r0 = h0 / h."""
    A = u_phi(1, step.u)
    slope = 0.5 * A if solver_type == "dpmsolver" else u_phi(2, step.u)
    of_previous = step.c * slope / r0
    return step.L, -step.c * A - of_previous, of_previous


def third_order_multistep(step: Interval, r0: Array, r1: Array, q: float) -> Weights:
    """Order 3 from m_0, m_{-1}, m_{-2}; r0 = h0 / h, r1 = h1 / h.

    With d_0 = (m_0 - m_{-1})/r0 and d_1 = (m_{-1} - m_{-2})/r1 the interpolating parabola has m_1 = d_0 + r0/(r0+r1) (d_0 - d_1)
    and m_2 = q (d_0 - d_1)/(r0+r1), where q = 2 makes (T) exact for parabolas and q = 1 is what the official code does.
    """
    A, B, E = (step.c * u_phi(k, step.u) for k in (1, 2, 3))
    ratio, curvature = r0 / (r0 + r1), q / (r0 + r1)
    of_d0 = -B * (1.0 + ratio) - E * curvature
    of_d1 = B * ratio + E * curvature
    return step.L, -A + of_d0 / r0, of_d1 / r1 - of_d0 / r0, -of_d1 / r1
