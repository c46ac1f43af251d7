"""What samples of a model should look like: by default the data it was trained on, with a part it has not seen as the floor."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trueward import records
from trueward.data import Dataset, load_data
from trueward.denoisers import Denoiser


@dataclass(frozen=True)
class Reference:
    """Data to measure against.

    Attributes:
        train: what samples are compared with.
        held_out: other data of the same kind, None if there are none.
        features: the feature map that fits these data, by name; None for the values themselves.
        description: the data in words, for reports.
    """

    train: Dataset
    held_out: Dataset | None
    features: str | None
    description: str


def reference_of(denoiser: Denoiser, spec: str | None = None) -> Reference:
    """The reference for a model: `spec` (anything ``load_data`` takes), by default what the model's record names.

    Raises:
        ValueError: if the model does not say what it was trained on and `spec` is not given, or the data do not fit it.
    """
    from trueward.metrics.features import default_features

    if spec is None:
        load = _recorded(denoiser)
    else:
        load = {"spec": spec}
        if denoiser.shape is not None and len(denoiser.shape) == 3 and denoiser.shape[1] == denoiser.shape[2]:
            load |= _fitted(spec, denoiser)
    train = load_data(**{**load, "split": "train"})
    if denoiser.shape is not None and train.shape != denoiser.shape:
        raise ValueError(
            f"The reference {train.name!r} has samples of shape {train.shape}, but the model draws {denoiser.shape}."
        )
    try:
        held_out = load_data(**{**load, "split": "test"})
    except ValueError:  # data in one piece
        held_out = None
    return Reference(train, held_out, default_features(train), f"{train.name}, train split, {len(train)} samples")


def _recorded(denoiser: Denoiser) -> dict[str, Any]:
    """The arguments of ``load_data`` in the model's record."""
    record = getattr(denoiser, "record", None)
    data = record.get("data") if isinstance(record, dict) else None
    load = data.get("load") if isinstance(data, dict) else None
    if not isinstance(load, dict):
        raise ValueError(
            "The model's record does not say which data it was trained on: name them with --data DATA (compare: --reference DATA)."
        )
    return load


def remember(denoiser: Denoiser, reference: Reference) -> None:
    """Notes in a diffusers folder which data were named for it, so that they need not be named again.

    A trueward run knows its data and is left as it is, and so is a folder that cannot be written to or has its note.
    """
    from trueward.integrations.pipelines import NOTE, is_pipeline_folder

    folder = getattr(denoiser, "folder", None)
    data = reference.train.to_config()
    if folder is None or not is_pipeline_folder(folder) or not isinstance(data.get("load"), dict):
        return
    note = Path(folder) / NOTE
    if not note.exists():
        with contextlib.suppress(OSError):
            records.write_json(note, {"data": data})


def _fitted(spec: str, denoiser: Denoiser) -> dict[str, Any]:
    """Pictures of any size are brought to the model's."""
    assert denoiser.shape is not None
    if not Path(spec).expanduser().is_dir():
        return {}
    return {"size": denoiser.shape[1], "channels": denoiser.shape[0]}
