"""``trueward fit-covariance``: the right variance for a trained model, stored beside it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from trueward.cli.options import Device, Model

if TYPE_CHECKING:
    from trueward.covariance import GammaTable
    from trueward.denoisers import Denoiser

Schedule = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        show_default="the model's own",
        help="Ask the model under another process: ddpm-linear, ddpm-cosine, vp-linear, edm, ...",
    ),
]
_EPILOG = """[bold]Examples[/]

[cyan]trueward fit-covariance digits --out runs/digits[/] — Analytic-DPM: no training, a minute

[cyan]trueward fit-covariance runs/mine --kind npr --steps 20000[/] — a learned variance for every pixel

[cyan]trueward fit-covariance runs/mine --kind npr --resume[/] — continue after an interruption

[cyan]accelerate launch --num_processes 2 -m trueward.cli fit-covariance runs/mine[/] — shared by several processes

Then: [cyan]trueward likelihood runs/mine --variance analytic[/]
"""
_TABLE, _HEAD = "Analytic (analytic, analytic-full)", "Learned (sn, npr, npr-full)"


def fit_covariance(
    model: Model,
    kind: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="analytic (serves analytic-residual too), analytic-full (a matrix, up to 256 dimensions), sn, npr, npr-full.",
        ),
    ] = "analytic",
    data: Annotated[
        str | None,
        typer.Option(metavar="DATA", show_default="what the model was trained on", help="Clean training examples."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            metavar="FOLDER",
            show_default="the model's own folder",
            help="Folder whose subfolder covariance/ is written.",
        ),
    ] = None,
    relative_error: Annotated[
        float,
        typer.Option(
            metavar="SHARE", rich_help_panel=_TABLE, help="Relative standard error of the table, at every level."
        ),
    ] = 0.01,
    samples: Annotated[
        int | None,
        typer.Option(
            "--samples",
            "-n",
            metavar="COUNT",
            rich_help_panel=_TABLE,
            show_default="as many as the error needs",
            help="Examples at every level.",
        ),
    ] = None,
    conditional: Annotated[
        bool, typer.Option("--conditional", rich_help_panel=_TABLE, help="Give the model the labels of the data.")
    ] = False,
    steps: Annotated[int, typer.Option(metavar="COUNT", rich_help_panel=_HEAD, help="Updates of the head.")] = 10_000,
    lr: Annotated[float, typer.Option(metavar="RATE", rich_help_panel=_HEAD, help="Learning rate of the head.")] = 1e-4,
    ema: Annotated[
        float, typer.Option(metavar="DECAY", rich_help_panel=_HEAD, help="Decay of the average of the head's weights.")
    ] = 0.999,
    mode: Annotated[
        str | None,
        typer.Option(metavar="NAME", rich_help_panel=_HEAD, show_default="simple", help="simple or complex."),
    ] = None,
    feature_layer: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            rich_help_panel=_HEAD,
            help="Layer of the network whose output the head reads; auto knows trueward's and diffusers' networks.",
        ),
    ] = "auto",
    resume: Annotated[
        bool, typer.Option("--resume", rich_help_panel=_HEAD, help="Continue the training of the head.")
    ] = False,
    batch_size: Annotated[
        int, typer.Option("--batch-size", "-b", metavar="SAMPLES", help="Rows in one call of the network.")
    ] = 128,
    seed: Annotated[int, typer.Option(metavar="NUMBER", help="Of examples, noise and training.")] = 0,
    schedule: Schedule = None,
    device: Device = "auto",
) -> None:
    """Fit the covariance of the reverse steps of a trained model.

    The model itself is not changed by a bit. What is stored serves every sampler of the ancestral family, every number of
    steps and the likelihood; it is refused for another model or schedule.
    """
    from trueward.cli.interruption import interruptible
    from trueward.cli.options import checked_output, load_model
    from trueward.covariance import estimate_full_covariance, save_full_table
    from trueward.covariance.stored import HEADS
    from trueward.loading import find
    from trueward.naming import check_name
    from trueward.reports.reference import reference_of, remember

    check_name("covariance", kind, ["analytic", "analytic-full", *HEADS])
    folder = checked_output(find(model) if out is None else out)
    denoiser = load_model(model, device)
    reference = reference_of(denoiser, data)
    examples = reference.train
    if data is not None and out is None and _first():
        remember(denoiser, reference)
    denoiser = under_schedule(denoiser, schedule)
    hint = (
        f"Continue with: trueward fit-covariance {model} --kind {kind} --resume"
        if kind in HEADS
        else "Nothing was written."
    )
    with interruptible(hint):
        if kind == "analytic-full":
            count = 1000 if samples is None else samples
            table = estimate_full_covariance(
                denoiser, examples, num_samples=min(count, len(examples)), batch_size=batch_size, seed=seed,
                conditional=conditional, progress=True,
            )  # fmt: skip
            if _first():
                typer.echo(f"{save_full_table(table, folder, denoiser)}: {len(table.times)} levels")
            return
        if kind == "analytic":
            measured = _measure(denoiser, examples, samples, relative_error, batch_size, seed, conditional)
            if _first():
                _tell(measured, denoiser, folder)
            return
        settings = {"steps": steps, "lr": lr, "ema": ema, "batch_size": batch_size, "seed": seed}
        path = _fit_head(denoiser, examples, kind, folder, settings, feature_layer, mode, resume)
        if not (
            folder / "covariance" / "analytic.json"
        ).is_file():  # the floor of a head is a share of what is expected
            measured = _measure(denoiser, examples, samples, relative_error, batch_size, seed, conditional)
            if _first():
                _tell(measured, denoiser, folder)
    if _first():
        typer.echo(f"{path}: head fitted. Next: trueward likelihood {model} --variance {kind}")


def under_schedule(denoiser: Denoiser, name: str | None) -> Denoiser:
    """The model under another schedule; itself, if none is named."""
    if name is None:
        return denoiser
    from trueward.schedules import schedule

    return denoiser.on(schedule(name)).eval()


def _first() -> bool:
    """Whether this is the first of several processes."""
    from trueward import processes

    return processes.here()[0] == 0


def _measure(
    denoiser: Denoiser, examples: Any, samples: int | None, error: float, batch_size: int, seed: int, conditional: bool
) -> GammaTable:
    """The table, shared by the processes of an ``accelerate launch``."""
    from trueward import processes
    from trueward.covariance import estimate_gamma

    processes.join()
    return estimate_gamma(
        denoiser, examples, num_samples=samples, relative_error=error, batch_size=batch_size, seed=seed,
        conditional=conditional, progress=True,
    )  # fmt: skip


def _tell(table: GammaTable, denoiser: Denoiser, folder: Path) -> None:
    """Writes the table and says what was measured."""
    from trueward.covariance import save_table

    path = save_table(table, folder, denoiser)
    worst = (table.gamma_error / table.gamma).max()
    typer.echo(
        f"{path}: {len(table)} levels, {int(table.count.sum())} network evaluations, relative error at most {worst:.2%}"
    )


def _fit_head(
    denoiser: Denoiser,
    examples: Any,
    kind: str,
    folder: Path,
    settings: dict[str, Any],
    feature_layer: str,
    mode: str | None,
    resume: bool,
) -> Path:
    """Trains a head with the one trainer, in the folder it is stored in."""
    from trueward.covariance import trainable
    from trueward.covariance.stored import HEADS, covariance_folder, save_head
    from trueward.objectives.moments import MomentMatching
    from trueward.training import Trainer, TrainingConfig

    covariance = HEADS[kind](denoiser, feature_layer=feature_layer, mode=mode)
    config = TrainingConfig(
        **settings, schedule="constant", speed="plain", mixed_precision="no", sample_every=0, warmup=0
    )
    place = covariance_folder(folder) / kind
    averaged = Trainer(
        trainable(covariance),
        examples,
        place,
        config,
        objective=MomentMatching(),
        resume=resume,
        device=str(denoiser.device),
    ).fit()
    covariance.head.load_state_dict(averaged.network.state_dict())  # type: ignore[union-attr,operator]
    if _first():
        save_head(covariance, folder)
    return place


def register(app: typer.Typer) -> None:
    """Adds the command to the program."""
    app.command("fit-covariance", epilog=_EPILOG)(fit_covariance)
