"""How a critic is trained: data sets, classes, interruption, several processes."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch

from trueward.critics import Discriminator, train_critic
from trueward.critics.examples import Part, pair
from trueward.data import Dataset
from trueward.networks import MLP, LogitHead
from trueward.schedules import EDM


def sets(n: int = 400) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(n, 2, generator=generator), 1.0 + torch.randn(n, 2, generator=generator)


def fresh(dropout: float = 0.0) -> Discriminator:
    torch.manual_seed(0)
    return Discriminator(LogitHead(MLP(2, width=16, depth=1, dropout=dropout), dropout=dropout), EDM(), sigma_data=1.0)


OPTIONS = {"steps": 24, "batch_size": 32, "evaluate_every": 8, "lr": 3e-3, "seed": 5}


def test_a_data_set_trains_the_critic_that_its_tensor_trains():
    real, fake = sets()
    records = [
        train_critic(critic, *both, **OPTIONS)
        for critic, both in ((fresh(0.2), (real, fake)), (fresh(0.2), (Dataset(real), Dataset(fake))))
    ]
    assert records[0].history == records[1].history


def test_training_goes_on_from_its_checkpoint_to_the_same_critic(tmp_path):
    real, fake = sets()
    whole, broken = fresh(0.3), fresh(0.3)
    record = train_critic(whole, real, fake, **OPTIONS)

    class Power(Exception):
        pass

    def cut(step: int, training: float, held: float) -> None:
        if step == 16:
            raise Power

    with pytest.raises(Power):
        train_critic(broken, real, fake, **OPTIONS, checkpoint=tmp_path / "c.pt", callback=cut)
    steps = []
    again = fresh(0.3)
    resumed = train_critic(
        again, real, fake, **OPTIONS, checkpoint=tmp_path / "c.pt", callback=lambda step, *_: steps.append(step)
    )
    assert steps == [24]
    assert resumed.history == record.history
    for name, value in whole.state_dict().items():
        assert torch.equal(value, again.state_dict()[name])


def test_a_checkpoint_of_other_settings_is_not_continued(tmp_path):
    real, fake = sets()
    train_critic(fresh(), real, fake, **OPTIONS, checkpoint=tmp_path / "c.pt")
    steps = []
    train_critic(
        fresh(), real, fake, **{**OPTIONS, "lr": 1e-3}, checkpoint=tmp_path / "c.pt",
        callback=lambda step, *_: steps.append(step),
    )  # fmt: skip
    assert steps == [8, 16, 24]
    (tmp_path / "c.pt").write_bytes(b"no checkpoint")
    with pytest.raises(ValueError, match="cannot be read as a checkpoint; delete it"):
        train_critic(fresh(), real, fake, **OPTIONS, checkpoint=tmp_path / "c.pt")


@pytest.mark.parametrize("change", ["generated", "real", "dropout"])
def test_a_checkpoint_of_other_sets_or_layers_is_not_continued(tmp_path, change):
    real, fake = sets()
    train_critic(fresh(), real, fake, **OPTIONS, checkpoint=tmp_path / "c.pt")
    if change == "generated":
        fake = fake + 0.5
    elif change == "real":
        real = real - 0.5
    steps = []
    train_critic(
        fresh(0.1 if change == "dropout" else 0.0), real, fake, **OPTIONS, checkpoint=tmp_path / "c.pt",
        callback=lambda step, *_: steps.append(step),
    )  # fmt: skip
    assert steps == [8, 16, 24]


def test_partners_of_a_conditional_pair_have_one_label_however_often_each_was_generated():
    generator = torch.Generator().manual_seed(0)
    real_labels = torch.tensor([0] * 90 + [1] * 10)
    fake_labels = torch.tensor([0] * 10 + [1] * 90)

    def part(labels):
        return Part(None, torch.arange(100), {int(c): (labels == c).nonzero()[:, 0] for c in labels.unique()})

    first, second = pair(part(real_labels), part(fake_labels), 500, generator)
    assert torch.equal(real_labels[first], fake_labels[second])
    assert 400 < int((real_labels[first] == 0).sum()) < 490  # the share of the real set
    assert len(second.unique()) > 35


def test_a_conditional_critic_does_not_take_how_often_for_how():
    # both sets are equal within a class; only their shares differ, so the log ratio is 0 everywhere
    generator = torch.Generator().manual_seed(0)
    real_labels, fake_labels = (torch.bernoulli(torch.full((4000,), p), generator=generator).long() for p in (0.1, 0.9))
    real, fake = (y[:, None] + 0.3 * torch.randn(4000, 1, generator=generator) for y in (real_labels, fake_labels))
    torch.manual_seed(0)
    critic = Discriminator(LogitHead(MLP(1, width=16, depth=1, num_classes=2)), EDM(), sigma_data=0.5, num_classes=2)
    train_critic(
        critic, real, fake, real_labels=real_labels, generated_labels=fake_labels, steps=150, batch_size=128, lr=5e-3,
        evaluate_every=50,
    )  # fmt: skip
    y = torch.tensor([0, 1]).repeat(100)
    logit = critic.log_ratio(y[:, None] + 0.3 * torch.randn(200, 1, generator=generator), 0.1, class_labels=y)
    assert logit.abs().mean() < 0.3  # log 9 = 2.2 for a critic that was shown the shares


def test_a_class_that_was_never_generated_is_named():
    real, fake = sets(100)
    critic = Discriminator(LogitHead(MLP(2, width=8, depth=1, num_classes=3)), EDM(), num_classes=3)
    labels = torch.arange(100) % 3
    with pytest.raises(ValueError, match="hold none of class 2"):
        train_critic(critic, real, fake, real_labels=labels, generated_labels=labels.clamp(max=1), steps=1)
    with pytest.raises(ValueError, match=r"real_labels must lie in 0 ... 2"):
        train_critic(critic, real, fake, real_labels=labels + 1, generated_labels=labels, steps=1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "steps must be a whole number >= 1, got 0"),
        ({"lr": 0.0}, "lr must be a positive number"),
        ({"batch_size": 7}, "must be even"),
        ({"batch_size": "many"}, "batch_size must be a whole number >= 2, got 'many'"),
        ({"held_out": 1.0}, "held_out must lie between 0 and 1"),
    ],
)
def test_wrong_settings_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        train_critic(fresh(), *sets(50), **{**OPTIONS, **options})


WORKER = """
import sys
sys.path.insert(0, {here!r})
import torch
torch.set_num_threads(1)
from accelerate import PartialState
state = PartialState(cpu=True)
from test_training import OPTIONS, fresh, sets
from trueward.critics import train_critic
critic = fresh(0.3)
record = train_critic(critic, *sets(), **OPTIONS)
torch.save({{"weights": critic.state_dict(), "history": record.history}}, {out!r} + f".{{state.process_index}}")
assert state.num_processes == 2
"""


@pytest.mark.slow
def test_two_processes_train_the_critic_of_one(tmp_path: Path):
    script = tmp_path / "worker.py"
    script.write_text(WORKER.format(here=str(Path(__file__).parent), out=str(tmp_path / "critic")))
    job = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(script)],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
    )
    assert job.returncode == 0, job.stderr[-2000:]
    alone = fresh(0.3)
    record = train_critic(alone, *sets(), **OPTIONS)
    found = [torch.load(tmp_path / f"critic.{rank}", weights_only=True) for rank in (0, 1)]
    for name, value in alone.state_dict().items():
        assert torch.equal(found[0]["weights"][name], found[1]["weights"][name])
        assert torch.allclose(found[0]["weights"][name], value, atol=2e-5)
    for mine, theirs in zip(record.history, found[0]["history"], strict=True):
        assert theirs == pytest.approx(mine, abs=1e-5)


class Sigmoid(torch.nn.Module):
    """A network that ends where a logit should not."""

    def __init__(self, last: torch.nn.Module) -> None:
        super().__init__()
        self.layers = torch.nn.Sequential(torch.nn.Linear(3, 16), torch.nn.SiLU(), torch.nn.Linear(16, 1), last)

    def forward(self, x: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        return self.layers(torch.cat([x, label[:, None]], dim=1))


def test_a_network_that_ends_in_a_sigmoid_is_noticed():
    real, fake = sets()
    with pytest.warns(UserWarning, match="leave out a sigmoid at the end of its network"):
        train_critic(Discriminator(Sigmoid(torch.nn.Sigmoid()), EDM()), real, fake, **OPTIONS)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train_critic(Discriminator(Sigmoid(torch.nn.Identity()), EDM()), real, fake, **OPTIONS)
        train_critic(fresh(), real, real.clone(), **{**OPTIONS, "steps": 1})  # sees nothing


def test_arrays_train_the_critic_that_tensors_train():
    real, fake = sets()
    records = [train_critic(fresh(), *both, **OPTIONS) for both in ((real, fake), (real.numpy(), fake.numpy()))]
    assert records[0].history == records[1].history


def conditional() -> Discriminator:
    return Discriminator(LogitHead(MLP(2, width=16, depth=1, num_classes=3)), EDM(), num_classes=3)


LABELS = torch.arange(400) % 3


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda r, f: train_critic(fresh(), (r * 9).to(torch.uint8), f),
            "real samples must be floating-point .* uint8",
        ),
        (
            lambda r, f: train_critic(conditional(), r, f, real_labels=LABELS.float(), generated_labels=LABELS),
            r"real_labels must be whole numbers, one per sample, got shape \(400,\) of float32",
        ),
        (
            lambda r, f: train_critic(
                conditional(), r, f, real_labels=LABELS, generated_labels=torch.nn.functional.one_hot(LABELS)
            ),
            r"generated_labels must be whole numbers, one per sample, got shape \(400, 3\)",
        ),
        (
            lambda r, f: conditional().log_ratio(r[:2], 0.5, class_labels=torch.tensor([-1, 0])),
            "class_labels must lie in 0 ... 2",
        ),
        (lambda r, f: train_critic(fresh().requires_grad_(False), r, f), r"critic.requires_grad_\(\) frees all of it"),
    ],
)
def test_wrong_samples_and_labels_are_refused_with_a_sentence(call, message):
    with pytest.raises(ValueError, match=message):
        call(*sets())
