"""``trueward train``: a model from data, into a run folder."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import typer

_EPILOG = """[bold]Examples[/]

[cyan]trueward train --data digits --out runs/digits[/] — about a minute

[cyan]trueward train --data photos/ --size 32 --out runs/photos --steps 50000 --batch-size 64[/]

[cyan]trueward train --out runs/photos --resume[/] — continue after an interruption, with the settings it had

[cyan]accelerate launch --num_processes 2 -m trueward.cli train --data mnist --out runs/mnist[/]
"""
_DATA, _MODEL, _SPEED, _FILES = "Data", "Model", "Machine", "Files"
_RECIPE = "from the recipe"


def train(
    out: Annotated[
        Path,
        typer.Option(
            "--out",
            "-o",
            metavar="FOLDER",
            show_default=False,
            help="The run folder: weights, record, checkpoints, sample grids, log.",
        ),
    ],
    data: Annotated[
        str | None,
        typer.Option(
            metavar="DATA",
            show_default=False,
            help="digits, mnist, a folder of images (sub-folders are classes), a .npz, .npy or .parquet file, hf:NAME.",
        ),
    ] = None,
    resume: Annotated[
        bool,
        typer.Option("--resume", help="Continue the run in --out from its last checkpoint, with the settings it had."),
    ] = False,
    steps: Annotated[
        int | None, typer.Option(metavar="COUNT", show_default=_RECIPE, help="Updates of the weights.")
    ] = None,
    batch_size: Annotated[
        int | None,
        typer.Option(
            "--batch-size",
            "-b",
            metavar="SAMPLES",
            show_default=_RECIPE,
            help="Samples in an update, over all processes.",
        ),
    ] = None,
    lr: Annotated[
        float | None,
        typer.Option(metavar="RATE", show_default=_RECIPE, help="Learning rate of AdamW after the warm-up."),
    ] = None,
    lr_schedule: Annotated[
        str | None,
        typer.Option(metavar="NAME", show_default="cosine", help="Learning rate over time: constant or cosine."),
    ] = None,
    warmup: Annotated[
        int | None,
        typer.Option(metavar="COUNT", show_default=_RECIPE, help="Updates in which the learning rate rises from 0."),
    ] = None,
    ema: Annotated[
        float | None,
        typer.Option(
            metavar="DECAY",
            show_default=_RECIPE,
            help="Decay of the average of the weights that is sampled from, in [0, 1).",
        ),
    ] = None,
    clip: Annotated[
        float | None, typer.Option(metavar="NORM", show_default="1", help="Largest norm of the gradient.")
    ] = None,
    weight_decay: Annotated[
        float | None, typer.Option(metavar="RATE", show_default="0", help="Weight decay of AdamW.")
    ] = None,
    seed: Annotated[
        int | None, typer.Option(metavar="NUMBER", show_default="0", help="Of weights, order of data, times and noise.")
    ] = None,
    size: Annotated[
        int | None,
        typer.Option(
            metavar="PIXELS",
            rich_help_panel=_DATA,
            show_default="as they are",
            help="Bring images to this height and width.",
        ),
    ] = None,
    limit: Annotated[
        int | None,
        typer.Option(metavar="COUNT", rich_help_panel=_DATA, show_default="all", help="Use only the first samples."),
    ] = None,
    held_out: Annotated[
        float | None,
        typer.Option(
            metavar="NUMBER",
            rich_help_panel=_DATA,
            show_default=_RECIPE,
            help="Samples kept out for the validation loss: a count, or a share below 1.",
        ),
    ] = None,
    network: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            rich_help_panel=_MODEL,
            show_default="by the shape of the data",
            help="UNet (images), MLP (vectors).",
        ),
    ] = None,
    width: Annotated[
        int | None,
        typer.Option(
            metavar="CHANNELS", rich_help_panel=_MODEL, show_default=_RECIPE, help="Channels of the first level."
        ),
    ] = None,
    multipliers: Annotated[
        str | None,
        typer.Option(
            metavar="LIST",
            rich_help_panel=_MODEL,
            show_default=_RECIPE,
            help="Channels of each level in units of the width, e.g. 1,2,4; the resolution halves from level to level.",
        ),
    ] = None,
    blocks: Annotated[
        int | None,
        typer.Option(metavar="COUNT", rich_help_panel=_MODEL, show_default=_RECIPE, help="Residual blocks of a level."),
    ] = None,
    attention: Annotated[
        str | None,
        typer.Option(
            metavar="LIST",
            rich_help_panel=_MODEL,
            show_default=_RECIPE,
            help="Resolutions with self-attention, in pixels, e.g. 16,8.",
        ),
    ] = None,
    dropout: Annotated[
        float | None,
        typer.Option(
            metavar="SHARE", rich_help_panel=_MODEL, show_default="0", help="Activations dropped while training."
        ),
    ] = None,
    schedule: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            rich_help_panel=_MODEL,
            show_default="edm",
            help="Noise schedule: edm, vp-linear, vp-cosine, ve, flow.",
        ),
    ] = None,
    prediction: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            rich_help_panel=_MODEL,
            show_default="edm",
            help="What the network predicts: edm (preconditioned), eps, x0, v.",
        ),
    ] = None,
    unconditional: Annotated[
        bool,
        typer.Option(
            "--unconditional", rich_help_panel=_MODEL, help="Do not learn the classes, even if the data have labels."
        ),
    ] = False,
    mixed_precision: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            rich_help_panel=_SPEED,
            show_default="auto",
            help="auto (measured), no, bf16, or fp16 (CUDA only).",
        ),
    ] = None,
    compile: Annotated[
        bool | None,
        typer.Option(
            "--compile/--no-compile",
            rich_help_panel=_SPEED,
            show_default="where it pays",
            help="Compile the network with torch.compile.",
        ),
    ] = None,
    accumulation: Annotated[
        int | None,
        typer.Option(
            metavar="PIECES",
            rich_help_panel=_SPEED,
            show_default="1",
            help="Pieces in which a batch is computed, to save memory.",
        ),
    ] = None,
    device: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", rich_help_panel=_SPEED, show_default="a GPU if there is one", help="cpu, cuda or mps."
        ),
    ] = None,
    checkpoint_every: Annotated[
        int | None,
        typer.Option(
            metavar="STEPS", rich_help_panel=_FILES, show_default="500", help="A crash loses at most so many steps."
        ),
    ] = None,
    sample_every: Annotated[
        int | None,
        typer.Option(
            metavar="STEPS", rich_help_panel=_FILES, show_default="1000", help="Draw a grid of samples; 0 for never."
        ),
    ] = None,
    validate_every: Annotated[
        int | None,
        typer.Option(
            metavar="STEPS",
            rich_help_panel=_FILES,
            show_default="500",
            help="Measure the validation loss; 0 for never.",
        ),
    ] = None,
    keep_checkpoints: Annotated[
        int | None,
        typer.Option(
            metavar="COUNT", rich_help_panel=_FILES, show_default="2", help="How many of the last checkpoints stay."
        ),
    ] = None,
    tensorboard: Annotated[
        bool,
        typer.Option(
            "--tensorboard", rich_help_panel=_FILES, help="Also write TensorBoard events into the run folder."
        ),
    ] = False,
) -> None:
    """Train a diffusion model on your data.

    The defaults are a recipe for digits and mnist; for other data the network is chosen by their shape. The weights are
    sampled from their running average. A run that was stopped or killed continues with --resume.
    """
    from trueward.cli.interruption import interruptible
    from trueward.runs import continue_run, start_run

    settings = {
        "steps": steps,
        "batch_size": batch_size,
        "lr": lr,
        "schedule": lr_schedule,
        "warmup": warmup,
        "ema": ema,
        "clip": clip,
        "weight_decay": weight_decay,
        "seed": seed,
        "held_out": held_out,
        "mixed_precision": mixed_precision,
        "compile": compile,
        "accumulation": accumulation,
        "checkpoint_every": checkpoint_every,
        "sample_every": sample_every,
        "validate_every": validate_every,
        "keep_checkpoints": keep_checkpoints,
        "tensorboard": tensorboard or None,
    }
    given = {name: value for name, value in settings.items() if value is not None}
    model = {
        "network": network,
        "schedule": schedule,
        "prediction": prediction,
        "conditional": False if unconditional else None,
        "width": width,
        "multipliers": None if multipliers is None else _numbers("--multipliers", multipliers),
        "blocks": blocks,
        "attention": None if attention is None else _numbers("--attention", attention) if attention.strip() else [],
        "dropout": dropout,
    }
    if resume:
        _refuse_changes(model, {"data": data, "size": size, "limit": limit})
        with interruptible(_hint(out)):
            continue_run(out, given, device)
        typer.echo(f"{out}: trained")
        return
    if data is None:
        raise ValueError("Say what to train on with --data DATA, or continue a run with --resume.")
    with interruptible(_hint(out)):
        start_run(data, out, given, model, {"size": size, "limit": limit}, device)
    if os.environ.get("RANK", "0") == "0":
        typer.echo(f"{out}: trained. Next: trueward sample {out} --out grid.png")


def _hint(out: Path) -> str:
    return f"Continue with: trueward train --out {out} --resume"


def _numbers(option: str, text: str) -> list[int]:
    """A list in its own order, unlike budgets: multipliers repeat."""
    try:
        numbers = [int(piece) for piece in text.split(",")]
    except ValueError:
        raise ValueError(f"{option} must be whole numbers separated by commas, e.g. 1,2,4, but got {text!r}.") from None
    if any(number < 1 for number in numbers):
        raise ValueError(f"{option} must be whole numbers >= 1, got {text!r}.")
    return numbers


def _refuse_changes(model: dict[str, Any], data: dict[str, Any]) -> None:
    """What makes a run this run cannot be given anew."""
    for name, value in {**model, **data}.items():
        if value is not None:
            option = "--unconditional" if name == "conditional" else f"--{name}"
            raise ValueError(f"{option} cannot be changed when a run is resumed: leave it out, the run knows its own.")


def register(app: typer.Typer) -> None:
    """Adds the command to the program."""
    app.command(epilog=_EPILOG)(train)
