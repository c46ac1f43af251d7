"""Checkpoints: safetensors and JSON, whole or not there.

A checkpoint is a folder ``checkpoints/step-00001000`` with ``model.safetensors`` (the weights being trained),
``ema.safetensors`` (their average), ``optimizer.safetensors`` (its tensors, by parameter and name) and ``state.json``, which
holds the numbers and the size and checksum of every file. It is written under a temporary name, flushed to the disk and
renamed, so a run killed at any moment leaves the previous one. Nothing is pickled.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from trueward.loading import save_tensors

_NAME = re.compile(r"step-(\d{8,})$")


@dataclass(frozen=True)
class Checkpoint:
    """What is needed to continue as if nothing had happened.

    Attributes:
        step: updates done.
        model, ema, optimizer: tensors by name.
        numbers: everything else, JSON-able.
    """

    step: int
    model: dict[str, Tensor]
    ema: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    numbers: dict[str, Any]


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The state of an optimizer as tensors named ``parameter.name`` and the rest as JSON-able numbers."""
    tensors: dict[str, Tensor] = {}
    numbers: dict[str, Any] = {}
    for index, state in optimizer.state_dict()["state"].items():
        for name, value in state.items():
            if isinstance(value, Tensor):
                tensors[f"{index}.{name}"] = value
            else:
                numbers[f"{index}.{name}"] = value
    return tensors, numbers


def load_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor], numbers: dict[str, Any]) -> None:
    """Puts the state back that :func:`optimizer_tensors` took out."""
    state: dict[int, dict[str, Any]] = {}
    for key, value in {**tensors, **numbers}.items():
        index, name = key.split(".", 1)
        state.setdefault(int(index), {})[name] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _checksum(path: Path) -> int:
    value = 0
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            value = zlib.crc32(block, value)
    return value


def checkpoint_folders(folder: Path) -> list[Path]:
    """The finished checkpoints below `folder`, oldest first."""
    if not folder.is_dir():
        return []
    found = [(int(m.group(1)), path) for path in folder.iterdir() if (m := _NAME.match(path.name)) and path.is_dir()]
    return [path for _, path in sorted(found)]


def save_checkpoint(folder: Path, checkpoint: Checkpoint, keep: int) -> Path:
    """Writes a checkpoint below `folder`, then removes all but the last `keep`.

    Raises:
        OSError: if the disk is full or not writable; nothing half-written stays.
    """
    final = folder / f"step-{checkpoint.step:08d}"
    part = folder / f"{final.name}.part"
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    try:
        files = {}
        for name in ("model", "ema", "optimizer"):
            path = part / f"{name}.safetensors"
            save_tensors(getattr(checkpoint, name), path)
            _flush(path)
            files[path.name] = {"bytes": path.stat().st_size, "crc32": _checksum(path)}
        state = {"format": 1, "step": checkpoint.step, "files": files, "numbers": checkpoint.numbers}
        (part / "state.json").write_text(json.dumps(state, indent=1))
        _flush(part / "state.json")
        if final.exists():
            shutil.rmtree(final)
        os.replace(part, final)
        _flush(folder)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise
    for old in checkpoint_folders(folder)[:-keep]:
        shutil.rmtree(old, ignore_errors=True)
    return final


def load_checkpoint(path: Path) -> Checkpoint:
    """Reads a checkpoint.

    Raises:
        ValueError: if a file is missing, cut short or altered, naming it.
    """
    try:
        state = json.loads((path / "state.json").read_text())
        files, step, numbers = state["files"], int(state["step"]), state["numbers"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path / 'state.json'} is missing or damaged ({error}).") from None
    tensors = {}
    for name in ("model", "ema", "optimizer"):
        file = path / f"{name}.safetensors"
        expected = files.get(file.name, {})
        if not file.is_file():
            raise ValueError(f"{file} is missing.")
        size = file.stat().st_size
        if size != expected.get("bytes"):
            raise ValueError(f"{file} is cut short or altered: it has {size} bytes instead of {expected.get('bytes')}.")
        if _checksum(file) != expected.get("crc32"):
            raise ValueError(f"{file} is damaged: its checksum is wrong.")
        try:
            tensors[name] = load_file(file)
        except SafetensorError as error:
            raise ValueError(f"{file} is not a safetensors file ({error}).") from None
    return Checkpoint(step, tensors["model"], tensors["ema"], tensors["optimizer"], numbers)


def latest_checkpoint(folder: Path, warn: Callable[[str], None]) -> Checkpoint | None:
    """The newest checkpoint that is whole; every damaged one that had to be passed over is told to `warn`.

    Raises:
        ValueError: if there are checkpoints, but all of them are damaged.
    """
    folders = checkpoint_folders(folder)
    for path in reversed(folders):
        try:
            return load_checkpoint(path)
        except ValueError as error:
            warn(f"{error} Going back to the checkpoint before it.")
    if folders:
        raise ValueError(f"None of the {len(folders)} checkpoints in {folder} is whole; start again in another folder.")
    return None
