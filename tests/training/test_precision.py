"""`trainer.precision=auto` is decided by the machine's kind and the network."""

from __future__ import annotations

import pytest
import torch

from ddim.training import precision

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
        (True, None, "cpu", {"resolution": 32, "base_channels": 24}, "bf16-mixed"),
        (True, None, "cpu", {"resolution": 32, "base_channels": 23}, "32-true"),
        (True, None, "cpu", {"resolution": 32, "base_channels": 48, "patch": 2}, "bf16-mixed"),
        (True, None, "cpu", {"resolution": 32, "base_channels": 46, "patch": 2}, "32-true"),
        (True, None, "cpu", {"resolution": 32, "base_channels": 128, "patch": "two"}, "bf16-mixed"),
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


@pytest.mark.parametrize("size", ["wide", None, [128], 32.5])
def test_a_network_that_cannot_be_built_is_refused_elsewhere(machine, size):
    machine(cpu=True)
    for key in WIDE:
        assert precision.with_precision({}, {**WIDE, key: size})["precision"] == "32-true"


def test_without_a_word_it_is_auto(machine):
    machine(cpu=True)
    assert precision.with_precision({}, WIDE)["precision"] == "bf16-mixed"
