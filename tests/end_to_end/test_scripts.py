"""train.py and evaluate.py from the command line to the files they leave."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from ddim.denoisers.formats.own import read_checkpoint
from ddim.denoisers.pretrained import load_denoiser
from ddim.findings.files import read_results

EVALUATION = ("logger=csv", "evaluation.num_samples=70", "evaluation.grid_images=4")


def only(directory: Path) -> Path:
    (entry,) = directory.iterdir()
    return entry


def logged(run: Path) -> dict[str, list[str]]:
    """Column -> the values that are there, over all metrics files of a run."""
    columns: dict[str, list[str]] = {}
    for path in sorted(run.glob("csv/version_*/metrics.csv")):
        for row in csv.DictReader(path.open()):
            for key, value in row.items():
                if value:
                    columns.setdefault(key, []).append(value)
    return columns


@pytest.mark.parametrize("logger", ["csv", "wandb", "tensorboard", "none"])
def test_training_leaves_checkpoints_pictures_and_metrics(run_script, workplace, tiny_training, logger):
    outcome = run_script("train.py", *tiny_training, f"logger={logger}")
    assert outcome.status == 0, outcome.errors
    run = only(workplace / "outputs" / "train")
    assert {path.name for path in (run / "checkpoints").iterdir()} == {"last.ckpt", "best.ckpt"}
    assert {path.name for path in (run / "samples").iterdir()} == {"samples-0000002.png", "samples-0000004.png"}
    if logger != "none":
        columns = logged(run)
        assert len(columns["train/loss"]) == 4
        assert len(columns["val/loss"]) == len(columns["val/loss_q1"]) == len(columns["val/frechet_distance"]) == 2
        assert {"train/gradient_norm", "train/lr", "train/images_per_second"} <= set(columns)
    assert bool(list(run.glob("wandb/offline-run-*/*.wandb"))) == (logger == "wandb")
    assert bool(list(run.glob("tensorboard/events*"))) == (logger == "tensorboard")
    assert not (workplace / "wandb").exists() and not (workplace / "lightning_logs").exists()


def test_evaluation_writes_the_grid(run_script, workplace, trained_run):
    outcome = run_script(
        "evaluate.py", f"checkpoint={trained_run}", "sampler.eta=0,1,sigma_hat", "sampler.steps=2,3", *EVALUATION
    )
    assert outcome.status == 0, outcome.errors
    directory = only(workplace / "outputs" / "evaluate")
    results = read_results(directory)
    assert [(row.eta, row.variance, row.steps) for row in results.rows] == [
        (0.0, "eta", 2),
        (0.0, "eta", 3),
        (1.0, "eta", 2),
        (1.0, "eta", 3),
        (1.0, "sigma_hat", 2),
        (1.0, "sigma_hat", 3),
    ]
    for row in results.rows:
        assert (row.num_samples, row.weights, row.features, row.nfe) == (70, "ema", "digits-cnn", row.steps)
        assert row.frechet_distance > 0 and row.seconds > 0 and row.kid_mean is not None and row.recall is not None
        assert row.inception_score_mean is None
    assert results.floor.num_images == 360
    assert results.extra["config"]["dataset"]["name"] == "digits"
    for name in ("samples.png", "distance.png", "speed.png", "samples/eta0.000-linear-steps0002.png"):
        assert Image.open(directory / name).size[0] > 100
    assert "\x1b[" not in outcome.output
    assert f"{results.rows[0].frechet_distance:.0f}"[:2] in outcome.output
    assert f"Pictures  in {directory}: samples.png, distance.png, speed.png" in outcome.output.replace("\n", "")


def test_two_spacings_in_one_grid_keep_apart(run_script, workplace, trained_run):
    """Official quadratic and linear at the same η and S: rows, summary keys and pictures of their own."""
    outcome = run_script(
        "evaluate.py",
        f"checkpoint={trained_run}",
        "sampler.tau=linear,quadratic",
        "sampler.eta=0",
        "sampler.steps=4",
        *EVALUATION,
    )
    assert outcome.status == 0, outcome.errors
    directory = only(workplace / "outputs" / "evaluate")
    rows = read_results(directory).rows
    assert [(row.tau, row.timesteps) for row in rows] == [
        ("linear", (0, 250, 500, 750)),
        ("quadratic", (0, 88, 355, 800)),
    ]
    assert rows[0].frechet_distance != rows[1].frechet_distance
    for tau, row in zip(("linear", "quadratic"), rows, strict=True):
        key = f"frechet_distance/eta0.000/{tau}/steps0004"
        assert [float(value) for value in logged(directory)[key]] == [pytest.approx(row.frechet_distance)]
        assert (directory / f"samples-{tau}.png").is_file() and f"samples-{tau}.png" in outcome.output
        assert (directory / "samples" / f"eta0.000-{tau}-steps0004.png").is_file()


def test_the_largest_seed_trains(run_script, workplace, tiny_training):
    outcome = run_script("train.py", *tiny_training, "logger=none", "callbacks=minimal", f"seed={2**63 - 1}")
    assert outcome.status == 0, outcome.errors


def test_rows_do_not_depend_on_the_batch_size(run_script, workplace, trained_run):
    distances = []
    for batch_size in (7, 70):
        run_script(
            "evaluate.py",
            f"checkpoint={trained_run}",
            "sampler.eta=0.5",
            "sampler.steps=3",
            f"evaluation.batch_size={batch_size}",
            f"hydra.run.dir={workplace / str(batch_size)}",
            *EVALUATION,
        )
        distances.append(read_results(workplace / str(batch_size)).rows[0].frechet_distance)
    assert distances[0] == pytest.approx(distances[1], rel=1e-4)


def test_a_resumed_run_ends_where_the_uninterrupted_one_ends(run_script, workplace, tiny_training):
    """Same weights, raw and averaged, bit for bit; same directory; the metrics of both parts are kept."""
    settings = (*tiny_training, "logger=csv", "denoiser.dropout=0.1", "dataset.random_flip=true")
    run, whole = workplace / "outputs" / "train" / "half", workplace / "whole"
    assert run_script("train.py", *settings, "trainer.max_steps=3", f"hydra.run.dir={run}").status == 0
    assert run_script("train.py", *settings, f"hydra.run.dir={whole}").status == 0

    refused = run_script("train.py", "resume=latest", "trainer.max_steps=4", "denoiser.dropout=0.0")
    assert refused.status == 2 and "denoiser.dropout=0.0 differs from 0.1" in refused.errors
    resumed = run_script("train.py", "resume=latest", "trainer.max_steps=4")
    assert resumed.status == 0, resumed.errors

    expected, found = (read_checkpoint(path / "checkpoints" / "last.ckpt") for path in (whole, run))
    assert found["global_step"] == expected["global_step"] == 4
    for key in ("state_dict", "current_model_state"):
        assert expected[key].keys() == found[key].keys()
        for name in expected[key]:
            assert torch.equal(expected[key][name], found[key][name]), (key, name)
    losses = [[float(value) for value in logged(path)["train/loss"]] for path in (run, whole)]
    assert losses[0] == losses[1] and len(losses[0]) == 4
    assert only(workplace / "outputs" / "train") == run


def test_the_checkpoint_is_plain_data_and_rebuilds_the_denoiser(trained_run):
    path = trained_run / "checkpoints" / "last.ckpt"
    checkpoint = torch.load(path, weights_only=True)
    assert checkpoint["ddim"]["config"]["dataset"]["name"] == "digits"
    assert json.dumps(checkpoint["ddim"])
    averaged, raw = load_denoiser(trained_run), load_denoiser(path, weights="raw")
    assert averaged.config["base_channels"] == 8
    differs = [not torch.equal(a, b) for a, b in zip(averaged.parameters(), raw.parameters(), strict=True)]
    assert any(differs)


def test_commands_as_typed_in_their_own_process(run_process, workplace, trained_run):
    """`python evaluate.py sampler.eta=0 sampler.steps=10,20,50` finds the newest run by itself."""
    (workplace / "outputs").symlink_to(trained_run.parent.parent)
    outcome = run_process("evaluate.py", "sampler.eta=0", "sampler.steps=10,20,50", "evaluation.num_samples=70")
    assert outcome.status == 0, outcome.errors
    table = next((workplace / "outputs" / "evaluate").iterdir()) / "results.csv"
    rows = list(csv.DictReader(table.open()))
    assert [(row["eta"], row["steps"], row["num_samples"]) for row in rows] == [
        ("0.0", "10", "70"),
        ("0.0", "20", "70"),
        ("0.0", "50", "70"),
    ]
    assert "Warning" not in outcome.errors and "Traceback" not in outcome.errors, outcome.errors


def test_weights_and_seed_are_what_was_asked_for(run_script, workplace, trained_run):
    def distance(name: str, *arguments: str) -> float:
        outcome = run_script(
            "evaluate.py",
            f"checkpoint={trained_run}",
            "sampler.eta=0",
            "sampler.steps=2",
            f"hydra.run.dir={workplace / name}",
            *EVALUATION,
            *arguments,
        )
        assert outcome.status == 0, outcome.errors
        return read_results(workplace / name).rows[0].frechet_distance

    first = distance("first")
    assert distance("again") == first
    assert distance("seed", "seed=1") != first
    assert distance("raw", "evaluation.weights=raw") != first
