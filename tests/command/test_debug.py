"""`debug=`: short runs that stay out of the way of real ones."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

from ddim.command.arguments import training_arguments
from ddim.command.config import training_config

CONF = Path(__file__).resolve().parents[2] / "conf"
DEBUG = sorted(path.stem for path in (CONF / "debug").glob("*.yaml"))


def composed(*overrides: str, hydra: bool = False):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("train", overrides=list(overrides), return_hydra_config=hydra)


@pytest.mark.parametrize("name", DEBUG)
def test_each_is_one_process_on_the_cpu_without_wandb_in_a_folder_of_its_own(name):
    cfg = composed(f"debug={name}", hydra=True)
    assert cfg.hydra.run.dir.startswith("outputs/debug/") and cfg.hydra.run.dir.endswith("-digits")
    assert (cfg.trainer.accelerator, cfg.trainer.devices, cfg.loader.num_workers) == ("cpu", 1, 0)
    assert cfg.logger.name == "csv"


@pytest.mark.parametrize("preset", ["dataset=cifar10", "experiment=ddpm_celeba", "trainer=gpu"])
def test_it_goes_over_all_other_presets_and_under_what_is_typed(preset):
    assert composed(preset, "debug=limit").trainer.max_steps == 30
    cfg = composed(preset, "debug=limit", "trainer.max_steps=7", "trainer.accelerator=auto")
    assert (cfg.trainer.max_steps, cfg.trainer.accelerator) == (7, "auto")


def test_the_names_of_the_template_are_there():
    assert {"default", "fdr", "limit", "overfit", "profiler"} <= set(DEBUG)
    assert composed("debug=fdr").trainer == composed("debug=one_batch").trainer


def test_one_batch_goes_through_everything_and_leaves_nothing_to_evaluate(run_script, workplace, tiny_training):
    outcome = run_script("train.py", "debug=one_batch", *tiny_training)
    assert outcome.status == 0 and "Trained to step 1." in outcome.output, outcome
    assert list(workplace.rglob("samples-0000001.png")) and not list(workplace.rglob("*.ckpt"))
    refused = run_script("evaluate.py")
    assert refused.status == 2 and "No checkpoint under outputs/train" in refused.errors


def test_the_profilers_table_is_in_the_run(run_script, workplace, tiny_training):
    outcome = run_script("train.py", "debug=profiler", *tiny_training, "trainer.max_steps=3", "callbacks=minimal")
    assert outcome.status == 0, outcome.errors
    (table,) = workplace.glob("outputs/debug/*/fit-profile.txt")
    assert "run_training_batch" in table.read_text()


def test_overfitting_sees_one_batch(run_script, workplace, tiny_training, monkeypatch):
    from ddim.training.module import DenoisingModule

    seen = []
    step = DenoisingModule.training_step

    def recording(self, batch, batch_idx):
        seen.append(sorted(batch["index"].tolist()))
        return step(self, batch, batch_idx)

    monkeypatch.setattr(DenoisingModule, "training_step", recording)
    outcome = run_script("train.py", "debug=overfit", *tiny_training, "callbacks=minimal")
    assert outcome.status == 0, outcome.errors
    assert len(seen) == 4 and all(batch == seen[0] for batch in seen)


@pytest.mark.parametrize("typed", ["tags=first,second", "tags=[first,second]", "logger.tags=first,second"])
def test_tags_reach_wandb_and_the_record(typed):
    config = training_config(composed(*training_arguments([typed])))
    assert config.logger.tags == ["first", "second"]
    assert config.tags == (config.logger.tags if typed.startswith("tags") else [])


@pytest.mark.parametrize("more", [(), ("-m",)])
def test_one_tag_needs_no_brackets(more):
    assert training_arguments(["tags=nightly", *more]) == ["tags=[nightly]", *more]


def test_a_loss_in_the_log_for_each_step(run_script, workplace, tiny_training):
    outcome = run_script("train.py", "debug=limit", *tiny_training, "trainer.max_steps=2", "callbacks=minimal")
    assert outcome.status == 0, outcome.errors
    (log,) = workplace.glob("outputs/debug/*/csv/version_0/metrics.csv")
    assert len([row for row in csv.DictReader(log.open()) if row["train/loss"]]) == 2
