"""How a run ends, well or not: signals and full disks as sentences, no process and no W&B run left open."""

from __future__ import annotations

import logging
import signal
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytorch_lightning as pl
from pytorch_lightning.strategies.launchers import _SubprocessScriptLauncher
from pytorch_lightning.utilities.exceptions import SIGTERMException

from ddim.runs.files import disk_errors_as_sentence
from ddim.runs.signals import Stopped, StopRequest
from ddim.tracking.loggers import finish_wandb

log = logging.getLogger(__name__)


def quiet_libraries() -> None:
    """Messages that repeat what is configured or recommend what does not apply here."""
    for name in ("pytorch_lightning", "lightning.pytorch", "lightning_fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for pattern in (
        ".*LeafSpec.* is deprecated.*",
        ".*recommended to use `self.log.*sync_dist=True.*",
        ".*does not have many workers.*",
        ".*The number of training batches.*is smaller than the logging interval.*",
        ".*Checkpoint directory .* exists and is not empty.*",
        ".*The dirpath has changed from.*",
        ".*torch.distributed.nn.functional.all_gather is deprecated.*",
        ".*You're resuming from a checkpoint that ended before the epoch ended.*",
        # On a login node that is not meant.
        ".*The `srun` command is available on your system but is not used.*",
    ):
        warnings.filterwarnings("ignore", pattern)


@contextmanager
def leaving_well(directory: Path, how_to_go_on: Callable[[], str]) -> Iterator[StopRequest]:
    """Signals and a full disk end the block in one sentence."""
    with StopRequest(how_to_go_on) as stop, disk_errors_as_sentence(directory, how_to_go_on):
        yield stop


@contextmanager
def closing(trainer: pl.Trainer, stop: StopRequest) -> Iterator[None]:
    """Whatever ends the work early, neither processes that Lightning started nor a W&B run stay open."""
    try:
        yield
    except BaseException as error:
        launcher = trainer.strategy.launcher
        if isinstance(launcher, _SubprocessScriptLauncher):
            launcher.kill(signal.SIGKILL)
            # Lightning's observer kills this process too when it finds one of these gone.
            launcher.procs.clear()
        failure = stop.leave(signal.SIGTERM) if isinstance(error, SIGTERMException) else error
        finish_wandb(failure.code if isinstance(failure, Stopped) else 1)
        if failure is not error:
            raise failure from error
        raise
