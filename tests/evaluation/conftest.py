"""Studies asked of a network in this process: who runs it, what they said, and several ranks at once."""

from __future__ import annotations

import io
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import pytorch_lightning as pl
import torch

from ddim.display.presenter import Pictures
from ddim.display.progress import GridProgress
from ddim.display.terminal import Terminal
from ddim.evaluation.kept.finished import Kept
from ddim.evaluation.running import Running
from ddim.evaluation.study import Study
from ddim.evaluation.subject import Sampling, Subject
from ddim.findings.files import Files
from ddim.findings.telling import Audience, Findings, Picture, Row
from ddim.tracking.presenter import Tracked


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
        progress = partial(GridProgress, enabled=False)
        running = Running([study], sampling, identity, kept or Kept(None, {}), audiences, progress, context or {})
        with suppress(KeyboardInterrupt) if interruptible else nullcontext():
            running.on_test_epoch_end(made, module)
        (say,) = running.findings
        return Asked(study, say, drawn, heard)

    return run


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
