"""The UNet with captions: what it may depend on, and what it is without them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from ddim.denoisers import UNet, build_denoiser
from ddim.denoisers.layers import Attention, Context, attention
from ddim.denoisers.text import TextEncoder
from ddim.denoisers.text_unet import TextUNet

SMALL = {
    **{"num_words": 9, "caption_length": 5, "text_width": 8, "text_depth": 2, "resolution": 8, "base_channels": 8},
    **{"channel_mult": (1, 2), "attention_resolutions": (4,), "norm_groups": 4},
}
X, T = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 500, 999])
CAPTIONS = torch.tensor([[1, 2, 3, 0, 0], [4, 4, 5, 6, 7], [0, 0, 0, 0, 0]])


@pytest.fixture
def network() -> TextUNet:
    return awake(TextUNet(**SMALL))


def awake(network: nn.Module) -> nn.Module:
    """With weights that are nowhere zero, in float64."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in network.parameters():
            weight.copy_(0.3 * torch.randn(weight.shape, generator=generator) + 0.05)
    return network.double()


def test_a_new_network_returns_zero() -> None:
    assert TextUNet(**SMALL)(X, T, CAPTIONS).abs().max() == 0


def test_what_stands_in_the_place_of_padding_has_no_influence_at_all(network: TextUNet) -> None:
    before = network(X, T, CAPTIONS)
    with torch.no_grad():
        network.text.words.weight[0] = 1e6
    assert torch.equal(network(X, T, CAPTIONS), before)


def test_a_caption_means_the_same_in_a_longer_network(network: TextUNet) -> None:
    longer = TextUNet(**SMALL | {"caption_length": 9}).double()
    state = network.state_dict()
    state["text.positions"] = torch.cat([state["text.positions"], torch.full((4, 8), 7.0, dtype=torch.float64)])
    longer.load_state_dict(state)
    padded = torch.cat([CAPTIONS, torch.zeros(3, 4, dtype=torch.long)], dim=1)
    torch.testing.assert_close(longer(X, T, padded), network(X, T, CAPTIONS), rtol=1e-12, atol=1e-12)


def test_every_word_and_its_place_matter(network: TextUNet) -> None:
    of_one = torch.tensor([[1, 2, 3, 0, 0], [1, 2, 4, 0, 0], [2, 1, 3, 0, 0]])
    images = network(X[:1].expand(3, -1, -1, -1), T[:1].expand(3), of_one)
    assert (images[1:] - images[0]).abs().amax(dim=(1, 2, 3)).min() > 1e-6


def test_a_caption_reaches_the_attentions_as_well_as_the_time_embedding(network: TextUNet) -> None:
    without = network(X, T)
    with torch.no_grad():
        network.pooled.weight.zero_()
    attended = network(X, T, CAPTIONS)
    assert (attended[:2] - network(X, T)[:2]).abs().amax(dim=(1, 2, 3)).min() > 1e-6
    for module in network.modules():
        if isinstance(module, Attention):
            module.forward = lambda x, context, own=module: Attention.forward(own, x)  # type: ignore[method-assign]
    torch.testing.assert_close(network(X, T, CAPTIONS), network(X, T), rtol=1e-12, atol=1e-12)
    assert not torch.equal(network(X, T), without)


def test_no_caption_is_the_empty_caption(network: TextUNet) -> None:
    empty = network.null_condition.expand(3, -1)
    assert empty.tolist() == [[0] * 5] * 3
    assert torch.equal(network(X, T), network(X, T, empty))
    assert torch.equal(network(X, T, CAPTIONS)[2], network(X, T)[2])


def test_a_sample_does_not_see_the_captions_of_its_batch(network: TextUNet) -> None:
    alone = torch.cat([network(X[i : i + 1], T[i : i + 1], CAPTIONS[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(network(X, T, CAPTIONS), alone, rtol=1e-12, atol=1e-12)


def test_attention_over_image_and_context_is_one_softmax() -> None:
    layer = awake(Attention(8, norm_groups=2))
    layer.add_context(6)
    awake(layer)
    x, features = torch.randn(2, 8, 2, 3, dtype=torch.float64), torch.randn(2, 4, 6, dtype=torch.float64)
    present = torch.tensor([[True, True, False, False], [True, True, True, True]])
    found = layer(x, Context(features, present))
    for image, words, there, result in zip(x, features, present, found, strict=True):
        tokens = layer.norm(image[None])[0].flatten(1).T
        keys = torch.cat([layer.k(tokens), layer.context_k(words[there])])
        values = torch.cat([layer.v(tokens), layer.context_v(words[there])])
        weights = (layer.q(tokens) @ keys.T / 8**0.5).softmax(dim=1)
        torch.testing.assert_close(result, image + layer.out(weights @ values).T.reshape(image.shape))


def test_masked_attention_in_bfloat16_is_that_of_float32() -> None:
    q, k, v = (torch.randn(2, length, 8).bfloat16() for length in (5, 7, 7))
    present = torch.rand(2, 7) < 0.5
    present[:, 0] = True
    exact = attention(q.float(), k.float(), v.float(), present)
    torch.testing.assert_close(attention(q, k, v, present).float(), exact, rtol=0.02, atol=0.02)
    k[~present], v[~present] = 100, 1e30
    assert torch.equal(attention(q, k, v, present), attention(q, k, v.where(present[..., None], 0), present))


def test_the_encoder_reads_from_both_sides_of_a_word() -> None:
    encoder = awake(TextEncoder(9, 5, 8, 2))
    first, last = (encoder(torch.tensor([caption])).features[0] for caption in ([1, 2, 3, 4, 5], [1, 2, 3, 4, 6]))
    assert (first[:5] - last[:5]).abs().amax(dim=1).min() > 1e-9


def test_it_is_rebuilt_from_what_it_says_of_itself(network: TextUNet) -> None:
    again = build_denoiser({"name": "text_unet", **network.config}).double()
    again.load_state_dict(network.state_dict())
    assert torch.equal(again(X, T, CAPTIONS), network(X, T, CAPTIONS))
    assert network.sample_shape == (1, 8, 8)


def test_the_unet_has_not_changed(network: TextUNet) -> None:
    """Its weights keep their names, and none is for a context."""
    image = {name: value for name, value in network.config.items() if name in UNet().config}
    inside = {name.removeprefix("unet.") for name in network.state_dict() if name.startswith("unet.")}
    assert set(UNet(**image).state_dict()) == {name for name in inside if "context" not in name}


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"text_width": 6}, "text_width must be a multiple of 4, got 6"),
        ({"text_depth": 0}, "text_depth must be a positive integer, got 0"),
        ({"num_words": "many"}, "num_words must be a positive integer, got 'many'"),
        ({"caption_length": True}, "caption_length must be a positive integer, got True"),
        ({"patch": 3}, "resolution 8 must be divisible by 6"),
        ({"in_channels": 0}, "in_channels must be a positive integer, got 0"),
        ({"norm_groups": 3}, "norm_groups 3 must divide every level's channels, got 8 channels"),
    ],
)
def test_what_cannot_be_built_is_named(wrong: dict[str, object], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        TextUNet(**SMALL | wrong)


@pytest.mark.parametrize("condition", [CAPTIONS[:2], CAPTIONS[:, :4], CAPTIONS.float(), CAPTIONS[0]])
def test_captions_of_another_shape_or_kind_are_refused(network: TextUNet, condition: Tensor) -> None:
    with pytest.raises(ValueError, match=r"condition must be a LongTensor of shape \(3, 5\)"):
        network(X, T, condition)
