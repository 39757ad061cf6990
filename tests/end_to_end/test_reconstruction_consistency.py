"""`evaluation=reconstruction` and `evaluation=consistency` on a trained network: the paper's two claims, measured."""

from __future__ import annotations

import csv
import re
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

STEPS = "sampler.steps=5,10,20,50"
# evaluate.py's arguments -> regular expressions that the one sentence must match: key and value, then what is right.
MISTAKES = {
    "evaluation=reconstruction evaluation.reconstruction.num_images=361": (
        r"evaluation\.reconstruction\.num_images=361",
        "360",
    ),
    "evaluation=reconstruction evaluation.reconstruction.num_images=0": (
        r"evaluation\.reconstruction\.num_images=0",
        "at least 1",
    ),
    "evaluation=reconstruction evaluation.reconstruction.num_images=all": (
        r"evaluation\.reconstruction\.num_images",
        "all",
        "whole number|Integer",
    ),
    "evaluation=reconstruction evaluation.reconstruction.shown=0": (
        r"evaluation\.reconstruction\.shown=0",
        "at least 1",
    ),
    "evaluation=reconstruction sampler.steps=0": (r"sampler\.steps=0", "from 1 to 1000"),
    "evaluation=consistency evaluation.consistency.num_images=1": (
        r"evaluation\.consistency\.num_images=1",
        "at least 2",
    ),
    "evaluation=consistency evaluation.consistency.shown=0": (r"evaluation\.consistency\.shown=0", "at least 1"),
    "evaluation=consistency evaluation.consistency.eta=2": (r"evaluation\.consistency\.eta=2", "from 0 to 1"),
    "evaluation=consistency evaluation.consistency.eta=[]": (r"evaluation\.consistency\.eta=\[\]", "at least one"),
    "evaluation=consistency sampler.steps=10": (r"sampler\.steps=10", "at least two"),
    "evaluation=consistency evaluation.features=none_such": (r"evaluation\.features=none_such", "pixels"),
}


def only(directory: Path) -> Path:
    (entry,) = directory.iterdir()
    return entry


def rows_of(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.open()))


def has_content(path: Path) -> bool:
    picture = np.asarray(Image.open(path).convert("L"), float)
    return picture.shape[1] >= 600 and picture.std() > 10


def printed_rows(output: str, columns: int) -> list[list[float]]:
    """Lines of the printed tables that are that many numbers."""
    lines = [line.split() for line in output.splitlines()]
    return [[float(cell) for cell in line] for line in lines if len(line) == columns and re.match(r"\d+$", line[0])]


def test_the_reconstruction_error_falls_with_the_number_of_steps(run_script, workplace, digits_run):
    outcome = run_script(
        "evaluate.py",
        f"checkpoint={digits_run}",
        "evaluation=reconstruction",
        "evaluation.reconstruction.num_images=150",
        "logger=csv",
        STEPS,
    )
    assert outcome.status == 0, outcome.errors
    directory = only(workplace / "outputs" / "evaluate")
    rows = rows_of(directory / "reconstruction.csv")
    errors = [float(row["mse_per_dimension"]) for row in rows]
    assert [(row["steps"], row["nfe"], row["encode_nfe"]) for row in rows] == [
        (s, s, s) for s in ["5", "10", "20", "50"]
    ]
    assert all(row["num_images"] == "150" and row["split"] == "test" and row["eta"] == "0.0" for row in rows)
    # Paper, Table 2: 0.014, 0.0065, 0.0023 at S = 10, 20, 50.
    assert all(later < earlier / 1.5 for earlier, later in pairwise(errors)), errors
    assert errors[-1] < errors[0] / 8, errors
    for found, row in zip(printed_rows(outcome.output, 4), rows, strict=True):
        assert found[:2] == [int(row["steps"]), 2 * int(row["steps"])]
        assert found[2] == pytest.approx(float(row["mse_per_dimension"]), rel=6e-3)
    for name in ("images", "error"):
        assert has_content(directory / f"reconstruction-{name}.png")
        assert f"reconstruction-{name}.png" in outcome.output
    logged = [row for path in directory.glob("csv/version_*/metrics.csv") for row in rows_of(path)]
    key = "reconstruction/mse/linear/steps0010"
    assert [float(row[key]) for row in logged if row.get(key)] == [pytest.approx(errors[1])]


def test_clipping_and_randomness_of_the_sampler_are_not_the_reconstruction_s(run_script, workplace, digits_run):
    errors = []
    for number, more in enumerate([[], ["sampler.clip_denoised=true", "sampler.eta=1", "evaluation.batch_size=7"]]):
        outcome = run_script(
            "evaluate.py",
            f"checkpoint={digits_run}",
            "evaluation=reconstruction",
            "evaluation.reconstruction.num_images=20",
            "sampler.steps=10",
            "logger=none",
            f"hydra.run.dir={workplace / str(number)}",
            *more,
        )
        assert outcome.status == 0, outcome.errors
        (row,) = rows_of(workplace / str(number) / "reconstruction.csv")
        assert (row["clip_denoised"], row["eta"]) == ("false", "0.0")
        errors.append(float(row["mse_per_dimension"]))
    assert errors[0] == pytest.approx(errors[1], rel=1e-4)


def test_the_deterministic_sampler_is_consistent_and_ddpm_is_not(run_script, workplace, digits_run):
    outcome = run_script("evaluate.py", f"checkpoint={digits_run}", "evaluation=consistency", "logger=csv", STEPS)
    assert outcome.status == 0, outcome.errors
    directory = only(workplace / "outputs" / "evaluate")
    rows = {(row["eta"], int(row["steps"])): row for row in rows_of(directory / "consistency.csv")}
    assert list(rows) == [(eta, steps) for eta in ("0.0", "1.0") for steps in (5, 10, 20)]
    assert {(row["reference_steps"], row["num_images"], row["features"]) for row in rows.values()} == {
        ("50", "100", "digits-cnn")
    }

    def value(eta: str, steps: int, column: str) -> float:
        return float(rows[eta, steps][column])

    # Measured: 700; where latents decided as much with noise as without it, it would be 1.
    ratio = value("1.0", 20, "mse") / value("0.0", 20, "mse")
    assert ratio >= 50
    sentence = re.search(r"eta = 0 is (\S+) times closer than eta = 1 \(MSE, S=20 to S=50\)", outcome.output)
    assert sentence is not None and float(sentence[1]) == pytest.approx(ratio, rel=6e-3)
    assert value("0.0", 5, "mse") > value("0.0", 10, "mse") > value("0.0", 20, "mse")
    assert value("0.0", 20, "ssim") > 0.97 and value("1.0", 20, "ssim") < 0.7
    assert value("0.0", 20, "feature_distance_relative") < 0.15
    assert 0.7 < value("1.0", 20, "feature_distance_relative") < 1.1
    printed = printed_rows(outcome.output, 5)
    assert [line[0] for line in printed] == [5, 10, 20, 5, 10, 20]
    for line, row in zip(printed, rows.values(), strict=True):
        assert line[1] == pytest.approx(float(row["mse"]), rel=6e-3)
    for name in ("images", "distance"):
        assert has_content(directory / f"consistency-{name}.png")
        assert f"consistency-{name}.png" in outcome.output
    logged = [row for path in directory.glob("csv/version_*/metrics.csv") for row in rows_of(path)]
    key = "consistency/mse/eta0.000/linear/steps0010"
    assert [float(row[key]) for row in logged if row.get(key)] == [pytest.approx(value("0.0", 10, "mse"))]


def test_both_in_one_run_reach_weights_and_biases(run_script, workplace, trained_run):
    outcome = run_script(
        "evaluate.py",
        f"checkpoint={trained_run}",
        "evaluation.parts=[consistency,reconstruction]",
        "evaluation.consistency.num_images=4",
        "evaluation.reconstruction.num_images=4",
        "sampler.steps=2,3",
        "logger=wandb",
    )
    assert outcome.status == 0, outcome.errors
    directory = only(workplace / "outputs" / "evaluate")
    kept = sorted(path.name for path in directory.rglob("wandb/offline-run-*/files/media/*/*/*"))
    for what in ("consistency/images", "consistency/distance", "reconstruction/images", "reconstruction/error"):
        assert [name for name in kept if name.startswith(what.split("/")[1])], (what, kept)
    assert len([name for name in kept if name.startswith("results")]) == 2, kept


@pytest.mark.parametrize("arguments", MISTAKES)
def test_a_mistake_is_one_sentence_before_any_work(run_script, workplace, trained_run, arguments):
    outcome = run_script("evaluate.py", f"checkpoint={trained_run}", "logger=none", *arguments.split())
    assert outcome.status == 2, outcome.errors or outcome.output
    (line,) = outcome.errors.splitlines()
    assert line.startswith("error: ")
    for pattern in MISTAKES[arguments]:
        assert re.search(pattern, line), f"no {pattern!r} in: {line}"
    assert not list(workplace.rglob("*.png")) and not list(workplace.rglob("reconstruction.csv"))
