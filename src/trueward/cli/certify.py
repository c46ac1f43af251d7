"""``trueward certify``: measure a sampler on exact models, ours or anyone's, and give a verdict."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from trueward.cli.options import Json

_EPILOG = """[bold]Examples[/]

[cyan]trueward certify dpm-solver++[/] — a sampler of trueward

[cyan]trueward certify dpm-solver++ --option order=3 --thorough --out certificate.json[/]

[cyan]trueward certify my_package.my_module:my_sampler --claims 2[/] — your own f(denoiser, schedule, x_T, steps)

[cyan]trueward certify diffusers:DPMSolverMultistepScheduler --option solver_order=3[/] — a scheduler of diffusers

[cyan]trueward certify diffusers --out schedulers.md[/] — a table of all of them, without a verdict (half an hour)

Exit code 0: certified. 1: a check failed.
"""


def certify(
    what: Annotated[
        str,
        typer.Argument(
            metavar="NAME",
            show_default=False,
            help="A sampler by its name, with options as in dpm-solver++:order=3; your own as module:function, called as "
            "f(denoiser, schedule, x_T, steps); a foreign one as diffusers:ClassName; diffusers alone for a table of all its schedulers.",
        ),
    ],
    option: Annotated[
        list[str] | None,
        typer.Option("--option", metavar="KEY=VALUE", help="An option to make it with; may be given several times."),
    ] = None,
    claims: Annotated[
        float | None,
        typer.Option(metavar="ORDER", show_default="what it says itself", help="Order of convergence it claims."),
    ] = None,
    thorough: Annotated[
        bool, typer.Option("--thorough", help="More grids, schedules and options: minutes instead of seconds.")
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            metavar="FILE",
            help="Also write the certificate as JSON; a table as .md, with .json beside it.",
        ),
    ] = None,
    json: Json = False,
) -> None:
    """Measure a sampler where the truth is known: order of convergence, evaluations, NaN-safety, identity of samples."""
    from trueward.certification import certify as examine
    from trueward.certification.survey import SURVEYS
    from trueward.cli.options import checked_output
    from trueward.sampler_specs import parse_options

    if what in SURVEYS:
        if option or claims is not None or thorough:
            raise ValueError(f"A table of all of {what} takes no options; name one of its schedulers: {what}:NAME.")
        _survey(what, out, json)
        return
    if out is not None:
        checked_output(out, ".json")
    options = parse_options(option or ())
    subject, more = _subject(what)
    certificate = examine(subject, options={**more, **options}, claims=claims, thorough=thorough)
    if out is not None:
        import json as encoder

        from trueward import records

        records.write_json(out, {**encoder.loads(certificate.to_json()), **records.circumstances()})
    if json:
        typer.echo(certificate.to_json())
    else:
        from rich.console import Console

        Console().print(certificate.table())
    if not certificate.passed:
        raise typer.Exit(1)


def _survey(library: str, out: Path | None, json: bool) -> None:
    """The table of a library's schedulers."""
    from rich.console import Console

    from trueward import records
    from trueward.certification.survey import survey_of
    from trueward.certification.survey_page import page
    from trueward.cli.options import checked_output

    if out is not None:
        checked_output(out, ".md")
    with Console(stderr=True).status(f"Measuring the schedulers of {library}") as status:
        survey = survey_of(library, lambda doing: status.update(f"Measuring: {doing}"))
    if out is not None:
        records.write_text(out.with_suffix(".json"), survey.to_json())
        records.write_text(out, page(survey, out.with_suffix(".json").name))
    if json:
        typer.echo(survey.to_json())
    elif out is None:
        typer.echo(page(survey))


def _subject(what: str) -> tuple[Any, dict[str, Any]]:
    """What to examine, and the options its text carries."""
    from trueward.certification.subject import SOURCES
    from trueward.sampler_specs import SamplerSpec
    from trueward.samplers import sampler_names

    head, colon, tail = what.partition(":")
    if head in SOURCES and colon:
        return what, {}
    if not colon or head in sampler_names():
        spec = SamplerSpec.parse(what)
        if spec.corrections:
            raise ValueError(f"Certify the sampler alone, without a correction of the model: {spec.name}.")
        return spec.name, dict(spec.options)
    return _import(head, tail), {}


def _import(module: str, name: str) -> Any:
    """The object `name` of a module on the path or in the working directory."""
    import importlib
    import sys

    sys.path.insert(0, "")
    try:
        found: Any = importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise ValueError(f"There is no module {error.name!r} to import {module}:{name} from.") from None
    finally:
        sys.path.remove("")
    for part in name.split("."):
        if not hasattr(found, part):
            raise ValueError(f"The module {module!r} has no {name!r}.")
        found = getattr(found, part)
    return found


def register(app: typer.Typer) -> None:
    """Adds the command to the program."""
    app.command(epilog=_EPILOG)(certify)
