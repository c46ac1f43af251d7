"""Group norm, modulation and SiLU in one operation, against the composed form in float64."""

import pytest
import torch
import torch.nn.functional as F

from trueward.networks import NormSiLU


def _layer(channels=16, groups=4):
    torch.manual_seed(0)
    layer = NormSiLU(channels, groups)
    torch.nn.init.normal_(layer.weight)
    torch.nn.init.normal_(layer.bias)
    return layer


def _inputs(dtype=torch.float32, mean=1.0):
    generator = torch.Generator().manual_seed(1)
    x = 2.0 * torch.randn(3, 16, 5, 7, generator=generator) + mean
    x = x.to(dtype).to(memory_format=torch.channels_last)
    scale, shift, grad = (torch.randn(s, generator=generator) for s in ((3, 16), (3, 16), (3, 16, 5, 7)))
    return x, scale, shift, grad


def _reference(layer, x, scale, shift):
    y = F.group_norm(x, layer.groups, layer.weight.double(), layer.bias.double(), layer.eps)
    return F.silu(y * (1.0 + scale[:, :, None, None]) + shift[:, :, None, None])


def _values_and_gradients(f, layer, x, scale, shift, grad):
    x, scale, shift = (v.detach().requires_grad_() for v in (x, scale, shift))
    y = f(x, scale, shift)
    return y, *torch.autograd.grad(y, [x, scale, shift, layer.weight, layer.bias], grad.to(y.dtype))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-6), (torch.bfloat16, 2e-2)])
def test_values_and_all_gradients_agree_with_the_composed_form(training, dtype, tolerance):
    layer = _layer().train(training)
    x, scale, shift, grad = _inputs(dtype)
    got = _values_and_gradients(layer, layer, x, scale, shift, grad)
    wanted = _values_and_gradients(
        lambda *a: _reference(layer, *a), layer, x.double(), scale.double(), shift.double(), grad
    )
    for a, b in zip(got, wanted, strict=True):
        assert (a.double() - b.double()).abs().max() <= tolerance * b.abs().max()


def test_the_memory_format_does_not_change_the_answer():
    layer = _layer()
    x, scale, shift, _ = _inputs()
    torch.testing.assert_close(layer(x, scale, shift), layer(x.contiguous(), scale, shift))


def test_a_large_mean_does_not_drown_the_variance_in_bfloat16():
    layer = _layer()
    x, scale, shift, _ = _inputs(torch.bfloat16, mean=16.0)  # eight standard deviations
    got, wanted = layer(x, scale, shift).double(), _reference(layer, x.double(), scale, shift)
    assert (got - wanted).abs().max() < 0.05 * wanted.abs().max()


def test_without_modulation_it_is_group_norm_and_silu():
    layer = _layer()
    x, *_ = _inputs()
    wanted = F.silu(F.group_norm(x, layer.groups, layer.weight, layer.bias, layer.eps))
    torch.testing.assert_close(layer(x), wanted)


def test_the_gradient_of_a_gradient_is_right():
    layer = _layer(4, 2).double()
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(2, 4, 3, 2, generator=generator, dtype=torch.float64)
    scale, shift = torch.randn(2, 2, 4, generator=generator, dtype=torch.float64)

    def penalty(x, form):
        (gradient,) = torch.autograd.grad(form(x), x, torch.ones_like(x), create_graph=True)
        return gradient.square().sum()

    from trueward.networks.normalization import _NormSiLU

    def fused(x):
        y = _NormSiLU.apply(x.permute(0, 2, 3, 1), layer.weight, layer.bias, scale, shift, 2, layer.eps)
        return y.permute(0, 3, 1, 2)

    leaf = x.clone().requires_grad_()
    (got,) = torch.autograd.grad(penalty(leaf, fused), leaf)
    leaf = x.clone().requires_grad_()
    (wanted,) = torch.autograd.grad(penalty(leaf, lambda v: _reference(layer, v, scale, shift)), leaf)
    torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-6)  # the statistics are taken in float32
    assert wanted.abs().max() > 0.1


def test_groups_that_do_not_divide_the_channels_are_refused():
    with pytest.raises(ValueError, match="groups=3 must divide the 16 channels"):
        NormSiLU(16, 3)


def test_any_number_of_channels_gets_groups_that_divide_it():
    for channels in (1, 3, 7, 20, 48, 96, 520):
        assert channels % NormSiLU(channels).groups == 0
