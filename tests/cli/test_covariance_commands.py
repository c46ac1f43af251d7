"""``fit-covariance`` and ``likelihood`` from end to end on a small model of the digits."""

from __future__ import annotations

import json

import pytest
import torch
import typer
from typer.testing import CliRunner

from trueward.cli.fit_covariance import register as add_fit_covariance
from trueward.cli.likelihood import register as add_likelihood
from trueward.denoisers import denoiser
from trueward.loading import save_run
from trueward.networks import UNet
from trueward.schedules import DiscreteSchedule

program = typer.Typer()
for add in (add_fit_covariance, add_likelihood):
    add(program)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    torch.manual_seed(0)
    schedule = DiscreteSchedule.linear(40, 1e-3, 0.3)
    model = denoiser(UNet(1, 8, 8, (1, 2), 1, ()), schedule, "eps", shape=(1, 8, 8), data_range=(-1.0, 1.0))
    torch.nn.init.normal_(model.network.out.conv.weight, std=0.05)
    return save_run(tmp_path_factory.mktemp("model") / "run", model, {"data": {"load": {"spec": "digits"}}})


def run(*words):
    result = CliRunner().invoke(program, [str(word) for word in words])
    return result


def test_statistics_and_heads_are_fitted_and_their_bounds_measured(folder, tmp_path):
    model = (folder / "model.safetensors").read_bytes()
    result = run("fit-covariance", folder, "--samples", "40")
    assert result.exit_code == 0, result.output + str(result.exception)
    assert "40 levels, 1600 network evaluations" in result.output
    options = ("--steps", "4", "--lr", "1e-3", "--batch-size", "32")
    assert run("fit-covariance", folder, "--kind", "npr", *options).exit_code == 0
    assert (folder / "covariance" / "npr" / "covariance.json").is_file()
    assert (folder / "model.safetensors").read_bytes() == model
    out = tmp_path / "bits.json"
    result = run(
        "likelihood", folder, "--variance", "beta-tilde,beta,analytic,analytic-residual,npr", "--steps", "5,10", "--limit", "64",
        "--trajectory", "optimal", "--out", out,
    )  # fmt: skip
    assert result.exit_code == 0, result.output + str(result.exception)
    record = json.loads(out.read_text())
    found = {(b["variance"], b["steps"]): b["bits_per_dim"] for b in record["bounds"]}
    assert len(found) == 10
    for steps in (5, 10):
        assert found["analytic-residual", steps] <= found["beta", steps] < found["beta-tilde", steps]
    assert record["bounds"][0]["examples"] == 64
    assert "bits/dim" in result.output
    result = run("likelihood", folder, "--continuous", "--points", "2", "--limit", "16", "--json")
    assert json.loads(result.stdout)["bounds"][0]["bound"] == "continuous"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("fit-covariance", "--kind", "nrp"), "Did you mean 'npr'"),
        (("fit-covariance", "--relative-error", "0"), "relative_error must be positive"),
        (("likelihood", "--variance", "gamma"), "Unknown variance 'gamma'"),
        (("likelihood", "--variance", "sn"), "trueward fit-covariance"),
        (("likelihood", "--trajectory", "best"), "Unknown trajectory"),
        (("likelihood", "--split", "tset"), "Did you mean 'test'"),
        (("likelihood", "--out", "bits.txt"), "must end in .json"),
    ],
)
def test_bad_calls_are_told_in_one_sentence(folder, words, message):
    result = run(words[0], folder, *words[1:])
    assert isinstance(result.exception, ValueError)
    assert message in str(result.exception)
