"""The processes of one run: which of them this is, what they agree on before they are connected, and how they end.

Lightning's Trainer connects them when it starts to work, and starts them itself for `trainer.devices=N`. Those that
torchrun or srun started know nothing of each other until then, but have to share a run directory and must not all
download the same data. They meet at the address where torch will connect them anyway.

Light on purpose: torch is imported only where processes meet.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from ddim.errors import SharedError, UserError

if TYPE_CHECKING:
    import pytorch_lightning as pl


# All processes of a run start at about the same time; slow disks need a while for the first imports.
MEETING = timedelta(minutes=10)
# One process may prepare a large data set while the others wait.
PREPARATION = timedelta(days=2)
# How long a process that sees the connection break waits for the one that has failed to say why, and how long one that
# finds something wrong waits for the first one to find the same.
GRACE, PATIENCE = 3.0, 15.0
GONE = "the first process has ended"
# Lightning takes a SLURM shell for a single process by these names of the job.
INTERACTIVE = ("bash", "interactive")


@dataclass(frozen=True)
class Place:
    """Where a process stands among those of its run.

    Attributes:
        started_by: "torchrun" or "srun" where all processes were started alike; "lightning" for those that the first
            one started; None for a process that is (yet) alone.
    """

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    node: int = 0
    num_nodes: int = 1
    started_by: str | None = None

    @property
    def first(self) -> bool:
        return self.rank == 0

    @property
    def started_alike(self) -> bool:
        return self.started_by in ("torchrun", "srun") and self.world_size > 1


def place(environment: Mapping[str, str] | None = None) -> Place:
    """This process, by the variables that its launcher has set (`environment`, by default those of the process)."""
    found = os.environ if environment is None else environment

    def number(name: str, default: int) -> int:
        return int(found.get(name) or default)

    if "TORCHELASTIC_RUN_ID" in found:
        size, on_node = number("WORLD_SIZE", 1), number("LOCAL_WORLD_SIZE", 1)
        nodes = max(1, size // on_node)
        return Place(number("RANK", 0), size, number("LOCAL_RANK", 0), number("GROUP_RANK", 0), nodes, "torchrun")
    if "SLURM_NTASKS" in found and "SLURM_PROCID" in found and found.get("SLURM_JOB_NAME") not in INTERACTIVE:
        size, nodes = number("SLURM_NTASKS", 1), number("SLURM_NNODES", 1)
        return Place(
            number("SLURM_PROCID", 0), size, number("SLURM_LOCALID", 0), number("SLURM_NODEID", 0), nodes, "srun"
        )
    local_rank = number("LOCAL_RANK", 0)
    if local_rank:
        return Place(local_rank, number("WORLD_SIZE", local_rank + 1), local_rank, started_by="lightning")
    return Place()


def agreed(name: str, value: str) -> str:
    """The first process's `value`, on every process that torchrun or srun started; elsewhere `value` itself.

    Raises:
        UserError: the others did not come.
    """
    here = place()
    if not here.started_alike:
        return value
    store = _store()
    if here.first:
        store.set(name, value)
    return str(store.get(name).decode())


def wait_for_first() -> None:
    """Wait until the first process of this machine has called `first_is_ready`.

    It downloads and computes what the others then find in the cache. Raises SharedError where it has ended instead.
    """
    here = place()
    if here.started_alike and here.local_rank > 0:
        try:
            _store().wait([f"ready/{here.node}"], PREPARATION)
        except RuntimeError as error:
            raise SharedError("the first process of this run has ended, and says why.") from error


def first_is_ready() -> None:
    """Let the processes go on that wait for the first one of this machine."""
    here = place()
    if here.started_alike and here.local_rank == 0:
        _store().set(f"ready/{here.node}", "yes")


def say_error(error: UserError) -> None:
    """The sentence on stderr, once: of what all processes have in common only the first one speaks."""
    here = place()
    if here.first:
        print(f"error: {error}", file=sys.stderr, flush=True)
        _note_failure(str(error))
    elif not isinstance(error, SharedError) and _noted_failure(PATIENCE) not in (str(error), GONE):
        print(f"error (process {here.rank}): {error}", file=sys.stderr, flush=True)
        _note_failure(str(error))


@contextmanager
def one_fate(trainer: pl.Trainer) -> Iterator[None]:
    """Around the Trainer's work: if one process fails all of them end, and only what failed is told.

    A process whose peer has gone sees a broken connection, which is not worth a traceback of its own; one that waits
    for it on a GPU sees nothing at all and has to be ended.
    """
    try:
        yield
    except Exception as error:
        started: list[Any] = getattr(trainer.strategy.launcher, "procs", [])
        if started:
            status = None if isinstance(error, UserError) else _failure(started, GRACE)
            if isinstance(error, SharedError):
                _failure(started, GRACE)
            for process in started:
                process.kill()
            if status is not None:
                sys.exit(status)
        elif not isinstance(error, UserError):
            if _noted_failure(GRACE) is not None:
                sys.exit(2)
            if place().started_by == "lightning":
                # The first process ends this one if it is itself what has failed, and by then it has.
                time.sleep(2 * GRACE)
        raise


def _failure(processes: list[Any], seconds: float) -> int | None:
    """The exit status of one that has failed, waiting for it no longer than this; None where none has."""
    until = time.monotonic() + seconds
    while True:
        codes = [process.poll() for process in processes]
        failed = [code for code in codes if code]
        if failed:
            return failed[0] if failed[0] > 0 else 1
        if time.monotonic() >= until or None not in codes:
            return None
        time.sleep(0.05)


def _note_failure(sentence: str) -> None:
    with suppress(RuntimeError, UserError):
        if place().started_alike:
            _store().set("failure", sentence)


def _noted_failure(seconds: float) -> str | None:
    """What another of the processes that were started alike has said before it ended; None if none has by then.

    GONE where the first one, at which they meet, is no longer there.
    """
    if not place().started_alike:
        return None
    import torch.distributed as dist

    try:
        _store().wait(["failure"], timedelta(seconds=seconds))
        return str(_store().get("failure").decode())
    except (dist.DistNetworkError, UserError):
        return GONE
    except RuntimeError:  # it is not there in time
        return None


@lru_cache(maxsize=1)
def _store() -> Any:
    """Where processes that were started alike leave notes; open as long as this process lives."""
    import torch.distributed as dist

    here = place()
    try:
        if here.started_by == "srun":
            from lightning_fabric.plugins.environments import SLURMEnvironment

            environment = SLURMEnvironment()
            os.environ["MASTER_ADDR"] = environment.main_address
            os.environ["MASTER_PORT"] = str(environment.main_port)
        # One server serves this and torch's own connection later: it is shared within a process.
        store, _, _ = next(dist.rendezvous("env://", here.rank, here.world_size, timeout=MEETING))
    except (RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split("\n")[0].split()).rstrip(".")
        raise UserError(
            f"the {here.world_size} processes of this run, as {here.started_by} has it, did not meet: {reason}; "
            f"start all of them alike ({here.started_by} python ...)."
        ) from error
    return dist.PrefixStore("ddim", store)
