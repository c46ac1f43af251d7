r"""The features of a frozen model, taken on the way to its answer: one network call gives both.

Which layer holds them:

* a trueward network (``forward_features`` and ``out``): what goes into `out`;
* a diffusers U-Net: what goes into ``conv_norm_out``;
* any other ``nn.Module``: what the layer you name puts out (``feature_layer="blocks.3"``);
* a model without layers (a closed form, a black box): ``"inputs"``, x_t and the noise prediction side by side.

The layer is watched by a hook that changes nothing, and only while a trunk is asking, in its own thread.
"""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from trueward.denoisers import Denoiser, Posterior
from trueward.naming import check_name
from trueward.schedules import Time

INPUTS = "inputs"


class _Watch:
    """What a hook puts the features into: the layer that is watched and what was seen there."""

    __slots__ = ("layer", "seen")

    def __init__(self, layer: nn.Module) -> None:
        self.layer, self.seen = layer, None

    def see(self, module: nn.Module, value: Any) -> None:
        if module is self.layer:
            self.seen = value[0] if isinstance(value, tuple | list) else value


_watch: ContextVar[_Watch | None] = ContextVar("watch", default=None)


def _on_input(module: nn.Module, inputs: tuple[Any, ...]) -> None:
    watch = _watch.get()
    if watch is not None:
        watch.see(module, inputs)


def _on_output(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
    watch = _watch.get()
    if watch is not None:
        watch.see(module, output)


def _network(denoiser: Denoiser) -> tuple[str, nn.Module] | None:
    """The network inside a denoiser, through any wrappers, with its path."""
    path, at = "", denoiser
    while True:
        network = getattr(at, "network", None)
        if isinstance(network, nn.Module):
            return f"{path}network", network
        inner = getattr(at, "inner", None)
        if not isinstance(inner, Denoiser):
            return None
        path, at = f"{path}inner.", inner


def locate(denoiser: Denoiser, feature_layer: str = "auto") -> tuple[str, bool]:
    """Where the features are: (path of the layer within `denoiser`, whether its input is meant), or ("inputs", True).

    Raises:
        ValueError: a layer that does not exist (with the closest name), or none given for a network of unknown make.
    """
    if feature_layer == INPUTS:
        return INPUTS, True
    found = _network(denoiser)
    if found is None:
        if feature_layer == "auto":
            return INPUTS, True
        raise ValueError(
            f"{type(denoiser).__name__} holds no network, so it has no layer {feature_layer!r}; use 'inputs'."
        )
    path, network = found
    if feature_layer == "auto":
        inside: nn.Module | None = network
        while isinstance(inside, nn.Module):  # adapters hold the network proper as `model` or `network`
            for name in ("out", "conv_norm_out"):
                if isinstance(getattr(inside, name, None), nn.Module) and (
                    name != "out" or hasattr(inside, "forward_features")
                ):
                    return f"{path}.{name}", True
            step = next((n for n in ("model", "network") if isinstance(getattr(inside, n, None), nn.Module)), "")
            path, inside = f"{path}.{step}", getattr(inside, step, None) if step else None
        raise ValueError(
            f"Say which layer of {type(network).__name__} holds the features, feature_layer='name'; its layers are "
            f"{', '.join([name for name, _ in network.named_modules() if name][:20])}."
        )
    check_name(f"layer of {type(network).__name__}", feature_layer, [n for n, _ in network.named_modules() if n])
    return f"{path}.{feature_layer}", False


@dataclass(frozen=True)
class Trunk:
    """Asks a denoiser and catches its features.

    Args:
        path, of_input: see :func:`locate`.
    """

    path: str
    of_input: bool

    @classmethod
    def of(cls, denoiser: Denoiser, feature_layer: str = "auto") -> Trunk:
        """The trunk of a denoiser, with its layer watched from now on."""
        trunk = cls(*locate(denoiser, feature_layer))
        if trunk.path != INPUTS:
            layer = denoiser.get_submodule(trunk.path)
            hooks = (layer._forward_pre_hooks if trunk.of_input else layer._forward_hooks).values()
            if trunk.of_input and _on_input not in hooks:
                layer.register_forward_pre_hook(_on_input)
            elif not trunk.of_input and _on_output not in hooks:
                layer.register_forward_hook(_on_output)
        return trunk

    def __call__(self, denoiser: Denoiser, x_t: Tensor, t: Time, condition: dict[str, Any]) -> tuple[Posterior, Tensor]:
        """(posterior, features (batch, channels, ...)) in one call of the model.

        Raises:
            ValueError: if the layer was not used, or saw another number of rows than `x_t` has.
        """
        if self.path == INPUTS:
            posterior = denoiser(x_t, t, **condition)
            return posterior, torch.cat([x_t, posterior.eps], dim=1)
        watch = _Watch(denoiser.get_submodule(self.path))
        token = _watch.set(watch)
        try:
            posterior = denoiser(x_t, t, **condition)
            posterior.eps  # noqa: B018  (a lazy answer is computed while the layer is watched)
        finally:
            _watch.reset(token)
        features = watch.seen
        if not isinstance(features, Tensor):
            raise ValueError(
                f"The layer {self.path!r} gave no tensor when the model was asked; name another feature_layer."
            )
        if features.shape[0] != x_t.shape[0]:
            raise ValueError(
                f"The layer {self.path!r} saw {features.shape[0]} rows for {x_t.shape[0]} samples (a guided model asks its "
                "network for both halves); fit the head on the model itself, or use feature_layer='inputs'."
            )
        return posterior, features
