r"""Covariances on disk, beside the model they belong to:

    FOLDER/covariance/analytic.{safetensors,json}         the table of gamma and of the residual
    FOLDER/covariance/analytic-full.{safetensors,json}    the table of matrices
    FOLDER/covariance/sn/, npr/, npr-full/                a head: model.safetensors, run.json, covariance.json

Each says the schedule and the model it was made for, and is refused for another. :func:`with_covariance` puts one on a model
by its name: analytic, analytic-residual, analytic-full, sn, npr or npr-full.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from trueward import records
from trueward.covariance.analytic import CONVENTION, SCALAR_KINDS, AnalyticCovariance, GammaTable
from trueward.covariance.full import FullAnalyticCovariance, FullTable
from trueward.covariance.learned import LearnedCovariance, NPRCovariance, NPRFullCovariance, SNCovariance
from trueward.denoisers import Denoiser, Guided
from trueward.naming import check_name, look_up
from trueward.networks.registry import network, network_config
from trueward.samplers.ancestral import COVARIANCES, Ancestral
from trueward.schedules import Schedule

HEADS: dict[str, type[LearnedCovariance]] = {
    cls.covariance_kind: cls for cls in (SNCovariance, NPRCovariance, NPRFullCovariance)
}
FORMAT = 1


def fingerprint(denoiser: Denoiser) -> str:
    """A short hash of a model's weights and schedule."""
    digest = hashlib.sha256(denoiser.schedule.fingerprint.encode())
    for name, value in sorted(denoiser.state_dict().items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def covariance_folder(folder: str | Path) -> Path:
    """Where the covariances of the model in `folder` are."""
    return Path(folder) / "covariance"


def _write(path: Path, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
    from safetensors.torch import save_file

    with records.atomic(path.with_suffix(".safetensors")) as part:
        # columns may share memory, which safetensors refuses
        save_file({name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}, part)
    records.write_json(path.with_suffix(".json"), {"format": FORMAT, **facts})


def _read_tensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not path.is_file():
        raise ValueError(f"{path} is missing; fit it with `trueward fit-covariance`.")
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path} is cut short or damaged ({error}).") from None


def _read_facts(path: Path, kind: str) -> dict[str, Any]:
    if not path.is_file():
        raise ValueError(f"{path} is missing; fit it with `trueward fit-covariance`.")
    facts = records.read_json(path)
    if not isinstance(facts, dict) or facts.get("format") != FORMAT or facts.get("kind") != kind:
        raise ValueError(f"{path} does not describe a covariance of kind {kind!r}.")
    return facts


# --- tables -------------------------------------------------------------------------------------------------------------


def save_table(table: GammaTable, folder: str | Path, denoiser: Denoiser | None = None) -> Path:
    """Writes a table beside the model in `folder`; `denoiser` adds which model it was measured on.

    Returns:
        the path of its JSON file.
    """
    path = covariance_folder(folder) / "analytic.json"
    columns = {name: torch.as_tensor(getattr(table, name)) for name in table.columns}
    facts = {
        "kind": "analytic",
        "convention": CONVENTION,
        "schedule": table.schedule.to_config(),
        "schedule_fingerprint": table.schedule.fingerprint,
        "model": None if denoiser is None else fingerprint(denoiser),
        "about": dict(table.about),
        **records.circumstances(),
    }
    _write(path, columns, facts)
    return path


def load_table(folder: str | Path) -> GammaTable:
    """The table beside the model in `folder`.

    Raises:
        ValueError: if there is none, it is damaged, or it follows another convention.
    """
    path = covariance_folder(folder) / "analytic.json"
    facts = _read_facts(path, "analytic")
    if facts.get("convention") != CONVENTION:
        raise ValueError(f"{path} holds {facts.get('convention')!r}; this version reads {CONVENTION!r}.")
    columns = _read_tensors(path.with_suffix(".safetensors"))
    for name in GammaTable.columns:
        if name not in columns:
            raise ValueError(f"{path.with_suffix('.safetensors')} has no column {name!r}.")
    values = {name: columns[name].numpy() for name in GammaTable.columns}
    about = {**facts.get("about", {}), "model": facts.get("model")}
    return GammaTable(schedule=Schedule.from_config(facts["schedule"]), about=about, **values)


def save_full_table(table: FullTable, folder: str | Path, denoiser: Denoiser | None = None) -> Path:
    """Writes a table of matrices beside the model in `folder`."""
    path = covariance_folder(folder) / "analytic-full.json"
    facts = {
        "kind": "analytic-full",
        "schedule": table.schedule.to_config(),
        "schedule_fingerprint": table.schedule.fingerprint,
        "model": None if denoiser is None else fingerprint(denoiser),
        **records.circumstances(),
    }
    _write(path, {"times": torch.as_tensor(table.times), "matrices": table.matrices}, facts)
    return path


def load_full_table(folder: str | Path) -> FullTable:
    """The table of matrices beside the model in `folder`."""
    path = covariance_folder(folder) / "analytic-full.json"
    facts, tensors = _read_facts(path, "analytic-full"), _read_tensors(path.with_suffix(".safetensors"))
    return FullTable(Schedule.from_config(facts["schedule"]), tensors["times"].numpy(), tensors["matrices"])


# --- heads --------------------------------------------------------------------------------------------------------------


def save_head(covariance: LearnedCovariance, folder: str | Path) -> Path:
    """Writes a head beside the model in `folder`; its network must be a registered one.

    Returns:
        the head's own folder.
    """
    path = covariance_folder(folder) / covariance.covariance_kind
    facts = {
        "kind": covariance.covariance_kind,
        "head": network_config(covariance.head),
        "feature_layer": covariance.feature_layer,
        "average": covariance.average,
        "schedule_fingerprint": covariance.schedule.fingerprint,
        "model": fingerprint(covariance.inner),
        **records.circumstances(),
    }
    from safetensors.torch import save_file

    with records.atomic(path / "model.safetensors") as part:
        save_file(
            {name: value.detach().cpu().contiguous() for name, value in covariance.head.state_dict().items()}, part
        )
    records.write_json(path / "covariance.json", {"format": FORMAT, **facts})
    return path


def load_head(denoiser: Denoiser, kind: str, folder: str | Path, **options: Any) -> LearnedCovariance:
    """`denoiser` with the head of this kind that lies beside it in `folder`.

    Args:
        **options: of :class:`~trueward.covariance.learned.LearnedCovariance`, e.g. ``floor=0.05``.

    Raises:
        ValueError: if there is none, or it was fitted on another model or schedule.
    """
    cls = look_up("covariance head", kind, HEADS)
    path = covariance_folder(folder) / kind
    facts = _read_facts(path / "covariance.json", kind)
    if facts["schedule_fingerprint"] != denoiser.schedule.fingerprint:
        raise ValueError(f"The head in {path} was fitted under another schedule than the model's; fit it again.")
    if facts["model"] != fingerprint(denoiser):
        raise ValueError(f"The head in {path} was fitted on another model (other weights); fit it again.")
    head = network(facts["head"])
    weights = _read_tensors(path / "model.safetensors")
    own = head.state_dict()
    if set(own) != set(weights) or any(own[name].shape != value.shape for name, value in weights.items()):
        raise ValueError(f"{path / 'model.safetensors'} does not fit the head that covariance.json describes.")
    head.load_state_dict(weights)
    options = {"average": facts["average"], **options}
    if options.get("floor") and options.get("table") is None:
        options["table"] = load_table(folder)
    return cls(denoiser, head, feature_layer=facts["feature_layer"], **options).eval()  # type: ignore[return-value]


# --- by name ------------------------------------------------------------------------------------------------------------


def with_covariance(
    denoiser: Denoiser, kind: str, folder: str | Path | None = None, **options: Any
) -> AnalyticCovariance | FullAnalyticCovariance | LearnedCovariance:
    """The model with a covariance that was fitted and stored beside it.

    Args:
        denoiser: the model, as it was when the covariance was fitted.
        kind: analytic, analytic-residual, analytic-full, sn, npr, npr-full.
        folder: of the model; default: where it was loaded from.
        **options: of the wrapper: ``data_range``; for heads also ``floor`` and ``average``.

    Raises:
        ValueError: an unknown kind, no folder, nothing stored there, or something stored for another model.
    """
    check_name("covariance", kind, COVARIANCES)
    folder = getattr(denoiser, "folder", None) if folder is None else folder
    if folder is None:
        raise ValueError("Say where the covariance is stored: folder= of the model (it was not loaded from one).")
    if kind in HEADS:
        return load_head(denoiser, kind, folder, **options)
    if kind in SCALAR_KINDS:
        table = load_table(folder)
        _same_model(table.about.get("model"), denoiser, folder)
        return AnalyticCovariance(denoiser, table, kind, **options)
    full = load_full_table(folder)
    _same_model(_read_facts(covariance_folder(folder) / "analytic-full.json", kind).get("model"), denoiser, folder)
    return FullAnalyticCovariance(denoiser, full, **options)


def _same_model(stored: str | None, denoiser: Denoiser, folder: str | Path) -> None:
    inner = denoiser
    while isinstance(inner, Guided):  # statistics of a guided model are kept by the weights it has
        inner = inner.inner
    if stored is not None and stored not in (fingerprint(denoiser), fingerprint(inner)):
        raise ValueError(
            f"The statistics in {covariance_folder(folder)} were measured on another model (other weights)."
        )


def for_sampler(denoiser: Denoiser, sampler: object, folder: str | Path | None = None) -> Denoiser:
    """The model with the covariance that a sampler's ``variance`` names; itself, if it names none."""
    if isinstance(sampler, Ancestral) and sampler.variance in COVARIANCES:
        if getattr(denoiser, "covariance_kind", None) == sampler.variance:
            return denoiser
        return with_covariance(denoiser, sampler.variance, folder)
    return denoiser
