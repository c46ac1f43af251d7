"""The program ``trueward``: its commands, and how errors and interruptions reach the user."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator, Sequence
from typing import Annotated, NoReturn

import typer

from trueward.cli.certify import register as add_certify
from trueward.cli.compare import register as add_compare
from trueward.cli.evaluate import register as add_evaluate
from trueward.cli.fit_covariance import register as add_fit_covariance
from trueward.cli.fit_critic import register as add_fit_critic
from trueward.cli.interruption import Interrupted
from trueward.cli.likelihood import register as add_likelihood
from trueward.cli.methods import register as add_methods
from trueward.cli.sample import register as add_sample
from trueward.cli.train import register as add_train

BAD_INPUT, INTERRUPTED = 2, 130
_NEED_ARGUMENTS = (
    "train",
    "sample",
    "compare",
    "evaluate",
    "certify",
    "fit-covariance",
    "fit-critic",
    "likelihood",
)  # alone they explain themselves

app = typer.Typer(
    name="trueward",
    help="Move generative models toward the true distribution: train, sample, compare and measure diffusion models.",
    epilog="Start here: [bold]trueward compare digits --samplers ddim,dpm-solver++ --steps 5,10,20 --out report.html[/]",
    rich_markup_mode="rich",
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for add in (
    add_train,
    add_sample,
    add_fit_covariance,
    add_fit_critic,
    add_compare,
    add_evaluate,
    add_likelihood,
    add_certify,
    add_methods,
):
    add(app)


def _print_version(wanted: bool) -> None:
    if wanted:
        from trueward.version import __version__

        typer.echo(f"trueward {__version__}")
        raise typer.Exit


@app.callback()
def program(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and leave.")
    ] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="Show the traceback of an error (accepted anywhere on the line).")
    ] = False,
) -> None:
    """Kept without a body: main() takes --debug before the commands see it."""


def _click_exception() -> type[Exception]:
    """Typer carries click under its own name or uses the installed one; either way it is a base of BadParameter."""
    return next(base for base in typer.BadParameter.__mro__ if base.__name__ == "ClickException")


def one_sentence(error: BaseException, words: Sequence[str] = ()) -> str:
    """An error as one line: its own words; for the operating system's errors the reason and the file.

    `words` is the command line, from which the value is taken that the parser could not read.
    """
    if isinstance(error, OSError) and error.strerror:
        files = " -> ".join(str(name) for name in (error.filename, error.filename2) if name is not None)
        return f"{error.strerror}: {files}." if files else f"{error.strerror}."
    text = " ".join(str(getattr(error, "format_message", lambda: str(error))()).split())
    given = _given(error, words)
    if given is not None and given not in text:
        text = f"{text.rstrip('.')}, got {given!r}"
    return (text if text.endswith((".", "?", "!")) else text + ".") if text else f"{type(error).__name__}."


def _given(error: BaseException, words: Sequence[str]) -> str | None:
    """What was typed for the option that an error of the parser is about."""
    options = getattr(getattr(error, "param", None), "opts", ())
    for word, following in zip(words, [*words[1:], None]):
        name, equals, value = word.partition("=")
        if name in options:
            return value if equals else following
    return None


def _leave(message: str, code: int) -> NoReturn:
    # with several processes all meet the same error; one of them says it
    if os.environ.get("RANK", "0") == "0":
        print(message, file=sys.stderr)
    sys.exit(code)


@contextlib.contextmanager
def _speaking_plainly(words: Sequence[str]) -> Iterator[None]:
    """Turns bad input into one sentence with code 2, and Ctrl-C into a hint how to continue with code 130."""
    try:
        yield
    except (ValueError, OSError, ImportError, _click_exception()) as error:
        if isinstance(error, BrokenPipeError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(1)
        _leave(f"Error: {one_sentence(error, words)}", BAD_INPUT)
    except Interrupted as stop:
        _leave(f"\nStopped. {stop}", INTERRUPTED)
    except (KeyboardInterrupt, typer.Abort):
        _leave("\nStopped.", INTERRUPTED)
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, MemoryError) or "out of memory" in str(error) or "can't allocate memory" in str(error):
            _leave("Error: Not enough memory: use a smaller --batch-size or -n.", BAD_INPUT)
        raise


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Runs the command line and leaves with its exit code: 0 done, 1 a verdict that failed, 2 bad input, 130 interrupted."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in words or bool(os.environ.get("TRUEWARD_DEBUG"))
    words = [word for word in words if word != "--debug"]
    command = typer.main.get_command(app)
    if not words or (len(words) == 1 and words[0] in _NEED_ARGUMENTS):
        words.append("--help")
    with contextlib.nullcontext() if debug else _speaking_plainly(words):
        code = command.main(args=words, prog_name="trueward", standalone_mode=False)
        sys.exit(code if isinstance(code, int) else 0)
