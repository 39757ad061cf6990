"""Networks in other precisions than float32: what is rounded, and how little that changes."""

from __future__ import annotations

import math

import pytest
import torch

from ddim.denoisers import UNet
from ddim.denoisers.layers import attention


@pytest.mark.parametrize("shape", [(2, 16, 32), (1, 64, 48)])
def test_attention_in_bfloat16_is_attention(shape):
    q, k, v = (torch.randn(shape, generator=torch.Generator().manual_seed(i)) for i in range(3))
    exact = torch.softmax(q.double() @ k.double().transpose(1, 2) / math.sqrt(shape[-1]), -1) @ v.double()
    assert attention(q, k, v).dtype == torch.float32
    torch.testing.assert_close(attention(q, k, v).double(), exact, atol=1e-5, rtol=1e-5)
    low = attention(q.bfloat16(), k.bfloat16(), v.bfloat16())
    assert low.dtype == torch.bfloat16
    # Values of size 1 rounded to 8 bits on the way in, inside and on the way out.
    torch.testing.assert_close(low.double(), exact, atol=0.03, rtol=0)


def small_network() -> UNet:
    torch.manual_seed(0)
    network = UNet(in_channels=1, resolution=8, base_channels=32, channel_mult=[1, 2], num_res_blocks=1)
    for weight in network.parameters():
        if not weight.any():
            torch.nn.init.normal_(weight, std=0.05)
    return network.eval()


def test_autocast_leaves_both_ends_in_float32():
    network = small_network()
    seen: dict[str, tuple[torch.dtype, torch.dtype]] = {}
    for name in ("conv_in", "down.0.blocks.0.conv1", "norm_out", "conv_out"):
        network.get_submodule(name).register_forward_hook(
            lambda layer, arguments, result, name=name: seen.update({name: (arguments[0].dtype, result.dtype)})
        )
    with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16):
        eps = network(torch.randn(2, 1, 8, 8), torch.tensor([3, 900]))
    assert eps.dtype == torch.float32
    assert seen["conv_in"] == seen["norm_out"] == seen["conv_out"] == (torch.float32, torch.float32)
    assert seen["down.0.blocks.0.conv1"] == (torch.bfloat16, torch.bfloat16)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_weights_of_one_precision_compute_in_it(dtype):
    eps = small_network().to(dtype)(torch.randn(2, 1, 8, 8), torch.tensor([3, 900]))
    assert eps.dtype == dtype
