"""Networks as data: a JSON description from which the same module is built again, without running foreign code.

A network that can be rebuilt is a registered class with an attribute ``config``: its constructor's arguments as JSON
values, with its class name under ``"network"``. Your own class joins by a decorator::

    @register_network
    class Mine(nn.Module):
        def __init__(self, width: int = 32) -> None:
            super().__init__()
            self.config = {"network": "Mine", "width": width}
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any, TypeVar

from torch import nn

from trueward.naming import check_name, look_up

N = TypeVar("N", bound=type[nn.Module])

_REGISTRY: dict[str, type[nn.Module]] = {}


def register_network(cls: N) -> N:
    """Makes a class known by its name, so that :func:`network` can rebuild it from a checkpoint's description.

    Raises:
        ValueError: if `cls` is not an ``nn.Module`` class, or another class has taken the name.
    """
    if not (isinstance(cls, type) and issubclass(cls, nn.Module)):
        raise ValueError(f"register_network takes a subclass of torch.nn.Module, got {cls!r}.")
    taken = _REGISTRY.get(cls.__name__)
    if taken is not None and (taken.__module__, taken.__qualname__) != (cls.__module__, cls.__qualname__):
        raise ValueError(f"A network named {cls.__name__!r} is already registered ({taken.__module__}).")
    _REGISTRY[cls.__name__] = cls
    return cls


def network(config: Mapping[str, Any]) -> nn.Module:
    """The network that `config` describes, freshly initialised.

    Args:
        config: ``{"network": class name, **constructor arguments}``, e.g. ``{"network": "UNet", "channels": 1}``.

    Raises:
        ValueError: on a name that is not registered or an argument that its constructor does not take.
    """
    options = dict(config)
    name = options.pop("network", "(none)")
    if name not in _REGISTRY and name != "(none)":
        hint = f" If {name!r} is your own class, import its module first and decorate it with @register_network."
        try:
            check_name("network", name, _REGISTRY)
        except ValueError as error:
            raise ValueError(str(error) + hint) from None
    cls = look_up("network", name, _REGISTRY)
    parameters = inspect.signature(cls).parameters
    if not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        for option in options:
            check_name(f"option of {name}", option, parameters)
    return cls(**options)


def network_config(module: nn.Module) -> dict[str, Any]:
    """The description of a network that :func:`network` turns back into one.

    Raises:
        ValueError: if the class is not registered or has no ``config``; the message says what to add.
    """
    cls = type(module)
    config = getattr(module, "config", None)
    if (
        _REGISTRY.get(cls.__name__) is not cls
        or not isinstance(config, Mapping)
        or config.get("network") != cls.__name__
    ):
        raise ValueError(
            f"{cls.__name__} cannot be rebuilt from a file: decorate the class with trueward.networks.register_network and "
            f'set self.config = {{"network": "{cls.__name__}", ...constructor arguments}} in its __init__.'
        )
    return dict(config)


def network_names() -> list[str]:
    """The names of the registered networks."""
    return list(_REGISTRY)
