"""Real processes (gloo, CPU): the same numbers as one process, one directory, one voice, and one end."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ddim.denoisers.formats.own import read_checkpoint
from ddim.findings.files import read_results

REPOSITORY = Path(__file__).resolve().parents[2]
TWO = ("trainer.accelerator=cpu", "trainer.devices=2")
# 71 is divisible by neither 2 processes nor the batch.
EVALUATION = (
    "trainer.accelerator=cpu",
    "evaluation.num_samples=71",
    "evaluation.batch_size=20",
    "evaluation.grid_images=9",
    "evaluation.reconstruction.num_images=31",
    "evaluation.consistency.num_images=13",
    "sampler.eta=0,1",
    "sampler.steps=2,4",
)
PARTS = ("reconstruction", "consistency", "interpolation", "trajectory", "diversity")
# Every process keeps the weights it ends with.
TELLING = """
import os, torch, ddim.command.train
finish = ddim.command.train.finish

def tell(trainer):
    where = f"{os.environ['TOLD']}/rank{trainer.global_rank}.pt"
    torch.save((trainer.world_size, trainer.lightning_module.state_dict()), where)
    finish(trainer)

ddim.command.train.finish = tell
"""
FAILING = """
from ddim.errors import UserError
from ddim.evaluation.subject import Subject
from ddim.training.module import DenoisingModule
whole = METHOD

def fail(self, *args):
    if RANK == 1:
        raise UserError("the second half is missing.")
    return whole(self, *args)

METHOD = fail
"""
IN_SAMPLING = FAILING.replace("METHOD", "Subject.draw").replace("RANK", "self.rank")
IN_TESTING = FAILING.replace("METHOD", "DenoisingModule.test_step").replace("RANK", "self.global_rank")


def patched(folder: Path, script: str, patch: str) -> Path:
    """A script that does the same after `patch`. Lightning starts it again for the second process."""
    path = REPOSITORY / script
    changed = folder / f"patched_{script}"
    changed.write_text(f"{patch}\nexec(compile(open({str(path)!r}).read(), {str(path)!r}, 'exec'))\n")
    return changed


def only(directory: Path) -> Path:
    (entry,) = directory.iterdir()
    return entry


def files(directory: Path) -> set[str]:
    return {str(path.relative_to(directory)) for path in directory.rglob("*") if path.is_file()}


def logs(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.rglob("*.log") if "wandb" not in path.parts)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def clean_environment(**more: str) -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", **more}


def started_alike(*command: str, **more: str) -> list[subprocess.Popen[str]]:
    """Two processes as srun starts them."""
    common = {"SLURM_JOB_ID": "4711", "SLURM_JOB_NAME": "many", "SLURM_NTASKS": "2", "SLURM_NTASKS_PER_NODE": "2"}
    common |= {"SLURM_NNODES": "1", "SLURM_NODEID": "0", "SLURM_NODELIST": "localhost", "MASTER_ADDR": "127.0.0.1"}
    common |= {"MASTER_PORT": str(free_port()), **more}
    return [
        subprocess.Popen(
            [sys.executable, *command],
            env=clean_environment(**common, SLURM_PROCID=rank, SLURM_LOCALID=rank),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in "01"
    ]


def torchrun(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", f"--master-port={free_port()}", *command],
        env=clean_environment(),
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


@pytest.fixture
def one_process(run_script, workplace, trained_run):
    """The evaluation by one process: its directory and what it said."""

    def run(*arguments: str):
        directory = workplace / "one"
        outcome = run_script(
            "evaluate.py", f"checkpoint={trained_run}", f"hydra.run.dir={directory}", *EVALUATION, *arguments
        )
        assert outcome.status == 0, outcome.errors
        return directory, outcome

    return run


def same_rows(one: list[dict], many: list[dict]) -> None:
    assert len(one) == len(many)
    for expected, found in zip(one, many, strict=True):
        assert expected.keys() == found.keys()
        # How fast they were, and on how many processes, is what differs.
        for key in expected.keys() - {"seconds", "images_per_second", "device"}:
            if isinstance(expected[key], float):
                assert found[key] == pytest.approx(expected[key], rel=1e-5, abs=1e-9), key
            elif key == "leave_one_out" and expected[key] is not None:
                np.testing.assert_allclose(found[key], expected[key], rtol=1e-5, atol=1e-9)
            else:
                assert found[key] == expected[key], key


def test_two_processes_evaluate_as_one(one_process, run_process, workplace, trained_run):
    """Every part: the same images bit by bit, the same numbers, the same files, and nothing said twice."""
    one, said = one_process("evaluation=all", "logger=wandb")
    outcome = run_process("evaluate.py", f"checkpoint={trained_run}", *EVALUATION, "evaluation=all", *TWO)
    assert outcome.status == 0, outcome.errors
    many = only(workplace / "outputs" / "evaluate")

    for path in (many / "results.json", *(many / f"{part}.json" for part in PARTS)):
        rows = [json.loads((directory / path.name).read_text())["rows"] for directory in (one, many)]
        same_rows(*rows)
    assert [row.num_samples for row in read_results(many).rows] == [71] * 4
    pictures = [name for name in files(one) if name.endswith(".png") and name.startswith(("samples", "interp", "traj"))]
    assert len(pictures) > 8
    for name in pictures:
        assert np.array_equal(np.asarray(Image.open(one / name)), np.asarray(Image.open(many / name))), name

    plain = {name for name in files(one) if not name.startswith("wandb/")}
    assert {name for name in files(many) if not name.startswith("wandb/")} == plain
    assert len(list(many.glob("wandb/offline-run-*"))) == 1 and logs(many) == ["evaluate.log"]
    for text in ("Evaluating ", "Table     ", "Pictures  in", "W&B: offline"):
        assert outcome.output.count(text) == said.output.count(text) > 0, text
    progress = [line for line in outcome.errors.splitlines() if line.strip()]
    assert [line.split(",")[0] for line in progress] == [
        line.split(",")[0] for line in said.errors.splitlines() if line.startswith("[")
    ]


def test_two_processes_train_one_network(run_process, workplace, tiny_training):
    """Equal weights on both, a stated batch; interrupted and resumed it ends with the same weights."""
    script = patched(workplace, "train.py", TELLING)
    settings = (*tiny_training, "trainer=ddp", *TWO, "logger=csv", "denoiser.dropout=0.1", "dataset.random_flip=true")
    whole, half = workplace / "whole", workplace / "half"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TOLD", str(workplace))
        outcome = run_process(str(script), *settings, f"hydra.run.dir={whole}")
    assert outcome.status == 0, outcome.errors
    assert outcome.output.count("32 a step (16 on each of 2 devices)") == 1
    (size, first), (_, second) = (torch.load(workplace / f"rank{rank}.pt") for rank in (0, 1))
    assert size == 2 and all(torch.equal(first[name], second[name]) for name in first)
    assert logs(whole) == ["train.log"] and len(list(whole.glob("csv/*"))) == 1

    first_half = run_process("train.py", *settings, "trainer.max_steps=2", f"hydra.run.dir={half}")
    assert first_half.status == 0, first_half.errors
    resumed = run_process("train.py", f"resume={half}", "trainer.max_steps=4")
    assert resumed.status == 0, resumed.errors
    assert resumed.output.count("Trained to step 4") == 1 and logs(half) == ["train.log"]
    expected, found = (read_checkpoint(path / "checkpoints" / "last.ckpt") for path in (whole, half))
    for key in ("state_dict", "current_model_state"):
        for name, value in expected[key].items():
            assert torch.equal(value, found[key][name]), (key, name)


def test_torchrun_evaluates_as_one_process_into_one_directory(one_process, workplace, trained_run):
    """Without `trainer.devices`: torchrun says how many there are."""
    one, _ = one_process("logger=csv")
    done = torchrun(str(REPOSITORY / "evaluate.py"), f"checkpoint={trained_run}", *EVALUATION, "logger=csv")
    assert done.returncode == 0, done.stderr
    many = only(workplace / "outputs" / "evaluate")
    same_rows(*([row.as_record() for row in read_results(directory).rows] for directory in (one, many)))
    assert files(many) == files(one) and logs(many) == ["evaluate.log"]
    assert done.stdout.count("Table     ") == done.stdout.count("Evaluating ") == 1
    assert done.stderr.count("[1/4]") == 1


def test_processes_of_srun_train_in_one_directory(workplace, tiny_training):
    script, arguments = str(REPOSITORY / "train.py"), (*tiny_training, "callbacks=minimal", "logger=csv")
    processes = started_alike(script, *arguments)
    told = [process.communicate(timeout=240) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], told
    run = only(workplace / "outputs" / "train")
    assert (run / "checkpoints" / "last.ckpt").is_file() and logs(run) == ["train.log"]
    assert "(16 on each of 2 devices)" in told[0][0] and told[1] == ("", "")


@pytest.mark.parametrize("failing", [IN_SAMPLING, IN_TESTING], ids=["sampling", "testing"])
def test_one_failing_process_ends_both_with_its_sentence(run_process, workplace, trained_run, failing):
    """While sampling, where processes tell each other; and elsewhere, where the other one waits in a collective."""
    script = patched(workplace, "evaluate.py", failing)
    outcome = run_process(str(script), f"checkpoint={trained_run}", *EVALUATION, "logger=none", *TWO, timeout=90)
    assert outcome.status == 2, outcome.errors
    told = [line for line in outcome.errors.splitlines() if "the second half is missing." in line]
    assert len(told) == 1 and told[0].startswith("error"), outcome.errors
    assert "Traceback" not in outcome.errors, outcome.errors


def test_one_failing_process_of_torchrun_ends_both(workplace, trained_run):
    script = patched(workplace, "evaluate.py", IN_TESTING)
    done = torchrun(str(script), f"checkpoint={trained_run}", *EVALUATION, "logger=none")
    # One traceback is torchrun's own.
    assert done.returncode != 0 and done.stderr.count("Traceback (most") == 1, done.stderr
    assert done.stderr.count("error (process 1): the second half is missing.") == 1, done.stderr


def test_what_all_processes_of_torchrun_find_wrong_is_said_once(workplace, trained_run):
    done = torchrun(
        str(REPOSITORY / "evaluate.py"), f"checkpoint={trained_run}", "trainer.devices=3", "trainer.accelerator=cpu"
    )
    assert done.returncode != 0
    assert done.stderr.count("trainer.devices=3 does not fit the 2 processes") == 1, done.stderr


def test_a_sweep_is_refused_where_every_process_would_run_it(workplace, trained_run):
    done = torchrun(str(REPOSITORY / "evaluate.py"), "-m", f"checkpoint={trained_run}", "sampler.steps=2,3")
    assert done.returncode != 0 and not (workplace / "outputs").exists()
    assert done.stderr.count("each of them would run the whole sweep") == 1, done.stderr
