"""Does a generator copy, is it diverse: the numbers on generators whose answer is known, and what is shown."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor, nn

from ddim.data import Pixels
from ddim.diffusion import NoiseSchedule, NoiseSource
from ddim.diffusion.grid import grid_points
from ddim.errors import UserError
from ddim.evaluation.settings import evaluation_schema
from ddim.evaluation.studies.diversity import Diversity, collect
from ddim.evaluation.subject import Sampling, Subject
from ddim.findings.telling import Strip
from ddim.metrics import build_extractor, load_published_statistics, reference_statistics
from ddim.metrics.copying import COPY_RATE, copy_threshold, spread, summarise
from ddim.metrics.measure import Measure
from ddim.training.module import DenoisingModule

SCHEDULE = NoiseSchedule.linear(1000)
SHAPE = (1, 8, 8)
POINTS = grid_points(SCHEDULE, steps=2, etas=[0.0, 1.0], tau="linear")


def real_images(count: int, seed: int) -> Tensor:
    """Smooth images with six degrees of freedom: near neighbours differ much in how near they are."""
    generator = torch.Generator().manual_seed(seed)
    waves = torch.randn(6, 64, generator=torch.Generator().manual_seed(99))
    pixels = 128 + 25 * torch.randn(count, 6, generator=generator) @ waves
    return pixels.round().clamp(0, 255).to(torch.uint8).reshape(count, *SHAPE)


TRAINING, HELD_OUT = real_images(600, seed=0), real_images(500, seed=1)


def extractor():
    return build_extractor("pixels", channels=1, resolution=8, weights_dir=Path())


def statistics(directory: Path, images: Tensor, **more):
    return reference_statistics(extractor(), lambda: images.split(64), {"count": len(images)}, directory, **more)


def study(directory: Path, num_samples: int = 500, max_features: int = 50_000) -> Diversity:
    caches = [directory.parent / name for name in ("training", "held_out")]
    reference = statistics(caches[0], TRAINING, max_features=max_features)
    return Diversity(
        POINTS,
        measure=Measure(extractor(), reference, (), split="train"),
        held_out=statistics(caches[1], HELD_OUT),
        reference_images=lambda: TRAINING.split(50),
        num_samples=num_samples,
        shown=4,
    )


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    (tmp_path / "run").mkdir()
    return tmp_path / "run"


@pytest.fixture
def measured(ask, monkeypatch) -> Callable[..., Any]:
    """Run a study of a generator that gives these images, of all points or of each, instead of sampling them.

    It stands in for a network whose behaviour is known.
    """

    def measured(directory: Path, *images: Tensor, num_samples=None, batch_size=128, max_features=50_000, **trainer):
        drawn = dict(zip(POINTS, images * 2 if len(images) == 1 else images, strict=True))
        monkeypatch.setattr(Subject, "draw", lambda subject, point, indices: drawn[point][indices])
        return ask(
            study(directory, num_samples or len(images[0]), max_features),
            DenoisingModule(nn.Linear(1, 1), SCHEDULE, optimizer={}),
            Sampling(NoiseSource(0), Pixels(SHAPE), batch_size),
            directory,
            {"dataset": "some", "seed": 0},
            **trainer,
        )

    return measured


class TestCopying:
    def test_a_generator_that_copies_is_found_out_beside_one_that_does_not(self, directory, measured):
        copies, honest = TRAINING[torch.arange(1000) % 600], real_images(1000, seed=2)
        copying, fresh = measured(directory, copies, honest).rows
        assert copying["copy_ratio"] == 1 and copying["nearest_median"] == 0
        # Binomial around 1%: of 1,000 samples, and of the 500 images whose distances make the threshold.
        assert fresh["copy_ratio"] < 4 * COPY_RATE
        assert 0 < copying["copy_threshold"] == fresh["copy_threshold"] < fresh["nearest_median"]

    def test_nearly_copied_is_copied_and_half_is_half(self, directory, measured):
        noise = torch.randint(-2, 3, TRAINING.shape, generator=torch.Generator().manual_seed(3))
        nearly = (TRAINING.int() + noise).clamp(0, 255).to(torch.uint8)
        half = torch.cat([TRAINING[:300], real_images(300, seed=4)])
        first, second = measured(directory, nearly, half).rows
        assert first["copy_ratio"] > 0.95 and first["nearest_median"] > 0
        assert second["copy_ratio"] == pytest.approx(0.5, abs=0.03)

    def test_the_held_out_images_themselves_have_the_nominal_rate(self, directory, measured):
        asked = measured(directory, HELD_OUT)
        real, row = asked.say.extra["held_out"], asked.rows[0]
        assert real["copy_ratio"] == row["copy_ratio"] == COPY_RATE
        for key in ("precision", "recall", "relative_spread", "nearest_median", "nearest_smallest"):
            assert real[key] == pytest.approx(row[key], rel=1e-6)

    def test_duplicates_between_the_splits_do_not_hide_exact_copies(self):
        threshold = copy_threshold(torch.tensor([0.0, 0.0, *torch.linspace(1, 2, 48).tolist()]))
        assert threshold == 0
        assert summarise(torch.zeros(10), threshold)["copy_ratio"] == 1
        assert summarise(torch.tensor([0.0, 1.0]), threshold)["copy_ratio"] == 0.5

    def test_the_numbers_of_known_distances(self):
        distances = torch.arange(101.0)[torch.randperm(101, generator=torch.Generator().manual_seed(0))]
        assert copy_threshold(distances) == pytest.approx(1)
        assert summarise(distances + 0.5, 10.5) == pytest.approx(
            {
                "nearest_median": 50.5,
                "nearest_percentile_1": 1.5,
                "nearest_smallest": 0.5,
                "copy_threshold": 10.5,
                "copy_ratio": 11 / 101,
            }
        )


class TestDiversity:
    def test_a_generator_of_one_image_has_neither_spread_nor_recall(self, directory, measured):
        one_image = real_images(1, seed=5).expand(300, *SHAPE)
        collapsed, fresh = measured(directory, one_image, real_images(300, seed=6)).rows
        assert collapsed["relative_spread"] == 0 and collapsed["recall"] == 0
        assert fresh["relative_spread"] == pytest.approx(1, abs=0.1) and fresh["recall"] > 0.5

    def test_half_the_contrast_is_half_the_spread(self, directory, measured):
        samples = HELD_OUT.double()
        flat = (samples.mean(dim=0) + (samples - samples.mean(dim=0)) / 2).round().to(torch.uint8)
        full, half = measured(directory, HELD_OUT, flat).rows
        assert half["relative_spread"] == pytest.approx(full["relative_spread"] / 2, rel=0.01)

    @settings(deadline=None, max_examples=20)
    @given(count=st.integers(2, 30), dim=st.integers(1, 5), seed=st.integers(0, 1000))
    def test_spread_is_the_root_mean_square_of_all_pairs(self, count, dim, seed):
        features = torch.randn(count, dim, generator=torch.Generator().manual_seed(seed)).double()
        pairs = [(a - b).square().sum() for i, a in enumerate(features) for b in features[:i]]
        assert spread(features) == pytest.approx(math.sqrt(sum(pairs) / len(pairs)), rel=1e-9)


class TestNeighbours:
    @pytest.mark.parametrize("max_features", [50_000, 90])
    def test_shown_are_the_nearest_samples_with_their_training_images(self, directory, measured, max_features):
        """Also where only a random part of the training features is kept: the pixels are those of the features."""
        samples = real_images(200, seed=7)
        asked = measured(directory, samples, max_features=max_features)
        kept = asked.study.measure.reference.indices
        assert len(kept) == min(600, max_features)
        distances = torch.cdist(samples.flatten(1).double(), TRAINING[kept].flatten(1).double()) / 255
        order = distances.min(dim=1).values.argsort()[:4]
        strip = asked.pictures(Strip)[0]
        assert [label for label, _ in strip.rows] == ["sample", "training, nearest", "training, 2nd", "training, 3rd"]
        assert "training image" in strip.title and "η = 0" in strip.title
        assert torch.equal(strip.rows[0][1], samples[order])
        nearest = distances[order].topk(3, largest=False)
        for place in range(3):
            assert torch.equal(strip.rows[1 + place][1], TRAINING[kept[nearest.indices[:, place]]])
        assert [float(text) for text in strip.columns] == pytest.approx(nearest.values[:, 0].tolist(), rel=0.01)
        listed = json.loads((directory / "diversity.json").read_text())["extra"]["nearest_samples"]
        first = listed["eta0.000/linear/steps0002"]
        assert first["samples"] == order.tolist()
        assert first["neighbours"] == kept[nearest.indices].tolist()
        assert torch.tensor(first["distances"]) == pytest.approx(nearest.values.float(), rel=1e-4)

    @settings(deadline=None, max_examples=40)
    @given(
        total=st.integers(1, 60),
        batch_size=st.integers(1, 61),
        wanted=st.lists(st.integers(0, 59), min_size=1, max_size=20),
    )
    def test_images_are_found_in_a_stream(self, total, batch_size, wanted):
        stream = torch.arange(total).reshape(total, 1, 1, 1).split(batch_size)
        if max(wanted) >= total:
            with pytest.raises(ValueError, match=f"only {total}"):
                collect(stream, torch.tensor(wanted))
        else:
            found = collect(stream, torch.tensor(wanted))
            assert {position: image.item() for position, image in found.items()} == {i: i for i in wanted}

    def test_a_stream_is_read_no_further_than_needed(self):
        read = []

        def stream():
            for number in range(10):
                read.append(number)
                yield torch.zeros(5, 1, 1, 1)

        collect(stream(), torch.tensor([12, 3]))
        assert read == [0, 1, 2]


class TestStudy:
    def test_rows_say_what_they_were_measured_with(self, directory, measured):
        made = measured(directory, real_images(100, seed=8)).study
        assert {path.name for path in directory.iterdir()} == {
            "diversity.csv",
            "diversity.json",
            "diversity-neighbours-eta0.000.png",
            "diversity-neighbours-eta1.000.png",
        }
        rows = list(csv.DictReader((directory / "diversity.csv").open()))
        assert [row["eta"] for row in rows] == ["0.0", "1.0"]
        for row in rows:
            assert (row["num_samples"], row["features"], row["reference_split"]) == ("100", "pixels", "train")
            assert (row["reference"], row["held_out"]) == (made.measure.reference.digest, made.held_out_digest)
            assert row["reference_images"] == "600"
        with Image.open(directory / "diversity-neighbours-eta0.000.png") as picture:
            assert picture.size[0] > 300

    @pytest.mark.parametrize("batch_size", [1, 33])
    def test_numbers_do_not_depend_on_the_batch_size(self, directory, measured, batch_size):
        samples = real_images(100, seed=9)
        expected = measured(directory, samples).rows
        rows = measured(directory, samples, batch_size=batch_size).rows
        for mine, theirs in zip(rows, expected, strict=True):
            mine, theirs = dict(mine), dict(theirs)
            del mine["timesteps"], theirs["timesteps"]
            assert mine == pytest.approx(theirs)

    def test_only_the_first_process_writes(self, tmp_path, measured, run_on_ranks):
        folders = [tmp_path / "first", tmp_path / "second"]
        for folder in folders:
            folder.mkdir()
        first, second = run_on_ranks(
            2, lambda rank: measured(folders[rank], HELD_OUT, num_samples=50, rank=rank, world_size=2)
        )
        assert (folders[0] / "diversity.csv").is_file() and not list(folders[1].iterdir())
        assert len(second.rows) == 2 and second.rows == first.rows

    def test_few_samples(self, directory, measured):
        """Too few for precision and recall: those are left empty."""
        rows = measured(directory, real_images(2, seed=10)).rows
        assert rows[0]["precision"] is None and rows[0]["recall"] is None and rows[0]["nearest_median"] > 0


def test_published_statistics_are_refused_before_any_work(tmp_path):
    path = tmp_path / "published.npz"
    np.savez(path, mu=np.zeros(64), sigma=np.eye(64))
    with pytest.raises(UserError, match=r"evaluation.reference=.*published.npz .* evaluation=diversity"):
        evaluation_schema()(parts=["grid", "diversity"], reference=str(path)).check()
    evaluation_schema()(parts=["grid"], reference=str(path)).check()
    published = load_published_statistics(path, 64)
    with pytest.raises(ValueError, match="needs the features"):
        Diversity(
            POINTS,
            measure=Measure(extractor(), published, ()),
            held_out=published,
            reference_images=lambda: (),
            num_samples=2,
            shown=1,
        )
