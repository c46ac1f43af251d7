"""Look a thing up by its name, and say something useful when the name is unknown."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import TypeVar

T = TypeVar("T")


def check_name(kind: str, name: str, known: Iterable[str]) -> str:
    """Returns `name` if it is one of `known`.

    Raises:
        ValueError: naming what was asked for (`kind`), the value, the closest known name and all known names.
    """
    known = list(known)
    if name in known:
        return name
    close = difflib.get_close_matches(str(name), known, n=1, cutoff=0.4)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    raise ValueError(f"Unknown {kind} {name!r}.{hint} Known: {', '.join(sorted(known))}.")


def look_up(kind: str, name: str, table: Mapping[str, T]) -> T:
    """Returns `table[name]`; an unknown name raises the `ValueError` of :func:`check_name`."""
    return table[check_name(kind, name, table)]
