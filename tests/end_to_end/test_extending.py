"""docs/extending.md does what it says: its files are written, its commands are run, one after the other."""

from __future__ import annotations

import csv
import json
import re
import shlex
from pathlib import Path

import pytest

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "extending.md").read_text(encoding="utf-8")
TINY = {
    "train.py": (
        *("trainer.max_steps=2", "trainer.val_check_interval=1", "callbacks.sample_grid.steps=2", "logger=none"),
        *("denoiser.base_channels=8", "denoiser.norm_groups=4", "callbacks.evaluation.enabled=false"),
    ),
    "evaluate.py": ("evaluation.num_samples=70", "evaluation.loss_images=70", "logger=none"),
}


def blocks(kind: str) -> list[str]:
    return re.findall(rf"^```{kind}\n(.*?)^```", PAGE, flags=re.MULTILINE | re.DOTALL)


def test_each_file_is_short_and_named():
    names = [block.splitlines()[0] for block in blocks("python")]
    assert names == ["# stripes.py", "# heun.py", "# power.py", "# coverage.py", "# edges.py"]
    assert all(len(block.splitlines()) < 30 for block in blocks("python"))


@pytest.fixture
def rows(workplace):
    """The rows of the newest evaluation."""

    def read() -> list[dict[str, str]]:
        newest = max((workplace / "outputs" / "evaluate").iterdir())
        return list(csv.DictReader((newest / "results.csv").open()))

    return read


def test_the_page_from_top_to_bottom(run_process, workplace, monkeypatch, rows):
    for block in blocks("python"):
        (workplace / block.splitlines()[0].removeprefix("# ")).write_text(block)
    found: dict[str, list[dict[str, str]]] = {}
    for block in blocks("bash"):
        for line in block.splitlines():
            if line.startswith("export "):
                name, _, value = line.removeprefix("export ").partition("=")
                monkeypatch.setenv(name, value)
                continue
            python, script, *arguments = shlex.split(line)
            assert python == "python"
            steps = [] if script == "train.py" or "steps" in line else ["sampler.steps=2", "sampler.eta=0"]
            outcome = run_process(script, *arguments, *TINY[script], *steps)
            assert outcome.status == 0, (line, outcome.errors)
            found[line] = [] if script == "train.py" else rows()

    (plain,) = found["python evaluate.py"]
    assert (plain["dataset"], plain["sampler"], plain["nfe"], plain["features"]) == ("stripes", "ddim", "2", "pixels")
    heun = found["python evaluate.py sampler=heun sampler.steps=5,10"]
    assert [(row["sampler"], row["steps"], row["nfe"]) for row in heun] == [("heun", "5", "9"), ("heun", "10", "19")]
    (measured,) = found["python evaluate.py evaluation.metrics=frechet_distance,coverage"]
    assert measured["schedule"] == "power(num_timesteps=1000, power=3)" and 0 <= float(measured["coverage"]) <= 1
    newest = sorted((workplace / "outputs" / "evaluate").iterdir())[-2]
    assert "coverage" in json.loads((newest / "results.json").read_text())["floor"]["metrics"]
    (edges,) = found["python evaluate.py evaluation.features=edges"]
    assert edges["features"] == "edges"

    # Without them: one sentence that names what is not known.
    monkeypatch.delenv("DDIM_PLUGINS")
    outcome = run_process("evaluate.py", *TINY["evaluate.py"])
    assert outcome.status == 2 and outcome.errors.startswith("error: ") and outcome.errors.count("\n") == 1
    assert "power" in outcome.errors or "stripes" in outcome.errors
    assert "DDIM_PLUGINS" in outcome.errors
