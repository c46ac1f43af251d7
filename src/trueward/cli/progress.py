"""Progress on the terminal: a bar with speed and time left on a screen, silence where nobody watches."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Protocol


class Advance(Protocol):
    """Reports `count` more; `total` corrects what there is to do; `skipped` ones are shown but do not count as speed."""

    def __call__(self, count: int, total: int | None = None, skipped: bool = False) -> None: ...


@contextlib.contextmanager
def sample_bar(what: str, total: int, unit: str = "samples") -> Iterator[Advance]:
    """A progress bar on standard error; only the first of several processes shows one, and only on a terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed:g}/{task.total:g} " + unit),
        TextColumn("{task.fields[speed]}"),
        TimeRemainingColumn(),
    )
    quiet = os.environ.get("RANK", "0") != "0" or not console.is_terminal
    with Progress(*columns, console=console, disable=quiet, transient=True) as bar:
        task = bar.add_task(what, total=total, speed="")

        def advance(count: int, total: int | None = None, skipped: bool = False) -> None:
            if skipped:
                bar.reset(task, total=total, completed=count, description=what, speed="")
                return
            bar.update(task, advance=count, total=total)
            speed = bar.tasks[0].speed
            bar.update(task, speed=f"{speed:.3g} {unit}/s" if speed else "")

        yield advance
