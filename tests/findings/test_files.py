"""What is written is read again: results.csv, results.json and what is in them."""

from __future__ import annotations

import csv
import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ddim.errors import UserError
from ddim.findings.files import read_results, write_results
from ddim.findings.rows import COLUMNS

CONTRACT = ["dataset", "checkpoint", "weights", "sampler", "eta", "variance", "tau", "steps", "nfe", "num_samples"]
CONTRACT += ["seed", "features", "frechet_distance", "seconds", "images_per_second"]


def test_json_gives_everything_back(some_rows, some_floor, tmp_path: Path) -> None:
    extra = {"seconds": float("nan"), "path": Path("a/b"), "counts": torch.tensor([1, 2]), "σ̂": (np.float32(0.5), None)}
    write_results(tmp_path, some_rows, some_floor, extra)
    rows, floor, read = read_results(tmp_path)
    assert rows == some_rows
    assert floor == some_floor
    assert read == {"seconds": "nan", "path": "a/b", "counts": [1, 2], "σ̂": [0.5, None]}
    json.loads((tmp_path / "results.json").read_text("utf-8"), parse_constant=lambda name: pytest.fail(name))


def test_csv_alone_gives_the_rows_back(some_rows, some_floor, tmp_path: Path) -> None:
    write_results(tmp_path, some_rows, some_floor)
    (tmp_path / "results.json").unlink()
    assert read_results(tmp_path) == (some_rows, None, {})


def test_nan_survives_both_files(result, tmp_path: Path) -> None:
    write_results(tmp_path, [result(frechet_distance=float("nan"))])
    assert str(read_results(tmp_path).rows[0].frechet_distance) == "nan"
    (tmp_path / "results.json").unlink()
    assert str(read_results(tmp_path).rows[0].frechet_distance) == "nan"


# A lone surrogate has no UTF-8 form, and a carriage return in a name is not worth a file format.
names = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\r\n\x00"), min_size=1)
numbers = st.none() | st.floats(allow_nan=False)


@settings(deadline=None, max_examples=40)
@given(
    dataset=names, device=st.none() | names, distance=numbers, seed=st.integers(0, 2**64), taus=st.lists(st.integers())
)
def test_any_value_survives_both_files(
    result, tmp_path_factory: pytest.TempPathFactory, dataset, device, distance, seed, taus
) -> None:
    where = tmp_path_factory.mktemp("results")
    row = result(dataset=dataset, device=device, frechet_distance=distance, seed=seed, timesteps=taus)
    write_results(where, [row])
    assert read_results(where).rows == [row]
    if taus:
        (where / "results.json").unlink()
        assert read_results(where).rows == [row]


def test_csv_starts_with_the_contract_columns_and_is_plain(some_rows, tmp_path: Path) -> None:
    write_results(tmp_path, some_rows)
    with open(tmp_path / "results.csv", encoding="utf-8", newline="") as stream:
        table = list(csv.reader(stream))
    assert table[0][: len(CONTRACT)] == CONTRACT
    assert tuple(table[0]) == COLUMNS
    assert {"precision", "recall", "compute_precision", "timesteps", "reference"} <= set(table[0])
    first = dict(zip(table[0], table[1], strict=True))
    assert first["frechet_distance"] == "4.162345"
    assert first["clip_denoised"] == "false"
    assert first["timesteps"] == "0 100 200"
    assert dict(zip(table[0], table[2], strict=True))["frechet_distance"] == ""


def test_a_csv_with_the_contract_columns_only_is_read(tmp_path: Path) -> None:
    text = "digits,a.ckpt,ema,ddim,0.2,eta,linear,10,10,1000,0,pixels,,1.5,666.7,new"
    (tmp_path / "results.csv").write_text(
        "\ufeff" + ",".join([*CONTRACT, "column_of_tomorrow"]) + "\r\n" + text + "\r\n"
    )
    (row,) = read_results(tmp_path).rows
    assert (row.eta, row.steps, row.frechet_distance, row.clip_denoised, row.timesteps) == (0.2, 10, None, None, None)


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("results.csv", "dataset,eta\ndigits,0\n", "column checkpoint, weights"),
        ("results.csv", ",".join(CONTRACT) + "\nd,c,ema,ddim,zero,eta,linear,1,1,1,0,f,,1,1\n", "eta must be float"),
        ("results.csv", ",".join(CONTRACT) + "\nd,c,ema,ddim,0\n", "variance must be str"),
        ("results.json", "{", "is not a result file"),
        ("results.json", "[]", "is not a result file"),
        ("results.json", '{"rows": [3]}', "is not a result file"),
        ("results.json", "\x00\xff", "is not a result file"),
    ],
)
def test_a_file_that_is_no_result_is_named(tmp_path: Path, name: str, text: str, said: str) -> None:
    (tmp_path / name).write_text(text, encoding="latin-1")
    with pytest.raises(UserError, match=said) as error:
        read_results(tmp_path)
    assert name in str(error.value)
    assert "\n" not in str(error.value)


def test_a_directory_without_results_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="elsewhere"):
        read_results(tmp_path / "elsewhere")


def test_writing_makes_the_directory_and_leaves_only_the_two_files(some_rows, some_floor, tmp_path: Path) -> None:
    for count in (1, 2, 3):
        write_results(tmp_path / "a" / "b", some_rows[:count], some_floor)
        assert read_results(tmp_path / "a" / "b").rows == some_rows[:count]
    assert sorted(os.listdir(tmp_path / "a" / "b")) == ["results.csv", "results.json"]


@pytest.mark.parametrize("function", ["replace", "fsync"])
def test_an_interrupted_write_leaves_the_old_files(
    some_rows, some_floor, tmp_path: Path, monkeypatch, function: str
) -> None:
    write_results(tmp_path, some_rows[:1], some_floor)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def interrupted(*_arguments: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(os, function, interrupted)
        write_results(tmp_path, some_rows, some_floor)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_something_that_cannot_be_written_leaves_the_old_files(some_rows, tmp_path: Path) -> None:
    write_results(tmp_path, some_rows[:1])
    with pytest.raises(TypeError):
        write_results(tmp_path, some_rows, extra={"model": object()})
    assert read_results(tmp_path).rows == some_rows[:1]
    assert len(os.listdir(tmp_path)) == 2


class TestLaterColumns:
    def rows(self, result) -> list:
        return [
            result(
                nfe_limit=10,
                seeds=(0, 1, 2),
                frechet_distance_sd=0.125,
                frechet_distance_unbiased=4.0,
                difference=0.0,
                difference_sd=0.0,
                as_good=True,
                kid_mean_sd=0.001,
                precision_sd=0.01,
                recall_sd=0.02,
                inception_score_mean_sd=0.5,
            ),
            result(eta=1.0, difference=1.5, difference_sd=0.25, as_good=False),
            result(eta=0.5),
        ]

    def test_they_survive_both_files(self, result, tmp_path: Path) -> None:
        rows = self.rows(result)
        write_results(tmp_path, rows)
        assert read_results(tmp_path).rows == rows
        (tmp_path / "results.json").unlink()
        assert read_results(tmp_path).rows == rows

    def test_what_deviations_are_made_from_survives_in_json_alone(self, result, tmp_path: Path) -> None:
        rows = [result(leave_one_out=((4.0, 3.5, float("inf")), (5.0, 4.5, 5.5)), options=(("order", 2),))]
        write_results(tmp_path, rows)
        assert read_results(tmp_path).rows == rows
        assert "leave_one_out" not in (tmp_path / "results.csv").read_text("utf-8")
        (tmp_path / "results.json").unlink()
        assert read_results(tmp_path).rows[0].leave_one_out is None

    def test_the_csv_is_plain(self, result, tmp_path: Path) -> None:
        write_results(tmp_path, self.rows(result))
        with open(tmp_path / "results.csv", encoding="utf-8", newline="") as stream:
            first, second, third = csv.DictReader(stream)
        assert (first["seeds"], first["as_good"], first["nfe_limit"]) == ("0 1 2", "true", "10")
        assert (second["as_good"], second["difference"], second["seeds"]) == ("false", "1.5", "")
        assert {third[name] for name in ("seeds", "as_good", "difference", "frechet_distance_sd")} == {""}
