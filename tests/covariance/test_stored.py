"""What is stored beside a model comes back equal, and is refused for another model or schedule."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from covariance.exact import LINEAR
from trueward.covariance import (
    AnalyticCovariance,
    GammaTable,
    NPRCovariance,
    estimate_full_covariance,
    estimate_gamma,
    for_sampler,
    load_full_table,
    load_table,
    save_full_table,
    save_head,
    save_table,
    with_covariance,
)
from trueward.denoisers import denoiser
from trueward.networks import UNet
from trueward.samplers import DDIM, Ancestral
from trueward.schedules import DiscreteSchedule, VPLinear

DATA = torch.rand(64, 1, 4, 4, generator=torch.Generator().manual_seed(0)) * 2 - 1


def model(seed=0, schedule=LINEAR):
    torch.manual_seed(seed)
    made = denoiser(UNet(1, 4, 8, (1,), 1, ()), schedule, "eps", shape=(1, 4, 4), data_range=(-1.0, 1.0)).eval()
    torch.nn.init.normal_(made.network.out.conv.weight, std=0.1)
    return made


def test_a_table_comes_back_equal_with_its_convention(tmp_path):
    table = estimate_gamma(model(), DATA, num_samples=64, times=[0.001, 0.5, 1.0])
    path = save_table(table, tmp_path, model())
    again = load_table(tmp_path)
    for name in table.columns:
        assert np.array_equal(getattr(again, name), getattr(table, name)), name
    assert again.schedule == LINEAR
    facts = json.loads(path.read_text())
    assert facts["convention"] == "mean_sq_eps"
    assert facts["schedule_fingerprint"] == LINEAR.fingerprint
    assert facts["about"]["seed"] == 0
    assert not list(tmp_path.rglob("*.part"))


def test_a_model_gets_its_covariance_by_name(tmp_path):
    from trueward.times import Times

    grid = Times([1.0, 0.5, 0.001])
    save_table(estimate_gamma(model(), DATA, num_samples=64, times=[0.001, 0.5, 1.0]), tmp_path, model())
    save_full_table(estimate_full_covariance(model(), DATA, num_samples=64, times=[0.001, 0.5, 1.0]), tmp_path, model())
    head = NPRCovariance(model(), average=True)
    torch.nn.init.normal_(head.head.out.weight)
    save_head(head, tmp_path)
    for kind in ("analytic", "analytic-residual", "analytic-full", "npr"):
        d = with_covariance(model(), kind, tmp_path)
        assert d.covariance_kind == kind
        x = Ancestral(3, variance=kind, grid=grid).sample(d, n=2).x
        y = (
            Ancestral(3, variance=kind, grid=grid)
            .sample(for_sampler(model(), Ancestral(3, variance=kind), tmp_path), n=2)
            .x
        )
        assert torch.equal(x, y)
    x = torch.randn(2, 1, 4, 4)
    assert torch.equal(with_covariance(model(), "npr", tmp_path)(x, 0.5).var, head.eval()(x, 0.5).var)
    floored = with_covariance(model(), "npr", tmp_path, floor=0.5, average=False)
    assert (floored(x, 0.5).var >= with_covariance(model(), "npr", tmp_path, average=False)(x, 0.5).var).all()
    plain = model()
    assert for_sampler(plain, DDIM(4)) is plain
    assert torch.equal(
        load_full_table(tmp_path).matrices, with_covariance(model(), "analytic-full", tmp_path).table.matrices
    )


def test_statistics_are_refused_for_another_model_or_schedule(tmp_path):
    save_table(estimate_gamma(model(), DATA, num_samples=8, times=[0.5, 1.0]), tmp_path, model())
    save_head(NPRCovariance(model()), tmp_path)
    other = DiscreteSchedule.linear(1000, 1e-4, 0.021)
    for made, words in ((model(1), "other weights"), (model(0, other), "(fit them again|fit it again|other weights)")):
        for kind in ("analytic", "npr"):
            with pytest.raises(ValueError, match=words):
                with_covariance(made, kind, tmp_path)
    with pytest.raises(ValueError, match="fit them again"):
        AnalyticCovariance(model(0, other), load_table(tmp_path))


def test_what_is_missing_or_damaged_is_told_in_one_sentence(tmp_path):
    with pytest.raises(ValueError, match="trueward fit-covariance"):
        with_covariance(model(), "analytic", tmp_path)
    with pytest.raises(ValueError, match="trueward fit-covariance"):
        with_covariance(model(), "npr", tmp_path)
    with pytest.raises(ValueError, match="Say where"):
        with_covariance(model(), "analytic")
    with pytest.raises(ValueError, match="Did you mean 'npr'"):
        with_covariance(model(), "nrp", tmp_path)
    path = save_table(estimate_gamma(model(), DATA, num_samples=8, times=[0.5, 1.0]), tmp_path, model())
    tensors = path.with_suffix(".safetensors")
    tensors.write_bytes(tensors.read_bytes()[:40])
    with pytest.raises(ValueError, match="cut short or damaged"):
        load_table(tmp_path)
    facts = json.loads(path.read_text())
    path.write_text(json.dumps({**facts, "convention": "mean_sq_score"}))
    with pytest.raises(ValueError, match="mean_sq_score"):
        load_table(tmp_path)
    path.write_text("{")
    with pytest.raises(ValueError, match="not a JSON file"):
        load_table(tmp_path)


def test_an_exact_table_whose_columns_share_memory_is_kept(tmp_path):
    schedule = VPLinear()
    table = GammaTable.exact(schedule, np.array([0.1, 0.5, 1.0]), np.array([0.2, 0.8, 1.0]), np.array([0.8, 0.2, 0.0]))
    save_table(table, tmp_path)
    assert np.array_equal(load_table(tmp_path).residual, table.residual)
