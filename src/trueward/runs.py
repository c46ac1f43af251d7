"""Runs by name: start one with what is known to work, continue one with what its record says.

:func:`start_run` takes a recipe where there is one for the data and designs a model where there is none;
:func:`continue_run` reads network, data, objective and settings from ``run.json``, so nothing has to be said twice.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trueward import records
from trueward.data import load_data
from trueward.denoisers import Denoiser
from trueward.designs import design
from trueward.objectives import DSM, Objective, times_from_config
from trueward.training import TrainingConfig, recipe, recipe_names, train


def _said(options: Mapping[str, Any] | None) -> dict[str, Any]:
    """Without what was left open."""
    return {name: value for name, value in (options or {}).items() if value is not None}


def start_run(
    data: str,
    out: str | Path,
    settings: Mapping[str, Any] | None = None,
    model: Mapping[str, Any] | None = None,
    shaping: Mapping[str, Any] | None = None,
    device: str | None = None,
) -> Denoiser:
    """Trains a new model into a run folder; everything is checked before the folder is made.

    Args:
        data: what to learn: a name, file or folder, see :func:`trueward.data.load_data`.
        out: the run folder, empty or not there yet.
        settings: of :class:`~trueward.training.TrainingConfig`; the others are the recipe's, if the data have one.
        model: of :func:`trueward.designs.design` (network, schedule, prediction, conditional, width, ...); None values are
            left to the recipe or the design.
        shaping: further arguments of ``load_data``: size, limit.
        device: default: what accelerate finds.

    Returns:
        the trained denoiser.

    Raises:
        ValueError: on unknown names, values out of range, data that do not fit, a folder that is in use.
    """
    shaping, changed, chosen = _said(shaping), _said(model), _said(settings)
    objective, description = None, None
    if data in recipe_names() and "size" not in shaping:
        found = recipe(data)
        chosen = {**found.training, **chosen}
        if not changed.keys() & {"network", "schedule", "prediction", "conditional"}:
            objective = found.objective
            description = {**found.model, "network": {**found.model["network"], **changed}}
    config = TrainingConfig.from_config(chosen)
    loaded = load_data(data, **shaping)
    if description is None:
        description = design(loaded, **changed)
    return train(description, loaded, out, objective=objective, config=config, device=device)


def continue_run(out: str | Path, settings: Mapping[str, Any] | None = None, device: str | None = None) -> Denoiser:
    """Continues the run in `out` from its last checkpoint, as its record describes it.

    Args:
        out: the run folder.
        settings: given anew, e.g. more steps; what would make it another run is refused.
        device: default: what accelerate finds.

    Returns:
        the trained denoiser.

    Raises:
        ValueError: if there is no run, or its data or objective cannot be made again from its record.
    """
    out = Path(out)
    if not (out / "run.json").is_file():
        raise ValueError(f"There is no run in {out} to resume: it has no run.json.")
    before = records.read_json(out / "run.json")
    try:
        load = before["data"]["load"]
        config, description = before["training"], {part: before[part] for part in ("network", "denoiser")}
        objective = objective_from_config(before["objective"])
    except (KeyError, TypeError):
        raise ValueError(f"{out / 'run.json'} does not describe a training run.") from None
    if load is None:
        raise ValueError(
            f"The run in {out} was trained on data in memory: resume it with trueward.train(model, data, out, resume=True)."
        )
    config = TrainingConfig.from_config({**config, **_said(settings)})
    return train(description, load_data(**load), out, resume=True, objective=objective, config=config, device=device)


def objective_from_config(config: Mapping[str, Any]) -> Objective:
    """The objective that a record describes.

    Raises:
        ValueError: for objectives that hold more than numbers (critics, flows), which a record cannot describe.
    """
    options = dict(config)
    name = options.pop("objective")
    if name != "DSM":
        raise ValueError(
            f"The run was trained with {name}: resume it with trueward.train(model, data, out, resume=True)."
        )
    if options.get("times") is not None:
        options["times"] = times_from_config(options["times"])
    return DSM(**options)
