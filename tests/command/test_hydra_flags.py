"""What a Hydra user tries first: --help, --cfg, --resolve, --info and the completion of the shell."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from hydra import compose, initialize_config_dir

REPOSITORY = Path(__file__).resolve().parents[2]
CONF = REPOSITORY / "conf"
GROUPS = sorted(path.name for path in CONF.iterdir() if path.is_dir() and path.name != "hydra")
BOTH = pytest.mark.parametrize("script", ["train.py", "evaluate.py"])


@pytest.fixture
def untouched(workplace: Path):
    """Whatever is asked leaves nothing behind."""
    yield
    assert list(workplace.iterdir()) == []


@BOTH
class TestHelp:
    def test_every_group_with_all_its_options(self, run_script, untouched, script):
        text = run_script(script, "--help").output
        for group in GROUPS:
            (line,) = re.findall(rf"^{group}: (.*)$", text, flags=re.MULTILINE)
            assert line.split(", ") == sorted(path.stem for path in (CONF / group).glob("*.yaml"))

    def test_the_values_are_those_of_the_command_line(self, run_script, untouched, script):
        text = run_script(script, "--help", "seed=7", "output_dir=elsewhere").output
        assert "seed=7  output_dir=elsewhere" in text

    def test_five_examples_that_compose(self, run_script, script):
        text = run_script(script, "--help").output
        block = text.partition("Examples\n")[2].partition("\n\n")[0]
        commands = [re.split(r"\s{3,}", line.strip())[0] for line in block.splitlines()]
        assert len(commands) == 5
        for command in commands:
            python, name, *arguments = shlex.split(command)
            assert (python, name) == ("python", script)
            arguments = [argument for argument in arguments if not argument.startswith("resume=")]
            outcome = run_script(script, *arguments, "--cfg", "job")
            assert outcome.status == 0 and "error" not in outcome.errors, (command, outcome.errors)

    def test_every_key_it_names_exists(self, run_script, script):
        text = run_script(script, "--help").output
        block = text.partition("Main keys")[2].partition("Options\n")[0]
        keys = re.findall(r"^  (?: )?(\w[\w.]*)(?:=|$)|  (\w[\w.]*)=", block, flags=re.MULTILINE)
        names = [first or second for first, second in keys]
        assert len(names) >= 9
        with initialize_config_dir(str(CONF), version_base="1.3"):
            config = compose(script.removesuffix(".py"))
        for name in names:
            node = config
            *parents, last = name.split(".")
            for parent in parents:
                node = node[parent]
            assert last in node, name

    def test_it_fits_a_terminal(self, run_script, script):
        # The options of a group are one list, however many there are; a terminal breaks it between the words.
        lists = tuple(f"{group}: " for group in GROUPS)
        lines = [line for line in run_script(script, "--help").output.splitlines() if not line.startswith(lists)]
        assert max(map(len, lines)) <= 130


@BOTH
@pytest.mark.parametrize("flag", ["--help", "-h", "--info", "--version"])
def test_a_question_is_answered_whatever_else_is_typed(run_script, untouched, script, flag):
    """`resume=` would look for a run; a directory that cannot be written to is nothing that matters here."""
    outcome = run_script(script, "resume=nowhere", "output_dir=/proc/none", flag)
    assert outcome.status == 0 and outcome.errors == ""


@BOTH
class TestPrintedConfiguration:
    def test_it_is_what_would_be_composed(self, run_script, untouched, script):
        outcome = run_script(script, "sampler.steps=10,20", "trainer.max_time=00:00:01:00", "--cfg", "job")
        config = yaml.safe_load(outcome.output)
        assert outcome.errors == "" and config["sampler"]["steps"] == [10, 20]
        assert config["trainer"]["max_time"] == "00:00:01:00"
        assert "${" in outcome.output

    def test_resolved(self, run_script, untouched, script):
        outcome = run_script(script, "--cfg", "job", "--resolve")
        assert outcome.status == 0 and "Traceback" not in outcome.errors and "${" not in outcome.output
        # The data set of an evaluation is not known before its checkpoint is opened.
        assert yaml.safe_load(outcome.output)["sampler"]["tau"] == ("linear" if script == "train.py" else "???")

    def test_a_part_of_it(self, run_script, untouched, script):
        outcome = run_script(script, "--cfg", "job", "--package", "sampler")
        assert set(yaml.safe_load(outcome.output)) >= {"steps", "eta", "tau", "clip_denoised"}

    def test_hydras_own_settings_resolved_need_the_others(self, run_script, untouched, script):
        outcome = run_script(script, "--cfg", "hydra", "--resolve")
        assert outcome.status == 2 and "--cfg all --resolve" in outcome.errors
        outcome = run_script(script, "--cfg", "all", "--resolve")
        assert outcome.status == 0 and outcome.errors == ""


def test_an_evaluation_says_which_key_its_checkpoint_does_not(run_script, digits_without_tau):
    outcome = run_script("evaluate.py", f"checkpoint={digits_without_tau}", "logger=none")
    assert outcome.status == 2 and "tau" in outcome.errors and outcome.errors.count("\n") == 1
    assert "Traceback" not in outcome.errors


@pytest.fixture
def digits_without_tau(trained_run: Path, tmp_path: Path) -> Path:
    import torch

    checkpoint = torch.load(trained_run / "checkpoints" / "last.ckpt", weights_only=True)
    del checkpoint["ddim"]["config"]["dataset"]["tau"]
    torch.save(checkpoint, tmp_path / "no-tau.ckpt")
    return tmp_path / "no-tau.ckpt"


EMA_KEYS = ("enabled", "decay", "halflife_images", "ramp", "update_every_n_steps")
COMPLETIONS = [
    ("train.py", "datas", {"dataset.", "dataset="}),
    ("train.py", "dataset=c", {"dataset=captioned_digits", "dataset=cifar10", "dataset=celeba"}),
    ("train.py", "optimizer.l", {"optimizer.lr="}),
    ("train.py", "callbacks.ema.", {f"callbacks.ema.{key}=" for key in EMA_KEYS}),
    ("train.py", "hydra/launcher=slurm", {"hydra/launcher=slurm_gpu", "hydra/launcher=slurm_node"}),
    # What is typed before is understood as the scripts understand it: grids, arguments of the Trainer.
    ("train.py", "sampler.steps=10,20 trainer.max_time=00:01:00:00 loss.", {"loss.weighting="}),
    ("evaluate.py", "sampler.eta=0,1 dataset.root=somewhere sampler.clip", {"sampler.clip_denoised="}),
    ("evaluate.py", "evaluation=recon", {"evaluation=reconstruction"}),
    ("evaluate.py", "evaluation.reconstruction.n", {"evaluation.reconstruction.num_images="}),
    ("evaluate.py", "-m sampler.eta=0,1 table=cifar10_", {"table=cifar10_table1", "table=cifar10_table2"}),
    # Nothing is known of these before the checkpoint is, and half a quotation is nothing yet.
    ("evaluate.py", "sampler.tau=", set()),
    ("evaluate.py", "dataset.", set()),
    ("evaluate.py", "'notes=my loss.", set()),
]


@pytest.mark.parametrize(("script", "typed", "expected"), COMPLETIONS)
def test_completion(run_script, untouched, monkeypatch, script, typed, expected):
    monkeypatch.setenv("COMP_LINE", f"python {script} {typed}")
    outcome = run_script(script, "-sc", "query=bash")
    assert outcome.status == 0 and outcome.errors == ""
    assert set(outcome.output.split()) == expected


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_completion_in_bash(workplace):
    """The function that `eval` installs, called as bash calls it."""
    (workplace / "python").symlink_to(sys.executable)
    commands = (
        'eval "$(python train.py -sc install=bash)"; COMP_LINE="python train.py sampler=gen"; '
        'COMP_POINT=${#COMP_LINE}; COMP_CWORD=2; complete -p python; hydra_bash_completion; echo "${COMPREPLY[@]}"'
    )
    done = subprocess.run(
        ["bash", "-c", commands],
        capture_output=True,
        text=True,
        cwd=REPOSITORY,
        env={**os.environ, "PATH": f"{Path(sys.executable).parent}:{workplace}:{os.environ['PATH']}"},
        check=False,
        timeout=120,
    )
    assert done.stdout.splitlines()[-1] == "sampler=generalized", (done.stdout, done.stderr)
    assert "hydra_bash_completion" in done.stdout
