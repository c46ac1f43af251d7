"""``trueward fit-critic``: the discriminator that guidance and rejection use, trained for a model and stored beside it."""

from __future__ import annotations

import contextlib
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from trueward.cli.options import Device, Model

if TYPE_CHECKING:
    from trueward.cli.progress import Advance
    from trueward.critics import Calibration
    from trueward.denoisers import Denoiser
    from trueward.shards import Progress

_EPILOG = """[bold]Examples[/]

[cyan]trueward fit-critic runs/mine[/] — generates with edm, trains, stores in runs/mine/critic

[cyan]trueward fit-critic digits --out runs/digits --sampler ddim --steps 20 -n 5000[/] — for the sampler you will use

[cyan]trueward fit-critic runs/mine --network features[/] — a shallow head on the frozen model

[cyan]trueward fit-critic runs/mine --generated samples/[/] — with samples that are there

[cyan]torchrun --nproc_per_node 2 -m trueward.cli fit-critic runs/mine[/] — several processes; the critic is that of one

Run again after an interruption: it continues. Then: [cyan]trueward sample runs/mine --refine diffrs --out grid.png[/]
"""
_FAKES, _TRAINING = "Generated samples", "Critic"
DEFAULT_SAMPLER, DEFAULT_STEPS = "edm", 18
GENERATED_SEED = 0xC217_1C00_0000_0000  # plus the seed: the samples a critic learnt from are not those drawn later


def fit_critic(
    model: Model,
    data: Annotated[
        str | None,
        typer.Option(metavar="DATA", show_default="what the model was trained on", help="Real samples."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            metavar="FOLDER",
            show_default="the model's own folder",
            help="Folder whose subfolder critic/ is written; needed for a model that comes with the package.",
        ),
    ] = None,
    sampler: Annotated[
        str,
        typer.Option(
            metavar="NAME[:OPTION=VALUE,...]",
            rich_help_panel=_FAKES,
            help="The sampler that is to be corrected; rejection needs one that can be stepped row by row.",
        ),
    ] = DEFAULT_SAMPLER,
    steps: Annotated[
        int | None,
        typer.Option(
            metavar="COUNT",
            rich_help_panel=_FAKES,
            show_default="18 for edm, else the sampler's own",
            help="Its steps.",
        ),
    ] = None,
    nfe: Annotated[
        int | None,
        typer.Option("--nfe", metavar="COUNT", rich_help_panel=_FAKES, help="Instead: its budget of evaluations."),
    ] = None,
    n: Annotated[
        int | None,
        typer.Option(
            "-n",
            "--samples",
            metavar="COUNT",
            rich_help_panel=_FAKES,
            show_default="as many as real ones, at most 10000",
            help="How many samples to generate.",
        ),
    ] = None,
    classes: Annotated[
        str | None,
        typer.Option(
            "--class",
            metavar="LABEL",
            rich_help_panel=_FAKES,
            show_default="none; all with --conditional",
            help="Classes to generate, in turn: those that will be drawn later.",
        ),
    ] = None,
    guidance: Annotated[
        float | None,
        typer.Option(metavar="SCALE", rich_help_panel=_FAKES, show_default="1", help="Classifier-free guidance."),
    ] = None,
    generated: Annotated[
        Path | None,
        typer.Option(
            metavar="PATH",
            rich_help_panel=_FAKES,
            show_default=False,
            help="Take these samples instead: a folder of shards made by [bold]trueward sample[/], or a .npz file.",
        ),
    ] = None,
    sample_batch: Annotated[
        int, typer.Option(metavar="SAMPLES", rich_help_panel=_FAKES, help="Samples in one call of the model.")
    ] = 64,
    network: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            rich_help_panel=_TRAINING,
            help="half-unet (images), mlp (vectors), features (a shallow head on the frozen model's features), or auto: one "
            "of the first two.",
        ),
    ] = "auto",
    features: Annotated[
        bool, typer.Option("--features", rich_help_panel=_TRAINING, help="Short for --network features.")
    ] = False,
    feature_layer: Annotated[
        str,
        typer.Option(
            metavar="NAME", rich_help_panel=_TRAINING, help="For features: which layer of the model holds them."
        ),
    ] = "auto",
    conditional: Annotated[
        bool, typer.Option("--conditional", rich_help_panel=_TRAINING, help="Judge every sample as one of its class.")
    ] = False,
    width: Annotated[
        int | None,
        typer.Option(metavar="CHANNELS", rich_help_panel=_TRAINING, show_default="by the network", help="Its width."),
    ] = None,
    blocks: Annotated[
        int | None,
        typer.Option(metavar="COUNT", rich_help_panel=_TRAINING, show_default="by the network", help="Its depth."),
    ] = None,
    dropout: Annotated[
        float | None,
        typer.Option(
            metavar="SHARE",
            rich_help_panel=_TRAINING,
            show_default="0.2; 0.1 from 20000 real samples",
            help="Its dropout.",
        ),
    ] = None,
    updates: Annotated[
        int,
        typer.Option(
            metavar="COUNT", rich_help_panel=_TRAINING, help="Updates; it stops early when held-out loss rises."
        ),
    ] = 3000,
    batch_size: Annotated[
        int,
        typer.Option(
            "--batch-size",
            "-b",
            metavar="SAMPLES",
            rich_help_panel=_TRAINING,
            help="Samples in an update, half of them real.",
        ),
    ] = 256,
    lr: Annotated[
        float, typer.Option(metavar="RATE", rich_help_panel=_TRAINING, help="Learning rate, falling to 0.")
    ] = 1e-3,
    patience: Annotated[
        int,
        typer.Option(
            metavar="CHECKS", rich_help_panel=_TRAINING, help="Stop after so many checks without improvement."
        ),
    ] = 8,
    seed: Annotated[
        int,
        typer.Option(
            metavar="NUMBER",
            help="Of the training and the generated samples; these are others than [bold]sample[/] draws with the same number.",
        ),
    ] = 0,
    device: Device = "auto",
) -> None:
    """Train a critic for a model: the log ratio of real to generated data at every noise level.

    The model is not changed. The critic serves Discriminator Guidance and diffusion rejection sampling; it belongs to this
    model and, strictly, to the sampler named here.
    """
    from trueward import processes
    from trueward.cli.interruption import interruptible
    from trueward.cli.notes import notes
    from trueward.cli.options import checked_output, load_model
    from trueward.drawing import Drawing, parse_labels
    from trueward.fitting import fit_critic as fit
    from trueward.loading import find, zoo_names
    from trueward.reports.critic_page import write_report
    from trueward.reports.reference import reference_of, remember
    from trueward.sampler_specs import SamplerSpec

    if out is None and model in zoo_names() and not Path(model).is_dir():
        raise ValueError(f"{model} comes with the package: say where its critic is to be stored, --out FOLDER.")
    folder = checked_output(find(model) if out is None else out)
    spec = SamplerSpec.parse(sampler)
    if spec.refined:
        raise ValueError(f"--sampler {sampler}: a critic is trained on the samples of the plain sampler, {spec.name}.")
    if steps is None and nfe is None and str(spec) == DEFAULT_SAMPLER:
        steps = DEFAULT_STEPS
    denoiser = load_model(model, device)
    reference = reference_of(denoiser, data)
    real = reference.train
    if data is not None and out is None and processes.launched()[0] == 0:
        remember(denoiser, reference)
    corrected, chosen = spec.assemble(denoiser, steps, nfe)
    chosen.plan(denoiser.schedule)
    classes = "all" if conditional and classes is None and denoiser.num_classes is not None else classes
    drawing = Drawing(corrected, chosen, GENERATED_SEED + seed, parse_labels(classes, denoiser.num_classes), guidance)
    facts = {"sampler": spec.described(chosen, guidance), "sampler_spec": str(spec), "steps": chosen.steps}  # type: ignore[arg-type]
    if generated is not None:
        with notes():
            facts = _made_by(generated, denoiser)
    first = processes.launched()[0] == 0
    with (
        notes(),
        interruptible("Run the same command again to continue."),
        _bars(len(real) if n is None else n) as on_sample,
    ):
        critic, record, fakes = fit(
            denoiser,
            real,
            folder,
            drawing=drawing,
            n=n,
            generated=generated,
            network="features" if features else network,
            conditional=conditional,
            width=width,
            blocks=blocks,
            dropout=dropout,
            feature_layer=feature_layer,
            updates=updates,
            batch_size=batch_size,
            lr=lr,
            patience=patience,
            seed=seed,
            sample_batch=sample_batch,
            facts={"model_name": model, **facts},
            progress=_watched(),
            on_sample=on_sample,
        )
    if not first:
        return
    _print(record.calibration)
    best = min(h["held_out"] for h in record.history)
    typer.echo(
        f"Trained for {record.steps} updates; the weights of update {record.best_step} are kept "
        f"(held-out cross-entropy {best:.4f} nats; 0.6931 sees no difference)."
    )
    page = write_report(folder / "critic" / "report.html", critic, record, real, fakes, model=model, facts=facts)
    typer.echo(f"Critic: {folder / 'critic'}, report: {page}")
    how = "diffrs" if chosen.row_wise else "dg"  # type: ignore[union-attr]
    words = [
        "" if out is None else f" --critic {out}",
        f" --refine {how}",
        "" if critic.num_classes is None else " --class all",
    ]
    typer.echo(f"Next: trueward sample {model}{''.join(words)} --out grid.png")


def _made_by(generated: Path, denoiser: Denoiser) -> dict[str, Any]:
    """What a folder of shards says of the sampler that made it; nothing for a file. Warns if it sampled another model."""
    from trueward.fingerprints import model_fingerprint
    from trueward.sampler_specs import SamplerSpec
    from trueward.shards import ShardFolder

    record = ShardFolder(generated).record if ShardFolder.is_one(generated) else {}
    text, steps = record.get("sampler"), record.get("steps")
    if not isinstance(text, str) or not isinstance(steps, int):
        return {}
    spec = SamplerSpec.parse(text)
    plain = SamplerSpec(spec.name, {name: value for name, value in spec.divided()[0].items() if name != "steps"})
    with contextlib.suppress(ValueError):  # a covariance that is no longer there: nothing to compare with
        model, _ = plain.assemble(denoiser, steps)
        if record["config"].get("model") not in (None, model_fingerprint(denoiser), model_fingerprint(model)):
            warnings.warn(
                f"The samples in {generated} were drawn from another model (other weights or covariance): the critic compares "
                "the data with those, not with this model.",
                stacklevel=2,
            )
    corrected = "+".join((str(plain), *spec.corrections))
    scale = record["config"].get("guidance")
    ending = "" if scale in (None, 1.0) else f", guidance {scale:g}"
    return {"sampler": f"{corrected} ({steps} steps{ending})", "sampler_spec": str(plain), "steps": steps}


def _watched() -> bool:
    """Whether somebody looks at a terminal."""
    import sys

    return sys.stderr.isatty()


class _bars:
    """A bar for the samples; gone before the one of the training appears."""

    def __init__(self, total: int) -> None:
        from trueward.cli.progress import sample_bar

        self.bar = sample_bar("generating", total)
        self.advance: Advance | None = None
        self.reported = 0

    def __enter__(self) -> _bars:
        return self

    def __call__(self, progress: Progress) -> None:
        if self.advance is None:
            self.advance = self.bar.__enter__()
            self.advance(progress.found, total=progress.share, skipped=True)
            self.reported = progress.found
        self.advance(progress.done - self.reported)
        self.reported = progress.done
        if progress.done >= progress.share:
            self.bar.__exit__(None, None, None)
            self.advance = None

    def __exit__(self, *error: object) -> None:
        if self.advance is not None:
            self.bar.__exit__(None, None, None)


def _print(calibration: Calibration) -> None:
    """Held-out accuracy and cross-entropy by noise level."""
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, header_style="bold", pad_edge=False)
    for title in ("sigma/alpha", "accuracy", "cross-entropy"):
        table.add_column(title, justify="right")
    rows = zip(calibration.levels, calibration.accuracy, calibration.cross_entropy)
    for level, accuracy, cross_entropy in rows:
        table.add_row(f"{level:.3g}", f"{accuracy:.1%}", f"{cross_entropy:.4f}")
    Console().print(table)


def register(app: typer.Typer) -> None:
    """Adds the command to the program."""
    app.command("fit-critic", epilog=_EPILOG)(fit_critic)
