"""Studies asked of a network in this process: who runs it, what they said, and several ranks at once."""

from __future__ import annotations

import io
import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from functools import partial as bound
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from ddim.data import Pixels
from ddim.diffusion import NoiseSchedule, NoiseSource
from ddim.diffusion.grid import grid_points
from ddim.display.presenter import Pictures
from ddim.display.progress import GridProgress
from ddim.display.terminal import Terminal
from ddim.evaluation.kept.finished import Kept
from ddim.evaluation.kept.partial import Partial
from ddim.evaluation.running import Running
from ddim.evaluation.sampling import Generation, generate
from ddim.evaluation.study import Study
from ddim.evaluation.subject import Sampling, Subject
from ddim.findings.files import Files
from ddim.findings.telling import Audience, Findings, Picture, Row
from ddim.metrics import Features
from ddim.metrics.features import PixelFeatures
from ddim.tracking.presenter import Tracked
from ddim.training.module import DenoisingModule

SHAPE = (1, 8, 8)
SCHEDULE = NoiseSchedule.linear(100)


class Heard(Audience):
    """Keeps pictures as they were said, before anybody drew them: (what, picture, caption)."""

    def __init__(self) -> None:
        self.pictures: list[tuple[str, Picture, str]] = []

    def picture(self, said: Findings, what: str, picture: Picture, caption: str) -> None:
        self.pictures.append((what, picture, caption))


@dataclass(frozen=True)
class Asked:
    """A study after its run, what it said, and who drew and heard that."""

    study: Any
    say: Findings
    drawn: Pictures
    heard: Heard

    @property
    def rows(self) -> list[Row]:
        return self.say.rows

    @property
    def paths(self) -> list[Path]:
        """Of the pictures."""
        return self.drawn.paths

    def pictures(self, kind: type[Picture]) -> list[Any]:
        """Those of one kind, as data, in the order in which they were said."""
        return [picture for _, picture, _ in self.heard.pictures if isinstance(picture, kind)]

    def words(self) -> str:
        """What the terminal says in the end."""
        file = io.StringIO()
        self.drawn.say(Terminal(file))
        return file.getvalue()


@pytest.fixture(scope="session")
def trainer_of() -> Callable[..., SimpleNamespace]:
    """What studies read of a Trainer, on one of several processes."""

    def make(rank: int = 0, world_size: int = 1, loggers: Sequence[Any] = (), **more: Any) -> SimpleNamespace:
        about = {
            "global_rank": rank,
            "world_size": world_size,
            "is_global_zero": rank == 0,
            "precision": "32-true",
            "precision_plugin": pl.plugins.precision.Precision(),
            "loggers": list(loggers),
            "global_step": 0,
        }
        return SimpleNamespace(**(about | more))

    return make


@pytest.fixture(scope="session")
def subject_of(trainer_of: Callable[..., SimpleNamespace]) -> Callable[..., Subject]:
    """The network of a module as such a Trainer runs it."""

    def make(module: Any, sampling: Sampling, identity: Mapping[str, Any] | None = None, **trainer: Any) -> Subject:
        return Subject.of(trainer_of(**trainer), module, sampling, identity)

    return make


@pytest.fixture(scope="session")
def ask(trainer_of: Callable[..., SimpleNamespace]) -> Callable[..., Asked]:
    """Run a study as an evaluation does, on one of its processes, with files, pictures and loggers.

    interruptible: a KeyboardInterrupt ends the study and not the test. trainer: as for `trainer_of`.
    """

    def run(
        study: Study,
        module: Any,
        sampling: Sampling,
        directory: Path,
        identity: Mapping[str, Any],
        *,
        kept: Kept | None = None,
        context: Mapping[str, Any] | None = None,
        interruptible: bool = False,
        **trainer: Any,
    ) -> Asked:
        made, drawn, heard = trainer_of(**trainer), Pictures(directory), Heard()
        audiences = [Files(directory), drawn, Tracked(made, drawn), heard]
        progress = bound(GridProgress, enabled=False)
        running = Running([study], sampling, identity, kept or Kept(None, {}), audiences, progress, context or {})
        with suppress(KeyboardInterrupt) if interruptible else nullcontext():
            running.on_test_epoch_end(made, module)
        (say,) = running.findings
        return Asked(study, say, drawn, heard)

    return run


class PartOfX(nn.Module):
    """Every sample on its own, so that no rounding depends on the batch. `fits` is what memory holds."""

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


class CountingPixels(PixelFeatures):
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


@pytest.fixture(scope="session")
def module_of() -> Callable[..., DenoisingModule]:
    """With a denoiser that says which batches it has seen, and refuses those that do not fit."""
    return lambda schedule=SCHEDULE: DenoisingModule(PartOfX(), schedule, optimizer={}).eval()


@pytest.fixture(scope="session")
def extractor_of() -> Callable[[], CountingPixels]:
    return CountingPixels


@pytest.fixture(scope="session")
def made(
    subject_of: Callable[..., Subject], module_of: Callable[..., DenoisingModule]
) -> Callable[..., tuple[Generation, int]]:
    """Samples of one point, and how many of them were made now."""
    (point,) = grid_points(SCHEDULE, steps=3, etas=1.0, tau="linear")

    def make(
        num_samples: int = 30,
        batch_size: int = 4,
        *,
        partial: Partial | None = None,
        extractor: CountingPixels | None = None,
        module: DenoisingModule | None = None,
        keep: int = 5,
        **trainer: Any,
    ) -> tuple[Generation, int]:
        extractor = extractor or CountingPixels()
        sampling = Sampling(NoiseSource(0), Pixels(SHAPE), batch_size)
        subject = subject_of(module or module_of(), sampling, **trainer)
        generation = generate(subject, extractor, point, num_samples=num_samples, keep_images=keep, partial=partial)
        return generation, extractor.seen

    return make


@pytest.fixture(scope="session")
def same() -> Callable[[Generation, Generation], bool]:
    """Whether two generations are equal to the last bit."""

    def compare(one: Generation, other: Generation) -> bool:
        assert one.features.logits is not None and other.features.logits is not None
        return (
            torch.equal(one.features.features, other.features.features)
            and torch.equal(one.features.logits, other.features.logits)
            and torch.equal(one.first_images, other.first_images)
        )

    return compare


@pytest.fixture
def warnings_only(caplog: pytest.LogCaptureFixture) -> None:
    """Of what is logged, `caplog` has the warnings."""
    caplog.set_level(logging.WARNING)


@pytest.fixture
def run_on_ranks(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, Callable[[int], Any]], list[Any]]:
    """(world size, run) -> `run(rank)` of every rank, at once, in threads that gather as processes would."""

    def start_all(world_size: int, run: Callable[[int], Any]) -> list[Any]:
        barrier, slots, here = threading.Barrier(world_size, timeout=60), [None] * world_size, threading.local()

        def all_gather_object(everyone: list[Any], mine: Any) -> None:
            slots[here.rank] = mine
            barrier.wait()
            everyone[:] = list(slots)
            barrier.wait()

        def start(rank: int) -> Any:
            here.rank = rank
            try:
                return run(rank)
            except BaseException:
                barrier.abort()
                raise

        monkeypatch.setattr(torch.distributed, "all_gather_object", all_gather_object)
        with ThreadPoolExecutor(world_size) as pool:
            return list(pool.map(start, range(world_size)))

    return start_all
