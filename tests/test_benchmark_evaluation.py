"""`python -m benchmarks.evaluation` runs, tiny; what it measures is not tested here."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).parents[1]


def run(folder: Path, *arguments: str) -> str:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(REPOSITORY), str(REPOSITORY / "src")])}
    done = subprocess.run(
        [sys.executable, *arguments], env=environment, cwd=folder, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_metrics_and_memory(tmp_path):
    tiny = ("--rows", "60", "--dim", "8", "--repeats", "1", "--memory-rows", "1100", "--memory-steps", "2")
    said = run(tmp_path, "-m", "benchmarks.evaluation", "--only", "memory", "metrics", *tiny)
    for text in ("threads; load", "N = 1,100, S = 2", "precision_recall: torch-fidelity", "torchmetrics", "kid: ddim"):
        assert text in said


def test_the_grid_of_a_trained_network(tmp_path, trained_run, cache_dir, monkeypatch):
    shutil.copytree(trained_run, tmp_path / "outputs" / "train" / trained_run.name)
    monkeypatch.setenv("DDIM_CACHE_DIR", str(cache_dir))
    code = "from pathlib import Path; from benchmarks.evaluation import show_grid; show_grid(Path(), 16, [1, 2], 1)"
    *_, one, two, more = run(tmp_path, "-c", code).splitlines()
    assert one.startswith("| 1 point") and two.startswith("| 2 points") and more.startswith("| one more point")
    # Everything, and its parts: sampling, features, metrics, pictures, rest.
    whole, *parts = (float(cell) for cell in one.split("|")[2:-1])
    assert whole > 0 and abs(whole - sum(parts)) < 0.005 and min(parts) >= 0
