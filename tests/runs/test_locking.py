"""A folder is one process's at a time, and nobody's as soon as that process is gone."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from ddim.runs.locking import locked

HOLD = """
import sys, time
from pathlib import Path
from ddim.runs.locking import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(100)
"""


def test_a_killed_process_holds_nothing(tmp_path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None and process.stdout.readline() == "held\n"
        with pytest.raises(BlockingIOError), locked(tmp_path, wait=False):
            raise AssertionError("two hold it")
    finally:
        process.kill()
        process.wait()
    with locked(tmp_path, wait=False):
        assert list(tmp_path.iterdir()) == []


def test_errors_pass_and_release(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="inside"), locked(tmp_path):
        raise ValueError("inside")
    with locked(tmp_path, wait=False):
        pass
