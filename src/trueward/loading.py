"""Models as folders: ``run.json`` says what they are, ``model.safetensors`` holds their weights.

:func:`load` opens a run folder written by training, or a model that comes with the package by its name;
:func:`save_run` writes one. Weights may be stored in half precision and are float32 in memory. Nothing is unpickled.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from trueward import records
from trueward.denoisers import Denoiser, EDMDenoiser, NetworkDenoiser, denoiser
from trueward.naming import check_name
from trueward.networks import network, network_config
from trueward.schedules import Schedule

FORMAT = 1
_ZOO = Path(__file__).parent / "zoo"
_PICKLES = (".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".bin")


def zoo_names() -> list[str]:
    """The models that come with the package."""
    if not _ZOO.is_dir():
        return []
    return sorted(p.name for p in _ZOO.iterdir() if (p / "run.json").is_file())


def denoiser_config(model: Denoiser) -> dict[str, Any]:
    """What :func:`build_denoiser` needs beside the network, JSON-able.

    Raises:
        ValueError: for a wrapper, or a denoiser with a time input of its own, which a file cannot describe.
    """
    if not isinstance(model, NetworkDenoiser):
        raise ValueError(
            f"{type(model).__name__} cannot be stored: store the denoiser around the network and wrap it again after loading."
        )
    if model._label is not None:
        raise ValueError(
            "A denoiser with its own label function cannot be stored: give the schedule its label instead."
        )
    return {
        "prediction": model.prediction,
        "schedule": model.schedule.to_config(),
        "shape": None if model.shape is None else list(model.shape),
        "data_range": None if model.data_range is None else list(model.data_range),
        "num_classes": model.num_classes,
        **({"sigma_data": model.sigma_data} if isinstance(model, EDMDenoiser) else {}),
    }


def build_denoiser(module: nn.Module, config: Mapping[str, Any]) -> NetworkDenoiser:
    """The denoiser that `config` describes, around `module`."""
    options = dict(config)
    data_range = options.pop("data_range", None)
    return denoiser(
        module,
        Schedule.from_config(options.pop("schedule")),
        options.pop("prediction"),
        data_range=None if data_range is None else tuple(data_range),
        **options,
    )


def model_config(model: Denoiser) -> dict[str, Any]:
    """``{"network": ..., "denoiser": ...}``: the model without its weights."""
    config = denoiser_config(model)
    assert isinstance(model, NetworkDenoiser)
    return {"network": network_config(model.network), "denoiser": config}


def build_model(config: Mapping[str, Any]) -> NetworkDenoiser:
    """The model that :func:`model_config` described, freshly initialised."""
    return build_denoiser(network(config["network"]), config["denoiser"])


def save_tensors(tensors: dict[str, Tensor], path: Path, metadata: dict[str, str] | None = None) -> None:
    """Writes tensors as safetensors, contiguous and on the CPU (memory format is not part of a weight)."""
    from safetensors.torch import save_file

    plain = {name: value.detach().to("cpu").contiguous().clone() for name, value in tensors.items()}
    save_file(plain, path, metadata=metadata or {"format": "pt"})


def save_run(
    folder: str | Path,
    model: Denoiser,
    record: Mapping[str, Any] | None = None,
    weights: Mapping[str, Tensor] | None = None,
    dtype: torch.dtype | None = None,
) -> Path:
    """Writes a run folder that :func:`load` opens.

    Args:
        folder: made if needed.
        model: a denoiser around a registered network.
        record: further entries of ``run.json`` (objective, training, data, record, ...).
        weights: to store instead of the network's own, e.g. their average.
        dtype: in which to store floating-point weights; default: as they are.

    Raises:
        ValueError: if the model cannot be described in JSON; the message says what to add.
    """
    folder = Path(folder)
    config = model_config(model)
    assert isinstance(model, NetworkDenoiser)
    tensors = dict(model.network.state_dict() if weights is None else weights)
    if dtype is not None:
        tensors = {k: v.to(dtype) if v.is_floating_point() else v for k, v in tensors.items()}
    run = {"format": FORMAT, "kind": "trueward-run", **config, **(record or {})}
    with records.atomic(folder / "model.safetensors") as part:
        save_tensors(tensors, part)
    records.write_json(folder / "run.json", run)
    return folder


def _read_run(folder: Path) -> dict[str, Any]:
    try:
        run = records.read_json(folder / "run.json")
    except OSError as error:
        raise ValueError(f"{folder / 'run.json'} cannot be read ({error.strerror}).") from None
    if not isinstance(run, dict) or run.get("kind") != "trueward-run":
        raise ValueError(f"{folder / 'run.json'} does not describe a trueward run.")
    if run.get("format") != FORMAT:
        raise ValueError(f"{folder} has format {run.get('format')!r}; this version of trueward reads format {FORMAT}.")
    for part in ("network", "denoiser"):
        if not isinstance(run.get(part), dict):
            raise ValueError(f"{folder / 'run.json'} has no entry {part!r}.")
    return run


def read_weights(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not path.is_file():
        raise ValueError(f"{path} is missing: the run has not written its weights yet, or they were not copied.")
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path} is cut short or damaged ({error}).") from None


def set_weights(module: nn.Module, weights: Mapping[str, Tensor], source: str) -> None:
    """Copies `weights` into `module`, converting to its dtype.

    Raises:
        ValueError: naming the first weight that is missing, unknown or of another shape.
    """
    own = module.state_dict()
    for name, value in own.items():
        if name not in weights:
            raise ValueError(f"{source} has no weight {name!r}: it belongs to another network.")
        if weights[name].shape != value.shape:
            raise ValueError(
                f"{source} has {name!r} of shape {tuple(weights[name].shape)}, but the network needs {tuple(value.shape)}."
            )
    for name, value in weights.items():
        if name not in own:
            raise ValueError(f"{source} has a weight {name!r} that the network does not know.")
        if value.is_floating_point() and not bool(value.isfinite().all()):
            raise ValueError(f"{source}: the weight {name!r} holds NaN or infinity.")
    module.load_state_dict({name: weights[name].to(value.dtype) for name, value in own.items()})


def find(name: str | Path) -> Path:
    """The folder of a model: a path, or a name from the zoo.

    Raises:
        ValueError: if there is none, with the closest name.
    """
    path = Path(name)
    if path.suffix.lower() in _PICKLES:
        raise ValueError(
            f"{name} is a pickle, which may run code when opened, and is refused; load its weights yourself with "
            "torch.load(..., weights_only=True) into your network and wrap that with trueward.denoiser."
        )
    if path.is_dir():
        return path
    if path.is_file():
        if path.name in ("run.json", "model.safetensors"):
            return path.parent
        raise ValueError(f"{name} is a file; give the folder of a run.")
    if str(name) in zoo_names():
        return _ZOO / str(name)
    if len(path.parts) == 1:
        check_name("model or folder", str(name), zoo_names())
    raise ValueError(f"There is no folder {name}. Models that come with trueward: {', '.join(zoo_names()) or 'none'}.")


def load(name: str | Path, device: torch.device | str | None = None) -> Denoiser:
    """A trained model, ready to sample: ``load("digits")``, ``load("runs/mine")``.

    Args:
        name: a folder written by training, a diffusers pipeline folder, an EDM-style export, or a model that comes with the package.
        device: where to put it; default: the CPU.

    Returns:
        the denoiser in evaluation mode, with float32 weights and the attributes ``record``, what ``run.json`` says, and
        ``folder``, where it came from (statistics fitted to it are stored there).

    Raises:
        ValueError: if there is no such model, or it is damaged, or its network is not known; in one sentence.
    """
    folder = find(name)
    if not (folder / "run.json").is_file():
        from trueward.integrations.pipelines import is_pipeline_folder, load_pipeline

        if is_pipeline_folder(folder):
            return load_pipeline(folder, device)
        if (folder / "edm.json").is_file():
            from trueward.integrations.edm import load_edm

            return load_edm(folder, device)
        raise ValueError(
            f"{folder} has no run.json, model_index.json or edm.json: it is neither a trueward run, a diffusers pipeline nor an EDM-style export."
        )
    run = _read_run(folder)
    try:
        model = build_model(run)
    except (KeyError, TypeError) as error:
        raise ValueError(f"{folder / 'run.json'} is damaged: {error}.") from None
    set_weights(model.network, read_weights(folder / "model.safetensors"), str(folder / "model.safetensors"))
    model.requires_grad_(False).eval()
    model.record, model.folder = run, folder  # type: ignore[assignment]
    return model.to(device) if device is not None else model


def to_json(value: Any) -> Any:
    """`value` as it comes back from a JSON file (tuples as lists), for comparing settings."""
    return json.loads(json.dumps(value))
