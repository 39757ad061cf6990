"""What answers at once loads no torch: help, completion, the commands that read files. An evaluation begins lean."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
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


# Runs a script until it prints its first line, and says what was loaded by then.
UNTIL_FIRST_LINE = """
import json, os, runpy, sys

class FirstLine:
    def write(self, text):
        sys.__stdout__.write(json.dumps([text, sorted(sys.modules)]))
        sys.__stdout__.flush()
        os._exit(0)

    def __getattr__(self, name):
        return getattr(sys.__stdout__, name)

sys.argv = sys.argv[1:]
sys.stdout = FirstLine()
runpy.run_path(sys.argv[0], run_name="__main__")
"""
# What Lightning, torch-fidelity and scikit-learn would have brought, and what only later work needs.
LATER = {"torchvision", "torch_fidelity", "sklearn", "scipy", "transformers", "pandas", "sympy", "wandb", "diffusers"}


def test_an_evaluation_says_its_first_line_without_what_only_later_ones_need(trained_run, cache_dir, tmp_path):
    command = ["-c", UNTIL_FIRST_LINE, str(REPOSITORY / "evaluate.py"), f"checkpoint={trained_run}", "logger=csv"]
    environment = {**os.environ, "DDIM_CACHE_DIR": str(cache_dir), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *command], capture_output=True, text=True, cwd=tmp_path, env=environment, timeout=120
    )
    line, modules = json.loads(done.stdout)
    assert line.startswith("Evaluating ") and "pytorch_lightning" in modules and "torchmetrics.metric" in modules
    assert not LATER & {name.partition(".")[0] for name in modules}
    assert not {"torch._dynamo", "torch._inductor", "torchmetrics.functional"} & set(modules)


def test_what_was_put_off_is_there_when_it_is_used():
    code = """
        import sys
        from ddim.command.deferring import load_lightning
        load_lightning()
        import torch, torchmetrics
        from pytorch_lightning.utilities.compile import OptimizedModule
        assert "torchmetrics.functional" not in sys.modules and "torch._dynamo" not in sys.modules
        metric = torchmetrics.Metric
        assert issubclass(torchmetrics.MeanMetric, metric) and torchmetrics.Metric is metric
        assert torchmetrics.functional.image.structural_similarity_index_measure and "Metric" in torchmetrics.__all__
        assert not hasattr(torchmetrics, "never_heard_of") and not hasattr(torchmetrics, "__never__")
        network = torch.nn.Linear(1, 1)
        assert not isinstance(network, OptimizedModule)
        assert isinstance(torch.compile(network), OptimizedModule)
        import torch._dynamo
        assert not isinstance(network, OptimizedModule) and torch._dynamo.OptimizedModule is not OptimizedModule
        load_lightning()
        assert torchmetrics is sys.modules["torchmetrics"]
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
