"""A diffusers pipeline folder through the commands, with no code: what a user who never trained with trueward does."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

diffusers = pytest.importorskip("diffusers", reason="diffusers is not installed: pip install trueward[diffusers]")


def save_pipeline(folder, **options):
    torch.manual_seed(0)
    network = diffusers.UNet2DModel(
        sample_size=8,
        in_channels=1,
        out_channels=1,
        block_out_channels=(8, 8),
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        norm_num_groups=4,
        **options,
    )
    scheduler = diffusers.DDPMScheduler(num_train_timesteps=40, beta_start=0.002, beta_end=0.35)
    diffusers.DDPMPipeline(network, scheduler).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_pipeline(tmp_path_factory.mktemp("pipelines") / "ddpm")


def succeeds(outcome):
    assert outcome.code == 0, outcome.err
    assert "Loading pipeline components" not in outcome.err
    return outcome


def test_samples_are_drawn_without_being_told_anything(run, folder, tmp_path):
    succeeds(run("sample", folder, "-n", 4, "--steps", 4, "--out", tmp_path / "grid.png"))
    assert (tmp_path / "grid.png").stat().st_size > 100
    succeeds(run("sample", folder, "-n", 4, "--steps", 4, "--out", tmp_path / "four.npz", "--sampler", "ddim"))
    with np.load(tmp_path / "four.npz") as archive:
        assert archive["arr_0"].shape == (4, 8, 8, 1)
        assert archive["arr_0"].dtype == np.uint8


def test_data_that_were_not_named_are_asked_for(run, tmp_path):
    folder = save_pipeline(tmp_path / "ddpm")
    for command in (("fit-covariance",), ("likelihood",), ("compare", "--out", tmp_path / "report.html")):
        outcome = run(command[0], folder, *command[1:])
        assert outcome.code == 2
        assert "does not say which data it was trained on: name them with --data" in " ".join(outcome.err.split())


def test_the_whole_chain_runs_on_the_folder_and_the_data_are_named_once(run, folder, tmp_path):
    succeeds(run("fit-covariance", folder, "--data", "digits", "-n", 8))
    note = json.loads((folder / "trueward.json").read_text())
    assert note["data"]["name"] == "digits"
    for kind in ("npr", "sn"):
        succeeds(run("fit-covariance", folder, "--kind", kind, "--steps", 2, "-b", 8))
        assert (folder / "covariance" / kind / "model.safetensors").is_file()
    kinds = "beta,beta-tilde,analytic,npr,sn"
    succeeds(
        run("likelihood", folder, "--variance", kinds, "--steps", 5, "--limit", 16, "--out", tmp_path / "bits.json")
    )
    bounds = json.loads((tmp_path / "bits.json").read_text())["bounds"]
    assert [bound["variance"] for bound in bounds] == kinds.split(",")
    assert all(np.isfinite(bound["bits_per_dim"]) for bound in bounds)
    for sampler in ("analytic-ddpm", "npr-ddim", "sn-ddpm"):
        out = tmp_path / sampler
        succeeds(run("sample", folder, "-n", 64, "--steps", 4, "--sampler", sampler, "--out", out))
    succeeds(run("evaluate", tmp_path / "sn-ddpm", "digits", "--limit", 64, "--out", tmp_path / "quality.json"))
    assert json.loads((tmp_path / "quality.json").read_text())["metrics"]["frechet"]["value"] > 0
    samplers = "ddim,dpm-solver++,analytic-ddpm,npr-ddpm"
    report = tmp_path / "report.html"
    succeeds(run("compare", folder, "--samplers", samplers, "--steps", 4, "-n", 32, "--seeds", 1, "--out", report))
    assert {row["sampler"] for row in json.loads(report.with_suffix(".json").read_text())["rows"]} == set(
        samplers.split(",")
    )


def test_a_critic_of_the_folder_refines_its_samples(run, folder, tmp_path):
    fit = ("--sampler", "ddim", "--steps", 3, "-n", 64, "--updates", 4, "-b", 16, "--width", 8)
    succeeds(run("fit-critic", folder, "--data", "digits", *fit))
    assert (folder / "critic" / "critic.safetensors").is_file()
    draw = ("--sampler", "ddim", "--steps", 3, "-n", 4)
    for refine in ("dg", "diffrs", "dg+diffrs"):
        out = tmp_path / f"{refine}.npz"
        succeeds(run("sample", folder, "--refine", refine, *draw, "--out", out))
        with np.load(out) as archive:
            assert archive["arr_0"].shape == (4, 8, 8, 1)


def test_a_class_conditional_pipeline_draws_the_class_that_was_asked_for(run, tmp_path):
    folder = save_pipeline(tmp_path / "conditional", num_class_embeds=10)
    succeeds(run("sample", folder, "-n", 4, "--steps", 3, "--class", "all", "--out", tmp_path / "all.npz"))
    with np.load(tmp_path / "all.npz") as archive:
        assert archive["labels"].tolist() == [0, 1, 2, 3]
    outcome = run("sample", folder, "-n", 4, "--steps", 3, "--out", tmp_path / "none.png")
    assert outcome.code == 2
    assert "class" in outcome.err


def test_a_damaged_folder_is_explained_in_one_sentence(run, tmp_path):
    folder = save_pipeline(tmp_path / "cut")
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:500])
    outcome = run("sample", folder, "--out", tmp_path / "grid.png")
    assert outcome.code == 2
    assert "could not be read" in outcome.err
    assert "Traceback" not in outcome.err
