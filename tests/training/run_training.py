"""Trains in a process of its own, for tests of several processes and of being killed.

Usage: run_training.py OUT JSON_SETTINGS [resume]. With RANK and WORLD_SIZE in the environment, processes talk over gloo.
"""

import json
import sys
from pathlib import Path

import torch
from conftest import MODEL, Blobs

from trueward.training import train

if __name__ == "__main__":
    torch.set_num_threads(1)
    train(MODEL, Blobs(), Path(sys.argv[1]), resume="resume" in sys.argv, device="cpu", **json.loads(sys.argv[2]))
