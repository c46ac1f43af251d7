"""Ctrl-C and SIGTERM: leave cleanly, and say how to continue."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType


class Interrupted(BaseException):
    """The user stopped a long job; the text says how to continue it."""


def _as_keyboard_interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


@contextlib.contextmanager
def interruptible(hint: str) -> Iterator[None]:
    """Inside, Ctrl-C or a polite kill (SIGTERM) unwinds the job and raises :class:`Interrupted` with `hint`."""
    main_thread = threading.current_thread() is threading.main_thread()
    previous = signal.signal(signal.SIGTERM, _as_keyboard_interrupt) if main_thread else None
    try:
        yield
    except KeyboardInterrupt:
        raise Interrupted(hint) from None
    finally:
        if main_thread:
            signal.signal(signal.SIGTERM, previous)
