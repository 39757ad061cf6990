"""The command line before Hydra sees it: grids as lists, additions and resumption."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import given, settings
from hypothesis import strategies as st

from ddim.command.arguments import GRID_KEYS, evaluation_arguments, training_arguments
from ddim.errors import UserError
from ddim.runs.overrides import SUPPLIED

# Keys whose list is a grid; `GRID_KEYS` says so by a pattern.
LISTED = (
    "sampler.name",
    "sampler.steps",
    "sampler.nfe",
    "sampler.eta",
    "sampler.tau",
    "evaluation.parts",
    "evaluation.metrics",
    "evaluation.seeds",
    *(f"evaluation.{part}.eta" for part in ("consistency", "trajectory", "diversity")),
    "callbacks.evaluation.steps",
    "callbacks.evaluation.eta",
)
BOTH = pytest.mark.parametrize("rewrite", [training_arguments, evaluation_arguments])


def parsed(argument: str):
    """Key and plain value, as Hydra understands an argument."""
    override = OverridesParser.create().parse_override(argument)
    return override.key_or_group, override.value()


@BOTH
@pytest.mark.parametrize(
    ("typed", "understood"),
    [
        ("sampler.steps=10,20,50", [10, 20, 50]),
        ("sampler.steps=10, 20, 50", [10, 20, 50]),
        ("sampler.steps= 10,20", [10, 20]),
        ("sampler.steps=[10,20,50]", [10, 20, 50]),
        ("sampler.steps=[10]", [10]),
        ("sampler.steps=10", 10),
        ("sampler.eta=0,0.5,1", [0, 0.5, 1]),
        ("sampler.eta=0,sigma_hat", [0, "sigma_hat"]),
        ("sampler.eta=0,'sigma_hat'", [0, "sigma_hat"]),
        ("sampler.tau=linear", "linear"),
        ("sampler.tau=0,100,500", [0, 100, 500]),
        ("++sampler.steps=1,2", [1, 2]),
        ("callbacks.evaluation.steps=5,10", [5, 10]),
        ("callbacks.evaluation.eta=0,1", [0, 1]),
    ],
)
def test_a_grid_is_one_list(rewrite, typed, understood):
    (argument,) = rewrite([typed])
    key, value = parsed(argument)
    assert GRID_KEYS.fullmatch(key)
    plain = [getattr(item, "text", item) for item in value] if isinstance(value, list) else value
    assert plain == understood


@BOTH
@pytest.mark.parametrize("key", LISTED)
@settings(deadline=None, max_examples=25)
@given(numbers=st.lists(st.integers(0, 1000) | st.floats(0, 1), min_size=2, max_size=6))
def test_every_list_of_numbers_survives(rewrite, key, numbers):
    (argument,) = rewrite([f"{key}={','.join(map(str, numbers))}"])
    assert parsed(argument) == (key, numbers)
    assert rewrite([argument]) == [argument], "what is a list already stays as it is"


@BOTH
@pytest.mark.parametrize(
    "argument",
    [
        "sampler=ddim",
        "sampler=[ddim]",
        "+sampler=ddim,deis",
        "sampler=[ddim,",
        "logger=wandb,csv",
        "dataset=digits",
        "~logger",
        "+extra=1",
        "seed=0,1",
        "evaluation.metrics=[kid]",
        "evaluation.consistency.num_images=8,16",
        "evaluation.eta=0,1",
        "callbacks.sample_grid.eta=0,1",
        "callbacks.evaluation.metrics=kid,frechet_distance",
        "optimizer.lr=1e-3,2e-3",
        "sampler.steps=range(1,5)",
        "sampler.steps=[10,20",
        "--help",
        "--cfg",
        "job",
        "hydra/launcher=submitit_slurm",
        "hydra.run.dir=a,b",
        "output_dir='a, b'",
        "trainer=cpu",
        "+trainer.max_time=00:01:00:00",
        "++trainer.max_steps=4",
        "~trainer.precision",
        "~trainer.precision=32-true",
        "logger.tags=[a,b]",
    ],
)
def test_everything_else_is_left_alone(rewrite, argument):
    assert rewrite([argument]) == [argument]


@BOTH
@pytest.mark.parametrize(
    ("typed", "names"),
    [
        ("sampler=ddim,deis", ["ddim", "deis"]),
        ("sampler=deis,ddim", ["deis", "ddim"]),
        ("sampler=ddim, deis,unipc", ["ddim", "deis", "unipc"]),
        ("sampler=[ddim,deis]", ["ddim", "deis"]),
        ("sampler=[ddim, 'deis']", ["ddim", "deis"]),
    ],
)
def test_several_samplers_are_one_grid_from_a_preset_that_suits_all(rewrite, typed, names):
    before, group, named, after = rewrite(["seed=1", typed, "sampler.nfe=5,10"])
    assert (before, group, after) == ("seed=1", "sampler=heun", "sampler.nfe=[5,10]")
    key, value = parsed(named)
    assert key == "sampler.name" and [getattr(item, "text", item) for item in value] == names


@BOTH
def test_options_of_a_sampler_may_be_given_where_no_preset_lists_them(rewrite):
    assert rewrite(["sampler.order=2", "sampler.eps_scale=1.01", "~sampler.order", "+sampler.own=1"]) == [
        "++sampler.order=2",
        "sampler.eps_scale=1.01",
        "~sampler.order",
        "+sampler.own=1",
    ]


@BOTH
@pytest.mark.parametrize("typed", ["sampler=ddim,deis", "sampler=[ddim,deis]", "sampler.name=ddim,deis"])
def test_several_samplers_in_a_multirun_are_hydras(rewrite, typed):
    assert rewrite([typed, "-m"]) == [typed, "-m"]


@BOTH
@pytest.mark.parametrize("flag", ["-m", "--multirun"])
def test_in_a_multirun_a_list_is_a_sweep(rewrite, flag):
    for arguments in (
        [flag, "sampler.steps=10,20", "sampler.eta=0,1"],
        ["sampler.steps=10,20", "sampler.eta=0,1", flag],
    ):
        assert rewrite(arguments) == arguments


@BOTH
def test_any_argument_of_the_trainer_may_be_given(rewrite):
    assert rewrite(["trainer.max_time=1", "trainer.plugins.some=x"]) == [
        "++trainer.max_time=1",
        "++trainer.plugins.some=x",
    ]
    assert rewrite(["-m", "trainer.max_steps=1,2"]) == ["-m", "++trainer.max_steps=1,2"]


@pytest.mark.parametrize("group", SUPPLIED)
def test_only_evaluation_adds_to_what_the_checkpoint_supplies(group):
    assert evaluation_arguments([f"{group}.key=1", f"{group}=option"]) == [f"++{group}.key=1", f"{group}=option"]
    assert training_arguments([f"{group}.key=1"]) == [f"{group}.key=1"]


class TestResume:
    @pytest.fixture
    def run(self, tmp_path: Path) -> Path:
        directory = tmp_path / "outputs" / "train" / "it's, a [run]"
        (directory / "checkpoints").mkdir(parents=True)
        (directory / "checkpoints" / "last.ckpt").write_bytes(b"not read here")
        saved = [
            "denoiser.base_channels=8",
            "dataset=cifar10",
            "++trainer.max_steps=3",
            "~logger",
            "sampler.steps=[1,2]",
        ]
        (directory / "overrides.yaml").write_text(yaml.safe_dump(saved))
        return directory

    def check(self, run: Path, rewritten: list[str]) -> list[str]:
        """What is left when the run itself is taken off: its checkpoint, its directory, no second .hydra."""
        values = dict(parsed(argument) for argument in rewritten[-3:])
        assert {key: getattr(value, "text", value) for key, value in values.items()} == {
            "resume": str(run / "checkpoints" / "last.ckpt"),
            "hydra.run.dir": str(run),
            "hydra.output_subdir": None,
        }
        return rewritten[:-3]

    def resume(self, source: object, *more: str) -> list[str]:
        quoted = str(source).replace("'", "\\'")
        return training_arguments([f"resume='{quoted}'", *more])

    def test_the_runs_own_command_line_is_replayed(self, run):
        for source in (run, run / "checkpoints" / "last.ckpt"):
            assert self.check(run, self.resume(source)) == yaml.safe_load((run / "overrides.yaml").read_text())

    def test_what_is_given_anew_comes_instead(self, run):
        rest = self.check(run, self.resume(run, "trainer.max_steps=9", "dataset=digits", "seed=1", "sampler.steps=4,5"))
        assert sorted(rest) == sorted(
            [
                "denoiser.base_channels=8",
                "~logger",
                "++trainer.max_steps=9",
                "dataset=digits",
                "seed=1",
                "sampler.steps=[4,5]",
            ]
        )

    def test_latest_is_looked_for_where_the_outputs_are(self, run, monkeypatch, tmp_path):
        monkeypatch.chdir(tmp_path)
        self.check(run, [re.sub(r"'outputs", f"'{tmp_path}/outputs", a) for a in training_arguments(["resume=latest"])])
        monkeypatch.chdir(tmp_path.parent)
        self.check(run, training_arguments(["resume=latest", f"output_dir={tmp_path / 'outputs'}"]))

    def test_latest_is_the_newest(self, run, tmp_path):
        newer = tmp_path / "outputs" / "train" / "another"
        (newer / "checkpoints").mkdir(parents=True)
        (newer / "checkpoints" / "last.ckpt").touch()
        (newer / "overrides.yaml").write_text("[]")
        for path, when in ((run, 1000), (newer, 2000)):
            os.utime(path / "checkpoints" / "last.ckpt", (when, when))
        assert self.check(newer, training_arguments(["resume=latest", f"output_dir={tmp_path / 'outputs'}"])) == [
            f"output_dir={tmp_path / 'outputs'}"
        ]

    def test_no_resume_adds_nothing(self):
        assert training_arguments(["resume=null"]) == ["resume=null"]

    def test_a_run_without_its_command_line_cannot_be_resumed(self, run):
        (run / "overrides.yaml").unlink()
        with pytest.raises(UserError, match="resume="):
            self.resume(run)


class TestSlurm:
    """A job finds its directory again when it is requeued, and all its tasks agree on it."""

    job = {"SLURM_JOB_ID": "42", "SLURM_NTASKS": "8", "SLURM_JOB_NAME": "train"}  # noqa: RUF012

    def directory(self, *arguments: str) -> str | None:
        values = dict(parsed(argument) for argument in training_arguments(arguments) if "=" in argument)
        return getattr(values.get("hydra.run.dir"), "text", values.get("hydra.run.dir"))

    @pytest.fixture(autouse=True)
    def on_a_cluster(self, monkeypatch):
        for key, value in self.job.items():
            monkeypatch.setenv(key, value)

    def test_it_is_a_function_of_the_job_and_the_command(self, monkeypatch):
        first = self.directory("seed=1")
        assert re.fullmatch(r"\$\{output_dir\}/train/slurm-42-[0-9a-f]{6}-\$\{dataset.name\}", first)
        monkeypatch.setenv("SLURM_PROCID", "3")
        monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
        assert self.directory("seed=1") == first != self.directory("seed=2")
        monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "40")
        monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "2")
        assert "/slurm-40_2-" in self.directory("seed=1")

    def test_a_directory_that_is_given_is_kept(self, tmp_path):
        assert self.directory(f"hydra.run.dir={tmp_path}") == str(tmp_path)

    def test_a_sweep_and_a_shell_are_no_job(self, monkeypatch):
        assert self.directory("-m", "seed=1,2") is None
        monkeypatch.setenv("SLURM_JOB_NAME", "bash")
        assert self.directory("seed=1") is None


def test_importing_and_rewriting_loads_neither_torch_nor_lightning():
    code = (
        "import sys; from ddim.command.arguments import training_arguments, evaluation_arguments\n"
        "training_arguments(['sampler.steps=1,2']); evaluation_arguments(['sampler.steps=1,2'])\n"
        "print([m for m in ('torch', 'pytorch_lightning', 'numpy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
