"""The command line: ``trueward COMMAND``, one file per command.

The commands have the names of the verbs in Python and call them; nothing is computed here. Heavy libraries are imported
inside the commands, so ``trueward --help`` answers at once. :func:`main` is the entry point: bad input ends with exit code 2
and one sentence, an interruption with code 130 and how to continue.
"""

from trueward.cli.program import app, main

__all__ = ["app", "main"]
