"""How a command ends early: one sentence and an exit status."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode

from ddim.errors import UserError
from ddim.runs.processes import say_error
from ddim.runs.signals import Stopped


def exit_with_sentence(task: Callable[[], Any]) -> Any:
    """Run `task`; what ends it early becomes one sentence on stderr and an exit status.

    A `UserError`: status 2 (HYDRA_FULL_ERROR=1: a traceback). A signal: 128 + its number. In a job of a sweep a
    `UserError` stays an exception: `ddim.command.hydra_callbacks` says it and lets the other jobs go on.
    """
    try:
        return task()
    except Stopped as stopped:
        print(stopped.sentence, file=sys.stderr)
        sys.exit(stopped.code)
    except KeyboardInterrupt:
        print("Stopped by Ctrl-C before the work began.", file=sys.stderr)
        sys.exit(128 + signal.SIGINT)
    except UserError as error:
        if os.environ.get("HYDRA_FULL_ERROR") == "1" or in_sweep():
            raise
        say_error(error)
        sys.exit(2)


def in_sweep() -> bool:
    """Whether this is a job of a Hydra multirun."""
    return HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN
