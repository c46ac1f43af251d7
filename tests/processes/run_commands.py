"""Runs a list of command lines one after the other in this process, as one of several or alone.

Usage: run_commands.py COMMANDS.json, a list of lists of words. Ends with the first exit code that is not 0.
"""

import json
import sys
from pathlib import Path

import torch

from trueward.cli import main

if __name__ == "__main__":
    torch.set_num_threads(1)
    for words in json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")):
        try:
            main(words)
        except SystemExit as leaving:
            if leaving.code:
                print(f"failed: {words}", file=sys.stderr)
                raise
