"""The grid with deviations, seeds and several samplers: what rows say, and what is remembered under which name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ddim.data import Pixels
from ddim.diffusion import NoiseSchedule, NoiseSource
from ddim.diffusion.grid import GridPoint, SamplerConfig
from ddim.display import presenter
from ddim.display.progress import GridProgress
from ddim.evaluation.kept.checked_file import read_checked
from ddim.evaluation.kept.finished import Kept
from ddim.evaluation.studies.grid import EvaluationGrid
from ddim.evaluation.subject import Sampling
from ddim.findings.files import read_results
from ddim.findings.rows import GridResult
from ddim.findings.telling import Sheet
from ddim.metrics import reference_statistics
from ddim.metrics.measure import Measure
from ddim.training.module import DenoisingModule

SHAPE = (1, 8, 8)
SCHEDULE = NoiseSchedule.linear(100)
NETWORK = {"weights_sha256": "a" * 64}
N = 30
LATER = {"frechet_distance_sd", "frechet_distance_unbiased", "leave_one_out", "kid_mean_sd", "difference", "as_good"}


class ExactDenoiser(nn.Module):
    """E[ε | x_t] for data from N(0.2, 0.1), sample by sample, so that no rounding depends on the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.dtype_of = nn.Parameter(torch.zeros(1, dtype=torch.float64))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        level = SCHEDULE.alpha_bar[t].reshape(-1, 1, 1, 1)
        return (1 - level).sqrt() * (x - 0.2 * level.sqrt()) / (level * 0.1 + 1 - level)


def points_of(**settings: Any) -> list[GridPoint]:
    return SamplerConfig(**{"eta": 0.0, "steps": [2, 3], **settings}).points(SCHEDULE)


@dataclass
class Grids:
    """Evaluations in one directory, as somebody starts them one after the other."""

    directory: Path
    ask: Callable[..., Any]
    extractor_of: Callable[[], Any]
    images: Tensor = field(
        default_factory=lambda: torch.randint(
            0, 256, (64, *SHAPE), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
        )
    )

    def run(self, points: list[GridPoint], *, seed: int = 0, fails_at: int = 10**9, **more: Any) -> tuple[Any, int]:
        """What was asked, and how many samples were made now."""
        extractor = self.extractor_of()
        reference = reference_statistics(extractor, lambda: [self.images], {"of": "noise"}, self.directory / "cache")
        extractor.seen, extractor.fails_at = 0, fails_at
        of_grid = {key: more.pop(key) for key in ("seeds", "uncertainty") if key in more}
        measure = Measure(extractor, reference, more.pop("metrics", ("frechet_distance", "kid")))
        num_samples = more.pop("num_samples", N)
        grid = EvaluationGrid(points, measure=measure, num_samples=num_samples, keep_images=2, **of_grid)
        asked = self.ask(
            grid,
            DenoisingModule(ExactDenoiser(), SCHEDULE, optimizer={}).eval(),
            Sampling(NoiseSource(seed), Pixels(SHAPE), 10),
            self.directory,
            {"dataset": "noise", "checkpoint": "a.ckpt", "weights": "ema", "seed": seed},
            kept=Kept(self.directory, NETWORK, 0.0),
            interruptible=True,
            **more,
        )
        return asked, extractor.seen

    @property
    def files(self) -> set[str]:
        return {path.name for path in (self.directory / "finished").glob("*")}


@pytest.fixture
def grids(tmp_path: Path, ask, extractor_of, monkeypatch) -> Callable[[str], Grids]:
    """`grids(name)`: evaluations in a directory of that name. Nothing is drawn."""
    from PIL import Image

    monkeypatch.setattr(presenter, "draw", lambda picture: Image.new("L", (2, 2)))

    def make(name: str = "e") -> Grids:
        (tmp_path / name).mkdir()
        return Grids(tmp_path / name, ask, extractor_of)

    return make


def numbers(asked: Any) -> list[dict[str, Any]]:
    """Rows without what differs from one attempt to the next."""
    return [
        {key: value for key, value in row.items() if key not in ("seconds", "images_per_second", "device")}
        for row in asked.rows
    ]


class TestDeviations:
    def test_every_distance_comes_with_its_deviation(self, grids):
        asked, _ = grids().run(points_of(eta=[0.0, 1.0]))
        for row in map(lambda row: GridResult(**row), asked.rows):
            assert row.frechet_distance_sd > 0 and row.kid_mean_sd > 0
            assert row.frechet_distance_unbiased < row.frechet_distance
            assert [len(one) for one in row.leave_one_out] == [11] and row.leave_one_out[0][0] == row.frechet_distance
            assert (row.seeds, row.recall_sd) == (None, None)
        by_steps = {steps: [row["difference"] for row in asked.rows if row["steps"] == steps] for steps in (2, 3)}
        assert all(0 in gaps and max(gaps) > 0 for gaps in by_steps.values())
        assert all(row["as_good"] for row in asked.rows if row["difference"] == 0)

    def test_without_uncertainty_there_are_none_and_numbers_are_the_same(self, grids):
        with_sd, _ = grids("with").run(points_of(eta=[0.0, 1.0]))
        without, _ = grids("without").run(points_of(eta=[0.0, 1.0]), uncertainty=False)
        assert all(LATER.isdisjoint(row) for row in without.rows)
        assert [row["frechet_distance"] for row in without.rows] == [row["frechet_distance"] for row in with_sd.rows]
        header = (without.drawn.directory / "results.csv").read_text().splitlines()[0]
        assert "_sd" not in header and "difference" not in header

    def test_the_file_and_the_words_have_what_is_only_known_in_the_end(self, grids):
        asked, _ = grids().run(points_of(name=["ddim", "deis"], steps=3))
        rows = read_results(asked.drawn.directory).rows
        assert [row.as_good for row in rows] == [row["as_good"] for row in asked.rows]
        assert None not in [row.difference_sd for row in rows]
        assert "deis" in asked.words() and "+-" in asked.words()

    def test_fewer_images_than_blocks_have_no_deviation(self, grids):
        asked, _ = grids().run(points_of(eta=[0.0, 1.0]), metrics=("frechet_distance",), num_samples=5)
        assert all(LATER.isdisjoint(row) for row in asked.rows)

    def test_a_sheet_of_several_samplers_has_a_row_for_each_and_network_calls_across(self, grids):
        asked, _ = grids().run(points_of(name=["ddim", "heun"], nfe=[2, 3]))
        (sheet,) = asked.pictures(Sheet)
        assert sheet.column == "nfe"
        assert list(sheet.images) == [("ddim", 2), ("ddim", 3), ("heun", 2), ("heun", 3)]


class TestSeeds:
    def test_a_row_has_the_mean_of_evaluations_with_each_seed(self, grids):
        points = points_of(eta=[0.0, 1.0])
        alone = [grids(f"seed{seed}").run(points, seed=seed)[0].rows for seed in (0, 1, 2)]
        asked, seen = grids("all").run(points, seeds=[0, 1, 2])
        assert seen == 3 * len(points) * N
        for number, row in enumerate(asked.rows):
            distances = torch.tensor([rows[number]["frechet_distance"] for rows in alone], dtype=torch.float64)
            assert row["frechet_distance"] == pytest.approx(distances.mean().item())
            assert row["frechet_distance_sd"] == pytest.approx(distances.std().item())
            assert row["frechet_distance_unbiased"] == pytest.approx(
                sum(rows[number]["frechet_distance_unbiased"] for rows in alone) / 3
            )
            assert [list(one) for one in row["leave_one_out"]] == [
                list(one) for rows in alone for one in rows[number]["leave_one_out"]
            ]
            assert (row["seeds"], row["seed"]) == ([0, 1, 2], 0) and row["difference_sd"] >= 0

    def test_a_point_of_one_seed_is_remembered_as_that_of_an_evaluation_with_it(self, grids):
        alone, several = grids("alone"), grids("several")
        alone.run(points_of(), seed=1)
        several.run(points_of(), seeds=[0, 1, 2])
        assert len(alone.files) == 2 and len(several.files) == 6 and alone.files < several.files

    def test_what_one_seed_has_measured_another_evaluation_takes_up(self, grids):
        here = grids()
        here.run(points_of(), seed=1)
        asked, seen = here.run(points_of(), seeds=[0, 1])
        assert seen == 2 * N, "seed 1 is finished"
        again, seen = here.run(points_of(), seed=0)
        assert seen == 0 and again.rows[0]["seed"] == 0 and "seeds" not in again.rows[0]
        fresh, _ = grids("fresh").run(points_of(), seeds=[0, 1])
        assert numbers(asked) == numbers(fresh)
        only, seen = here.run(points_of(), seeds=[1])
        assert seen == 0 and only.rows[0]["seed"] == 1 and "seeds" not in only.rows[0]

    def test_killed_between_and_within_seeds_it_goes_on(self, grids):
        whole, total = grids("whole").run(points_of(), seeds=[0, 1, 2])
        here, made = grids("cut"), 0
        # After the first seed; within the second; in the second point.
        for fails_at in (N, 15, 2 * N + 5, 10**9):
            asked, seen = here.run(points_of(), seeds=[0, 1, 2], fails_at=fails_at)
            made += seen
        assert numbers(asked) == numbers(whole)
        assert made == total == 6 * N, "no sample twice"
        assert not list((here.directory / "partial").iterdir())
        said, seen = here.run(points_of(), seeds=[0, 1, 2])
        assert seen == 0 and numbers(said) == numbers(whole)

    def test_an_unfinished_point_is_no_row(self, grids):
        here = grids()
        asked, _ = here.run(points_of(), seeds=[0, 1], fails_at=N + 5)
        assert asked.rows == [] and len(here.files) == 1

    def test_two_ranks_give_the_same_rows(self, grids, run_on_ranks):
        points = points_of(name=["ddim", "deis"])
        alone, _ = grids("alone").run(points, seeds=[0, 1])
        here = grids("both")
        both = run_on_ranks(2, lambda rank: here.run(points, seeds=[0, 1], rank=rank, world_size=2)[0])
        assert numbers(both[0]) == numbers(both[1])
        assert numbers(both[0]) == numbers(alone)
        again = run_on_ranks(2, lambda rank: here.run(points, seeds=[0, 1], rank=rank, world_size=2)[1])
        assert again == [0, 0]

    def test_the_bar_counts_the_images_of_all_seeds(self, grids, monkeypatch):
        heard: list[Any] = []

        class Heard(GridProgress):
            def start_point(self, name: str, num_samples: int) -> None:
                heard.append((name, num_samples))
                super().start_point(name, num_samples)

            def __exit__(self, *error: object) -> None:
                heard.append((round(self.sampled, 6), self.total, self.done))

        run = EvaluationGrid.run
        with_bar = lambda costs: Heard(costs, enabled=False)  # noqa: E731
        monkeypatch.setattr(EvaluationGrid, "run", lambda self, *known: run(self, *known[:-1], with_bar))
        grids().run(points_of(name=["ddim", "deis"], steps=3), seeds=[0, 1])
        assert heard == [("eta 0 S 3", 2 * N), ("deis eta 0 S 3", 2 * N), (6.0, 6.0, 2)]


class TestEarlierVersions:
    def test_points_without_deviations_are_recalled_and_shown_without_bars(self, grids):
        here = grids()
        _, seen = here.run(points_of(eta=[0.0, 1.0]), uncertainty=False)
        asked, again = here.run(points_of(eta=[0.0, 1.0]))
        assert (seen, again) == (4 * N, 0)
        assert all(LATER.isdisjoint(row) for row in asked.rows) and "+-" not in asked.words()

    def test_beside_new_ones_nothing_is_compared_with_them(self, grids):
        here = grids()
        here.run(points_of(steps=3), uncertainty=False)
        asked, seen = here.run(points_of(eta=[0.0, 1.0], steps=3))
        old, new = asked.rows
        assert seen == N and "frechet_distance_sd" in new
        assert LATER.isdisjoint(old) and "difference" not in new and "as_good" not in new

    def test_one_seed_without_them_leaves_the_differences_out_and_not_the_deviation(self, grids):
        here = grids()
        here.run(points_of(eta=[0.0, 1.0], steps=3), seed=1, uncertainty=False)
        asked, seen = here.run(points_of(eta=[0.0, 1.0], steps=3), seeds=[0, 1, 2])
        assert seen == 4 * N
        for row in asked.rows:
            assert row["frechet_distance_sd"] > 0 and {"difference", "leave_one_out"}.isdisjoint(row)

    def test_what_a_point_depends_on_is_what_it_was_without_limits_options_and_seeds(self, grids):
        """The files of finished points go by its hash."""
        here = grids()
        here.run(points_of(name="ddim", nfe=3, options={"eta_schedule": "constant"}), seeds=[4, 5])
        asked = [read_checked(here.directory / "finished" / name)[1]["depends_on"] for name in sorted(here.files)]
        for known in asked:
            assert known["point"] == {
                **{"steps": 3, "eta": 0.0, "variance": "eta", "tau": "linear", "timesteps": [0, 33, 66]},
                "clip_denoised": False,
            }
            assert set(known) == {
                *("format", "weights_sha256", "schedule", "sampler", "point", "seed", "shape", "compute_precision"),
                *("num_samples", "extractor", "reference", "reference_split", "metrics"),
            }
        assert {known["seed"] for known in asked} == {4, 5}


class TestLimits:
    def test_the_limit_in_a_recalled_row_is_the_one_that_is_asked_for_now(self, grids):
        here = grids()
        first, _ = here.run(points_of(name="heun", nfe=4))
        assert [(row["steps"], row["nfe"], row["nfe_limit"]) for row in first.rows] == [(2, 3, 4)]
        for settings, limit in (({"nfe": 3}, 3), ({"steps": 2}, None), ({"nfe": 4}, 4)):
            asked, seen = here.run(points_of(name="heun", **settings))
            assert seen == 0 and [row.get("nfe_limit") for row in asked.rows] == [limit]
            assert [row.nfe_limit for row in read_results(here.directory).rows] == [limit]
