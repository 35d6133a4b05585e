"""Instance norm: equal to torch's, with an exact gradient in every memory layout."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from synthgen.models.instance_norm import GroupNorm, instance_norm, with_fast_norms


def example(dtype, layout):
    x = torch.randn(2, 5, 6, 4, generator=torch.Generator().manual_seed(0), dtype=dtype)
    return (3 * x + 1).contiguous(memory_format=layout).requires_grad_()


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_values_and_gradient_equal_torch(layout):
    x = example(torch.float32, layout)
    weight = torch.linspace(-1, 1, x.numel()).reshape(x.shape)
    ours = instance_norm(x)
    (grad,) = torch.autograd.grad((ours * weight).sum(), x)
    theirs = functional.instance_norm(x)
    (expected,) = torch.autograd.grad((theirs * weight).sum(), x)
    assert torch.allclose(ours, theirs, atol=1e-5)
    assert torch.allclose(grad, expected, atol=1e-5)


def test_gradient_equals_finite_differences():
    x = example(torch.float64, torch.channels_last)
    # The stored inverse deviation is float32, good to 1e-7.
    assert torch.autograd.gradcheck(instance_norm, (x,), atol=1e-5, rtol=1e-4)


def test_bfloat16_gradient_is_within_rounding():
    x = example(torch.float32, torch.channels_last)
    weight = torch.linspace(-1, 1, x.numel()).reshape(x.shape)
    (exact,) = torch.autograd.grad((instance_norm(x) * weight).sum(), x)
    low = x.detach().bfloat16().requires_grad_()
    (rounded,) = torch.autograd.grad((instance_norm(low) * weight.bfloat16()).sum(), low)
    assert rounded.dtype == torch.bfloat16
    # bfloat16 keeps 8 bits: 0.4 % a rounding, of input, weights, output and two products.
    assert (rounded.float() - exact).norm() < 0.04 * exact.norm()


@pytest.mark.parametrize("groups", [1, 2, 6])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_group_norm_and_its_gradients_equal_torch(groups, layout):
    norm = GroupNorm(groups, 6)
    torch.nn.init.normal_(norm.weight)
    torch.nn.init.normal_(norm.bias)
    x = 3 * torch.randn(2, 6, 4, 8, generator=torch.Generator().manual_seed(0)) + 1
    x = x.contiguous(memory_format=layout).requires_grad_()
    towards = torch.linspace(-1, 1, x.numel()).reshape(x.shape)
    inputs = (x, norm.weight, norm.bias)
    ours, theirs = norm(x), functional.group_norm(x, groups, norm.weight, norm.bias)
    assert ours.is_contiguous(memory_format=layout)
    assert torch.allclose(ours, theirs, atol=1e-5)
    expected = torch.autograd.grad((theirs * towards).sum(), inputs)
    for grad, wanted in zip(
        torch.autograd.grad((ours * towards).sum(), inputs), expected, strict=True
    ):
        assert torch.allclose(grad, wanted, atol=1e-4)


def test_group_norm_takes_bfloat16_beside_float32_weights():
    norm = GroupNorm(2, 6)
    x = example(torch.float32, torch.channels_last)
    x = torch.cat([x, x[:, :1]], dim=1).detach().bfloat16()
    x = x.contiguous(memory_format=torch.channels_last).requires_grad_()
    norm(x).square().sum().backward()
    assert norm(x).dtype == x.grad.dtype == torch.bfloat16
    assert norm.weight.grad.dtype == torch.float32


def test_a_constant_channel_gives_zeros():
    x = torch.full((1, 2, 4, 4), 3.0).contiguous(memory_format=torch.channels_last)
    # torch's kernel leaves a rounding error times 1 / sqrt(eps) = 316.
    assert instance_norm(x.requires_grad_()).abs().max() < 1e-3


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("groups", [1, 2, 6])
@pytest.mark.parametrize("size", [(4, 8), (24,), (40, 40)])
def test_without_gradient_small_maps_equal_torch_in_channels_last(size, groups, dtype):
    norm = GroupNorm(groups, 6)
    torch.nn.init.normal_(norm.weight)
    torch.nn.init.normal_(norm.bias)
    x = 3 * torch.randn(2, *size, 6, generator=torch.Generator().manual_seed(0)) + 10
    x = x.to(dtype).movedim(-1, 1)
    with torch.no_grad():
        ours = norm(x)
        exact = functional.group_norm(
            x.double().contiguous(), groups, norm.weight.double(), norm.bias.double()
        )
    assert ours.dtype == dtype
    assert ours.shape == x.shape
    # Of bfloat16 the rounding of the result is left, 2^-9 relative.
    tolerance = 2**-8 if dtype == torch.bfloat16 else 1e-5
    torch.testing.assert_close(ours.double(), exact, rtol=tolerance, atol=tolerance)
    assert ours.stride() == x.stride()


def test_fast_norms_take_the_place_of_torchs_and_keep_weights_and_keys():
    net = torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 3), torch.nn.Sequential(torch.nn.GroupNorm(4, 8, eps=1e-3))
    ).eval()
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter)
    x = torch.randn(2, 3, 7, 9).contiguous(memory_format=torch.channels_last)
    before, keys = net(x).detach(), list(net.state_dict())
    weight = net[1][0].weight
    fast = with_fast_norms(net)
    assert type(fast[1][0]) is GroupNorm
    assert fast[1][0].weight is weight
    assert not fast[1][0].training
    assert list(fast.state_dict()) == keys
    with torch.no_grad():
        torch.testing.assert_close(fast(x), before, atol=1e-5, rtol=1e-5)
