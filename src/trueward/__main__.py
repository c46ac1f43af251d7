"""``python -m trueward``: the command line, also under ``accelerate launch -m trueward``."""

from trueward.cli import main

main()
