"""What a training tells: a bar on a terminal, lines elsewhere, one JSON object per line in ``log.jsonl``, TensorBoard."""

from __future__ import annotations

import contextlib
import json
import sys
import time
from pathlib import Path
from typing import Any

from trueward import records


def duration(seconds: float) -> str:
    """``1:02:03`` or ``2:03``."""
    whole = int(max(0.0, seconds))
    hours, minutes = divmod(whole // 60, 60)
    return f"{hours}:{minutes:02d}:{whole % 60:02d}" if hours else f"{minutes}:{whole % 60:02d}"


class Log:
    """``log.jsonl`` of a run: lines of a resumed run that lie beyond its checkpoint are dropped first."""

    def __init__(self, path: Path, step: int) -> None:
        self.path = path
        if path.exists():
            kept = []
            for line in path.read_text(encoding="utf-8").splitlines():
                with contextlib.suppress(ValueError, TypeError, KeyError):  # a line cut short by a crash
                    if json.loads(line)["step"] <= step:
                        kept.append(line + "\n")
            records.write_text(path, "".join(kept))

    def write(self, **entry: Any) -> None:
        """Appends one line."""
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")


class Progress:
    """Shows how far the training is, its speed in images per second and the time left.

    Args:
        total: number of updates; `start` of them done.
        batch_size: samples per update.
        shown: whether to show anything.
    """

    def __init__(self, total: int, start: int, batch_size: int, shown: bool) -> None:
        self.total, self.start, self.batch_size, self.shown = total, start, batch_size, shown
        self.began = time.perf_counter()
        self._last = (start, self.began)
        self._rate = 0.0
        self._said = 0.0
        self._bar: Any = None
        if shown and sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
            from rich.progress import Progress as Bar

            self._bar = Bar(
                TextColumn("train"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[text]}"),
                console=Console(stderr=True),
            )
            self._task = self._bar.add_task("train", total=total, completed=start, text="")
            self._bar.start()

    def speed(self, step: int) -> float:
        """Images per second since the last call, smoothed."""
        now = time.perf_counter()
        steps, seconds = step - self._last[0], now - self._last[1]
        if steps > 0 and seconds > 0:
            rate = steps * self.batch_size / seconds
            self._rate = rate if self._rate == 0.0 else 0.7 * self._rate + 0.3 * rate
            self._last = (step, now)
        return self._rate

    def left(self, step: int) -> float:
        """Seconds left at the present speed."""
        return (self.total - step) * self.batch_size / self._rate if self._rate else 0.0

    def advance(self, step: int) -> None:
        """Moves the bar."""
        if self._bar is not None:
            self._bar.update(self._task, completed=step)

    def show(self, step: int, **values: float | None) -> None:
        """Shows losses; without a terminal at most one line in ten seconds."""
        if not self.shown:
            return
        numbers = "  ".join(f"{k.replace('_', ' ')} {v:.4g}" for k, v in values.items() if v is not None)
        text = f"{numbers}  {self._rate:.0f} images/s  {duration(self.left(step))} left"
        if self._bar is not None:
            self._bar.update(self._task, completed=step, text=text)
        elif step == self.total or time.perf_counter() - self._said > 10.0:
            self._said = time.perf_counter()
            print(f"step {step}/{self.total}  {text}", file=sys.stderr, flush=True)

    def say(self, text: str) -> None:
        """One line of text."""
        if not self.shown:
            return
        if self._bar is not None:
            self._bar.console.print(text, highlight=False, markup=False)
        else:
            print(text, file=sys.stderr, flush=True)

    def close(self) -> None:
        """Leaves the terminal as it was."""
        if self._bar is not None:
            self._bar.stop()


def tensorboard_writer(folder: Path) -> Any:
    """A TensorBoard writer.

    Raises:
        ValueError: naming the extra to install.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise ValueError('tensorboard=True needs TensorBoard: pip install "trueward[tensorboard]".') from None
    return SummaryWriter(str(folder))
