"""``trueward likelihood``: bits per dimension of data under a model, with every term and its error."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from trueward.cli.fit_covariance import Schedule, under_schedule
from trueward.cli.options import BatchSize, Device, Json, Model

if TYPE_CHECKING:
    from trueward.data import Dataset
    from trueward.denoisers import Denoiser
    from trueward.likelihood import Bound, DiscretizedGaussian
    from trueward.times import TimeGrid

_EPILOG = """[bold]Examples[/]

[cyan]trueward likelihood digits --variance beta --steps 10,50[/]

[cyan]trueward likelihood runs/mine --variance beta,analytic,npr --steps 5,10,25,50 --trajectory optimal --out bits.json[/]

[cyan]trueward likelihood runs/mine --continuous[/] — the limit of many steps, the same for every variance
"""


def likelihood(
    model: Model,
    variance: Annotated[
        str,
        typer.Option(
            metavar="LIST",
            help="beta, beta-tilde, and what trueward fit-covariance stored: analytic, analytic-residual, analytic-full, sn, npr, npr-full.",
        ),
    ] = "beta",
    steps: Annotated[str, typer.Option(metavar="LIST", help="Numbers of levels, separated by commas.")] = "10,50",
    trajectory: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="even, log-snr, uniform, quadratic, karras; optimal (from the residual), optimal-paper (from gamma).",
        ),
    ] = "even",
    data: Annotated[
        str | None, typer.Option(metavar="DATA", show_default="what the model was trained on", help="Data to measure.")
    ] = None,
    split: Annotated[str, typer.Option(metavar="NAME", help="Split of the data: train or test.")] = "test",
    limit: Annotated[
        int | None, typer.Option(metavar="COUNT", show_default="all", help="Use only the first samples.")
    ] = None,
    covariance: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER", show_default="the model's own folder", help="The --out of trueward fit-covariance."
        ),
    ] = None,
    floor: Annotated[
        float, typer.Option(metavar="SHARE", help="Least variance of a learned head, as a share of what is expected.")
    ] = 0.05,
    cdf: Annotated[
        str, typer.Option(metavar="NAME", help="Distribution of the decoder: erf, or tanh as published.")
    ] = "erf",
    continuous: Annotated[
        bool, typer.Option("--continuous", help="The bound in continuous time; --variance and --steps do not matter.")
    ] = False,
    points: Annotated[int, typer.Option(metavar="COUNT", help="Noise levels per sample, for --continuous.")] = 16,
    conditional: Annotated[bool, typer.Option("--conditional", help="Give the model the labels of the data.")] = False,
    batch_size: BatchSize = 256,
    seed: Annotated[int, typer.Option(metavar="NUMBER", help="Of the noise.")] = 0,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", metavar="FILE.json", help="Also write every term as JSON.")
    ] = None,
    json: Json = False,
    schedule: Schedule = None,
    device: Device = "auto",
) -> None:
    """Measure the variational bound of the likelihood, in bits per dimension, plus or minus its standard error."""
    from trueward import processes, records
    from trueward.cli.options import checked_output, load_model
    from trueward.likelihood import DiscretizedGaussian, continuous_elbo, elbo
    from trueward.loading import find
    from trueward.naming import check_name
    from trueward.sampler_specs import parse_counts
    from trueward.samplers.ancestral import COVARIANCES, GUESSED, Ancestral

    processes.join()
    if out is not None:
        checked_output(out, ".json")
    counts, kinds = parse_counts("--steps", steps), [piece.strip() for piece in variance.split(",")]
    for kind in kinds:
        check_name("variance", kind, [*GUESSED, *COVARIANCES])
    folder = find(model) if covariance is None else covariance
    denoiser = load_model(model, device)
    examples = _examples(denoiser, data, split, limit)
    denoiser = under_schedule(denoiser, schedule)
    decoder = None if examples.levels is None else _decoder(examples, denoiser, cdf)
    if decoder is None:
        raise ValueError("Bits per dimension need quantised data, and these do not say their number of levels.")
    assert isinstance(decoder, DiscretizedGaussian)
    common: dict[str, Any] = {"decoder": decoder, "batch_size": batch_size, "seed": seed, "conditional": conditional}
    bounds: list[tuple[str, int | None, Bound]] = []
    if continuous:
        bounds.append(("continuous", None, continuous_elbo(denoiser, examples, points=points, progress=True, **common)))
    for kind in [] if continuous else kinds:
        wrapped = _with_covariance(denoiser, kind, folder, floor)
        for count in counts:
            grid = _grid(trajectory, folder, denoiser, count)
            sampler = Ancestral(count, variance=kind, grid=grid)
            bounds.append((kind, count, elbo(wrapped, examples, sampler, progress=True, **common)))
    if processes.here()[0]:
        return
    record = {
        "model": model,
        "data": examples.to_config(),
        "split": split,
        "trajectory": trajectory,
        "schedule": denoiser.schedule.to_config(),
        "floor": floor,
        "bounds": [{"variance": kind, "steps": count, **bound.to_record()} for kind, count, bound in bounds],
        **records.circumstances(),
    }
    if out is not None:
        records.write_json(out, record)
    if json:
        import json as text

        typer.echo(text.dumps(records._plain(record)))
    else:
        _print(bounds, trajectory, len(examples))


def _examples(denoiser: Denoiser, data: str | None, split: str, limit: int | None) -> Dataset:
    """The data to measure, of the model's shape."""
    from trueward.naming import check_name
    from trueward.reports.reference import reference_of

    check_name("split", split, ["train", "test"])
    reference = reference_of(denoiser, data)
    found = reference.train if split == "train" else reference.held_out
    if found is None:
        raise ValueError("These data come in one piece and have no test split; measure --split train.")
    return found if limit is None else found.subset(slice(0, limit))


def _decoder(examples: Any, denoiser: Denoiser, cdf: str) -> DiscretizedGaussian:
    from trueward.likelihood import DiscretizedGaussian

    data_range = examples.data_range or denoiser.data_range
    if data_range is None:
        raise ValueError("Neither the data nor the model say the range of the values.")
    return DiscretizedGaussian(examples.levels, tuple(data_range), cdf)


def _with_covariance(denoiser: Denoiser, kind: str, folder: Path, floor: float) -> Denoiser:
    from trueward.covariance import with_covariance
    from trueward.covariance.stored import HEADS
    from trueward.samplers.ancestral import GUESSED

    if kind in GUESSED:
        return denoiser
    return with_covariance(denoiser, kind, folder, **({"floor": floor} if kind in HEADS else {}))


def _grid(name: str, folder: Path, denoiser: Denoiser, count: int) -> TimeGrid:
    from trueward.covariance import load_table, optimal_trajectory
    from trueward.naming import check_name
    from trueward.times import time_grid, time_grid_names

    optimal = {"optimal": "analytic-residual", "optimal-paper": "analytic"}
    check_name("trajectory", name, [*time_grid_names(), *optimal])
    if name not in optimal:
        return time_grid(name)
    table = load_table(folder)
    table.check(denoiser.schedule)
    return optimal_trajectory(table, count, optimal[name], denoiser.data_range)


def _print(bounds: list[tuple[str, int | None, Bound]], trajectory: str, count: int) -> None:
    """The bounds as a table."""
    from rich.console import Console
    from rich.table import Table

    table = Table(
        title="Bits per dimension (bound)", title_justify="left", box=None, header_style="bold", pad_edge=False
    )
    table.add_column("variance")
    for title in ("steps", "bits/dim", "± s.e.", "decoder", "steps' divergence", "prior"):
        table.add_column(title, justify="right")
    for kind, steps, bound in bounds:
        parts = [f"{bound.bits(value):.3f}" for value in (bound.decoder, bound.edges, bound.prior)]
        table.add_row(
            kind,
            "–" if steps is None else str(steps),
            f"{bound.bits_per_dim:.3f}",
            f"{bound.standard_error:.3f}",
            *parts,
        )
    console = Console()
    console.print(table)
    console.print(f"{count} samples, trajectory: {trajectory}", style="dim")


def register(app: typer.Typer) -> None:
    """Adds the command to the program."""
    app.command(epilog=_EPILOG)(likelihood)
