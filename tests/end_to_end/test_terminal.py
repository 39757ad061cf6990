"""What is shown: bars with the time left on a terminal, plain lines in a file or a pipe."""

from __future__ import annotations

import fcntl
import io
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from pathlib import Path
from types import SimpleNamespace

import pytest
from rich.console import Console

from ddim.display import progress
from ddim.display.progress import GridProgress
from ddim.training.callbacks.progress import TrainingProgress

REPOSITORY = Path(__file__).resolve().parents[2]
ESCAPE = "\x1b"
GRID = (
    "sampler.eta=0,1",
    "sampler.steps=5,10,20",
    "evaluation.num_samples=70",
    "evaluation.batch_size=10",
    "logger=none",
)


def in_a_terminal(*command: str, stdout: int | None = None, columns: int = 110) -> str:
    """What a terminal of that width gets from a script; `stdout` may go elsewhere."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 50, columns, 0, 0))
    script, *arguments = command
    inherited = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES")}
    process = subprocess.Popen(
        [sys.executable, str(REPOSITORY / script), *arguments],
        stdin=theirs,
        stdout=theirs if stdout is None else stdout,
        stderr=theirs,
        env={**inherited, "OMP_NUM_THREADS": "1", "TERM": "xterm-256color", "PYTHONIOENCODING": "utf-8"},
    )
    os.close(theirs)
    received = b""
    while True:
        try:
            part = os.read(ours, 65536)
        except OSError:  # Linux's way to say that the other end is closed
            break
        if not part:
            break
        received += part
    os.close(ours)
    assert process.wait(60) == 0, received.decode(errors="replace")
    return received.decode(errors="replace")


def plain(text: str) -> str:
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)


class TestEvaluation:
    @pytest.fixture(autouse=True)
    def newest(self, workplace, trained_run):
        self.arguments = ["evaluate.py", f"checkpoint={trained_run}", *GRID]

    def test_bars_on_a_terminal(self):
        shown = in_a_terminal(*self.arguments)
        assert ESCAPE in shown and "━" in shown
        text = plain(shown)
        assert "6/6 points" in text and re.search(r"eta 1 S 20: \d+/70", text)
        assert re.search(r"grid .*\d:\d\d:\d\d left", text) and re.search(r"images .*\d:\d\d:\d\d left", text)
        assert "[1/6]" not in text
        # Nothing is wrapped: a bar takes what the terminal has left.
        assert max(len(line) for line in re.split(r"[\r\n]+", text) if "━" in line) <= 110
        lines = text.replace("\r", "").splitlines()
        (header,) = [n for n, line in enumerate(lines) if re.match(r" *η +S=5 +S=10 +S=20", line)]
        assert "* lowest of its column or not told apart from it, + lowest of its row" in text
        assert all(line.count("+") == 1 for line in lines[header + 2 : header + 4])

    def test_plain_lines_where_the_output_is_a_file(self, tmp_path, run_process, monkeypatch):
        """Standard error is still a terminal, as in `| tee log`, and the environment asks for colours."""
        monkeypatch.setenv("FORCE_COLOR", "1")
        with (tmp_path / "log").open("wb") as log:
            errors = in_a_terminal(*self.arguments, stdout=log.fileno())
        assert ESCAPE not in (tmp_path / "log").read_text(encoding="ascii"), "and nothing but ASCII"
        assert [f"[{n}/6]" in errors for n in range(1, 7)] == [True] * 6 and "━" not in errors
        outcome = run_process(*self.arguments)
        assert ESCAPE not in outcome.output + outcome.errors and "━" not in outcome.errors
        assert len([line for line in outcome.errors.splitlines() if line.startswith("[")]) == 6
        rows = re.search(r"eta +S=5 +S=10 +S=20\n(.*\n)(.*\n)", outcome.output)
        assert rows is not None and len({len(row) for row in rows.groups()}) == 1, "aligned"


def test_training_on_a_terminal(workplace, tiny_training):
    shown = plain(in_a_terminal("train.py", *tiny_training, "trainer.max_steps=10", "logger=none"))
    last = r"training ━+.*100%.*step 10/10: loss \d\.\d+.*images/s.*0:00:00 left"
    assert re.search(last, shown), shown[-2000:]


def test_a_narrow_terminal_cuts_the_note_and_nothing_else():
    console = Console(file=io.StringIO(), force_terminal=True, width=60)
    with progress.progress_bar(console) as bar:
        task = bar.add_task("training", total=10, note="step 10/10: loss 1.0168, val 1.0036, 1328 images/s")
        bar.update(task, completed=10)
    shown = plain(console.file.getvalue())
    assert re.search(r"training ━+ 100% step 10/10: loss 1\S*… +0:00:00 left", shown), shown


class Clock:
    """Seconds that pass as a test says."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(progress.time, "perf_counter", clock)
    return clock


@pytest.fixture
def errors(capsys):
    return lambda: capsys.readouterr().err


class TestLines:
    def test_a_long_point_says_how_long_it_and_the_grid_will_take(self, clock, errors):
        """10 images a second through 10 steps: 100 seconds for the first point, 400 for the second."""
        with GridProgress([10, 40]) as shown:
            shown.start_point("eta 0 S 10", 1000)
            for _ in range(100):
                clock.now += 1
                shown.advance(10)
            shown.finish_point("eta 0 S 10: FD 1.0")
            shown.start_point("eta 0 S 40", 1000)
            for _ in range(100):
                clock.now += 4
                shown.advance(10)
            shown.finish_point("eta 0 S 40: FD 0.5")
        lines = errors().splitlines()
        assert lines[0] == "[1/2] eta 0 S 10, 100/1,000, 1:30 left, grid 8:10"
        assert lines[9] == "[1/2] eta 0 S 10: FD 1.0" and lines[-1] == "[2/2] eta 0 S 40: FD 0.5"
        assert re.fullmatch(r"\[2/2\] eta 0 S 40, 30/1,000, 6:28 left, grid 6:28", lines[10])
        # A line every ten seconds at first, every 5% of the time so far later.
        assert 30 < len(lines) < 45

    def test_a_grid_of_ten_hours_fills_no_disk(self, clock, errors):
        with GridProgress([1]) as shown:
            shown.start_point("eta 0 S 10", 36_000)
            for _ in range(36_000):
                clock.now += 1
                shown.advance(1)
        assert 100 < len(errors().splitlines()) < 200

    def test_points_of_an_earlier_attempt_do_not_count_as_fast(self, clock, errors):
        with GridProgress([10, 10, 10]) as shown:
            shown.finish_point("finished before")
            shown.start_point("second", 100)
            clock.now += 50
            shown.advance(50)
        assert errors().splitlines()[-1] == "[2/3] second, 50/100, 0:50 left, grid 2:30"

    def test_training(self, clock, errors):
        shown = TrainingProgress()
        trainer = SimpleNamespace(global_step=100, max_steps=200, callback_metrics={"train/loss": 0.5}, loggers=[])
        shown._trainer = trainer
        shown.on_train_start(trainer, None)
        for _ in range(100):
            clock.now += 1
            trainer.global_step += 1
            shown.on_train_batch_end(trainer, None, None, None, 0)
        lines = errors().splitlines()
        assert lines[0] == "step 110/200: loss 0.5000, 1:30 left" and len(lines) == 10
        assert lines[-1] == "step 200/200: loss 0.5000, 0:00 left"

    def test_nothing_where_it_is_switched_off(self, clock, errors):
        with GridProgress([1], enabled=False) as shown:
            shown.start_point("a", 10)
            clock.now += 100
            shown.advance(5)
            shown.finish_point("b")
        assert errors() == ""
