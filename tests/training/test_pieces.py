"""The pieces of the trainer: average, data order, learning rate, storage."""

import itertools
import math

import pytest
import torch
from torch import nn

from trueward.training import EMA, TrainingConfig, recipe, recipe_names
from trueward.training.checkpoints import load_optimizer, optimizer_tensors
from trueward.training.order import DataOrder, mixed_seed
from trueward.training.progress import Log, Progress, duration
from trueward.training.speed import Speed, candidates, choose


def test_the_average_follows_its_formula():
    layer = nn.Linear(1, 1, bias=False)
    layer.weight.data.fill_(5.0)
    ema = EMA(layer, 0.9)
    average = 5.0
    for n in range(1, 200):
        value = math.sin(n)
        layer.weight.data.fill_(value)
        ema.update(layer)
        d = min(0.9, (1 + n) / (10 + n))
        average = d * average + (1 - d) * value
        assert abs(ema.average[0].item() - average) < 1e-5
    assert abs(ema.rate(1) - 2 / 11) < 1e-12
    assert ema.rate(10**6) == 0.9


def test_the_average_is_float32_for_half_precision_weights():
    layer = nn.Linear(2, 2).to(torch.bfloat16)
    ema = EMA(layer, 0.999)
    before = ema.average[0].clone()
    layer.weight.data += 1.0
    for _ in range(3):
        ema.update(layer)
    assert ema.average[0].dtype == torch.float32
    assert not torch.equal(ema.average[0], before)
    ema.copy_to(layer)
    assert layer.weight.dtype == torch.bfloat16


def test_buffers_are_those_of_the_trained_module():
    norm, copied = nn.BatchNorm1d(2), nn.BatchNorm1d(2)
    ema = EMA(norm, 0.9)
    norm(torch.randn(16, 2) + 3.0)
    ema.copy_to(copied, norm)
    assert torch.equal(copied.running_mean, norm.running_mean)
    assert copied.running_mean.mean() > 0.1


def test_no_decay_keeps_the_last_weights():
    layer = nn.Linear(2, 2)
    ema = EMA(layer, 0.0)
    layer.weight.data += 1.0
    ema.update(layer)
    assert torch.equal(ema.average[0], layer.weight)


def test_every_sample_is_seen_once_per_epoch_and_batches_run_over_its_end():
    order = DataOrder(10, 4, seed=0)
    seen = torch.cat([order.batch(k) for k in range(5)])
    assert torch.equal(seen[:10].sort().values, torch.arange(10))
    assert torch.equal(seen[10:].sort().values, torch.arange(10))
    assert not torch.equal(seen[:10], seen[10:])


def test_the_order_is_a_pure_function_of_seed_and_step_and_rows_are_slices_of_it():
    order = DataOrder(10, 4, seed=0)
    late = order.batch(1000)
    assert torch.equal(DataOrder(10, 4, seed=0).batch(1000), late)
    assert torch.equal(torch.cat([order.batch(1000, slice(0, 2)), order.batch(1000, slice(2, 4))]), late)
    assert any(not torch.equal(DataOrder(10, 4, seed=1).batch(k), order.batch(k)) for k in range(3))
    with pytest.raises(ValueError, match="batch_size=11 is larger than the 10"):
        DataOrder(10, 11, 0)


def test_seeds_of_neighbouring_steps_are_unrelated():
    seeds = [mixed_seed(s, p, k) for s in range(4) for p in range(4) for k in range(200)]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= s < 2**63 for s in seeds)
    ones = sum(bin(a ^ b).count("1") for a, b in itertools.pairwise(seeds)) / (len(seeds) - 1)
    assert abs(ones - 31.5) < 0.5  # 63 fair coins, 3199 times: standard error 0.07


def test_the_learning_rate_warms_up_and_falls_along_the_cosine():
    config = TrainingConfig(steps=110, warmup=10, lr=2.0, final_lr=0.1)
    assert config.learning_rate(0) == pytest.approx(0.2)
    assert config.learning_rate(9) == config.learning_rate(10) == 2.0
    assert config.learning_rate(60) == pytest.approx(1.1)
    assert config.learning_rate(110) == pytest.approx(0.2)
    assert TrainingConfig(schedule="constant", warmup=0, lr=0.3).learning_rate(5000) == 0.3


def test_settings_come_back_from_json():
    config = TrainingConfig(steps=7, betas=(0.5, 0.9))
    assert TrainingConfig.from_config(config.to_config()) == config


def test_a_constant_rate_may_be_continued_and_free_settings_may_change():
    before = TrainingConfig(steps=10, schedule="constant").to_config()
    TrainingConfig(steps=20, schedule="constant", log_every=1, sample_every=3).check_resumes(before)
    with pytest.raises(ValueError, match="steps=10"):
        TrainingConfig(steps=5, schedule="constant").check_resumes(before)
    with pytest.raises(ValueError, match="seed=0"):
        TrainingConfig(steps=10, schedule="constant", seed=1).check_resumes(before)


@pytest.mark.parametrize("make", [torch.optim.AdamW, lambda p: torch.optim.SGD(p, 0.1, momentum=0.9)])
def test_an_optimizer_continues_from_its_tensors(make):
    def steps(optimizer, layer, n):
        for _ in range(n):
            layer(torch.ones(3)).sum().backward()
            optimizer.step()

    torch.manual_seed(0)
    a, b = nn.Linear(3, 2), nn.Linear(3, 2)
    first = make(a.parameters())
    steps(first, a, 3)
    b.load_state_dict(a.state_dict())
    for p, q in zip(a.parameters(), b.parameters()):
        q.grad = p.grad.clone()
    second = make(b.parameters())
    tensors, numbers = optimizer_tensors(first)
    load_optimizer(second, {name: tensor.clone() for name, tensor in tensors.items()}, numbers)
    steps(first, a, 3)
    steps(second, b, 3)
    assert torch.equal(a.weight, b.weight)


def test_the_log_drops_what_lies_beyond_the_checkpoint_and_lines_cut_short(tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n{"step": 3}\n{"ste')
    Log(path, 2).write(step=3, loss=0.5)
    assert path.read_text() == '{"step": 1}\n{"step": 2}\n{"step": 3, "loss": 0.5}\n'


def test_progress_without_a_terminal_is_plain_lines(capsys):
    progress = Progress(10, 0, 4, shown=True)
    progress.speed(5)
    progress.show(10, loss=0.25, validation_loss=None)
    progress.close()
    said = capsys.readouterr().err
    assert "step 10/10  loss 0.25" in said
    assert "images/s" in said
    assert "left" in said
    assert "\x1b" not in said
    assert (duration(59.9), duration(3661)) == ("0:59", "1:01:01")


def test_the_faster_form_is_chosen_only_if_it_is_clearly_faster(monkeypatch):
    import trueward.training.speed as speed

    layer = nn.Sequential(nn.Conv2d(1, 1, 3))
    config = TrainingConfig()
    cpu = torch.device("cpu")
    assert [c.name for c in candidates(layer, config, cpu)] == [
        "float32", "float32, channels last", "bf16", "bf16, channels last",
    ]  # fmt: skip
    assert [c.name for c in candidates(nn.Linear(1, 1), config, cpu)] == ["float32", "bf16"]
    assert [c.precision for c in candidates(layer, TrainingConfig(mixed_precision="no"), cpu)] == ["no", "no"]

    now = [0.0]

    def losses(module):
        now[0] += bf16_share if torch.is_autocast_enabled("cpu") else 1.0
        return module(torch.zeros(1, 1, 3, 3))

    for clock in ("perf_counter", "process_time"):
        monkeypatch.setattr(speed.time, clock, lambda: now[0])
    for bf16_share, wanted in ((0.5, "bf16"), (0.99, "no"), (1.5, "no")):  # noqa: B007
        assert choose(layer, losses, config, cpu).precision == wanted
    assert choose(layer, losses, TrainingConfig(speed="plain"), cpu) == Speed()


@pytest.mark.parametrize("name", recipe_names())
def test_a_recipe_makes_a_model_that_fits_in_eight_megabytes_of_half_precision(name):
    from trueward.loading import build_model

    model = build_model(recipe(name).model)
    assert 2 * sum(p.numel() for p in model.parameters()) < 8e6
    TrainingConfig.from_config(recipe(name).training)
    x = torch.zeros(2, *model.shape)
    assert model(x, torch.tensor([0.5, 1.0]), class_labels=torch.tensor([0, 10])).mean.shape == x.shape
