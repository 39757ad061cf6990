"""`trainer.precision=auto` is decided by the machine's kind and the network, and what bfloat16 changes is little."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
import yaml

from ddim.command.resuming import begun_with
from ddim.denoisers import UNet
from ddim.denoisers.layers import attention
from ddim.denoisers.pretrained import open_pretrained
from ddim.diffusion import NoiseSchedule, NoiseSource
from ddim.diffusion.grid import grid_points
from ddim.diffusion.schedule import build_schedule
from ddim.evaluation.subject import sampling_context
from ddim.training import precision
from ddim.training.module import DenoisingModule

WIDE = {"resolution": 32, "base_channels": 128}
NARROW = {"resolution": 8, "base_channels": 32}


@pytest.fixture
def machine(monkeypatch):
    """Pretends a machine: which of its devices multiply bfloat16."""

    def pretend(*, cpu: bool, cuda: bool | None = None) -> None:
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": cpu}, raising=False)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda is not None)
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: bool(cuda))
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)

    return pretend


@pytest.mark.parametrize(
    ("cpu", "cuda", "accelerator", "denoiser", "chosen"),
    [
        (True, None, "auto", WIDE, "bf16-mixed"),
        (True, None, "cpu", WIDE, "bf16-mixed"),
        (True, None, "cpu", NARROW, "32-true"),
        (True, None, "cpu", {"resolution": 32, "base_channels": 32}, "bf16-mixed"),
        (True, None, "cpu", {"resolution": 32, "base_channels": 31}, "32-true"),
        (False, None, "cpu", WIDE, "32-true"),
        (False, True, "auto", NARROW, "bf16-mixed"),
        (False, True, "gpu", WIDE, "bf16-mixed"),
        (False, True, "cuda", WIDE, "bf16-mixed"),
        (True, False, "gpu", WIDE, "32-true"),
        (True, True, "cpu", NARROW, "32-true"),
        (True, None, "mps", WIDE, "32-true"),
        (True, None, "tpu", WIDE, "32-true"),
    ],
)
def test_the_choice(machine, cpu, cuda, accelerator, denoiser, chosen):
    machine(cpu=cpu, cuda=cuda)
    arguments = {"accelerator": accelerator, "devices": 1, "precision": "auto"}
    assert precision.with_precision(arguments, denoiser) == {**arguments, "precision": chosen}


@pytest.mark.parametrize("given", ["32-true", "bf16-mixed", "64-true"])
def test_what_the_user_says_stays(machine, given):
    machine(cpu=True, cuda=True)
    assert precision.with_precision({"precision": given}, WIDE) == {"precision": given}


def test_a_run_remembers_what_auto_was(digits_run):
    assert yaml.safe_load((digits_run / "config.yaml").read_text())["trainer"]["precision"] == "32-true"
    assert begun_with(digits_run, {"precision": "auto"}) == {"precision": "32-true"}


@pytest.mark.parametrize(
    ("kept", "typed", "taken"),
    [
        ("trainer: {precision: bf16-mixed}", "auto", "bf16-mixed"),
        ("trainer: {precision: bf16-mixed}", "32-true", "32-true"),
        ("trainer: {precision: auto}", "auto", "auto"),
        ("trainer: {precision: [1]}", "auto", "auto"),
        ("trainer: {precision: fast}", "auto", "auto"),
        ("trainer: 1", "auto", "auto"),
        ("[", "auto", "auto"),
        (None, "auto", "auto"),
    ],
)
def test_a_run_that_goes_on_elsewhere_keeps_its_precision(tmp_path, kept, typed, taken):
    """What is typed then still wins, as with every setting."""
    if kept is not None:
        (tmp_path / "config.yaml").write_text(kept)
    assert begun_with(tmp_path, {"precision": typed, "devices": 1}) == {"precision": taken, "devices": 1}


@pytest.mark.parametrize("size", ["wide", None, [128], 32.5])
def test_a_network_that_cannot_be_built_is_refused_elsewhere(machine, size):
    machine(cpu=True)
    for key in WIDE:
        assert precision.with_precision({}, {**WIDE, key: size})["precision"] == "32-true"


def test_without_a_word_it_is_auto(machine):
    machine(cpu=True)
    assert precision.with_precision({}, WIDE)["precision"] == "bf16-mixed"


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


def test_32_true_is_ieee_float32_whatever_the_backends_are_set_to():
    module = DenoisingModule(small_network(), NoiseSchedule.linear(), optimizer={})
    convolutions, seen = torch.backends.cudnn.conv, []
    before, convolutions.fp32_precision = convolutions.fp32_precision, "tf32"
    try:
        for chosen in ("32-true", "bf16-mixed"):
            trainer = pl.Trainer(accelerator="cpu", precision=chosen, logger=False, enable_checkpointing=False)
            with sampling_context(trainer, module):
                seen.append(convolutions.fp32_precision)
            assert convolutions.fp32_precision == "tf32"
    finally:
        convolutions.fp32_precision = before
    assert seen == ["ieee", "tf32"]


def test_bfloat16_hardly_changes_what_latents_become(digits_run):
    """docs/performance.md states the tolerance: half a grey level of 255 on average, 99 % of the pixels within 5."""
    pretrained = open_pretrained(str(digits_run), Path())
    module = DenoisingModule(pretrained.build("ema").eval(), build_schedule(pretrained.schedule), optimizer={})
    noise, indices = NoiseSource(0), torch.arange(100)
    for point in grid_points(module.schedule, steps=[10, 20], etas=[0, 1], tau="linear"):
        exact = module.sample_images(point, indices, (1, 8, 8), noise)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            rounded = module.sample_images(point, indices, (1, 8, 8), noise)
        difference = (exact.int() - rounded.int()).abs().float()
        assert difference.mean() < 0.5
        assert difference.flatten().quantile(0.99) <= 5
