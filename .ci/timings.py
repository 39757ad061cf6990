"""What waiting for this program costs: `python .ci/timings.py SECONDS_OF_THE_DEMO`, after the demo has trained.

The fastest of three runs each, since whatever else the machine does makes a run slower and never faster. It is printed
and nothing fails: machines differ, and what is too long is for people to judge.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
RUNS = 3


def help_text() -> float:
    began = time.perf_counter()
    subprocess.run([sys.executable, "train.py", "--help"], cwd=REPOSITORY, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - began


def first_line() -> float:
    """Until an evaluation says what it is going to do; then it is ended, which does not count."""
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as directory:
        command = [sys.executable, "-u", "evaluate.py", "logger=none", f"hydra.run.dir={directory}/evaluation"]
        with subprocess.Popen(
            command, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        ) as evaluation:
            assert evaluation.stdout is not None
            said = evaluation.stdout.readline()
            waited = time.perf_counter() - began
            evaluation.terminate()
            evaluation.stdout.read()
    if not said.startswith("Evaluating"):
        raise RuntimeError(f"instead of its first line the evaluation said: {said}")
    return waited


def fastest(action: Callable[[], float]) -> str:
    """`action` returns the seconds that it took."""
    try:
        durations = [action() for _ in range(RUNS)]
    except (OSError, subprocess.SubprocessError, RuntimeError) as error:
        return f"not measured ({error})"
    return f"{min(durations):6.2f} s"


if __name__ == "__main__":
    print("Timings (fastest of three; nothing depends on them)")
    print(f"  train.py --help                {fastest(help_text)}")
    print(f"  first line of an evaluation    {fastest(first_line)}")
    print(f"  make demo                      {float(sys.argv[1]):6.0f} s")
