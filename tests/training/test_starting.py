"""A training that starts from the weights of another: which weights those are, and what does not fit."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml

from ddim.denoisers.pretrained import open_pretrained
from ddim.export import main as export

STILL = ("optimizer.lr=1e-12", "trainer.max_steps=1", "logger=none", "hydra.run.dir=second")


def test_the_first_step_is_taken_from_its_averaged_weights(run_script, workplace, trained_run, tiny_training):
    source = open_pretrained(trained_run)
    assert not torch.equal(*(source.states[kind]["conv_in.weight"] for kind in ("ema", "raw")))
    done = run_script("train.py", *tiny_training, *STILL, f"checkpoint={trained_run}")
    assert done.status == 0, done.errors
    begun = open_pretrained("second")
    assert begun.steps == 1, "the steps are its own"
    kept = yaml.safe_load(Path("second/config.yaml").read_text())
    assert kept["checkpoint"] == source.origin and kept["objective"]["predicts"] == "eps", "neither auto nor latest"
    for name, value in source.states["ema"].items():
        assert torch.allclose(begun.states["raw"][name], value, rtol=0, atol=1e-9), name


def test_a_diffusers_directory_will_do_and_a_resumed_run_needs_it_no_more(
    run_script, workplace, trained_run, tiny_training
):
    export([str(trained_run), "model"])
    done = run_script("train.py", *tiny_training, *STILL, "checkpoint=model")
    assert done.status == 0, done.errors
    expected = open_pretrained(trained_run).states["ema"]["conv_in.weight"]
    assert torch.allclose(open_pretrained("second").states["raw"]["conv_in.weight"], expected, rtol=0, atol=1e-9)
    (workplace / "model").rename(workplace / "moved")
    done = run_script("train.py", "resume=second", "trainer.max_steps=2")
    assert done.status == 0, done.errors


def test_raw_weights_will_do_where_there_are_no_others(run_script, workplace, trained_run, tiny_training):
    checkpoint = torch.load(trained_run / "checkpoints" / "last.ckpt", weights_only=True)
    raw = "current_model_state" if "current_model_state" in checkpoint else "state_dict"
    checkpoint["state_dict"] = checkpoint.pop(raw)
    checkpoint["callbacks"] = {}
    torch.save(checkpoint, "raw.ckpt")
    assert [*open_pretrained("raw.ckpt").states] == ["raw"]
    done = run_script("train.py", *tiny_training, *STILL, "checkpoint=raw.ckpt")
    assert done.status == 0 and "(raw weights)" in done.output, done.errors


def test_a_run_keeps_its_prediction_when_its_data_set_has_changed_its_mind(run_script, workplace, tiny_training):
    points = ("dataset=points2d", "denoiser.width=16", "denoiser.depth=1", "callbacks=minimal", "logger=none")
    short = ("trainer.max_steps=2", "trainer.val_check_interval=2", "loader.num_workers=0", "hydra.run.dir=run")
    done = run_script("train.py", *points, *short, "dataset.predicts=eps")
    assert done.status == 0, done.errors
    overrides = Path("run/overrides.yaml")
    overrides.write_text(overrides.read_text().replace("dataset.predicts=eps", "dataset.predicts=v"))
    done = run_script("train.py", "resume=run", "trainer.max_steps=4")
    assert done.status == 0, done.errors
    assert open_pretrained("run").predicts == "eps"
    done = run_script("train.py", "resume=run", "objective=v")
    assert done.status == 2 and "objective.predicts=v differs from eps" in done.errors


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["objective=v"], "objective.predicts=v is not what the network of checkpoint={run} predicts"),
        (["schedule=cosine"], "checkpoint={run} was trained on schedule"),
        (["denoiser.base_channels=16"], "checkpoint={run}: "),
        (["checkpoint=nowhere"], "checkpoint=nowhere: "),
        (["checkpoint=latest", "output_dir=empty"], "No checkpoint under empty"),
    ],
)
def test_what_does_not_fit_is_a_sentence(overrides, sentence, run_script, workplace, trained_run, tiny_training):
    done = run_script("train.py", *tiny_training, "logger=none", f"checkpoint={trained_run}", *overrides)
    assert done.status == 2 and sentence.format(run=trained_run) in done.errors
    assert len(done.errors.strip().splitlines()) == 1
