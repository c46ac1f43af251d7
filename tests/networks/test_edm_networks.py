"""EDM's networks: names and sizes of the published weights, and the function that the formulas describe."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch

from trueward.networks import DhariwalUNet, SongUNet, network, network_config

_spec = importlib.util.spec_from_file_location("edm_reference", Path(__file__).with_name("edm_reference.py"))
reference = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(reference)

CIFAR = {"img_resolution": 32, "model_channels": 128, "channel_mult": [2, 2, 2], "augment_dim": 9}
NCSN = {"embedding_type": "fourier", "encoder_type": "residual", "channel_mult_noise": 2, "resample_filter": [1, 3, 3, 1]}  # fmt: skip


def on_meta(cls, **options):
    with torch.device("meta"):
        return cls(**options)


@pytest.mark.parametrize(
    ("cls", "options", "parameters"),
    [
        (SongUNet, CIFAR, 55_733_891),  # CIFAR-10, DDPM++
        (SongUNet, {**CIFAR, **NCSN}, 56_397_827),  # CIFAR-10, NCSN++
        (SongUNet, {**CIFAR, "img_resolution": 64, "channel_mult": [1, 2, 2, 2]}, 61_805_571),  # FFHQ, AFHQv2
        (DhariwalUNet, {"label_dim": 1000}, 295_899_267),  # ImageNet-64, ADM
    ],
)
def test_the_published_configurations_have_the_published_sizes(cls, options, parameters):
    assert sum(p.numel() for p in on_meta(cls, **options).parameters()) == parameters


def published_names():
    """The weights of CIFAR-10's unconditional DDPM++ with their shapes, written down layer by layer."""
    names = {"map_augment.weight": (128, 9)}
    for name, shape in (("map_layer0", (512, 128)), ("map_layer1", (512, 512))):
        names |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}

    def conv(name, a, b, k):
        names.update({f"{name}.weight": (b, a, k, k), f"{name}.bias": (b,)})

    def pair(name, channels):
        names.update({f"{name}.weight": (channels,), f"{name}.bias": (channels,)})

    def block(name, a, b, attention=False, resampled=False):
        pair(f"{name}.norm0", a)
        conv(f"{name}.conv0", a, b, 3)
        names.update({f"{name}.affine.weight": (b, 512), f"{name}.affine.bias": (b,)})
        pair(f"{name}.norm1", b)
        conv(f"{name}.conv1", b, b, 3)
        if resampled or a != b:
            conv(f"{name}.skip", a, b, 1)
        if resampled:
            names.update({f"{name}.{part}.resample_filter": (1, 1, 2, 2) for part in ("conv0", "skip")})
        if attention:
            pair(f"{name}.norm2", b)
            conv(f"{name}.qkv", b, 3 * b, 1)
            conv(f"{name}.proj", b, b, 1)

    conv("enc.32x32_conv", 3, 128, 3)
    block("enc.32x32_block0", 128, 256)
    for n in (1, 2, 3):
        block(f"enc.32x32_block{n}", 256, 256)
    for res in (16, 8):
        block(f"enc.{res}x{res}_down", 256, 256, resampled=True)
        for n in range(4):
            block(f"enc.{res}x{res}_block{n}", 256, 256, attention=res == 16)
    block("dec.8x8_in0", 256, 256, attention=True)
    block("dec.8x8_in1", 256, 256)
    for res in (8, 16, 32):
        if res > 8:
            block(f"dec.{res}x{res}_up", 256, 256, resampled=True)
        for n in range(5):
            wide = 384 if (res, n) == (32, 4) else 512  # the last one meets the first convolution
            block(f"dec.{res}x{res}_block{n}", wide, 256, attention=(res, n) == (16, 4))
    pair("dec.32x32_aux_norm", 256)
    conv("dec.32x32_aux_conv", 256, 3, 3)
    return names


def test_the_state_dict_has_the_published_names_and_shapes():
    own = {name: tuple(value.shape) for name, value in on_meta(SongUNet, **CIFAR).state_dict().items()}
    assert own == published_names()


TINY = {"img_resolution": 8, "model_channels": 8, "num_blocks": 1, "attn_resolutions": [4], "channel_mult": [1, 2]}
TINY |= {"in_channels": 2, "out_channels": 2, "dropout": 0.5, "augment_dim": 3}


def randomised(cls, **options):
    """Random weights everywhere (fresh ones are zero in places), in float64, without dropout."""
    torch.manual_seed(0)
    made = cls(**options)
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return made.to(torch.float64).eval()


def agree(made, function, options, classes):
    x = torch.randn(3, 2, 8, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    label = torch.tensor([-0.6, 0.1, 1.1], dtype=torch.float64)
    labels = None if classes is None else torch.tensor([0, classes - 1, classes])
    hot = None if classes is None else torch.eye(classes + 1)[labels][:, :classes]
    got = made(x, label, labels)
    want = function(made.state_dict(), options, x, label, hot)
    assert got.std() > 0.1
    # the embedding of the label is float32 in the network, as published
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)
    assert torch.equal(made(x, label, labels), got)
    assert (made(x.flip(0), label.flip(0), None if labels is None else labels.flip(0)).flip(0) - got).abs().max() < 1e-9


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"label_dim": 3},
        NCSN,
        {"encoder_type": "skip", "decoder_type": "skip"},
        {"encoder_type": "skip", "decoder_type": "skip", "resample_filter": [1, 3, 3, 1], "channel_mult": [1, 1, 2]},
    ],
    ids=lambda o: "-".join(map(str, o.values()))[:30] or "ddpmpp",
)
def test_song_unet_is_the_function_of_the_formulas(options):
    options = {**TINY, **options}
    made = randomised(SongUNet, **options)
    if "map_noise.freqs" in made.state_dict():
        made.map_noise.freqs.mul_(0.05)  # so that float32 angles keep their digits
    agree(made, reference.song, options, options.get("label_dim"))


@pytest.mark.parametrize("label_dim", [0, 3])
def test_dhariwal_unet_is_the_function_of_the_formulas(label_dim):
    options = {**TINY, "label_dim": label_dim, "model_channels": 64}
    agree(randomised(DhariwalUNet, **options), reference.dhariwal, options, label_dim or None)


@pytest.mark.parametrize("cls", [SongUNet, DhariwalUNet])
def test_a_network_is_rebuilt_from_its_description(cls):
    made = cls(**{**TINY, "model_channels": 16})
    again = network(network_config(made))
    again.load_state_dict(made.state_dict())
    x, label = torch.randn(1, 2, 8, 8), torch.zeros(1)
    assert torch.equal(made.eval()(x, label), again.eval()(x, label))
    with pytest.raises(ValueError, match="img_resolution must be a multiple of 2"):
        cls(**{**TINY, "img_resolution": 9})


def test_wrong_types_are_explained():
    with pytest.raises(ValueError, match=r"encoder_type 'residul'.*Did you mean 'residual'"):
        SongUNet(encoder_type="residul")
