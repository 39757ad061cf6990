"""What is half done is taken up sample by sample, whatever the batches and the processes are now."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from pytorch_lightning.utilities.exceptions import SIGTERMException

import ddim.evaluation.kept.partial as partial_module
from ddim.evaluation.kept.checked_file import read_checked
from ddim.evaluation.kept.partial import Partial, Samples
from ddim.metrics import Features

SHAPE = (1, 8, 8)
pytestmark = pytest.mark.usefixtures("warnings_only")


class TestPartialSamples:
    @pytest.mark.parametrize("killed_at", [1, 5, 17, 29])
    @pytest.mark.parametrize(("before", "after"), [(4, 4), (4, 7), (7, 1), (30, 4), (1, 30)])
    def test_an_interrupted_point_goes_on_whatever_the_batch_is_now(
        self, made, same, extractor_of, tmp_path, killed_at, before, after
    ):
        whole, _ = made()
        partial, extractor = Partial(tmp_path, 0), extractor_of()
        extractor.fails_at = killed_at
        with pytest.raises(KeyboardInterrupt):
            made(batch_size=before, partial=partial, extractor=extractor)
        generation, again = made(batch_size=after, partial=partial)
        assert extractor.seen + again == 30, "every sample was made once"
        assert same(generation, whole)

    def test_seconds_are_those_of_all_attempts(self, made, extractor_of, tmp_path):
        partial, spent = Partial(tmp_path, 0), []
        for fails_at in (8, 12):
            extractor = extractor_of()
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
    def test_the_number_of_processes_may_change(self, made, same, extractor_of, run_on_ranks, tmp_path, before, after):
        whole, _ = made()
        partial = Partial(tmp_path, 0)

        def attempt(world_size: int, fails_at: int) -> Callable[[int], object]:
            def run(rank: int):
                extractor = extractor_of()
                extractor.fails_at = fails_at
                try:
                    return made(partial=partial, extractor=extractor, rank=rank, world_size=world_size)
                except KeyboardInterrupt:
                    return None, extractor.seen

            return run

        first = run_on_ranks(before, attempt(before, 8))
        second = run_on_ranks(after, attempt(after, 10**9))
        assert sum(seen for _, seen in first) == 8 * before
        assert sum(seen for _, seen in second) == 30 - 8 * before
        assert all(same(generation, whole) for generation, _ in second)
        assert len({generation.seconds for generation, _ in second}) == 1

    @pytest.mark.parametrize("damage", ["flip", "cut", "empty", "name"])
    def test_a_damaged_file_costs_its_samples_and_a_warning(self, made, same, extractor_of, tmp_path, caplog, damage):
        whole, _ = made()
        partial, extractor = Partial(tmp_path, 0), extractor_of()
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

    def test_more_samples_and_more_pictures_may_be_asked_for_afterwards(self, made, same, tmp_path):
        made(20, partial=Partial(tmp_path, 0), keep=3)
        whole, _ = made(40, keep=9)
        generation, again = made(40, partial=Partial(tmp_path, 0), keep=9)
        assert same(generation, whole) and again == 20 + 6, "of six samples the picture was not kept"
        fewer, again = made(10, partial=Partial(tmp_path, 0), keep=1)
        assert same(fewer, made(10, keep=1)[0]) and again == 0

    def test_what_is_fast_leaves_no_file(self, made, tmp_path):
        made(partial=Partial(tmp_path / "none", 30))
        assert not (tmp_path / "none").exists()
        made(partial=Partial(tmp_path / "all", 0))
        assert len(list((tmp_path / "all").iterdir())) == 8

    def test_files_come_at_most_every_so_many_seconds_and_the_last_at_the_end(self, made, tmp_path, monkeypatch):
        ticks = iter(range(0, 1000, 10))
        monkeypatch.setattr(partial_module.time, "monotonic", lambda: next(ticks))
        made(partial=Partial(tmp_path, 30))
        sizes = [len(read_checked(path)[0]["indices"]) for path in sorted(tmp_path.iterdir())]
        assert sum(sizes) == 30 and sizes[:-1] == [12] * (len(sizes) - 1)

    def test_a_folder_that_cannot_be_written_costs_one_warning(self, made, same, tmp_path, caplog):
        (tmp_path / "file").touch()
        generation, _ = made(partial=Partial(tmp_path / "file" / "folder", 0))
        assert same(generation, made()[0])
        assert [record.levelname for record in caplog.records] == ["WARNING"] and "cannot be kept" in caplog.text

    def test_a_signal_ends_it_after_the_batch_and_keeps_the_batch(self, made, tmp_path):
        with pytest.raises(SIGTERMException):
            made(partial=Partial(tmp_path, 1000), received_sigterm=True)
        assert Partial(tmp_path, 0).read(30, 5).samples.indices.tolist() == [0, 1, 2, 3]
