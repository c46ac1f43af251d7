"""Puts a finished run into the zoo: ``python -m trueward.zoo RUN NAME [--schedule vp-linear]``.

Weights are stored in float16. A preconditioned network knows noise levels only, so the model is put on the schedule that
samplers are to use, whatever it was trained on.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch

from trueward.denoisers import NetworkDenoiser
from trueward.loading import load, save_run
from trueward.schedules import schedule

LARGEST = 8_000_000  # bytes


def main() -> None:
    """Reads the command line, writes the folder."""
    parser = argparse.ArgumentParser(prog="python -m trueward.zoo", description=__doc__)
    parser.add_argument("run", type=Path, help="folder of a finished run")
    parser.add_argument("name", help="name to load the model by")
    parser.add_argument("--schedule", default="vp-linear", help="schedule to put the model on")
    arguments = parser.parse_args()
    model = load(arguments.run)
    told: dict[str, Any] = model.record  # type: ignore[assignment]
    record = {k: v for k, v in told.items() if k not in ("format", "kind", "network", "denoiser")}
    if isinstance(record.get("record"), dict):
        record["record"].pop("command", None)  # says where the run stood on the machine it was trained on
    model = model.on(schedule(arguments.schedule))
    if not isinstance(model, NetworkDenoiser):
        parser.error("this model cannot change its schedule without a wrapper; leave it on its own")
    folder = save_run(Path(__file__).parent / arguments.name, model, record, dtype=torch.float16)
    size = (folder / "model.safetensors").stat().st_size
    if size > LARGEST:
        parser.error(f"{folder / 'model.safetensors'} has {size} bytes, more than the {LARGEST} a model here may have")
    print(f"{folder}: {size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
