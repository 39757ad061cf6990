"""Every benchmark runs: on networks too small to say anything about speed, which is not tested here."""

from __future__ import annotations

import io
import logging
import runpy
import sys
import warnings
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """`run(module, *arguments)` as `python -m benchmarks.module` does, in this process: what it prints."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(REPOSITORY))

    def as_module(module: str, *arguments: str) -> str:
        monkeypatch.setattr(sys, "argv", [module, *arguments])
        logger, output = logging.getLogger("pytorch_lightning"), io.StringIO()
        level = logger.level
        try:
            with redirect_stdout(output), warnings.catch_warnings():
                runpy.run_module(f"benchmarks.{module}", run_name="__main__")
        finally:
            logger.setLevel(level)
        return output.getvalue()

    return as_module


def test_sampling_compares_with_the_peers(run):
    pytest.importorskip("diffusers")
    pytest.importorskip("denoising_diffusion_pytorch")
    said = run("sampling", "--tiny", "--rounds", "1", "--batch-size", "2", "--steps", "2")
    for text in ("ddim (evaluate.py)", "DDIMPipeline", "denoising-diffusion-pytorch", "of the ceiling", "outside the"):
        assert text in said


def test_sampling_shows_a_profile(run):
    assert "aten::mkldnn_convolution" in run("sampling", "--tiny", "--profile", "--batch-size", "2")


def test_precision_says_what_auto_would_take(run):
    said = run("precision", "--tiny", "--rounds", "1")
    assert "32, (1, 2), 8x8" in said and "32-true" in said


def test_growth_draws_its_exponents(run, tmp_path):
    picture = tmp_path / "growth.png"
    said = run("growth", "--tiny", "--rounds", "1", "--output", str(picture))
    assert said.count(" ... ") == 8 and picture.stat().st_size > 10_000


def test_training_compares_with_the_peers(run):
    pytest.importorskip("diffusers")
    pytest.importorskip("denoising_diffusion_pytorch")
    said = run("training", "--tiny", "--quick", "optimizer.name=adamw")
    sides = ("ddim, train.py", "diffusers UNet2DModel", "denoising-diffusion-pytorch")
    assert "the same, channels last" in said or "bfloat16 is left out" in said
    for text in (*sides, "2 rounds of 1 steps", "of the ceiling", "outside the network", "waiting for the loader"):
        assert text in said


def test_training_shows_a_profile(run):
    said = run("training", "--tiny", "--quick", "--profile")
    for text in ("aten::convolution_backward", "convolutions, backward", "optimizer"):
        assert text in said
