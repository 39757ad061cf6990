"""The UNet by itself: size, initialisation, shapes, precision, invariances, messages."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ddim.denoisers import UNet, build_denoiser
from ddim.denoisers.layers import Attention, Downsample, ResidualBlock, Upsample, sinusoidal_embedding

SMALL: dict[str, Any] = {
    "in_channels": 3,
    "resolution": 16,
    "base_channels": 16,
    "channel_mult": (1, 2),
    "num_res_blocks": 1,
    "attention_resolutions": (8,),
    "norm_groups": 8,
}
DIGITS: dict[str, Any] = {
    "in_channels": 1,
    "resolution": 8,
    "base_channels": 32,
    "channel_mult": (1, 2),
    "norm_groups": 8,
}


def randomised(unet: UNet, seed: int = 0) -> UNet:
    """Non-zero values everywhere, also where training starts from zero, of a size that keeps activations moderate."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in unet.named_parameters():
            scale = 0.5 / math.sqrt(parameter[0].numel()) if parameter.ndim > 1 else 0.1
            values = scale * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.copy_(values + 1.0 if "norm" in name and name.endswith("weight") else values)
    return unet


def inputs(n: int = 2, channels: int = 3, height: int = 16, width: int = 16) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return (
        torch.randn(n, channels, height, width, generator=generator),
        torch.randint(0, 1000, (n,), generator=generator),
    )


@pytest.mark.parametrize(
    ("config", "count"),
    [
        ({}, 35_746_307),
        ({"resolution": 64, "channel_mult": (1, 2, 2, 2, 4)}, 78_700_803),
        ({"resolution": 256, "channel_mult": (1, 1, 2, 2, 4, 4)}, 113_673_219),
    ],
    ids=["cifar10", "celeba", "lsun"],
)
def test_presets_have_the_published_number_of_parameters(config, count):
    with torch.device("meta"):
        unet = UNet(**config)
    assert sum(parameter.numel() for parameter in unet.parameters()) == count


def test_cifar10_attends_at_16x16_and_in_the_middle_only():
    with torch.device("meta"):
        unet = UNet()
    attentions = {name for name, module in unet.named_modules() if isinstance(module, Attention)}
    down = {f"down.1.attentions.{j}" for j in range(2)}
    up = {f"up.1.attentions.{j}" for j in range(3)}
    assert attentions == down | up | {"middle.attention"}


def test_a_new_network_returns_exactly_zero():
    unet = UNet(**SMALL)
    x, t = inputs()
    assert torch.equal(unet(x, t), torch.zeros_like(x))


def test_residual_branches_and_attention_start_at_identity():
    x, _ = inputs(channels=16)
    block = ResidualBlock(16, 16, time_features=64, dropout=0.0, norm_groups=8)
    assert torch.equal(block(x, torch.randn(2, 64)), x)
    assert torch.equal(Attention(16, norm_groups=8)(x), x)


def test_weights_start_uniform_with_variance_one_over_fan_avg():
    torch.manual_seed(0)
    unet = UNet(base_channels=64, channel_mult=(1, 2), resolution=32)
    for name, fan_in, fan_out in [
        ("down.1.blocks.0.conv1", 9 * 64, 9 * 128),
        ("down.1.blocks.0.shortcut", 64, 128),
        ("down.0.downsample.conv", 9 * 64, 9 * 64),
        ("time_embedding.linear1", 64, 256),
        ("middle.attention.v", 128, 128),
    ]:
        variance = 2 / (fan_in + fan_out)
        weight = unet.get_parameter(f"{name}.weight")
        assert weight.var().item() == pytest.approx(variance, rel=0.05)
        assert weight.abs().max().item() == pytest.approx(math.sqrt(3 * variance), rel=0.02)
        assert not unet.get_parameter(f"{name}.bias").any()


def test_time_embedding_is_sines_then_cosines_from_frequency_1_to_1e_minus_4():
    t = torch.tensor([0, 1, 7, 999])
    embedding = sinusoidal_embedding(t, 8)
    frequencies = torch.tensor([1.0, 1e-4 ** (1 / 3), 1e-4 ** (2 / 3), 1e-4], dtype=torch.float64)
    phases = t.double()[:, None] * frequencies
    expected = torch.cat([phases.sin(), phases.cos()], dim=1)
    assert embedding.dtype == torch.float32
    # float32 frequencies: the phase at t = 999 is known to 999 * 2**-24
    torch.testing.assert_close(embedding.double(), expected, rtol=0, atol=1e-4)


def test_downsample_pads_right_and_bottom_only():
    layer = Downsample(1)
    with torch.no_grad():
        layer.conv.weight.fill_(1.0)
    x = torch.arange(16.0).reshape(1, 1, 4, 4)
    # windows start at even positions; the ones at the right and lower border reach one row or column of zeros
    expected = torch.tensor(
        [[[[45.0, 3 * 0 + 2 + 3 + 6 + 7 + 10 + 11], [8 + 9 + 10 + 12 + 13 + 14, 10 + 11 + 14 + 15.0]]]]
    )
    assert torch.equal(layer(x), expected)


def test_upsample_repeats_pixels_before_the_convolution():
    layer = Upsample(1)
    with torch.no_grad():
        layer.conv.weight.zero_()
        layer.conv.weight[0, 0, 1, 1] = 1.0
    x = torch.arange(4.0).reshape(1, 1, 2, 2)
    assert torch.equal(layer(x), x.repeat_interleave(2, 2).repeat_interleave(2, 3))


def test_attention_is_softmax_of_scaled_products_over_all_positions():
    torch.manual_seed(0)
    layer = Attention(8, norm_groups=4).double()
    with torch.no_grad():
        layer.out.weight.normal_()
    x = torch.randn(2, 8, 2, 3, dtype=torch.float64)
    h = layer.norm(x)
    q, k, v = (
        torch.einsum("oc,nchw->nohw", f.weight, h) + f.bias[None, :, None, None] for f in (layer.q, layer.k, layer.v)
    )
    scores = torch.einsum("nchw,ncij->nhwij", q, k) / math.sqrt(8)
    weights = scores.flatten(3).softmax(3).reshape(scores.shape)
    mixed = torch.einsum("nhwij,ncij->nchw", weights, v)
    expected = x + torch.einsum("oc,nchw->nohw", layer.out.weight, mixed) + layer.out.bias[None, :, None, None]
    torch.testing.assert_close(layer(x), expected, rtol=1e-10, atol=1e-10)


def test_every_parameter_receives_gradient():
    unet = randomised(UNet(**SMALL))
    x, t = inputs()
    unet(x, t).square().mean().backward()
    for name, parameter in unet.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
        # A constant added to all keys shifts every score of a query equally, which softmax does not see.
        if not name.endswith("k.bias"):
            assert parameter.grad.abs().max() > 0, name


def test_a_new_network_learns():
    torch.manual_seed(0)
    unet = UNet(**{**DIGITS, "base_channels": 16, "dropout": 0.0})
    x, t = inputs(8, 1, 8, 8)
    optimizer = torch.optim.Adam(unet.parameters(), lr=2e-3)
    for _ in range(40):
        loss = (unet(x, t) - x).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.25 * x.square().mean().item()


def test_output_of_a_sample_does_not_depend_on_its_batch():
    unet = randomised(UNet(**SMALL)).double().eval()
    x, t = inputs(5)
    x = x.double()
    together = unet(x, t)
    for i in range(5):
        torch.testing.assert_close(unet(x[i : i + 1], t[i : i + 1])[0], together[i], rtol=1e-12, atol=1e-12)
    others_changed = x.clone()
    others_changed[1:] = 100.0
    torch.testing.assert_close(unet(others_changed, t)[0], together[0], rtol=1e-12, atol=1e-12)


def test_output_depends_on_t_and_on_every_sample_s_own_t():
    unet = randomised(UNet(**SMALL)).eval()
    x, _ = inputs(1)
    x = x.expand(2, -1, -1, -1)
    different = unet(x, torch.tensor([10, 11]))
    assert (different[0] - different[1]).abs().max() > 1e-4
    same = unet(x, torch.tensor([10, 10]))
    torch.testing.assert_close(same[0], same[1])


def test_dropout_acts_in_training_only():
    unet = randomised(UNet(**{**SMALL, "dropout": 0.5}))
    x, t = inputs()
    unet.train()
    assert not torch.equal(unet(x, t), unet(x, t))
    unet.eval()
    assert torch.equal(unet(x, t), unet(x, t))


@settings(deadline=None, max_examples=15)
@given(
    levels=st.lists(st.integers(1, 3), min_size=1, max_size=3),
    blocks=st.integers(1, 2),
    channels=st.integers(1, 4),
    out_channels=st.none() | st.integers(1, 4),
    size=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    attend=st.booleans(),
)
def test_output_has_the_shape_of_the_input_for_any_architecture(levels, blocks, channels, out_channels, size, attend):
    factor = 2 ** (len(levels) - 1)
    unet = UNet(
        in_channels=channels,
        out_channels=out_channels,
        resolution=4 * factor,
        base_channels=4,
        channel_mult=levels,
        num_res_blocks=blocks,
        attention_resolutions=(4,) if attend else (),
        norm_groups=2,
    )
    x, t = inputs(1, channels, size[0] * factor, size[1] * factor)
    assert unet(x, t).shape == (1, out_channels or channels, *x.shape[2:])


def test_the_digits_network_runs():
    unet = randomised(UNet(**DIGITS)).eval()
    assert unet(*inputs(2, 1, 8, 8)).shape == (2, 1, 8, 8)


def test_bfloat16_autocast_agrees_within_two_percent():
    unet = randomised(UNet(**SMALL)).eval()
    x, t = inputs(4)
    expected = unet(x, t)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = unet(x, t).float()
    # bfloat16 keeps 8 bits (0.4%); the errors of about ten layers add up in the root mean square
    assert (output - expected).square().mean().sqrt() < 0.02 * expected.square().mean().sqrt()


def test_weights_set_the_precision_whatever_the_input():
    unet = randomised(UNet(**SMALL)).eval()
    x, t = inputs()
    expected = unet(x, t)
    assert unet(x.double(), t).dtype == torch.float32
    half = unet.to(torch.bfloat16)(x, t)
    assert half.dtype == torch.bfloat16
    assert (half.float() - expected).square().mean().sqrt() < 0.05 * expected.square().mean().sqrt()


def test_channels_last_is_kept_from_end_to_end_and_changes_nothing():
    unet = randomised(UNet(**SMALL)).eval()
    x, t = inputs()
    expected = unet(x, t)
    unet.to(memory_format=torch.channels_last)
    formats = {}

    def record(name):
        def hook(_module, _args, output):
            formats[name] = output.is_contiguous(memory_format=torch.channels_last)

        return hook

    for name, module in unet.named_modules():
        if name and isinstance(module, (torch.nn.Conv2d, torch.nn.GroupNorm, Attention, Downsample, ResidualBlock)):
            module.register_forward_hook(record(name))
    torch.testing.assert_close(unet(x.to(memory_format=torch.channels_last), t), expected, rtol=1e-4, atol=1e-5)
    assert [name for name, kept in formats.items() if not kept] == []


@pytest.mark.filterwarnings("ignore")
def test_compiles_as_one_graph():
    unet = randomised(UNet(**SMALL)).eval()
    x, t = inputs()
    compiled = torch.compile(unet, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x, t), unet(x, t))


@pytest.mark.parametrize("channels_last", [False, True])
def test_patches_are_channels_of_a_network_of_half_the_side(channels_last):
    unet = randomised(UNet(**{**SMALL, "resolution": 16, "attention_resolutions": (4,)}, patch=2)).eval()
    inner = UNet(**{**unet.config, "resolution": 8, "in_channels": 12, "out_channels": 12, "patch": 1}).eval()
    inner.load_state_dict(unet.state_dict())
    x, t = torch.randn(2, 3, 16, 16), torch.tensor([3, 700])
    if channels_last:
        x, unet = x.to(memory_format=torch.channels_last), unet.to(memory_format=torch.channels_last)
    # Pixel (2i + a, 2j + b) of channel c becomes channel 4c + 2a + b at (i, j).
    squares = torch.stack([x[:, :, a::2, b::2] for a in (0, 1) for b in (0, 1)], dim=2).flatten(1, 2)
    eps, expected = unet(x, t), inner(squares.contiguous(), t)
    for a, b in ((0, 0), (0, 1), (1, 0), (1, 1)):
        torch.testing.assert_close(eps[:, :, a::2, b::2], expected[:, 2 * a + b :: 4], rtol=1e-4, atol=1e-4)
    assert unet.sample_shape == (3, 16, 16)
    with pytest.raises(ValueError, match="divisible by 4, got 16x18"):
        unet(torch.zeros(1, 3, 16, 18), torch.tensor([0]))


def test_config_rebuilds_the_network_also_after_json():
    unet = randomised(UNet(**SMALL, dropout=0.25)).eval()
    again = UNet(**json.loads(json.dumps(unet.config)))
    assert again.config == unet.config
    again.load_state_dict(unet.state_dict())
    x, t = inputs()
    assert torch.equal(again.eval()(x, t), unet(x, t))


def test_build_denoiser_builds_what_the_config_says():
    config = {"name": "unet", **SMALL}
    assert build_denoiser(config).config == UNet(**SMALL).config
    assert config["name"] == "unet"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"resolution": 15}, "resolution 15 must be divisible by 2"),
        ({"resolution": 28, "channel_mult": (1, 2, 2, 2)}, "resolution 28 must be divisible by 8"),
        ({"resolution": 0}, "resolution must be a positive integer, got 0"),
        ({"resolution": 16.0}, "resolution must be a positive integer"),
        ({"in_channels": True}, "in_channels must be a positive integer"),
        ({"out_channels": 0}, "out_channels must be a positive integer"),
        ({"num_res_blocks": 0}, "num_res_blocks must be a positive integer"),
        ({"base_channels": "128"}, "base_channels must be a positive integer, got '128'"),
        ({"base_channels": 15, "norm_groups": 5}, "base_channels must be even"),
        ({"base_channels": 2, "norm_groups": 1}, "base_channels must be even and at least 4"),
        ({"norm_groups": 32}, "norm_groups 32 must divide every level's channels, got 16"),
        ({"norm_groups": 32, "channel_mult": (2, 4)}, "norm_groups 32 must divide every level's channels, got 16"),
        ({"norm_groups": 0}, "norm_groups must be a positive integer"),
        ({"patch": 0}, "patch must be a positive integer, got 0"),
        ({"patch": 3}, "resolution 16 must be divisible by 6, because patch 3 divides it and channel_mult"),
        ({"channel_mult": ()}, "channel_mult must have at least one entry"),
        ({"channel_mult": (1, 0)}, "channel_mult must be a list of positive integers"),
        ({"channel_mult": 2}, "channel_mult must be a list of positive integers, got 2"),
        ({"channel_mult": "1,2"}, "channel_mult must be a list of positive integers"),
        ({"attention_resolutions": (8.5,)}, "attention_resolutions must be a list of positive integers"),
        ({"dropout": 1.0}, r"dropout must be a number in \[0, 1\), got 1.0"),
        ({"dropout": -0.1}, "dropout must be a number in"),
        ({"dropout": math.nan}, "dropout must be a number in"),
        ({"dropout": None}, "dropout must be a number in"),
    ],
)
def test_bad_arguments_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        UNet(**{**SMALL, **change})


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"name": "dit"}, "denoiser.name is 'dit'; known denoisers: unet"),
        ({"base_channels": 16}, "denoiser.name is None"),
        ({"name": "unet", "chanels": 3, "depth": 1}, "unknown denoiser keys chanels, depth; known keys: in_channels,"),
        ({"name": "unet", "resolution": 30}, "resolution 30"),
    ],
)
def test_bad_configs_are_refused(config, message):
    with pytest.raises(ValueError, match=message):
        build_denoiser(config)


@pytest.mark.parametrize(
    ("x", "t", "message"),
    [
        (torch.zeros(2, 1, 16, 16), torch.zeros(2), r"x must be floating with shape \(N, 3, H, W\)"),
        (torch.zeros(3, 16, 16), torch.zeros(3), "x must be floating with shape"),
        (torch.zeros(2, 3, 16, 16, dtype=torch.uint8), torch.zeros(2), "torch.uint8"),
        (torch.zeros(2, 3, 15, 16), torch.zeros(2), "divisible by 2, got 15x16"),
        (torch.zeros(2, 3, 16, 16), torch.zeros(()), r"t must have shape \(2,\)"),
        (torch.zeros(2, 3, 16, 16), torch.zeros(1), r"t must have shape \(2,\) like the batch of x, got \(1,\)"),
    ],
)
def test_bad_inputs_are_named(x, t, message):
    with pytest.raises(ValueError, match=message):
        UNet(**SMALL)(x, t.long())
