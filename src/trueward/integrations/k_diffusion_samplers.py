r"""k-diffusion's samplers as subjects of :func:`trueward.certification.certify`: ``"k_diffusion:sample_dpmpp_2m"``.

A sampler there is a function ``sample(model, x, sigmas, extra_args, callback, disable, **options)`` in the coordinates
y = x / alpha; `sigmas` falls and ends in 0. It is given an exact truth on sigmas that are even in log-SNR (``exponential``,
k-diffusion's name) or Karras', and its result is returned as x.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from trueward.certification import Outcome, Setting, Subject
from trueward.denoisers import Denoiser
from trueward.integrations.k_diffusion import to_k_diffusion
from trueward.integrations.peers import peer
from trueward.naming import check_name, look_up
from trueward.schedules import Schedule
from trueward.times import Karras, Levels, TimeGrid, UniformLogSNR

_GRIDS: dict[str, TimeGrid] = {"exponential": UniformLogSNR(), "karras": Karras()}
_ORDERS = {
    "sample_euler": 1, "sample_heun": 2, "sample_dpm_2": 2, "sample_dpmpp_2m": 2, "sample_lms": 4,
}  # fmt: skip


class SigmaSamplerSubject(Subject):
    """A function of k-diffusion's form with base options."""

    def __init__(self, function: Callable[..., Tensor], name: str, **options: Any) -> None:
        self.function, self.name, self.options = function, name, options
        self.claims = _ORDERS.get(name)
        self._parameters = inspect.signature(function).parameters
        if "sigmas" not in self._parameters:
            raise ValueError(f"{name} chooses its own noise levels; only samplers that take `sigmas` can be certified.")

    @property
    def grids(self) -> tuple[str, ...]:
        return tuple(_GRIDS)

    @property
    def own_grid(self) -> str:
        return "exponential"

    def levels(self, schedule: Schedule, steps: int, setting: Setting) -> Levels:
        grid = look_up("time grid", setting.grid or self.own_grid, _GRIDS)
        return Levels.of(schedule, grid(schedule, max(steps - 1, 1), schedule.t_max, None)[:steps], clean=True)

    def sweep(self) -> Mapping[str, tuple[Any, ...]]:
        """Both values of switches, every word of `solver_type`."""
        choices: dict[str, tuple[Any, ...]] = {}
        for name, parameter in self._parameters.items():
            if isinstance(parameter.default, bool):
                choices[name] = (parameter.default, not parameter.default)
            elif name == "solver_type":
                choices[name] = tuple(dict.fromkeys((parameter.default, "midpoint", "heun")))
        choices.pop("disable", None)
        return choices

    def run(
        self,
        denoiser: Denoiser,
        schedule: Schedule,
        x_T: Tensor,
        steps: int,
        *,
        seed: int = 0,
        indices: Sequence[int] | None = None,
        setting: Setting = Setting(),  # noqa: B008
    ) -> Outcome:
        levels = self.levels(schedule, steps, setting)
        sigmas = torch.as_tensor(np.append(levels.sigma[:-1] / levels.alpha[:-1], 0.0)).to(x_T)
        options = {**self.options, **dict(setting.options)}
        if "disable" in self._parameters:
            options["disable"] = True
        with torch.no_grad(), torch.random.fork_rng():
            torch.manual_seed(seed)  # these samplers draw from the global stream
            y = self.function(to_k_diffusion(denoiser), x_T / float(levels.alpha[0]), sigmas, **options)
        return Outcome(y)


def subject(name: str, **options: Any) -> SigmaSamplerSubject:
    """A sampler of k-diffusion by its name, e.g. ``subject("sample_dpmpp_2m")``.

    Raises:
        ValueError: an unknown name or option, a sampler without `sigmas`, or k-diffusion missing.
    """
    sampling = peer("k_diffusion.sampling")
    known = [n for n in dir(sampling) if n.startswith("sample_")]
    made = SigmaSamplerSubject(getattr(sampling, check_name("sampler of k-diffusion", name, known)), name, **options)
    for option in options:
        check_name(f"option of {name}", option, list(made._parameters))
    return made
