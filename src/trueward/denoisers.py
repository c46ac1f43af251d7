r"""Denoisers: what a network knows about x_0 given x_t.

``denoiser(x_t, t, **condition) -> Posterior`` is the only thing that samplers, guidance, likelihood and metrics know of a
model. With x_t = alpha x_0 + sigma eps and an exact model,

    mean  = E[x_0 | x_t]
    eps   = (x_t - alpha mean) / sigma            = E[eps | x_t]
    score = -eps / sigma                          = grad log p_t(x_t)
    v     = (alpha eps - sigma mean)              (the velocity of Salimans and Ho 2022)

so one prediction gives all the others. A parametrisation is a subclass; corrections (guidance, discriminator, covariance)
are wrappers that are denoisers themselves. Your own network becomes one in three lines::

    schedule = trueward.VPLinear()
    denoiser = trueward.denoiser(my_network, schedule, prediction="eps", shape=(3, 32, 32))
    samples = trueward.sampler("dpm-solver++", steps=20).sample(denoiser, n=16)
"""

from __future__ import annotations

import copy
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from trueward.naming import look_up
from trueward.schedules import DiscreteSchedule, Schedule, Time, as_time

Coefficient = float | Tensor


class Posterior:
    """x_0 given x_t: its mean, where known its covariance, and the equivalent views `eps`, `score`, `v`.

    Made from whichever of mean, eps or v the model predicts; the others are computed when asked for and remembered.

    Attributes:
        x_t: (batch, *shape), the noisy data.
        alpha, sigma: floats, or tensors (batch, 1, ..., 1).
        var: covariance of x_0 given x_t where known: a float or a tensor that broadcasts against `mean` (isotropic or
            diagonal), in squared data units; else None.
        native: "mean", "eps" or "v", the view it was made from, which has lost no digits.
    """

    __slots__ = ("_eps", "_mean", "_v", "alpha", "native", "sigma", "var", "x_t")

    def __init__(
        self,
        x_t: Tensor,
        alpha: Coefficient,
        sigma: Coefficient,
        *,
        mean: Tensor | None = None,
        eps: Tensor | None = None,
        v: Tensor | None = None,
        var: Coefficient | None = None,
    ) -> None:
        self.x_t, self.alpha, self.sigma, self.var = x_t, alpha, sigma, var
        self._mean, self._eps, self._v = mean, eps, v
        self.native = "mean" if mean is not None else "eps" if eps is not None else "v"

    @property
    def mean(self) -> Tensor:
        """E[x_0 | x_t], (batch, *shape)."""
        if self._mean is None:
            if self._eps is not None:
                self._mean = _linear(1.0 / self.alpha, self.x_t, -self.sigma / self.alpha, self._eps)
            else:
                norm = self.alpha**2 + self.sigma**2
                self._mean = _linear(self.alpha / norm, self.x_t, -self.sigma / norm, self._v)
        return self._mean

    @property
    def eps(self) -> Tensor:
        """E[eps | x_t] = (x_t - alpha mean) / sigma."""
        if self._eps is None:
            if self._mean is not None:
                self._eps = _linear(1.0 / self.sigma, self.x_t, -self.alpha / self.sigma, self._mean)
            else:
                norm = self.alpha**2 + self.sigma**2
                self._eps = _linear(self.sigma / norm, self.x_t, self.alpha / norm, self._v)
        return self._eps

    def scaled_mean(self, out: Callable[[], Tensor]) -> tuple[Coefficient, Tensor]:
        """(c, y) with ``mean == c * y``, without allocating: for samplers, which go on to a linear combination anyway.

        Where the model predicts eps, y = x_t - sigma eps = alpha mean takes one pass, into the buffer that `out` makes.
        """
        if self._mean is None and self._eps is not None:
            return 1.0 / self.alpha, _sum(self.x_t, -self.sigma, self._eps, out())
        if self._mean is None:
            norm = self.alpha**2 + self.sigma**2
            self._mean = _linear(self.alpha / norm, self.x_t, -self.sigma / norm, self._v, out())
        return 1.0, self._mean

    def scaled_eps(self, out: Callable[[], Tensor]) -> tuple[Coefficient, Tensor]:
        """(c, y) with ``eps == c * y``; see :meth:`scaled_mean`. From the mean, y = x_t - alpha mean = sigma eps."""
        if self._eps is None and self._mean is not None:
            return 1.0 / self.sigma, _sum(self.x_t, -self.alpha, self._mean, out())
        if self._eps is None:
            norm = self.alpha**2 + self.sigma**2
            self._eps = _linear(self.sigma / norm, self.x_t, self.alpha / norm, self._v, out())
        return 1.0, self._eps

    @property
    def v(self) -> Tensor:
        """alpha eps - sigma mean."""
        if self._v is None:
            self._v = _linear(self.alpha, self.eps, -self.sigma, self.mean)
        return self._v

    @property
    def score(self) -> Tensor:
        """grad log p_t(x_t) = -eps / sigma."""
        return self.eps * (-1.0 / self.sigma)

    def replace(
        self, *, mean: Tensor | None = None, eps: Tensor | None = None, var: Coefficient | None = None
    ) -> Posterior:
        """The same x_t with another mean (or eps) or covariance; what is not given stays."""
        if mean is None and eps is None:
            return Posterior(self.x_t, self.alpha, self.sigma, mean=self._mean, eps=self._eps, v=self._v, var=var)
        return Posterior(self.x_t, self.alpha, self.sigma, mean=mean, eps=eps, var=self.var if var is None else var)


def _sum(x: Tensor, b: Coefficient, y: Tensor, out: Tensor | None) -> Tensor:
    """x + b y in one pass."""
    return torch.addcmul(x, y, b, out=out) if isinstance(b, Tensor) else torch.add(x, y, alpha=b, out=out)


def _linear(a: Coefficient, x: Tensor, b: Coefficient, y: Tensor | None, out: Tensor | None = None) -> Tensor:
    """a x + b y in two passes."""
    assert y is not None
    result = torch.mul(x, a, out=out)
    if isinstance(b, Tensor):
        return torch.addcmul(result, y, b, out=out)
    return result + b * y if result.requires_grad else result.add_(y, alpha=b)


class Denoiser(nn.Module):
    """A model of x_0 given x_t under a schedule.

    Attributes:
        schedule: the forward process it was made for.
        shape: shape of one sample, e.g. (3, 32, 32), or None if it takes any.
        data_range: (low, high) of the data, or None for unbounded data.
        num_classes: number of classes of ``class_labels``, or None; the label `num_classes` then means "no class".
    """

    citation: ClassVar[tuple[str, ...]] = ()

    def __init__(
        self,
        schedule: Schedule,
        *,
        shape: Sequence[int] | None = None,
        data_range: tuple[float, float] | None = None,
        num_classes: int | None = None,
    ) -> None:
        super().__init__()
        if not isinstance(schedule, Schedule):
            raise ValueError(f"schedule must be a Schedule, got {type(schedule).__name__}.")
        schedule.validate()
        self.schedule = schedule
        self.shape = None if shape is None else tuple(shape)
        self.data_range = data_range
        self.num_classes = num_classes

    @abstractmethod
    def forward(self, x_t: Float[Tensor, batch * shape], t: Time, **condition: Any) -> Posterior:
        """The posterior of x_0.

        Args:
            x_t: (batch, *shape), in the units of the process: alpha(t) x_0 + sigma(t) eps.
            t: one time, or one time per row (batch,).
            **condition: what the network is conditioned on, row by row (``class_labels``: (batch,) int64).
        """

    @property
    def device(self) -> torch.device:
        """Where the parameters are (the CPU for a denoiser without any)."""
        parameter = next(self.parameters(), None)
        return torch.device("cpu") if parameter is None else parameter.device

    @property
    def dtype(self) -> torch.dtype:
        """The dtype in which to sample: float32, or float64 for a float64 model; half-precision models keep x in float32."""
        parameter = next(self.parameters(), None)
        return torch.float64 if parameter is not None and parameter.dtype == torch.float64 else torch.float32

    def on(self, schedule: Schedule) -> Denoiser:
        """The same model under another schedule (the two processes agree at equal SNR, up to scale)."""
        return Rescheduled(self, schedule)

    def at_stage(self, stage: int) -> Denoiser:
        """The model as it is asked in evaluation number `stage` = 0, 1, ... of one step of a sampler.

        A step of order two or more asks several times. A wrapper that treats these evaluations differently (Discriminator
        Guidance has a weight for the first and one for the others) overrides this; everything else passes the question on.
        """
        inner = getattr(self, "inner", None)
        staged = inner.at_stage(stage) if isinstance(inner, Denoiser) else inner
        if staged is inner:
            return self
        other = copy.copy(self)
        other._modules = dict(self._modules)  # the container is another, what it holds is shared
        other.inner = staged  # type: ignore[assignment]
        return other


class NetworkDenoiser(Denoiser):
    """A denoiser around an ``nn.Module`` called as ``network(x, label, **condition)`` that answers in the shape of x.

    A network that answers with twice the channels (learned variance) is read by its first half. The label is
    `schedule.label(t)` (float32, (batch,)) unless `label` says otherwise.

    Args:
        network: any module.
        schedule: the forward process it was trained on.
        label: maps times (batch,) float64 to what the network expects, e.g. ``lambda t: 1000 * t``.
        shape, data_range, num_classes: see :class:`Denoiser`.
    """

    prediction: ClassVar[str]

    def __init__(
        self,
        network: nn.Module,
        schedule: Schedule,
        *,
        label: Callable[[Tensor], Tensor] | None = None,
        shape: Sequence[int] | None = None,
        data_range: tuple[float, float] | None = None,
        num_classes: int | None = None,
    ) -> None:
        super().__init__(schedule, shape=shape, data_range=data_range, num_classes=num_classes)
        self.network = network
        self._label = label

    def label(self, t: Time) -> Tensor:
        """The network's time input for the times `t`."""
        return self.schedule.label(t) if self._label is None else self._label(as_time(t))

    def call_network(self, x: Tensor, t: Time, condition: Mapping[str, Any]) -> Tensor:
        """The raw answer of the network, checked for its shape, in the dtype of `x`."""
        parameter = next(self.network.parameters(), None)
        dtype = x.dtype if parameter is None or not parameter.is_floating_point() else parameter.dtype
        # the label keeps float32 in a half-precision network: a noise level has more digits than that
        label = self.label(t).to(x.device, torch.float64 if dtype == torch.float64 else torch.float32)
        label = label.expand(x.shape[0]) if label.ndim == 0 else label
        answer = self.network(x.to(dtype), label, **condition)
        if not isinstance(answer, Tensor):  # diffusers-style outputs hold the tensor in `.sample`
            answer = getattr(answer, "sample", None) if getattr(answer, "sample", None) is not None else answer[0]
        if answer.shape != x.shape:
            if answer.ndim == x.ndim and answer.shape[1] == 2 * x.shape[1] and answer.shape[2:] == x.shape[2:]:
                answer = answer[:, : x.shape[1]]
            else:
                raise ValueError(
                    f"The network answered shape {tuple(answer.shape)} to an input of shape {tuple(x.shape)}; the two must agree."
                )
        return answer.to(x.dtype)


class EpsDenoiser(NetworkDenoiser):
    """The network predicts the noise eps (Ho et al. 2020)."""

    prediction = "eps"
    citation: ClassVar[tuple[str, ...]] = ("ho2020denoising",)

    def forward(self, x_t: Tensor, t: Time, **condition: Any) -> Posterior:
        alpha, sigma = self.schedule.coefficients(t, x_t)
        return Posterior(x_t, alpha, sigma, eps=self.call_network(x_t, t, condition))


class DataDenoiser(NetworkDenoiser):
    """The network predicts the data x_0."""

    prediction = "x0"

    def forward(self, x_t: Tensor, t: Time, **condition: Any) -> Posterior:
        alpha, sigma = self.schedule.coefficients(t, x_t)
        return Posterior(x_t, alpha, sigma, mean=self.call_network(x_t, t, condition))


class VDenoiser(NetworkDenoiser):
    """The network predicts v = alpha eps - sigma x_0 (Salimans and Ho 2022)."""

    prediction = "v"
    citation: ClassVar[tuple[str, ...]] = ("salimans2022progressive",)

    def forward(self, x_t: Tensor, t: Time, **condition: Any) -> Posterior:
        alpha, sigma = self.schedule.coefficients(t, x_t)
        return Posterior(x_t, alpha, sigma, v=self.call_network(x_t, t, condition))


class ScoreDenoiser(NetworkDenoiser):
    """The network predicts the score grad log p_t(x_t) (Song et al. 2021)."""

    prediction = "score"
    citation: ClassVar[tuple[str, ...]] = ("song2021score",)

    def forward(self, x_t: Tensor, t: Time, **condition: Any) -> Posterior:
        alpha, sigma = self.schedule.coefficients(t, x_t)
        return Posterior(x_t, alpha, sigma, eps=self.call_network(x_t, t, condition) * -sigma)


class FlowDenoiser(NetworkDenoiser):
    """The network predicts the velocity u = eps - x_0 of flow matching (Lipman et al. 2023; Liu et al. 2023).

    On x_t = alpha x_0 + sigma eps that is (alpha + sigma) mean = x_t - sigma u and (alpha + sigma) eps = x_t + alpha u, or

        v = ((alpha - sigma) x_t + (alpha^2 + sigma^2) u) / (alpha + sigma)

    which keeps the digits of both at either end.
    """

    prediction = "flow"
    citation: ClassVar[tuple[str, ...]] = ("lipman2023flow", "liu2023flow")

    def forward(self, x_t: Tensor, t: Time, **condition: Any) -> Posterior:
        alpha, sigma = self.schedule.coefficients(t, x_t)
        total = alpha + sigma
        u = self.call_network(x_t, t, condition)
        v = _linear((alpha - sigma) / total, x_t, (alpha**2 + sigma**2) / total, u)
        return Posterior(x_t, alpha, sigma, v=v)


class EDMDenoiser(NetworkDenoiser):
    r"""The preconditioning of Karras et al. (2022, table 1) on any schedule.

    With y = x_t / alpha and s = sigma / alpha the noise level of y,

        mean = c_skip y + c_out network(c_in y, log(s) / 4)
        c_skip = sd^2 / (s^2 + sd^2),   c_out = s sd / sqrt(s^2 + sd^2),   c_in = 1 / sqrt(s^2 + sd^2)

    where sd is the standard deviation of the data. The network sees only the noise level, so the same weights serve every
    schedule (:meth:`on` swaps it without a wrapper).
    """

    prediction = "edm"
    citation: ClassVar[tuple[str, ...]] = ("karras2022elucidating",)

    def __init__(self, network: nn.Module, schedule: Schedule, *, sigma_data: float = 0.5, **options: Any) -> None:
        super().__init__(network, schedule, **options)
        if not sigma_data > 0:
            raise ValueError(f"sigma_data must be positive, got {sigma_data}.")
        self.sigma_data = sigma_data

    def label(self, t: Time) -> Tensor:
        return -self.schedule.log_snr(t) / 8.0 if self._label is None else self._label(as_time(t))

    def forward(self, x_t: Tensor, t: Time, **condition: Any) -> Posterior:
        alpha, sigma = self.schedule.coefficients(t, x_t)
        sd = self.sigma_data
        norm = sigma**2 + (alpha * sd) ** 2
        answer = self.call_network(x_t * norm**-0.5, t, condition)
        mean = _linear(alpha * sd**2 / norm, x_t, sigma * sd * norm**-0.5, answer)
        return Posterior(x_t, alpha, sigma, mean=mean)

    def on(self, schedule: Schedule) -> EDMDenoiser:
        other = copy.copy(self)
        other._modules = dict(self._modules)  # the network is shared, the container is not
        other.schedule = schedule
        return other


class Rescheduled(Denoiser):
    """A denoiser asked under another schedule than its own.

    Both processes have the same posterior at equal SNR: x_t / alpha is the same noisy datum. So the inner model is asked at
    the time of equal log-SNR, with x_t scaled by the ratio of the alphas.
    """

    def __init__(self, inner: Denoiser, schedule: Schedule) -> None:
        super().__init__(schedule, shape=inner.shape, data_range=inner.data_range, num_classes=inner.num_classes)
        self.inner = inner

    @property
    def dtype(self) -> torch.dtype:
        return self.inner.dtype

    def inner_time(self, t: Time) -> Tensor:
        """The inner model's time of equal log-SNR, kept inside the range the inner model knows."""
        inner = self.inner.schedule
        time = inner.time_of_log_snr(self.schedule.log_snr(t))
        return time.clamp(min=inner.t_min) if isinstance(inner, DiscreteSchedule) else time

    def forward(self, x_t: Tensor, t: Time, **condition: Any) -> Posterior:
        alpha, sigma = self.schedule.coefficients(t, x_t)
        inner_t = self.inner_time(t)
        inner_alpha, _ = self.inner.schedule.coefficients(inner_t, x_t)
        posterior = self.inner(x_t * (inner_alpha / alpha), inner_t, **condition)
        return Posterior(x_t, alpha, sigma, mean=posterior.mean, var=posterior.var)


class Guided(Denoiser):
    """Base of wrappers that change another denoiser's answer and share everything else with it."""

    def __init__(self, inner: Denoiser) -> None:
        super().__init__(inner.schedule, shape=inner.shape, data_range=inner.data_range, num_classes=inner.num_classes)
        self.inner = inner

    @property
    def dtype(self) -> torch.dtype:
        return self.inner.dtype


class ClassifierFreeGuidance(Guided):
    """eps_u + scale (eps_c - eps_u), in one call on the doubled batch [unconditional; conditional] (Ho and Salimans 2022).

    Args:
        inner: a conditional denoiser.
        scale: 1 is the conditional model itself (and then costs one plain call), 0 the unconditional one.
        unconditional: what stands for "no condition", by keyword; default: the label `inner.num_classes`.
    """

    citation: ClassVar[tuple[str, ...]] = ("ho2022classifierfree",)

    def __init__(self, inner: Denoiser, scale: float, unconditional: Mapping[str, Any] | None = None) -> None:
        super().__init__(inner)
        if unconditional is None:
            if inner.num_classes is None:
                raise ValueError(
                    "Say what stands for 'no condition': this denoiser has no num_classes to take it from."
                )
            unconditional = {"class_labels": inner.num_classes}
        self.scale, self.unconditional = float(scale), dict(unconditional)

    def forward(self, x_t: Tensor, t: Time, **condition: Any) -> Posterior:
        if self.scale == 1.0:
            return self.inner(x_t, t, **condition)
        rows = x_t.shape[0]
        both: dict[str, Any] = {}
        for name, value in condition.items():
            if isinstance(value, Tensor) and value.ndim and value.shape[0] == rows:
                null = torch.as_tensor(self.unconditional.get(name, value), dtype=value.dtype, device=value.device)
                both[name] = torch.cat([null.expand_as(value), value])
            else:
                both[name] = value
        if isinstance(t, Tensor) and t.ndim:
            t = torch.cat([t, t])
        eps_u, eps_c = self.inner(torch.cat([x_t, x_t]), t, **both).eps.chunk(2)
        alpha, sigma = self.schedule.coefficients(t if not (isinstance(t, Tensor) and t.ndim) else t[:rows], x_t)
        return Posterior(x_t, alpha, sigma, eps=torch.lerp(eps_u, eps_c, self.scale))


class ClassifierGuidance(Guided):
    """eps - scale sigma grad_x log p(y | x_t, t) (Dhariwal and Nichol 2021).

    Args:
        inner: any denoiser.
        log_prob: ``log_prob(x_t, t, **condition) -> (batch,)``, the log-probability of the wanted class of each row; not
            logits, whose gradient is another one.
        scale: strength of the guidance; 1 samples from the Bayes posterior.
        takes: keywords of the condition that go to the classifier alone.
    """

    citation: ClassVar[tuple[str, ...]] = ("dhariwal2021diffusion",)

    def __init__(
        self, inner: Denoiser, log_prob: Callable[..., Tensor], scale: float = 1.0, takes: Sequence[str] = ()
    ) -> None:
        super().__init__(inner)
        self.log_prob, self.scale, self.takes = log_prob, float(scale), tuple(takes)

    def forward(self, x_t: Tensor, t: Time, **condition: Any) -> Posterior:
        inner = {name: value for name, value in condition.items() if name not in self.takes}
        posterior = self.inner(x_t, t, **inner)
        with torch.enable_grad():
            x = x_t.detach().requires_grad_()
            log_prob = self.log_prob(x, t, **condition)
            if log_prob.shape != x_t.shape[:1]:
                raise ValueError(
                    f"log_prob must return one log-probability per row, ({x_t.shape[0]},), but returned {tuple(log_prob.shape)}."
                )
            (gradient,) = torch.autograd.grad(log_prob.sum(), x)
        return posterior.replace(eps=posterior.eps - self.scale * posterior.sigma * gradient)


_PREDICTIONS: dict[str, type[NetworkDenoiser]] = {
    cls.prediction: cls for cls in (EpsDenoiser, DataDenoiser, VDenoiser, ScoreDenoiser, FlowDenoiser, EDMDenoiser)
}


def denoiser(network: nn.Module, schedule: Schedule, prediction: str = "eps", **options: Any) -> NetworkDenoiser:
    """Your own network as a denoiser.

    Args:
        network: any module called as ``network(x, label, **condition)``.
        schedule: the forward process it was trained on.
        prediction: what it predicts: eps, x0, v, score, flow (the velocity eps - x_0) or edm (preconditioned).
        **options: see :class:`NetworkDenoiser` and, for edm, :class:`EDMDenoiser`.
    """
    return look_up("prediction", prediction, _PREDICTIONS)(network, schedule, **options)


def prediction_names() -> list[str]:
    """The predictions that :func:`denoiser` knows."""
    return list(_PREDICTIONS)
