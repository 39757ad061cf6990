"""Data that are no images, from the command line: trained, evaluated in all parts, resumed, and refused."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from ddim.data.mixture import GaussianMixture
from ddim.data.options import Options
from ddim.data.tabular import Tabular

TINY = (
    *("trainer.max_steps=3", "trainer.val_check_interval=3", "trainer.log_every_n_steps=1", "loader.batch_size=16"),
    *("callbacks.sample_grid.steps=2", "callbacks.evaluation.every_n_validations=1", "callbacks.evaluation.steps=[2]"),
    *("callbacks.evaluation.num_samples=40", "callbacks.evaluation.metrics=[energy_distance,c2st]", "logger=csv"),
    "hydra.run.dir=run",
)
SMALL = (
    *("checkpoint=run", "evaluation=all", "sampler.steps=2,3", "evaluation.num_samples=40", "logger=csv"),
    *("evaluation.consistency.num_images=6", "evaluation.reconstruction.num_images=6", "hydra.run.dir=evaluation"),
    "evaluation.loss_images=20",
)
# Of points 50 are held out; of a table all are taken.
FEW = {"points2d": ("evaluation.likelihood.num_images=20",)}
PARTS = ("results", "reconstruction", "consistency", "interpolation", "trajectory", "diversity")


@pytest.fixture
def data(workplace: Path) -> dict[str, tuple[str, ...]]:
    generator = np.random.default_rng(0)
    np.save(workplace / "series.npy", generator.normal(size=(60, 2, 8)).cumsum(axis=2))
    small = ("denoiser.base_channels=8", "denoiser.norm_groups=4")
    return {
        "points2d": ("dataset=points2d", "dataset.num_train=100", "dataset.num_test=50", "denoiser.width=16"),
        "tabular": ("dataset=tabular", "dataset.data=iris", "denoiser.width=16", "denoiser.depth=1"),
        "signals": ("dataset=signals", f"dataset.root={workplace / 'series.npy'}", *small),
    }


@pytest.mark.parametrize("name", ["points2d", "tabular", "signals"])
def test_all_parts_of_an_evaluation(run_script, workplace, data, name):
    trained = run_script("train.py", *data[name], *TINY)
    assert trained.status == 0, trained.errors
    checkpoint = torch.load(workplace / "run" / "checkpoints" / "last.ckpt", weights_only=True)
    described = checkpoint["ddim"]["config"]
    shape = {"points2d": [2], "tabular": [4], "signals": [2, 8]}[name]
    assert described["denoiser"]["shape"] == described["space"]["shape"] == shape
    assert len(described["space"]["mean"]) == shape[0] and min(described["space"]["scale"]) > 0

    evaluated = run_script("evaluate.py", *SMALL, *FEW.get(name, ()))
    assert evaluated.status == 0, evaluated.errors
    directory = workplace / "evaluation"
    tables = {part: list(csv.DictReader((directory / f"{part}.csv").open())) for part in PARTS}
    assert all(tables.values()) and (directory / "report.html").is_file()
    for row in tables["results"]:
        assert (row["dataset"], row["features"], row["frechet_distance"]) == (name, "values", "")
        assert np.isfinite(
            [float(row[key]) for key in ("energy_distance", "energy_distance_sd", "sliced_wasserstein")]
        ).all()
        assert 0 <= float(row["c2st"]) <= 1
    assert {row["unit"] for row in tables["reconstruction"]} == {"in standard deviations"}
    floor = json.loads((directory / "results.json").read_text())["floor"]["metrics"]
    assert set(floor) == {"energy_distance", "sliced_wasserstein", "c2st"}
    assert "energy distance by eta" in evaluated.output and "on [0, 1]" not in evaluated.output
    pictures = {path.name for path in directory.glob("*.png")}
    assert {"samples.png", "samples-real.png", "reconstruction-images.png", "interpolation-lines.png"} <= pictures
    assert ("samples-pairs.png" in pictures) == (name == "tabular")
    assert ("trajectory-flow.png" in pictures) == (name == "points2d")
    assert ("likelihood-density.png" in pictures) == (name == "points2d")
    if name != "signals":
        rows = list(csv.DictReader((directory / "likelihood.csv").open()))
        assert rows[-1]["kind"] == "flow" and np.isfinite([float(row["log_density"]) for row in rows]).all()
        assert ("exact" in rows[-1]) == (name == "points2d")
    with Image.open(directory / "samples-real.png") as picture:
        assert len(np.unique(np.asarray(picture))) > 20, "something is drawn"


def test_a_run_goes_on_with_the_standardisation_it_began_with(run_script, workplace, data):
    assert run_script("train.py", *data["points2d"], *TINY).status == 0

    def stated() -> dict[str, Any]:
        return torch.load(workplace / "run" / "checkpoints" / "last.ckpt", weights_only=True)["ddim"]["config"]["space"]

    before = stated()
    resumed = run_script("train.py", "resume=run", "trainer.max_steps=4", "dataset.num_train=120")
    assert resumed.status == 0, resumed.errors
    assert stated() == before
    evaluated = run_script(
        *(
            "evaluate.py",
            "checkpoint=run",
            "sampler.steps=2",
            "sampler.eta=0",
            "evaluation.num_samples=20",
            "logger=none",
        ),
        *("evaluation.metrics=log_density,energy_distance", "hydra.run.dir=density", "dataset.num_test=40"),
    )
    assert evaluated.status == 0, evaluated.errors
    (row,) = csv.DictReader((workplace / "density" / "results.csv").open())
    floor = json.loads((workplace / "density" / "results.json").read_text())["floor"]["metrics"]
    mixture = GaussianMixture.ring(8, 0.1)
    assert floor["log_density"] == pytest.approx(mixture.log_density(mixture.sample(40, 1)).mean().item(), abs=1e-4)
    assert float(row["log_density"]) < floor["log_density"]


def test_missing_values_of_a_table_are_filled_in(run_script, workplace, data):
    assert run_script("train.py", *data["tabular"], *TINY, "callbacks=minimal").status == 0
    evaluated = run_script(
        *("evaluate.py", "checkpoint=run", "evaluation=restoration", "sampler.steps=3", "restoration.num_images=null"),
        *(
            "restoration.mask=['sepal length (cm)','petal width (cm)']",
            "restoration.draws=3",
            "restoration.method=ddnm",
        ),
        *("logger=csv", "hydra.run.dir=filled"),
    )
    assert evaluated.status == 0, evaluated.errors
    rows = {row["method"]: row for row in csv.DictReader((workplace / "filled" / "restoration.csv").open())}
    space = torch.load(workplace / "run" / "checkpoints" / "last.ckpt", weights_only=True)["ddim"]["config"]["space"]
    test = Tabular(Options({"name": "tabular", "data": "iris"}), workplace).open("test").images.double()
    hidden = ((test - torch.tensor(space["mean"])) / torch.tensor(space["scale"]))[:, [0, 3]]
    # The training mean stands for what is missing: its error is the size of the standardised values themselves.
    assert float(rows["pseudo_inverse"]["rmse"]) == pytest.approx(hidden.square().mean().sqrt().item(), rel=1e-4)
    assert float(rows["gaussian_posterior_mean"]["rmse"]) < 0.7 * float(rows["pseudo_inverse"]["rmse"])
    assert float(rows["ddnm"]["consistency"]) < 1e-5 < float(rows["ddnm"]["spread"])
    assert float(rows["ddnm"]["rmse_of_mean"]) < float(rows["ddnm"]["rmse"])
    assert {row["missing"] for row in rows.values()} == {"2"} and np.isfinite(float(rows["ddnm"]["energy_distance"]))
    assert "Missing values of each sample: 2 (inpainting)." in evaluated.output and "PSNR" not in evaluated.output
    assert (workplace / "filled" / "restoration-images-inpainting.png").is_file()


REFUSED: dict[tuple[str, ...], str] = {
    (
        "evaluation.metrics=frechet_distance",
    ): "evaluation.metrics=frechet_distance is of images, the data set has vectors",
    ("evaluation.metrics=kid",): "evaluation.metrics=kid is of images",
    ("evaluation.features=pixels",): "evaluation.features=pixels are of images, the data set has vectors",
    (
        "evaluation=restoration",
        "restoration.operator=superresolution",
    ): "restoration.operator=superresolution cannot be used: superresolution is of images",
    ("evaluation=restoration", "restoration.mask=box"): "the mask box needs an order, which columns have none of",
    (
        "evaluation=restoration",
        "restoration.mask=[height]",
    ): "restoration.mask=['height'] must name some of the columns",
    ("evaluation=restoration", "restoration.mask=7"): "restoration.mask=7 must be one of random, box, half, a file",
    ("sampler.clip_denoised=true",): "sampler.clip_denoised=true clips the predicted x_0 to the range of pixels",
    ("sampler.eta=sigma_hat_official",): "sampler.eta=sigma_hat_official clips the predicted x_0",
    (
        "dataset.shape=moons",
        "evaluation.metrics=log_density",
    ): "evaluation.metrics=log_density needs data whose density is",
}


def test_what_does_not_fit_points_is_refused_in_a_sentence(run_script, workplace, data):
    assert run_script("train.py", *data["points2d"], *TINY, "callbacks=minimal").status == 0
    for arguments, sentence in REFUSED.items():
        outcome = run_script("evaluate.py", "checkpoint=run", "logger=none", *arguments)
        assert outcome.status == 2, (arguments, outcome.output, outcome.errors)
        assert sentence in outcome.errors and "Traceback" not in outcome.errors, (arguments, outcome.errors)
        lines = [line for line in outcome.errors.strip().splitlines() if not line.startswith("values statistics")]
        assert len(lines) == 1, (arguments, outcome.errors)


BAD_TRAINING: dict[tuple[str, ...], str] = {
    ("dataset=signals", "dataset.root=odd.npy"): "a length of 9 is not divisible by 2",
    ("dataset=signals", "dataset.root=odd.npy", "dataset.length=99"): "dataset.length=99 is more than the 9 values",
    ("dataset=tabular", "dataset.file=bad.csv"): "has 'x' in line 3, column b",
    ("dataset=points2d", "dataset.weights=[1,2]"): "must be 8 positive numbers",
    (
        "dataset=points2d",
        "denoiser=unet_small",
    ): "this network takes images, and the data set has none; take denoiser=mlp",
    ("dataset=points2d", "denoiser=unet_1d"): "shape must be a list of 2 positive integers",
    ("dataset=points2d", "callbacks.evaluation.metrics=[kid]"): "callbacks.evaluation.metrics=kid is of images",
    (
        "dataset=digits",
        "callbacks.evaluation.features=values",
    ): "evaluation.features=values are of data that are no images",
    (
        "dataset=digits",
        "callbacks.evaluation.metrics=[log_density]",
    ): "callbacks.evaluation.metrics=log_density needs data",
}


@pytest.mark.parametrize("arguments", BAD_TRAINING)
def test_training_is_refused_in_a_sentence(run_script, workplace, arguments):
    np.save(workplace / "odd.npy", np.random.default_rng(0).normal(size=(300, 9)))
    (workplace / "bad.csv").write_text("a,b\n1,2\n3,x\n")
    outcome = run_script("train.py", *arguments, "logger=none", "trainer.max_steps=1")
    assert outcome.status == 2 and BAD_TRAINING[arguments] in outcome.errors, outcome.errors
    assert "Traceback" not in outcome.errors
