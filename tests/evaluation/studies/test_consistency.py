"""Consistency of a denoiser that is linear in x, where each sample is known as a sum of its latent and its noises."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from ddim.data import Pixels
from ddim.diffusion import NoiseSchedule, NoiseSource
from ddim.diffusion.grid import grid_points
from ddim.display.terminal import Terminal
from ddim.evaluation.kept.finished import Kept
from ddim.evaluation.studies.consistency import Consistency
from ddim.evaluation.subject import Sampling
from ddim.findings.labels import eta_label
from ddim.findings.parts.consistency import PART, closer
from ddim.findings.telling import Strip
from ddim.metrics import build_extractor
from ddim.training.module import DenoisingModule

SHAPE = (1, 8, 8)
SCHEDULE = NoiseSchedule.linear(1000)
LEVELS = SCHEDULE.alpha_bar.tolist()
VARIANCE = 0.1
COUNT = 30
NOISE = NoiseSource(7)
IDENTITY = {"dataset": "gauss", "weights": "ema", "seed": 7}


class ExactDenoiser(nn.Module):
    """E[ε | x_t] for data from N(0, VARIANCE)."""

    def __init__(self) -> None:
        super().__init__()
        self.dtype_of = nn.Parameter(torch.zeros(1, dtype=torch.float64))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        level = SCHEDULE.alpha_bar[t].reshape(-1, 1, 1, 1)
        return (1 - level).sqrt() * x / (level * VARIANCE + 1 - level)


def exact_images(timesteps, eta: float, count: int = COUNT) -> Tensor:
    """DDIM equation 12 written out for the linear ε, float64, then rounded to pixel values."""
    numbers = torch.arange(count)
    x = NOISE.initial(numbers, SHAPE).double()
    path = [-1, *timesteps]
    for number, (low, high) in enumerate(reversed(list(pairwise(path)))):
        level, below = LEVELS[high], LEVELS[low] if low >= 0 else 1.0
        eps = math.sqrt(1 - level) * x / (level * VARIANCE + 1 - level)
        x_0 = (x - math.sqrt(1 - level) * eps) / math.sqrt(level)
        variance = eta**2 * (1 - below) / (1 - level) * (1 - level / below)
        x = math.sqrt(below) * x_0 + math.sqrt(1 - below - variance) * eps
        if eta > 0:
            x = x + math.sqrt(variance) * NOISE.step(numbers, number, SHAPE).double()
    return (x.clamp(-1, 1) + 1).mul(127.5).round()


def points_of(steps=(20, 5, 50, 10), etas=(0.0, 1.0), tau="linear"):
    return grid_points(SCHEDULE, steps=list(steps), etas=list(etas), tau=tau)


def study_of(directory: Path, *, points=None, num_images: int = COUNT, **more) -> Consistency:
    return Consistency(
        points_of() if points is None else points,
        extractor=build_extractor("pixels", channels=1, resolution=8, weights_dir=directory),
        num_images=num_images,
        **more,
    )


@pytest.fixture(scope="module")
def run(ask) -> Callable[..., Any]:
    """Run a study of these arguments in a directory: what it said, and who heard it."""

    def run(directory, *, batch_size: int = 50, rank: int = 0, world_size: int = 1, kept=None, loggers=(), **more):
        module = DenoisingModule(ExactDenoiser(), SCHEDULE, optimizer={}).eval()
        sampling = Sampling(NOISE, Pixels(SHAPE), batch_size)
        trainer = {"rank": rank, "world_size": world_size, "loggers": loggers}
        return ask(study_of(directory, **more), module, sampling, directory, IDENTITY, kept=kept, **trainer)

    return run


@pytest.fixture(scope="module")
def found(run, tmp_path_factory):
    summary: dict[str, float] = {}
    logger = SimpleNamespace(log_metrics=lambda values, step: summary.update(values))
    return run(tmp_path_factory.mktemp("consistency"), shown=5, loggers=[logger]), summary


class TestDistances:
    def test_each_number_of_steps_is_compared_with_the_largest_of_its_own_eta(self, found):
        asked, _ = found
        rows = asked.rows
        assert [(row["eta"], row["steps"]) for row in rows] == [(e, s) for e in (0.0, 1.0) for s in (20, 5, 10)]
        largest = points_of((50,), (0.0,))[0].timesteps
        for row in rows:
            images, others = exact_images(row["timesteps"], row["eta"]), exact_images(largest, row["eta"])
            difference = ((images - others) / 255).flatten(1)
            assert row["reference_steps"] == 50 and row["num_images"] == COUNT
            # A pixel value may round the other way where float32 and float64 differ.
            assert row["mse"] == pytest.approx(difference.square().mean().item(), rel=1e-3)
            assert row["feature_distance"] == pytest.approx(difference.norm(dim=1).mean().item(), rel=1e-3)
            flat = others.flatten(1) / 255
            pairs = [(flat[i] - flat[j]).norm().item() for i in range(COUNT) for j in range(i)]
            spread = sum(pairs) / len(pairs)
            assert row["feature_distance_between_samples"] == pytest.approx(spread, rel=1e-3)
            assert row["feature_distance_relative"] == pytest.approx(row["feature_distance"] / spread, rel=1e-3)
            assert (row["features"], row["ssim_window"]) == ("pixels", "gaussian 7x7, sigma 0.9545")

    def test_the_deterministic_sampler_is_consistent_and_the_other_is_not(self, found):
        asked, _ = found
        rows = {(row["eta"], row["steps"]): row for row in asked.rows}
        for steps in (5, 10, 20):
            assert rows[0.0, steps]["mse"] < rows[1.0, steps]["mse"] / 2
            assert rows[0.0, steps]["ssim"] > rows[1.0, steps]["ssim"] + 0.1
        assert rows[0.0, 5]["mse"] > rows[0.0, 10]["mse"] > rows[0.0, 20]["mse"]
        ((row, ratio),) = closer(asked.rows)
        assert (row["eta"], row["steps"]) == (1.0, 20)
        assert ratio == rows[1.0, 20]["mse"] / rows[0.0, 20]["mse"] > 20

    def test_values_of_eta_that_are_nearly_alike_are_compared_each_with_its_own_images(self, tmp_path, run):
        asked = run(tmp_path, points=points_of((3, 5), (0.5, 0.5004)), num_images=4)
        assert [(row["eta"], row["steps"]) for row in asked.rows] == [(0.5, 3), (0.5004, 3)]

    @pytest.mark.parametrize("batch_size", [1, 7])
    def test_batches_do_not_matter(self, tmp_path, run, batch_size):
        again = run(tmp_path, points=points_of((3, 5)), batch_size=batch_size)
        whole = run(tmp_path, points=points_of((3, 5)))
        for row, expected in zip(again.rows, whole.rows, strict=True):
            assert row["mse"] == pytest.approx(expected["mse"], rel=1e-3)
            assert row["ssim"] == pytest.approx(expected["ssim"], rel=1e-3)

    @pytest.mark.parametrize(("num_images", "world_size"), [(30, 2), (10, 3), (2, 3)])
    def test_ranks_do_not_matter(self, tmp_path, run, run_on_ranks, num_images, world_size):
        points = points_of((3, 5))

        def on(rank: int, world_size: int = world_size):
            folder = tmp_path / f"{rank}-of-{world_size}"
            folder.mkdir()
            more = {"points": points, "batch_size": 4, "num_images": num_images, "shown": 3}
            return run(folder, rank=rank, world_size=world_size, **more)

        alone = on(0, 1)
        everyone = run_on_ranks(world_size, on)
        for asked in everyone:
            for row, expected in zip(asked.rows, alone.rows, strict=True):
                for column in ("mse", "ssim", "feature_distance_relative"):
                    assert row[column] == pytest.approx(expected[column], rel=1e-3)
        (strip,) = everyone[0].pictures(Strip)
        # η by η, from the smallest S to the largest.
        for point, (label, images) in zip(points, strip.rows, strict=True):
            assert label.split() == ["η", "=", eta_label(point), "S", "=", str(point.steps)]
            assert images.shape == (min(3, num_images), *SHAPE)
            exact = exact_images(point.timesteps, point.eta, num_images)[:3]
            assert (images.double() - exact).abs().max() <= 1
        assert [bool(list(path.iterdir())) for path in sorted(tmp_path.iterdir())] == [True, True] + [False] * (
            world_size - 1
        )


def test_samples_of_an_interrupted_study_are_not_made_again(tmp_path, run, monkeypatch):
    """They are kept until the whole evaluation is finished; what is measured on them is measured again."""
    network = {"weights_sha256": "a"}
    first = run(tmp_path, kept=Kept(tmp_path, network, every_seconds=0))
    kept = Kept(tmp_path, network, every_seconds=0)
    with monkeypatch.context() as patch:
        patch.setattr(ExactDenoiser, "forward", lambda *arguments: pytest.fail("sampled again"))
        again = run(tmp_path, kept=kept)
    assert again.rows == first.rows and list((tmp_path / "partial").iterdir())
    kept.forget_partials()
    assert not list((tmp_path / "partial").iterdir())


class TestWhatIsLeft:
    def test_files_and_pictures(self, found):
        asked, _ = found
        rows = list(csv.DictReader((asked.drawn.directory / "consistency.csv").open()))
        assert [float(row["mse"]) for row in rows] == [row["mse"] for row in asked.rows]
        assert [path.name for path in asked.paths] == ["consistency-images.png", "consistency-distance.png"]
        for path in asked.paths:
            array = np.asarray(Image.open(path).convert("L"), float)
            assert array.shape[1] >= 640 and array.std() > 10

    def test_summary(self, found):
        asked, summary = found
        for row in asked.rows:
            key = f"eta{row['eta']:.3f}/linear/steps{row['steps']:04d}"
            assert summary[f"consistency/mse/{key}"] == row["mse"]
            assert summary[f"consistency/ssim/{key}"] == row["ssim"]
        ((_, ratio),) = closer(asked.rows)
        assert summary["consistency/mse_over_eta0/eta1.000/linear/steps0020"] == ratio
        assert len(summary) == 3 * 6 + 1

    def test_table_and_the_sentence_about_the_claim(self, found):
        asked, _ = found
        words = asked.words()
        lines = [line.split() for line in words.splitlines()]
        for row in sorted(asked.rows, key=lambda row: (row["eta"], row["steps"])):
            line = next(line for line in lines if line[:1] == [str(row["steps"])])
            lines.remove(line)
            assert float(line[1]) == pytest.approx(row["mse"], rel=6e-3)
            assert float(line[2]) == pytest.approx(row["ssim"], abs=6e-4)
            assert float(line[3]) == pytest.approx(row["feature_distance_relative"], rel=6e-3)
        ((_, ratio),) = closer(asked.rows)
        assert "times closer than eta = 1 (MSE, S=20 to S=50)" in words
        sentence = next(line for line in lines if line[:3] == ["eta", "=", "0"] and "times" in line)
        assert float(sentence[4]) == pytest.approx(ratio, rel=6e-3)

    def test_two_spacings_and_three_samplers(self, tmp_path, run):
        points = points_of((3, 5), (0.0, 0.5, "sigma_hat"), ["linear", "quadratic"])
        asked = run(tmp_path, points=points, num_images=4)
        assert len(asked.rows) == 6 and len(closer(asked.rows)) == 4
        for tau in ("linear", "quadratic"):
            for what in ("images", "distance"):
                assert (tmp_path / f"consistency-{what}-{tau}.png").is_file()
        assert "sigma_hat, quadratic tau, to S = 5" in asked.words()
        assert asked.study.plan() == "consistency of 4 samples over S = 3, 5 for η = 0, 0.5, σ̂"

    def test_without_eta_zero_there_is_no_ratio_and_without_error_none_either(self, tmp_path, run):
        assert closer(run(tmp_path, points=points_of((3, 5), (0.5,)), num_images=4).rows) == []
        still, moving = run(tmp_path, points=points_of((3, 5)), num_images=4).rows
        rows = [{**still, "mse": 0.0}, moving]
        assert [ratio for _, ratio in closer(rows)] == [None]
        file = io.StringIO()
        PART.words(rows, {}, Terminal(file))
        assert "eta = 0 is at no distance (MSE, S=3 to S=5)" in file.getvalue()


@pytest.mark.parametrize("arguments", [{"num_images": 1}, {"points": points_of((5,))}])
def test_nothing_to_compare_is_refused(tmp_path, arguments):
    with pytest.raises(ValueError, match="at least two"):
        study_of(tmp_path, **arguments)
