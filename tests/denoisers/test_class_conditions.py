"""A UNet with classes: what a condition changes, what stands for none, and the same function in diffusers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from ddim.denoisers import UNet
from ddim.denoisers.build import (
    build_denoiser,
    check_conditions,
    identifying_config,
    null_condition,
    takes_condition,
)
from ddim.denoisers.formats.contents import Pretrained
from ddim.denoisers.formats.naming import file_name
from ddim.denoisers.pretrained import open_pretrained
from ddim.errors import UserError
from ddim.export import export

SMALL: dict[str, Any] = {
    "in_channels": 1,
    "resolution": 8,
    "base_channels": 8,
    "channel_mult": (1, 2),
    "num_res_blocks": 1,
    "attention_resolutions": (4,),
    "dropout": 0.0,
    "norm_groups": 4,
}


# The same in diffusers' words.
DIFFUSERS: dict[str, Any] = {
    **{"sample_size": 8, "in_channels": 1, "out_channels": 1, "block_out_channels": [8, 16], "layers_per_block": 1},
    **{"down_block_types": ["DownBlock2D", "AttnDownBlock2D"], "up_block_types": ["AttnUpBlock2D", "UpBlock2D"]},
    **{"downsample_padding": 0, "flip_sin_to_cos": False, "freq_shift": 1, "norm_eps": 1e-6, "norm_num_groups": 4},
    "attention_head_dim": None,
}


def random_unet(**config: Any) -> UNet:
    torch.manual_seed(0)
    unet = UNet(**SMALL, **config).double().eval()
    with torch.no_grad():
        for parameter in unet.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=0.7 * parameter[0].numel() ** -0.5)
        if unet.conditional:
            unet.class_embedding.weight.normal_()
    return unet


def inputs(count: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(count, 1, 8, 8, generator=generator, dtype=torch.float64), torch.arange(count) * 200


def test_every_class_is_another_function_and_none_is_the_null_class():
    unet, (x, t) = random_unet(num_classes=3), inputs()
    assert takes_condition(unet) and unet.null_condition.tolist() == null_condition(unet).tolist() == 3
    assert unet.class_embedding.weight.shape == (4, 32)
    with torch.inference_mode():
        answers = [unet(x, t, torch.full((4,), number)) for number in range(4)]
        assert torch.equal(unet(x, t), answers[3])
        for one in range(4):
            for other in range(one):
                assert (answers[one] - answers[other]).abs().amax(dim=(1, 2, 3)).min() > 1e-3
        # Each sample has its own class.
        mixed = unet(x, t, torch.tensor([2, 0, 3, 1]))
        for place, number in enumerate([2, 0, 3, 1]):
            assert (mixed[place] - answers[number][place]).abs().max() < 1e-12


def test_the_embedding_is_added_to_that_of_the_timestep():
    unet, (x, t) = random_unet(num_classes=3), inputs()
    plain = random_unet()
    plain.load_state_dict({name: value for name, value in unet.state_dict().items() if "class_embedding" not in name})
    with torch.no_grad():
        plain.time_embedding.linear2.bias += unet.class_embedding.weight[1]
    with torch.inference_mode():
        assert (unet(x, t, torch.full((4,), 1)) - plain(x, t)).abs().max() < 1e-12


def test_an_unconditional_network_knows_nothing_of_it():
    unet, (x, t) = random_unet(), inputs()
    assert not takes_condition(unet) and unet.null_condition is None
    assert not any("class" in name for name in unet.state_dict())
    with pytest.raises(ValueError, match="condition must be None"):
        unet(x, t, torch.zeros(4, dtype=torch.long))
    # What was measured of networks before there were classes is found again.
    assert not {"num_classes", "null_class"} & set(identifying_config(unet))
    assert identifying_config(random_unet(num_classes=2))["num_classes"] == 2
    assert identifying_config(random_unet(num_classes=2, null_class=False))["null_class"] is False


@pytest.mark.parametrize(
    "condition", [torch.zeros(3, dtype=torch.long), torch.zeros(4), torch.zeros(4, 1, dtype=torch.long)]
)
def test_conditions_of_another_kind_are_refused(condition):
    unet, (x, t) = random_unet(num_classes=3), inputs()
    with pytest.raises(ValueError, match=r"condition must be a LongTensor of shape \(4,\)"):
        unet(x, t, condition)


def test_without_a_null_class_a_condition_is_needed():
    unet, (x, t) = random_unet(num_classes=3, null_class=False), inputs()
    assert unet.conditional and unet.null_condition is None and unet.class_embedding.weight.shape == (3, 32)
    with pytest.raises(ValueError, match="condition must be given"):
        unet(x, t)
    assert torch.isfinite(unet(x, t, torch.tensor([0, 1, 2, 0]))).all()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"num_classes": 0}, "num_classes must be a positive integer or null, got 0"),
        ({"num_classes": 2.5}, "num_classes must be a positive integer or null"),
        ({"num_classes": True}, "num_classes must be a positive integer or null"),
        ({"num_classes": 2, "null_class": 1}, "null_class must be true or false, got 1"),
    ],
)
def test_bad_numbers_of_classes_are_refused(changed, message):
    with pytest.raises(ValueError, match=message):
        build_denoiser({"name": "unet", **SMALL, **changed})


@pytest.mark.parametrize(
    ("network", "meaning", "required", "message"),
    [
        ({"num_classes": 3}, None, True, "denoiser with denoiser.num_classes=3 needs images with labels, dataset X"),
        ({"num_classes": 3, "null_class": False}, None, False, "needs images with labels, dataset X has none"),
        ({"num_classes": 3}, {"classes": ["a", "b"]}, True, "denoiser.num_classes=3 does not fit dataset X with 2"),
        ({"num_classes": 3}, {"classes": ["a", "b"]}, False, "denoiser.num_classes=3 does not fit dataset X with 2"),
        ({"num_classes": 2}, {"classes": ["a", "b"]}, True, None),
        ({"num_classes": 2}, None, False, None),
        ({}, {"classes": ["a", "b"]}, True, None),
        ({}, None, True, None),
    ],
)
def test_classes_have_to_be_those_of_the_data_set(network, meaning, required, message):
    if message is None:
        return check_conditions(random_unet(**network), meaning, "X", required=required)
    with pytest.raises(UserError, match=message):
        check_conditions(random_unet(**network), meaning, "X", required=required)
    return None


def test_a_network_of_a_users_own_says_by_its_null_condition_that_it_takes_one():
    class Own(nn.Module):
        null_condition = torch.zeros(5, dtype=torch.long)

    assert takes_condition(Own()) and not takes_condition(nn.Module())


def test_the_same_function_as_diffusers():
    diffusers = pytest.importorskip("diffusers")
    ours, (x, t) = random_unet(num_classes=3), inputs()
    theirs = diffusers.UNet2DModel(**DIFFUSERS, num_class_embeds=4).double()
    theirs.load_state_dict({file_name("diffusers", name, 2): value for name, value in ours.state_dict().items()})
    labels = torch.tensor([2, 0, 3, 1])
    with torch.inference_mode():
        expected = theirs.eval()(x, t, class_labels=labels).sample
        assert expected.std() > 0.1
        assert (ours(x, t, labels) - expected).abs().max() < 1e-10


def test_a_model_of_diffusers_is_read_with_all_its_embeddings_as_classes(tmp_path):
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    theirs = diffusers.UNet2DModel(**DIFFUSERS, num_class_embeds=4).eval()
    theirs.save_pretrained(tmp_path)
    opened = open_pretrained(tmp_path)
    assert (opened.denoiser["num_classes"], opened.denoiser["null_class"]) == (4, False)
    (x, t), labels = inputs(), torch.tensor([2, 0, 3, 1])
    ours = opened.build().double()
    with torch.inference_mode():
        expected = theirs.double()(x, t, class_labels=labels).sample
        assert expected.std() > 0.01 and (ours(x, t, labels) - expected).abs().max() < 1e-9
        # Whoever knows that the last row stands for none says so.
        named = opened.build(denoiser={**opened.denoiser, "num_classes": 3, "null_class": True}).double()
        assert (named(x, t) - theirs(x, t, class_labels=torch.full((4,), 3)).sample).abs().max() < 1e-9


@pytest.mark.parametrize("null_class", [True, False])
def test_what_is_exported_is_read_by_diffusers_and_by_us(null_class, tmp_path):
    diffusers = pytest.importorskip("diffusers")
    unet = random_unet(num_classes=3, null_class=null_class).float()
    config = {"name": "unet", **unet.config}
    export(Pretrained("X", "ddim", config, None, None, {"raw": unet.state_dict()}), tmp_path / "out", "raw")
    again = open_pretrained(tmp_path / "out")
    assert (again.denoiser["num_classes"], again.denoiser["null_class"]) == (3, null_class)
    theirs = diffusers.UNet2DModel.from_pretrained(tmp_path / "out" / "unet").double().eval()
    (x, t), labels = inputs(), torch.tensor([2, 0, 1, 1])
    with torch.inference_mode():
        expected = unet.double()(x, t, labels)
        assert (theirs(x, t, class_labels=labels).sample - expected).abs().max() < 1e-9
        assert (again.build("raw").double()(x, t, labels) - expected).abs().max() < 1e-9
