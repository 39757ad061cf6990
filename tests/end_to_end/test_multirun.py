"""`python evaluate.py -m`: a job per point, one table at the end, whoever launches the jobs."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from hydra import compose, initialize_config_dir
from PIL import Image

from ddim.command.arguments import sweep_arguments
from ddim.command.hydra_callbacks import Sweep
from ddim.errors import UserError
from ddim.findings.files import read_results

REPOSITORY = Path(__file__).resolve().parents[2]
EVALUATION = (
    "logger=csv",
    "trainer.accelerator=cpu",
    "evaluation.num_samples=70",
    "evaluation.grid_images=20",
    "evaluation.metrics=[frechet_distance]",
)
GRID = ("sampler.eta=0,1", "sampler.steps=5,10")
# Files that belong to one grid, whoever computed its points.
COLLECTED = ("results.csv", "results.json", "report.html", "distance.png", "speed.png", "samples.png")


def only(directory: Path) -> Path:
    (entry,) = directory.iterdir()
    return entry


def numbers(directory: Path) -> dict[tuple[float, int], float | None]:
    return {(row.eta, row.steps): row.frechet_distance for row in read_results(directory).rows}


@pytest.fixture
def grid(run_script, workplace, trained_run):
    """The grid as one process measures it."""
    directory = workplace / "one"
    outcome = run_script("evaluate.py", f"checkpoint={trained_run}", f"hydra.run.dir={directory}", *GRID, *EVALUATION)
    assert outcome.status == 0, outcome.errors
    return directory


def test_a_sweep_makes_the_table_of_the_single_process(run_script, workplace, trained_run, grid):
    outcome = run_script("evaluate.py", "-m", f"checkpoint={trained_run}", *GRID, *EVALUATION)
    assert outcome.status == 0, outcome.errors
    sweep = only(workplace / "outputs" / "multirun")
    assert {path.name for path in sweep.iterdir()} == {"0", "1", "2", "3", "multirun.yaml", *COLLECTED}
    assert numbers(sweep) == pytest.approx(numbers(grid), rel=1e-5) and len(numbers(sweep)) == 4
    assert read_results(sweep).floor == read_results(grid).floor
    # The sheet holds the very images, recovered from the pictures of the jobs.
    sheets = [np.asarray(Image.open(directory / "samples.png")) for directory in (grid, sweep)]
    assert np.array_equal(*sheets)
    assert outcome.output.count("FD (digits-cnn) by eta") == 1 and "4 of 4 jobs finished" in outcome.output
    assert len([line for line in outcome.output.splitlines() if "S=5" in line and "S=10" in line]) == 1


def test_a_failed_job_leaves_the_others_their_rows(run_script, workplace, trained_run):
    """Hydra's own launcher runs the jobs one after another; the second of four fails."""
    outcome = run_script(
        "evaluate.py", "-m", f"checkpoint={trained_run}", "sampler.eta=0,1", "sampler.steps=5,5000", *EVALUATION
    )
    assert outcome.status == 2
    sweep = only(workplace / "outputs" / "multirun")
    assert set(numbers(sweep)) == {(0.0, 5), (1.0, 5)}
    said = "job 1 (sampler.eta=0 sampler.steps=5000) failed: sampler.steps=5000 must be a whole number from 1 to 1000"
    assert said in outcome.output and "job 3 (sampler.eta=1 sampler.steps=5000) failed" in outcome.output
    assert outcome.errors.count("error: job 1: sampler.steps=5000 must be") == 1 and "Traceback" not in outcome.errors
    collected = json.loads((sweep / "results.json").read_text())["extra"]["collected"]
    assert [job["state"] for job in collected] == ["finished", "failed", "finished", "failed"]


def test_joblib_makes_the_same_table(run_process, workplace, trained_run, grid):
    """Two jobs at a time, of which two fail in their own processes."""
    outcome = run_process(
        "evaluate.py",
        "-m",
        "hydra/launcher=joblib",
        "hydra.launcher.n_jobs=2",
        f"checkpoint={trained_run}",
        "sampler.eta=0,1.5",
        "sampler.steps=5,10",
        *EVALUATION,
    )
    assert outcome.status == 2, outcome.errors
    sweep = only(workplace / "outputs" / "multirun")
    expected = {key: value for key, value in numbers(grid).items() if key[0] == 0}
    assert numbers(sweep) == pytest.approx(expected, rel=1e-5) and len(expected) == 2
    assert "job 2 (sampler.eta=1.5 sampler.steps=5) failed: sampler.eta=1.5 must be a number" in outcome.output
    assert "Traceback" not in outcome.errors and outcome.output.count("FD (digits-cnn) by eta") == 1


def test_submitit_makes_the_same_table(run_process, workplace, trained_run, grid):
    outcome = run_process(
        "evaluate.py",
        "-m",
        "hydra/launcher=submitit_local",
        f"checkpoint={trained_run}",
        "sampler.eta=0,1",
        "sampler.steps=5",
        *EVALUATION,
    )
    assert outcome.status == 0, outcome.errors
    sweep = only(workplace / "outputs" / "multirun")
    expected = {key: value for key, value in numbers(grid).items() if key[1] == 5}
    assert numbers(sweep) == pytest.approx(expected, rel=1e-5) and len(expected) == 2
    assert set(COLLECTED) <= {path.name for path in sweep.iterdir()}
    assert outcome.output.count("FD (digits-cnn) by eta") == 1


def test_a_failing_training_job_does_not_stop_a_sweep(run_script, workplace, tiny_training):
    settings = (*tiny_training, "callbacks=minimal", "logger=none", "trainer.max_steps=1")
    outcome = run_script("train.py", "-m", *settings, "optimizer.lr=-1,1e-3")
    assert outcome.status == 2 and "job 0: optimizer.lr=-1" in outcome.errors and "Traceback" not in outcome.errors
    assert (only(workplace / "outputs" / "multirun") / "1" / "checkpoints" / "last.ckpt").is_file()


def test_all_jobs_take_the_checkpoint_that_is_the_newest_at_the_start(workplace, trained_run):
    (workplace / "outputs").symlink_to(trained_run.parent.parent)
    newest = "outputs/train/" + trained_run.name + "/checkpoints/last.ckpt"
    assert sweep_arguments(["-m", "seed=0,1"]) == ["-m", "seed=0,1", f"checkpoint='{newest}'"]
    assert sweep_arguments(["-m", "checkpoint=latest"]) == ["-m", f"checkpoint='{newest}'"]
    for arguments in (["-m", "checkpoint=a,b"], ["-m", "checkpoint=a"], ["seed=0"], ["-m", "--cfg", "job"], ["--help"]):
        assert sweep_arguments(arguments) == arguments


def test_a_sweep_without_a_checkpoint_starts_no_job(run_script, workplace):
    outcome = run_script("evaluate.py", "-m", "seed=0,1")
    assert outcome.status == 2 and outcome.errors.startswith("error: No checkpoint under outputs/train")
    assert not (workplace / "outputs").exists()


def test_a_launcher_that_is_not_installed_names_the_extra(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    for launcher in ("joblib", "submitit_local", "slurm_gpu"):
        with pytest.raises(UserError, match=rf"hydra/launcher={launcher} needs .*\[cluster\]"):
            sweep_arguments(["-m", f"hydra/launcher={launcher}"])
    assert sweep_arguments(["hydra/launcher=basic"]) == ["hydra/launcher=basic"]


@pytest.mark.parametrize(("name", "tasks"), [("slurm_gpu", 1), ("slurm_node", 8)])
def test_slurm_presets_extend_submitits_launcher(name, tasks):
    with initialize_config_dir(str(REPOSITORY / "conf"), version_base="1.3"):
        launcher = compose("evaluate", [f"hydra/launcher={name}"], return_hydra_config=True).hydra.launcher
    assert launcher._target_.endswith("SlurmLauncher")
    assert launcher.tasks_per_node == launcher.gpus_per_node == tasks and launcher.max_num_timeout == 0


def test_what_is_finished_is_collected_when_the_launcher_breaks(run_script, workplace, trained_run, monkeypatch):
    """Whatever ends Hydra's loop over the jobs, it then calls no callback for the sweep."""

    def end_and_break(sweep, config, job_return, **more):
        end(sweep, config, job_return, **more)
        sys.exit(1)

    end = Sweep.on_job_end
    monkeypatch.setattr(Sweep, "on_job_end", end_and_break)
    outcome = run_script("evaluate.py", "-m", f"checkpoint={trained_run}", *GRID, *EVALUATION)
    assert outcome.status == 1
    assert "FD (digits-cnn) by eta" in outcome.output and "1 of 4 jobs finished" in outcome.output
    assert "job 3 (sampler.eta=1 sampler.steps=10) is not started" in outcome.output
    assert set(numbers(only(workplace / "outputs" / "multirun"))) == {(0.0, 5)}
