"""``trueward sample``: draw from a model into a picture, one file or a folder of shards."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from trueward.cli.options import BatchSize, Device, Model, Seed

if TYPE_CHECKING:
    from trueward.drawing import Drawing

_EPILOG = """[bold]Examples[/]

[cyan]trueward sample digits --out grid.png[/] — 64 images as one picture

[cyan]trueward sample digits --sampler edm --nfe 15 --class 3 --guidance 1.5 --out threes.png[/]

[cyan]trueward sample runs/mine -n 50000 --steps 10 --out samples[/] — shards; run again after an interruption

[cyan]accelerate launch --num_processes 4 -m trueward.cli sample runs/mine -n 50000 --out samples[/]
"""


def sample(
    model: Model,
    out: Annotated[
        Path,
        typer.Option(
            "--out",
            "-o",
            metavar="PATH",
            show_default=False,
            help="Where to: NAME.png for a grid, NAME.npz for one array (arr_0, labels), else a folder of safetensors shards "
            "that can be interrupted and continued.",
        ),
    ],
    n: Annotated[int, typer.Option("-n", "--samples", metavar="COUNT", help="How many samples.")] = 64,
    sampler: Annotated[
        str,
        typer.Option(
            "--sampler",
            metavar="NAME[:OPTION=VALUE,...]",
            help="From noise to data: ddim, ddpm, edm, dpm-solver++, ... with options, e.g. dpm-solver++:order=3,grid=karras.",
        ),
    ] = "dpm-solver++",
    steps: Annotated[
        int | None,
        typer.Option(metavar="COUNT", show_default="the sampler's own", help="Number of steps of the sampler."),
    ] = None,
    nfe: Annotated[
        int | None,
        typer.Option("--nfe", metavar="COUNT", help="Instead of --steps: a budget of network evaluations per sample."),
    ] = None,
    option: Annotated[
        list[str] | None,
        typer.Option("--option", metavar="KEY=VALUE", help="An option of the sampler; may be given several times."),
    ] = None,
    classes: Annotated[
        str | None,
        typer.Option(
            "--class",
            metavar="LABEL",
            show_default="none",
            help="Class to draw: a number, several in turn like 0,1,2, or all (conditional models only).",
        ),
    ] = None,
    guidance: Annotated[
        float | None,
        typer.Option(
            metavar="SCALE",
            show_default="1",
            help="Classifier-free guidance: 1 is the model itself, more follows the class harder.",
        ),
    ] = None,
    seed: Seed = 0,
    batch_size: BatchSize = 64,
    shard_size: Annotated[
        int | None, typer.Option(metavar="SAMPLES", show_default="1000", help="Samples in one file of a folder.")
    ] = None,
    dtype: Annotated[
        str | None,
        typer.Option(metavar="NAME", show_default="uint8 for images", help="What a folder stores: uint8 or float32."),
    ] = None,
    png: Annotated[
        bool, typer.Option("--png", help="Also write every image of the folder as OUT/images/NUMBER.png.")
    ] = False,
    columns: Annotated[
        int | None, typer.Option(metavar="COUNT", show_default="square", help="Images in a row of a grid.")
    ] = None,
    device: Device = "auto",
) -> None:
    """Draw samples from a model.

    Sample number i depends on the seed and i alone: not on the batch size, the number of processes or an interruption.
    """
    from trueward.cli.options import checked_output, load_model
    from trueward.drawing import Drawing, parse_labels
    from trueward.sampler_specs import SamplerSpec, parse_options

    single = out.suffix.lower() in (".png", ".npz")
    checked_output(out, *((out.suffix.lower(),) if single else ()))
    if n < 1:
        raise ValueError(f"-n must be at least 1, got {n}.")
    if batch_size < 1:
        raise ValueError(f"--batch-size must be at least 1, got {batch_size}.")
    spec = SamplerSpec.parse(sampler).with_options(parse_options(option or ()))
    chosen = spec.build(steps=steps, nfe=nfe)
    denoiser = spec.corrected(load_model(model, device))
    drawing = Drawing(denoiser, chosen, seed, parse_labels(classes, denoiser.num_classes), guidance)
    chosen.plan(denoiser.schedule)  # what the sampler cannot do on this schedule is told before anything is drawn
    about = {"model": model, "sampler": str(spec), "steps": getattr(chosen, "steps", None)}
    if single:
        _one_file(drawing, n, out, batch_size, columns, about)
    else:
        _folder(drawing, n, out, batch_size, shard_size, dtype, png, about)


def _one_file(drawing: Drawing, n: int, out: Path, batch_size: int, columns: int | None, about: dict[str, Any]) -> None:
    """A grid or an array, with its record beside it."""
    import torch

    from trueward import records
    from trueward.cli.progress import sample_bar
    from trueward.exports import picture_of, save_array

    if out.suffix.lower() == ".png":
        picture_of(torch.zeros(1, *(drawing.denoiser.shape or ())), None)  # vectors have no grid: told before drawing
    began, batches = time.perf_counter(), []
    with sample_bar("sampling", n) as advance:
        for batch in drawing.batches(0, n, batch_size):
            batches.append(batch)
            advance(len(batch.indices))
    seconds = time.perf_counter() - began
    x = torch.cat([batch.x for batch in batches])
    if out.suffix.lower() == ".png":
        from trueward.data.images import save_grid

        save_grid(picture_of(x, drawing.denoiser.data_range), out, columns)
    else:
        save_array(out, x, drawing.denoiser.data_range, drawing.labels_of(torch.arange(n)))
    nfe = sum(batch.nfe * len(batch.indices) for batch in batches) / n
    record = {**about, "n": n, "nfe": nfe, "seconds": seconds, "batch_size": batch_size, "config": drawing.identity()}
    records.write_json(out.with_suffix(".json"), {**record, **records.circumstances()})
    typer.echo(f"{out}: {n} samples, {nfe:g} network evaluations each, {seconds:.2f} s")


def _folder(
    drawing: Drawing,
    n: int,
    out: Path,
    batch_size: int,
    shard_size: int | None,
    dtype: str | None,
    png: bool,
    about: dict[str, Any],
) -> None:
    """Shards, and images if wanted."""
    from trueward.cli.interruption import interruptible
    from trueward.cli.progress import sample_bar
    from trueward.shards import Progress, ShardFolder, process_rank, sample_to_folder

    with interruptible("The finished shards are kept: run the same command again to continue."):
        with sample_bar("sampling", n) as advance:
            reported = 0

            def report(progress: Progress) -> None:
                nonlocal reported
                if not reported:
                    advance(progress.found, total=progress.share, skipped=True)
                    reported = progress.found
                advance(progress.done - reported)
                reported = progress.done

            record = sample_to_folder(
                drawing,
                n,
                out,
                batch_size=batch_size,
                shard_size=shard_size,
                dtype=dtype,
                describe=about,
                callback=report,
            )
        if not record["complete"]:
            return
        if png:
            from trueward.exports import save_images

            save_images(ShardFolder(out), out / "images")
    if process_rank()[0] == 0 or record.get("processes", 1) > 1:
        rate = record["samples_per_second"]
        typer.echo(
            f"{out}: {n} samples, {record['nfe']:g} network evaluations each"
            + (f", {rate:.3g} samples/s" if rate else "")
        )


def register(app: typer.Typer) -> None:
    """Adds the command to the program."""
    app.command(epilog=_EPILOG)(sample)
