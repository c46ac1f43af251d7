"""``trueward compare``: samplers of one model at equal cost, as a page, a table and JSON."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from trueward.cli.options import BatchSize, Device, Model

if TYPE_CHECKING:
    from trueward.denoisers import Denoiser
    from trueward.reports.compare import CellStep
    from trueward.reports.comparison import Comparison

_EPILOG = """[bold]Examples[/]

[cyan]trueward compare digits --samplers ddim,dpm-solver++ --steps 5,10,20 --out report.html[/]

[cyan]trueward compare digits --samplers "ddim,dpm-solver++:order=3,grid=karras,edm" --steps 10 --out report.html[/]

[cyan]trueward compare runs/mine --samplers ddim,edm,edm+dg,edm+diffrs,ddim+diffrs --steps 9,17,35 --out report.html[/]

[cyan]trueward compare runs/mine --reference photos/ --features inception.pt -n 10000 --seeds 5 --out report.html[/]

[cyan]accelerate launch --num_processes 4 -m trueward.cli compare runs/mine --out report.html[/] — the cells shared

Run again after an interruption: what was measured is kept.
"""


def compare(
    model: Model,
    out: Annotated[
        Path,
        typer.Option(
            "--out",
            "-o",
            metavar="NAME.html",
            show_default=False,
            help="The page, complete in one file; NAME.csv and NAME.json are written beside it.",
        ),
    ],
    samplers: Annotated[
        str,
        typer.Option(
            metavar="LIST",
            help="Samplers, separated by commas, with options as in dpm-solver++:order=3,grid=karras (quote the list); +dg and "
            "+diffrs refine one with the model's critic.",
        ),
    ] = "ddim,edm,dpm-solver++",
    steps: Annotated[
        str,
        typer.Option(
            metavar="LIST",
            help="Budgets in network evaluations per sample, separated by commas: a sampler whose step costs two makes half as many.",
        ),
    ] = "5,10,20",
    n: Annotated[
        int, typer.Option("-n", "--samples", metavar="COUNT", help="Samples for each sampler, budget and seed.")
    ] = 2048,
    seeds: Annotated[
        int, typer.Option(metavar="COUNT", help="Repetitions with seeds 0, 1, ...; error bars need two.")
    ] = 3,
    reference: Annotated[
        str | None,
        typer.Option(
            "--reference",
            "--data",
            metavar="DATA",
            show_default="what the model was trained on",
            help="What samples should look like: digits, mnist, an image folder, a .npz or .parquet file.",
        ),
    ] = None,
    metrics: Annotated[
        str | None,
        typer.Option(
            metavar="LIST",
            show_default="frechet,precision_recall",
            help="What to measure, separated by commas; the first decides who is best.",
        ),
    ] = None,
    features: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            show_default="the classifier of the data, else pixels",
            help="Where to measure: digits, mnist (bundled classifiers), pixels, or a TorchScript file.",
        ),
    ] = None,
    classes: Annotated[
        str | None,
        typer.Option(
            "--class", metavar="LABEL", show_default="none", help="Class to draw: a number, 0,1,2 in turn, or all."
        ),
    ] = None,
    guidance: Annotated[
        float | None, typer.Option(metavar="SCALE", show_default="1", help="Classifier-free guidance; needs --class.")
    ] = None,
    critic: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            show_default="the model's own folder",
            help="Where the critic of +dg and +diffrs is stored.",
        ),
    ] = None,
    batch_size: BatchSize = 256,
    show: Annotated[int, typer.Option(metavar="COUNT", help="Samples in each picture.")] = 16,
    device: Device = "auto",
) -> None:
    """Compare samplers of a model at equal numbers of network evaluations, from the same noise."""
    from trueward import processes
    from trueward.cli.interruption import interruptible
    from trueward.cli.notes import notes
    from trueward.cli.options import checked_output, load_model
    from trueward.cli.progress import sample_bar
    from trueward.drawing import parse_labels
    from trueward.reports.compare import compare as run
    from trueward.reports.compare import memories
    from trueward.reports.reference import reference_of
    from trueward.sampler_specs import parse_counts, parse_samplers

    rank, world = processes.join()
    checked_output(out, ".html", ".htm")
    specs, budgets = parse_samplers(samplers), parse_counts("--steps", steps)
    if seeds < 1:
        raise ValueError(f"--seeds must be at least 1, got {seeds}.")
    if show < 1:
        raise ValueError(f"--show must be at least 1, got {show}.")
    denoiser = load_model(model, device)
    data = reference_of(denoiser, reference)
    memory = out.with_name(out.name + ".cells")
    with (
        notes(),
        interruptible("What was measured is kept: run the same command again to continue."),
        sample_bar("comparing", -(-len(specs) * len(budgets) * seeds // world) * n) as advance,
    ):
        reported = 0

        def report(step: CellStep) -> None:
            nonlocal reported
            advance(step.done - reported)
            reported = step.done

        result = run(
            denoiser,
            specs,
            budgets,
            data.train,
            n=n,
            seeds=range(seeds),
            metrics=None if metrics is None else [name.strip() for name in metrics.split(",")],
            features=data.features if features is None else features,
            held_out=data.held_out,
            labels=parse_labels(classes, denoiser.num_classes),
            guidance=guidance,
            batch_size=batch_size,
            show=show,
            about={"model": model, **_told(denoiser), "reference": data.description},
            critic=critic,
            memory=memory,
            callback=report,
            together=world > 1,
        )
        if rank > 0:
            return
        result.write(out)
    for remembered in memories(memory):
        remembered.unlink(missing_ok=True)
    _print(result)
    typer.echo(f"Report: {out}")


def _told(denoiser: Denoiser) -> dict[str, Any]:
    """What the report says about the model."""
    parameters = sum(p.numel() for p in denoiser.parameters())
    return {"parameters": f"{parameters:,}", "schedule": type(denoiser.schedule).__name__}


def _print(result: Comparison) -> None:
    """The rows as a table."""
    from rich.console import Console
    from rich.table import Table

    from trueward.reports.charts import number
    from trueward.reports.comparison import value_and_spread

    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("sampler", overflow="fold")
    titles = ("evaluations", "of the critic") if result.asks_critic else ("evaluations",)
    for title in (*titles, *(q.title for q in result.qualities), "ms per sample"):
        table.add_column(title, justify="right", min_width=6)
    for budget in result.budgets:
        best = result.best(budget)
        for row in (r for r in result.rows if r.budget == budget):
            style = "bold green" if best is not None and row.sampler == best.sampler else ""
            word = "of" if row.nfe < budget else "for"
            made = f"{row.nfe:g}" if row.nfe == budget else f"{row.nfe:.4g} {word} {budget}"
            costs = [made.replace(" ", "\u00a0"), *([number(row.critic)] if result.asks_critic else [])]
            values = [value_and_spread(row, q.name) for q in result.qualities]
            shown = [text if spread is None else f"{text}\u00a0±\u00a0{spread}" for text, spread in values]
            table.add_row(row.sampler, *costs, *shown, number(1000 * row.seconds), style=style)
        table.add_section()
    Console().print(table)


def register(app: typer.Typer) -> None:
    """Adds the command to the program."""
    app.command(epilog=_EPILOG)(compare)
