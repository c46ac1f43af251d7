"""The folder of a run: claimed for one run, written so that it can be opened at any time, and resumed only as it was."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from trueward import records
from trueward.denoisers import Denoiser
from trueward.loading import model_config, save_run, to_json
from trueward.objectives import Objective
from trueward.training.checkpoints import Checkpoint, checkpoint_folders, latest_checkpoint, save_checkpoint
from trueward.training.config import TrainingConfig
from trueward.training.feed import TrainingData


class RunFolder:
    """A run folder.

    Args:
        path: of the folder.
        denoiser, objective, config, data: what makes the run this run.

    Raises:
        ValueError: if the model cannot be described in JSON.
    """

    def __init__(
        self, path: str | Path, denoiser: Denoiser, objective: Objective, config: TrainingConfig, data: TrainingData
    ) -> None:
        self.path, self.config = Path(path), config
        to_config = getattr(data, "to_config", None)
        own = {"n": len(data), "shape": list(data.shape), "num_classes": data.num_classes}
        self.description: dict[str, Any] = to_json(
            {
                **model_config(denoiser),
                "objective": objective.to_config(),
                "training": config.to_config(),
                "data": own if to_config is None else to_config(),
            }
        )
        self.citation = list(dict.fromkeys([*objective.citation, *type(denoiser).citation]))

    @property
    def checkpoints(self) -> Path:
        """Where the checkpoints are."""
        return self.path / "checkpoints"

    def look(self) -> bool:
        """Makes the folder and says whether there is something in it.

        Raises:
            ValueError: if it cannot be written to.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            if not os.access(self.path, os.W_OK | os.X_OK):
                raise PermissionError(13, "Permission denied")
            return any(self.path.iterdir())
        except OSError as error:
            raise ValueError(f"The output folder {self.path} cannot be written to ({error.strerror}).") from None

    def open(self, taken: bool, resume: bool, warn: Callable[[str], None]) -> Checkpoint | None:
        """The checkpoint to continue from, or None to start.

        Raises:
            ValueError: if the folder belongs to another run or to something else.
        """
        if not taken:
            return None
        if not resume:
            raise ValueError(
                f"The output folder {self.path} is not empty: choose another one, or resume the run in it."
            )
        if not (self.path / "run.json").is_file():
            if checkpoint_folders(self.checkpoints):
                raise ValueError(f"{self.path} has checkpoints but no run.json: it cannot be resumed.")
            raise ValueError(f"{self.path} is not empty and not a trueward run: choose another folder.")
        before = records.read_json(self.path / "run.json")
        self._compare(before if isinstance(before, dict) else {})
        return latest_checkpoint(self.checkpoints, warn)

    def _compare(self, before: dict[str, Any]) -> None:
        for part in ("network", "denoiser", "objective", "data"):
            old, new = before.get(part) or {}, self.description[part]
            for name in sorted({*old, *new} - {"load", "name"}):  # the same data may be found under another path
                if old.get(name) != new.get(name):
                    raise ValueError(
                        f"The run in {self.path} was started with {part} {name}={old.get(name)!r}, so it cannot be resumed "
                        f"with {new.get(name)!r}."
                    )
        self.config.check_resumes(before.get("training") or {})

    def write(self, averaged: Denoiser, record: dict[str, Any]) -> None:
        """Writes ``run.json`` and ``model.safetensors``."""
        circumstances = records.circumstances()
        parts = {k: v for k, v in self.description.items() if k not in ("network", "denoiser")}
        versions = circumstances.pop("versions")
        entries = {**parts, "versions": versions, "record": {**record, **circumstances}, "citation": self.citation}
        save_run(self.path, averaged, entries)

    def save(self, checkpoint: Checkpoint, averaged: Denoiser, record: dict[str, Any]) -> None:
        """Writes a checkpoint and the model as it is now.

        Raises:
            ValueError: if the disk is full or not writable; the checkpoint before is intact.
        """
        try:
            save_checkpoint(self.checkpoints, checkpoint, self.config.keep_checkpoints)
            self.write(averaged, record)
        except OSError as error:
            raise ValueError(
                f"The checkpoint of step {checkpoint.step} could not be written to {self.path} ({error.strerror}); the one "
                "before it is intact."
            ) from None
