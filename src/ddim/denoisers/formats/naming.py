"""What the parameters of the UNet are called in the files of others.

Three formats: "ddim" (ours), "official" (the PyTorch release of DDIM and DDPM, whose `up` counts resolution levels as
ours does) and "diffusers" (`UNet2DModel`, whose `up_blocks` counts from the lowest resolution upwards).
"""

from __future__ import annotations

import re

# Inside a block or an attention layer; what is not listed has the same name.
OFFICIAL_LAYERS = {"time": "temb_proj", "shortcut": "nin_shortcut", "out": "proj_out"}
DIFFUSERS_LAYERS = {
    "time": "time_emb_proj",
    "shortcut": "conv_shortcut",
    "norm": "group_norm",
    "q": "to_q",
    "k": "to_k",
    "v": "to_v",
    "out": "to_out.0",
}
OFFICIAL_PLACES = {
    "time_embedding.linear1": "temb.dense.0",
    "time_embedding.linear2": "temb.dense.1",
    "middle.block1": "mid.block_1",
    "middle.attention": "mid.attn_1",
    "middle.block2": "mid.block_2",
}
DIFFUSERS_PLACES = {
    "time_embedding.linear1": "time_embedding.linear_1",
    "time_embedding.linear2": "time_embedding.linear_2",
    "middle.block1": "mid_block.resnets.0",
    "middle.attention": "mid_block.attentions.0",
    "middle.block2": "mid_block.resnets.1",
    "norm_out": "conv_norm_out",
}
# Other spellings of the same layer, by the one used here.
OFFICIAL_SPELLINGS = {"conv_shortcut": "nin_shortcut"}
DIFFUSERS_SPELLINGS = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
_LEVEL = re.compile(r"(down|up)\.(\d+)\.(blocks|attentions|downsample|upsample)\.(.+)")
_LAST_LAYER = re.compile(r"\.(\w+)\.(weight|bias)$")


def file_name(format: str, name: str, levels: int) -> str:
    """What `name`, a parameter of our UNet with this many levels, is called in files of `format`.

    `format` is "ddim", "official", "official-training" or "diffusers".
    """
    if format == "ddim":
        return name
    official = format.startswith("official")
    places, layers = (OFFICIAL_PLACES, OFFICIAL_LAYERS) if official else (DIFFUSERS_PLACES, DIFFUSERS_LAYERS)
    level = _LEVEL.fullmatch(name)
    if level is None:
        ours = next((place for place in places if name.startswith(f"{place}.")), None)
        if ours is None:
            return name
        return f"{places[ours]}.{_renamed(name.removeprefix(f'{ours}.'), layers)}"
    side, number, group, rest = level.groups()
    if official:
        groups = {"blocks": "block", "attentions": "attn", "downsample": "downsample", "upsample": "upsample"}
        return f"{side}.{number}.{groups[group]}.{_renamed(rest, layers)}"
    groups = {
        "blocks": "resnets",
        "attentions": "attentions",
        "downsample": "downsamplers.0",
        "upsample": "upsamplers.0",
    }
    index = int(number) if side == "down" else levels - 1 - int(number)
    return f"{side}_blocks.{index}.{groups[group]}.{_renamed(rest, layers)}"


def canonical_name(format: str, name: str) -> str:
    """A key as a file spells it, in the one spelling that :func:`file_name` gives.

    Drops the prefix that `DataParallel` adds in the official training, and knows the older names of attention layers.
    """
    if format == "ddim":
        return name
    if format.startswith("official"):
        spellings, name = OFFICIAL_SPELLINGS, name.removeprefix("module.")
    else:
        spellings = DIFFUSERS_SPELLINGS
    return _LAST_LAYER.sub(lambda found: f".{spellings.get(found[1], found[1])}.{found[2]}", name)


def _renamed(rest: str, layers: dict[str, str]) -> str:
    """`rest` (ends in layer and kind: "0.norm1.weight", "q.bias", or the kind alone) with its layer renamed."""
    *front, kind = rest.split(".")
    if not front:
        return rest
    front[-1] = layers.get(front[-1], front[-1])
    return ".".join([*front, kind])
