"""Imports between files, closer than the contracts between rooms look, which test_project_files asks about."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

SOURCES = Path(__file__).resolve().parents[1] / "src" / "ddim"


def imported(path: Path) -> set[str]:
    """Modules of ddim that a file names in its import statements, wherever they stand: "runs.files"."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            names = [node.module or ""]
            if (SOURCES.parent / Path(*names[0].split("."))).is_dir():  # a package, of which modules may be imported
                names = [f"{names[0]}.{alias.name}" for alias in node.names]
        found |= {name.removeprefix("ddim.") for name in names if name.startswith("ddim.")}
    return found


def known(modules: set[str], *below: str) -> set[str]:
    """Of `modules` those that are in one of the rooms or modules `below`."""
    return {name for name in modules if any(name == other or name.startswith(f"{other}.") for other in below)}


ROOMS = ("diffusion", "denoisers", "data", "metrics")
# Besides itself and the errors. What a network predicts becomes eps by the mathematics of its schedule.
GROUND = {"diffusion": (), "denoisers": ("runs", "diffusion"), "data": ("runs",), "metrics": ("runs",)}


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_itself_the_ground_and_the_errors(room):
    files = sorted((SOURCES / room).rglob("*.py"))
    assert files
    for path in files:
        modules = imported(path)
        assert known(modules, room, "errors", *GROUND[room]) == modules, path


@pytest.mark.parametrize(
    ("module", "below"),
    [
        ("errors", ()),
        ("runs/layout", ()),
        ("runs/signals", ()),
        ("runs/hashes", ()),
        ("runs/paths", ("errors",)),
        ("runs/files", ("errors",)),
        ("runs/plugins", ("errors",)),
        ("runs/sweeps", ("runs.layout",)),
        ("runs/overrides", ("errors", "runs.files", "runs.layout")),
        ("diffusion/grid", ("diffusion", "errors")),
        ("denoisers/formats/own", ("denoisers", "diffusion", "errors", "runs")),
        ("training/module", (*ROOMS, "errors", "training.precision", "training.rates")),
        ("training/checkpoint_io", ("errors", "runs.files")),
        ("display/terminal", ()),
        ("display/page/render", ("display.page", "findings")),
        ("display/page/write", ("display.page", "findings", "runs.files")),
        ("tracking/keys", ("findings.parts",)),
        ("tracking/offline_runs", ()),
        ("tracking/wandb_run", ("tracking.keys", "runs.files")),
        ("tracking/show", ("tracking.keys", "tracking.wandb_run", "findings.paper")),
        ("findings/rows", ("findings.columns",)),
        ("findings/labels", ("findings.columns",)),
        ("findings/columns", ()),
        ("findings/paper/__init__", ("findings.labels",)),
        ("findings/reading", ("errors", "findings", "runs.layout", "runs.sweeps")),
    ],
)
def test_the_layers_within_rooms_import_only_what_is_below(module, below):
    modules = imported(SOURCES / f"{module}.py")
    assert known(modules, *below) == modules


def test_callbacks_of_training_know_nothing_of_configuration_or_runs():
    for path in (SOURCES / "training" / "callbacks").rglob("*.py"):
        above = ("command", "training.build", "training.settings", "training.trainer", "tracking.loggers")
        assert not known(imported(path), *above, "evaluation.build", "evaluation.settings"), path


def test_studies_know_nothing_of_who_asks_them():
    for path in (SOURCES / "evaluation" / "studies").rglob("*.py"):
        assert not known(imported(path), "evaluation.build", "evaluation.running", "evaluation.settings"), path


def test_only_the_scripts_import_the_commands():
    for path in SOURCES.rglob("*.py"):
        if (SOURCES / "command") not in path.parents:
            assert not known(imported(path), "command"), path
    for script in ("train.py", "evaluate.py"):
        assert known(imported(SOURCES.parents[1] / script), "command")


@pytest.mark.parametrize("room", ["diffusion", "denoisers"])
def test_the_lower_rooms_load_neither_lightning_nor_hydra(room):
    code = f"import json, sys, ddim.{room}; print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = {name.split(".")[0] for name in json.loads(done.stdout)}
    assert "torch" in loaded
    assert not loaded & {"pytorch_lightning", "lightning", "hydra", "omegaconf", "torchmetrics", "wandb"}
