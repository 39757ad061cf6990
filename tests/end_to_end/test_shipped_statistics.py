"""A network with statistics of its training images beside it is evaluated where the images are not."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ddim.data.digits import Digits
from ddim.denoisers import UNet
from ddim.export import main
from ddim.runs.layout import CSV_NAME, JSON_NAME

GRID = ("evaluation.num_samples=40", "sampler.steps=[2]", "sampler.eta=[0.0,1.0]", "logger=none", "trainer=cpu")
PHOTOGRAPHS = {"channels": 3, "resolution": 32, "random_flip": True, "features": "pixels", "tau": "linear"}


@pytest.fixture(scope="module")
def photographs(tmp_path_factory) -> tuple[Path, Path]:
    """An exported network with `cifar-cnn` statistics of 48 smooth coloured images, and the folder with these."""
    place = tmp_path_factory.mktemp("shipped")
    random = np.random.default_rng(0)
    for split, count in (("train", 48), ("test", 16)):
        (place / "images" / split).mkdir(parents=True)
        for number in range(count):
            coarse = Image.fromarray(random.integers(0, 256, (4, 4, 3), dtype=np.uint8))
            coarse.resize((32, 32), Image.Resampling.BICUBIC).save(place / "images" / split / f"{number}.png")
    torch.manual_seed(0)
    unet = UNet(
        resolution=32,
        base_channels=4,
        channel_mult=(1, 1),
        num_res_blocks=1,
        attention_resolutions=(),
        norm_groups=2,
    )
    weights = {f"denoiser.{name}": value for name, value in unet.state_dict().items()}
    checkpoint = {
        "state_dict": weights,
        "current_model_state": weights,
        "ddim": {
            "format": 1,
            "config": {
                "dataset": {"name": "image_folder", "root": str(place / "images"), **PHOTOGRAPHS},
                "denoiser": {"name": "unet", **unet.config},
                "schedule": {"name": "linear", "num_timesteps": 1000, "beta_start": 1e-4, "beta_end": 0.02},
            },
        },
    }
    (place / "run" / "checkpoints").mkdir(parents=True)
    torch.save(checkpoint, place / "run" / "checkpoints" / "last.ckpt")
    arguments = [str(place / "run"), str(place / "shipped"), "--reference", "cifar-cnn"]
    main([*arguments, "--cache-dir", str(place / "cache")])
    moved = place / "elsewhere"
    shutil.move(place / "images", moved)
    return place / "shipped", moved


@pytest.fixture(scope="module")
def shipped_digits(trained_run, tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("digits") / "shipped"
    main(
        [str(trained_run), str(directory), "--reference", "digits-cnn", "--cache-dir", str(directory.parent / "cache")]
    )
    return directory


def rows_of(directory: Path) -> list[dict[str, str]]:
    with (directory / CSV_NAME).open(newline="") as file:
        return list(csv.DictReader(file))


def evaluated(run_script, name: str, *arguments: str):
    outcome = run_script("evaluate.py", *GRID, f"hydra.run.dir={name}", *arguments)
    assert outcome.status == 0, outcome.errors
    return outcome, rows_of(Path(name))


def test_the_file_is_small_data_and_names_no_place(photographs):
    shipped, images = photographs
    path = shipped / "reference-cifar-cnn.npz"
    assert path.stat().st_size < 300_000
    with np.load(path, allow_pickle=False) as file:
        assert file["mu"].shape == (88,) and file["sigma"].shape == (88, 88)
        about = json.loads(file["about"].tobytes())
    assert str(images.parent) not in json.dumps(about)
    assert about["data"]["count"] == 48 and about["data"]["split"] == "train"
    assert about["dataset"] == {"name": "image_folder", **PHOTOGRAPHS, "features": "cifar-cnn"}


def test_photographs_are_measured_without_images_and_with_them(photographs, run_script):
    shipped, images = photographs
    alone, without = evaluated(run_script, "without", f"checkpoint={shipped}")
    said = [line for line in alone.output.splitlines() if "No data set is opened" in line]
    assert len(said) == 1 and "48 train images of image_folder" in said[0] and "dataset.root=DIR" in said[0]
    assert "FD (cifar-cnn)" in alone.output and "FID" not in alone.output and "nan" not in alone.output.lower()
    _, within = evaluated(run_script, "within", f"checkpoint={shipped}", f"dataset.root={images}")
    for alone_row, row in zip(without, within, strict=True):
        for column in ("frechet_distance", "frechet_distance_sd", "frechet_distance_unbiased"):
            # The reference is taken as given in both: the same bars.
            assert float(alone_row[column]) == pytest.approx(float(row[column]), rel=1e-9)
        for column in ("features", "reference_images", "reference_split", "preprocessing", "dataset"):
            assert alone_row[column] == row[column] != ""
        assert alone_row["features"] == "cifar-cnn" and alone_row["reference_images"] == "48"
        assert (alone_row["reference_source"], row["reference_source"]) == ("reference-cifar-cnn.npz", "dataset")
        assert alone_row["reference"] != row["reference"]
        assert (alone_row["recall"], alone_row["kid_mean"]) == ("", "") and "" not in (row["recall"], row["kid_mean"])
    known, more = (json.loads(Path(name, JSON_NAME).read_text()) for name in ("without", "within"))
    assert known["floor"] is None and more["floor"] is not None
    published, computed = known["extra"]["reference"], more["extra"]["reference"]
    assert published["published"] == "reference-cifar-cnn.npz" and len(published["sha256"]) == 64
    assert published["data"]["fingerprint"] == computed["data"]["fingerprint"]


def test_digits_are_not_opened_unless_they_are_named(shipped_digits, run_script, monkeypatch):
    _, named = evaluated(run_script, "named", f"checkpoint={shipped_digits}", "dataset=digits")

    def refuse(*arguments):
        raise AssertionError("a data set was opened")

    monkeypatch.setattr(Digits, "open", refuse)
    outcome, rows = evaluated(run_script, "alone", f"checkpoint={shipped_digits}")
    assert "1,437 train images of digits" in outcome.output
    assert [float(row["frechet_distance"]) for row in rows] == pytest.approx(
        [float(row["frechet_distance"]) for row in named], rel=1e-9
    )
    again, same = evaluated(run_script, "alone", f"checkpoint={shipped_digits}")
    assert "finished before" in again.errors and same == rows


def test_parts_that_need_no_images_are_drawn_without(shipped_digits, run_script):
    outcome = run_script(
        "evaluate.py", f"checkpoint={shipped_digits}", "evaluation=trajectory", "logger=none", "sampler.steps=2"
    )
    assert outcome.status == 0, outcome.errors


MISTAKES = {
    "evaluation=reconstruction": ("evaluation=reconstruction needs images", "dataset.root=DIR"),
    "evaluation=likelihood sampler.eta=1": ("evaluation=likelihood needs images", "dataset.root=DIR"),
    "evaluation=diversity": ("evaluation=diversity needs images", "dataset.root=DIR"),
    "sampler.tau=elbo sampler.eta=1": ("this needs images", "dataset.root=DIR"),
    "evaluation.features=pixels": ("evaluation.features=pixels needs images", "evaluation.features=digits-cnn"),
    "evaluation.features=auto": ("evaluation.features=auto needs images", "evaluation.features=digits-cnn"),
    "evaluation.reference=nowhere.npz": ("evaluation.reference=nowhere.npz is not a file",),
}


@pytest.mark.parametrize("typed", MISTAKES)
def test_what_needs_images_says_how_to_give_them(typed, shipped_digits, run_script):
    outcome = run_script("evaluate.py", f"checkpoint={shipped_digits}", *GRID, *typed.split())
    errors = [line for line in outcome.errors.splitlines() if line.startswith("error:")]
    assert outcome.status == 2 and len(errors) == 1 and "Traceback" not in outcome.errors
    for words in MISTAKES[typed]:
        assert words in errors[0]


def test_exporting_needs_a_data_set_that_is_stated_and_there(shipped_digits, photographs, tmp_path, capsys):
    for arguments, words in (
        ([str(shipped_digits), "--reference", "pixels"], "does not say which images"),
        ([str(photographs[0].parent / "run"), "--reference", "pixels"], "does not exist"),
        ([str(photographs[0].parent / "run"), "--reference", "digits-cnn", "--root", str(photographs[1])], "8x8"),
    ):
        run, *options = arguments
        with pytest.raises(SystemExit) as ended:
            main([run, str(tmp_path / "new"), *options, "--cache-dir", str(tmp_path / "cache")])
        assert ended.value.code == 2 and words in capsys.readouterr().err
        assert not (tmp_path / "new").exists()
