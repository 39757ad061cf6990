"""What an earlier version left behind is taken up: a training that was stopped, an evaluation that was killed half way.

The files in `kept/` were written before the package had its rooms, and are never written anew: they stand for what
users have on their disks.
"""

from __future__ import annotations

import csv
import shutil
from pathlib import Path

import pytest
import torch

KEPT = Path(__file__).parent / "kept"
TIMES = ("seconds", "images_per_second", "device")
MEASURED = ("frechet_distance", "kid_mean", "kid_std", "precision", "recall", "mse_per_dimension")


@pytest.fixture
def outputs(workplace: Path) -> Path:
    """The runs where their command lines have them."""
    (workplace / "outputs" / "evaluate").mkdir(parents=True)
    shutil.copytree(KEPT / "train", workplace / "outputs" / "train" / "kept")
    shutil.copytree(KEPT / "evaluation", workplace / "outputs" / "evaluate" / "killed")
    return workplace / "outputs"


def table(path: Path) -> list[dict[str, str]]:
    with open(path) as stream:
        return [{key: value for key, value in row.items() if key not in TIMES} for row in csv.DictReader(stream)]


def agree(found: list[dict[str, str]], expected: list[dict[str, str]], tolerance: float) -> None:
    assert len(found) == len(expected)
    for row, wanted in zip(found, expected, strict=True):
        # What is said of a distance since: its bar, and its value without bias.
        since = {name for name in row if name.endswith(("_sd", "_unbiased"))}
        assert row.keys() - since == wanted.keys()
        for key, value in wanted.items():
            if key in MEASURED and value:
                # Another processor may round single pixels the other way.
                assert float(row[key]) == pytest.approx(float(value), rel=tolerance, abs=tolerance), key
            else:
                assert row[key] == value, key


def test_a_killed_evaluation_goes_on_and_knows_what_is_finished(run_script, outputs):
    killed = outputs / "evaluate" / "killed"
    before = {path: path.read_bytes() for path in (killed / "finished").glob("*.safetensors")}
    assert len(before) == 2 and len(list(killed.glob("partial/*/*.safetensors"))) == 3
    outcome = run_script("evaluate.py", f"resume={killed}")
    assert outcome.status == 0, outcome.errors
    assert outcome.errors.count("finished before") == 2
    finished = sorted((killed / "finished").glob("*.safetensors"))
    assert len(finished) == 6, "4 grid points and 2 reconstructions"
    assert all(path.read_bytes() == content for path, content in before.items())
    assert not list(killed.glob("partial/*/*"))
    rows, expected = table(killed / "results.csv"), table(KEPT / "expected.csv")
    # What was finished is read and not computed; the third point is half from its kept samples.
    agree(rows[:2], expected[:2], 1e-12)
    agree(rows, expected, 1e-3)
    agree(table(killed / "reconstruction.csv"), table(KEPT / "expected_reconstruction.csv"), 1e-4)


def test_its_points_have_the_names_that_they_had(run_script, outputs):
    """The names are hashes of all that the numbers depend on: new settings must not change those of old ones."""
    outcome = run_script("evaluate.py", f"resume={outputs / 'evaluate' / 'killed'}")
    assert outcome.status == 0, outcome.errors
    assert {path.stem for path in (outputs / "evaluate" / "killed" / "finished").glob("*.safetensors")} == {
        "grid-23732d415a1ba4eb",
        "grid-c6c9dc7b0b932d66",
        "grid-cf62f79a50f0ddcb",
        "grid-ef17af1601dfc2fd",
        "reconstruction-100538c1f1623c95",
        "reconstruction-c1f1af2f5b5ed491",
    }


def test_a_stopped_training_goes_on(run_script, outputs):
    run = outputs / "train" / "kept"
    outcome = run_script("train.py", f"resume={run}", "trainer.max_steps=6")
    assert outcome.status == 0, outcome.errors
    checkpoint = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    assert checkpoint["global_step"] == 6
    old = torch.load(KEPT / "train" / "checkpoints" / "last.ckpt", weights_only=True)
    assert checkpoint.keys() == old.keys() and checkpoint["callbacks"].keys() == old["callbacks"].keys()
    assert checkpoint["state_dict"].keys() == old["state_dict"].keys()
