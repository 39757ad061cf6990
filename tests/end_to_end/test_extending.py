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
        "callbacks.evaluation.enabled=false",
    ),
    "evaluate.py": ("evaluation.num_samples=70", "evaluation.loss_images=70", "logger=none"),
}
TABLES = ("brightness.csv", "restoration.csv", "results.csv")
WEIGHTS = ("", " sampler.weight=0")
SMALL_UNET = ("denoiser.base_channels=8", "denoiser.norm_groups=4")


def blocks(kind: str) -> list[str]:
    return re.findall(rf"^```{kind}\n(.*?)^```", PAGE, flags=re.MULTILINE | re.DOTALL)


def test_each_file_is_short_and_named():
    names = [block.splitlines()[0] for block in blocks("python")]
    files = ["stripes", "plain", "trapezoid", "bright", "projections", "p2", "power", "coverage", "edges", "brightness"]
    assert names == [f"# {name}.py" for name in files]
    lines = [len(block.splitlines()) for block in blocks("python")]
    assert max(lines[:-1]) < 30 and lines[-1] < 80


@pytest.fixture
def rows(workplace):
    """The rows of the newest evaluation."""

    def read() -> list[dict[str, str]]:
        newest = max((workplace / "outputs" / "evaluate").iterdir())
        table = next(path for name in TABLES if (path := newest / name).is_file())
        return list(csv.DictReader(table.open()))

    return read


def test_the_page_from_top_to_bottom(run_fork, run_process, workplace, rows):
    for block in blocks("python"):
        (workplace / block.splitlines()[0].removeprefix("# ")).write_text(block)
    variables: dict[str, str] = {}
    found: dict[str, list[list[dict[str, str]]]] = {}
    for block in blocks("bash"):
        for line in block.splitlines():
            if line.startswith("export "):
                name, _, value = line.removeprefix("export ").partition("=")
                variables[name] = value
                continue
            python, script, *arguments = shlex.split(line)
            assert python == "python"
            steps = [] if script == "train.py" or "steps" in line else ["sampler.steps=2", "sampler.eta=0"]
            size = SMALL_UNET if script == "train.py" and "denoiser" not in line else ()
            outcome = run_fork(workplace, variables, script, *arguments, *TINY[script], *size, *steps)
            assert outcome.status == 0, (line, outcome.output)
            found.setdefault(line, []).append([] if script == "train.py" else rows())

    (unet,), (plain,) = found["python evaluate.py"]
    assert (unet["dataset"], unet["sampler"], unet["nfe"], unet["features"]) == ("stripes", "ddim", "2", "pixels")
    assert plain["weights_hash"] != unet["weights_hash"] and "weight" not in plain
    (heun,), (euler,) = (found[f"python evaluate.py sampler=trapezoid sampler.steps=5,10{more}"] for more in WEIGHTS)
    assert [(row["sampler"], row["steps"], row["nfe"]) for row in heun] == [
        ("trapezoid", "5", "9"),
        ("trapezoid", "10", "19"),
    ]
    assert [(row["steps"], row["nfe"], row["weight"]) for row in euler] == [("5", "5", "0"), ("10", "10", "0")]
    (restored,) = (rows for line, (rows, *_) in found.items() if "projections" in line)
    assert [row["method"] for row in restored] == ["ddrm", "pigdm", "pseudo_inverse", "gaussian_posterior_mean"]
    assert {row["operator"] for row in restored} == {"projections"} and float(restored[0]["consistency"]) < 1e-5
    ((measured,),) = found["python evaluate.py evaluation.metrics=frechet_distance,coverage"]
    assert measured["schedule"] == "power(num_timesteps=1000, power=3)" and 0 <= float(measured["coverage"]) <= 1
    ((edges,),) = found["python evaluate.py evaluation.features=edges"]
    assert edges["features"] == "edges"
    ((alone,),) = found["python evaluate.py evaluation=brightness evaluation.brightness.num_images=50"]
    ((beside,),) = found["python evaluate.py evaluation.parts=grid,brightness"]
    assert float(alone["real"]) == pytest.approx(0.5, abs=0.05) and 0 < float(alone["mean"]) < 1
    # 50 samples and 100 of the same points.
    assert float(beside["mean"]) != float(alone["mean"]) and beside["weights_hash"] == alone["weights_hash"]
    evaluations = sorted((workplace / "outputs" / "evaluate").iterdir())
    assert "coverage" in json.loads((evaluations[-4] / "results.json").read_text())["floor"]["metrics"]
    assert not (evaluations[-2] / "results.csv").exists() and (evaluations[-1] / "results.csv").is_file()

    # Without them: one sentence that names what is not known.
    outcome = run_process("evaluate.py", *TINY["evaluate.py"])
    assert outcome.status == 2 and outcome.errors.startswith("error: ") and outcome.errors.count("\n") == 1
    assert "power" in outcome.errors or "stripes" in outcome.errors
    assert "DDIM_PLUGINS" in outcome.errors
