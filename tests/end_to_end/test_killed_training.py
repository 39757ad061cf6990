"""A killed training is only a pause: SIGKILL at any moment, SIGTERM and Ctrl-C, and what is said of how to go on."""

from __future__ import annotations

import csv
import json
import os
import random
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from ddim.runs.files import UNFINISHED
from ddim.tracking.offline_runs import read_records

REPOSITORY = Path(__file__).resolve().parents[2]
STEPS = 30
# Everything that has a state: dropout, mirroring, warm-up, an average, a best score, a count of validations.
TRAINING = (
    f"trainer.max_steps={STEPS}",
    "trainer.val_check_interval=7",
    "trainer.log_every_n_steps=1",
    "trainer.accelerator=cpu",
    "trainer.enable_progress_bar=false",
    "denoiser.base_channels=8",
    "denoiser.norm_groups=4",
    "denoiser.dropout=0.1",
    "dataset.random_flip=true",
    "loader.batch_size=300",  # four batches are an epoch
    "optimizer.warmup_steps=20",
    "callbacks.ema.decay=0.8",
    "callbacks.checkpoint.every_n_steps=3",
    "callbacks.sample_grid.steps=2",
    "callbacks.sample_grid.num_images=4",
    "callbacks.evaluation.enabled=false",
    "logger=csv",
)


@dataclass
class Attempt:
    launcher: Launcher
    process: int
    output_file: Path
    batches_file: Path

    def kill(self, signum: int) -> None:
        os.kill(self.process, signum)

    def wait(self) -> int:
        """The exit status, negative for a signal."""
        return int(self.launcher.ask("wait"))

    @property
    def output(self) -> str:
        return self.output_file.read_text()

    @property
    def batches(self) -> int:
        """How many training batches have begun."""
        return self.batches_file.stat().st_size if self.batches_file.exists() else 0

    def until(self, reached: Callable[[], Any], timeout: float = 120) -> None:
        end = time.monotonic() + timeout
        while not reached():
            assert time.monotonic() < end, f"nothing happened: {self.output}"
            time.sleep(0.0005)


class Launcher:
    """Starts scripts as forks of a process that has imported everything."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.count = 0
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "WANDB_MODE": "offline"}
        environment.pop("HYDRA_FULL_ERROR", None)
        command = [sys.executable, str(Path(__file__).parent / "forking_launcher.py")]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )

    def ask(self, message: Any) -> str:
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(json.dumps(message) + "\n")
        self.process.stdin.flush()
        return self.process.stdout.readline()

    def start(self, script: str, *arguments: str, environment: dict[str, str] | None = None, **order: Any) -> Attempt:
        self.count += 1
        output, batches = (self.directory / f"{self.count}.{name}" for name in ("output", "batches"))
        order |= {
            "arguments": [str(REPOSITORY / script), *arguments],
            "directory": str(self.directory),
            "output": str(output),
            "batches": str(batches),
            "environment": environment or {},
        }
        return Attempt(self, int(self.ask(order)), output, batches)


@pytest.fixture(scope="module")
def launcher(tmp_path_factory: pytest.TempPathFactory, cache_dir: Path) -> Iterator[Launcher]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DDIM_CACHE_DIR", str(cache_dir))
        launcher = Launcher(tmp_path_factory.mktemp("launched"))
    yield launcher
    assert launcher.process.stdin is not None
    launcher.process.stdin.close()
    launcher.process.wait(timeout=30)


@pytest.fixture(scope="module")
def uninterrupted(launcher: Launcher) -> Path:
    run = launcher.directory / "uninterrupted"
    attempt = launcher.start("train.py", *TRAINING, f"hydra.run.dir={run}")
    assert attempt.wait() == 0, attempt.output
    return run


def checkpoint_of(run: Path, name: str = "last.ckpt") -> dict[str, Any]:
    return torch.load(run / "checkpoints" / name, weights_only=True)


def assert_same(found: Any, expected: Any, where: str) -> None:
    if isinstance(expected, torch.Tensor):
        assert torch.equal(found, expected), where
    elif isinstance(expected, dict):
        assert found.keys() == expected.keys(), where
        for key in expected:
            assert_same(found[key], expected[key], f"{where}.{key}")
    elif isinstance(expected, list | tuple):
        assert len(found) == len(expected), where
        for number, (one, other) in enumerate(zip(found, expected, strict=True)):
            assert_same(one, other, f"{where}[{number}]")
    else:
        assert found == expected, where


def assert_same_end(run: Path, uninterrupted: Path) -> None:
    """Raw and averaged weights, optimizer, learning rate, best score: bit for bit those of a run never stopped."""
    for name in ("last.ckpt", "best.ckpt"):
        found, expected = checkpoint_of(run, name), checkpoint_of(uninterrupted, name)
        for key in ("global_step", "state_dict", "current_model_state", "optimizer_states", "lr_schedulers"):
            assert_same(found[key], expected[key], f"{name} {key}")
        states = [
            {key: value for key, value in one["callbacks"].items() if not key.startswith("ModelCheckpoint")}
            for one in (found, expected)
        ]
        assert_same(*states, f"{name} callbacks")
    assert (run / "samples").is_dir() and sorted(path.name for path in (run / "samples").iterdir()) == sorted(
        path.name for path in (uninterrupted / "samples").iterdir()
    )


def logged(run: Path, column: str) -> dict[int, float]:
    """Step -> value over all parts of a run; where two parts did a step, they must agree."""
    values: dict[int, float] = {}
    for path in sorted(run.glob("csv/version_*/metrics.csv")):
        for row in csv.DictReader(path.open()):
            if row.get(column):
                assert values.setdefault(int(row["step"]), float(row[column])) == float(row[column])
    return values


def unfinished(run: Path) -> list[Path]:
    return list(run.rglob(f"{UNFINISHED}*"))


def test_sigkill_at_ten_random_moments_changes_nothing(launcher, uninterrupted):
    """One run, killed ten times: seven times in a step, a save or a validation, three times surely in a save."""
    moments = random.Random(4)
    run = launcher.directory / "killed"
    command = (*TRAINING, f"hydra.run.dir={run}")
    in_saves = moments.sample(range(1, 10), 3)
    for number in range(10):
        attempt = launcher.start("train.py", *command, seconds_per_write=0.004 if number in in_saves else 0)
        if number in in_saves:
            attempt.until(lambda: unfinished(run / "checkpoints"))
            attempt.until(lambda: any(path.stat().st_size > 20_000 for path in unfinished(run / "checkpoints")))
        else:
            batches = moments.randint(2, 5)
            attempt.until(lambda attempt=attempt, batches=batches: attempt.batches >= batches)
            time.sleep(moments.uniform(0, 0.15))
        attempt.kill(signal.SIGKILL)
        assert attempt.wait() == -signal.SIGKILL, attempt.output
        if number in in_saves:
            assert unfinished(run), "the kill came after the write"
        last = run / "checkpoints" / "last.ckpt"
        if last.exists():
            assert 0 < checkpoint_of(run)["global_step"] < STEPS
            command = (f"resume={run}",)
    attempt = launcher.start("train.py", *command)
    assert attempt.wait() == 0, attempt.output
    assert not unfinished(run)
    assert_same_end(run, uninterrupted)
    losses = logged(uninterrupted, "val/loss")
    assert len(losses) == STEPS // 7
    assert logged(run, "val/loss") == losses, "a validation that was cut short is done again"


@pytest.mark.parametrize(("signum", "name"), [(signal.SIGTERM, "SIGTERM"), (signal.SIGINT, "Ctrl-C")])
def test_a_signal_saves_the_step_and_says_how_to_go_on(launcher, uninterrupted, signum, name):
    run = launcher.directory / f"a run ended by {name}"
    attempt = launcher.start("train.py", *TRAINING, f"hydra.run.dir='{run}'")
    attempt.until(lambda: attempt.batches >= 10)
    attempt.kill(signum)
    assert attempt.wait() == 128 + signum, attempt.output
    assert "Traceback" not in attempt.output
    assert attempt.output.splitlines()[-1] == f"Stopped by {name}: go on with `python train.py 'resume={run}'`."
    assert checkpoint_of(run)["global_step"] == attempt.batches < STEPS
    assert len(logged(run, "train/loss")) == attempt.batches, "the metrics of the last step are kept"

    (command,) = re.findall("`python train.py (.*)`", attempt.output)
    attempt = launcher.start("train.py", *shlex.split(command))
    assert attempt.wait() == 0, attempt.output
    assert_same_end(run, uninterrupted)
    for column in ("train/loss", "val/loss"):
        assert logged(run, column) == logged(uninterrupted, column)


def test_a_signal_while_validating_leaves_at_once_and_the_validation_is_done_again(launcher, uninterrupted):
    run = launcher.directory / "validating"
    slow = "callbacks.sample_grid.steps=1000"
    attempt = launcher.start("train.py", *TRAINING, slow, f"hydra.run.dir={run}")
    attempt.until(lambda: attempt.batches == 7)
    attempt.until(lambda: (run / "checkpoints" / "last.ckpt").exists() and checkpoint_of(run)["global_step"] == 7)
    time.sleep(0.5)
    attempt.kill(signal.SIGTERM)
    assert attempt.wait() == 128 + signal.SIGTERM, attempt.output
    assert "Traceback" not in attempt.output and f"resume={run}" in attempt.output
    assert attempt.batches == 7 and not logged(run, "val/loss")

    attempt = launcher.start("train.py", f"resume={run}", "callbacks.sample_grid.steps=2")
    assert attempt.wait() == 0, attempt.output
    assert_same_end(run, uninterrupted)
    assert logged(run, "val/loss") == logged(uninterrupted, "val/loss")


def test_a_second_ctrl_c_leaves_at_once_even_while_saving(launcher):
    run = launcher.directory / "impatient"
    attempt = launcher.start("train.py", *TRAINING, "trainer.val_check_interval=100", f"hydra.run.dir={run}")
    attempt.until(lambda: attempt.batches >= 4)
    attempt.kill(signal.SIGTERM)
    assert attempt.wait() == 128 + signal.SIGTERM
    before = (run / "checkpoints" / "last.ckpt").read_bytes()

    attempt = launcher.start("train.py", f"resume={run}", seconds_per_write=0.3)  # a save would take minutes
    attempt.until(lambda: unfinished(run / "checkpoints"))
    for notice in ("Stopping after this step; once more leaves at once.", "Stopped by Ctrl-C: go on with"):
        attempt.kill(signal.SIGINT)
        attempt.until(lambda notice=notice: notice in attempt.output, timeout=20)
    assert attempt.wait() == 130 and "Traceback" not in attempt.output
    assert (run / "checkpoints" / "last.ckpt").read_bytes() == before
    assert not unfinished(run)


def test_a_run_killed_before_it_saved_says_so(launcher):
    run = launcher.directory / "too early"
    command = [*TRAINING, "callbacks.checkpoint.every_n_steps=100", "callbacks.checkpoint.monitor=null"]
    attempt = launcher.start("train.py", *command, f"hydra.run.dir='{run}'")
    attempt.until(lambda: attempt.batches >= 1)
    attempt.kill(signal.SIGKILL)
    attempt.wait()
    attempt = launcher.start("train.py", f"resume='{run}'")
    assert attempt.wait() == 2
    again = re.fullmatch(
        f"error: resume={run}: that run was stopped before anything was saved; "
        "start anew with `python train.py (.*)`.\n",
        attempt.output,
    )
    assert again is not None and [text.removeprefix("++") for text in shlex.split(again[1])] == command


def test_wandb_is_closed_with_the_status(launcher):
    run = launcher.directory / "wandb run"
    attempt = launcher.start("train.py", *TRAINING, "logger=wandb", f"hydra.run.dir='{run}'")
    attempt.until(lambda: attempt.batches >= 2)
    attempt.kill(signal.SIGTERM)
    assert attempt.wait() == 143, attempt.output
    (path,) = run.glob("wandb/offline-run-*/*.wandb")
    records = list(read_records(path))
    assert [record.exit.exit_code for record in records if record.HasField("exit")] == [143]
    assert sum(record.HasField("history") for record in records) >= attempt.batches


def test_an_evaluation_says_where_what_it_finished_is(launcher, uninterrupted):
    directory = launcher.directory / "evaluated"
    attempt = launcher.start(
        "evaluate.py", f"checkpoint={uninterrupted}", "sampler.eta=0", "sampler.steps=[2,1000]", "logger=csv",
        "evaluation.num_samples=360", f"hydra.run.dir={directory}",
    )  # fmt: skip
    attempt.until(lambda: (directory / "results.csv").exists())
    time.sleep(0.3)
    attempt.kill(signal.SIGINT)
    assert attempt.wait() == 130, attempt.output
    assert "Traceback" not in attempt.output
    assert attempt.output.splitlines()[-1] == (
        f"Stopped by Ctrl-C: what was finished is kept, go on with `python evaluate.py resume={directory}`."
    )
    assert [row["steps"] for row in csv.DictReader((directory / "results.csv").open())] == ["2"]


def test_a_rate_that_is_too_high_ends_in_a_sentence_and_a_lower_one_goes_on(launcher):
    run = launcher.directory / "diverging"
    attempt = launcher.start("train.py", *TRAINING, "trainer.max_steps=3", f"hydra.run.dir={run}")
    assert attempt.wait() == 0, attempt.output
    attempt = launcher.start("train.py", f"resume={run}", f"trainer.max_steps={STEPS}", "optimizer.lr=1e30")
    assert attempt.wait() == 2, attempt.output
    sentence = re.fullmatch(
        r"error: The (loss is not a finite number at|weights are not finite numbers after) step (\d+) "
        rf"\(learning rate (\S+)\); the last good checkpoint is {run}/checkpoints/last.ckpt: "
        rf"`python train.py resume={run}` with a lower optimizer.lr goes on from it.",
        attempt.output.splitlines()[-1],
    )
    assert sentence is not None and "Traceback" not in attempt.output, attempt.output
    # Twenty steps of warm-up.
    assert float(sentence[3]) == pytest.approx(1e30 * int(sentence[2]) / 20)
    assert checkpoint_of(run)["global_step"] == 3
    attempt = launcher.start("train.py", f"resume={run}", f"trainer.max_steps={STEPS}", "optimizer.lr=1e-5")
    assert attempt.wait() == 0, attempt.output
    weights = checkpoint_of(run)["current_model_state"]
    assert all(torch.isfinite(weight).all() for weight in weights.values())


class TestSlurm:
    """What SLURM tells a task that it starts again; the real one is in test_slurm.py."""

    @pytest.fixture
    def cluster(self) -> dict[str, str]:
        task = {"JOB_ID": 4242, "JOB_NAME": "train", "NTASKS": 1, "NTASKS_PER_NODE": 1, "PROCID": 0, "LOCALID": 0}
        task |= {"NODEID": 0, "NNODES": 1}
        return {f"SLURM_{key}": str(value) for key, value in task.items()}

    def test_lightnings_newer_checkpoint_is_lightnings_to_take(self, launcher, uninterrupted, cluster, tmp_path):
        command = (*TRAINING, f"output_dir={tmp_path}")
        attempt = launcher.start("train.py", *command, environment=cluster)
        attempt.until(lambda: attempt.batches >= 10)
        attempt.kill(signal.SIGKILL)
        attempt.wait()
        (run,) = (tmp_path / "train").iterdir()
        newer = run / "hpc_ckpt_1.ckpt"
        newer.write_bytes((uninterrupted / "checkpoints" / "last.ckpt").read_bytes())
        os.utime(newer, (time.time() + 10,) * 2)
        attempt = launcher.start("train.py", *command, environment=cluster)
        assert attempt.wait() == 0, attempt.output
        assert attempt.batches == 0 and f"Trained to step {STEPS}." in attempt.output


def test_another_command_line_does_not_overwrite_a_run(launcher, uninterrupted):
    before = (uninterrupted / "checkpoints" / "last.ckpt").stat()
    attempt = launcher.start("train.py", *TRAINING, "seed=1", f"hydra.run.dir={uninterrupted}")
    assert attempt.wait() == 2
    assert re.fullmatch(
        "error: hydra.run.dir=.* holds a run of another command line; .* a directory of its own.\n", attempt.output
    )
    assert (uninterrupted / "checkpoints" / "last.ckpt").stat() == before
