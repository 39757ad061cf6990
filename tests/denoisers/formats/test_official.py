"""Checkpoints of the official PyTorch code, against its network written out here from the names in its files."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from ddim.denoisers import UNet
from ddim.denoisers.formats.contents import UNSTATED
from ddim.denoisers.formats.official import infer_config
from ddim.denoisers.pretrained import load_denoiser, open_pretrained
from ddim.errors import UserError

ARCHITECTURES: dict[str, dict[str, Any]] = {
    "cifar10-like": {"mults": (1, 2, 2, 2), "attention": (1,), "resolution": 32},
    "grey, one block, no attention": {"channels": (1, 1), "mults": (1, 2), "blocks": 1, "resolution": 32},
    "attention at two levels": {"mults": (1, 2, 3), "blocks": 1, "attention": (1, 2), "resolution": 32},
    "one level, three blocks, six channels out": {
        "channels": (3, 6),
        "mults": (1,),
        "blocks": 3,
        "attention": (0,),
        "resolution": 16,
    },
    "deep attention": {"mults": (1, 1, 2, 2), "blocks": 1, "attention": (3,), "resolution": 128},
}


def official_shapes(channels=(3, 3), base=32, mults=(1, 2, 2, 2), blocks=2, attention=(), resolution=32):
    """Names and shapes of the official network, in the order in which its constructor makes them."""
    shapes: dict[str, tuple[int, ...]] = {}
    time = 4 * base

    def layer(name, *shape):
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = shape, shape[:1]

    def resnet(name, before, after):
        layer(f"{name}.norm1", before)
        layer(f"{name}.conv1", after, before, 3, 3)
        layer(f"{name}.temb_proj", after, time)
        layer(f"{name}.norm2", after)
        layer(f"{name}.conv2", after, after, 3, 3)
        if before != after:
            layer(f"{name}.nin_shortcut", after, before, 1, 1)

    def attend(name, width):
        layer(f"{name}.norm", width)
        for part in ("q", "k", "v", "proj_out"):
            layer(f"{name}.{part}", width, width, 1, 1)

    layer("temb.dense.0", time, base)
    layer("temb.dense.1", time, time)
    layer("conv_in", base, channels[0], 3, 3)
    width, skips = base, [base]
    for i, mult in enumerate(mults):
        for j in range(blocks):
            resnet(f"down.{i}.block.{j}", width, base * mult)
            width = base * mult
            if i in attention:
                attend(f"down.{i}.attn.{j}", width)
            skips.append(width)
        if i < len(mults) - 1:
            layer(f"down.{i}.downsample.conv", width, width, 3, 3)
            skips.append(width)
    resnet("mid.block_1", width, width)
    attend("mid.attn_1", width)
    resnet("mid.block_2", width, width)
    for i in reversed(range(len(mults))):
        for j in range(blocks + 1):
            resnet(f"up.{i}.block.{j}", width + skips.pop(), base * mults[i])
            width = base * mults[i]
            if i in attention:
                attend(f"up.{i}.attn.{j}", width)
        if i > 0:
            layer(f"up.{i}.upsample.conv", width, width, 3, 3)
    layer("norm_out", width)
    layer("conv_out", channels[1], width, 3, 3)
    return shapes


def official_state(seed=0, **architecture):
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for name, shape in official_shapes(**architecture).items():
        scale = 0.7 / math.sqrt(math.prod(shape[1:])) if len(shape) > 1 else 0.1
        state[name] = scale * torch.randn(shape, generator=generator) + (1.0 if is_norm(name) else 0.0)
    return state


def is_norm(name):
    return "norm" in name and name.endswith("weight")


def official_forward(state, x, t):
    """The official network in the precision of `x`, written out from the names in its checkpoint."""
    p = {name: value.to(x.dtype) for name, value in state.items()}

    def conv(name, h, **options):
        return F.conv2d(h, p[f"{name}.weight"], p[f"{name}.bias"], **options)

    def dense(name, h):
        return F.linear(h, p[f"{name}.weight"], p[f"{name}.bias"])

    def norm(name, h):
        return F.group_norm(h, 32, p[f"{name}.weight"], p[f"{name}.bias"], eps=1e-6)

    def swish(h):
        return h * torch.sigmoid(h)

    def resnet(name, x):
        h = conv(f"{name}.conv1", swish(norm(f"{name}.norm1", x)), padding=1)
        h = h + dense(f"{name}.temb_proj", swish(temb))[:, :, None, None]
        h = conv(f"{name}.conv2", swish(norm(f"{name}.norm2", h)), padding=1)
        return (conv(f"{name}.nin_shortcut", x) if f"{name}.nin_shortcut.weight" in p else x) + h

    def attend(name, x):
        if f"{name}.q.weight" not in p:
            return x
        h = norm(f"{name}.norm", x)
        q, k, v = (conv(f"{name}.{part}", h).flatten(2) for part in "qkv")
        weights = torch.einsum("bci,bcj->bij", q, k).mul(q.shape[1] ** -0.5).softmax(dim=2)
        return x + conv(f"{name}.proj_out", torch.einsum("bij,bcj->bci", weights, v).reshape(x.shape))

    half = p["conv_in.weight"].shape[0] // 2
    # The official code divides before it multiplies, which moves these float32 frequencies by 1e-7 of themselves;
    # in this order they are diffusers' and ours, so that nothing but the names is compared.
    frequencies = torch.exp(torch.arange(half, dtype=torch.float32) * -math.log(10000) / (half - 1))
    phases = t.float()[:, None] * frequencies[None]
    temb = torch.cat([phases.sin(), phases.cos()], dim=1).to(x.dtype)
    temb = dense("temb.dense.1", swish(dense("temb.dense.0", temb)))

    levels = len({name.split(".")[1] for name in p if name.startswith("down.")})
    blocks = len({name.split(".")[3] for name in p if name.startswith("down.0.block.")})
    skips = [conv("conv_in", x, padding=1)]
    for i in range(levels):
        for j in range(blocks):
            skips.append(attend(f"down.{i}.attn.{j}", resnet(f"down.{i}.block.{j}", skips[-1])))
        if i < levels - 1:
            skips.append(conv(f"down.{i}.downsample.conv", F.pad(skips[-1], (0, 1, 0, 1)), stride=2))
    h = resnet("mid.block_2", attend("mid.attn_1", resnet("mid.block_1", skips[-1])))
    for i in reversed(range(levels)):
        for j in range(blocks + 1):
            h = attend(f"up.{i}.attn.{j}", resnet(f"up.{i}.block.{j}", torch.cat([h, skips.pop()], dim=1)))
        if i > 0:
            h = conv(f"up.{i}.upsample.conv", F.interpolate(h, scale_factor=2, mode="nearest"), padding=1)
    return conv("conv_out", swish(norm("norm_out", h)), padding=1)


def inputs(channels):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(2, channels, 16, 16, generator=generator, dtype=torch.float64), torch.tensor([3, 871])


def assert_same_function(unet, state):
    x, t = inputs(unet.config["in_channels"])
    with torch.inference_mode():
        expected, found = official_forward(state, x, t), unet.double()(x, t)
    assert expected.std() > 0.1
    assert (found - expected).abs().max() <= 1e-9 * expected.abs().max()


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
@pytest.mark.parametrize("case", ARCHITECTURES)
def test_a_state_dict_is_the_same_function(tmp_path, case, legacy):
    state = official_state(**ARCHITECTURES[case])
    torch.save(state, tmp_path / "model.ckpt", _use_new_zipfile_serialization=not legacy)
    found = open_pretrained(tmp_path / "model.ckpt")
    assert (found.origin, found.format) == (str(tmp_path / "model.ckpt"), "official")
    assert found.schedule is None and found.dataset is None and list(found.states) == [UNSTATED]
    assert found.denoiser["resolution"] == ARCHITECTURES[case]["resolution"]
    assert_same_function(found.build(), state)
    with pytest.raises(UserError, match="does not say that they are raw"):
        found.build("raw")


@pytest.mark.parametrize("swapped", [("q", "k"), ("k", "v")])
def test_the_reference_here_tells_projections_apart(swapped):
    state = official_state(**ARCHITECTURES["attention at two levels"])
    x, t = inputs(3)
    expected = official_forward(state, x, t)
    first, second = (f"down.1.attn.0.{part}.weight" for part in swapped)
    state[first], state[second] = state[second], state[first]
    assert (official_forward(state, x, t) - expected).abs().max() > 1e-4 * expected.abs().max()


def test_other_spellings_of_the_same_layers(tmp_path):
    state = official_state(mults=(1, 2), attention=(1,))
    renamed = {f"module.{name.replace('nin_shortcut', 'conv_shortcut')}": value for name, value in state.items()}
    torch.save(renamed, tmp_path / "renamed.pt")
    assert_same_function(load_denoiser(tmp_path / "renamed.pt"), state)
    linear = {name: value.flatten(1) if ".attn" in name and value.ndim == 4 else value for name, value in state.items()}
    torch.save(linear, tmp_path / "linear.pt")
    assert_same_function(load_denoiser(tmp_path / "linear.pt"), state)


def test_half_precision_becomes_float32(tmp_path):
    state = {name: value.bfloat16() for name, value in official_state(mults=(1,), blocks=1).items()}
    torch.save(state, tmp_path / "half.pt")
    assert_same_function(load_denoiser(tmp_path / "half.pt"), state)


@pytest.mark.parametrize(
    ("architecture", "config", "parameters"),
    [
        (
            {"base": 128, "attention": (1,)},
            {"resolution": 32, "base_channels": 128, "channel_mult": [1, 2, 2, 2], "attention_resolutions": [16]},
            35_746_307,
        ),
        (
            {"base": 128, "mults": (1, 2, 2, 2, 4), "attention": (2,)},
            {"resolution": 64, "base_channels": 128, "channel_mult": [1, 2, 2, 2, 4], "attention_resolutions": [16]},
            78_700_803,
        ),
        (
            {"base": 128, "mults": (1, 1, 2, 2, 4, 4), "attention": (4,)},
            {"resolution": 256, "channel_mult": [1, 1, 2, 2, 4, 4], "attention_resolutions": [16]},
            113_673_219,
        ),
    ],
    ids=["cifar10", "celeba", "lsun"],
)
def test_the_published_networks_are_recognised(architecture, config, parameters):
    shapes = official_shapes(**architecture)
    assert sum(math.prod(shape) for shape in shapes.values()) == parameters
    inferred = infer_config({name: torch.empty(shape, device="meta") for name, shape in shapes.items()}, "X")
    assert inferred | config == inferred
    assert (inferred["in_channels"], inferred["out_channels"], inferred["num_res_blocks"]) == (3, 3, 2)
    with torch.device("meta"):
        unet = UNet(**{key: value for key, value in inferred.items() if key != "name"})
    assert sum(parameter.numel() for parameter in unet.parameters()) == parameters


def test_a_resolution_that_shapes_do_not_tell_can_be_given(tmp_path):
    torch.save(official_state(mults=(1, 1, 2), attention=(2,), blocks=1), tmp_path / "model.pt")
    found = open_pretrained(tmp_path / "model.pt")
    assert (found.denoiser["resolution"], found.denoiser["attention_resolutions"]) == (64, [16])
    unet = found.build(denoiser={**found.denoiser, "resolution": 32, "attention_resolutions": [8]})
    assert unet.config["resolution"] == 32
    with pytest.raises(UserError, match=r"asked for: down\.0\.attn\.0\.norm\.weight is missing"):
        found.build(denoiser={**found.denoiser, "attention_resolutions": [16, 64]})


def training_list(model, ema=None, prefix=""):
    optimizer = {"state": {0: {"step": 5, "exp_avg": torch.zeros(2)}}, "param_groups": [{"lr": 2e-4, "params": [0]}]}
    saved = [{f"module.{name}": value for name, value in model.items()}, optimizer, 12, 34567]
    return saved if ema is None else [*saved, {f"{prefix}{name}": value for name, value in ema.items()}]


@pytest.mark.parametrize("prefix", ["", "module."])
def test_a_training_list_holds_ema_and_raw_weights(tmp_path, prefix):
    architecture = {"mults": (1, 2), "blocks": 1, "attention": (1,)}
    model, ema = official_state(1, **architecture), official_state(2, **architecture)
    torch.save(training_list(model, ema, prefix), tmp_path / "ckpt.pth")
    found = open_pretrained(tmp_path / "ckpt.pth")
    assert found.format == "official-training" and set(found.states) == {"ema", "raw"}
    assert_same_function(found.build("ema"), ema)
    assert_same_function(found.build("raw"), model)
    assert_same_function(load_denoiser(tmp_path / "ckpt.pth"), ema)


def test_raw_weights_are_never_taken_for_ema(tmp_path):
    model = official_state(mults=(1,), blocks=1)
    torch.save(training_list(model), tmp_path / "ckpt.pth")
    with pytest.raises(UserError, match=r"ckpt\.pth holds no EMA weights; take the raw ones"):
        load_denoiser(tmp_path / "ckpt.pth")
    assert_same_function(load_denoiser(tmp_path / "ckpt.pth", weights="raw"), model)


def without(*names):
    return lambda state: {name: value for name, value in state.items() if name not in names}


def changed(**tensors):
    return lambda state: {**state, **{name.replace("__", "."): value for name, value in tensors.items()}}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without("conv_in.weight"), r"conv_in\.weight is missing"),
        (without("conv_out.weight"), r"conv_out\.weight is missing"),
        (
            without("down.1.block.0.norm2.bias"),
            r"does not fit the UNet of DDPM: down\.1\.block\.0\.norm2\.bias is missing$",
        ),
        (without("up.1.attn.1.k.weight"), r"up\.1\.attn\.1\.k\.weight is missing$"),
        (changed(mid__attn_2__q__weight=torch.zeros(3)), r"mid\.attn_2\.q\.weight is not expected$"),
        (changed(conv_in__weight=torch.zeros(32)), r"conv_in\.weight has shape \(32,\)$"),
        (
            changed(down__1__block__0__conv1__weight=torch.zeros(48, 32, 3, 3)),
            r"down\.1\.block\.0\.conv1\.weight has 48 output channels, no multiple of the 32 of conv_in\.weight$",
        ),
        (
            changed(up__0__block__0__nin_shortcut__weight=torch.zeros(32, 96, 3, 3)),
            r"nin_shortcut\.weight has shape \(32, 96, 3, 3\) instead of \(32, 96, 1, 1\)$",
        ),
        (
            changed(mid__attn_1__q__weight=torch.zeros(64, 64, 3, 3)),
            r"mid\.attn_1\.q\.weight has shape \(64, 64, 3, 3\) instead of \(64, 64, 1, 1\)$",
        ),
        (
            changed(conv_out__bias=torch.zeros(3, dtype=torch.int64)),
            r"conv_out\.bias is not an ordinary floating-point tensor$",
        ),
        (changed(conv_out__bias=torch.zeros(1).expand(3)), "conv_out.bias is not an ordinary"),
        (changed(conv_out__bias=torch.zeros(3).to_sparse()), "conv_out.bias is not an ordinary"),
        (changed(conv_out__bias=torch.zeros(3, device="meta")), "conv_out.bias is not an ordinary"),
        (changed(conv_out__bias="text"), "conv_out.bias is not an ordinary"),
        (
            lambda state: {name.replace("down.0.block.0.norm1", "down.0.block.0.norm0"): state[name] for name in state},
            r"norm1\.weight is missing, down\.0\.block\.0\.norm1\.bias is missing, "
            r"down\.0\.block\.0\.norm0\.weight is not expected and 1 more$",
        ),
        (
            lambda state: {**state, "module.conv_in.bias": state["conv_in.bias"]},
            r"module\.conv_in\.bias is not expected",
        ),
    ],
)
def test_what_does_not_fit_is_refused_in_the_names_of_the_file(tmp_path, change, message):
    torch.save(change(official_state(mults=(1, 2), blocks=1, attention=(1,))), tmp_path / "model.pt")
    with pytest.raises(UserError, match=message) as caught:
        open_pretrained(tmp_path / "model.pt")
    assert str(caught.value).startswith(str(tmp_path / "model.pt")) and "\n" not in str(caught.value)


def test_an_ema_that_does_not_fit_its_model(tmp_path):
    ema = without("conv_out.bias")(official_state(mults=(1,), blocks=1))
    torch.save(training_list(official_state(mults=(1,), blocks=1), ema), tmp_path / "ckpt.pth")
    with pytest.raises(UserError, match=r"ckpt\.pth \(ema weights\) does not fit .* conv_out\.bias is missing"):
        open_pretrained(tmp_path / "ckpt.pth")


def test_widths_that_32_groups_do_not_divide(tmp_path):
    torch.save(official_state(base=16, mults=(1,), blocks=1), tmp_path / "model.pt")
    found = open_pretrained(tmp_path / "model.pt")
    with pytest.raises(UserError, match="norm_groups 32 must divide every level's channels, got 16"):
        found.build()
    assert found.build(denoiser={**found.denoiser, "norm_groups": 8}).config["norm_groups"] == 8


@pytest.mark.parametrize(
    ("content", "found"),
    [
        ({"input_blocks.0.0.weight": torch.zeros(2)}, "its first keys are input_blocks.0.0.weight"),
        ({}, "it is empty"),
        ([{}, {}, 1, 2], "it holds a list"),
        ([official_shapes(), {}, 1], "it holds a list"),
        (torch.zeros(3), "it holds a Tensor"),
    ],
)
def test_other_contents_are_refused_naming_what_is_accepted(tmp_path, content, found):
    torch.save(content, tmp_path / "other.pt")
    with pytest.raises(UserError, match="not a checkpoint of a known kind") as caught:
        open_pretrained(tmp_path / "other.pt")
    for text in (found, ".ckpt of this project", "official DDIM or DDPM code", "diffusers UNet2DModel"):
        assert text in str(caught.value)
