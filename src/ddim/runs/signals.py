"""SIGTERM and Ctrl-C: a run leaves with one sentence and the exit status a shell expects, at once or after its step."""

from __future__ import annotations

import os
import shlex
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Stopped(SystemExit):
    """The run was asked to leave: `code` is 128 + the signal's number, `sentence` says how to go on."""

    def __init__(self, signum: int, sentence: str) -> None:
        super().__init__(128 + signum)
        self.sentence = sentence


class StopRequest:
    """Answers SIGTERM and Ctrl-C inside its `with` block.

    A signal raises `Stopped` where the program stands. While `deferring`, the first one is only remembered as
    `requested`, for the work to leave where nothing is lost; a second one leaves at once. Another one while leaving
    ends the process.

    Args:
        how_to_go_on: makes the sentence's end, when it is needed.
    """

    def __init__(self, how_to_go_on: Callable[[], str]) -> None:
        self.how_to_go_on = how_to_go_on
        self.requested: int | None = None
        self.deferring = False
        self._requeueing: tuple[int, Callable[[int, FrameType | None], Any]] | None = None
        self._leaving = False
        self._process = os.getpid()
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            self._before = {signum: signal.getsignal(signum) for signum in SIGNALS}
            self.install()
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, at: TracebackType | None) -> None:
        for signum, handler in self._before.items():
            signal.signal(signum, signal.SIG_DFL if handler is None else handler)
        if self._requeueing is not None:
            signal.signal(self._requeueing[0], signal.SIG_DFL)

    def install(self) -> None:
        """Take the signals, also back from who took them since the block began."""
        for signum in self._before:
            signal.signal(signum, self._answer)

    def take_requeueing(self, signum: int) -> None:
        """From now on the signal by which a cluster says that a job's time is almost up is only remembered.

        Whoever answers it saves with all processes, from wherever each of them stands; `requeue` lets it answer.
        """
        answer = signal.getsignal(signum)
        if callable(answer) and answer != self._remember:
            self._requeueing = (signum, answer)
            signal.signal(signum, self._remember)

    def is_requeueing(self, signum: int | None) -> bool:
        return self._requeueing is not None and self._requeueing[0] == signum

    def requeue(self) -> None:
        """Let the remembered signal be answered; all processes are at the same place."""
        assert self._requeueing is not None
        signum, answer = self._requeueing
        self.requested = None
        answer(signum, None)

    def _remember(self, signum: int, frame: FrameType | None) -> None:
        self.requested = self.requested or signum

    def leave(self, signum: int) -> Stopped:
        """The exception to raise when deferred work has come to its end."""
        self._leaving = True
        name = "Ctrl-C" if signum == signal.SIGINT else signal.Signals(signum).name
        return Stopped(signum, f"Stopped by {name}: {self.how_to_go_on()}.")

    def _answer(self, signum: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:
            self._answer_in_worker(signum)
        elif self._leaving:
            _end(signum)
        elif self.deferring and self.requested is None:
            self.requested = signum
            print("\nStopping after this step; once more leaves at once.", file=sys.stderr, flush=True)
        else:
            raise self.leave(signum)

    def _answer_in_worker(self, signum: int) -> None:
        """A forked data loader worker: Ctrl-C reaches the whole terminal, but the step still needs its images."""
        if signum != signal.SIGINT:
            _end(signum)


def resume_command(script: str, directory: Path) -> str:
    """`python train.py resume=DIR`, in backticks, as a shell takes it."""
    return f"`python {script} {shlex.quote(f'resume={directory}')}`"


def _end(signum: int) -> None:
    signal.signal(signum, signal.SIG_DFL)
    os.kill(os.getpid(), signum)
