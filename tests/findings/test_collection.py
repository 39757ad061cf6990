"""`python -m ddim.results`: what is collected, what is said, and what is left alone. No network is involved."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from ddim.findings.collection import collect, failures
from ddim.findings.files import read_results, write_results, write_rows
from ddim.findings.rows import Floor, GridResult
from ddim.results import main
from ddim.runs.sweeps import jobs_of

ROW = GridResult(
    dataset="digits",
    checkpoint="last.ckpt",
    weights="ema",
    sampler="ddim",
    eta=0.0,
    variance="eta",
    tau="linear",
    steps=5,
    nfe=5,
    num_samples=100,
    seed=0,
    features="pixels",
    frechet_distance=3.0,
    seconds=1.0,
    images_per_second=100.0,
    reference="abc",
)
FLOOR = Floor(360, {"frechet_distance": 0.5}, "pixels", "abc")


def sweep(folder: Path, overrides: str = "sampler.eta=0,1 sampler.steps=5,10") -> Path:
    """The directory of a sweep of which nothing has begun."""
    folder.mkdir()
    texts = ", ".join(f"'{text}'" for text in overrides.split())
    (folder / "multirun.yaml").write_text(
        f"hydra: {{sweeper: {{_target_: a.b.BasicSweeper, params: null}}, overrides: {{task: [{texts}]}}}}"
    )
    return folder


def job(folder: Path, number: int, overrides: str, rows=(), ended: dict | None = None, floor: Floor = FLOOR) -> Path:
    directory = folder / str(number)
    (directory / ".hydra").mkdir(parents=True)
    texts = ", ".join(f"'{text}'" for text in overrides.split())
    (directory / ".hydra" / "hydra.yaml").write_text(
        f"hydra: {{job: {{num: {number}}}, overrides: {{task: [{texts}]}}}}"
    )
    if rows:
        write_results(directory, rows, floor, {"config": {"table": None}})
    if ended is not None:
        (directory / "job.json").write_text(json.dumps(ended))
    return directory


FINISHED = {"state": "finished", "status": 0}
FAILED = {"state": "failed", "status": 2, "sentence": "sampler.steps=5000 is too many."}


def test_a_running_sweep_is_collected_and_names_every_job_without_results(tmp_path, capsys):
    folder = sweep(tmp_path / "sweep", "seed=3 sampler.eta=0,1 sampler.steps=5,10,20")
    job(folder, 0, "seed=3 sampler.eta=0 sampler.steps=5", [ROW], FINISHED)
    job(folder, 1, "seed=3 sampler.eta=0 sampler.steps=10", [], FAILED)
    job(folder, 2, "seed=3 sampler.eta=0 sampler.steps=20", [replace(ROW, steps=20, nfe=20)])
    job(folder, 3, "seed=3 sampler.eta=1 sampler.steps=5", [])
    assert main([str(folder)]) == 0
    said = capsys.readouterr().out
    assert "1 of 6 jobs finished" in said
    assert "job 1 (sampler.eta=0 sampler.steps=10) failed: sampler.steps=5000 is too many." in said
    assert "job 2 (sampler.eta=0 sampler.steps=20) is not finished, 1 results so far" in said
    assert "job 3 (sampler.eta=1 sampler.steps=5) is not finished" in said
    assert "job 5 (sampler.eta=1 sampler.steps=20) is not started" in said and "job 0" not in said
    assert "floor (360 real held-out images)" in said
    assert [(row.eta, row.steps) for row in read_results(folder).rows] == [(0.0, 5), (0.0, 20)]
    assert read_results(folder).floor == FLOOR
    assert {path.name for path in folder.iterdir() if path.is_file()} == {
        "multirun.yaml",
        "results.csv",
        "results.json",
        "report.html",
        "distance.png",
        "speed.png",
    }
    # What it has written itself is no evaluation of its own: a second time changes nothing.
    before = (folder / "results.csv").read_bytes()
    assert main([str(folder)]) == 0 and (folder / "results.csv").read_bytes() == before


def test_jobs_are_in_their_order_and_not_that_of_their_names(tmp_path):
    folder = sweep(tmp_path / "sweep", "seed=range(12)")
    for number in range(12):
        job(folder, number, f"seed={number}", [replace(ROW, seed=number)], FINISHED)
    assert [row.seed for row in collect([folder]).grid] == list(range(12))
    assert [one.overrides for one in jobs_of(folder)][10:] == ["seed=10", "seed=11"]
    assert failures(collect([folder])) == 0


@pytest.mark.parametrize(("ended", "status"), [(FAILED, 2), ({**FAILED, "status": 1}, 1), (None, 1), (FINISHED, 0)])
def test_the_exit_status_of_a_sweep(tmp_path, ended, status):
    folder = sweep(tmp_path / "sweep", "seed=0,1")
    job(folder, 0, "seed=0", [ROW], FINISHED)
    job(folder, 1, "seed=1", [], ended)
    assert failures(collect([folder])) == status


def test_the_same_setting_is_listed_once_and_a_contradiction_is_said(tmp_path, capsys):
    """Times and devices differ between machines; distances must not."""
    again = replace(ROW, seconds=7.0, images_per_second=100 / 7, device="another", frechet_distance=3.0 * (1 + 1e-6))
    other = replace(ROW, frechet_distance=3.1)
    for name, row in (("a", ROW), ("b", again), ("c", other)):
        write_results(tmp_path / name, [row], FLOOR)
    assert main([str(tmp_path / "a"), str(tmp_path / "b")]) == 0
    said = capsys.readouterr().out
    assert "conflict" not in said and said.count("S=5") == 1
    collection = collect([tmp_path / "a", tmp_path / "b", tmp_path / "c"])
    assert collection.grid == [ROW] and len(collection.conflicts) == 1
    assert "3.00000" in collection.conflicts[0] and "3.10000" in collection.conflicts[0]
    assert str(tmp_path / "c") in collection.conflicts[0]


def test_rows_of_different_provenance_get_tables_of_their_own(tmp_path, capsys):
    write_results(tmp_path / "a", [ROW], FLOOR)
    write_results(tmp_path / "b", [replace(ROW, num_samples=200)], FLOOR)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.*")}
    assert main([str(tmp_path / "a"), str(tmp_path / "b")]) == 0
    said = capsys.readouterr().out
    assert said.count("FD (pixels) by eta") == 2 and "N 100" in said and "N 200" in said
    assert {path: path.read_bytes() for path in tmp_path.rglob("*.*")} == before


def test_floors_that_differ_stand_beside_nothing(tmp_path):
    write_results(tmp_path / "a", [ROW], FLOOR)
    write_results(tmp_path / "b", [replace(ROW, steps=10)], replace(FLOOR, num_images=36))
    assert collect([tmp_path / "a"]).floor == FLOOR
    assert collect([tmp_path / "a", tmp_path / "b"]).floor is None


def test_output_gets_everything_and_the_sweep_nothing(tmp_path):
    folder = sweep(tmp_path / "sweep", "seed=0")
    job(folder, 0, "seed=0", [ROW], FINISHED)
    write_results(tmp_path / "a", [replace(ROW, steps=10)], FLOOR)
    output = tmp_path / "all"
    for _ in range(2):  # what was collected may be collected anew
        assert main([str(folder), str(tmp_path / "a"), "--output", str(output)]) == 0
    assert [row.steps for row in read_results(output).rows] == [5, 10]
    assert not (folder / "results.csv").exists() and (output / "distance.png").is_file()


def test_rows_of_the_other_parts_are_put_together(tmp_path, capsys):
    folder = sweep(tmp_path / "sweep", "sampler.steps=5,10")
    for number, steps in enumerate((5, 10)):
        directory = job(folder, number, f"sampler.steps={steps}", [], FINISHED)
        write_rows(directory, "reconstruction", [{"steps": steps, "mse_per_dimension": 0.1}])
    assert main([str(folder)]) == 0
    assert "Reconstruction: 2 rows" in capsys.readouterr().out
    assert [row["steps"] for row in json.loads((folder / "reconstruction.json").read_text())["rows"]] == [5, 10]


def test_a_damaged_job_does_not_hide_the_others(tmp_path, capsys):
    folder = sweep(tmp_path / "sweep", "seed=0,1,2")
    job(folder, 0, "seed=0", [ROW], FINISHED)
    (job(folder, 1, "seed=1", [ROW], FINISHED) / "results.json").write_text('{"rows": [')
    (job(folder, 2, "seed=2", [], None) / ".hydra" / "hydra.yaml").write_text("hydra: {job")
    assert main([str(folder)]) == 0
    said = capsys.readouterr().out
    assert "job 1 (seed=1) failed: " in said and "is not a result file" in said
    assert "job 2 (seed=2) is not started" in said and len(read_results(folder).rows) == 1


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda path: None, "is not a directory"),
        (lambda path: path.mkdir(), "has neither results nor jobs"),
        (lambda path: path.write_text("x"), "is not a directory"),
        (lambda path: (path.mkdir(), (path / "results.json").write_text("{")), "is not a result file"),
    ],
)
def test_a_wrong_directory_is_one_sentence_and_status_2(tmp_path, capsys, make, words):
    make(tmp_path / "wrong")
    with pytest.raises(SystemExit) as exit_:
        main([str(tmp_path / "wrong")])
    errors = capsys.readouterr().err
    assert exit_.value.code == 2 and errors.count("\n") == 1 and words in errors and "wrong" in errors


def test_an_evaluation_is_not_overwritten(tmp_path, capsys):
    write_results(tmp_path / "a", [ROW], FLOOR)
    write_results(tmp_path / "b", [replace(ROW, steps=10)], FLOOR)
    with pytest.raises(SystemExit):
        main([str(tmp_path / "a"), "--output", str(tmp_path / "b")])
    assert "would be lost" in capsys.readouterr().err
    assert [row.steps for row in read_results(tmp_path / "b").rows] == [10]


def test_the_module_is_a_command(tmp_path):
    write_results(tmp_path / "a", [ROW], FLOOR)
    done = subprocess.run(
        [sys.executable, "-W", "error::RuntimeWarning", "-m", "ddim.results", str(tmp_path / "a")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0 and "FD (pixels) by eta" in done.stdout and done.stderr == ""
