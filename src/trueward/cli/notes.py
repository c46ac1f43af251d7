"""Warnings of the library, told on the terminal in one line each."""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Iterator

import typer


@contextlib.contextmanager
def notes_at_once() -> Iterator[None]:
    """Inside, warnings meant for users are told as they come, each once: what takes long must not keep them back."""
    told: set[str] = set()

    def show(message: Warning | str, category: type[Warning], *rest: object, **options: object) -> None:
        text = str(message)
        if os.environ.get("RANK", "0") == "0" and issubclass(category, UserWarning) and text not in told:
            told.add(text)
            typer.echo(f"Note: {text}", err=True)

    with warnings.catch_warnings():
        warnings.simplefilter("always", UserWarning)
        warnings.showwarning = show
        yield


@contextlib.contextmanager
def notes() -> Iterator[None]:
    """Inside, warnings meant for users are collected; afterwards the first of several processes tells each of them once."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        yield
    if os.environ.get("RANK", "0") != "0":
        return
    told = dict.fromkeys(str(warning.message) for warning in said if warning.category.__mro__.count(UserWarning))
    for message in told:
        typer.echo(f"Note: {message}", err=True)
