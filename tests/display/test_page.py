"""What a report says: the right numbers marked and drawn, nothing from elsewhere, nothing a name could smuggle in."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import re
import shlex
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser
from PIL import Image

from ddim.display.page.charts import distance_charts, time_charts
from ddim.display.page.entries import entries_of
from ddim.display.page.pictures import STEPS, inlined
from ddim.display.page.render import render
from ddim.display.page.tables import Table, grid_tables, not_comparable, paper_table
from ddim.display.page.write import write_report
from ddim.errors import UserError
from ddim.findings.files import write_results, write_rows
from ddim.findings.reading import PaperComparison, read_evaluation
from ddim.findings.rows import Floor, GridResult
from ddim.report import main

EVIL = "</script><script>alert(1)</script><img src=x onerror=alert(2)>\"'&"


def row(eta: float = 0.0, steps: int = 10, distance: float | None = 1.0, **more) -> GridResult:
    values = {
        "dataset": "digits",
        "checkpoint": "run/last.ckpt",
        "weights": "ema",
        "sampler": "ddim",
        "variance": "eta",
        "tau": "linear",
        "nfe": steps,
        "num_samples": 1000,
        "seed": 0,
        "features": "digits-cnn",
        "seconds": 2.0,
        "images_per_second": 500.0,
        "reference": "abc",
    }
    return GridResult(**{**values, "eta": eta, "steps": steps, "frechet_distance": distance, **more})


def evaluation(directory: Path, rows, floor: Floor | None = None, extra=None, pictures: bool = False) -> Path:
    write_results(directory, rows, floor, extra)
    for number, one in enumerate(rows if pictures else []):
        path = directory / "samples" / f"eta{one.eta:.3f}-{one.tau}-steps{one.steps:04d}.png"
        path.parent.mkdir(exist_ok=True)
        Image.new("L", (4, 4), number).save(path)
    return directory


def texts(table: Table) -> list[list[str]]:
    return [[cell.text for cell in line] for line in table.rows]


def best(table: Table) -> list[tuple[str, str]]:
    return [
        (line[0].text, header)
        for line in table.rows
        for cell, header in zip(line, table.headers, strict=True)
        if cell.best
    ]


class Page(HTMLParser):
    """Tags with their attributes, the text of scripts and styles, and all text that is shown."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.inside: dict[str, list[str]] = {"script": [], "style": []}
        self.shown: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        last = self.tags[-1][0] if self.tags else ""
        (self.inside[last] if last in self.inside and data.strip() else self.shown).append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def page_of(*directories: Path) -> Page:
    return Page(render([read_evaluation(directory) for directory in directories]))


class TestTables:
    def entries(self, tmp_path, *groups):
        directories = [evaluation(tmp_path / str(number), rows) for number, rows in enumerate(groups)]
        return entries_of([read_evaluation(directory) for directory in directories])

    def test_the_lowest_distance_of_each_s_is_marked(self, tmp_path):
        rows = [row(0.0, 10, 2.0), row(0.0, 20, 1.5), row(1.0, 10, 3.0), row(1.0, 20, 1.2)]
        pivot, long = grid_tables(self.entries(tmp_path, rows))
        assert pivot.headers == ["", "S = 10", "S = 20"]
        assert texts(pivot) == [["η = 0", "2.000", "1.500"], ["η = 1", "3.000", "1.200"]]
        assert best(pivot) == [("η = 0", "S = 10"), ("η = 1", "S = 20")]
        assert [line for line in best(long) if line[1] == "FD"] == [("η = 1", "FD")]

    def test_precision_is_best_where_it_is_highest_and_what_nobody_measured_is_no_column(self, tmp_path):
        rows = [row(steps=10, precision=0.5, kid_mean=0.1), row(steps=20, precision=0.9, kid_mean=0.2)]
        _, long = grid_tables(self.entries(tmp_path, rows))
        marked = {
            (line[1].text, header)
            for line in long.rows
            for cell, header in zip(line, long.headers, strict=True)
            if cell.best
        }
        assert {("20", "precision"), ("10", "KID")} <= marked
        assert "recall" not in long.headers

    def test_a_metric_of_ones_own_is_a_column_in_which_nothing_is_best(self, tmp_path):
        rows = [row(steps=10, other_metrics=(("sharpness", 0.25),)), row(steps=20, other_metrics=(("sharpness", 0.5),))]
        _, long = grid_tables(self.entries(tmp_path, rows))
        column = list(long.headers).index("sharpness")
        assert [line[column].text for line in long.rows] == ["0.2500", "0.5000"]
        assert "sharpness" not in {header for _, header in best(long)}

    def test_one_point_has_nothing_to_be_best_of(self, tmp_path):
        assert [best(table) for table in grid_tables(self.entries(tmp_path, [row()]))] == [[], []]

    def test_evaluations_measured_alike_share_a_table_and_others_do_not(self, tmp_path):
        first, second = [row(distance=2.0)], [row(distance=1.0, checkpoint="other.ckpt", weights_hash="x")]
        small = [row(distance=0.1, num_samples=50)]
        pivots = grid_tables(self.entries(tmp_path, first, second, small))[::2]
        assert [texts(table) for table in pivots] == [
            [["A, η = 0", "2.000"], ["B, η = 0", "1.000"]],
            [["C, η = 0", "0.1000"]],
        ]
        assert best(pivots[0]) == [("B, η = 0", "S = 10")]
        assert "N 1000" in pivots[0].caption and "N 50" in pivots[1].caption

    def test_all_that_cannot_be_told_apart_from_the_lowest_are_marked_with_their_bars(self, tmp_path):
        values = [("ddim", 5, 5, 1.624, 0.13, False), ("ddim", 10, 10, 0.618, 0.046, True)]
        values += [("deis", 5, 5, 0.562, 0.04, True), ("deis", 10, 10, 0.61, 0.05, True)]
        values += [("heun", 3, 5, 0.58, None, True), ("heun", 5, 9, 0.9, 0.1, False)]
        rows = [
            row(
                *(0.0, steps, distance),
                **{"sampler": name, "nfe": nfe, "nfe_limit": 5 if nfe == 5 else 10},
                **{"frechet_distance_sd": sd, "as_good": as_good, "frechet_distance_unbiased": 0.0},
            )
            for name, steps, nfe, distance, sd, as_good in values
        ]
        pivot, long = grid_tables(self.entries(tmp_path, rows))
        assert pivot.caption.endswith("by sampler (down) and network calls (across)")
        assert pivot.headers == ["", "nfe ≤ 5", "nfe ≤ 10"]
        assert texts(pivot) == [
            ["ddim", "1.62 ± 0.13", "0.618 ± 0.046"],
            ["deis", "0.562 ± 0.040", "0.610 ± 0.050"],
            ["heun", "0.5800", "0.90 ± 0.10"],
        ]
        assert best(pivot) == [
            ("ddim", "nfe ≤ 10"),
            ("deis", "nfe ≤ 5"),
            ("deis", "nfe ≤ 10"),
            ("heun", "nfe ≤ 5"),
        ]
        assert pivot.note == "Marked: the lowest of its column, or not told apart from it."
        assert long.headers[:5] == ["", "S", "nfe", "FD", "FD unbiased"]
        assert [cell.text for cell in long.rows[-1][:5]] == ["heun", "5", "9", "0.90 ± 0.10", "0.000"]

    def test_the_best_of_another_setting_or_evaluation_is_not_as_good_as_the_best_of_all(self, tmp_path):
        """`as_good` is about the rows of one evaluation that share everything but the sampler."""

        def pair(low, high, **more):
            return [
                row(eta, 10, distance, frechet_distance_sd=0.1, as_good=True, **more)
                for eta, distance in ((0.0, low), (1.0, high))
            ]

        rows = [*pair(1.0, 1.1), *pair(50.0, 51.0, tau="quadratic")]
        pivot, _ = grid_tables(self.entries(tmp_path / "tau", rows))
        assert [label for label, _ in best(pivot)] == ["τ linear, η = 0", "τ linear, η = 1"]
        pivot, _ = grid_tables(self.entries(tmp_path / "both", pair(50.0, 51.0), pair(1.0, 1.1)))
        assert [label for label, _ in best(pivot)] == ["B, η = 0", "B, η = 1"]

    def test_evaluations_of_different_samplers_name_them(self, tmp_path):
        first, second = [row(distance=2.0, nfe=10)], [row(distance=1.0, nfe=19, sampler="heun")]
        pivot, _ = grid_tables(self.entries(tmp_path, first, second))
        assert texts(pivot) == [["A, ddim", "2.000", "–"], ["B, heun", "–", "1.000"]]
        assert pivot.headers == ["", "nfe ≤ 10", "nfe ≤ 19"]

    def test_one_sampler_with_limits_has_eta_down_and_calls_across(self, tmp_path):
        pivot, _ = grid_tables(self.entries(tmp_path, [row(steps=3, nfe=5, nfe_limit=6, sampler="heun")]))
        assert pivot.caption.endswith("by η (down) and network calls (across)") and texts(pivot) == [["η = 0", "1.000"]]

    def test_the_floor_stands_under_its_own_features_only(self, tmp_path):
        floor = Floor(360, {"frechet_distance": 0.25, "precision": 0.9}, "digits-cnn", "abc")
        rows = [row(precision=0.5), row(features="pixels", reference="def")]
        entries = entries_of([read_evaluation(evaluation(tmp_path / "e", rows, floor))])
        feet = [[cell.text for line in table.foot for cell in line] for table in grid_tables(entries)[1::2]]
        assert feet[0][:5] == ["floor", "", "", "0.2500", "0.900"]
        assert feet[1] == []

    def test_the_papers_numbers_and_differences(self):
        def record(eta, steps, measured, paper, **more):
            difference = None if paper is None or measured is None else measured - paper
            values = {"eta": eta, "variance": "eta", "tau": "quadratic", "steps": steps, "measured": measured}
            return {**values, "paper": paper, "difference": difference, "not_comparable_because": "N 5; raw", **more}

        rows = [record(0.0, 10, 14.0, 13.36), record(0.0, 7, 3.0, None), record(1.0, 10, None, 41.07)]
        rows[1]["not_comparable_because"] = "N 5"
        rows.append(record(1.0, 10, 370.0, 367.43, variance="sigma_hat"))
        comparison = PaperComparison("t", "Table 1", rows)
        (table,) = paper_table(comparison)
        cells = {
            (line[0].text, header): cell
            for line in table.rows
            for cell, header in zip(line, table.headers, strict=True)
        }
        assert (cells["η = 0", "S = 10"].text, cells["η = 0", "S = 10"].small) == ("14.00", ["paper 13.36", "+0.640"])
        assert cells["η = 0", "S = 7"].small == ["not in the paper"]
        assert (cells["η = 1", "S = 10"].text, cells["η = 1", "S = 10"].small) == ("–", ["paper 41.07"])
        assert cells["σ̂", "S = 10"].small == ["paper 367.43", "+2.57"]
        assert cells["σ̂", "S = 7"].text == "–"
        assert not_comparable(comparison) == ["N 5: all rows", "raw: η = 0, S = 10; η = 1, S = 10; σ̂, S = 10"]


class TestCharts:
    def charts(self, tmp_path, rows, floor=None, comparisons=()):
        entries = entries_of([read_evaluation(evaluation(tmp_path / "e", rows, floor))])
        return distance_charts(entries, comparisons), time_charts(entries)

    def test_a_line_for_each_eta_in_order_of_s_with_the_floor(self, tmp_path):
        rows = [row(0.0, 20, 0.5), row(0.0, 5, 4.0), row(1.0, 5, 8.0), row(1.0, 20, None)]
        floor = Floor(360, {"frechet_distance": 0.25}, "digits-cnn", "abc")
        ((chart,), (speed,)) = self.charts(tmp_path, rows, floor)
        drawn = {line.label: [(x, y) for x, y, _ in line.points] for line in chart.series}
        assert drawn == {"η = 0": [(5, 4.0), (20, 0.5)], "η = 1": [(5, 8.0)]}
        assert chart.levels == [("floor: 360 real held-out images", 0.25)]
        assert chart.ticks == [5, 20] and chart.x_log and chart.y_log
        assert [(x, y) for x, y, _ in speed.series[0].points] == [(5, 100.0), (20, 100.0)]

    def test_samplers_are_lines_against_network_calls_and_points_say_their_bars(self, tmp_path):
        rows = [row(0.0, 5, 4.0, frechet_distance_sd=0.5), row(0.0, 3, 2.0, sampler="heun", nfe=5)]
        ((chart,), (speed,)) = self.charts(tmp_path, rows)
        assert {line.label: line.points for line in chart.series} == {
            "ddim": [(5, 4.0, "4.00 ± 0.50")],
            "heun": [(5, 2.0, "2.000")],
        }
        assert (chart.x_name, chart.x_label) == ("nfe", "nfe (network calls per image)")
        assert chart.title == "digits: FD (digits-cnn) against network calls"
        assert {line.label for line in speed.series} == {"ddim", "heun"}

    def test_values_that_no_log_axis_can_show_get_a_linear_one(self, tmp_path):
        ((chart,), _) = self.charts(tmp_path, [row(steps=5, distance=-0.1), row(steps=10, distance=9.0)])
        assert not chart.y_log and len(chart.series[0].points) == 2

    @pytest.mark.parametrize("value", [None, float("nan"), float("inf")])
    def test_what_is_no_number_is_not_drawn(self, tmp_path, value):
        charts, _ = self.charts(tmp_path, [row(distance=value)])
        assert charts == []
        page = page_of(tmp_path / "e")
        assert json.loads(page.inside["script"][0])[0]["key"] == "time"

    def test_each_kind_of_features_has_its_own_chart(self, tmp_path):
        charts, _ = self.charts(tmp_path, [row(), row(features="inception-v3-compat", distance=20.0)])
        assert [chart.title for chart in charts] == ["digits: FD (digits-cnn) against S", "digits: FID against S"]

    @pytest.mark.parametrize(("comparable", "lines"), [(True, ["η = 0", "the paper, η = 0.0"]), (False, ["η = 0"])])
    def test_the_papers_line_is_drawn_beside_what_may_be_compared_with_it(self, tmp_path, comparable, lines):
        record = {"eta": 0.0, "variance": "eta", "steps": 10, "paper": 13.36, "comparable": comparable}
        (chart,), _ = self.charts(
            tmp_path, [row(features="inception-v3-compat")], None, [PaperComparison("t", "T", [record])]
        )
        assert [line.label for line in chart.series] == lines


class TestThePage:
    def test_names_are_text_wherever_they_come_from(self, tmp_path):
        rows = [row(dataset=EVIL, checkpoint=EVIL, features=EVIL, tau=EVIL, device=EVIL, weights=EVIL)]
        extra = {"config": {EVIL: EVIL}, "versions": {EVIL: EVIL}, "conflicts": [EVIL]}
        directory = evaluation(tmp_path / EVIL.replace("/", "."), rows, Floor(1, {}), extra)
        write_rows(directory, "reconstruction", [{"steps": EVIL, "tau": EVIL, "mse_per_dimension": EVIL}])
        (directory / "overrides.yaml").write_text(yaml.safe_dump([f"checkpoint={EVIL}"]))
        record = {"steps": 1, "measured": EVIL, "paper": EVIL, "difference": EVIL, "not_comparable_because": EVIL}
        write_rows(directory, "x_table1", [{**record, "eta": EVIL, "tau": EVIL}], {"title": EVIL})
        page = page_of(directory)
        assert len(page.all("script")) == 3
        assert not [attributes for _, attributes in page.tags if "onerror" in attributes]
        assert "".join(page.shown).count(EVIL) > 10
        charts = json.loads(page.inside["script"][0])
        assert charts[0]["title"].startswith(f"{EVIL}: FD ({EVIL})")

    def test_everything_it_needs_is_inside_and_nothing_else_is_allowed(self, tmp_path):
        page = page_of(evaluation(tmp_path / "e", [row()], pictures=True))
        addresses = [a[key] or "" for _, a in page.tags for key in ("src", "href", "action", "srcset") if key in a]
        assert addresses and all(re.match(r"data:|#", address) for address in addresses)
        policy = next(a["content"] or "" for a in page.all("meta") if a.get("http-equiv"))
        rules = dict(rule.split(" ", 1) for rule in policy.split("; "))
        assert rules["default-src"] == "'none'" and rules["img-src"] == "data:" and "unsafe" not in policy
        digests = {
            f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
            for text in page.inside["script"][1:]
        }
        assert digests == set(rules["script-src"].split())
        assert "sourceMappingURL" not in "".join(page.inside["script"])
        assert not [attributes for _, attributes in page.tags if "style" in attributes]

    def test_the_switch_has_the_points_whose_pictures_there_are(self, tmp_path):
        directory = evaluation(tmp_path / "e", [row(e, s) for e in (0.0, 0.5) for s in (5, 10)], pictures=True)
        (directory / "samples" / "eta0.500-linear-steps0010.png").write_bytes(b"\x89PNG damaged")
        page = page_of(directory)
        settings = [json.loads(a["data-setting"] or "") for a in page.all("figure") if "data-setting" in a]
        assert settings == [["", "η = 0", "5"], ["", "η = 0", "10"], ["", "η = 0.5", "5"]]
        assert [a["value"] for a in page.all("input")] == ["η = 0", "η = 0.5", "5", "10"]
        pixels = []
        for image in page.all("img"):
            with Image.open(io.BytesIO(base64.b64decode((image["src"] or "").partition(",")[2]))) as picture:
                pixels.append(picture.getpixel((0, 0)))
        assert pixels == [0, 1, 2]

    def test_the_same_files_give_the_same_bytes_and_moving_them_changes_nothing(self, tmp_path):
        first = write_report([evaluation(tmp_path / "a" / "e", [row()], pictures=True)]).read_bytes()
        assert write_report([tmp_path / "a" / "e"]).read_bytes() == first
        (tmp_path / "a").rename(tmp_path / "b")
        assert write_report([tmp_path / "b" / "e"]).read_bytes() == first

    def test_the_command_is_what_a_shell_takes(self, tmp_path):
        directory = evaluation(tmp_path / "e", [row()])
        overrides = ["sampler.steps=[5,10]", "checkpoint='/runs/a b/last.ckpt'"]
        (directory / "overrides.yaml").write_text(yaml.safe_dump(overrides))
        assert shlex.split(read_evaluation(directory).command) == ["python", "evaluate.py", *overrides]
        (directory / "overrides.yaml").write_text(yaml.safe_dump(["checkpoint='/runs/a-b/last.ckpt'"]))
        assert read_evaluation(directory).command == "python evaluate.py checkpoint=/runs/a-b/last.ckpt"

    @pytest.mark.parametrize(
        ("kept", "shown"),
        [
            ("trainer.precision='32-true'", "trainer.precision=32-true"),
            ("trainer.precision='bf16-mixed'", "trainer.precision=bf16-mixed"),
            ("optimizer.lr='1e-5'", "'optimizer.lr='\"'\"'1e-5'\"'\"''"),  # without quotes it would be a number
        ],
    )
    def test_words_are_not_quoted_where_they_stay_words(self, kept, shown, tmp_path):
        directory = evaluation(tmp_path / "e", [row()])
        (directory / "overrides.yaml").write_text(yaml.safe_dump([kept]))
        command = read_evaluation(directory).command
        assert command == f"python evaluate.py {shown}"
        texts = [kept, shlex.split(command)[-1]]
        was, again = (parsed.value() for parsed in OverridesParser.create().parse_overrides(texts))
        assert was == again and isinstance(again, str)

    def test_several_evaluations_show_what_differs(self, tmp_path):
        one = evaluation(tmp_path / "one", [row()], pictures=True)
        other = evaluation(tmp_path / "other", [row(weights="raw")], pictures=True)
        page = page_of(one, other)
        assert len([a for a in page.all("tr") if a.get("class") == "differ"]) == 1
        assert [a["value"] for a in page.all("input")] == ["A", "B"]


class TestWhatIsThere:
    def notices(self, directory: Path) -> str:
        return " ".join(read_evaluation(directory).notices)

    def test_a_killed_evaluation_says_how_far_it_came(self, tmp_path):
        extra = {"planned": {"grid": 3, "reconstruction": 2}}
        directory = evaluation(tmp_path / "e", [row(steps=5), row(steps=10)], extra=extra)
        said = self.notices(directory)
        assert "2 of 3 grid points are finished. Not there yet: reconstruction." in said
        assert f"python evaluate.py resume={directory}" in said
        write_rows(directory, "reconstruction", [{"steps": 5}])
        assert "2 of 3" in self.notices(directory) and "Not there yet" not in self.notices(directory)
        evaluation(directory, [row(steps=steps) for steps in (5, 10, 20)], extra=extra)
        assert self.notices(directory) == ""

    def test_the_table_alone_is_enough(self, tmp_path):
        directory = evaluation(tmp_path / "e", [row(distance=1.25)])
        (directory / "results.json").unlink()
        assert "1.250" in "".join(page_of(directory).shown)

    def test_a_part_alone_is_enough_and_odd_values_are_shown_as_they_are(self, tmp_path):
        rows = [{"steps": 5, "mse_per_dimension": 0.25}, {"steps": None, "mse_per_dimension": "nan"}, {}]
        write_rows(tmp_path, "reconstruction", rows, {"config": {"seed": 3}})
        shown = "".join(page_of(tmp_path).shown)
        assert "0.250" in shown and "seed: 3" in shown

    def test_files_of_parts_that_were_not_asked_for_are_another_evaluations(self, tmp_path):
        directory = evaluation(tmp_path / "e", [row()])
        for name in ("reconstruction", "consistency"):
            write_rows(directory, name, [{"steps": 5}])
        settings = {"evaluation": {"parts": ["grid", "consistency"]}, "table": None}
        (directory / "config.yaml").write_text(yaml.safe_dump(settings))
        write_rows(directory, "cifar10_table1", [{"steps": 1, "measured": 1, "paper": 1, "difference": 0}])
        found = read_evaluation(directory)
        assert list(found.parts) == ["consistency"] and not found.comparisons

    @pytest.mark.parametrize(
        ("files", "said"),
        [
            ({}, "has no results"),
            ({"results.json": "{"}, "results.json' is not a result file"),
            ({"results.json": '{"rows": 3}'}, "results.json' is not a result file"),
            ({"results.csv": "a,b\n1,2\n"}, "results.csv' is not a result file"),
            ({"reconstruction.json": '{"rows": [3]}'}, "reconstruction.json' is not a result file"),
            ({"reconstruction.json": "[]"}, "reconstruction.json' is not a result file"),
            (
                {"config.yaml": "evaluation: {parts: [grid]}"},
                "has no results yet; go on with: python evaluate.py resume=",
            ),
            ({"multirun.yaml": "{}"}, "is a sweep whose table is not collected yet; run: python -m ddim.results"),
        ],
    )
    def test_a_folder_without_results_gives_one_sentence(self, tmp_path, capsys, files, said):
        for name, text in files.items():
            (tmp_path / name).write_text(text)
        with pytest.raises(SystemExit) as end:
            main([str(tmp_path)])
        errors = capsys.readouterr().err
        assert end.value.code == 2 and said in errors and errors.count("\n") == 1
        assert not (tmp_path / "report.html").exists()

    def test_damage_around_the_results_takes_nothing_but_itself_away(self, tmp_path):
        directory = evaluation(tmp_path / "e", [row()], extra={"planned": 3, "versions": [1], "config": "x"})
        for name in ("config.yaml", "overrides.yaml"):
            (directory / name).write_text("{: [")
        (directory / "samples.png").write_text("no picture")
        assert "1.000" in "".join(page_of(directory).shown)


class TestCommandLine:
    def test_where_it_is_written(self, tmp_path, monkeypatch, capsys):
        monkeypatch.chdir(tmp_path)
        for name in ("one", "two"):
            evaluation(tmp_path / name, [row()])
        assert main(["one"]) == 0 and (tmp_path / "one" / "report.html").is_file()
        assert main(["one", "two"]) == 0 and (tmp_path / "comparison.html").is_file()
        assert main(["one", "--output", "new/x.html"]) == 0 and (tmp_path / "new" / "x.html").is_file()
        assert capsys.readouterr().out.splitlines() == [
            "Report    one/report.html",
            "Report    comparison.html",
            "Report    new/x.html",
        ]

    @pytest.mark.parametrize(
        ("arguments", "said"),
        [
            (["nowhere"], "nowhere' is not a directory"),
            (["one", "--output", "one"], "--output=one is a directory"),
            (["one", "--output", "one/results.csv/x.html"], "cannot be written"),
            (["x" * 5000], "cannot be opened"),
        ],
    )
    def test_mistakes_are_one_sentence(self, tmp_path, monkeypatch, capsys, arguments, said):
        monkeypatch.chdir(tmp_path)
        evaluation(tmp_path / "one", [row()])
        with pytest.raises(SystemExit) as end:
            main(arguments)
        errors = capsys.readouterr().err
        assert end.value.code == 2 and said in errors and errors.count("\n") == 1


class TestPictures:
    def noise(self, size: int, path: Path) -> Path:
        pixels = np.random.default_rng(0).integers(0, 256, (size, size, 3), np.uint8)
        Image.fromarray(pixels).save(path)
        return path

    def test_a_small_one_is_taken_as_it_is(self, tmp_path):
        path = self.noise(64, tmp_path / "a.png")
        picture = inlined(path)
        assert base64.b64decode(picture.data.partition(",")[2]) == path.read_bytes()
        assert (picture.width, picture.height, picture.note) == (64, 64, "")

    def test_a_large_one_is_shrunk_and_says_so(self, tmp_path):
        picture = inlined(self.noise(2000, tmp_path / "a.png"))
        content = base64.b64decode(picture.data.partition(",")[2])
        with Image.open(io.BytesIO(content)) as small:
            # Noise is as hard to compress as a picture can be.
            assert small.size == (picture.width, picture.height) == (STEPS[-1][0],) * 2
        assert picture.data.startswith("data:image/webp;") and "Shrunk from 2000 × 2000" in picture.note
        assert len(content) < 0.2 * (tmp_path / "a.png").stat().st_size

    def test_one_that_is_easily_compressed_keeps_its_size(self, tmp_path):
        smooth = Image.fromarray(np.indices((500, 1000)).sum(0).astype(np.float32)).resize((1200, 600))
        noisy = np.asarray(smooth) / 6 + np.random.default_rng(0).normal(0, 1, (600, 1200))
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(tmp_path / "a.png")
        assert (tmp_path / "a.png").stat().st_size > 150_000
        picture = inlined(tmp_path / "a.png")
        assert (picture.width, picture.height, picture.note) == (1200, 600, "Compressed for this page.")

    def test_a_long_animation_is_left_out(self, tmp_path):
        frames = [Image.fromarray(np.random.default_rng(n).integers(0, 256, (300, 300), np.uint8)) for n in range(25)]
        frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
        picture = inlined(tmp_path / "a.gif")
        assert not picture.data and re.match(r"a\.gif \(\d\.\d MB\) is left out", picture.note)

    @pytest.mark.parametrize(
        "content",
        [b"", b"<svg xmlns='http://www.w3.org/2000/svg' onload='alert(1)'/>", b"\x89PNG\r\n\x1a\n", b"GIF89a"],
    )
    def test_what_is_no_picture_is_a_note(self, tmp_path, content):
        (tmp_path / "a.png").write_bytes(content)
        assert inlined(tmp_path / "a.png") == inlined(tmp_path / "a.png")
        assert (inlined(tmp_path / "a.png").data, inlined(tmp_path / "a.png").note) == ("", "a.png cannot be read.")


def test_a_sweep_shows_the_pictures_of_its_jobs(tmp_path):
    rows = [row(eta, 5, 1.0 + eta) for eta in (0.0, 1.0)]
    (tmp_path / "multirun.yaml").write_text("{}")
    for number, one in enumerate(rows):
        job = evaluation(tmp_path / str(number), [one], extra={"config": {"seed": 0}}, pictures=True)
        (job / ".hydra").mkdir()
        task = {"overrides": {"task": [f"sampler.eta={number}"]}, "job": {"num": number}}
        (job / ".hydra" / "hydra.yaml").write_text(yaml.safe_dump({"hydra": task}))
        (job / "job.json").write_text('{"state": "finished"}')
    (tmp_path / "1" / "job.json").write_text('{"state": "failed", "sentence": "no room"}')
    with pytest.raises(UserError, match="not collected yet"):
        read_evaluation(tmp_path)
    write_results(tmp_path, rows, None, {"collected": []})
    found = read_evaluation(tmp_path)
    assert {number: path.parts[-3] for number, path in found.samples.items()} == {0: "0", 1: "1"}
    assert found.notices == ["job 1 (sampler.eta=1) failed: no room"]
    assert found.context["config"] == {"seed": 0}
