"""The network against an independent implementation of the same architecture: diffusers' UNet2DModel."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from ddim.denoisers import UNet

diffusers = pytest.importorskip("diffusers")

CASES: dict[str, dict[str, Any]] = {
    "cifar10-like": {"channel_mult": (1, 2, 2, 2), "base_channels": 32, "resolution": 32, "norm_groups": 32},
    "attention at two levels": {
        "channel_mult": (1, 2, 3),
        "base_channels": 16,
        "resolution": 16,
        "attention_resolutions": (16, 8),
        "norm_groups": 8,
    },
    "one block, grey, no attention outside the middle": {
        "in_channels": 1,
        "channel_mult": (1, 2),
        "base_channels": 32,
        "resolution": 8,
        "num_res_blocks": 1,
        "attention_resolutions": (),
        "norm_groups": 8,
    },
    "one level, six channels out, three blocks": {
        "out_channels": 6,
        "channel_mult": (1,),
        "base_channels": 32,
        "resolution": 16,
        "num_res_blocks": 3,
        "norm_groups": 16,
    },
}


def diffusers_unet(config):
    """The UNet2DModel of this configuration, with the settings of google/ddpm-cifar10-32."""
    levels = range(len(config["channel_mult"]))
    attends = [config["resolution"] >> level in config["attention_resolutions"] for level in levels]
    return diffusers.UNet2DModel(
        sample_size=config["resolution"],
        in_channels=config["in_channels"],
        out_channels=config["out_channels"],
        block_out_channels=[config["base_channels"] * m for m in config["channel_mult"]],
        layers_per_block=config["num_res_blocks"],
        down_block_types=["AttnDownBlock2D" if a else "DownBlock2D" for a in attends],
        up_block_types=["AttnUpBlock2D" if a else "UpBlock2D" for a in reversed(attends)],
        downsample_padding=0,
        flip_sin_to_cos=False,
        freq_shift=1,
        norm_eps=1e-6,
        norm_num_groups=config["norm_groups"],
        attention_head_dim=None,
        dropout=config["dropout"],
    )


def diffusers_name(name: str, levels: int) -> str:
    """Our parameter name to diffusers' name."""
    parts = name.split(".")
    kind = parts[-1]
    if parts[0] in ("conv_in", "conv_out"):
        return name
    if parts[0] == "norm_out":
        return f"conv_norm_out.{kind}"
    if parts[0] == "time_embedding":
        return f"time_embedding.{parts[1].replace('linear', 'linear_')}.{kind}"
    if parts[0] == "middle":
        where = {
            "block1": "mid_block.resnets.0",
            "block2": "mid_block.resnets.1",
            "attention": "mid_block.attentions.0",
        }
        return f"{where[parts[1]]}.{layer_name(parts[2])}.{kind}"
    side, level = parts[0], int(parts[1])
    place = f"{side}_blocks.{level if side == 'down' else levels - 1 - level}"
    if parts[2] in ("downsample", "upsample"):
        return f"{place}.{parts[2]}rs.0.conv.{kind}"
    group = "resnets" if parts[2] == "blocks" else "attentions"
    return f"{place}.{group}.{parts[3]}.{layer_name(parts[4])}.{kind}"


def layer_name(name: str) -> str:
    changed = {
        "time": "time_emb_proj",
        "shortcut": "conv_shortcut",
        "norm": "group_norm",
        "q": "to_q",
        "k": "to_k",
        "v": "to_v",
        "out": "to_out.0",
    }
    return changed.get(name, name)


def pair(config):
    """Both networks with the same random weights, none of them zero, in float64 and eval mode."""
    ours = UNet(**config).double().eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in ours.named_parameters():
            scale = 0.7 / math.sqrt(parameter[0].numel()) if parameter.ndim > 1 else 0.1
            values = scale * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.copy_(values + 1.0 if "norm" in name and name.endswith("weight") else values)
    theirs = diffusers_unet(ours.config).double().eval()
    levels = len(ours.config["channel_mult"])
    theirs.load_state_dict({diffusers_name(name, levels): value for name, value in ours.state_dict().items()})
    return ours, theirs


def inputs(config, height, width):
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(3, config["in_channels"], height, width, generator=generator, dtype=torch.float64)
    return x, torch.tensor([0, 371, 999])


def relative_error(ours, theirs):
    return ((ours - theirs).abs().max() / theirs.abs().max()).item()


@pytest.mark.parametrize("case", CASES)
def test_same_function_as_diffusers(case):
    ours, theirs = pair(CASES[case])
    size = ours.config["resolution"]
    for height, width in [(size, size), (size, 2 * size)]:
        x, t = inputs(ours.config, height, width)
        with torch.inference_mode():
            expected = theirs(x, t).sample
            assert expected.abs().max() > 0.1
            assert relative_error(ours(x, t), expected) < 1e-12

    ours, theirs = ours.float(), theirs.float()
    with torch.inference_mode():
        output, expected = ours(x.float(), t), theirs(x.float(), t).sample
    assert (output - expected).abs().max() < 1e-5


def test_the_cifar10_network_itself_agrees():
    ours, theirs = pair({})
    assert sum(p.numel() for p in theirs.parameters()) == 35_746_307
    x, t = inputs(ours.config, 32, 32)
    ours, theirs = ours.float(), theirs.float()
    with torch.inference_mode():
        output, expected = ours(x.float(), t), theirs(x.float(), t).sample
    assert expected.abs().max() > 0.1
    assert (output - expected).abs().max() < 1e-5
