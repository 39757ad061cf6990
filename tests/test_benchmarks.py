"""Every benchmark runs: on networks too small to say anything about speed, which is not tested here."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]


def run(module: str, *arguments: str) -> str:
    command = [sys.executable, "-m", f"benchmarks.{module}", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_sampling_compares_with_the_peers():
    pytest.importorskip("diffusers")
    pytest.importorskip("denoising_diffusion_pytorch")
    said = run("sampling", "--tiny", "--rounds", "1", "--batch-size", "2", "--steps", "2")
    for text in ("ddim (evaluate.py)", "DDIMPipeline", "denoising-diffusion-pytorch", "of the ceiling", "outside the"):
        assert text in said


def test_sampling_shows_a_profile():
    assert "aten::mkldnn_convolution" in run("sampling", "--tiny", "--profile", "--batch-size", "2")


def test_precision_says_what_auto_would_take():
    said = run("precision", "--tiny", "--rounds", "1")
    assert "32, (1, 2), 8x8" in said and "32-true" in said


def test_growth_draws_its_exponents(tmp_path):
    picture = tmp_path / "growth.png"
    said = run("growth", "--tiny", "--rounds", "1", "--output", str(picture))
    assert said.count(" ... ") == 8 and picture.stat().st_size > 10_000


def test_training_compares_with_the_peers():
    pytest.importorskip("diffusers")
    pytest.importorskip("denoising_diffusion_pytorch")
    said = run("training", "--tiny", "--quick", "optimizer.name=adamw")
    sides = ("ddim, train.py", "diffusers UNet2DModel", "denoising-diffusion-pytorch")
    assert "the same, channels last" in said or "bfloat16 is left out" in said
    for text in (*sides, "2 rounds of 1 steps", "of the ceiling", "outside the network", "waiting for the loader"):
        assert text in said


def test_training_shows_a_profile():
    said = run("training", "--tiny", "--quick", "--profile")
    for text in ("aten::convolution_backward", "convolutions, backward", "optimizer"):
        assert text in said
