from __future__ import annotations

import csv
import dataclasses
import io
import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from ddim.display.tables import render_table
from hypothesis import given, settings
from hypothesis import strategies as st

from ddim.display.terminal import Terminal
from ddim.errors import UserError
from ddim.findings.comparable import group_rows
from ddim.findings.files import read_results, write_results
from ddim.findings.labels import distance_name, eta_label, eta_order, significant
from ddim.findings.rows import COLUMNS, Floor, GridResult

CONTRACT = ["dataset", "checkpoint", "weights", "sampler", "eta", "variance", "tau", "steps", "nfe", "num_samples"]
CONTRACT += ["seed", "features", "frechet_distance", "seconds", "images_per_second"]
FLOOR = Floor(360, {"frechet_distance": 1.2345678, "kid_mean": 0.0001234, "precision": 0.98, "recall": 0.97})


def result(**changes: object) -> GridResult:
    values: dict[str, object] = {
        "dataset": "digits",
        "checkpoint": "outputs/run/checkpoints/last.ckpt",
        "weights": "ema",
        "sampler": "ddim",
        "eta": 0.0,
        "variance": "eta",
        "tau": "linear",
        "steps": 10,
        "nfe": 10,
        "num_samples": 1000,
        "seed": 0,
        "features": "digits-cnn",
        "frechet_distance": 4.162345,
        "seconds": 12.3456,
        "images_per_second": 81.002,
        "kid_mean": 0.0123456,
        "kid_std": 0.001,
        "precision": 0.9123,
        "recall": 0.8765,
        "clip_denoised": False,
        "compute_precision": "float32",
        "device": "CPU",
        "resize": "none",
        "reference": "3f2a9c01",
        "reference_source": "digits train",
        "reference_images": 1437,
        "timesteps": (0, 100, 200),
    }
    return GridResult(**{**values, **changes})  # type: ignore[arg-type]


ROWS = [
    result(),
    result(eta=0.2, frechet_distance=None, kid_mean=None, clip_denoised=True, timesteps=None, reference=None),
    result(eta=1.0, variance="sigma_hat", dataset='σ̂ "naïve", 数字', checkpoint="dir with space/a,b.ckpt"),
    result(frechet_distance=float("inf"), inception_score_mean=9.46, steps=1000, nfe=688, tau="quadratic"),
]


class TerminalFile(io.TextIOWrapper):
    """A text stream that says it is a terminal."""

    def __init__(self, encoding: str = "utf-8") -> None:
        super().__init__(io.BytesIO(), encoding=encoding)

    def isatty(self) -> bool:
        return True

    def text(self) -> str:
        self.flush()
        return self.buffer.getvalue().decode(self.encoding)  # type: ignore[attr-defined]


def rendered(rows: list[GridResult], floor: Floor | None = None) -> str:
    stream = io.StringIO()
    render_table(rows, floor, Terminal(stream))
    return stream.getvalue()


def pivot(text: str) -> dict[tuple[str, str], str]:
    """The cells of the first table of a plain rendering, by (row label, column heading)."""
    lines = text.splitlines()
    start = next(i for i, line in enumerate(lines) if line.split()[:1] == ["eta"])
    heading = lines[start].split()[1:]
    cells: dict[tuple[str, str], str] = {}
    for line in lines[start + 1 :]:
        words = line.split()
        if len(words) < len(heading) + 1 or words[0] == "*":
            break
        cells |= {
            (" ".join(words[: -len(heading)]), h): w for h, w in zip(heading, words[-len(heading) :], strict=True)
        }
    return cells


def test_json_gives_everything_back(tmp_path: Path) -> None:
    extra = {"seconds": float("nan"), "path": Path("a/b"), "counts": torch.tensor([1, 2]), "σ̂": (np.float32(0.5), None)}
    write_results(tmp_path, ROWS, FLOOR, extra)
    rows, floor, read = read_results(tmp_path)
    assert rows == ROWS
    assert floor == FLOOR
    assert read == {"seconds": "nan", "path": "a/b", "counts": [1, 2], "σ̂": [0.5, None]}
    json.loads((tmp_path / "results.json").read_text("utf-8"), parse_constant=lambda name: pytest.fail(name))


def test_csv_alone_gives_the_rows_back(tmp_path: Path) -> None:
    write_results(tmp_path, ROWS, FLOOR)
    (tmp_path / "results.json").unlink()
    assert read_results(tmp_path) == (ROWS, None, {})


def test_nan_survives_both_files(tmp_path: Path) -> None:
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
    tmp_path_factory: pytest.TempPathFactory, dataset, device, distance, seed, taus
) -> None:
    where = tmp_path_factory.mktemp("results")
    row = result(dataset=dataset, device=device, frechet_distance=distance, seed=seed, timesteps=taus)
    write_results(where, [row])
    assert read_results(where).rows == [row]
    if taus:
        (where / "results.json").unlink()
        assert read_results(where).rows == [row]


def test_csv_starts_with_the_contract_columns_and_is_plain(tmp_path: Path) -> None:
    write_results(tmp_path, ROWS)
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


def test_writing_makes_the_directory_and_leaves_only_the_two_files(tmp_path: Path) -> None:
    for count in (1, 2, 3):
        write_results(tmp_path / "a" / "b", ROWS[:count], FLOOR)
        assert read_results(tmp_path / "a" / "b").rows == ROWS[:count]
    assert sorted(os.listdir(tmp_path / "a" / "b")) == ["results.csv", "results.json"]


@pytest.mark.parametrize("function", ["replace", "fsync"])
def test_an_interrupted_write_leaves_the_old_files(tmp_path: Path, monkeypatch, function: str) -> None:
    write_results(tmp_path, ROWS[:1], FLOOR)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def interrupted(*_arguments: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(os, function, interrupted)
        write_results(tmp_path, ROWS, FLOOR)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_something_that_cannot_be_written_leaves_the_old_files(tmp_path: Path) -> None:
    write_results(tmp_path, ROWS[:1])
    with pytest.raises(TypeError):
        write_results(tmp_path, ROWS, extra={"model": object()})
    assert read_results(tmp_path).rows == ROWS[:1]
    assert len(os.listdir(tmp_path)) == 2


def test_tensors_and_numpy_scalars_become_plain_numbers() -> None:
    row = result(
        frechet_distance=torch.tensor(2.5), steps=np.int64(7), eta=np.float32(0.5), timesteps=torch.tensor([1, 2])
    )
    assert (row.frechet_distance, row.steps, row.eta, row.timesteps) == (2.5, 7, 0.5, (1, 2))
    assert [type(value) for value in (row.frechet_distance, row.steps, row.eta, row.timesteps)] == [
        float,
        int,
        float,
        tuple,
    ]
    assert GridResult(**row.as_record()) == row


@pytest.mark.parametrize(
    ("name", "value"),
    [("steps", 2.5), ("steps", None), ("seconds", "fast"), ("clip_denoised", "maybe"), ("timesteps", 3), ("seed", "")],
)
def test_a_value_of_another_type_is_refused_by_name(name: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"^{name} must be"):
        result(**{name: value})


@pytest.mark.parametrize(
    ("eta", "variance", "label"),
    [
        (0, "eta", "0"),
        (0.2, "eta", "0.2"),
        (1.0, "eta", "1"),
        (1, "sigma_hat", "σ̂"),
        (1, "sigma_hat_official", "σ̂ clipped"),
    ],
)
def test_eta_label(eta: float, variance: str, label: str) -> None:
    assert eta_label(result(eta=eta, variance=variance)) == label


def test_eta_labels_sort_by_value_with_sigma_hat_last() -> None:
    assert sorted(["σ̂ clipped", "1", "σ̂", "0.5", "0", "0.25"], key=eta_order) == [
        "0",
        "0.25",
        "0.5",
        "1",
        "σ̂",
        "σ̂ clipped",
    ]


@pytest.mark.parametrize(
    ("features", "name"),
    [("inception-v3-compat", "FID"), ("digits-cnn", "FD (digits-cnn)"), ("inception-v3", "FD (inception-v3)")],
)
def test_only_canonical_features_make_a_fid(features: str, name: str) -> None:
    assert distance_name(features) == name


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "-"),
        (4.162345, "4.162"),
        (13.356, "13.36"),
        (123456.7, "123457"),
        (0.0123456, "0.01235"),
        (0.0, "0.000"),
        (9.99996, "10.00"),
        (-0.00123456, "-0.001235"),
        (0.00000123456, "1.235e-06"),
        (float("nan"), "nan"),
    ],
)
def test_significant_digits(value: float | None, text: str) -> None:
    assert significant(value) == text


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("dataset", "cifar10"),
        ("checkpoint", "other.ckpt"),
        ("weights", "raw"),
        ("weights_hash", "83de4d7d29a1ab94"),
        ("sampler", "heun"),
        ("tau", "quadratic"),
        ("num_samples", 500),
        ("seed", 1),
        ("features", "pixels"),
        ("resize", "bilinear"),
        ("reference", "00ff"),
        ("compute_precision", "bf16-mixed"),
        ("preprocessing", "0123456789abcdef"),
        ("clip_denoised", True),
    ],
)
def test_rows_of_other_provenance_are_kept_apart(name: str, value: object) -> None:
    rows = [result(), result(**{name: value}), result(eta=1.0, steps=50)]
    groups = group_rows(rows)
    assert [members for _, members in groups] == [[rows[0], rows[2]], [rows[1]]]
    assert all(len(differs) == 1 for differs, _ in groups)
    assert groups[0][0] != groups[1][0]


def test_explicit_lists_of_timesteps_are_kept_apart() -> None:
    lists = [(0, 500), (0, 400), range(0, 1000, 2), range(1, 1001, 2)]
    assert len(group_rows([result(tau="explicit", timesteps=steps) for steps in lists])) == 4
    assert len(group_rows([result(tau="linear", timesteps=steps) for steps in lists])) == 1


def test_the_plain_table_holds_every_value_in_ascii() -> None:
    rows = [
        result(
            eta=eta, variance=variance, steps=steps, nfe=steps - 1, frechet_distance=base / steps, seconds=steps * 1.5
        )
        for eta, variance, base in [(0, "eta", 101.7), (1, "sigma_hat", 303.9), (1, "sigma_hat_official", 404.4)]
        for steps in (10, 1000)
    ]
    text = rendered(rows, FLOOR)
    assert text.isascii()
    assert text.isprintable() or set(text) - set(map(chr, range(32, 127))) == {"\n"}
    for row in rows:
        assert text.count(significant(row.frechet_distance)) == 2
    words = ["1000", "999", "9", "0.0123", "0.912", "0.876", "15.0", "1500", "81.0", "linear", "sigma_hat clipped"]
    words += ["360 real held-out images", "1.235", "0.000123", "FD (digits-cnn)", "N 1000", "seed 0", "3f2a9c01", "ema"]
    for word in [*words, "outputs/run/checkpoints/last.ckpt", "resize none", "1437 images", "tau linear"]:
        assert word in text, word


def test_the_plain_table_never_wraps_or_cuts(monkeypatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    row = result(checkpoint="x" * 300, frechet_distance=123456.7, kid_mean=1e-7, inception_score_mean=9.4)
    lines = rendered([row]).splitlines()
    assert any("x" * 300 in line for line in lines)
    (values,) = [line.split() for line in lines if line.split()[:2] == ["10", "10"]]
    assert values == ["10", "10", "0", "linear", "123457", "1.00e-07", "0.912", "0.876", "9.400", "12.3", "81.0"]


@pytest.mark.parametrize("force", [{}, {"FORCE_COLOR": "1"}])
def test_no_escape_codes_without_a_terminal(monkeypatch, force: dict[str, str]) -> None:
    for name, value in force.items():
        monkeypatch.setenv(name, value)
    assert "\x1b" not in rendered(ROWS, FLOOR)


def test_a_terminal_gets_colour_and_greek_and_whole_numbers(monkeypatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    terminal = TerminalFile()
    render_table([result(), result(eta=1.0, frechet_distance=1234.5)], FLOOR, Terminal(terminal))
    text = terminal.text()
    assert "\x1b[" in text and "η" in text and "…" not in text
    assert text.count("4.162") == 2 and "1234" in text and "images/s" in text


def test_a_terminal_that_cannot_show_greek_gets_plain_text() -> None:
    terminal = TerminalFile("latin-1")
    render_table(ROWS, FLOOR, Terminal(terminal))
    assert terminal.text().isascii()


def test_the_best_of_each_column_and_of_each_row_is_marked() -> None:
    distances = {("0", 10): 5.0, ("0.2", 10): 4.0, ("1", 10): 9.0, ("0", 50): 2.0, ("0.2", 50): 3.0, ("1", 50): None}
    distances |= {("0", 100): float("nan"), ("0.2", 100): 1.0, ("1", 100): 0.5}
    rows = [result(eta=float(e), steps=s, nfe=s, frechet_distance=d) for (e, s), d in distances.items()]
    cells = pivot(rendered(rows))
    assert {key for key, text in cells.items() if "*" in text} == {("0.2", "S=10"), ("0", "S=50"), ("1", "S=100")}
    assert {key for key, text in cells.items() if "+" in text} == {("0", "S=50"), ("0.2", "S=100"), ("1", "S=100")}
    assert cells["1", "S=100"] == "+*0.5000"
    assert cells["0.2", "S=10"] == "*4.000"
    assert cells["1", "S=50"] == "-"
    assert cells["0", "S=100"] == "nan"


def test_a_single_row_has_no_best() -> None:
    assert "*" not in rendered([result(), result(steps=20)])
    assert "+" not in rendered([result(), result(eta=1.0)])


def test_tables_of_other_provenance_are_apart_and_say_what_differs() -> None:
    rows = [result(), result(eta=1.0, frechet_distance=8.0), result(weights="raw", frechet_distance=1.0)]
    text = rendered(rows, FLOOR)
    assert text.count("FD (digits-cnn) by eta") == 2
    assert pivot(text)["0", "S=10"] == "*4.162"
    assert "weights ema\nFD" in text and "weights raw\nFD" in text


def test_the_floor_stands_only_beside_rows_it_can_be_compared_with() -> None:
    rows = [result(), result(features="pixels")]
    assert "floor" not in rendered(rows, FLOOR)
    assert rendered(rows, dataclasses.replace(FLOOR, features="pixels", reference="3f2a9c01")).count("floor") == 1
    assert "floor" in rendered(rows[:1], FLOOR)
    assert "floor" not in rendered(rows[:1], dataclasses.replace(FLOOR, features="pixels"))


def test_the_floor_has_a_users_own_metrics() -> None:
    floor = dataclasses.replace(FLOOR, num_images=10_000, metrics=FLOOR.metrics | {"coverage": 0.875, "of_old": 0.5})
    (line,) = [s for s in rendered([result(other_metrics=(("coverage", 0.5),))], floor).splitlines() if "floor" in s]
    assert "10,000" in line and "coverage 0.8750" in line and "of_old" not in line


def test_columns_without_a_value_are_left_out() -> None:
    text = rendered([result(kid_mean=None, precision=None, recall=None)])
    assert not any(word in text.split() for word in ("KID", "recall", "IS"))


def test_markup_in_names_is_text() -> None:
    assert "[red]digits[/red]" in rendered([result(dataset="[red]digits[/red]")])
