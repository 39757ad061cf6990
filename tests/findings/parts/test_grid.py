"""The words of the grid: its table on a terminal, in a file and where nothing but ASCII can be shown."""

from __future__ import annotations

import dataclasses
import io

import pytest

from ddim.display.terminal import Terminal
from ddim.findings.labels import significant
from ddim.findings.parts.grid import render_table
from ddim.findings.rows import Floor, GridResult


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


def test_the_plain_table_holds_every_value_in_ascii(result, some_floor) -> None:
    rows = [
        result(
            eta=eta, variance=variance, steps=steps, nfe=steps - 1, frechet_distance=base / steps, seconds=steps * 1.5
        )
        for eta, variance, base in [(0, "eta", 101.7), (1, "sigma_hat", 303.9), (1, "sigma_hat_official", 404.4)]
        for steps in (10, 1000)
    ]
    text = rendered(rows, some_floor)
    assert text.isascii()
    assert text.isprintable() or set(text) - set(map(chr, range(32, 127))) == {"\n"}
    for row in rows:
        assert text.count(significant(row.frechet_distance)) == 2
    words = ["1000", "999", "9", "0.0123", "0.912", "0.876", "15.0", "1500", "81.0", "linear", "sigma_hat clipped"]
    words += ["360 real held-out images", "1.235", "0.000123", "FD (digits-cnn)", "N 1000", "seed 0", "3f2a9c01", "ema"]
    for word in [*words, "outputs/run/checkpoints/last.ckpt", "resize none", "1437 images", "tau linear"]:
        assert word in text, word


def test_the_plain_table_never_wraps_or_cuts(result, monkeypatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    row = result(checkpoint="x" * 300, frechet_distance=123456.7, kid_mean=1e-7, inception_score_mean=9.4)
    lines = rendered([row]).splitlines()
    assert any("x" * 300 in line for line in lines)
    (values,) = [line.split() for line in lines if line.split()[:2] == ["10", "10"]]
    assert values == ["10", "10", "0", "linear", "123457", "1.00e-07", "0.912", "0.876", "9.400", "12.3", "81.0"]


@pytest.mark.parametrize("force", [{}, {"FORCE_COLOR": "1"}])
def test_no_escape_codes_without_a_terminal(some_rows, some_floor, monkeypatch, force: dict[str, str]) -> None:
    for name, value in force.items():
        monkeypatch.setenv(name, value)
    assert "\x1b" not in rendered(some_rows, some_floor)


def test_a_terminal_gets_colour_and_greek_and_whole_numbers(result, some_floor, monkeypatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    terminal = TerminalFile()
    render_table([result(), result(eta=1.0, frechet_distance=1234.5)], some_floor, Terminal(terminal))
    text = terminal.text()
    assert "\x1b[" in text and "η" in text and "…" not in text
    assert text.count("4.162") == 2 and "1234" in text and "images/s" in text


def test_a_terminal_that_cannot_show_greek_gets_plain_text(some_rows, some_floor) -> None:
    terminal = TerminalFile("latin-1")
    render_table(some_rows, some_floor, Terminal(terminal))
    assert terminal.text().isascii()


def test_the_best_of_each_column_and_of_each_row_is_marked(result) -> None:
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


def test_a_single_row_has_no_best(result) -> None:
    assert "*" not in rendered([result(), result(steps=20)])
    assert "+" not in rendered([result(), result(eta=1.0)])


def test_tables_of_other_provenance_are_apart_and_say_what_differs(result, some_floor) -> None:
    rows = [result(), result(eta=1.0, frechet_distance=8.0), result(weights="raw", frechet_distance=1.0)]
    text = rendered(rows, some_floor)
    assert text.count("FD (digits-cnn) by eta") == 2
    assert pivot(text)["0", "S=10"] == "*4.162"
    assert "weights ema\nFD" in text and "weights raw\nFD" in text


def test_the_floor_stands_only_beside_rows_it_can_be_compared_with(result, some_floor) -> None:
    rows = [result(), result(features="pixels")]
    assert "floor" not in rendered(rows, some_floor)
    assert rendered(rows, dataclasses.replace(some_floor, features="pixels", reference="3f2a9c01")).count("floor") == 1
    assert "floor" in rendered(rows[:1], some_floor)
    assert "floor" not in rendered(rows[:1], dataclasses.replace(some_floor, features="pixels"))


def test_the_floor_has_a_users_own_metrics(result, some_floor) -> None:
    floor = dataclasses.replace(
        some_floor, num_images=10_000, metrics=some_floor.metrics | {"coverage": 0.875, "of_old": 0.5}
    )
    (line,) = [s for s in rendered([result(other_metrics=(("coverage", 0.5),))], floor).splitlines() if "floor" in s]
    assert "10,000" in line and "coverage 0.8750" in line and "of_old" not in line


def test_columns_without_a_value_are_left_out(result) -> None:
    text = rendered([result(kid_mean=None, precision=None, recall=None)])
    assert not any(word in text.split() for word in ("KID", "recall", "IS"))


def test_markup_in_names_is_text(result) -> None:
    assert "[red]digits[/red]" in rendered([result(dataset="[red]digits[/red]")])
