"""Help that a person can learn from, without waiting for torch."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

import pytest
import typer

from trueward.cli import app
from trueward.version import __version__

COMMANDS = ("train", "sample", "compare", "evaluate", "certify", "methods")
HEAVY = ("torch", "numpy", "accelerate", "matplotlib", "sklearn", "scipy", "safetensors")


@pytest.mark.parametrize("words", [["--help"], *([name, "--help"] for name in COMMANDS), ["methods"]])
def test_help_imports_no_heavy_library(words: list[str]) -> None:
    script = (
        "import sys\n"
        "from trueward.cli import main\n"
        "try:\n"
        f"    main({words!r})\n"
        "except SystemExit as leaving:\n"
        f"    loaded = [name for name in {HEAVY!r} if name in sys.modules]\n"
        "    sys.exit(f'imported {loaded}' if loaded or leaving.code else 0)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "trueward" in done.stdout or "dpm-solver" in done.stdout


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_says_what_it_is_for(name: str) -> None:
    command = typer.main.get_command(app).commands[name]  # type: ignore[attr-defined]
    for parameter in command.params:
        if parameter.name != "help":
            text = getattr(parameter, "help", None)
            assert text, f"{name} {parameter.name} has no help"
            assert text.endswith("."), f"{name} {parameter.name}: {text!r} is not a sentence"
    assert "Examples" in command.epilog
    assert f"trueward {name}" in command.epilog


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_without_a_plain_default_says_its_default(name: str) -> None:
    command = typer.main.get_command(app).commands[name]  # type: ignore[attr-defined]
    silent = {"out", "nfe", "option", "json"}  # nothing is their default, and their help says so
    for parameter in command.params:
        if parameter.default is None and not parameter.required and parameter.name not in silent | {"name", "data"}:
            assert parameter.show_default, f"{name} --{parameter.name} does not say its default"


def test_version(run: Callable[..., object]) -> None:
    outcome = run("--version")
    assert (outcome.code, outcome.out) == (0, f"trueward {__version__}\n")  # type: ignore[attr-defined]


def test_both_ways_to_call_the_package_as_a_module() -> None:
    for module in ("trueward", "trueward.cli"):
        done = subprocess.run([sys.executable, "-m", module, "--version"], capture_output=True, text=True, timeout=60)
        assert done.stdout == f"trueward {__version__}\n"
