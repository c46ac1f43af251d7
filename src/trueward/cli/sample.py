"""``trueward sample``: draw from a model into a picture, one file or a folder of shards."""

from __future__ import annotations

import time
import warnings
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from trueward.cli.options import BatchSize, Device, Model, Seed

if TYPE_CHECKING:
    from trueward.denoisers import Denoiser
    from trueward.drawing import Drawing
    from trueward.sampler_specs import SamplerSpec

_REFINE = "Corrections by a critic"
SCANT = 16  # batches of rejection in a shard: with fewer, its last samples hold up the others noticeably
_EPILOG = """[bold]Examples[/]

[cyan]trueward sample digits --out grid.png[/] — 64 images as one picture

[cyan]trueward sample digits --sampler edm --nfe 15 --class 3 --guidance 1.5 --out threes.png[/]

[cyan]trueward sample runs/mine --refine diffrs --percentile 0.9 --out refined.npz[/] — with its critic, see fit-critic

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
        str | None,
        typer.Option(
            "--sampler",
            metavar="NAME[:OPTION=VALUE,...]",
            show_default="dpm-solver++; with --refine, the critic's own",
            help="From noise to data: ddim, ddpm, edm, dpm-solver++, ... with options, e.g. dpm-solver++:order=3,grid=karras.",
        ),
    ] = None,
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
    refine: Annotated[
        str | None,
        typer.Option(
            metavar="HOW",
            rich_help_panel=_REFINE,
            help="Correct the samples with the model's critic: dg (guidance by its gradient), diffrs (rejection), dg+diffrs.",
        ),
    ] = None,
    critic: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            rich_help_panel=_REFINE,
            show_default="the model's own folder",
            help="Where the critic is.",
        ),
    ] = None,
    weight: Annotated[
        float | None, typer.Option(metavar="NUMBER", rich_help_panel=_REFINE, show_default="1", help="dg: strength.")
    ] = None,
    percentile: Annotated[
        float | None,
        typer.Option(
            metavar="SHARE", rich_help_panel=_REFINE, show_default="0.75", help="diffrs: 0 ... 1, more rejects more."
        ),
    ] = None,
    max_nfe: Annotated[
        int | None,
        typer.Option(
            "--max-nfe",
            metavar="COUNT",
            rich_help_panel=_REFINE,
            show_default="none",
            help="diffrs: start a sample anew that would need more network evaluations.",
        ),
    ] = None,
    report: Annotated[
        Path | None,
        typer.Option(
            metavar="NAME.html",
            rich_help_panel=_REFINE,
            show_default="none",
            help="diffrs: a page about what was rejected, where, and what it cost.",
        ),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            metavar="DATA",
            rich_help_panel=_REFINE,
            show_default="what the model was trained on",
            help="Real samples for the report's histograms.",
        ),
    ] = None,
    seed: Seed = 0,
    batch_size: BatchSize = 64,
    shard_size: Annotated[
        int | None,
        typer.Option(
            metavar="SAMPLES", show_default="1000; 64 batches with rejection", help="Samples in one file of a folder."
        ),
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
    from trueward.cli.notes import notes, notes_at_once
    from trueward.cli.options import checked_output, load_model
    from trueward.drawing import Drawing, parse_labels

    single = out.suffix.lower() in (".png", ".npz")
    checked_output(out, *((out.suffix.lower(),) if single else ()))
    if n < 1:
        raise ValueError(f"-n must be at least 1, got {n}.")
    if batch_size < 1:
        raise ValueError(f"--batch-size must be at least 1, got {batch_size}.")
    denoiser = load_model(model, device)
    asked = {"weight": weight, "percentile": percentile, "max_nfe": max_nfe}
    spec, steps = _spec(sampler, steps, nfe, option or (), refine, asked, denoiser, critic)
    if report is not None:
        checked_output(report, ".html", ".htm")
        if "diffrs" not in spec.corrections:
            raise ValueError(f"--report {report} is about rejection: it needs --refine diffrs.")
    labels = parse_labels(classes, denoiser.num_classes)
    with notes():
        corrected, chosen = spec.assemble(denoiser, steps, nfe, critic=critic, labels=labels, guidance=guidance)
    _check_classes(chosen, labels)
    drawing = Drawing(corrected, chosen, seed, labels, guidance)
    chosen.plan(denoiser.schedule)  # what the sampler cannot do on this schedule is told before anything is drawn
    about = {"model": model, "sampler": str(spec), "steps": getattr(chosen, "steps", None)}
    with notes_at_once():
        if single:
            _one_file(drawing, n, out, batch_size, columns, about)
        else:
            _folder(drawing, n, out, batch_size, shard_size, dtype, png, about)
    if report is not None:
        _report(drawing, n, out, report, data, batch_size, about)


def _check_classes(chosen: object, labels: Sequence[int] | None) -> None:
    """A critic that judges by class has to be told which."""
    from trueward.refinement import RefinedSampler

    if isinstance(chosen, RefinedSampler) and labels is None and chosen.critic.num_classes is not None:
        raise ValueError(
            f"The critic judges a sample as one of its class: say which to draw, --class all or numbers in 0 ... "
            f"{chosen.critic.num_classes - 1}."
        )


def _spec(
    sampler: str | None,
    steps: int | None,
    nfe: int | None,
    options: Sequence[str],
    refine: str | None,
    asked: dict[str, Any],
    denoiser: Denoiser,
    critic: Path | None,
) -> tuple[SamplerSpec, int | None]:
    """The sampler and its steps as the words of the call and the critic say."""
    from trueward.critics import read_facts
    from trueward.naming import check_name
    from trueward.sampler_specs import SamplerSpec, parse_options

    text = "dpm-solver++" if sampler is None else sampler
    how = tuple((refine or "").split("+")) if refine is not None else ()
    for name in how:
        check_name("refinement", name, ["dg", "diffrs"])
    if how and sampler is None:
        folder = getattr(denoiser, "folder", None) if critic is None else critic
        facts = {} if folder is None else read_facts(folder)
        text = facts.get("sampler_spec", "edm")
        if steps is None and nfe is None:
            steps = facts.get("steps")
    spec = SamplerSpec.parse(text)
    spec = SamplerSpec(spec.name, spec.options, (*spec.corrections, *(h for h in how if h not in spec.corrections)))
    for key, needs in (("weight", "dg"), ("percentile", "diffrs"), ("max_nfe", "diffrs")):
        if asked[key] is not None and needs not in spec.corrections:
            raise ValueError(f"--{key.replace('_', '-')} {asked[key]:g} belongs to --refine {needs}.")
    if critic is not None and not spec.refined:
        raise ValueError(f"--critic {critic} is of no use without --refine dg or diffrs.")
    given = {key: value for key, value in asked.items() if value is not None}
    return spec.with_options(parse_options(options)).with_options(given), steps


def _report(
    drawing: Drawing, n: int, out: Path, report: Path, data: str | None, batch_size: int, about: dict[str, Any]
) -> None:
    """The page about rejection; of several processes, the last to finish writes it."""
    from trueward.reports.reference import reference_of
    from trueward.reports.rejection_page import account_of, write_report

    account = account_of(out, n)
    if account is None:  # other processes are still at work
        return
    try:
        real = reference_of(drawing.denoiser, data).train
    except ValueError:
        if data is not None:
            raise
        real = None  # the page does without the histograms of real samples
    write_report(report, drawing, account, real, batch_size=batch_size, about=about)
    typer.echo(f"Report: {report}")


def _one_file(drawing: Drawing, n: int, out: Path, batch_size: int, columns: int | None, about: dict[str, Any]) -> None:
    """A grid or an array, with its record beside it."""
    import torch

    from trueward import processes, records
    from trueward.cli.progress import sample_bar
    from trueward.exports import picture_of, save_array
    from trueward.refinement import Cost

    if processes.launched()[0] > 0:
        return  # one file is the work of one process; a folder is shared
    if out.suffix.lower() == ".png":
        picture_of(torch.zeros(1, *(drawing.denoiser.shape or ())), None)  # vectors have no grid: told before drawing
    drawing.prepare(batch_size, progress=True)
    began = time.perf_counter()
    with sample_bar("sampling", n) as advance:
        batches = list(drawing.batches(0, n, batch_size, advance))
    seconds = time.perf_counter() - began
    x = torch.cat([batch.x for batch in batches])
    if out.suffix.lower() == ".png":
        from trueward.data.images import save_grid

        save_grid(picture_of(x, drawing.denoiser.data_range), out, columns)
    else:
        save_array(out, x, drawing.denoiser.data_range, drawing.labels_of(torch.arange(n)))
    cost = sum((batch.cost for batch in batches), Cost())
    record = {**about, "n": n, "nfe": cost.nfe_per_sample, "seconds": seconds, "batch_size": batch_size}
    if cost.critic:
        record |= {"refinement": cost.summary(), "cost": asdict(cost)}
        if batches[0].nfe_kept is not None:
            record["nfe_kept"] = torch.cat([b.nfe_kept for b in batches if b.nfe_kept is not None]).tolist()
    record["config"] = drawing.identity()
    records.write_json(out.with_suffix(".json"), {**record, **records.circumstances()})
    typer.echo(f"{out}: {n} samples, {_costs(record)}, {seconds:.2f} s")


def _costs(record: dict[str, Any]) -> str:
    """What a sample cost, in words."""
    text = f"{record['nfe']:.5g} network evaluations each"
    refinement = record.get("refinement")
    if refinement:
        if refinement["nfe_kept"] != refinement["nfe"]:
            text += f" ({refinement['nfe_kept']:.5g} on its own path)"
        text += f", {refinement['critic_evaluations']:.5g} of the critic"
        text += f", {refinement['restarts']} restarts" if refinement["restarts"] else ""
    return text


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
    from trueward import processes
    from trueward.cli.interruption import interruptible
    from trueward.cli.progress import sample_bar
    from trueward.shards import AMPLE, Progress, ShardFolder, sample_to_folder, shard_size_for

    size = shard_size_for(drawing, out, batch_size, shard_size)
    if drawing.rejects and n > size and size < SCANT * batch_size:
        warnings.warn(
            f"Rejection lets its batch run dry at the end of every shard of {size} samples; with --batch-size {batch_size} that "
            f"costs time: --shard-size {AMPLE * batch_size} or more keeps the batch full.",
            stacklevel=2,
        )
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
    if processes.launched()[0] == 0 or record.get("processes", 1) > 1:
        rate = record["samples_per_second"]
        typer.echo(f"{out}: {n} samples, {_costs(record)}" + (f", {rate:.3g} samples/s" if rate else ""))


def register(app: typer.Typer) -> None:
    """Adds the command to the program."""
    app.command(epilog=_EPILOG)(sample)
