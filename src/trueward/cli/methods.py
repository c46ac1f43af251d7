"""``trueward methods``: the twenty published methods, and how to cite them."""

from __future__ import annotations

from typing import Annotated

import typer

from trueward.cli.options import Json

_EPILOG = """[bold]Examples[/]

[cyan]trueward methods[/] — all of them

[cyan]trueward methods dpm-solver++[/] — one of them in full

[cyan]trueward methods --bibtex > references.bib[/]
"""


def methods(
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="[NAME]", show_default=False, help="Only this method, in full. Default: a table of all."
        ),
    ] = None,
    bibtex: Annotated[bool, typer.Option("--bibtex", help="Print BibTeX entries instead.")] = False,
    json: Json = False,
) -> None:
    """List the twenty methods: paper, place in the package, verdict of the last reproduction."""
    from trueward.methods import method
    from trueward.methods import methods as all_methods

    chosen = all_methods() if name is None else [method(name)]
    entries = [
        {
            "name": m.name,
            "purpose": m.purpose,
            "room": m.room,
            "status": m.status,
            "reproduction": m.last_reproduction(),
            "title": m.title,
            "authors": m.authors,
            "venue": m.venue,
            "year": m.year,
            "arxiv": m.arxiv,
        }
        for m in chosen
    ]
    if bibtex:
        from trueward.methods import bibtex as all_entries

        typer.echo(all_entries() if name is None else chosen[0].bibtex)
        return
    if json:
        import json as encoder

        typer.echo(encoder.dumps(entries, indent=2, ensure_ascii=False))
        return
    from rich.console import Console
    from rich.table import Table

    console = Console()
    if name is not None:
        table = Table(show_header=False, box=None)
        for key, value in entries[0].items():
            shown = "; ".join(value) if isinstance(value, list) else value
            table.add_row(f"[bold]{key}[/]", str(shown) if shown is not None else "–")
    else:
        table = Table(
            "method", "what it does", "paper", "room", "status", box=None, header_style="bold", pad_edge=False
        )
        for e in entries:
            state = e["reproduction"] or e["status"]
            table.add_row(
                f"[bold]{e['name']}[/]", str(e["purpose"]), f"{e['venue']} {e['year']}", str(e["room"]), str(state)
            )
    console.print(table)


def register(app: typer.Typer) -> None:
    """Adds the command to the program."""
    app.command(epilog=_EPILOG)(methods)
