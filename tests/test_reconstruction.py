"""Encoding and decoding a Gaussian, whose exact ε is known: the study must find the error that paper and pencil do."""

from __future__ import annotations

import csv
import io
import json
import math
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from PIL import Image
from torch import Tensor, nn

from ddim.diffusion import NoiseSchedule, NoiseSource, encode, sample
from ddim.diffusion.grid import SamplerConfig, grid_points
from ddim.display.terminal import Terminal
from ddim.evaluation.sampling import Sampling
from ddim.evaluation.settings import EvaluationConfig, plan
from ddim.evaluation.studies.reconstruction import Reconstruction
from ddim.evaluation.study import Study
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


def study_of(directory, images: Tensor, *, points=None, batch_size: int = 10, **more) -> Reconstruction:
    return Reconstruction(
        points_of() if points is None else points,
        Sampling(NoiseSource(0), SHAPE, batch_size),
        directory,
        {"dataset": "gauss", "weights": "ema", "seed": 0},
        images=lambda batch_size: iter(images.split(batch_size)),
        num_images=len(images),
        show_progress=False,
        **more,
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


@pytest.mark.parametrize("tau", ["linear", "quadratic"])
def test_the_error_is_the_exact_one_and_calls_are_counted(tmp_path, tau):
    images, module = pixels(23), module_of()
    study = study_of(tmp_path, images, points=points_of(tau=tau))
    study.run(trainer_of(), module)
    rows = study.records()
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
    evaluation = EvaluationConfig(parts=["reconstruction"])
    (points,) = plan(SamplerConfig(eta=[0.5, 1.0], clip_denoised=True), evaluation, SCHEDULE).values()
    assert [(point.eta, point.clip_denoised) for point in points] == [(0.0, False)] * 4


@pytest.mark.parametrize("change", [{"eta": 0.5}, {"clip_denoised": True}, {"eta": 1.0, "variance": "sigma_hat"}])
def test_a_point_that_is_no_inverse_of_encoding_is_refused(tmp_path, change):
    with pytest.raises(ValueError, match="eta=0 and clip_denoised=False"):
        study_of(tmp_path, pixels(2), points=[replace(points_of()[0], **change)])


@pytest.mark.parametrize("batch_size", [1, 7, 23, 64])
def test_the_error_does_not_depend_on_the_batch_size(tmp_path, batch_size):
    images = pixels(23)
    study = study_of(tmp_path, images, points=points_of(5), batch_size=batch_size)
    study.run(trainer_of(), module_of())
    (row,) = study.records()
    assert row["mse_per_dimension"] == pytest.approx(exact_error(images, list(row["timesteps"])), rel=1e-6)


@pytest.mark.parametrize(("count", "world_size"), [(23, 2), (10, 3), (7, 4), (2, 4), (5, 5)])
def test_ranks_together_reconstruct_each_image_once(tmp_path, monkeypatch, count, world_size):
    images, shown = pixels(count), {}
    seen: list[int] = []
    original = Reconstruction._round_trip

    def counted(self, *args):
        trip = original(self, *args)
        seen.extend(trip.numbers.tolist())
        return trip

    monkeypatch.setattr(Reconstruction, "_round_trip", counted)

    def run(rank: int) -> Study:
        study = study_of(tmp_path / str(rank), images, points=points_of(5), batch_size=2, shown=4)
        (tmp_path / str(rank)).mkdir()
        study._show_all = lambda trainer, pictures: shown.update({rank: pictures})
        study.run(trainer_of(rank, world_size), module_of())
        return study

    studies = run_on_ranks(monkeypatch, world_size, run)
    assert sorted(seen) == list(range(count))
    exact = exact_error(images, list(points_of(5)[0].timesteps))
    for study in studies:
        assert study.records()[0]["mse_per_dimension"] == pytest.approx(exact, rel=1e-6)
    assert list(shown) == [0], "only the first process draws"
    assert [path.name for path in tmp_path.iterdir() if any(path.iterdir())] == ["0"], "only the first process writes"
    (reconstructed,) = shown[0].values()
    tau = list(points_of(5)[0].timesteps)
    expected = round_trip(images[:4].double() / 127.5 - 1, tau).clamp(-1, 1).add(1).mul(127.5).round()
    assert reconstructed.shape == (min(4, count), *SHAPE)
    assert (reconstructed.double() - expected).abs().max() <= 1


def test_a_missing_image_is_noticed(tmp_path):
    study = study_of(tmp_path, pixels(5))
    study.num_images = 6
    with pytest.raises(RuntimeError, match="5 images were reconstructed where 6"):
        study.run(trainer_of(), module_of())


class TestWhatIsLeft:
    @pytest.fixture
    def found(self, tmp_path):
        summary: dict[str, float] = {}
        logger = SimpleNamespace(log_metrics=lambda values, step: summary.update(values))
        study = study_of(tmp_path, pixels(23), shown=5, context={"versions": {"torch": "x"}})
        study.run(trainer_of(loggers=[logger]), module_of())
        return tmp_path, study, summary

    def test_files(self, found):
        directory, study, _ = found
        rows = list(csv.DictReader((directory / "reconstruction.csv").open()))
        document = json.loads((directory / "reconstruction.json").read_text())
        assert [float(row["mse_per_dimension"]) for row in rows] == [r["mse_per_dimension"] for r in study.records()]
        assert [row["encode_nfe"] for row in rows] == ["5", "10", "20", "50"]
        assert rows[0]["timesteps"] == "0 200 400 600 800"
        assert document["extra"] == {"versions": {"torch": "x"}} and len(document["rows"]) == 4

    def test_summary(self, found):
        _, study, summary = found
        assert summary == {
            f"reconstruction/mse/linear/steps{row['steps']:04d}": row["mse_per_dimension"] for row in study.records()
        }

    def test_pictures_have_content(self, found):
        _, study, _ = found
        assert [path.name for path in study.pictures] == ["reconstruction-images.png", "reconstruction-error.png"]
        for path in study.pictures:
            array = np.asarray(Image.open(path).convert("L"), float)
            assert array.shape[1] >= 640 and array.std() > 10

    def test_table(self, found):
        _, study, _ = found
        file = io.StringIO()
        study.report(Terminal(file))
        lines = [line.split() for line in file.getvalue().splitlines()]
        for row in study.records():
            (line,) = [line for line in lines if line[:2] == [str(row["steps"]), str(2 * row["steps"])]]
            assert float(line[2]) == pytest.approx(row["mse_per_dimension"], rel=6e-3)
        assert "Reconstruction of 23 test images" in file.getvalue()


def test_two_spacings_have_pictures_and_lines_of_their_own(tmp_path):
    study = study_of(tmp_path, pixels(3), points=points_of([3, 5], ["linear", "quadratic"]))
    study.run(trainer_of(), module_of())
    names = {path.name for path in study.pictures}
    assert names == {
        "reconstruction-images-linear.png",
        "reconstruction-images-quadratic.png",
        "reconstruction-error.png",
    }
    file = io.StringIO()
    study.report(Terminal(file))
    assert "quadratic" in file.getvalue() and study.plan() == "reconstruction of 3 test images with S = 3, 5"
