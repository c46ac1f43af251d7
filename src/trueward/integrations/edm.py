r"""Weights of EDM's networks (Karras et al. 2022) from a state dict and a description; nothing is unpickled.

The published networks are preconditioned functions D(x; sigma) around a network F (table 1 of the paper):

    EDMPrecond    D = c_skip x + c_out F(c_in x, log(sigma) / 4)                       an EDMDenoiser on EDM
    VPPrecond     D = x - sigma F(x / sqrt(1 + sigma^2), (M - 1) t(sigma))             F is eps on VPLinear
    VEPrecond     D = x + sigma F(x, log(sigma / 2))                                   F is -eps on EDM

Where EDM's own code is at hand, a network ``net`` goes into a folder that :func:`trueward.load` opens by ::

    safetensors.torch.save_file(net.state_dict(), "folder/weights.safetensors")
    json.dump({"class_name": type(net).__name__, **net.init_kwargs}, open("folder/edm.json", "w"))
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from trueward import records
from trueward.denoisers import EDMDenoiser, EpsDenoiser, NetworkDenoiser
from trueward.loading import read_weights, save_tensors, set_weights
from trueward.naming import check_name
from trueward.networks import DhariwalUNet, SongUNet, network_config
from trueward.schedules import EDM, VPLinear

DESCRIPTION, WEIGHTS = "edm.json", "weights.safetensors"
_NETWORKS = {"SongUNet": SongUNet, "DhariwalUNet": DhariwalUNet}
_DEFAULT_NETWORK = {"EDMPrecond": "DhariwalUNet", "VPPrecond": "SongUNet", "VEPrecond": "SongUNet"}
_OPTIONS = {
    "EDMPrecond": {"sigma_min": 0.0, "sigma_max": math.inf, "sigma_data": 0.5},
    "VPPrecond": {"beta_d": 19.9, "beta_min": 0.1, "M": 1000, "epsilon_t": 1e-5},
    "VEPrecond": {"sigma_min": 0.02, "sigma_max": 100.0},
}
_LOWEST, _HIGHEST = 0.002, 80.0  # where the published samplers run; the networks themselves know no bounds


class NegatedNetwork(nn.Module):
    """-F: the network of VEPrecond predicts the noise with the opposite sign."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor, label: Tensor, class_labels: Tensor | None = None) -> Tensor:
        return -self.network(x, label, class_labels)


def is_edm_folder(folder: str | Path) -> bool:
    """Is this a folder with EDM's weights (has it an ``edm.json``)?"""
    return (Path(folder) / DESCRIPTION).is_file()


def _as_number(value: Any) -> float:
    return math.inf if value is None else float(value)  # JSON has no infinity


def from_edm(weights: Mapping[str, Tensor] | str | Path, description: Mapping[str, Any]) -> NetworkDenoiser:
    """A network of EDM as a `Denoiser`, in evaluation mode.

    Args:
        weights: the state dict with the published names (with or without ``model.`` in front), or a file with one:
            safetensors, or a ``.pt`` that ``torch.load(weights_only=True)`` opens.
        description: ``class_name`` (EDMPrecond, VPPrecond, VEPrecond) and the arguments it was made with: img_resolution,
            img_channels, label_dim, model_type and the network's own (model_channels, channel_mult, augment_dim, ...).

    Raises:
        ValueError: an unknown class, network or option; weights that do not fit, naming the first that does not.
    """
    given = {name: value for name, value in description.items() if name not in ("use_fp16", "format")}
    kind = str(given.pop("class_name", "EDMPrecond")).rpartition(".")[2]
    if kind == "iDDPMPrecond":
        raise ValueError(
            "iDDPMPrecond works on a table of its own and is not supported; it is DiscreteSchedule with eps."
        )
    check_name("EDM preconditioning", kind, _DEFAULT_NETWORK)
    model_type = check_name("EDM network", str(given.pop("model_type", _DEFAULT_NETWORK[kind])), _NETWORKS)
    options = {name: given.pop(name, default) for name, default in _OPTIONS[kind].items()}
    resolution, channels = int(given.pop("img_resolution", 32)), int(given.pop("img_channels", 3))
    classes = int(given.pop("label_dim", 0) or 0)
    try:
        network = _NETWORKS[model_type](
            img_resolution=resolution, in_channels=channels, out_channels=channels, label_dim=classes, **given
        )
    except TypeError as error:
        raise ValueError(f"{model_type} cannot be made from this description: {error}.") from None
    if isinstance(weights, str | Path):
        source, tensors = str(weights), _read(Path(weights))
    else:
        source, tensors = "The state dict", dict(weights)
    set_weights(network, {name.removeprefix("model."): value for name, value in tensors.items()}, source)
    about: dict[str, Any] = {
        "shape": (channels, resolution, resolution),
        "data_range": (-1.0, 1.0),
        "num_classes": classes or None,
    }
    return _denoiser(network, kind, options, about).requires_grad_(False).eval()


def _denoiser(network: nn.Module, kind: str, options: dict[str, Any], about: dict[str, Any]) -> NetworkDenoiser:
    """D around F."""
    if kind == "VPPrecond":
        low, steps = float(options["beta_min"]), int(options["M"])
        schedule = VPLinear(low, low + float(options["beta_d"]), t_min=max(float(options["epsilon_t"]), 1e-5))
        return EpsDenoiser(network, schedule, label=lambda t: (steps - 1) * t, **about)
    sigma_min, sigma_max = float(options["sigma_min"] or _LOWEST), _as_number(options["sigma_max"])
    span = EDM(sigma_min, _HIGHEST if math.isinf(sigma_max) else sigma_max)
    if kind == "VEPrecond":
        return EpsDenoiser(NegatedNetwork(network), span, label=lambda sigma: torch.log(0.5 * sigma), **about)
    return EDMDenoiser(network, span, sigma_data=float(options["sigma_data"]), **about)


def _read(path: Path) -> dict[str, Tensor]:
    """The tensors of a file."""
    if path.suffix.lower() not in (".pt", ".pth"):
        if path.suffix.lower() != ".safetensors":
            raise ValueError(
                f"{path} is neither safetensors nor a state dict (.pt); a pickled network runs code when opened: save its state_dict() where its code is at hand."
            )
        return read_weights(path)
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds: what it says is what the user needs
        raise ValueError(f"{path} is no plain state dict: {' '.join(str(error).split())[:200]}") from None
    if not isinstance(found, Mapping) or not all(isinstance(value, Tensor) for value in found.values()):
        raise ValueError(f"{path} holds more than a state dict (names to tensors).")
    return dict(found)


def load_edm(folder: str | Path, device: torch.device | str | None = None) -> NetworkDenoiser:
    """The folder with ``edm.json`` and ``weights.safetensors`` as a `Denoiser`.

    Raises:
        ValueError: if one is missing or damaged, or they do not fit each other.
    """
    folder = Path(folder)
    if not is_edm_folder(folder):
        raise ValueError(f"{folder} has no {DESCRIPTION}, so it is no export of EDM weights.")
    try:
        description = json.loads((folder / DESCRIPTION).read_text())
    except json.JSONDecodeError as error:
        raise ValueError(f"{folder / DESCRIPTION} is not valid JSON: {error}.") from error
    if not isinstance(description, dict):
        raise ValueError(f"{folder / DESCRIPTION} does not describe a network.")
    model = from_edm(folder / WEIGHTS, description)
    model.record = {"kind": "edm-export", "description": description}  # type: ignore[assignment]
    model.folder = folder  # type: ignore[assignment]
    return model if device is None else model.to(device)


def save_edm(denoiser: EDMDenoiser, folder: str | Path) -> Path:
    """Writes a denoiser around one of EDM's networks as a folder that :func:`load_edm` opens, with the published names.

    Raises:
        ValueError: for another denoiser or network.
    """
    network = getattr(denoiser, "network", None)
    if not isinstance(denoiser, EDMDenoiser) or not isinstance(network, SongUNet | DhariwalUNet):
        raise ValueError(
            "Only an EDMDenoiser around a SongUNet or DhariwalUNet has the form of EDM's weights; use trueward.save_run for others."
        )
    folder, config = Path(folder), network_config(network)
    description = {
        "class_name": "EDMPrecond",
        "model_type": config.pop("network"),
        "img_resolution": config.pop("img_resolution"),
        "img_channels": config.pop("in_channels"),
        "sigma_data": denoiser.sigma_data,
        "sigma_min": denoiser.schedule.t_min,
        "sigma_max": denoiser.schedule.t_max,
        **{name: value for name, value in config.items() if name != "out_channels"},
    }
    with records.atomic(folder / WEIGHTS) as part:
        save_tensors({f"model.{name}": value for name, value in network.state_dict().items()}, part)
    records.write_json(folder / DESCRIPTION, description)
    return folder
