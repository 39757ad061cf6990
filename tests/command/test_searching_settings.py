"""`hparams_search=`, and the command lines of W&B sweeps."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml
from hydra import compose, initialize_config_dir

from ddim.command.arguments import evaluation_arguments, training_arguments
from ddim.command.config import training_config
from ddim.errors import UserError

REPOSITORY = Path(__file__).resolve().parents[2]
SEARCHES = sorted(path.stem for path in (REPOSITORY / "conf" / "hparams_search").glob("*.yaml"))
SWEEPS = sorted((REPOSITORY / "sweeps").glob("*.yaml"))


def composed(*arguments: str, hydra: bool = False):
    with initialize_config_dir(str(REPOSITORY / "conf"), version_base="1.3"):
        return compose("train", overrides=training_arguments(arguments), return_hydra_config=hydra)


@pytest.mark.parametrize("name", SEARCHES)
def test_every_setting_that_is_searched_exists_and_its_ends_are_allowed(name):
    sweeper = composed(f"hparams_search={name}", hydra=True).hydra.sweeper
    assert sweeper._target_.endswith("OptunaSweeper") and sweeper.max_failure_rate == 1
    for key, text in sweeper.params.items():
        values = re.findall(r"[\w.-]+", re.sub(r"tag\(log, |interval|choice", "", text))
        assert len(values) >= 2
        for value in values:
            training_config(composed(f"hparams_search={name}", f"{key}={value}"))


def test_a_search_goes_on_after_a_bad_trial_and_finds_the_better_setting(run_script, workplace, tiny_training):
    pytest.importorskip("optuna")
    outcome = run_script(
        *("train.py", "hparams_search=digits", *tiny_training, "callbacks=minimal", "logger=none"),
        *("hydra.sweeper.n_trials=3", "callbacks.ema.decay=0.5", "optimizer.lr=choice(3e-3,-1)", "trainer.max_steps=2"),
    )
    (sweep,) = (workplace / "outputs" / "multirun").iterdir()
    found = yaml.safe_load((sweep / "optimization_results.yaml").read_text())
    assert float(found["best_params"]["optimizer.lr"]) == 3e-3 and 0 < found["best_value"] < 2
    trained = len(list(sweep.glob("*/checkpoints/last.ckpt")))
    assert 0 < trained < 3 and outcome.errors.count(": optimizer.lr=-1.0 must be") == 3 - trained
    assert outcome.status == 2 and "Traceback" not in outcome.errors


def test_in_a_search_a_list_is_a_sweep_and_a_trial_goes_on_alone(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    typed = ["hparams_search=digits", "callbacks.evaluation.steps=5,10"]
    assert training_arguments(typed) == typed
    run = tmp_path / "3"
    (run / "checkpoints").mkdir(parents=True)
    (run / "checkpoints" / "last.ckpt").touch()
    (run / "overrides.yaml").write_text(yaml.safe_dump(["optimizer.lr=1e-3", "hparams_search=digits"]))
    assert "hydra.mode=RUN" in training_arguments([f"resume={run}"])
    (run / "overrides.yaml").write_text(yaml.safe_dump(["optimizer.lr=1e-3"]))
    assert "hydra.mode=RUN" not in training_arguments([f"resume={run}"])


def test_a_sweeper_that_is_not_installed_names_the_extra(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"hparams_search=digits needs .*\[search\]"):
        training_arguments(["hparams_search=digits"])
    assert training_arguments(["hydra.run.dir=somewhere"])
    assert evaluation_arguments(["--help"]) == ["--help"]


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)
def test_the_command_of_a_wandb_sweep_composes(path, monkeypatch):
    """As W&B's own agent builds it, from the first and the last value of each parameter."""
    from wandb.sdk.launch.sweeps.utils import create_sweep_command, create_sweep_command_args, load_sweep_config

    sweep = load_sweep_config(str(path))
    assert sweep is not None and (REPOSITORY / sweep["program"]).is_file()
    metrics = {"val/loss", "val/frechet_distance"}
    assert sweep["metric"]["goal"] == "minimize" and sweep["metric"]["name"] in metrics
    for end in (0, -1):
        values = {
            key: {"value": given["values"][end] if "values" in given else (given["min"], given["max"])[end]}
            for key, given in sweep["parameters"].items()
        }
        built = create_sweep_command_args({"args": values})
        command = [
            part for word in create_sweep_command(sweep["command"]) for part in built.get(word.strip("${}"), [word])
        ]
        assert command[1:3] == ["python", "${program}"]
        config = training_config(composed(*command[3:]))
        assert config.tags and config.logger.name == "wandb" and config.logger.tags == config.tags
        for key, given in values.items():
            node = vars(config)
            *parents, last = key.split(".")
            for parent in parents:
                node = node[parent] if isinstance(node[parent], dict) else vars(node[parent])
            value = node[last]["name"] if isinstance(node[last], dict) else node[last]
            assert value == given["value"]
