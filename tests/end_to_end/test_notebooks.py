"""The notebooks run from top to bottom, and what is committed was really shown."""

from __future__ import annotations

import ast
import json
import re
import runpy
from pathlib import Path
from types import SimpleNamespace

import nbformat
import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
NOTEBOOKS = sorted((REPOSITORY / "notebooks").glob("*.ipynb"))
tool = SimpleNamespace(**runpy.run_path(str(REPOSITORY / "tools" / "run_notebooks.py")))
BY_NAME = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def texts(notebook: nbformat.NotebookNode) -> str:
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    return "\n".join(output.get("text", "") for cell in cells for output in cell.outputs)


def pictures(notebook: nbformat.NotebookNode) -> int:
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    return sum("image/png" in output.get("data", {}) for cell in cells for output in cell.outputs)


def test_there_are_four():
    names = ["01_quickstart", "02_eta_and_tau", "03_your_own", "04_guidance_and_restoration"]
    assert [path.stem for path in NOTEBOOKS] == names


@BY_NAME
def test_it_runs(path, workplace, digits_run, monkeypatch):
    """Short trainings, or the run that the whole suite shares."""
    monkeypatch.setenv("DDIM_NOTEBOOK_STEPS", "20")
    monkeypatch.setenv("DDIM_RUN", str(digits_run))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY / "src"))
    shown = tool.execute(path, workplace)
    kept = nbformat.read(path, as_version=4)
    assert [cell.source for cell in shown.cells] == [cell.source for cell in kept.cells]
    # The same kinds of things as in the file.
    assert pictures(shown) == pictures(kept) >= 1
    numbers = re.compile(r"\d[\d.,:e+-]*")
    assert len(numbers.findall(texts(shown))) > 5


@BY_NAME
def test_what_is_committed(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert path.stat().st_size < 450_000
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1)), "run once, from top to bottom"
    text = texts(notebook)
    assert not re.search(r"/(home|tmp|root|work|Users)/|Warning|WARNING|Traceback|\x1b", text)
    assert json.loads(path.read_text())["metadata"]["kernelspec"]["name"] == "python3"
    for cell in code:
        if not cell.source.startswith("%%"):
            ast.parse(cell.source)


def test_the_samplers_of_the_third_differ_in_nothing_but_themselves():
    (third,) = [path for path in NOTEBOOKS if path.stem == "03_your_own"]
    text = texts(nbformat.read(third, as_version=4))
    assert text.count("lowest of its row") == 2 and "adams_bashforth" in text
