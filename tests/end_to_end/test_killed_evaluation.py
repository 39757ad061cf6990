"""evaluate.py killed with SIGKILL and started again, and two of them at once: the table is the uninterrupted one."""

from __future__ import annotations

import csv
import os
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from ddim.findings.files import read_results
from ddim.tracking.offline_runs import offline_files, read_offline_run

GRID = ("sampler.eta=0,1", "sampler.steps=20,60", "evaluation.num_samples=120", "evaluation.batch_size=10")
OFTEN = ("evaluation.partial_every_seconds=0", "logger=csv", "evaluation.grid_images=9")
SMALL = ("sampler.eta=0", "sampler.steps=2,3", "evaluation.num_samples=70", "evaluation.grid_images=4", "logger=csv")


@pytest.fixture
def begin(start_fork: Callable[..., Any], workplace: Path) -> Callable[..., Any]:
    """An evaluation in a process of its own, the first of a group."""

    def start(*arguments: str) -> Any:
        variables = {name: os.environ[name] for name in ("DDIM_CACHE_DIR", "WANDB_MODE")}
        return start_fork(workplace, variables, "evaluate.py", *arguments)

    return start


def finish(process: Any) -> str:
    outcome = process.wait()
    assert outcome.status == 0, outcome.output
    return outcome.output


def kill_when(process: Any, due: Callable[[], bool]) -> bool:
    """SIGKILL to all of its processes as soon as `due`; False if it ended before."""
    deadline = time.monotonic() + 200
    while process.poll() is None and not due():
        assert time.monotonic() < deadline
        time.sleep(0.005)
    alive = process.poll() is None
    if alive:
        process.kill()
    return alive


# What a row says of itself beside the others, which are not all there before the end.
BESIDE_OTHERS = ("difference", "difference_sd", "as_good")


def rows(directory: Path) -> list[dict[str, str]]:
    """What the table says, without the times."""
    with open(directory / "results.csv") as stream:
        return [
            {k: v for k, v in row.items() if k not in ("seconds", "images_per_second")}
            for row in csv.DictReader(stream)
        ]


def alone(rows: list[dict[str, str]]) -> list[dict[str, str]]:
    return [{k: v for k, v in row.items() if k not in BESIDE_OTHERS} for row in rows]


def count(directory: Path, pattern: str) -> int:
    return len(list(directory.glob(pattern)))


def test_killed_again_and_again_it_ends_with_the_same_table(begin, workplace, trained_run):
    whole, cut = workplace / "whole", workplace / "outputs" / "evaluate" / "cut"
    arguments = (f"checkpoint={trained_run}", *GRID, *OFTEN)
    finish(begin(*arguments, f"hydra.run.dir={whole}"))
    expected, chosen = rows(whole), random.Random(0)
    assert len(expected) == 4

    def random_moment() -> Callable[[], bool]:
        """Some time after the next attempt has begun to work."""
        command, mark, delay = cut / "overrides.yaml", time.time(), chosen.uniform(0, 1.5)

        def due() -> bool:
            began = command.stat().st_mtime if command.is_file() else 0.0
            return began > mark and time.time() > began + delay

        return due

    moments: list[Callable[[], Callable[[], bool]]] = [
        lambda: lambda: count(cut, "partial/*/0000-*.safetensors") >= 2,
        lambda: lambda: count(cut, "finished/*.safetensors") >= 1,
        random_moment,
        random_moment,
        random_moment,
    ]
    killed = 0
    for number, moment in enumerate(moments):
        first = (*arguments, f"hydra.run.dir={cut}")
        # The same command in the same directory, or its own resumption.
        process = begin(*(first if number % 2 == 0 else ("resume=latest",)))
        killed += kill_when(process, moment())
        if (cut / "results.csv").is_file():
            found = alone(rows(cut))
            assert found == [row for row in alone(expected) if row in found], "whole rows, each once, in order"
            assert [row.as_record()["steps"] for row in read_results(cut).rows] == [int(row["steps"]) for row in found]
    assert killed >= 3
    before = {path.name for path in (cut / "finished").glob("grid-*.safetensors")}
    output = finish(begin("resume=latest"))
    assert rows(cut) == expected
    assert output.count("finished before") == len(before) >= 1, output
    assert before <= {path.name for path in (cut / "finished").iterdir()}
    for name in ("samples.png", "samples/eta1.000-linear-steps0060.png"):
        assert (cut / name).read_bytes() == (whole / name).read_bytes()
    assert count(cut, "partial/*") == 0
    assert count(workplace / "outputs" / "evaluate", "*") == 1


def test_another_batch_size_and_two_processes_go_on(begin, run_process, workplace, trained_run):
    whole, cut = workplace / "whole", workplace / "cut"
    arguments = (
        f"checkpoint={trained_run}",
        "sampler.eta=1",
        "sampler.steps=60",
        "evaluation.num_samples=101",
        "evaluation.batch_size=10",
        *OFTEN,
    )
    process = begin(*arguments, f"hydra.run.dir={cut}")
    assert kill_when(process, lambda: count(cut, "partial/*/0000-*.safetensors") >= 3)
    known = sorted(cut.glob("partial/*/*.safetensors"))
    two = ("trainer.devices=2", "trainer.accelerator=cpu", "++trainer.strategy=ddp", "evaluation.batch_size=7")
    resumed = run_process("evaluate.py", f"resume={cut}", *two)
    assert resumed.status == 0, resumed.errors
    finish(begin(*arguments, f"hydra.run.dir={whole}"))
    (row,), (expected,) = read_results(cut).rows, read_results(whole).rows
    assert len(known) >= 3 and row.num_samples == 101
    for name in ("frechet_distance", "kid_mean", "precision", "recall"):
        assert getattr(row, name) == pytest.approx(getattr(expected, name), rel=1e-4), name


def test_two_evaluations_at_once_share_a_fresh_cache(begin, workplace, trained_run, monkeypatch):
    monkeypatch.setenv("DDIM_CACHE_DIR", str(workplace / "cache"))
    arguments = (f"checkpoint={trained_run}", *SMALL, "evaluation.features=pixels")
    processes = [begin(*arguments, f"hydra.run.dir={workplace / name}") for name in "ab"]
    for process in processes:
        finish(process)
    assert rows(workplace / "a") == rows(workplace / "b") and len(rows(workplace / "a")) == 2
    left = sorted(path.name for path in (workplace / "cache" / "reference").iterdir())
    # Statistics of both splits, the floor beside one, the radii and the sums of the kernel beside the other.
    assert len(left) == 5 and all(name.endswith(".npz") and not name.startswith(".") for name in left)
    for beside in ("-floor-", "-radii3.", "-kernel."):
        assert [beside in name for name in left].count(True) == 1
    finish(begin(*arguments, f"hydra.run.dir={workplace / 'c'}", f"cache_dir={workplace / 'other'}"))
    assert rows(workplace / "c") == rows(workplace / "a")


def test_a_finished_evaluation_is_not_done_again(run_script, workplace, trained_run, monkeypatch):
    arguments = (f"checkpoint={trained_run}", *SMALL, "evaluation.parts=grid,reconstruction", "logger=wandb")
    arguments += ("evaluation.reconstruction.num_images=20",)
    assert run_script("evaluate.py", *arguments).status == 0
    (directory,) = (workplace / "outputs" / "evaluate").iterdir()
    before = {name: (directory / name).read_text() for name in ("results.csv", "reconstruction.csv", "wandb_run_id")}
    saved = yaml.safe_load((directory / "overrides.yaml").read_text())
    assert f"checkpoint='{trained_run}/checkpoints/last.ckpt'" in saved and "sampler.steps=[2,3]" in saved

    from ddim.evaluation.subject import Subject

    def no_sampling(*arguments, **more):
        raise AssertionError("sampled again")

    for name in ("draw", "decode", "encode"):
        monkeypatch.setattr(Subject, name, no_sampling)
    for again in (("resume=latest",), (f"resume={directory}",), (*arguments, f"hydra.run.dir={directory}")):
        outcome = run_script("evaluate.py", *again)
        assert outcome.status == 0, outcome.errors
        assert outcome.errors.count("finished before") == 4 and " in 32-true: " in outcome.output + outcome.errors
        assert {name: (directory / name).read_text() for name in before} == before
    assert list((workplace / "outputs" / "evaluate").iterdir()) == [directory]
    files = offline_files(directory, before["wandb_run_id"].strip())
    assert len(files) == len(list((directory / "wandb").glob("offline-run-*"))) == 4, "one W&B run"
    attempts = [read_offline_run(path) for path in files]
    shown = [{name for row in attempt.history for name in row if not name.startswith("_")} for attempt in attempts]
    assert len(shown) == 4 and all(names == shown[0] for names in shown), "each attempt shows all that was found"
    assert "grid/frechet_distance/eta0_000/linear" in shown[0] and "grid/pictures" in shown[0]
    numbers = [row["_step"] for attempt in attempts for row in attempt.history]
    assert numbers == list(range(len(numbers))), "rows of several attempts would share numbers"


def test_other_weights_under_the_same_path_are_other_numbers(run_script, workplace, trained_run):
    """A checkpoint that trained on in the meantime: every point anew, and no line of the old ones is left."""
    checkpoint = workplace / "model.ckpt"
    content = torch.load(trained_run / "checkpoints" / "last.ckpt", weights_only=True)
    torch.save(content, checkpoint)
    arguments = (f"checkpoint={checkpoint}", *SMALL, f"hydra.run.dir={workplace / 'run'}")
    assert run_script("evaluate.py", *arguments).status == 0
    old = rows(workplace / "run")
    name = next(name for name in content["state_dict"] if name.endswith("conv_out.bias"))
    content["state_dict"][name] += 0.1
    torch.save(content, checkpoint)
    outcome = run_script("evaluate.py", f"resume={workplace / 'run'}")
    assert outcome.status == 0 and "finished before" not in outcome.errors, outcome.errors
    new = rows(workplace / "run")
    assert len(new) == len(old) == 2 and {row["checkpoint"] for row in new} == {row["checkpoint"] for row in old}
    assert not {row["weights_hash"] for row in new} & {row["weights_hash"] for row in old}
    assert all(len(row["weights_hash"]) == 16 for row in new)
    assert all(a["frechet_distance"] != b["frechet_distance"] for a, b in zip(old, new, strict=True))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("resume=latest",), "resume=latest: no evaluation under outputs/evaluate has begun"),
        (("resume=nowhere",), "resume=nowhere is not the directory of an evaluation that has begun"),
        (("resume={run}",), "is not the directory of an evaluation that has begun"),
        (("-m", "resume=latest", "sampler.steps=2,3"), "hydra.sweep.dir=DIR"),
        (("resume=damaged",), "resume=damaged: overrides.yaml cannot be read"),
        (("evaluation.partial_every_seconds=-1", "checkpoint={run}"), "evaluation.partial_every_seconds=-1"),
    ],
)
def test_what_cannot_be_resumed_is_one_sentence(run_script, workplace, trained_run, arguments, said):
    damaged = workplace / "damaged"
    damaged.mkdir()
    (damaged / "config.yaml").write_text("evaluation: {}\n")
    (damaged / "overrides.yaml").write_text("a: [\n")
    outcome = run_script("evaluate.py", *(argument.format(run=trained_run) for argument in arguments))
    assert outcome.status == 2 and said in outcome.errors.replace("\n", " "), outcome.errors
    assert "Traceback" not in outcome.errors
    assert {path.name for path in damaged.iterdir()} == {"config.yaml", "overrides.yaml"}


def test_only_one_evaluation_writes_to_a_directory(run_script, workplace, trained_run):
    from ddim.runs.locking import locked

    directory = workplace / "run"
    directory.mkdir()
    arguments = (f"checkpoint={trained_run}", *SMALL, f"hydra.run.dir={directory}")
    with locked(directory):
        outcome = run_script("evaluate.py", *arguments)
    assert outcome.status == 2 and "another evaluation is writing there" in outcome.errors
    assert not (directory / "results.csv").exists()
    assert run_script("evaluate.py", *arguments).status == 0
