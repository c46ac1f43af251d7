"""The U-Net and the MLP: shapes, conditioning, rebuilding from their description, wrong arguments."""

import json

import pytest
import torch
from torch import nn

from trueward.networks import MLP, UNet, network, network_config, network_names, register_network

SMALL = {"width": 8, "multipliers": [1, 2], "blocks": 1, "head_width": 8}


def _awake(module):
    """The module with its zero-initialised layers set to something, as after training."""
    torch.manual_seed(3)
    for p in module.parameters():
        if not p.any():
            nn.init.normal_(p, std=0.2)
    return module.eval()


@pytest.mark.parametrize(
    ("channels", "shape", "options"),
    [
        (1, (28, 28), {"multipliers": [1, 2, 2], "attention": [7]}),
        (3, (8, 8), {"attention": [4]}),
        (1, (7, 7), {"attention": [4]}),
        (2, (9, 5), {"attention": [9], "size": [9, 5]}),
        (5, (1, 1), {}),
        (1, (28, 28), {"patch": 2, "attention": [7]}),
        (3, (9, 13), {"patch": 4}),
    ],
)
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_the_unet_answers_in_the_shape_of_any_image(channels, shape, options, memory_format):
    net = _awake(UNet(channels, **{"size": shape[0], **SMALL, **options})).to(memory_format=memory_format)
    x = torch.randn(2, channels, *shape)
    y = net(x, torch.tensor([0.1, -0.4]))
    assert y.shape == x.shape
    assert y.isfinite().all()
    assert y.std() > 0


def test_it_starts_at_zero_so_that_preconditioning_decides_the_first_answer():
    x = torch.randn(2, 1, 8, 8)
    assert not UNet(1, 8, **SMALL)(x, torch.zeros(2)).any()
    assert not MLP(3, 8)(torch.randn(2, 3), torch.zeros(2)).any()


def test_training_and_evaluation_compute_the_same():
    net = _awake(UNet(1, 8, attention=[8, 4], num_classes=3, **SMALL)).to(memory_format=torch.channels_last)
    x, label = torch.randn(2, 1, 8, 8), torch.tensor([0.1, -0.4])
    with torch.no_grad():
        evaluated = net(x, label, torch.tensor([0, 2]))
    torch.testing.assert_close(net.train()(x, label, torch.tensor([0, 2])), evaluated, rtol=1e-4, atol=1e-5)


def test_rows_do_not_know_of_each_other():
    net = _awake(UNet(1, 8, attention=[4], **SMALL))
    x, label = torch.randn(4, 1, 8, 8), torch.linspace(-1, 1, 4)
    torch.testing.assert_close(net(x, label)[2:3], net(x[2:3], label[2:3]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("net", [UNet(1, 8, num_classes=3, **SMALL), MLP(64, 16, num_classes=3)], ids=["unet", "mlp"])
def test_time_and_class_change_the_answer_and_no_label_means_no_class(net):
    net = _awake(net)
    x = torch.randn(2, 1, 8, 8) if isinstance(net, UNet) else torch.randn(2, 64)
    label = torch.zeros(2)
    with torch.no_grad():
        by_class = [net(x, label, torch.full((2,), c)) for c in range(4)]
        assert torch.equal(net(x, label), by_class[3])
        assert all((a - b).abs().max() > 1e-4 for i, a in enumerate(by_class) for b in by_class[:i])
        assert (net(x, label + 0.3) - net(x, label)).abs().max() > 1e-4


@pytest.mark.parametrize(("scale", "near", "far"), [(1.0, 0.002, 1.0), (1000.0, 1.0, 900.0)])
def test_the_time_embedding_is_smooth_between_neighbours_and_tells_far_times_apart(scale, near, far):
    from trueward.networks import LabelEmbedding

    embedding = LabelEmbedding(32, label_scale=scale)
    start = torch.tensor([0.05 * scale])

    def angles(label):
        a = label[:, None] * embedding.frequencies
        return torch.cat([a.sin(), a.cos()], 1)

    assert (angles(start + near) - angles(start)).norm() < 0.4
    assert (angles(start + far) - angles(start)).norm() > 3.0


def test_the_features_and_the_output_block_make_the_answer():
    for net, x in ((UNet(2, 8, patch=2, **SMALL), torch.randn(2, 2, 8, 8)), (MLP(5, 16), torch.randn(2, 5))):
        net = _awake(net)
        features = net.forward_features(x, torch.zeros(2))
        assert features.shape[1] == net.features
        torch.testing.assert_close(net.out(features).view(x.shape), net(x, torch.zeros(2)))


@pytest.mark.parametrize(
    "net",
    [UNet(3, (8, 6), 8, (1, 2), (1, 2), (4,), 5, 0.1, 1000.0, 8, 2), MLP((2, 3), 8, 2, 4, 0.2, 7.0)],
    ids=["unet", "mlp"],
)
def test_a_network_is_rebuilt_from_json(net):
    again = network(json.loads(json.dumps(network_config(net))))
    assert type(again) is type(net)
    assert again.config == net.config
    assert {k: v.shape for k, v in again.state_dict().items()} == {k: v.shape for k, v in net.state_dict().items()}


def test_ones_own_class_joins_the_registry():
    @register_network
    class Affine(nn.Module):
        def __init__(self, width: int = 2) -> None:
            super().__init__()
            self.config = {"network": "Affine", "width": width}
            self.layer = nn.Linear(width, width)

    assert "Affine" in network_names()
    assert network({"network": "Affine", "width": 5}).layer.in_features == 5


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: network({"network": "Unet"}), "Did you mean 'UNet'"),
        (lambda: network({"network": "Ours"}), "import its module first"),
        (lambda: network({"network": "UNet", "widht": 8}), "Did you mean 'width'"),
        (lambda: network({}), "Unknown network"),
        (lambda: network_config(nn.Linear(2, 2)), "register_network"),
        (lambda: UNet(width=0), "width"),
        (lambda: UNet(multipliers=[]), "multipliers"),
        (lambda: UNet(blocks=[1, 2]), "blocks must be one number"),
        (lambda: UNet(dropout=1.0), "dropout"),
        (lambda: UNet(num_classes=0), "num_classes"),
        (lambda: UNet(label_scale=0.0), "label_scale"),
        (lambda: UNet(patch=0), "patch"),
        (lambda: MLP(0), "dim"),
        (lambda: MLP(2, depth=0), "depth"),
        (lambda: UNet(1, 8, **SMALL)(torch.zeros(2, 3, 8, 8), torch.zeros(2)), r"\(batch, 1, height, width\)"),
        (lambda: MLP(3, 8)(torch.zeros(2, 4), torch.zeros(2)), r"\(batch, 3\)"),
        (lambda: MLP(3, 8)(torch.zeros(2, 3), torch.zeros(2), torch.zeros(2).long()), "num_classes=None"),
        (lambda: register_network(3), "subclass of torch.nn.Module"),
    ],
)
def test_wrong_arguments_get_one_clear_sentence(call, message):
    with pytest.raises(ValueError, match=message):
        call()
