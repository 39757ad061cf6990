"""What is finished is recognised by what it depends on, and not done again."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from ddim.data import Pixels
from ddim.diffusion import NoiseSchedule, NoiseSource
from ddim.diffusion.grid import grid_points
from ddim.evaluation.kept.finished import Finished, Kept
from ddim.evaluation.sampling import generate
from ddim.evaluation.studies import grid as evaluation
from ddim.evaluation.studies.grid import EvaluationGrid
from ddim.evaluation.subject import Sampling
from ddim.findings.files import read_results
from ddim.findings.parts.grid import results_of
from ddim.metrics import build_extractor, reference_statistics
from ddim.metrics.measure import Measure
from ddim.runs.files import UNFINISHED

SHAPE = (1, 8, 8)
SCHEDULE = NoiseSchedule.linear(100)
POINTS = grid_points(SCHEDULE, steps=[2, 3], etas=[0.0, 1.0], tau="linear")
NETWORK = {"weights_sha256": "a" * 64, "denoiser": {"channels": 1}}
pytestmark = pytest.mark.usefixtures("warnings_only")


@pytest.fixture
def no_plots(monkeypatch):
    """What is drawn at the end takes longer than these grids."""
    monkeypatch.setattr(evaluation, "pictures", lambda *arguments: ())


@dataclasses.dataclass
class Grid:
    """Runs of one grid in one directory, and how many samples each of them made."""

    directory: Path
    ask: Callable[..., Any]
    module_of: Callable[..., Any]
    extractor_of: Callable[[], Any]
    images: torch.Tensor = dataclasses.field(
        default_factory=lambda: torch.randint(
            0, 256, (64, *SHAPE), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
        )
    )

    def run(self, *, fails_at=10**9, rank=0, world_size=1, **changes):
        settings = {
            "points": POINTS,
            "batch_size": 8,
            "num_samples": 24,
            "keep_images": 4,
            "metrics": ("frechet_distance", "kid"),
            "network": NETWORK,
            "seed": 0,
            "precision": "32-true",
            "images": self.images,
            "split": "train",
            "provenance": {},
            "schedule": SCHEDULE,
            "every_seconds": 0.0,
            "checkpoint": "a.ckpt",
            **changes,
        }
        extractor = self.extractor_of()
        extractor.provenance |= settings["provenance"]
        extractor.fails_at = 10**9
        reference = reference_statistics(
            extractor, lambda: [settings["images"]], {"sum": settings["images"].sum().item()}, self.directory / "cache"
        )
        extractor.seen, extractor.fails_at = 0, fails_at
        grid = EvaluationGrid(
            settings["points"],
            measure=Measure(extractor, reference, settings["metrics"], split=settings["split"]),
            num_samples=settings["num_samples"],
            keep_images=settings["keep_images"],
        )
        asked = self.ask(
            grid,
            self.module_of(settings["schedule"]),
            Sampling(NoiseSource(settings["seed"]), Pixels(SHAPE), settings["batch_size"]),
            self.directory,
            {
                "dataset": "noise",
                "checkpoint": settings["checkpoint"],
                "weights": "ema",
                "weights_hash": settings["network"]["weights_sha256"][:16],
                "seed": settings["seed"],
            },
            kept=Kept(self.directory, settings["network"], settings["every_seconds"]),
            interruptible=True,
            rank=rank,
            world_size=world_size,
            precision=settings["precision"],
        )
        return asked, extractor.seen


@pytest.fixture
def grid_in(ask, module_of, extractor_of) -> Callable[[Path], Grid]:
    return lambda directory: Grid(directory, ask, module_of, extractor_of)


def numbers(directory: Path) -> list[dict]:
    rows = [row.as_record() for row in read_results(directory).rows]
    return [{k: v for k, v in row.items() if k not in ("seconds", "images_per_second")} for row in rows]


def alone(directory: Path) -> list[dict]:
    """What is known of a point before all others are measured."""
    compared = ("difference", "difference_sd", "as_good")
    return [{k: v for k, v in row.items() if k not in compared} for row in numbers(directory)]


@pytest.mark.parametrize(
    ("metrics", "kept"), [(("frechet_distance",), 0), (("frechet_distance", "kid"), 24), (("precision_recall",), 24)]
)
def test_features_are_kept_where_a_metric_looks_at_them(tmp_path, monkeypatch, no_plots, grid_in, metrics, kept):
    found = []

    def look(*arguments, **more):
        found.append(generate(*arguments, **more))
        return found[-1]

    monkeypatch.setattr(evaluation, "generate", look)
    asked, _ = grid_in(tmp_path).run(points=POINTS[:1], metrics=metrics)
    assert [len(generation.features) for generation in found] == [kept]
    (row,) = results_of(asked.rows)
    assert (row.frechet_distance is not None) == ("frechet_distance" in metrics)
    assert (row.kid_mean is not None) == ("kid" in metrics)
    assert (row.recall is not None) == ("precision_recall" in metrics)


class TestTheWholeGrid:
    def test_an_interrupted_grid_ends_where_the_uninterrupted_one_ends(self, tmp_path, grid_in):
        (tmp_path / "whole").mkdir()
        whole, seen = grid_in(tmp_path / "whole").run()
        assert seen == 96
        grid, total = grid_in(tmp_path / "cut"), 0
        (tmp_path / "cut").mkdir()
        for fails_at in (8, 30, 20, 10**9):
            _, seen = grid.run(fails_at=fails_at)
            total += seen
            if (tmp_path / "cut" / "results.csv").is_file():
                found = alone(tmp_path / "cut")
                assert found == alone(tmp_path / "whole")[: len(found)]
        assert total == 96, "no sample twice"
        assert numbers(tmp_path / "cut") == numbers(tmp_path / "whole")
        for name in ("samples.png", *(f"samples/{path.name}" for path in (tmp_path / "whole/samples").iterdir())):
            assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name
        assert not list((tmp_path / "cut" / "partial").iterdir()) and len(whole.rows) == 4
        assert grid.run()[1] == 0, "all is finished"
        assert numbers(tmp_path / "cut") == numbers(tmp_path / "whole")

    def test_pictures_that_were_kept_are_enough_for_the_sheet(self, tmp_path, grid_in):
        grid_in(tmp_path).run(points=POINTS[:2])
        assert grid_in(tmp_path).run(keep_images=9)[1] == 48


@pytest.mark.usefixtures("no_plots")
class TestFinishedPoints:
    @pytest.mark.parametrize(
        "changes",
        [
            {"batch_size": 5},
            {"checkpoint": "moved/a.ckpt"},
            {"keep_images": 9},
            {"every_seconds": 60.0},
            {"metrics": ("kid", "frechet_distance")},
        ],
        ids=lambda changes: next(iter(changes)),
    )
    def test_what_samples_do_not_depend_on_changes_nothing(self, tmp_path, grid_in, changes):
        grid_in(tmp_path).run()
        asked, seen = grid_in(tmp_path).run(**changes)
        assert seen == 0 and len(asked.rows) == 4
        assert {row["checkpoint"] for row in numbers(tmp_path)} == {changes.get("checkpoint", "a.ckpt")}

    @pytest.mark.parametrize(
        "changes",
        [
            {"network": {**NETWORK, "weights_sha256": "b" * 64}},
            {"network": {**NETWORK, "denoiser": {"channels": 2}}},
            {"seed": 1},
            {"num_samples": 25},
            {"metrics": ("frechet_distance",)},
            {"images": torch.zeros(64, *SHAPE, dtype=torch.uint8).index_fill(0, torch.arange(9), 200)},
            {"split": "test"},
            {"provenance": {"weights_sha256": "c"}},
            {"precision": "bf16-mixed"},
            {"schedule": NoiseSchedule.linear(100, beta_end=0.03)},
            {"points": [dataclasses.replace(point, clip_denoised=True) for point in POINTS]},
            {"points": [dataclasses.replace(p, timesteps=tuple(t + 1 for t in p.timesteps)) for p in POINTS]},
            {"points": [dataclasses.replace(p, eta=1.0, variance="sigma_hat") for p in POINTS[:2]]},
        ],
        ids=lambda changes: next(iter(changes)),
    )
    def test_whatever_a_row_depends_on_makes_it_another_row(self, tmp_path, grid_in, changes):
        """Done anew, and the old row is not shown, not even while the new one is not finished."""
        grid_in(tmp_path).run()
        old = numbers(tmp_path)
        grid = grid_in(tmp_path)
        stopped, _ = grid.run(fails_at=8, **changes)
        assert stopped.rows == [] and read_results(tmp_path).rows == []
        again, seen = grid.run(**changes)
        count = changes.get("num_samples", 24)
        assert seen == len(again.study.points) * count - (8 if seen % count else 0)
        assert len(numbers(tmp_path)) == len(again.study.points)
        assert grid.run()[1] == 0 and numbers(tmp_path) == old, "the first ones are still known"

    def test_rows_stand_in_the_order_of_the_grid(self, tmp_path, grid_in):
        grid_in(tmp_path).run(points=[POINTS[2]])
        assert grid_in(tmp_path).run(points=list(reversed(POINTS)))[1] == 72
        found = [(row["eta"], row["steps"]) for row in numbers(tmp_path)]
        assert found == [(point.eta, point.steps) for point in reversed(POINTS)]

    @pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\x00\xff" * 40])
    def test_nothing_is_read_from_the_results(self, tmp_path, grid_in, content):
        """They are written from what is finished: damage is repaired."""
        grid_in(tmp_path).run()
        before = numbers(tmp_path)
        for name in ("results.json", "results.csv"):
            (tmp_path / name).write_bytes(content)
        assert grid_in(tmp_path).run()[1] == 0 and numbers(tmp_path) == before

    def test_a_damaged_finished_point_is_done_again(self, tmp_path, grid_in, caplog):
        grid_in(tmp_path).run()
        before = numbers(tmp_path)
        path = next((tmp_path / "finished").iterdir())
        path.write_bytes(path.read_bytes()[:-5])
        assert grid_in(tmp_path).run()[1] == 24 and numbers(tmp_path) == before
        assert "is damaged, its point is done again" in caplog.text and str(path) in caplog.text

    def test_a_file_under_the_name_of_another_is_not_believed(self, tmp_path, caplog):
        memory = Kept(tmp_path, NETWORK)
        memory.save("grid", {"seed": 0}, Finished({"n": 1}, torch.zeros(1, *SHAPE)))
        (path,) = (tmp_path / "finished").iterdir()
        memory.save("grid", {"seed": 1}, Finished({"n": 2}, torch.zeros(1, *SHAPE)))
        (other,) = [entry for entry in (tmp_path / "finished").iterdir() if entry != path]
        other.write_bytes(path.read_bytes())
        assert memory.load("grid", {"seed": 0}).row == {"n": 1}
        assert memory.load("grid", {"seed": 1}) is None and "something else" in caplog.text
        assert memory.load("reconstruction", {"seed": 0}) is None

    def test_the_order_of_keys_and_tuples_do_not_matter(self, tmp_path):
        memory = Kept(tmp_path, NETWORK)
        memory.save("grid", {"a": (1, 2), "b": {"x": 1, "y": 2}}, Finished({}, torch.zeros(0)))
        again = Kept(tmp_path, json.loads(json.dumps(NETWORK)))
        assert again.load("grid", {"b": {"y": 2, "x": 1}, "a": [1, 2]}) is not None

    def test_what_a_killed_process_left_of_a_file_is_removed(self, tmp_path, grid_in):
        left = [f"{folder}{UNFINISHED}{number}" for number, folder in enumerate(("", "finished/", "partial/ab/"))]
        for name in left:
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).touch()
        (tmp_path / "mine.tmp").touch()
        grid_in(tmp_path).run()
        assert not any((tmp_path / name).exists() for name in left) and (tmp_path / "mine.tmp").exists()

    def test_the_first_process_decides_what_is_finished(self, tmp_path, grid_in, run_on_ranks):
        """The others see another folder, as on another machine: still all do the same, and only what is missing."""
        for name in ("0", "1"):
            (tmp_path / name).mkdir()
        grid_in(tmp_path / "0").run(fails_at=60)
        runs = run_on_ranks(2, lambda rank: grid_in(tmp_path / str(rank)).run(rank=rank, world_size=2))
        (first, seen), (second, others) = runs
        assert seen + others == 96 - 56 and first.rows == second.rows
        assert not (tmp_path / "1" / "results.csv").exists() and len(numbers(tmp_path / "0")) == 4

    def test_without_a_memory_nothing_is_kept(self, tmp_path, grid_in, ask, module_of):
        extractor = build_extractor("pixels", channels=1, resolution=8, weights_dir=tmp_path)
        images = grid_in(tmp_path).images
        reference = reference_statistics(extractor, lambda: [images], {"a": 1}, tmp_path / "cache")
        grid = EvaluationGrid(POINTS[:1], measure=Measure(extractor, reference, ("frechet_distance",)), num_samples=8)
        identity = {"dataset": "noise", "checkpoint": "a", "weights": "ema", "seed": 0}
        asked = ask(grid, module_of(SCHEDULE), Sampling(NoiseSource(0), Pixels(SHAPE), 8), tmp_path / "out", identity)
        assert len(asked.rows) == 1
        assert not {"finished", "partial"} & {path.name for path in (tmp_path / "out").iterdir()}
