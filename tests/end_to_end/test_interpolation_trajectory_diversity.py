"""evaluation=interpolation, trajectory and diversity on a network that has learnt digits: numbers, pictures, tables."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ddim.data import build_datamodule
from ddim.metrics import build_extractor

SMALL = ("logger=csv", "sampler.steps=20", "evaluation.loss_images=32")


def evaluated(run_script, workplace: Path, run: Path, *arguments: str) -> tuple[Path, str]:
    outcome = run_script("evaluate.py", f"checkpoint={run}", *SMALL, *arguments)
    assert outcome.status == 0, outcome.errors
    (directory,) = (workplace / "outputs" / "evaluate").iterdir()
    for line in outcome.output.splitlines():
        if line.startswith("Pictures"):
            names = line.removeprefix(f"Pictures  in {directory}: ").split(", ")
            assert all((directory / name).is_file() for name in names)
    return directory, outcome.output


def rows_of(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.open()))


def test_lines_between_latents_keep_their_norm_and_change_step_by_step(run_script, workplace, digits_run):
    directory, output = evaluated(run_script, workplace, digits_run, "evaluation=interpolation")
    rows = rows_of(directory / "interpolation.csv")
    assert len(rows) == 6
    for row in rows:
        ends = sorted((float(row["norm_first"]), float(row["norm_last"])))
        assert ends[0] * 0.99 <= float(row["norm_min"]) and float(row["norm_max"]) <= ends[1] * 1.01
        assert (row["eta"], row["steps"], row["nfe"]) == ("0.0", "20", "20")
        # Ten unrelated images would jump by as much as the ends differ, every time.
        assert float(row["mse_mean_jump"]) < 0.2 * float(row["mse_ends"])
    shares = [float(row["largest_jump_share"]) for row in rows]
    assert max(shares) < 0.8 and sorted(shares)[3] < 0.5
    for name in ("lines", "corners"):
        with Image.open(directory / f"interpolation-{name}.png") as picture:
            assert picture.size[0] > 600
    assert "largest/ends" in output and str(directory / "interpolation.csv") in output.replace("\n", "")


def test_a_trajectory_comes_ever_closer_to_its_image(run_script, workplace, digits_run):
    directory, output = evaluated(run_script, workplace, digits_run, "evaluation=trajectory")
    rows = rows_of(directory / "trajectory.csv")
    for eta in ("0.0", "1.0"):
        chosen = [row for row in rows if row["eta"] == eta]
        assert [int(row["timestep"]) for row in chosen] == list(range(950, -1, -50))
        errors = np.array([float(row["mse_to_final"]) for row in chosen])
        assert errors[-1] == 0 < errors[-2]
        quarters = errors.reshape(4, 5).mean(axis=1)
        assert (quarters[1:] < 0.8 * quarters[:-1]).all(), quarters
        stem = f"trajectory-eta{float(eta):.3f}"
        with Image.open(directory / f"{stem}.png") as strip, Image.open(directory / f"{stem}.gif") as animation:
            assert strip.size[0] > 1000 and animation.n_frames == 20
        assert (directory / f"{stem}.gif").stat().st_size < 2_000_000
    assert "50% of the way" in output and f"{stem}.gif" in output


def test_diversity_of_digits_and_what_they_are_nearest_to(run_script, workplace, digits_run, cache_dir):
    directory, output = evaluated(
        run_script, workplace, digits_run, "evaluation=diversity", "evaluation.num_samples=300"
    )
    document = json.loads((directory / "diversity.json").read_text())
    rows, real = document["rows"], document["extra"]["held_out"]
    assert [(row["eta"], row["num_samples"], row["features"]) for row in rows] == [
        (0.0, 300, "digits-cnn"),
        (1.0, 300, "digits-cnn"),
    ]
    assert real["num_samples"] == 360 and real["copy_ratio"] == pytest.approx(0.01, abs=0.002)
    assert real["relative_spread"] == pytest.approx(1, abs=0.05)
    for row in rows:
        assert row["copy_ratio"] < 0.05
        assert 0.8 < row["relative_spread"] < 1.2 and row["recall"] > 0.5 and row["precision"] > 0.3
        assert real["nearest_median"] < row["nearest_median"] < 5 * real["nearest_median"]
        assert (row["reference_split"], row["reference_images"]) == ("train", 1437)
    assert "real test" in output and "copy ratio" in output
    for eta in ("0.000", "1.000"):
        with Image.open(directory / f"diversity-neighbours-eta{eta}.png") as picture:
            assert picture.size[0] > 600

    # The held-out images' distances again, from the data and the features themselves.
    data = build_datamodule(
        {"name": "digits"}, batch_size=1, eval_batch_size=1, num_workers=0, seed=0, cache_dir=cache_dir / "data"
    )
    data.prepare_data()
    data.setup()
    extractor = build_extractor("digits-cnn", channels=1, resolution=8, weights_dir=cache_dir / "weights")
    train, test = (extractor(torch.cat(list(data.images(split, 500)))).features.double() for split in ("train", "test"))
    nearest = torch.cdist(test, train).min(dim=1).values
    assert real["nearest_median"] == pytest.approx(nearest.quantile(0.5).item(), rel=1e-4)
    assert real["copy_threshold"] == pytest.approx(nearest.quantile(0.01).item(), rel=1e-4)


def test_the_reference_split_is_named(run_script, workplace, trained_run):
    directory, output = evaluated(
        run_script,
        workplace,
        trained_run,
        "evaluation=diversity",
        "evaluation.num_samples=20",
        "evaluation.reference_split=test",
        "evaluation.diversity.eta=0",
    )
    (row,) = rows_of(directory / "diversity.csv")
    assert (row["reference_split"], row["reference_images"]) == ("test", "360")
    assert "real training" in output and "360 test images" in output


@pytest.mark.parametrize("logger", ["wandb", "tensorboard"])
def test_pictures_and_animations_reach_the_loggers(run_script, workplace, trained_run, logger):
    directory, _ = evaluated(
        run_script,
        workplace,
        trained_run,
        "evaluation=all",
        "evaluation.parts=[interpolation,trajectory,diversity]",
        "evaluation.num_samples=20",
        f"logger={logger}",
        "evaluation.interpolation.lines=1",
        "sampler.steps=3",
    )
    if logger == "wandb":
        media = [path.relative_to(directory) for path in directory.glob("wandb/offline-run-*/files/media/*/*/*")]
        assert {"gif", "png"} <= {path.suffix[1:] for path in media}
        assert sum(path.suffix == ".gif" for path in media) == 2
        assert sum(path.suffix == ".png" for path in media) == 6
    else:
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        (folder,) = {path.parent for path in directory.glob("tensorboard/**/events*")}
        events = EventAccumulator(str(folder)).Reload()
        assert set(events.Tags()["images"]) == {
            "interpolation/lines",
            "interpolation/corners",
            "trajectory/eta0.000",
            "trajectory/eta1.000",
            "diversity/neighbours-eta0.000",
            "diversity/neighbours-eta1.000",
        }
        assert "diversity/copy_ratio/eta0.000/linear/steps0003" in events.Tags()["scalars"]


def test_diversity_refuses_published_statistics_before_any_work(run_script, workplace, trained_run):
    np.savez(workplace / "published.npz", mu=np.zeros(4), sigma=np.eye(4))
    outcome = run_script(
        "evaluate.py", f"checkpoint={trained_run}", "evaluation=diversity", "evaluation.reference=published.npz"
    )
    assert outcome.status == 2
    assert "evaluation.reference=published.npz" in outcome.errors and "Traceback" not in outcome.errors
    assert not list((workplace / "outputs").glob("evaluate/*/*.csv"))
