"""Dropout and the gradient of group normalisation on the CPU, against torch's own and against what they should be."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from ddim.denoisers import UNet, cpu
from ddim.denoisers.layers import NORM_EPS, Dropout, GroupNorm, GroupNormSiLU

SHAPES = {
    "four channels a group": ((3, 32, 8, 8), 8),
    "one channel a group": ((2, 8, 4, 4), 8),
    "one group": ((2, 12, 5, 3), 1),
    "one position": ((4, 16, 1, 1), 4),
    "one sample": ((1, 64, 16, 16), 32),
}


def inputs(shape, dtype, layout=torch.channels_last):
    generator = torch.Generator().manual_seed(0)
    # A mean that is not small beside the deviation is where a careless gradient loses digits.
    x = 3 + torch.randn(shape, generator=generator, dtype=torch.float64)
    weight, bias = (torch.randn(shape[1], generator=generator, dtype=torch.float64) for _ in range(2))
    grad = torch.randn(shape, generator=generator, dtype=torch.float64)
    x, grad = (v.to(dtype).to(memory_format=layout) for v in (x, grad))
    return [v.detach().requires_grad_() for v in (x, weight, bias)], grad


def own(x, weight, bias, groups, silu):
    y = F.group_norm(x, groups, weight, bias, NORM_EPS)
    return F.silu(y) if silu else y


@pytest.mark.parametrize("silu", [True, False])
@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
@pytest.mark.parametrize("case", SHAPES)
def test_the_gradients_are_those_of_torch(case, layout, silu, monkeypatch):
    shape, groups = SHAPES[case]
    # Two samples a block, so that three samples are one whole block and a rest.
    monkeypatch.setattr(cpu, "BLOCK", 2 * math.prod(shape[1:]))
    arguments, grad = inputs(shape, torch.float64, layout)
    ours = cpu.group_norm(arguments[0], groups, *arguments[1:], NORM_EPS, silu=silu)
    theirs = own(*arguments, groups, silu)
    assert torch.equal(ours, theirs)
    for mine, expected in zip(
        torch.autograd.grad(ours, arguments, grad), torch.autograd.grad(theirs, arguments, grad), strict=True
    ):
        assert mine.dtype == expected.dtype
        torch.testing.assert_close(mine, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_loses_no_more_digits_than_torch_does(dtype):
    arguments, grad = inputs((4, 64, 16, 16), dtype)
    # As in training: activations in bfloat16, weights in float32.
    arguments[1:] = [v.detach().float().requires_grad_() for v in arguments[1:]]
    exact = [v.detach().double().requires_grad_() for v in arguments]
    true = torch.autograd.grad(own(*exact, 32, True), exact, grad.double())
    ours = torch.autograd.grad(cpu.group_norm(arguments[0], 32, *arguments[1:], NORM_EPS, silu=True), arguments, grad)
    theirs = torch.autograd.grad(own(*arguments, 32, True), arguments, grad)
    for mine, torchs, value in zip(ours, theirs, true, strict=True):
        error, allowed = (mine.double() - value).norm(), (torchs.double() - value).norm()
        assert error <= 1.2 * allowed + 1e-6 * value.norm()


@pytest.mark.parametrize("kind", [GroupNorm, GroupNormSiLU])
def test_the_layers_give_the_same_with_and_without_gradients(kind):
    layer = kind(8, 32)
    x = torch.randn(2, 32, 8, 8).bfloat16().to(memory_format=torch.channels_last).requires_grad_()
    trained = layer(x)
    with torch.no_grad():
        assert torch.equal(layer(x), trained)
    assert "_GroupNorm" in type(trained.grad_fn).__name__
    assert trained.is_contiguous(memory_format=torch.channels_last)


class TestDropout:
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
    @pytest.mark.parametrize("p", [0.1, 0.5, 0.9, 0.001])
    def test_the_share_that_is_dropped_and_the_scale_of_the_rest(self, p, dtype):
        torch.manual_seed(0)
        x = torch.ones(8, 64, 32, 32, dtype=dtype).to(memory_format=torch.channels_last)
        y = cpu.dropout(x, p)
        assert y.dtype == dtype
        assert y.is_contiguous(memory_format=torch.channels_last)
        dropped = (y == 0).double().mean().item()
        assert abs(dropped - p) < 5 * math.sqrt(p * (1 - p) / x.numel()) + 2**-17
        kept = y[y != 0].double()
        assert kept.unique().numel() == 1
        assert kept[0].item() == pytest.approx(1 / (1 - p), rel=4e-3 if dtype is torch.bfloat16 else 1e-4)

    def test_neighbours_in_memory_are_dropped_independently(self):
        # Four of them share a random word.
        torch.manual_seed(0)
        keep = (cpu.dropout(torch.ones(2**20), 0.5) != 0).double() * 2 - 1
        for distance in range(1, 9):
            correlation = (keep[distance:] * keep[:-distance]).mean().item()
            assert abs(correlation) < 5 / math.sqrt(keep.numel())
        for position in range(4):
            assert abs(keep[position::4].mean().item()) < 5 / math.sqrt(keep.numel() / 4)

    @pytest.mark.parametrize("shape", [(), (1,), (3,), (5, 7), (2, 3, 4, 5), (0, 4)])
    def test_any_shape_and_stride(self, shape):
        torch.manual_seed(0)
        x = torch.full((*shape, 2), 2.0)[..., 0]
        assert set(cpu.dropout(x, 0.5).flatten().tolist()) <= {0.0, 4.0}

    @pytest.mark.parametrize(("p", "values"), [(0.0, {1.0}), (1e-9, {1.0}), (1 - 1e-9, {0.0, 65536.0})])
    def test_the_ends(self, p, values):
        assert set(cpu.dropout(torch.ones(1000), p).tolist()) <= values

    def test_the_gradient_passes_where_the_value_did(self):
        x = torch.randn(1000, requires_grad=True)
        y = cpu.dropout(x, 0.3)
        y.sum().backward()
        torch.testing.assert_close(x.grad, y.detach() / x.detach())

    def test_the_seed_of_torch_decides(self):
        def drawn(seed):
            torch.manual_seed(seed)
            return cpu.dropout(torch.ones(1000), 0.5)

        assert torch.equal(drawn(1), drawn(1))
        assert not torch.equal(drawn(1), drawn(2))

    def test_only_training_drops(self):
        layer, x = Dropout(0.5), torch.ones(100)
        assert torch.equal(layer.eval()(x), x)
        assert not torch.equal(layer.train()(x), x)


def test_the_networks_gradients_in_bfloat16_are_as_exact_as_with_torchs_layers(monkeypatch):
    config = {"base_channels": 16, "resolution": 8, "channel_mult": [1, 2], "norm_groups": 8, "dropout": 0.0}
    network = UNet(**config, attention_resolutions=[4]).to(memory_format=torch.channels_last)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in network.parameters():
            if not weight.any():
                weight.copy_(0.2 * torch.randn(weight.shape, generator=generator))
    x, t = torch.randn(8, 3, 8, 8, generator=generator), torch.arange(8) * 100

    def gradients(network, enabled=True):
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            loss = network(x.to(network.conv_in.weight.dtype), t).square().sum()
        found = torch.autograd.grad(loss, list(network.parameters()))
        return torch.cat([gradient.flatten().double() for gradient in found])

    used = []
    group_norm = cpu.group_norm
    monkeypatch.setattr(cpu, "group_norm", lambda *a, **k: used.append(a) or group_norm(*a, **k))
    ours = gradients(network)
    assert used
    monkeypatch.setattr(cpu, "group_norm", lambda x, g, w, b, eps, *, silu: own(x, w, b, g, silu))
    theirs = gradients(network)
    true = gradients(network.double(), enabled=False)
    assert (ours - true).norm() <= 1.2 * (theirs - true).norm()
    assert (ours - true).norm() <= 0.05 * true.norm()
