"""Reading ``critic.json``: what is wrong with one that was written by hand or damaged is said in one sentence."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def described_in(path: Path) -> Iterator[None]:
    """Inside, a critic is built from what `path` says.

    Raises:
        ValueError: an entry that is missing, or of a kind that no critic can be built from; the file is named.
    """
    try:
        yield
    except KeyError as error:
        raise ValueError(f"{path} is damaged: it has no entry {error}.") from None
    except (TypeError, AttributeError) as error:
        raise ValueError(f"{path} is damaged: no critic can be built from it ({error}).") from error
