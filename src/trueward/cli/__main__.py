"""``python -m trueward.cli``: the command line, also under ``accelerate launch -m trueward.cli``."""

from trueward.cli import main

main()
