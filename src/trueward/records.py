"""What was done, written beside its output: configuration, seed, versions, git revision, network evaluations, wall time.

A record is a JSON object. Files are written to a temporary name in the same folder and renamed, so a reader never sees
half of one, and a failed write leaves nothing behind.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

_PACKAGES = ("torch", "numpy", "safetensors", "accelerate", "scikit-learn")


@contextlib.contextmanager
def atomic(path: str | Path) -> Iterator[Path]:
    """Yields a temporary path beside `path`; on success it is renamed to `path`, on failure it is removed.

    The folder of `path` is made if needed. The temporary name ends in ``.part``: tell the writer its format explicitly.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        yield part
        part.chmod(0o644)  # some writers make files that only their owner can read
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def write_text(path: str | Path, text: str) -> None:
    """Writes `text` (UTF-8) atomically."""
    with atomic(path) as part:
        part.write_text(text, encoding="utf-8")


def write_json(path: str | Path, record: Any) -> None:
    """Writes `record` as indented JSON, atomically; NaN and infinity, which JSON has no word for, become null."""
    write_text(path, json.dumps(_plain(record), indent=2, allow_nan=False) + "\n")


def read_json(path: str | Path) -> Any:
    """Reads a JSON file.

    Raises:
        ValueError: if it is not JSON, naming the file.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not a JSON file ({error}).") from None


def _plain(value: Any) -> Any:
    """`value` made of what JSON knows: NumPy and torch scalars become numbers, paths text, NaN and infinity null."""
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if isinstance(value, bool | str | int) or value is None:
        return value
    if isinstance(value, float):
        return value if value - value == 0.0 else None
    if hasattr(value, "item") and getattr(value, "ndim", 1) == 0:
        return _plain(value.item())
    if hasattr(value, "tolist"):
        return _plain(value.tolist())
    return str(value)


def versions() -> dict[str, str]:
    """Versions of trueward, Python and the packages that decide about numbers."""
    found = {"python": platform.python_version()}
    for package in ("trueward", *_PACKAGES):
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[package] = metadata.version(package)
    return found


def git_revision(folder: str | Path | None = None) -> str | None:
    """The git commit of `folder` (default: the working directory), with ``+changes`` if files differ from it; else None."""

    def git(*arguments: str) -> str:
        where = str(folder) if folder is not None else os.getcwd()
        return subprocess.run(
            ["git", "-C", where, *arguments], capture_output=True, text=True, timeout=5, check=True
        ).stdout.strip()

    try:
        revision = git("rev-parse", "HEAD")
        return revision + ("+changes" if git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.SubprocessError):
        return None


def command_line() -> str:
    """The command that runs now, as one would type it."""
    program = Path(sys.argv[0]).name if sys.argv else ""
    if program in ("__main__.py", "trueward"):
        program = "trueward"
    return shlex.join([program, *sys.argv[1:]])


def circumstances() -> dict[str, Any]:
    """Who ran this, where and when: versions, git revision, command, machine and the time (UTC) it was written."""
    record: dict[str, Any] = {
        "command": command_line(),
        "versions": versions(),
        "git_revision": git_revision(),
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} CPUs",
        "written": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }
    torch = sys.modules.get("torch")
    if torch is not None:
        record["threads"] = torch.get_num_threads()
        if torch.cuda.is_available():
            record["machine"] += f", {torch.cuda.get_device_name()}"
    return record
