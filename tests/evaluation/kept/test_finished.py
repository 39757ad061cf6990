"""What is finished is recognised by what it depends on; what is half done is taken up sample by sample; batches fit."""

from __future__ import annotations

import dataclasses
import json
import logging
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import pytest
import pytorch_lightning as pl
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pytorch_lightning.utilities.exceptions import SIGTERMException
from torch import Tensor, nn

from ddim.diffusion import NoiseSchedule, NoiseSource
from ddim.diffusion.grid import grid_points
from ddim.errors import UserError
from ddim.evaluation.kept.checked_file import DamagedFileError, read_checked, write_checked
from ddim.evaluation.kept.finished import Finished, Resumption
from ddim.evaluation.kept.hashes import tensors_sha256
from ddim.evaluation.kept.partial import Partial, Samples
from ddim.evaluation.sampling import Sampling, generate, in_batches
from ddim.evaluation.studies import grid as evaluation
from ddim.evaluation.studies.grid import EvaluationGrid
from ddim.findings.files import read_results
from ddim.metrics import Features, build_extractor, reference_statistics
from ddim.metrics.features import PixelFeatures
from ddim.metrics.measure import Measure
from ddim.training.module import DenoisingModule

SHAPE = (1, 8, 8)
SCHEDULE = NoiseSchedule.linear(100)
POINTS = grid_points(SCHEDULE, steps=[2, 3], etas=[0.0, 1.0], tau="linear")
POINT = POINTS[-1]
NETWORK = {"weights_sha256": "a" * 64, "denoiser": {"channels": 1}}


class Denoiser(nn.Module):
    """A part of x: every sample on its own, so that no rounding depends on the batch. `fits` is what memory holds."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(0.5))
        self.fits = 10**9
        self.batches: list[int] = []

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        if len(x) > self.fits:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB. And much more.")
        self.batches.append(len(x))
        return x * self.weight


class Pixels(PixelFeatures):
    """Of pixels, with logits; counts what it has seen, fails on demand, and holds only so many images."""

    def __init__(self) -> None:
        super().__init__(1, 8)
        self.seen = 0
        self.fails_at = 10**9
        self.fits = 10**9

    def extract(self, images: Tensor) -> Features:
        if len(images) > self.fits:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")
        if self.seen + len(images) > self.fails_at:
            raise KeyboardInterrupt
        self.seen += len(images)
        features = super().extract(images).features
        return Features(features, features[:, :3] * 2)


def trainer_of(rank: int = 0, world_size: int = 1, **more) -> SimpleNamespace:
    return SimpleNamespace(
        global_rank=rank,
        world_size=world_size,
        is_global_zero=rank == 0,
        precision="32-true",
        precision_plugin=pl.plugins.precision.Precision(),
        loggers=[],
        global_step=0,
        **more,
    )


def module_of() -> DenoisingModule:
    return DenoisingModule(Denoiser(), SCHEDULE, optimizer={}).eval()


def made(
    num_samples: int = 30, batch_size: int = 4, *, partial=None, extractor=None, module=None, keep=5, trainer=None
):
    extractor = extractor or Pixels()
    generation = generate(
        trainer or trainer_of(),
        module or module_of(),
        extractor,
        POINT,
        Sampling(NoiseSource(0), SHAPE, batch_size),
        num_samples=num_samples,
        keep_images=keep,
        partial=partial,
    )
    return generation, extractor.seen


def same(one, other) -> bool:
    return (
        torch.equal(one.features.features, other.features.features)
        and torch.equal(one.features.logits, other.features.logits)
        and torch.equal(one.first_images, other.first_images)
    )


def on_ranks(monkeypatch, world_size: int, run: Callable[[int], object]) -> list:
    """`run(rank)` for every rank at once, in threads that gather from each other as processes would."""
    barrier, slots, here = threading.Barrier(world_size, timeout=60), [None] * world_size, threading.local()

    def all_gather_object(everyone, mine):
        slots[here.rank] = mine
        barrier.wait()
        everyone[:] = list(slots)
        barrier.wait()

    def start(rank: int):
        here.rank = rank
        try:
            return run(rank)
        except BaseException:
            barrier.abort()
            raise

    monkeypatch.setattr(torch.distributed, "all_gather_object", all_gather_object)
    with ThreadPoolExecutor(world_size) as pool:
        return list(pool.map(start, range(world_size)))


STATE = {"a": torch.arange(24.0).reshape(1, 2, 3, 4), "b": torch.tensor(1.5), "c": torch.empty(0)}
TENSORS = {"indices": torch.arange(5), "images": torch.arange(10, dtype=torch.uint8).reshape(5, 2)}


class TestFingerprint:
    def test_it_is_the_same_for_the_same_values(self):
        again = {name: STATE[name].clone() for name in reversed(STATE)}
        again["a"] = again["a"].to(memory_format=torch.channels_last)
        assert tensors_sha256(again) == tensors_sha256(STATE) and len(tensors_sha256(again)) == 64

    @pytest.mark.parametrize(
        "change",
        [
            {"a": torch.arange(24.0).reshape(1, 2, 3, 4) + torch.eye(4)[0] * 1e-6},
            {"a": torch.arange(24.0).reshape(1, 2, 4, 3)},
            {"b": torch.tensor([1.5])},
            {"b": torch.tensor(1.5, dtype=torch.float64)},
            {"d": torch.empty(0)},
        ],
    )
    def test_it_tells_names_shapes_types_and_values_apart(self, change):
        assert tensors_sha256({**STATE, **change}) != tensors_sha256(STATE)


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("checked") / "deep" / "file.safetensors"
    write_checked(path, TENSORS, {"seconds": 1.25})
    return path


class TestCheckedFile:
    def test_it_comes_back(self, written):
        tensors, about = read_checked(written)
        assert about == {"seconds": 1.25} and tensors.keys() == TENSORS.keys()
        assert all(torch.equal(tensors[name], TENSORS[name]) for name in tensors)
        assert [path.name for path in written.parent.iterdir()] == ["file.safetensors"]

    @settings(deadline=None, max_examples=300)
    @given(data=st.data())
    def test_damage_is_noticed(self, written, data):
        """A flipped bit or a cut anywhere; what is read nevertheless is what was written."""
        content = bytearray(written.read_bytes())
        if data.draw(st.booleans()):
            content[data.draw(st.integers(0, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 7))
        else:
            del content[data.draw(st.integers(0, len(content) - 1)) :]
        damaged = written.with_name("damaged")
        damaged.write_bytes(content)
        try:
            tensors, about = read_checked(damaged)
        except DamagedFileError as error:
            assert str(error) and "\n" not in str(error)
        else:
            assert about == {"seconds": 1.25} and tensors_sha256(tensors) == tensors_sha256(TENSORS)


class TestPartialSamples:
    @pytest.mark.parametrize("killed_at", [1, 5, 17, 29])
    @pytest.mark.parametrize(("before", "after"), [(4, 4), (4, 7), (7, 1), (30, 4), (1, 30)])
    def test_an_interrupted_point_goes_on_whatever_the_batch_is_now(self, tmp_path, killed_at, before, after):
        whole, _ = made()
        partial, extractor = Partial(tmp_path, 0), Pixels()
        extractor.fails_at = killed_at
        with pytest.raises(KeyboardInterrupt):
            made(batch_size=before, partial=partial, extractor=extractor)
        generation, again = made(batch_size=after, partial=partial)
        assert extractor.seen + again == 30, "every sample was made once"
        assert same(generation, whole)

    def test_seconds_are_those_of_all_attempts(self, tmp_path):
        partial, spent = Partial(tmp_path, 0), []
        for fails_at in (8, 12):
            extractor = Pixels()
            extractor.fails_at = fails_at
            with pytest.raises(KeyboardInterrupt):
                made(partial=partial, extractor=extractor)
            spent.append(partial.read(30, 5))
        assert [len(known.samples.indices) for known in spent] == [8, 20]
        assert [known.attempts for known in spent] == [1, 2] and spent[0].seconds < spent[1].seconds
        generation, _ = made(partial=partial)
        assert generation.seconds > spent[1].seconds
        complete, nothing = made(partial=partial)
        assert nothing == 0 and complete.seconds == pytest.approx(generation.seconds), "nothing was sampled"

    def test_the_slowest_process_of_each_attempt_counts(self, tmp_path):
        partial = Partial(tmp_path, 0)
        numbers = iter(torch.arange(8).split(2))
        for attempt, rank, seconds in ((0, 0, 1.0), (0, 1, 5.0), (1, 0, 2.0), (0, 0, 3.0)):
            indices = next(numbers)
            samples = Samples(indices, Features(indices[:, None].float()), torch.zeros(0, *SHAPE, dtype=torch.uint8))
            writer = partial.writer(attempt, rank, 0)
            writer.written = len(list(tmp_path.iterdir()))
            writer.add(samples, seconds)
        assert partial.read(8, 0).seconds == 5.0 + 2.0
        assert partial.read(4, 0).seconds == 5.0, "half of the samples are not asked for any longer"

    @pytest.mark.parametrize(("before", "after"), [(1, 2), (2, 1), (2, 3), (3, 2)])
    def test_the_number_of_processes_may_change(self, tmp_path, monkeypatch, before, after):
        whole, _ = made()
        partial = Partial(tmp_path, 0)

        def attempt(world_size: int, fails_at: int) -> Callable[[int], object]:
            def run(rank: int):
                extractor = Pixels()
                extractor.fails_at = fails_at
                try:
                    return made(partial=partial, extractor=extractor, trainer=trainer_of(rank, world_size))
                except KeyboardInterrupt:
                    return None, extractor.seen

            return run

        first = on_ranks(monkeypatch, before, attempt(before, 8))
        second = on_ranks(monkeypatch, after, attempt(after, 10**9))
        assert sum(seen for _, seen in first) == 8 * before
        assert sum(seen for _, seen in second) == 30 - 8 * before
        assert all(same(generation, whole) for generation, _ in second)
        assert len({generation.seconds for generation, _ in second}) == 1

    @pytest.mark.parametrize("damage", ["flip", "cut", "empty", "name"])
    def test_a_damaged_file_costs_its_samples_and_a_warning(self, tmp_path, caplog, damage):
        whole, _ = made()
        partial, extractor = Partial(tmp_path, 0), Pixels()
        extractor.fails_at = 17
        with pytest.raises(KeyboardInterrupt):
            made(partial=partial, extractor=extractor)
        path = sorted(tmp_path.iterdir())[1]
        content = bytearray(path.read_bytes())
        if damage == "flip":
            content[-1] ^= 1
        elif damage == "name":
            path = path.rename(tmp_path / "x.safetensors")
        path.write_bytes({"cut": content[:-9], "empty": b""}.get(damage, content))
        generation, again = made(partial=partial)
        assert again == 30 - 16 + 4 and same(generation, whole)
        assert [record.levelname for record in caplog.records] == ["WARNING"] and str(path) in caplog.text
        made(partial=partial)
        assert sorted(tmp_path.iterdir())[-1].name.startswith(("0001", "x"))

    def test_more_samples_and_more_pictures_may_be_asked_for_afterwards(self, tmp_path):
        made(20, partial=Partial(tmp_path, 0), keep=3)
        whole, _ = made(40, keep=9)
        generation, again = made(40, partial=Partial(tmp_path, 0), keep=9)
        assert same(generation, whole) and again == 20 + 6, "of six samples the picture was not kept"
        fewer, again = made(10, partial=Partial(tmp_path, 0), keep=1)
        assert same(fewer, made(10, keep=1)[0]) and again == 0

    def test_what_is_fast_leaves_no_file(self, tmp_path):
        made(partial=Partial(tmp_path / "none", 30))
        assert not (tmp_path / "none").exists()
        made(partial=Partial(tmp_path / "all", 0))
        assert len(list((tmp_path / "all").iterdir())) == 8

    def test_files_come_at_most_every_so_many_seconds_and_the_last_at_the_end(self, tmp_path, monkeypatch):
        import ddim.evaluation.kept.partial as partial_module

        ticks = iter(range(0, 1000, 10))
        monkeypatch.setattr(partial_module.time, "monotonic", lambda: next(ticks))
        made(partial=Partial(tmp_path, 30))
        sizes = [len(read_checked(path)[0]["indices"]) for path in sorted(tmp_path.iterdir())]
        assert sum(sizes) == 30 and sizes[:-1] == [12] * (len(sizes) - 1)

    def test_a_folder_that_cannot_be_written_costs_one_warning(self, tmp_path, caplog):
        (tmp_path / "file").touch()
        generation, _ = made(partial=Partial(tmp_path / "file" / "folder", 0))
        assert same(generation, made()[0])
        assert [record.levelname for record in caplog.records] == ["WARNING"] and "cannot be kept" in caplog.text

    def test_a_signal_ends_it_after_the_batch_and_keeps_the_batch(self, tmp_path):
        with pytest.raises(SIGTERMException):
            made(partial=Partial(tmp_path, 1000), trainer=trainer_of(received_sigterm=True))
        assert Partial(tmp_path, 0).read(30, 5).samples.indices.tolist() == [0, 1, 2, 3]


class TestOutOfMemory:
    @pytest.mark.parametrize("fits", [1, 2, 3, 5])
    def test_the_batch_is_halved_and_samples_stay_what_they_are(self, caplog, fits):
        whole, _ = made()
        module = module_of()
        module.denoiser.fits = fits
        generation, seen = made(batch_size=16, module=module)
        assert same(generation, whole) and seen == 30
        (record,) = [record for record in caplog.records if record.levelname == "WARNING"]
        size = {1: 1, 2: 2, 3: 2, 5: 4}[fits]
        assert "evaluation.batch_size=16" in record.message and f"with {size}," in record.message
        assert set(module.denoiser.batches) <= {size, 30 % size}

    def test_what_fits_is_remembered(self, caplog):
        sampling, tried = Sampling(NoiseSource(0), SHAPE, 8), []

        def work(batch: Tensor) -> list[int]:
            tried.append(len(batch))
            if len(batch) > 3:
                raise torch.OutOfMemoryError("full")
            return batch.tolist()

        for _ in range(2):
            assert [number for part in in_batches(sampling, torch.arange(9), work) for number in part] == [*range(9)]
        assert tried == [8, 4, 2, 2, 2, 2, 1, 2, 2, 2, 2, 1]
        assert len(caplog.records) == 1

    def test_a_single_image_that_does_not_fit_is_one_sentence(self):
        module = module_of()
        module.denoiser.fits = 0
        with pytest.raises(UserError, match=r"batch_size=1 for images of 1x8x8 \(CUDA out of memory\)") as error:
            made(batch_size=4, module=module)
        assert "evaluation.batch_size" in str(error.value) and "\n" not in str(error.value)

    @pytest.mark.parametrize("fits", [1, 3])
    def test_features_of_fewer_images_at_a_time(self, caplog, fits):
        """The sampling batch, which fits, stays as it is."""
        whole, _ = made()
        extractor, module = Pixels(), module_of()
        extractor.fits = fits
        generation, seen = made(batch_size=16, extractor=extractor, module=module)
        assert same(generation, whole) and seen == 30 and set(module.denoiser.batches) == {16, 14}
        assert "Out of memory for pixels features" in caplog.text and "batch_size" not in caplog.text

    def test_features_of_a_single_image_that_do_not_fit(self):
        extractor = Pixels()
        extractor.fits = 0
        with pytest.raises(UserError, match=r"evaluation\.batch_size=1"):
            made(extractor=extractor)

    def test_each_process_halves_for_itself(self, monkeypatch):
        whole, _ = made()
        modules = [module_of(), module_of()]
        modules[1].denoiser.fits = 3

        def run(rank: int):
            return made(batch_size=8, module=modules[rank], trainer=trainer_of(rank, 2))[0]

        assert all(same(generation, whole) for generation in on_ranks(monkeypatch, 2, run))
        assert [max(module.denoiser.batches) for module in modules] == [8, 2]

    def test_other_errors_pass(self):
        def work(batch: Tensor) -> None:
            raise RuntimeError("something else")

        with pytest.raises(RuntimeError, match="something else"):
            list(in_batches(Sampling(NoiseSource(0), SHAPE, 8), torch.arange(9), work))


@pytest.fixture(autouse=True)
def warnings_only(caplog):
    caplog.set_level(logging.WARNING)


@pytest.fixture
def no_plots(monkeypatch):
    """What is drawn at the end takes longer than these grids."""
    monkeypatch.setattr(EvaluationGrid, "_save_grid", lambda *arguments: None)


class Grid:
    """Runs of one grid in one directory, and how many samples each of them made."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.images = torch.randint(0, 256, (64, *SHAPE), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))

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
        extractor = Pixels()
        extractor.provenance |= settings["provenance"]
        extractor.fails_at = 10**9
        reference = reference_statistics(
            extractor, lambda: [settings["images"]], {"sum": settings["images"].sum().item()}, self.directory / "cache"
        )
        extractor.seen, extractor.fails_at = 0, fails_at
        grid = EvaluationGrid(
            settings["points"],
            Sampling(NoiseSource(settings["seed"]), SHAPE, settings["batch_size"]),
            self.directory,
            {
                "dataset": "noise",
                "checkpoint": settings["checkpoint"],
                "weights": "ema",
                "weights_hash": settings["network"]["weights_sha256"][:16],
                "seed": settings["seed"],
            },
            measure=Measure(extractor, reference, settings["metrics"], split=settings["split"]),
            num_samples=settings["num_samples"],
            keep_images=settings["keep_images"],
            show_progress=False,
            resumption=Resumption(self.directory, settings["network"], settings["every_seconds"]),
        )
        trainer = trainer_of(rank, world_size)
        trainer.precision = settings["precision"]
        with suppress(KeyboardInterrupt):
            grid.run(trainer, DenoisingModule(Denoiser(), settings["schedule"], optimizer={}).eval())
        return grid, extractor.seen


def numbers(directory: Path) -> list[dict]:
    rows = [row.as_record() for row in read_results(directory).rows]
    return [{k: v for k, v in row.items() if k not in ("seconds", "images_per_second")} for row in rows]


@pytest.mark.parametrize(
    ("metrics", "kept"), [(("frechet_distance",), 0), (("frechet_distance", "kid"), 24), (("precision_recall",), 24)]
)
def test_features_are_kept_where_a_metric_looks_at_them(tmp_path, monkeypatch, no_plots, metrics, kept):
    found = []

    def look(*arguments, **more):
        found.append(generate(*arguments, **more))
        return found[-1]

    monkeypatch.setattr(evaluation, "generate", look)
    grid, _ = Grid(tmp_path).run(points=POINTS[:1], metrics=metrics)
    assert [len(generation.features) for generation in found] == [kept]
    (row,) = grid.results
    assert (row.frechet_distance is not None) == ("frechet_distance" in metrics)
    assert (row.kid_mean is not None) == ("kid" in metrics)
    assert (row.recall is not None) == ("precision_recall" in metrics)


class TestTheWholeGrid:
    def test_an_interrupted_grid_ends_where_the_uninterrupted_one_ends(self, tmp_path):
        (tmp_path / "whole").mkdir()
        whole, seen = Grid(tmp_path / "whole").run()
        assert seen == 96
        grid, total = Grid(tmp_path / "cut"), 0
        (tmp_path / "cut").mkdir()
        for fails_at in (8, 30, 20, 10**9):
            _, seen = grid.run(fails_at=fails_at)
            total += seen
            if (tmp_path / "cut" / "results.csv").is_file():
                assert numbers(tmp_path / "cut") == numbers(tmp_path / "whole")[: len(numbers(tmp_path / "cut"))]
        assert total == 96, "no sample twice"
        assert numbers(tmp_path / "cut") == numbers(tmp_path / "whole")
        for name in ("samples.png", *(f"samples/{path.name}" for path in (tmp_path / "whole/samples").iterdir())):
            assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name
        assert not list((tmp_path / "cut" / "partial").iterdir()) and len(whole.results) == 4
        assert grid.run()[1] == 0, "all is finished"
        assert numbers(tmp_path / "cut") == numbers(tmp_path / "whole")

    def test_pictures_that_were_kept_are_enough_for_the_sheet(self, tmp_path):
        Grid(tmp_path).run(points=POINTS[:2])
        assert Grid(tmp_path).run(keep_images=9)[1] == 48


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
    def test_what_samples_do_not_depend_on_changes_nothing(self, tmp_path, changes):
        Grid(tmp_path).run()
        grid, seen = Grid(tmp_path).run(**changes)
        assert seen == 0 and len(grid.results) == 4
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
    def test_whatever_a_row_depends_on_makes_it_another_row(self, tmp_path, changes):
        """Done anew, and the old row is not shown, not even while the new one is not finished."""
        Grid(tmp_path).run()
        old = numbers(tmp_path)
        grid = Grid(tmp_path)
        stopped, _ = grid.run(fails_at=8, **changes)
        assert stopped.results == [] and read_results(tmp_path).rows == []
        again, seen = grid.run(**changes)
        count = changes.get("num_samples", 24)
        assert seen == len(again.points) * count - (8 if seen % count else 0)
        assert len(numbers(tmp_path)) == len(again.points)
        assert grid.run()[1] == 0 and numbers(tmp_path) == old, "the first ones are still known"

    def test_rows_stand_in_the_order_of_the_grid(self, tmp_path):
        Grid(tmp_path).run(points=[POINTS[2]])
        assert Grid(tmp_path).run(points=list(reversed(POINTS)))[1] == 72
        found = [(row["eta"], row["steps"]) for row in numbers(tmp_path)]
        assert found == [(point.eta, point.steps) for point in reversed(POINTS)]

    @pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\x00\xff" * 40])
    def test_nothing_is_read_from_the_results(self, tmp_path, content):
        """They are written from what is finished: damage is repaired."""
        Grid(tmp_path).run()
        before = numbers(tmp_path)
        for name in ("results.json", "results.csv"):
            (tmp_path / name).write_bytes(content)
        assert Grid(tmp_path).run()[1] == 0 and numbers(tmp_path) == before

    def test_a_damaged_finished_point_is_done_again(self, tmp_path, caplog):
        Grid(tmp_path).run()
        before = numbers(tmp_path)
        path = next((tmp_path / "finished").iterdir())
        path.write_bytes(path.read_bytes()[:-5])
        assert Grid(tmp_path).run()[1] == 24 and numbers(tmp_path) == before
        assert "is damaged, its point is done again" in caplog.text and str(path) in caplog.text

    def test_a_file_under_the_name_of_another_is_not_believed(self, tmp_path, caplog):
        memory = Resumption(tmp_path, NETWORK)
        memory.save("grid", {"seed": 0}, Finished({"n": 1}, torch.zeros(1, *SHAPE)))
        (path,) = (tmp_path / "finished").iterdir()
        memory.save("grid", {"seed": 1}, Finished({"n": 2}, torch.zeros(1, *SHAPE)))
        (other,) = [entry for entry in (tmp_path / "finished").iterdir() if entry != path]
        other.write_bytes(path.read_bytes())
        assert memory.load("grid", {"seed": 0}).row == {"n": 1}
        assert memory.load("grid", {"seed": 1}) is None and "something else" in caplog.text
        assert memory.load("reconstruction", {"seed": 0}) is None

    def test_the_order_of_keys_and_tuples_do_not_matter(self, tmp_path):
        memory = Resumption(tmp_path, NETWORK)
        memory.save("grid", {"a": (1, 2), "b": {"x": 1, "y": 2}}, Finished({}, torch.zeros(0)))
        again = Resumption(tmp_path, json.loads(json.dumps(NETWORK)))
        assert again.load("grid", {"b": {"y": 2, "x": 1}, "a": [1, 2]}) is not None

    def test_what_a_killed_process_left_of_a_file_is_removed(self, tmp_path):
        left = [".results.csv.1234.tmp", "finished/.grid-1.safetensors.12.tmp", "partial/ab/.0000.12.tmp"]
        for name in left:
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).touch()
        (tmp_path / "mine.tmp").touch()
        Grid(tmp_path).run()
        assert not any((tmp_path / name).exists() for name in left) and (tmp_path / "mine.tmp").exists()

    def test_the_first_process_decides_what_is_finished(self, tmp_path, monkeypatch):
        """The others see another folder, as on another machine: still all do the same, and only what is missing."""
        for name in ("0", "1"):
            (tmp_path / name).mkdir()
        Grid(tmp_path / "0").run(fails_at=60)
        runs = on_ranks(monkeypatch, 2, lambda rank: Grid(tmp_path / str(rank)).run(rank=rank, world_size=2))
        (first, seen), (second, others) = runs
        assert seen + others == 96 - 56 and first.records() == second.records()
        assert not (tmp_path / "1" / "results.csv").exists() and len(numbers(tmp_path / "0")) == 4

    def test_without_a_memory_nothing_is_kept(self, tmp_path):
        extractor = build_extractor("pixels", channels=1, resolution=8, weights_dir=tmp_path)
        images = Grid(tmp_path).images
        reference = reference_statistics(extractor, lambda: [images], {"a": 1}, tmp_path / "cache")
        grid = EvaluationGrid(
            POINTS[:1],
            Sampling(NoiseSource(0), SHAPE, 8),
            tmp_path / "out",
            {"dataset": "noise", "checkpoint": "a", "weights": "ema", "seed": 0},
            measure=Measure(extractor, reference, ("frechet_distance",)),
            num_samples=8,
            show_progress=False,
        )
        grid.run(trainer_of(), module_of())
        assert not {"finished", "partial"} & {path.name for path in (tmp_path / "out").iterdir()}
