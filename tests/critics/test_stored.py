"""Critics beside their model: what is stored, what is refused, and critics on the model's own features."""

from __future__ import annotations

import json
import warnings

import pytest
import torch

from trueward.critics import (
    Critic,
    CriticOfAnotherSampler,
    Discriminator,
    FeatureCritic,
    critic_fingerprint,
    load_critic,
    save_critic,
    tallied,
    train_critic,
    with_critic,
)
from trueward.denoisers import ClassifierFreeGuidance, Denoiser, denoiser
from trueward.networks import MLP, HalfUNet, LogitHead, UNet
from trueward.schedules import EDM, DiscreteSchedule, VPLinear


def image_model(seed: int = 0, num_classes: int | None = None) -> Denoiser:
    torch.manual_seed(seed)
    network = UNet(channels=1, size=8, width=8, multipliers=(1, 2), blocks=1, attention=(), num_classes=num_classes)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.15)
    return denoiser(network, EDM(), "edm", shape=(1, 8, 8), num_classes=num_classes).requires_grad_(False).eval()


def image_critic(num_classes: int | None = None) -> Discriminator:
    torch.manual_seed(1)
    trunk = HalfUNet(channels=1, size=8, width=8, multipliers=(1, 2), attention=(4,), num_classes=num_classes)
    critic = Discriminator(LogitHead(trunk), EDM(), shape=(1, 8, 8), num_classes=num_classes)
    torch.nn.init.normal_(critic.network.head[-1].weight)
    return critic.eval()


def feature_critic(model: Denoiser, **options) -> FeatureCritic:
    torch.manual_seed(2)
    critic = FeatureCritic(model, width=8, **options)
    torch.nn.init.normal_(critic.head.out[-1].weight)
    return critic.eval()


@pytest.mark.parametrize("kind", ["own network", "features"])
def test_a_stored_critic_answers_as_before(kind, tmp_path):
    model = image_model()
    critic = image_critic() if kind == "own network" else feature_critic(model)
    save_critic(critic, tmp_path, model, {"sampler": "edm (18 steps)"})
    back = with_critic(model, tmp_path, sampler="edm (18 steps)")
    x, t = torch.randn(3, 1, 8, 8), torch.tensor([0.1, 1.0, 30.0])
    assert torch.equal(back.log_ratio(x, t), critic.log_ratio(x, t))
    assert back.log_ratio(x, t).std() > 0
    assert critic_fingerprint(back) == critic_fingerprint(critic)
    assert back.record["sampler"] == "edm (18 steps)"
    assert not any(p.requires_grad for p in back.parameters())


def test_the_folder_may_be_that_of_the_critic_itself(tmp_path):
    model = image_model()
    save_critic(image_critic(), tmp_path, model)
    assert isinstance(load_critic(tmp_path / "critic"), Discriminator)
    model.folder = tmp_path
    assert with_critic(model).shape == (1, 8, 8)


def test_a_critic_of_another_model_schedule_shape_or_classes_is_refused(tmp_path):
    model = image_model(num_classes=3)
    save_critic(image_critic(3), tmp_path, model)
    with pytest.raises(ValueError, match=r"another model \(other weights\); train it again with `trueward fit-critic`"):
        with_critic(image_model(seed=7, num_classes=3), tmp_path)
    with pytest.raises(ValueError, match="another schedule than the model's"):
        with_critic(model.on(VPLinear()), tmp_path)
    with pytest.raises(ValueError, match="knows 3 classes, the model knows 5"):
        with_critic(image_model(num_classes=5), tmp_path)
    with pytest.raises(ValueError, match="knows 3 classes, the model knows None"):
        with_critic(image_model(), tmp_path)
    vectors = denoiser(MLP(4), EDM(), "edm", shape=(4,), num_classes=3)
    with pytest.raises(ValueError, match=r"takes samples of shape \(1, 8, 8\), the model makes \(4,\)"):
        with_critic(vectors, tmp_path)
    with pytest.raises(ValueError, match="has no critic: train one with `trueward fit-critic`"):
        with_critic(model, tmp_path / "elsewhere")
    with pytest.raises(ValueError, match="Say where the critic is stored"):
        with_critic(model)


def test_an_unconditional_critic_serves_a_conditional_model_and_remembers_its_classes(tmp_path):
    save_critic(image_critic(), tmp_path, image_model(num_classes=3))
    assert with_critic(image_model(num_classes=3), tmp_path).num_classes is None
    with pytest.raises(ValueError, match="was trained for a model of 3 classes, the model knows 4"):
        with_critic(image_model(num_classes=4), tmp_path)


def test_critics_of_ones_own_are_told_apart_by_their_plain_attributes():
    class Brightness(Critic):
        def __init__(self, strength: float, centre: float = 0.0) -> None:
            super().__init__(EDM(), shape=(1,))
            self.strength, self.centre = strength, torch.tensor([centre])

        def logit(self, x_t, t, **condition):
            return self.strength * (x_t - self.centre).flatten(1).mean(1)

    first, same = Brightness(1.0), Brightness(1.0).eval()
    assert critic_fingerprint(first) == critic_fingerprint(same)
    prints = [critic_fingerprint(c) for c in (first, Brightness(2.0), Brightness(1.0, centre=0.5))]
    assert len(set(prints)) == 3


def test_another_sampler_is_let_through_with_a_warning(tmp_path):
    model = image_model()
    save_critic(image_critic(), tmp_path, model, {"sampler": "edm (18 steps)"})
    with pytest.warns(CriticOfAnotherSampler, match=r"on samples of edm \(18 steps\); for ddim \(10 steps\)"):
        with_critic(model, tmp_path, sampler="ddim (10 steps)")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with_critic(model, tmp_path, sampler="edm (18 steps)")


def test_damage_is_named(tmp_path):
    model = image_model()
    save_critic(image_critic(), tmp_path, model)
    text = (tmp_path / "critic" / "critic.json").read_text()
    (tmp_path / "critic" / "critic.json").write_text(text.replace('"sigma_data"', '"sigma"'))
    with pytest.raises(ValueError, match="damaged: it has no entry 'sigma_data'"):
        with_critic(model, tmp_path)
    for entry, value in (("sigma_data", None), ("sigma_data", "x"), ("shape", 5), ("network", None), ("schedule", 3)):
        damaged = json.dumps({**json.loads(text), entry: value})
        (tmp_path / "critic" / "critic.json").write_text(damaged)
        for read in (lambda: with_critic(model, tmp_path), lambda: Discriminator.load(tmp_path / "critic")):
            with pytest.raises(ValueError, match=r"critic.json is damaged: no critic can be built from it"):
                read()
    (tmp_path / "critic" / "critic.json").write_text(text.replace("trueward-critic", "something"))
    with pytest.raises(ValueError, match="does not describe a critic that this version reads"):
        with_critic(model, tmp_path)
    (tmp_path / "critic" / "critic.json").write_text(text)
    weights = tmp_path / "critic" / "critic.safetensors"
    weights.write_bytes(weights.read_bytes()[:200])
    with pytest.raises(ValueError, match="cut short or damaged"):
        with_critic(model, tmp_path)


def test_a_critic_on_features_needs_its_model(tmp_path):
    model = image_model()
    save_critic(feature_critic(model), tmp_path, model)
    with pytest.raises(ValueError, match="reads the features of its model: load it with that model"):
        load_critic(tmp_path)
    stored = {p.name for p in (tmp_path / "critic").iterdir()}
    assert stored == {"critic.json", "critic.safetensors"}
    size = (tmp_path / "critic" / "critic.safetensors").stat().st_size
    assert size < sum(p.numel() * 4 for p in model.parameters())  # the head alone


@pytest.mark.parametrize("schedule", [EDM(), DiscreteSchedule.linear(100)], ids=["edm", "discrete"])
def test_a_critic_on_features_passes_gradients_to_x_and_leaves_the_model_alone(schedule):
    model = image_model().on(schedule)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    critic = FeatureCritic(model, width=8, dropout=0.0)
    real = torch.randn(200, 1, 8, 8) * 0.1 + 0.5
    record = train_critic(critic, real, -real, steps=60, batch_size=64, lr=3e-3, evaluate_every=30)
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert record.calibration.accuracy[0] > 0.95
    x = 0.1 * torch.randn(2, 1, 8, 8)
    t = schedule.time_of_log_snr(torch.tensor(2.0, dtype=torch.float64)).item()
    gradient, logit = critic.gradient(x, t)
    direction = gradient / gradient.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    assert bool((critic.log_ratio(x + 0.01 * direction, t) > logit).all())
    assert not any(p.requires_grad for p in model.parameters())


def test_features_of_vectors_and_of_a_diffusers_network():
    vectors = denoiser(MLP(2, width=16, depth=1), EDM(), "edm", shape=(2,))
    assert feature_critic(vectors).log_ratio(torch.randn(5, 2), 1.0).shape == (5,)
    diffusers = pytest.importorskip("diffusers", reason="diffusers is not installed: pip install trueward[diffusers]")
    from trueward.integrations import from_pipeline

    torch.manual_seed(0)
    blocks = {"down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2}
    network = diffusers.UNet2DModel(
        8, 1, 1, block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4, **blocks
    )
    model = from_pipeline(diffusers.DDPMPipeline(network, diffusers.DDPMScheduler()))
    critic = feature_critic(model.requires_grad_(False))
    assert critic.head.config["features"] == 8
    gradient, _ = critic.gradient(torch.randn(2, 1, 8, 8), 0.3)
    assert gradient.abs().sum() > 0


def test_judgements_are_counted_where_somebody_counts():
    critic = image_critic()
    x = torch.randn(3, 1, 8, 8)
    with tallied() as tally:
        critic.log_ratio(x, 1.0)
        critic.gradient(x[:2], 1.0)
    critic.log_ratio(x, 1.0)
    assert (tally.rows, tally.gradients) == (5, 2)


def test_a_conditional_critic_refuses_the_label_of_no_class():
    critic = image_critic(3)
    with pytest.raises(ValueError, match=r"knows no 'no class': class_labels must lie in 0 ... 2"):
        critic.log_ratio(torch.randn(2, 1, 8, 8), 1.0, class_labels=torch.tensor([0, 3]))


def test_a_guided_model_has_no_features_of_one_row_each():
    model = ClassifierFreeGuidance(image_model(num_classes=3), 2.0)
    with pytest.raises(ValueError, match="rows"):
        FeatureCritic(model, num_classes=3)
