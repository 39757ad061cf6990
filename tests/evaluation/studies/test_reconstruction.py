"""Encoding and decoding a Gaussian, whose exact ε is known: the study must find the error that paper and pencil do."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from ddim.data import Pixels
from ddim.diffusion import NoiseSchedule, NoiseSource, encode, sample
from ddim.diffusion.grid import SamplerConfig, grid_points
from ddim.evaluation.settings import evaluation_schema, plan
from ddim.evaluation.studies.reconstruction import Reconstruction
from ddim.evaluation.subject import Sampling
from ddim.findings.telling import Strip
from ddim.training.module import DenoisingModule

SHAPE = (1, 8, 8)
SCHEDULE = NoiseSchedule.linear(1000)
LEVELS = SCHEDULE.alpha_bar.tolist()
# Far outside [-1, 1], so that a predicted x_0 would be clipped if anything were.
MEAN, VARIANCE = 1.5, 0.3
STEPS = [5, 10, 20, 50]


def exact_eps(x: Tensor, alpha_bar: Tensor | float) -> Tensor:
    """E[ε | x_t] for data from N(MEAN, VARIANCE)."""
    return (1 - alpha_bar) ** 0.5 * (x - alpha_bar**0.5 * MEAN) / (alpha_bar * VARIANCE + 1 - alpha_bar)


class ExactDenoiser(nn.Module):
    """In float64, so that only the study's own arithmetic rounds. Counts its calls."""

    def __init__(self) -> None:
        super().__init__()
        self.dtype_of = nn.Parameter(torch.zeros(1, dtype=torch.float64))
        self.calls = 0

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        self.calls += 1
        return exact_eps(x, SCHEDULE.alpha_bar[t].reshape(-1, 1, 1, 1))


def round_trip(x: Tensor, tau: list[int]) -> Tensor:
    """DDIM equations 13 and 14 in x/√ᾱ and σ = √((1 − ᾱ)/ᾱ), float64; the clean data has ᾱ = 1 and reads ε at t = 0."""

    def scale(t: int) -> float:
        return math.sqrt(LEVELS[t]) if t >= 0 else 1.0

    def sigma(t: int) -> float:
        return math.sqrt((1 - LEVELS[t]) / LEVELS[t]) if t >= 0 else 0.0

    path = [-1, *tau]
    scaled = x.double()
    for low, high in pairwise(path):
        eps = exact_eps(scaled * scale(low), LEVELS[max(low, 0)])
        scaled = scaled + (sigma(high) - sigma(low)) * eps
    for low, high in reversed(list(pairwise(path))):
        eps = exact_eps(scaled * scale(high), LEVELS[high])
        scaled = scaled + (sigma(low) - sigma(high)) * eps
    return scaled


def exact_error(images: Tensor, tau: list[int]) -> float:
    x = images.double() / 127.5 - 1
    return ((round_trip(x, tau) - x) / 2).square().mean().item()


def pixels(count: int) -> Tensor:
    return torch.randint(0, 256, (count, *SHAPE), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def points_of(steps=STEPS, tau="linear"):
    return grid_points(SCHEDULE, steps=steps, etas=0, tau=tau)


def module_of() -> DenoisingModule:
    return DenoisingModule(ExactDenoiser(), SCHEDULE, optimizer={}).eval()


def study_of(images: Tensor, *, points=None, **more) -> Reconstruction:
    return Reconstruction(
        points_of() if points is None else points,
        images=lambda batch_size: iter(images.split(batch_size)),
        num_images=len(images),
        **more,
    )


@pytest.fixture
def run(ask) -> Callable[..., Any]:
    """Run a study in a directory: what it said, and who heard it."""

    def run(directory, study, *, module=None, batch_size: int = 10, **more):
        sampling = Sampling(NoiseSource(0), Pixels(SHAPE), batch_size)
        identity = {"dataset": "gauss", "weights": "ema", "seed": 0}
        return ask(study, module or module_of(), sampling, directory, identity, **more)

    return run


@pytest.mark.parametrize("tau", ["linear", "quadratic"])
def test_the_error_is_the_exact_one_and_calls_are_counted(tmp_path, run, tau):
    images, module = pixels(23), module_of()
    rows = run(tmp_path, study_of(images, points=points_of(tau=tau)), module=module).rows
    assert [row["steps"] for row in rows] == STEPS
    for row in rows:
        assert row["mse_per_dimension"] == pytest.approx(exact_error(images, list(row["timesteps"])), rel=1e-5)
        assert (row["num_images"], row["split"], row["clip_denoised"]) == (23, "test", False)
        assert row["nfe"] == row["encode_nfe"] == len(row["timesteps"])
        assert row["seconds"] > 0
    # Three batches of at most ten.
    assert module.denoiser.calls == 3 * sum(row["nfe"] + row["encode_nfe"] for row in rows)
    errors = [row["mse_per_dimension"] for row in rows]
    assert errors == sorted(errors, reverse=True) and errors[-1] < errors[0] / 10


def test_clipping_would_be_seen():
    """Against these data a decoder that clips has quite another error: the test above holds that none does."""
    module, images = module_of(), pixels(4)
    tau = points_of()[1].timesteps_tensor()
    x = images.double() / 127.5 - 1
    x_T = encode(module, x, SCHEDULE, tau)
    clipped = sample(module, x_T, SCHEDULE, tau, clip_denoised=True)
    error = ((clipped - x) / 2).square().mean().item()
    assert error > 1.2 * exact_error(images, tau.tolist()) or error < exact_error(images, tau.tolist()) / 1.2


def test_the_plan_never_clips_and_is_never_random():
    evaluation = evaluation_schema()(parts=["reconstruction"])
    (points,) = plan(SamplerConfig(eta=[0.5, 1.0], clip_denoised=True), evaluation, SCHEDULE).values()
    assert [(point.eta, point.clip_denoised) for point in points] == [(0.0, False)] * 4


@pytest.mark.parametrize("change", [{"eta": 0.5}, {"clip_denoised": True}, {"eta": 1.0, "variance": "sigma_hat"}])
def test_a_point_that_is_no_inverse_of_encoding_is_refused(change):
    with pytest.raises(ValueError, match="eta=0 and clip_denoised=False"):
        study_of(pixels(2), points=[replace(points_of()[0], **change)])


@pytest.mark.parametrize("batch_size", [1, 7, 23, 64])
def test_the_error_does_not_depend_on_the_batch_size(tmp_path, run, batch_size):
    images = pixels(23)
    (row,) = run(tmp_path, study_of(images, points=points_of(5)), batch_size=batch_size).rows
    assert row["mse_per_dimension"] == pytest.approx(exact_error(images, list(row["timesteps"])), rel=1e-6)


@pytest.mark.parametrize(("count", "world_size"), [(23, 2), (10, 3), (7, 4), (2, 4), (5, 5)])
def test_ranks_together_reconstruct_each_image_once(tmp_path, run, run_on_ranks, monkeypatch, count, world_size):
    images = pixels(count)
    seen: list[int] = []
    original = Reconstruction._round_trip

    def counted(self, *args):
        trip = original(self, *args)
        seen.extend(trip.numbers.tolist())
        return trip

    monkeypatch.setattr(Reconstruction, "_round_trip", counted)

    def on(rank: int):
        (tmp_path / str(rank)).mkdir()
        study = study_of(images, points=points_of(5), shown=4)
        return run(tmp_path / str(rank), study, batch_size=2, rank=rank, world_size=world_size)

    everyone = run_on_ranks(world_size, on)
    assert sorted(seen) == list(range(count))
    exact = exact_error(images, list(points_of(5)[0].timesteps))
    for asked in everyone:
        assert asked.rows[0]["mse_per_dimension"] == pytest.approx(exact, rel=1e-6)
    drawing = [rank for rank, asked in enumerate(everyone) if asked.heard.pictures]
    assert drawing == [0], "only the first process draws"
    assert [path.name for path in tmp_path.iterdir() if any(path.iterdir())] == ["0"], "only the first process writes"
    (strip,) = everyone[0].pictures(Strip)
    (_, originals), (_, reconstructed) = strip.rows
    assert torch.equal(originals, images[:4])
    tau = list(points_of(5)[0].timesteps)
    expected = round_trip(images[:4].double() / 127.5 - 1, tau).clamp(-1, 1).add(1).mul(127.5).round()
    assert reconstructed.shape == (min(4, count), *SHAPE)
    assert (reconstructed.double() - expected).abs().max() <= 1


def test_a_missing_image_is_noticed(tmp_path, run):
    study = study_of(pixels(5))
    study.num_images = 6
    with pytest.raises(RuntimeError, match="5 images were reconstructed where 6"):
        run(tmp_path, study)


class TestWhatIsLeft:
    @pytest.fixture
    def found(self, tmp_path, run):
        summary: dict[str, float] = {}
        logger = SimpleNamespace(log_metrics=lambda values, step: summary.update(values))
        asked = run(tmp_path, study_of(pixels(23), shown=5), loggers=[logger], context={"versions": {"torch": "x"}})
        return tmp_path, asked, summary

    def test_files(self, found):
        directory, asked, _ = found
        rows = list(csv.DictReader((directory / "reconstruction.csv").open()))
        document = json.loads((directory / "reconstruction.json").read_text())
        assert [float(row["mse_per_dimension"]) for row in rows] == [r["mse_per_dimension"] for r in asked.rows]
        assert [row["encode_nfe"] for row in rows] == ["5", "10", "20", "50"]
        assert rows[0]["timesteps"] == "0 200 400 600 800"
        assert document["extra"] == {"versions": {"torch": "x"}} and len(document["rows"]) == 4

    def test_summary(self, found):
        _, asked, summary = found
        assert summary == {
            f"reconstruction/mse/linear/steps{row['steps']:04d}": row["mse_per_dimension"] for row in asked.rows
        }

    def test_pictures_have_content(self, found):
        _, asked, _ = found
        assert [path.name for path in asked.paths] == ["reconstruction-images.png", "reconstruction-error.png"]
        for path in asked.paths:
            array = np.asarray(Image.open(path).convert("L"), float)
            assert array.shape[1] >= 640 and array.std() > 10

    def test_table(self, found):
        _, asked, _ = found
        words = asked.words()
        lines = [line.split() for line in words.splitlines()]
        for row in asked.rows:
            (line,) = [line for line in lines if line[:2] == [str(row["steps"]), str(2 * row["steps"])]]
            assert float(line[2]) == pytest.approx(row["mse_per_dimension"], rel=6e-3)
        assert "Reconstruction of 23 test images" in words


def test_two_spacings_have_pictures_and_lines_of_their_own(tmp_path, run):
    asked = run(tmp_path, study_of(pixels(3), points=points_of([3, 5], ["linear", "quadratic"])))
    names = {path.name for path in asked.paths}
    assert names == {
        "reconstruction-images-linear.png",
        "reconstruction-images-quadratic.png",
        "reconstruction-error.png",
    }
    assert "quadratic" in asked.words()
    assert asked.study.plan() == "reconstruction of 3 test images with S = 3, 5"
