"""What answers at once loads no torch: help, completion, and the commands that read files."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
HEAVY = {"torch", "pytorch_lightning", "torchmetrics", "torchvision", "torch_fidelity", "wandb", "sklearn", "scipy"}
# Runs a script or a module as a user does, and says what it has loaded whatever ends it.
WATCHED = """
import json, runpy, sys
status = 0
sys.argv = sys.argv[1:]
try:
    run = runpy.run_path if sys.argv[0].endswith(".py") else runpy.run_module
    run(sys.argv[0], run_name="__main__")
except SystemExit as end:
    status = end.code
print()
print(json.dumps([status or 0, sorted(sys.modules)]))
"""


def loaded_by(*command: str, cwd: Path, **environment: str) -> set[str]:
    outcome = subprocess.run(
        [sys.executable, "-c", WATCHED, *command],
        capture_output=True,
        text=True,
        cwd=cwd,
        env={**os.environ, **environment},
        check=False,
        timeout=120,
    )
    assert outcome.returncode == 0, outcome.stderr
    status, modules = json.loads(outcome.stdout.splitlines()[-1])
    assert status == 0, outcome.stderr
    return {name.partition(".")[0] for name in modules}


@pytest.mark.parametrize("script", ["train.py", "evaluate.py"])
def test_help_loads_nothing_heavy(script, tmp_path):
    assert not loaded_by(str(REPOSITORY / script), "--help", cwd=tmp_path) & HEAVY


def test_completion_loads_nothing_heavy(tmp_path):
    script = str(REPOSITORY / "evaluate.py")
    line = {"COMP_LINE": "python evaluate.py sampler=", "COMP_POINT": "27"}
    assert not loaded_by(script, "-sc", "query=bash", cwd=tmp_path, **line) & HEAVY


@pytest.mark.parametrize("module", ["ddim.results", "ddim.report"])
def test_what_reads_files_loads_no_torch(module, tmp_path):
    evaluation = REPOSITORY / "tests" / "end_to_end" / "kept" / "evaluation"
    for path in evaluation.glob("*.*"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    assert not loaded_by(module, str(tmp_path), cwd=tmp_path) & HEAVY
