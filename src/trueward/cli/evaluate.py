"""``trueward evaluate``: how far samples are from data."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from trueward.cli.options import Device, Json

if TYPE_CHECKING:
    from trueward.data import Dataset

_EPILOG = """[bold]Examples[/]

[cyan]trueward evaluate samples/ digits[/] — a folder made by trueward sample, against the training data

[cyan]trueward evaluate pictures/ photos/ --size 64 --features inception:inception-2015-12-05.pt --out scores.json[/]

[cyan]trueward evaluate samples.npz mnist --split test --metrics frechet,c2st[/]

[cyan]accelerate launch --num_processes 2 -m trueward.cli evaluate samples/ photos/ --features inception:FILE[/] — the work shared
"""


# where a metric cannot lie outside, its interval does not either
_SHARE = (0.0, 1.0)
_RANGES = {
    "precision": _SHARE,
    "recall": _SHARE,
    "coverage": _SHARE,
    "class_accuracy": _SHARE,
    "c2st": _SHARE,
    "frechet": (0.0, math.inf),
    "density": (0.0, math.inf),
    "sliced_wasserstein": (0.0, math.inf),
}


def evaluate(
    samples: Annotated[
        str,
        typer.Argument(
            metavar="SAMPLES",
            show_default=False,
            help="A folder made by trueward sample, a folder of images, a .npz or .npy file.",
        ),
    ],
    reference: Annotated[
        str,
        typer.Argument(
            metavar="REFERENCE",
            show_default=False,
            help="The truth: digits, mnist, a folder of images, a file, or samples too.",
        ),
    ],
    metrics: Annotated[
        str | None,
        typer.Option(
            metavar="LIST",
            show_default="all but frechet_infinity and c2st",
            help="frechet, frechet_infinity, precision_recall, density_coverage, mmd, sliced_wasserstein, c2st.",
        ),
    ] = None,
    features: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            show_default="the classifier of the reference, else pixels",
            help="Where to measure: digits, mnist (bundled classifiers), pixels, inception:FILE, or a TorchScript file.",
        ),
    ] = None,
    split: Annotated[str, typer.Option(metavar="NAME", help="Split of the reference: train, test or all.")] = "train",
    size: Annotated[
        int | None,
        typer.Option(
            metavar="PIXELS", show_default="as they are", help="Bring images of both to this height and width."
        ),
    ] = None,
    limit: Annotated[
        int | None, typer.Option(metavar="COUNT", show_default="all", help="Use only the first so many of both.")
    ] = None,
    batch_size: Annotated[
        int, typer.Option("--batch-size", "-b", metavar="SAMPLES", help="Samples whose features are computed at once.")
    ] = 500,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", metavar="FILE.json", help="Also write the result as JSON.")
    ] = None,
    json: Json = False,
    device: Device = "auto",
) -> None:
    """Measure samples against data, with intervals (plus or minus 1.96 standard errors)."""
    from trueward import processes, records
    from trueward.cli.options import checked_output, torch_device
    from trueward.metrics import DEFAULT, default_features
    from trueward.metrics import evaluate as measure

    rank, world = processes.join()
    if out is not None:
        checked_output(out, ".json")
    names = DEFAULT if metrics is None else [name.strip() for name in metrics.split(",")]
    truth = _dataset(reference, split, size, limit)
    drawn = _dataset(samples, "all", size, limit)
    chosen = default_features(truth) if features is None else None if features == "pixels" else features
    result = measure(
        *_in_one_range(drawn, truth),
        names,
        chosen,
        labels=drawn.labels,
        batch_size=batch_size,
        device=torch_device(device),
        together=world > 1,
    )
    if rank > 0:
        return
    for name, value in result["metrics"].items():
        if value.get("standard_error") is not None:
            half = 1.96 * value["standard_error"]
            low, high = _RANGES.get(name, (-math.inf, math.inf))
            value["interval"] = [max(low, value["value"] - half), min(high, value["value"] + half)]
    told = {"of": samples, "against": f"{reference} ({split})"}
    record = {**told, **result, "processes": world, **records.circumstances()}
    if out is not None:
        records.write_json(out, record)
    if json:
        import json as encoder

        typer.echo(encoder.dumps(record, indent=2))
    else:
        _print(result, told)


def _dataset(spec: str, split: str, size: int | None, limit: int | None) -> Dataset:
    """Data or samples by name, file or folder; folders of shards are read as they were stored."""
    from trueward.data import Dataset, load_data
    from trueward.shards import ShardFolder

    if ShardFolder.is_one(spec):
        shards = ShardFolder(Path(spec))
        x, labels = shards.load()
        return Dataset(
            x[:limit],
            None if labels is None else labels[:limit],
            data_range=_wide(x, shards.data_range),
            name=Path(spec).name,
        )
    return load_data(spec, split=split, size=size, limit=limit)


def _wide(x: Any, data_range: tuple[float, float] | None) -> tuple[float, float] | None:
    """The range of the model's data; samples stored as floats may leave it a little, which is theirs to answer for."""
    if data_range is None:
        return None
    x.clamp_(*data_range)
    return data_range


def _in_one_range(samples: Dataset, reference: Dataset) -> tuple[Dataset, Dataset]:
    """Both in the range of the reference: values are compared, not units."""
    from trueward.data import Dataset

    if samples.data_range in (None, reference.data_range) or reference.data_range is None:
        return samples, reference
    (a, b), (low, high) = samples.data_range, reference.data_range  # type: ignore[misc]
    x = low + (samples.x - a) * ((high - low) / (b - a))
    return Dataset(x, samples.labels, data_range=reference.data_range, name=samples.name), reference


def _print(result: dict[str, Any], told: dict[str, str]) -> None:
    """The metrics as a table."""
    from rich.console import Console
    from rich.table import Table

    from trueward.reports.charts import number

    table = Table(
        title=f"{told['of']} against {told['against']}",
        title_justify="left",
        box=None,
        header_style="bold",
        pad_edge=False,
    )
    table.add_column("metric")
    for title in ("value", "95 % interval"):
        table.add_column(title, justify="right")
    for name, value in result["metrics"].items():
        interval = value.get("interval")
        table.add_row(
            name, number(value["value"]), "–" if interval is None else f"{number(interval[0])} … {number(interval[1])}"
        )
    console = Console()
    console.print(table)
    console.print(
        f"{result['samples']} samples, {result['reference']} of the reference, features: {result['features']} ({result['dimensions']})",
        style="dim",
    )


def register(app: typer.Typer) -> None:
    """Adds the command to the program."""
    app.command(epilog=_EPILOG)(evaluate)
