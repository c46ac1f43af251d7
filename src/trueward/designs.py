"""A model for data that nobody has made a recipe for: network and preconditioning from the shape and spread of the data.

Images get a U-Net that halves the resolution until about 8 pixels are left, with attention at 16 pixels and below; the width
grows with the resolution. The standard deviation that EDM's preconditioning needs is measured. Every choice can be overridden.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from trueward.data import Dataset
from trueward.naming import check_name
from trueward.networks import network_names
from trueward.schedules import schedule as schedule_by_name

_SMALL, _MOST_LEVELS = 8, 5


def resolutions(size: int, levels: int) -> list[int]:
    """The resolution of each level of a U-Net: halved, rounded up."""
    found = [size]
    for _ in range(levels - 1):
        found.append(-(-found[-1] // 2))
    return found


def image_network(shape: Sequence[int], **options: Any) -> dict[str, Any]:
    """Arguments of a U-Net for images (channels, height, width); `options` that are not None override."""
    channels, height, width = shape
    size = max(height, width)
    levels = 1
    while levels < _MOST_LEVELS and resolutions(size, levels)[-1] > _SMALL:
        levels += 1
    levels = max(2, levels)
    multipliers = [1, 2, 4, 4, 4][:levels] if levels > 2 else [1, 2]
    given = {name: value for name, value in options.items() if value is not None}
    levels = len(given.get("multipliers", multipliers))
    heights = resolutions(height, levels)
    chosen = {
        "channels": channels,
        "size": height if height == width else [height, width],
        "width": 32 if size <= 32 else 64 if size <= 128 else 96,
        "multipliers": multipliers,
        "blocks": 2,
        "attention": sorted({h for h in heights[1:] if h <= 16}, reverse=True)[-1:],
    }
    return {"network": "UNet", **chosen, **given}


def vector_network(shape: Sequence[int], **options: Any) -> dict[str, Any]:
    """Arguments of a multi-layer perceptron for vectors (d,) or entries of any shape taken as one vector.

    `blocks` is its depth; what only images have (multipliers, attention) is refused.
    """
    given = {name: value for name, value in options.items() if value is not None}
    for name in ("multipliers", "attention"):
        if name in given:
            raise ValueError(
                f"{name}={given[name]} belongs to networks for images, but the samples have shape {tuple(shape)}."
            )
    if "blocks" in given:
        given["depth"] = given.pop("blocks")
    return {"network": "MLP", "dim": shape[0] if len(shape) == 1 else list(shape), **given}


def spread_of(data: Dataset, most: int = 4096) -> float:
    """Standard deviation of the data over up to `most` evenly spaced samples, all components together, three digits."""
    rows = torch.linspace(0, len(data) - 1, min(most, len(data)), dtype=torch.float64).long()
    spread = float(data.batch(rows)["x"].double().std(correction=0))
    if not spread > 0:
        raise ValueError(f"The data {data.name!r} are all the same value: there is nothing to learn.")
    return float(f"{spread:.3g}")


def design(
    data: Dataset,
    *,
    network: str | None = None,
    schedule: str = "edm",
    prediction: str = "edm",
    conditional: bool | None = None,
    **options: Any,
) -> dict[str, Any]:
    """``{"network": ..., "denoiser": ...}``, for :func:`trueward.training.train`.

    Args:
        data: what to learn.
        network: UNet, MLP or your own registered class; default: by the shape.
        schedule: see :func:`trueward.schedules.schedule`.
        prediction: what the network predicts: edm (preconditioned), eps, x0, v, score.
        conditional: learn the classes; default: if the data have labels.
        **options: arguments of the network; None leaves the choice.

    Raises:
        ValueError: data of a shape that the network does not take; classes of data without labels; unknown names.
    """
    shape = data.shape
    if conditional and data.num_classes is None:
        raise ValueError(f"The data {data.name!r} have no labels, so a model cannot be conditional on classes.")
    classes = data.num_classes if conditional is None or conditional else None
    network = check_name(
        "network", ("UNet" if len(shape) == 3 else "MLP") if network is None else network, network_names()
    )
    if network == "UNet":
        if len(shape) != 3:
            raise ValueError(f"UNet takes images (channels, height, width), but the samples have shape {tuple(shape)}.")
        built = image_network(shape, **options)
    elif network == "MLP":
        built = vector_network(shape, **options)
    else:
        built = {"network": network, **{name: value for name, value in options.items() if value is not None}}
    denoiser: dict[str, Any] = {
        "prediction": prediction,
        "schedule": schedule_by_name(schedule).to_config(),
        "shape": list(shape),
        "data_range": None if data.data_range is None else list(data.data_range),
        "num_classes": classes,
    }
    if prediction == "edm":
        denoiser["sigma_data"] = spread_of(data)
    return {"network": {**built, "num_classes": classes}, "denoiser": denoiser}
