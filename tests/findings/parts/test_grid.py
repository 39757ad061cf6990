"""The words of the grid: its table on a terminal, in a file and where nothing but ASCII can be shown."""

from __future__ import annotations

import dataclasses
import io

import pytest

from ddim.display.terminal import Terminal
from ddim.findings.labels import significant
from ddim.findings.parts.grid import PART, caption, pictures, render_table, summary
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


NOTHING_ELSE = {"kid_mean": None, "kid_std": None, "precision": None, "recall": None, "timesteps": None}
WHERE = "dataset digits | checkpoint outputs/run/checkpoints/last.ckpt | weights ema"
HOW = "tau linear | clip_denoised false | compute_precision float32 | features digits-cnn | resize none | N 1000"
OF = "reference 3f2a9c01 (digits train, 1437 images) | device CPU"

WITH_BARS = f"""\
FD (digits-cnn) by eta (down) and S (across)
eta             S=5              S=10
  0   *1.62 +- 0.13  +*0.618 +- 0.046
  1  +*1.71 +- 0.14      1.90 +- 0.15
* lowest of its column or not told apart from it, + lowest of its row

 S  nfe  eta     tau              FD  FD unbiased  seconds  images/s
 5    5    0  linear    1.62 +- 0.13        1.500     2.50       100
10   10    0  linear  0.618 +- 0.046       0.5000     5.00       100
 5    5    1  linear    1.71 +- 0.14        1.500     2.50       100
10   10    1  linear    1.90 +- 0.15        1.500     5.00       100

{WHERE} | sampler ddim | {HOW} | seed 0 | {OF}
"""

OF_SAMPLERS = f"""\
FD (digits-cnn) by sampler (down) and network calls (across)
    sampler            nfe<=5           nfe<=10
       ddim      1.62 +- 0.13  +*0.618 +- 0.046
       deis  +*0.562 +- 0.040   *0.610 +- 0.050
deis order2   *0.580 +- 0.060                 -
       heun      8.10 +- 0.40                 -
* lowest of its column or not told apart from it, + lowest of its row

 S  nfe      sampler     tau              FD  seconds  images/s
 5    5         ddim  linear    1.62 +- 0.13     2.50       100
10   10         ddim  linear  0.618 +- 0.046     5.00       100
 5    5         deis  linear  0.562 +- 0.040     2.50       100
10   10         deis  linear  0.610 +- 0.050     5.00       100
 5    5  deis order2  linear  0.580 +- 0.060     2.50       100
 3    5         heun  linear    8.10 +- 0.40     2.50       100

{WHERE} | sampler ddim, deis, deis order=2, heun | {HOW} | seed mean over 0 1 2 | {OF}
"""


def of_samplers(result) -> list[GridResult]:
    values = [
        ("ddim", 5, 5, 5, 1.624, 0.131, False, None),
        ("ddim", 10, 10, 10, 0.618, 0.046, True, None),
        ("deis", 5, 5, 5, 0.562, 0.040, True, None),
        ("deis", 10, 10, 10, 0.610, 0.050, True, None),
        ("deis", 5, 5, 5, 0.580, 0.060, True, (("order", 2),)),
        ("heun", 3, 5, 5, 8.1, 0.4, False, None),
    ]
    return [
        result(
            **{"sampler": sampler, "steps": steps, "nfe": nfe, "nfe_limit": limit, "frechet_distance": distance},
            **{"frechet_distance_sd": sd, "as_good": as_good, "options": options, "seeds": (0, 1, 2)},
            **{"seconds": nfe / 2, "images_per_second": 100.0, **NOTHING_ELSE},
        )
        for sampler, steps, nfe, limit, distance, sd, as_good, options in values
    ]


class TestBarsAndSamplers:
    def test_a_table_with_bars_to_the_letter(self, result) -> None:
        values = [(0.0, 5, 1.624, 0.131, True), (0.0, 10, 0.618, 0.0456, True)]
        values += [(1.0, 5, 1.71, 0.14, True), (1.0, 10, 1.9, 0.15, False)]
        rows = [
            result(
                **{"eta": eta, "steps": steps, "nfe": steps, "frechet_distance": distance, "frechet_distance_sd": sd},
                **{"frechet_distance_unbiased": 0.5 if distance < 1 else 1.5, "as_good": as_good},
                **{"seconds": steps / 2, "images_per_second": 100.0, **NOTHING_ELSE},
            )
            for eta, steps, distance, sd, as_good in values
        ]
        assert rendered(rows).rstrip("\n") + "\n" == WITH_BARS

    def test_a_table_of_several_samplers_to_the_letter(self, result) -> None:
        assert rendered(of_samplers(result)).rstrip("\n") + "\n" == OF_SAMPLERS

    def test_one_sampler_with_limits_has_eta_down_and_calls_across(self, result) -> None:
        text = rendered([result(sampler="heun", steps=n, nfe=2 * n - 1, nfe_limit=2 * n) for n in (3, 5)])
        assert "by eta (down) and network calls (across)\neta  nfe<=6  nfe<=10\n" in text

    def test_a_table_without_bars_says_nothing_of_telling_apart(self, result) -> None:
        text = rendered([result(), result(eta=1.0, steps=20)])
        assert "+-" not in text and "told apart" not in text and "unbiased" not in text

    def test_further_metrics_have_their_bars_too(self, result) -> None:
        text = rendered([result(kid_mean=0.0123, kid_mean_sd=0.0011, precision_sd=0.02)])
        assert "0.0123 +- 0.0011" in text and "0.912 +- 0.020" in text and "0.876" in text

    def test_spacings_have_tables_of_their_own(self, result) -> None:
        rows = [*of_samplers(result), *(dataclasses.replace(row, tau="karras") for row in of_samplers(result))]
        text = rendered(rows)
        assert text.count("by sampler (down)") == 2 and "tau linear\nFD" in text and "tau karras\nFD" in text

    def test_captions_name_the_sampler_and_the_bar(self, result) -> None:
        row = of_samplers(result)[4]
        assert caption(row) == "deis, order2, eta 0, S 5: FD (digits-cnn) 0.580 ± 0.060, 1000 images in 2.5 s"
        assert caption(result()) == "eta 0, S 10: FD (digits-cnn) 4.162, 1000 images in 12.3 s"


class TestLoggers:
    def test_every_point_has_keys_of_its_own(self, result) -> None:
        rows = of_samplers(result)
        found = summary(rows, None)
        keys = [key for key in found if key.startswith("frechet_distance/")]
        assert keys == [
            *(f"frechet_distance/eta0.000/linear/steps{steps}" for steps in ("0005", "0010")),
            *(f"frechet_distance/deis/eta0.000/linear/steps{steps}" for steps in ("0005", "0010")),
            "frechet_distance/deis/order2/eta0.000/linear/steps0005",
            "frechet_distance/heun/eta0.000/linear/steps0003",
        ]
        assert [found[key] for key in keys] == [row.frechet_distance for row in rows]
        best = {name: found[f"best/{name}"] for name in ("frechet_distance", "sampler", "eta", "steps")}
        assert best == {"frechet_distance": 0.562, "sampler": "deis", "eta": "0", "steps": 5}

    def test_curves_of_samplers_are_apart(self, result) -> None:
        rows = of_samplers(result)
        curves = [set(PART.curves(row.as_record())) for row in rows]
        assert curves[0] == curves[1] and curves[2] == curves[3]
        assert not curves[0] & curves[2] and not curves[2] & curves[4] and not curves[4] & curves[5]

    def test_the_gallery_and_the_chart_say_which_sampler(self, result) -> None:
        rows = [row.as_record() for row in of_samplers(result)]
        columns, cells = PART.gallery(rows)
        assert columns[0] == "sampler" and [line[0] for line in cells][2:5] == ["deis", "deis", "deis order2"]
        distance, time = PART.charts(rows)
        assert distance.columns[0] == time.columns[0] == "nfe" and "against network calls" in distance.title
        assert distance.rows[-1] == (5, 8.1, "heun")
        columns, cells = PART.gallery([result().as_record()])
        assert columns[0] == "eta" and PART.charts([result().as_record()])[0].columns[0] == "steps"

    def test_the_table_has_the_columns_of_the_file(self, result) -> None:
        columns, cells = PART.table([row.as_record() for row in of_samplers(result)])
        assert columns[-5:] == ["nfe_limit", "seeds", "frechet_distance_sd", "as_good", "order"]
        assert cells[4][-5:] == [5, "0 1 2", 0.06, True, 2] and cells[5][-1] is None


def test_sheets_stand_at_the_limits_that_were_asked_for(result) -> None:
    rows = of_samplers(result)
    images = {row: [0, 1, 2] for row in rows}
    what, sheet, _ = next(pictures([row.as_record() for row in rows], images, None))
    assert (what, sheet.column) == ("samples", "nfe")
    assert set(sheet.images) == {
        *(("ddim", 5), ("ddim", 10), ("deis", 5), ("deis", 10)),
        *(("deis order2", 5), ("heun", 5)),
    }
