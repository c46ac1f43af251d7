"""Options that several commands share, and what stands behind them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    import torch

    from trueward.denoisers import Denoiser

Model = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        show_default=False,
        help="A zoo model by name ([bold]digits[/], [bold]mnist[/]) or a folder: of a run made by [bold]trueward train[/], a diffusers pipeline, or an EDM-style export.",
    ),
]
Seed = Annotated[
    int,
    typer.Option(
        "--seed",
        metavar="NUMBER",
        help="Identity of the samples: sample i depends on the seed and i alone. Any whole number.",
    ),
]
BatchSize = Annotated[
    int,
    typer.Option(
        "--batch-size",
        "-b",
        metavar="SAMPLES",
        help="Samples in one call of the network: speed and memory, not the result.",
    ),
]
Device = Annotated[
    str,
    typer.Option("--device", metavar="NAME", help="auto (a GPU if there is one), cpu, cuda, cuda:1, mps."),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]


def torch_device(name: str) -> torch.device:
    """The device of this name; ``auto`` is this process's GPU where there is one.

    Raises:
        ValueError: for a name torch does not know or a device that is not there.
    """
    import torch

    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError):
        raise ValueError(f"The device {name!r} is not available here; use auto, cpu or one that is.") from None
    return device


def load_model(model: str, device: str) -> Denoiser:
    """The model on its device, ready to sample."""
    from trueward.loading import load

    return load(model).to(torch_device(device)).eval()


def checked_output(path: Path, *suffixes: str) -> Path:
    """`path` if something of one of these suffixes can be written there; told before hours of work, not after.

    Raises:
        ValueError: for a wrong suffix, a folder in its place, or a parent that is a file or cannot be written.
    """
    if suffixes and path.suffix.lower() not in suffixes:
        raise ValueError(f"--out must end in {' or '.join(suffixes)}, got {str(path)!r}.")
    if suffixes and path.is_dir():
        raise ValueError(f"--out {path} is a folder; give the name of a file.")
    above = path if path.is_dir() else path.parent
    while not above.exists():
        above = above.parent
    if not above.is_dir():
        raise ValueError(f"--out {path}: {above} is a file, not a folder.")
    if not os.access(above, os.W_OK):
        raise ValueError(f"--out {path}: the folder {above} cannot be written to.")
    return path
