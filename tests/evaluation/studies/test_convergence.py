"""Convergence of a denoiser that is linear in x, where samples of any number of steps are known in closed form."""

from __future__ import annotations

import csv
import math
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ddim.data import Pixels
from ddim.diffusion import SAMPLERS, NoiseSchedule, NoiseSource
from ddim.diffusion.grid import SamplerConfig, grid_points
from ddim.errors import UserError
from ddim.evaluation.kept.finished import Kept
from ddim.evaluation.studies.convergence import Convergence, ConvergenceConfig, root_mean
from ddim.evaluation.subject import Sampling
from ddim.findings.labels import point_key
from ddim.findings.parts.convergence import PART, closest
from ddim.findings.telling import Strip
from ddim.tracking.keys import EVALUATE, find, wandb_key
from ddim.training.module import DenoisingModule

SHAPE = (1, 8, 8)
SCHEDULE = NoiseSchedule.linear(200, beta_start=5e-4, beta_end=0.1)
LEVELS = SCHEDULE.alpha_bar.tolist()
VARIANCE = 0.1
NOISE = NoiseSource(7)
IDENTITY = {"dataset": "gauss", "weights": "ema", "seed": 7}
COLUMNS = ("rmse", "rmse_standard_error")


class ExactDenoiser(nn.Module):
    """E[ε | x_t] for data from N(0, VARIANCE), in float64. Counts the samples that it has seen."""

    def __init__(self) -> None:
        super().__init__()
        self.dtype_of = nn.Parameter(torch.zeros(1, dtype=torch.float64))
        self.samples = 0

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        self.samples += len(x)
        level = SCHEDULE.alpha_bar[t].reshape(-1, 1, 1, 1)
        return (1 - level).sqrt() * x / (level * VARIANCE + 1 - level)


def gain(timesteps) -> float:
    """What η = 0 makes of a latent of 1: DDIM equation 12 written out for the linear ε."""
    x = 1.0
    for low, high in reversed(list(pairwise([-1, *timesteps]))):
        level, below = LEVELS[high], LEVELS[low] if low >= 0 else 1.0
        eps = math.sqrt(1 - level) * x / (level * VARIANCE + 1 - level)
        x = math.sqrt(below) * (x - math.sqrt(1 - level) * eps) / math.sqrt(level) + math.sqrt(1 - below) * eps
    return x


def expected(timesteps, count: int) -> tuple[float, float]:
    """RMSE and standard error: the latents are only scaled, each sample's error is its own latent's."""
    latents = NOISE.initial(torch.arange(count), SHAPE).double().flatten(1)
    factor = (gain(timesteps) - gain(range(200))) / 2
    errors = (factor * latents).square().mean(dim=1)
    root = errors.mean().sqrt().item()
    return root, errors.std().item() / math.sqrt(count) / (2 * root)


def points_of(steps=(5, 10, 20), etas=0.0, reference: int = 200, **more):
    points = grid_points(SCHEDULE, steps=list(steps), etas=etas, tau=more.pop("tau", "linear"), **more)
    return [*points, *grid_points(SCHEDULE, steps=reference, etas=0.0, tau="linear")]


@pytest.fixture(scope="module")
def run(ask) -> Callable[..., Any]:
    """Run a study of these points in a directory: what it said, and who heard it."""

    def run(directory, points=None, *, batch_size: int = 50, num_images: int = 20, denoiser=None, **more):
        study = Convergence(points or points_of(), num_images=num_images, shown=more.pop("shown", 8))
        module = DenoisingModule(denoiser or ExactDenoiser(), SCHEDULE, optimizer={}).eval()
        return ask(study, module, Sampling(NOISE, Pixels(SHAPE), batch_size), directory, IDENTITY, **more)

    return run


@pytest.fixture(scope="module")
def found(run, tmp_path_factory):
    """Several samplers and spacings in one evaluation, some of which draw noise."""
    summary: dict[str, float] = {}
    logger = SimpleNamespace(log_metrics=lambda values, step: summary.update(values))
    *ddim, reference = points_of((5, 10), [0.0, 1.0], tau=["linear", "trailing"])
    others = [*points_of((5, 10), sampler="deis")[:-1], *points_of((3, 6), sampler="heun")[:-1]]
    directory = tmp_path_factory.mktemp("convergence")
    return run(directory, [*ddim, *others, reference], shown=3, loggers=[logger]), summary


class TestDistances:
    def test_they_are_the_exact_ones_although_pixels_are_no_such_numbers(self, tmp_path, run):
        asked = run(tmp_path, points_of((5, 10, 20, 100)))
        assert [row["steps"] for row in asked.rows] == [5, 10, 20, 100]
        for row in asked.rows:
            rmse, error = expected(row["timesteps"], 20)
            assert row["rmse"] == pytest.approx(rmse, rel=1e-4)
            assert row["rmse_standard_error"] == pytest.approx(error, rel=1e-4)
            assert (row["num_images"], row["reference_steps"], row["draws_noise"]) == (20, 200, False)
            assert row["seconds"] > 0
        # Rounding to 256 values would add a seventh to this one.
        assert 0 < asked.rows[-1]["rmse"] < 1 / 255

    def test_a_higher_order_is_closer_at_as_many_calls(self, tmp_path, run):
        points = [*points_of((10, 20))[:-1], *points_of((10, 20), sampler="deis")]
        rows = {(row["sampler"], row["nfe"]): row["rmse"] for row in run(tmp_path, points).rows}
        assert 1.6 < rows["ddim", 10] / rows["ddim", 20] < 2.6
        for calls in (10, 20):
            assert rows["deis", calls] < rows["ddim", calls] / 1.8

    @pytest.mark.parametrize("name", SAMPLERS)
    def test_every_sampler_can_be_compared_and_says_whether_it_draws_noise(self, tmp_path, run, name):
        (row,) = run(tmp_path, points_of((12,), sampler=name), num_images=3).rows
        assert (row["sampler"], row["draws_noise"]) == (name, name == "restart")
        assert 0 < row["rmse"] < 0.5 and row["nfe"] >= 12

    def test_noise_keeps_samples_away(self, found):
        rows = {(point_key(row)): row for row in found[0].rows}
        for key, row in rows.items():
            assert row["draws_noise"] == (row["eta"] == 1.0)
            if row["draws_noise"]:
                assert row["rmse"] > 1.5 * rows[key.replace("eta1", "eta0")]["rmse"]

    @pytest.mark.parametrize("batch_size", [1, 7])
    def test_batches_do_not_matter(self, tmp_path, run, batch_size):
        points = points_of((5,), [0.0, 1.0])
        (tmp_path / "again").mkdir()
        again, whole = run(tmp_path, points, batch_size=batch_size), run(tmp_path / "again", points)
        for row, other in zip(again.rows, whole.rows, strict=True):
            assert [row[name] for name in COLUMNS] == pytest.approx([other[name] for name in COLUMNS], rel=1e-6)

    @pytest.mark.parametrize(("num_images", "world_size"), [(20, 2), (10, 3), (2, 3)])
    def test_ranks_do_not_matter(self, tmp_path, run, run_on_ranks, num_images, world_size):
        points = points_of((5,), [0.0, 1.0])

        def on(rank: int, world_size: int = world_size):
            folder = tmp_path / f"{rank}-of-{world_size}"
            folder.mkdir()
            more = {"batch_size": 4, "num_images": num_images, "shown": 3}
            return run(folder, points, rank=rank, world_size=world_size, **more)

        alone, everyone = on(0, 1), run_on_ranks(world_size, on)
        for asked in everyone:
            for row, other in zip(asked.rows, alone.rows, strict=True):
                assert [row[name] for name in COLUMNS] == pytest.approx([other[name] for name in COLUMNS], rel=1e-6)
        strips = [asked.pictures(Strip)[0] for asked in (alone, everyone[0])]
        for (label, images), (other_label, others) in zip(*(strip.rows for strip in strips), strict=True):
            assert label == other_label and torch.equal(images, others)
        assert not any(asked.heard.pictures for asked in everyone[1:]), "only the first process draws"

    def test_a_sample_has_its_own_condition(self, subject_of):
        """Number i is sampled with the denoiser that number i asks for, as in the grid."""
        module = DenoisingModule(ExactDenoiser(), SCHEDULE, optimizer={}).eval()
        plain = subject_of(module, Sampling(NOISE, Pixels(SHAPE), 4), IDENTITY)
        asked: list[list[int]] = []

        def bound_to(numbers: Tensor):
            asked.append(numbers.tolist())
            return lambda x, t: plain.denoiser(x, t) * (1 + 0.1 * numbers.reshape(-1, 1, 1, 1))

        study = Convergence(points_of((5,)), num_images=6)
        bar = SimpleNamespace(advance=lambda images: None)
        numbered = replace(plain, bound_to=bound_to, condition_of=lambda numbers: numbers)
        x_0, _ = study._sample(numbered, study.compared[0], None, bar)
        assert asked == [[0, 1, 2, 3], [4, 5]]
        unconditional, _ = study._sample(replace(plain, bound_to=None), study.compared[0], None, bar)
        assert torch.equal(x_0[0], unconditional[0]) and not torch.allclose(x_0[5], unconditional[5], rtol=0.01)


class TestWhatIsKept:
    def test_nothing_that_is_finished_is_sampled_again(self, tmp_path, run):
        network = {"weights_sha256": "a"}
        first = run(tmp_path, kept=Kept(tmp_path, network))
        denoiser = ExactDenoiser()
        again = run(tmp_path, kept=Kept(tmp_path, network), denoiser=denoiser)
        assert again.rows == first.rows and denoiser.samples == 0
        strips = [asked.pictures(Strip)[0].rows for asked in (first, again)]
        assert all(torch.equal(one, other) for (_, one), (_, other) in zip(*strips, strict=True))

    def test_a_further_point_costs_itself_and_the_reference(self, tmp_path, run):
        network = {"weights_sha256": "a"}
        run(tmp_path, kept=Kept(tmp_path, network))
        denoiser = ExactDenoiser()
        asked = run(tmp_path, points_of((5, 7)), kept=Kept(tmp_path, network), denoiser=denoiser)
        assert denoiser.samples == 20 * (7 + 200)
        assert asked.rows[1]["rmse"] == pytest.approx(expected(asked.rows[1]["timesteps"], 20)[0], rel=1e-4)

    def test_another_reference_is_another_distance(self, tmp_path, run):
        network = {"weights_sha256": "a"}
        first = run(tmp_path, kept=Kept(tmp_path, network))
        other = run(tmp_path, points_of(reference=40), kept=Kept(tmp_path, network))
        for row, near in zip(first.rows, other.rows, strict=True):
            assert near["rmse"] != pytest.approx(row["rmse"], rel=0.01) and near["reference_steps"] == 40


class TestWhatIsAsked:
    def test_the_reference_is_ddim_along_all_timesteps_and_the_rest_is_the_samplers(self):
        sampler = SamplerConfig(steps=[5, 10], eta=[0.5, 1.0], tau="karras", name="deis")
        *compared, reference = Convergence.grid(ConvergenceConfig(), sampler, SCHEDULE)
        assert [(point.sampler, point.eta, point.tau, point.steps) for point in compared] == [
            ("deis", 0.0, "karras", 5),
            ("deis", 0.0, "karras", 10),
        ]
        assert reference.timesteps == tuple(range(200)) and (reference.sampler, reference.eta) == ("ddim", 0.0)
        (_, reference) = Convergence.grid(ConvergenceConfig(reference_steps=40), SamplerConfig(steps=5), SCHEDULE)
        assert reference.steps == 40 and not reference.clip_denoised

    def test_a_point_that_is_the_reference_is_not_compared_with_itself(self):
        points = Convergence.grid(ConvergenceConfig(), SamplerConfig(steps=[10, 200]), SCHEDULE)
        assert [point.steps for point in points] == [10, 200]
        with pytest.raises(UserError, match=r"reference_steps=1000 is all that is sampled.* sampler\.steps=5,10"):
            Convergence.grid(ConvergenceConfig(), SamplerConfig(steps=200), SCHEDULE)

    @pytest.mark.parametrize(
        ("name", "value", "sentence"),
        [
            ("num_images", 1, "evaluation.convergence.num_images=1 must be a whole number of at least 2"),
            ("reference_steps", 0, "evaluation.convergence.reference_steps=0 must be a whole number of at least 1"),
            ("shown", 0, "evaluation.convergence.shown=0 must be a whole number of at least 1"),
            ("eta", 2.0, "evaluation.convergence.eta=2.0 must be a number from 0 to 1"),
        ],
    )
    def test_bad_values_are_refused_by_name(self, name, value, sentence):
        settings = ConvergenceConfig(**{name: value})
        with pytest.raises(UserError, match=sentence):
            settings.check("evaluation.convergence")
            Convergence.grid(settings, SamplerConfig(), SCHEDULE)

    @pytest.mark.parametrize(("points", "num_images"), [(points_of((5,)), 1), (points_of((5,))[1:], 10)])
    def test_nothing_to_compare_is_refused(self, points, num_images):
        with pytest.raises(ValueError, match="at least two images of at least one point"):
            Convergence(points, num_images=num_images)


def test_the_standard_error_of_a_root_is_that_of_many_repetitions():
    errors = torch.rand(4000, 50, generator=torch.Generator().manual_seed(0), dtype=torch.float64).square()
    roots = torch.tensor([root_mean(row)[0] for row in errors])
    stated = torch.tensor([root_mean(row)[1] for row in errors])
    assert stated.mean().item() == pytest.approx(roots.std().item(), rel=0.05)
    assert root_mean(torch.zeros(3)) == (0.0, 0.0)


class TestWhatIsLeft:
    def test_files_and_picture(self, found):
        asked, _ = found
        rows = list(csv.DictReader((asked.drawn.directory / "convergence.csv").open()))
        assert [float(row["rmse"]) for row in rows] == [row["rmse"] for row in asked.rows]
        assert [path.name for path in asked.paths] == ["convergence-images.png", "convergence-error.png"]
        (strip,) = asked.pictures(Strip)
        assert strip.breaks == [1, 3, 5, 7, 9, 11] and len(strip.rows) == 13
        (label, images), *_ = strip.rows
        latents = NOISE.initial(torch.arange(3), SHAPE).double()
        exact = (gain(range(200)) * latents).clamp(-1, 1).add(1).mul(127.5).round()
        assert label == "ddim   200 calls" and (images.double() - exact).abs().max() <= 1

    def test_every_row_is_in_the_table_and_the_closest_are_marked(self, found):
        asked, _ = found
        words = asked.words()
        lines = [line.split() for line in words.splitlines()]
        assert "Convergence of 20 samples" in words and "S = 200 from the same x_T" in words
        best = closest(asked.rows)
        # Heun's 3 and 6 steps are 5 and 11 calls; those that draw noise are not asked.
        assert [row["nfe"] for row in best] == [5, 10]
        for row in asked.rows:
            mark = "*" if row in best else ""
            cells = [line for line in lines if line[-5:-3] == [str(row["steps"]), str(row["nfe"])]]
            assert any(line[-3].startswith(mark) and float(line[-3].strip("*")) == pytest.approx(row["rmse"], rel=6e-3)
                       for line in cells)  # fmt: skip
        assert words.count("*") == 3 and "* closest of its number of calls" in words
        assert "eta = 1, tau linear; ddim, eta = 1, tau trailing: draws noise" in words
        assert "deis, tau linear" in words and "heun, tau linear" in words

    def test_what_draws_noise_is_no_candidate(self, found):
        first, other, *_ = (row for row in found[0].rows if row["nfe"] == 5)
        near = {**other, "rmse": first["rmse"] / 2, "draws_noise": False}
        assert closest([first, near]) == [near] and closest([first, {**near, "draws_noise": True}]) == []

    def test_one_line_against_the_calls_for_each_sampler(self, found):
        asked, _ = found
        (chart,) = PART.charts(asked.rows)
        assert chart.columns == ("nfe", "RMSE", "sampler")
        lines = dict.fromkeys(line for _, _, line in chart.rows)
        assert len(lines) == 6 and "heun, τ linear" in lines
        assert [x for x, _, line in chart.rows if line.startswith("heun")] == [5, 11]
        assert (PART.lines[0].x[0], PART.lines[0].x_log, PART.lines[0].y_log) == ("nfe", True, True)

    def test_summary_and_curves_have_the_keys_of_the_list(self, found):
        asked, summary = found
        assert summary == {f"convergence/rmse/{point_key(row)}": row["rmse"] for row in asked.rows}
        assert summary["convergence/rmse/heun/eta0.000/linear/steps0003"] > 0
        for row in asked.rows:
            ((key, value),) = PART.curves(row).items()
            assert value == row["rmse"] and find(wandb_key(key), EVALUATE).name == "convergence/rmse/<sampler>/<tau>"
        for key in summary:
            entry = find(wandb_key(key), EVALUATE, ["summary"])
            assert entry.name == "convergence/rmse/<sampler>/<tau>/<steps>"
