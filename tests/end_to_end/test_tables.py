"""`table=`: the paper's grids by one command, on the digits default and on checkpoints that state no data set."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

from ddim.command.arguments import evaluation_arguments
from ddim.command.config import evaluation_config
from ddim.findings.paper import FID_SAMPLES, TABLES

CONF = Path(__file__).resolve().parents[2] / "conf"


def composed(*arguments: str):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("evaluate", overrides=evaluation_arguments(arguments))


def rows(path: Path) -> list[dict[str, str]]:
    with open(path) as stream:
        return list(csv.DictReader(stream))


@pytest.mark.parametrize("name", TABLES)
def test_a_table_asks_for_what_the_paper_did(name):
    """Every cell of the table, with its tau and its number of samples, on its data set."""
    table = TABLES[name]
    arguments = [f"dataset={table.configuration}", "denoiser=unet_cifar10", "schedule=linear", f"table={name}"]
    if table.configuration.startswith("lsun"):
        arguments.append("dataset.root=somewhere")
    planned = evaluation_config(composed(*arguments))
    config, points = planned.config, planned.config.sampler.points(_schedule())
    assert set(table.values) <= cells_of(points)
    assert set(table.values) == cells_of(planned.points[config.evaluation.parts[0]])
    assert {point.tau for point in points} == {table.tau or "linear"} and not config.sampler.clip_denoised
    if table.metric == "frechet_distance":
        assert config.evaluation.parts == ["grid"] and config.evaluation.num_samples == FID_SAMPLES
        # auto is Inception unless its weights are not to be had, which is then said beside the table.
        assert config.evaluation.features in ("inception-v3-compat", "auto")
        assert table.configuration != "cifar10" or config.evaluation.features == "auto"
    else:
        assert config.evaluation.parts == ["reconstruction"] and config.evaluation.reconstruction.num_images is None
    assert config.evaluation.weights == "ema" and config.evaluation.reference_split == "train"


def cells_of(points) -> set[tuple[str, int]]:
    return {("sigma_hat" if p.variance != "eta" else str(p.eta), p.steps) for p in points}


def _schedule():
    from ddim.diffusion import NoiseSchedule

    return NoiseSchedule.linear(1000)


def test_every_table_has_an_option():
    assert {path.stem for path in (CONF / "table").glob("*.yaml")} == set(TABLES)


@pytest.mark.parametrize("name", ["cifar10_table1", "celeba_table1", "lsun_church_table3"])
def test_a_subset_of_a_table_on_digits(run_script, workplace, trained_run, name):
    arguments = (f"checkpoint={trained_run}", f"table={name}", "sampler.steps=10,20", "logger=csv")
    outcome = run_script("evaluate.py", *arguments, "evaluation.num_samples=70")
    assert outcome.status == 0, outcome.errors
    (directory,) = (workplace / "outputs" / "evaluate").iterdir()
    cells = rows(directory / f"{name}.csv")
    assert len(cells) == 2 * len({row for row, _ in TABLES[name].values})
    for cell in cells:
        measured, published = float(cell["measured"]), float(cell["paper"])
        assert float(cell["difference"]) == pytest.approx(measured - published)
        assert f"{published:.10g}" in outcome.output
        assert cell["comparable"] == "false" and "data set digits" in cell["not_comparable_because"]
    assert {row["tau"] for row in rows(directory / "results.csv")} == {TABLES[name].tau}
    assert "Not comparable as it stands: data set digits" in outcome.output
    assert "beside the paper's numbers" in outcome.output


def test_every_number_says_what_it_was_measured_with(run_script, workplace, trained_run):
    """The columns against what the metrics room itself says of the reference; in another precision than the default."""
    arguments = ("evaluate.py", f"checkpoint={trained_run}", "table=lsun_church_table3", "logger=none")
    small = ("evaluation.num_samples=6", "trainer.precision=bf16-mixed", "evaluation.reconstruction.num_images=4")
    directory, others = workplace / "grid", workplace / "others"
    outcome = run_script(*arguments, *small, "sampler.steps=3,1000", f"hydra.run.dir={directory}")
    assert outcome.status == 0, outcome.errors
    parts = "evaluation.parts=grid,reconstruction,diversity"
    beside = run_script(*arguments, *small, "sampler.steps=3", parts, f"hydra.run.dir={others}")
    assert beside.status == 0, beside.errors
    grid = rows(directory / "results.csv")
    # The paper leaves eta = 0 at S = 1000 empty; 3 is somebody's own.
    assert [(row["eta"], row["steps"]) for row in grid] == [("0.0", "3"), ("1.0", "3"), ("1.0", "1000")]
    expected = _reference(workplace)
    for row in [*grid, *rows(others / "diversity.csv"), *rows(directory / "lsun_church_table3.csv")]:
        assert (row["reference"], row["preprocessing"]) == (expected.digest, expected.preprocessing)
        assert (row["reference_split"], row["compute_precision"]) == ("train", "bf16-mixed")
        assert (row["weights"], row["seed"], row["dataset"], row["resize"]) == ("ema", "0", "digits", "none")
        assert len(row["timesteps"].split()) == int(row["nfe"]) == int(row["steps"])
        assert len(row["weights_hash"]) == 16 and row["num_samples"] == "6"
    for row in rows(others / "reconstruction.csv"):
        assert row["compute_precision"] == "bf16-mixed" and len(row["preprocessing"]) == 16 and row["num_images"] == "4"
    assert "precision bf16-mixed (the paper: 32-true)" in outcome.output


def _reference(workplace: Path):
    from ddim.data import build_datamodule
    from ddim.metrics import build_extractor, reference_statistics

    loader = {"batch_size": 1, "eval_batch_size": 5, "num_workers": 0, "seed": 0, "cache_dir": workplace}
    datamodule = build_datamodule({"name": "digits"}, **loader)
    extractor = build_extractor("digits-cnn", channels=1, resolution=8, weights_dir=workplace)
    return reference_statistics(
        extractor, lambda: datamodule.images("train", 500), datamodule.provenance("train"), workplace / "own"
    )
