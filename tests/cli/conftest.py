"""Tiny models in run folders, and the command line called in this process."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from trueward.cli import main
from trueward.data import load_data
from trueward.denoisers import denoiser
from trueward.loading import save_run
from trueward.networks import UNet
from trueward.schedules import EDM


@dataclass
class Outcome:
    """What a call left: exit code, standard output and error."""

    code: int
    out: str
    err: str


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., Outcome]:
    """``run("sample", folder, "--out", path)`` in this process."""

    def call(*words: object) -> Outcome:
        capsys.readouterr()
        with pytest.raises(SystemExit) as leaving:
            main([str(word) for word in words])
        said = capsys.readouterr()
        return Outcome(int(leaving.value.code or 0), said.out, said.err)

    return call


def save_tiny(folder: Path, num_classes: int | None) -> Path:
    """A small U-Net with random weights everywhere (a fresh one answers zero), as training would leave it."""
    network = UNet(channels=1, size=8, width=8, multipliers=(1, 2), blocks=1, attention=(), num_classes=num_classes)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(0.15 * torch.randn(parameter.shape, generator=generator))
    model = denoiser(network, EDM(), "edm", shape=(1, 8, 8), data_range=(-1.0, 1.0), num_classes=num_classes)
    return save_run(folder, model, {"data": load_data("digits").to_config()})


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A class-conditional run."""
    return save_tiny(tmp_path_factory.mktemp("runs") / "tiny", 10)


@pytest.fixture(scope="session")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An unconditional run."""
    return save_tiny(tmp_path_factory.mktemp("runs") / "plain", None)
