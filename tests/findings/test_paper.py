"""The published figures, what they are set beside, and what keeps a result from being comparable with them."""

from __future__ import annotations

import csv
import io
import json
from typing import Any

import pytest

from ddim.diffusion import NoiseSchedule
from ddim.diffusion.grid import grid_points
from ddim.display.terminal import Terminal
from ddim.findings.paper import SCHEDULE, TABLES
from ddim.findings.paper.comparison import compare, render_comparison, write_comparison

LINEAR = NoiseSchedule.linear(1000)
SIZES = {
    "cifar10_table1": 25,
    "celeba_table1": 25,
    "cifar10_table2": 7,
    "lsun_bedroom_table3": 9,
    "lsun_church_table3": 9,
}


def row(table: str = "cifar10_table1", **changes: Any) -> dict[str, Any]:
    """A record that reproduces the paper's settings."""
    paper = TABLES[table]
    measured = {
        "frechet_distance": 13.5,
        "num_samples": 50_000,
        "features": "inception-v3-compat",
        "reference_split": "train",
    }
    if paper.metric == "mse_per_dimension":
        measured = {"mse_per_dimension": 0.015, "num_images": 10_000}
    settings = {
        "dataset": paper.dataset,
        "weights": "ema",
        "schedule": SCHEDULE,
        "tau": paper.tau or "linear",
        "clip_denoised": False,
        "compute_precision": "32-true",
        "eta": 0.0,
        "variance": "eta",
        "steps": 10,
        "nfe": 10,
    }
    return {**settings, **measured, **changes}


@pytest.mark.parametrize("name", SIZES)
def test_every_table_holds_the_published_cells(name):
    assert len(TABLES[name].values) == SIZES[name]


@pytest.mark.parametrize(
    ("table", "eta", "variance", "steps", "published"),
    [
        ("cifar10_table1", 0.0, "eta", 10, 13.36),
        ("cifar10_table1", 0.2, "eta", 100, 4.25),
        ("cifar10_table1", 1.0, "sigma_hat", 1000, 3.17),
        ("cifar10_table1", 1.0, "sigma_hat_official", 1000, 3.17),
        ("cifar10_table1", 1.0, "eta", 1000, 4.73),
        ("cifar10_table1", 0.3, "eta", 10, None),
        ("cifar10_table1", 0.0, "eta", 30, None),
        ("celeba_table1", 0.0, "eta", 1000, 3.51),
        ("celeba_table1", 1.0, "sigma_hat", 10, 299.71),
        ("cifar10_table2", 0.0, "eta", 200, 0.0004),
        ("lsun_bedroom_table3", 1.0, "eta", 1000, 6.36),
        ("lsun_church_table3", 1.0, "eta", 1000, 7.89),
        ("lsun_church_table3", 0.0, "eta", 1000, None),
        ("lsun_church_table3", 1.0, "sigma_hat", 1000, None),
    ],
)
def test_published_values(table, eta, variance, steps, published):
    assert TABLES[table].value(eta, variance, steps) == published


def test_cells_that_the_paper_leaves_empty_are_not_sampled():
    table = TABLES["lsun_church_table3"]
    points = grid_points(LINEAR, steps=[10, 1000], etas=[0.0, 1.0], tau="linear")
    assert [(point.eta, point.steps) for point in table.wanted(points)] == [(0.0, 10), (1.0, 10), (1.0, 1000)]
    own = grid_points(LINEAR, steps=[30, 1000], etas=[0.0, 0.7], tau="linear")
    assert [(p.eta, p.steps) for p in table.wanted(own)] == [(0.0, 30), (0.7, 30), (0.7, 1000)]
    hat = grid_points(LINEAR, steps=[10, 1000], etas=[0.0, "sigma_hat"], tau="linear")
    assert [(p.variance, p.steps) for p in table.wanted(hat)] == [("eta", 10), ("sigma_hat", 10), ("sigma_hat", 1000)]
    alone = grid_points(LINEAR, steps=1000, etas=0.0, tau="linear")
    assert table.wanted(alone) == alone
    whole = grid_points(LINEAR, steps=[10, 1000], etas=[0.0, "sigma_hat"], tau="linear")
    assert TABLES["cifar10_table1"].wanted(whole) == whole


@pytest.mark.parametrize("name", SIZES)
def test_the_papers_own_settings_are_comparable(name):
    assert TABLES[name].differences(row(name)) == []


@pytest.mark.parametrize(
    ("table", "changes", "said"),
    [
        ("cifar10_table1", {"tau": "linear"}, "tau linear (the paper: quadratic)"),
        ("celeba_table1", {"tau": "quadratic"}, "tau quadratic (the paper: linear)"),
        ("cifar10_table1", {"num_samples": 49_984}, "samples 49,984 (the paper: 50,000)"),
        ("cifar10_table1", {"weights": "raw"}, "weights raw (the paper: ema)"),
        ("cifar10_table1", {"weights": "unstated"}, "weights unstated (the paper: ema)"),
        ("cifar10_table1", {"dataset": "digits"}, "data set digits (the paper: cifar10)"),
        ("cifar10_table1", {"features": "pixels"}, "features pixels (the paper: inception-v3-compat)"),
        ("cifar10_table1", {"clip_denoised": True}, "clip_denoised true (the paper: false)"),
        ("cifar10_table1", {"compute_precision": "bf16-mixed"}, "precision bf16-mixed (the paper: 32-true)"),
        ("cifar10_table1", {"schedule": "cosine()"}, f"schedule cosine() (the paper: {SCHEDULE})"),
        ("cifar10_table1", {"reference_split": "test"}, "reference test (the paper: train)"),
        (
            "cifar10_table1",
            {"reference_split": None, "reference_source": "stats.npz"},
            "reference stats.npz (the paper: train)",
        ),
        ("cifar10_table1", {"reference_split": None}, "reference unknown (the paper: train)"),
        ("cifar10_table2", {"num_images": 100}, "images 100 (the paper: 10,000)"),
        ("cifar10_table2", {"tau": "explicit"}, "tau explicit (the paper: linear or quadratic)"),
    ],
)
def test_what_differs_is_said(table, changes, said):
    assert TABLES[table].differences(row(table, **changes)) == [said]


def test_reconstruction_takes_any_tau_since_the_paper_states_none():
    assert TABLES["cifar10_table2"].differences(row("cifar10_table2", tau="quadratic")) == []


def test_differences_from_the_paper_are_saved_and_printed(tmp_path):
    table = TABLES["cifar10_table1"]
    rows = [
        row(frechet_distance=13.5),
        row(frechet_distance=6.0, steps=20, nfe=20),
        row(frechet_distance=400.0, eta=1.0, variance="sigma_hat"),
        row(frechet_distance=None, eta=0.2),
        row(frechet_distance=5.0, eta=0.2, steps=20, weights="raw"),
        row(frechet_distance=9.0, steps=15, nfe=15),
        {"steps": 5, "mse_per_dimension": 0.1},
    ]
    records = compare(table, rows)
    assert len(records) == 6
    assert [record["difference"] for record in records[:3]] == pytest.approx([0.14, -0.84, 32.57])
    assert [record["difference"] for record in records[3:]] == [None, pytest.approx(-2.11), None]
    assert [record["comparable"] for record in records] == [True, True, True, True, False, True]

    write_comparison(tmp_path, table, records)
    with open(tmp_path / "cifar10_table1.csv") as stream:
        saved = list(csv.DictReader(stream))
    assert saved[0]["weights"] == "ema" and saved[0]["num_samples"] == "50000" and saved[0]["schedule"] == SCHEDULE
    assert saved[0]["paper"] == "13.36" and float(saved[0]["difference"]) == pytest.approx(0.14)
    assert saved[0]["comparable"] == "true" and saved[3]["measured"] == saved[3]["difference"] == ""
    assert saved[4]["not_comparable_because"] == "weights raw (the paper: ema)"
    assert json.loads((tmp_path / "cifar10_table1.json").read_text())["extra"]["title"] == table.title

    stream = io.StringIO()
    render_comparison(table, records, Terminal(stream))
    text = stream.getvalue()
    assert text.isascii()
    lines = {line.strip().split("  ")[0]: line.split() for line in text.splitlines() if line.strip()}
    assert lines["eta = 0"][3:] == ["13.50", "13.36", "+0.140", "9.000", "-", "-", "6.000", "6.84", "-0.840"]
    assert lines["eta = 0.2"][3:] == ["-", "14.04", "-", "-", "-", "-", "5.000", "7.11", "-2.11"]
    assert lines["sigma_hat"][1:] == ["400.0", "367.43", "+32.6", "-", "-", "-", "-", "-", "-"]
    assert "Not comparable as it stands: weights raw (the paper: ema)" in text


def test_a_comparable_table_carries_no_warning():
    stream = io.StringIO()
    table = TABLES["celeba_table1"]
    render_comparison(table, compare(table, [row("celeba_table1", frechet_distance=17.0)]), Terminal(stream))
    assert "comparable" not in stream.getvalue() and "17.33" in stream.getvalue()


def test_a_distance_stands_with_its_standard_deviation():
    table, stream = TABLES["celeba_table1"], io.StringIO()
    (record,) = compare(table, [row("celeba_table1", frechet_distance=17.0, frechet_distance_sd=0.26)])
    assert record["measured_sd"] == 0.26
    render_comparison(table, [record], Terminal(stream))
    assert "17.00 +- 0.26" in stream.getvalue()


def test_two_spacings_are_two_tables():
    table = TABLES["cifar10_table1"]
    records = compare(table, [row(), row(tau="linear", frechet_distance=20.0)])
    stream = io.StringIO()
    render_comparison(table, records, Terminal(stream))
    assert stream.getvalue().count("13.36") == 2 and "tau linear (the paper: quadratic)" in stream.getvalue()
