"""Settings that work: a network, a denoiser and a way to train for data that come with the package or can be fetched.

    model = train(recipe("digits").model, "digits", "runs/digits", **recipe("digits").training)

Both recipes are class-conditional EDM models that are trained without the class one time in ten, so one network samples with
a class, without, and with guidance.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from trueward.naming import look_up
from trueward.objectives import DSM, LogNormalTimes, Objective
from trueward.schedules import EDM


@dataclass(frozen=True)
class Recipe:
    """How to train on some data.

    Attributes:
        data: name of the data.
        model: ``{"network": ..., "denoiser": ...}``, for :func:`trueward.training.train`.
        training: keywords of :class:`~trueward.training.TrainingConfig`.
        objective: what to minimise.
    """

    data: str
    model: dict[str, Any]
    training: dict[str, Any]
    objective: Objective


def _edm(network: dict[str, Any], shape: list[int], sigma_data: float) -> dict[str, Any]:
    return {
        "network": {"network": "UNet", "channels": shape[0], "size": shape[-1], "num_classes": 10, **network},
        "denoiser": {
            "prediction": "edm",
            "schedule": EDM().to_config(),
            "shape": shape,
            "data_range": [-1.0, 1.0],
            "num_classes": 10,
            "sigma_data": sigma_data,
        },
    }


def _digits() -> Recipe:
    return Recipe(
        "digits",
        _edm(
            {"width": 32, "multipliers": [1, 2], "blocks": [2, 2], "attention": [4], "head_width": 32, "dropout": 0.15},
            [1, 8, 8],
            0.75,
        ),
        {
            "steps": 2200,
            "batch_size": 128,
            "lr": 1.5e-3,
            "weight_decay": 0.02,
            "ema": 0.998,
            "warmup": 50,
            "held_out": 0.1,
        },
        DSM("edm", LogNormalTimes(mean=-0.8, std=1.2)),
    )


def _mnist() -> Recipe:
    return Recipe(
        "mnist",
        _edm({"width": 16, "multipliers": [1, 4, 8], "blocks": [1, 1, 2], "attention": [7]}, [1, 28, 28], 0.6),
        {"steps": 10000, "batch_size": 64, "lr": 1e-3, "ema": 0.9995, "warmup": 300, "held_out": 1000},
        DSM("edm", LogNormalTimes(mean=-0.8, std=1.2)),
    )


_RECIPES = {"digits": _digits, "mnist": _mnist}


def recipe(name: str) -> Recipe:
    """The settings for ``digits`` (8x8, a few minutes on two cores; 500 steps are enough to see digits) or ``mnist`` (28x28, an hour or more)."""
    return look_up("recipe", name, _RECIPES)()


def recipe_names() -> list[str]:
    """The names that :func:`recipe` knows."""
    return list(_RECIPES)
