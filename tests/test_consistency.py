"""Consistency of a denoiser that is linear in x, where each sample is known as a sum of its latent and its noises."""

from __future__ import annotations

import csv
import io
import math
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor, nn

from ddim.diffusion import NoiseSchedule, NoiseSource
from ddim.diffusion.grid import grid_points
from ddim.display.curves import Panel, steps_figure
from ddim.display.terminal import Terminal
from ddim.evaluation.kept.finished import Resumption
from ddim.evaluation.sampling import Sampling
from ddim.evaluation.studies.consistency import Consistency
from ddim.evaluation.study import Study
from ddim.metrics import build_extractor
from ddim.metrics.similarity import (
    distances,
    feature_distance,
    feature_spread,
    pixel_error,
    pixel_spread,
    ssim_window,
    structural_similarity,
)
from ddim.training.module import DenoisingModule

SHAPE = (1, 8, 8)
SCHEDULE = NoiseSchedule.linear(1000)
LEVELS = SCHEDULE.alpha_bar.tolist()
VARIANCE = 0.1
COUNT = 30
NOISE = NoiseSource(7)


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


def trainer_of(rank: int = 0, world_size: int = 1, loggers=()) -> SimpleNamespace:
    return SimpleNamespace(
        global_rank=rank,
        world_size=world_size,
        is_global_zero=rank == 0,
        precision="32-true",
        precision_plugin=pl.plugins.precision.Precision(),
        loggers=list(loggers),
        global_step=0,
    )


def module_of() -> DenoisingModule:
    return DenoisingModule(ExactDenoiser(), SCHEDULE, optimizer={}).eval()


def study_of(directory, *, points=None, batch_size: int = 50, num_images: int = COUNT, **more) -> Consistency:
    return Consistency(
        points_of() if points is None else points,
        Sampling(NOISE, SHAPE, batch_size),
        directory,
        {"dataset": "gauss", "weights": "ema", "seed": 7},
        extractor=build_extractor("pixels", channels=1, resolution=8, weights_dir=directory),
        num_images=num_images,
        show_progress=False,
        **more,
    )


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    summary: dict[str, float] = {}
    logger = SimpleNamespace(log_metrics=lambda values, step: summary.update(values))
    study = study_of(tmp_path_factory.mktemp("consistency"), shown=5)
    study.run(trainer_of(loggers=[logger]), module_of())
    return study, summary


class TestDistances:
    def test_each_number_of_steps_is_compared_with_the_largest_of_its_own_eta(self, found):
        study, _ = found
        rows = study.records()
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
        study, _ = found
        rows = {(row["eta"], row["steps"]): row for row in study.records()}
        for steps in (5, 10, 20):
            assert rows[0.0, steps]["mse"] < rows[1.0, steps]["mse"] / 2
            assert rows[0.0, steps]["ssim"] > rows[1.0, steps]["ssim"] + 0.1
        assert rows[0.0, 5]["mse"] > rows[0.0, 10]["mse"] > rows[0.0, 20]["mse"]
        ((point, ratio),) = study.closer()
        assert (point.eta, point.steps) == (1.0, 20)
        assert ratio == rows[1.0, 20]["mse"] / rows[0.0, 20]["mse"] > 20

    @pytest.mark.parametrize("batch_size", [1, 7])
    def test_batches_do_not_matter(self, tmp_path, found, batch_size):
        again = study_of(tmp_path, points=points_of((3, 5)), batch_size=batch_size)
        whole = study_of(tmp_path, points=points_of((3, 5)))
        for study in (again, whole):
            study.run(trainer_of(), module_of())
        for row, expected in zip(again.records(), whole.records(), strict=True):
            assert row["mse"] == pytest.approx(expected["mse"], rel=1e-3)
            assert row["ssim"] == pytest.approx(expected["ssim"], rel=1e-3)

    @pytest.mark.parametrize(("num_images", "world_size"), [(30, 2), (10, 3), (2, 3)])
    def test_ranks_do_not_matter(self, tmp_path, monkeypatch, num_images, world_size):
        def run(rank: int, world_size: int = world_size) -> Study:
            folder = tmp_path / f"{rank}-of-{world_size}"
            folder.mkdir()
            study = study_of(folder, points=points_of((3, 5)), batch_size=4, num_images=num_images, shown=3)
            study._show_all = lambda trainer, pictures: setattr(study, "drawn", pictures)
            study.run(trainer_of(rank, world_size), module_of())
            return study

        alone = run(0, 1)
        studies = run_on_ranks(monkeypatch, world_size, run)
        for study in studies:
            for row, expected in zip(study.records(), alone.records(), strict=True):
                for column in ("mse", "ssim", "feature_distance_relative"):
                    assert row[column] == pytest.approx(expected[column], rel=1e-3)
        for point, images in studies[0].drawn.items():
            assert images.shape == (min(3, num_images), *SHAPE)
            exact = exact_images(point.timesteps, point.eta, num_images)[:3]
            assert (images.double() - exact).abs().max() <= 1
        assert [bool(list(path.iterdir())) for path in sorted(tmp_path.iterdir())] == [True, True] + [False] * (
            world_size - 1
        )


def run_on_ranks(monkeypatch: pytest.MonkeyPatch, world_size: int, run: Callable[[int], Study]) -> list[Study]:
    """`run(rank)` for every rank at once, in threads that gather from each other as processes would."""
    barrier, slots, here = threading.Barrier(world_size, timeout=60), [None] * world_size, threading.local()

    def all_gather_object(everyone, mine):
        slots[here.rank] = mine
        barrier.wait()
        everyone[:] = list(slots)
        barrier.wait()

    def start(rank: int) -> Study:
        here.rank = rank
        try:
            return run(rank)
        except BaseException:
            barrier.abort()
            raise

    monkeypatch.setattr(torch.distributed, "all_gather_object", all_gather_object)
    with ThreadPoolExecutor(world_size) as pool:
        return list(pool.map(start, range(world_size)))


def test_samples_of_an_interrupted_study_are_not_made_again(tmp_path, monkeypatch):
    """They are kept until the whole evaluation is finished; what is measured on them is measured again."""
    memory = Resumption(tmp_path, {"weights_sha256": "a"}, every_seconds=0)
    studies = [study_of(tmp_path, resumption=memory) for _ in range(2)]
    studies[0].run(trainer_of(), module_of())
    with monkeypatch.context() as patch:
        patch.setattr(DenoisingModule, "decode", lambda *arguments, **more: pytest.fail("sampled again"))
        studies[1].run(trainer_of(), module_of())
    assert studies[1].records() == studies[0].records() and list((tmp_path / "partial").iterdir())
    studies[1].forget_partial()
    assert not list((tmp_path / "partial").iterdir())


class TestWhatIsLeft:
    def test_files_and_pictures(self, found):
        study, _ = found
        rows = list(csv.DictReader((study.directory / "consistency.csv").open()))
        assert [float(row["mse"]) for row in rows] == [row["mse"] for row in study.records()]
        assert [path.name for path in study.pictures] == ["consistency-images.png", "consistency-distance.png"]
        for path in study.pictures:
            array = np.asarray(Image.open(path).convert("L"), float)
            assert array.shape[1] >= 640 and array.std() > 10

    def test_summary(self, found):
        study, summary = found
        for row in study.records():
            key = f"eta{row['eta']:.3f}/linear/steps{row['steps']:04d}"
            assert summary[f"consistency/mse/{key}"] == row["mse"]
            assert summary[f"consistency/ssim/{key}"] == row["ssim"]
        ((_, ratio),) = study.closer()
        assert summary["consistency/mse_over_eta0/eta1.000/linear/steps0020"] == ratio
        assert len(summary) == 3 * 6 + 1

    def test_table_and_the_sentence_about_the_claim(self, found):
        study, _ = found
        file = io.StringIO()
        study.report(Terminal(file))
        lines = [line.split() for line in file.getvalue().splitlines()]
        for row in sorted(study.records(), key=lambda row: (row["eta"], row["steps"])):
            line = next(line for line in lines if line[:1] == [str(row["steps"])])
            lines.remove(line)
            assert float(line[1]) == pytest.approx(row["mse"], rel=6e-3)
            assert float(line[2]) == pytest.approx(row["ssim"], abs=6e-4)
            assert float(line[3]) == pytest.approx(row["feature_distance_relative"], rel=6e-3)
        ((_, ratio),) = study.closer()
        assert "times closer than eta = 1 (MSE, S=20 to S=50)" in file.getvalue()
        sentence = next(line for line in lines if line[:3] == ["eta", "=", "0"] and "times" in line)
        assert float(sentence[4]) == pytest.approx(ratio, rel=6e-3)

    def test_two_spacings_and_three_samplers(self, tmp_path):
        points = points_of((3, 5), (0.0, 0.5, "sigma_hat"), ["linear", "quadratic"])
        study = study_of(tmp_path, points=points, num_images=4)
        study.run(trainer_of(), module_of())
        assert len(study.records()) == 6 and len(study.closer()) == 4
        for tau in ("linear", "quadratic"):
            for what in ("images", "distance"):
                assert (tmp_path / f"consistency-{what}-{tau}.png").is_file()
        file = io.StringIO()
        study.report(Terminal(file))
        assert "sigma_hat, quadratic tau, to S = 5" in file.getvalue()
        assert study.plan() == "consistency of 4 samples over S = 3, 5 for η = 0, 0.5, σ̂"

    def test_without_eta_zero_there_is_no_ratio_and_without_error_none_either(self, tmp_path):
        study = study_of(tmp_path, points=points_of((3, 5), (0.5,)), num_images=4)
        study.run(trainer_of(), module_of())
        assert study.closer() == []
        study = study_of(tmp_path, points=points_of((3, 5)), num_images=4)
        study.run(trainer_of(), module_of())
        study.found[points_of((3,), (0.0,))[0]]["mse"] = 0.0
        assert [ratio for _, ratio in study.closer()] == [None]
        file = io.StringIO()
        study.report(Terminal(file))
        assert "eta = 0 is at no distance (MSE, S=3 to S=5)" in file.getvalue()


@pytest.mark.parametrize("arguments", [{"num_images": 1}, {"points": points_of((5,))}])
def test_nothing_to_compare_is_refused(tmp_path, arguments):
    with pytest.raises(ValueError, match="at least two"):
        study_of(tmp_path, **arguments)


def random_images(count: int, channels: int, side: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, channels, side, side), dtype=torch.uint8, generator=generator)


class TestSimilarity:
    @pytest.mark.parametrize(("side", "window"), [(256, 11), (32, 11), (11, 11), (10, 9), (8, 7), (4, 3), (2, 1)])
    def test_the_window_fits_and_keeps_its_shape(self, side, window):
        found, sigma = ssim_window(side, 300)
        assert found == window <= side and sigma / found == pytest.approx(1.5 / 11)

    @pytest.mark.parametrize(("channels", "side"), [(1, 8), (3, 16)])
    def test_ssim_is_that_of_its_definition(self, channels, side):
        images, others = random_images(3, channels, side), random_images(3, channels, side, 1)
        others = (images.double() * 0.7 + others.double() * 0.3).round().to(torch.uint8)
        expected = np.mean([ssim_by_loops(a, b) for a, b in zip(images.numpy(), others.numpy(), strict=True)])
        assert structural_similarity(images, others) == pytest.approx(expected, rel=1e-9)
        assert structural_similarity(images, images) == pytest.approx(1.0)

    @settings(deadline=None, max_examples=20)
    @given(count=st.integers(2, 9), seed=st.integers(0, 1000))
    def test_spreads_are_means_over_all_pairs(self, count, seed):
        images = random_images(count, 3, 4, seed)
        pairs = [(i, j) for i in range(count) for j in range(count) if i != j]
        errors = [pixel_error(images[i : i + 1], images[j : j + 1]) for i, j in pairs]
        assert pixel_spread(images) == pytest.approx(np.mean(errors), rel=1e-9)
        rows = images.flatten(1).float()
        distances = [feature_distance(rows[i : i + 1], rows[j : j + 1]) for i, j in pairs]
        assert feature_spread(rows) == pytest.approx(np.mean(distances), rel=1e-9)

    def test_more_images_than_a_block(self):
        images = random_images(1203, 1, 4)
        assert pixel_error(images, images.flip(0)) == pytest.approx(
            ((images.double() - images.flip(0).double()) / 255).square().mean().item()
        )
        rows = images.flatten(1).double()
        assert feature_spread(rows) == pytest.approx(torch.nn.functional.pdist(rows).mean().item())
        assert pixel_spread(images) == pytest.approx(2 * (rows / 255).var(dim=0).mean().item())
        shifted = images.roll(1, 0)
        singly = [structural_similarity(images[i : i + 1], shifted[i : i + 1]) for i in range(1203)]
        assert structural_similarity(images, shifted) == pytest.approx(np.mean(singly))

    def test_samples_that_are_all_alike_have_no_scale(self):
        same = random_images(1, 1, 8).expand(3, -1, -1, -1), torch.ones(3, 4)
        found = distances(same, same)
        assert found["feature_distance_relative"] is None
        assert (found["mse"], found["mse_between_samples"], found["feature_distance"]) == (0, 0, 0)

    def test_one_sample_has_no_spread(self):
        for spread, sample in ((pixel_spread, random_images(1, 1, 4)), (feature_spread, torch.zeros(1, 3))):
            with pytest.raises(ValueError, match="at least two of them, got 1"):
                spread(sample)


def ssim_by_loops(a: np.ndarray, b: np.ndarray) -> float:
    """Wang et al. (2004), equation 13, pixel by pixel; (C, H, W) with edges continued by reflection."""
    side, sigma = ssim_window(*a.shape[1:])
    half = side // 2
    line = np.exp(-((np.arange(side) - half) ** 2) / (2 * sigma**2))
    window = np.outer(line, line) / line.sum() ** 2
    c1, c2 = 0.01**2, 0.03**2
    values = []
    for x, y in zip(a / 255, b / 255, strict=True):
        x, y = (np.pad(image, half, mode="reflect") for image in (x, y))
        for row in range(x.shape[0] - 2 * half):
            for column in range(x.shape[1] - 2 * half):
                u, v = (image[row : row + side, column : column + side] for image in (x, y))
                mu, nu = (window * u).sum(), (window * v).sum()
                uu, vv, uv = ((window * product).sum() for product in (u * u, v * v, u * v))
                upper = (2 * mu * nu + c1) * (2 * (uv - mu * nu) + c2)
                values.append(upper / ((mu**2 + nu**2 + c1) * (uu - mu**2 + vv - nu**2 + c2)))
    return float(np.mean(values))


class TestFigure:
    @pytest.mark.parametrize(
        "lines",
        [
            {"a": [(10, 0.5)]},
            {"a": [(5, 0.5), (10, 0.0), (20, None)], "b": [(5, math.nan), (20, 1e-9)]},
            {"a": [(steps, 1 / steps) for steps in range(1, 200)]},
            {"a": []},
        ],
    )
    @pytest.mark.parametrize("log", [True, False])
    def test_whatever_there_is_is_drawn(self, lines, log):
        picture = steps_figure([Panel("value", lines, log=log, level=(0.0, "nothing"))] * 2, "title", "subtitle")
        assert picture.size[0] == 1400 and picture.mode == "RGB"
        assert np.asarray(picture, float).std() > 5
