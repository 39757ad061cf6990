"""Plots of a grid: which lines there are, what stands beside them, and that no text covers another."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba
from matplotlib.container import ErrorbarContainer
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.text import Text
from PIL import Image

from ddim.display.axes import set_ticks
from ddim.display.figures import distance_figure, drawn, speed_figure
from ddim.findings.rows import Floor, GridResult
from ddim.runs.files import save_picture


def result(**changes: object) -> GridResult:
    values: dict[str, object] = {
        "dataset": "digits",
        "checkpoint": "outputs/a/checkpoints/last.ckpt",
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
        "frechet_distance": 4.0,
        "seconds": 12.0,
        "images_per_second": 83.3,
        "device": "CPU",
        "reference": "3f2a9c01",
    }
    return GridResult(**{**values, **changes})  # type: ignore[arg-type]


def grid(etas=(0.0, 0.2, 1.0), all_steps=(50, 10, 20), **changes: object) -> list[GridResult]:
    return [
        result(
            eta=eta, steps=steps, nfe=steps, frechet_distance=(10 + eta) / steps, seconds=steps * 0.3 + eta, **changes
        )
        for steps in all_steps
        for eta in etas
    ]


def legend(axes: Axes) -> list[str]:
    found = axes.get_legend()
    return [] if found is None else [text.get_text() for text in found.get_texts()]


def data(line: Line2D) -> list[tuple[float, float]]:
    return [(float(x), float(y)) for x, y in np.asarray(line.get_xydata())]


def points(axes: Axes) -> dict[str, list[tuple[float, float]]]:
    """Data of the lines that join measured points, by label; a repeated label fails."""
    found: dict[str, list[tuple[float, float]]] = {}
    for line in axes.lines:
        if line.get_marker() != "None":
            assert line.get_label() not in found
            found[str(line.get_label())] = data(line)
    return found


def bars(axes: Axes) -> dict[float, tuple[float, float]]:
    """{x: (lower end, upper end)} of all bars that are drawn."""
    found: dict[float, tuple[float, float]] = {}
    for container in axes.containers:
        assert isinstance(container, ErrorbarContainer)
        for collection in container.lines[2]:
            for (x, low), (_, high) in collection.get_segments():
                assert x not in found
                found[float(x)] = (float(low), float(high))
    return found


def badly_placed_texts(figure: Figure) -> list[str]:
    """Visible texts of a figure that cover another one or leave the picture."""
    figure.canvas.draw()
    boxes = []
    for axes in figure.axes:
        texts = [axes.xaxis.label, axes.yaxis.label]
        of_axis = axes.xaxis.findobj(Text) + axes.yaxis.findobj(Text)
        texts += [text for text in axes.findobj(Text) if isinstance(text, Text) and text not in of_axis]
        for axis in (axes.xaxis, axes.yaxis):
            # An axis keeps the labels of ticks outside its limits, which are never drawn.
            low, high = axis.get_view_interval()
            texts += [tick.label1 for tick in axis.get_major_ticks() if low <= tick.get_loc() <= high]
        boxes += [
            (text.get_text(), text.get_window_extent()) for text in texts if text.get_visible() and text.get_text()
        ]
    assert len(boxes) > 5
    outside = [
        name for name, box in boxes if box.x0 < 0 or box.y0 < 0 or box.x1 > figure.bbox.x1 or box.y1 > figure.bbox.y1
    ]
    return outside + [
        f"{first} / {second}"
        for i, (first, a) in enumerate(boxes)
        for second, b in boxes[i + 1 :]
        if min(a.x1, b.x1) - max(a.x0, b.x0) > 1 and min(a.y1, b.y1) - max(a.y0, b.y0) > 1
    ]


def test_one_line_per_eta_with_its_points_in_order_of_steps() -> None:
    (axes,) = distance_figure(grid(), None).axes
    assert points(axes) == {
        f"η = {eta:g}": [(steps, (10 + eta) / steps) for steps in (10, 20, 50)] for eta in (0.0, 0.2, 1.0)
    }
    assert axes.get_xscale() == axes.get_yscale() == "log"
    assert len({line.get_color() for line in axes.lines}) == len({line.get_marker() for line in axes.lines}) == 3


def test_sigma_hat_rows_are_lines_of_their_own() -> None:
    rows = grid(etas=(1.0,)) + grid(etas=(1.0,), variance="sigma_hat") + grid((1.0,), variance="sigma_hat_official")
    (axes,) = distance_figure(rows).axes
    assert list(points(axes)) == ["η = 1", r"$\hat{\sigma}$", r"$\hat{\sigma}$ clipped"]


def test_ticks_are_the_steps_that_were_run_in_plain_numbers() -> None:
    figure = distance_figure(grid(all_steps=(10, 20, 50, 100, 1000)), None)
    figure.canvas.draw()
    assert [text.get_text() for text in figure.axes[0].get_xticklabels()] == ["10", "20", "50", "100", "1000"]
    values = [float(text.get_text()) for text in figure.axes[0].get_yticklabels()]
    low, high = figure.axes[0].get_ylim()
    assert sum(low <= value <= high for value in values) >= 3


def test_axes_and_title_name_features_and_number() -> None:
    (axes,) = distance_figure(grid(num_samples=50_000), None).axes
    assert "digits-cnn" in axes.get_ylabel() and axes.get_ylabel().startswith("FD")
    assert "50,000" in axes.get_title(loc="left") and "digits" in axes.get_title(loc="left")
    (axes,) = distance_figure(grid(features="inception-v3-compat"), None).axes
    assert axes.get_ylabel() == "FID: Fréchet distance on inception-v3-compat features"


def test_the_floor_is_a_dashed_labelled_line_inside_the_axes() -> None:
    (axes,) = distance_figure(grid(), Floor(360, {"frechet_distance": 0.05})).axes
    (floor,) = [line for line in axes.lines if line.get_marker() == "None"]
    assert {y for _, y in data(floor)} == {0.05}
    assert floor.is_dashed()
    assert axes.get_ylim()[0] < 0.05
    assert "360 real" in legend(axes)[-1]


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("num_samples", 500, "N 500"),
        ("tau", "quadratic", "τ quadratic"),
        ("reference", "00ff", "reference 00ff"),
        ("weights", "raw", "weights raw"),
        ("dataset", "cifar10", "dataset cifar10"),
        ("seed", 7, "seed 7"),
        ("checkpoint", "outputs/b/checkpoints/last.ckpt", "checkpoint …/b/…"),
    ],
)
def test_results_of_other_provenance_are_not_one_line(name: str, value: object, said: str) -> None:
    rows = [*grid(etas=(0.0, 1.0), all_steps=(10, 50)), result(steps=20, frechet_distance=7.0, **{name: value})]
    (axes,) = distance_figure(rows).axes
    drawn = [data(line) for line in axes.lines]
    assert drawn == [[(10, 1.0), (50, 0.2)], [(10, 1.1), (50, 0.22)], [(20, 7.0)]]
    assert said in legend(axes)
    assert legend(axes).index(said) == 3
    assert axes.lines[0].get_linestyle() != axes.lines[2].get_linestyle()


def test_other_features_get_a_panel_of_their_own_and_only_their_floor() -> None:
    floor = Floor(360, {"frechet_distance": 0.1}, features="pixels", reference="3f2a9c01")
    first, second = distance_figure(grid() + grid(features="pixels"), floor).axes
    assert "digits-cnn" in first.get_ylabel() and "pixels" in second.get_ylabel()
    assert len(first.lines) == 3 and len(second.lines) == 4


@pytest.mark.filterwarnings("error")
def test_one_point_with_a_bar_and_a_floor_has_limits_around_it() -> None:
    (axes,) = distance_figure([result(frechet_distance_sd=0.3)], Floor(360, {"frechet_distance": 0.1})).axes
    assert axes.get_xlim()[0] < 10 < axes.get_xlim()[1]


@pytest.mark.parametrize("value", [None, float("nan"), float("inf"), 0.0, -1e-9])
def test_what_a_log_axis_cannot_show_is_left_out(value: float | None) -> None:
    rows = [*grid(etas=(0.0,)), result(steps=100, frechet_distance=value)]
    (axes,) = distance_figure(rows, Floor(3, {"frechet_distance": 0.0})).axes
    assert [x for x, _ in points(axes)["η = 0"]] == [10, 20, 50]
    figure = distance_figure([result(frechet_distance=value)])
    figure.canvas.draw()
    assert not figure.axes[0].lines


def test_speed_is_seconds_against_network_calls_and_hardware_is_kept_apart() -> None:
    rows = [*grid(etas=(0.0,)), result(steps=20, nfe=20, seconds=0.5, device="H200")]
    (axes,) = speed_figure(rows).axes
    assert [data(line) for line in axes.lines] == [
        [(10, 150.0), (20, 300.0), (50, 750.0)],
        [(20, 25.0)],
    ]
    assert {"device CPU", "device H200"} <= set(legend(axes))
    assert axes.get_ylabel() == "seconds per 50,000 images" and "N = 1,000" in axes.get_title(loc="left")
    assert axes.get_xscale() == axes.get_yscale() == "log"


def test_a_sampler_stands_in_the_speed_figure_where_its_network_calls_are_and_in_the_other_at_its_steps() -> None:
    rows = [result(sampler="heun", steps=steps, nfe=2 * steps - 1, seconds=0.3 * steps) for steps in (10, 20)]
    (axes,) = speed_figure(rows).axes
    assert [data(line) for line in axes.lines] == [[(19, 150.0), (39, 300.0)]]
    assert "network calls" in axes.get_xlabel() and "network calls" in axes.get_title(loc="left")
    axes.figure.canvas.draw()
    assert [text.get_text() for text in axes.get_xticklabels()] == ["19", "39"]
    (axes,) = distance_figure(rows).axes
    assert [x for x, _ in data(axes.lines[0])] == [10, 20] and axes.get_xlabel() == "S (sampling steps)"


class TestBars:
    def test_every_point_with_a_deviation_has_a_bar_and_no_other(self) -> None:
        distances = {5: (4.0, 0.5), 10: (2.0, None), 20: (1.0, 0.25), 50: (0.8, 0.0), 100: (0.7, float("nan"))}
        rows = [result(steps=s, frechet_distance=d, frechet_distance_sd=sd) for s, (d, sd) in distances.items()]
        (axes,) = distance_figure(rows).axes
        assert bars(axes) == {5: pytest.approx((3.5, 4.5)), 20: pytest.approx((0.75, 1.25))}
        ends = sorted(x for line in axes.lines if line.get_marker() == "_" for x, _ in data(line))
        assert ends == [5, 5, 20, 20], "the rest has no ends of bars either"

    def test_without_deviations_there_are_none(self) -> None:
        (axes,) = distance_figure(grid()).axes
        assert not axes.containers and not bars(axes)
        (axes,) = speed_figure(grid(frechet_distance_sd=0.1)).axes
        assert not axes.containers, "time has none"

    def test_a_bar_below_zero_is_cut_there_and_not_above(self) -> None:
        rows = [result(frechet_distance=1.0, frechet_distance_sd=3.0), result(steps=20, frechet_distance=2.0)]
        (axes,) = distance_figure(rows).axes
        assert bars(axes) == {10: pytest.approx((0.1, 4.0))}
        low, high = axes.get_ylim()
        assert low < 0.1 and high > 4.0

    def test_a_bar_has_the_colour_of_its_line(self) -> None:
        rows = [result(eta=eta, steps=s, frechet_distance_sd=0.1) for eta, s in ((0.0, 5), (1.0, 10))]
        (axes,) = distance_figure(rows).axes
        lines = [line for line in axes.lines if not str(line.get_label()).startswith("_")]
        drawn = [container.lines[2][0].get_color()[0] for container in axes.containers]
        assert [to_rgba(line.get_color()) for line in lines] == [pytest.approx(tuple(colour)) for colour in drawn]
        assert len(drawn) == 2 and len(legend(axes)) == 2

    def test_no_text_covers_another(self) -> None:
        rows = [
            result(sampler=name, steps=n, nfe=n, nfe_limit=n, frechet_distance=d, frechet_distance_sd=d / 2)
            for name, d in (("ddim", 4.0), ("deis", 0.5), ("unipc", 0.4))
            for n in (5, 8, 10, 20)
        ]
        assert badly_placed_texts(distance_figure(rows, Floor(360, {"frechet_distance": 0.1}))) == []


class TestSeveralSamplers:
    def rows(self) -> list[GridResult]:
        points = [("ddim", 5, 5, 4.0), ("ddim", 10, 10, 2.0), ("heun", 3, 5, 8.0), ("heun", 5, 9, 3.0)]
        return [result(sampler=n, steps=s, nfe=nfe, frechet_distance=d) for n, s, nfe, d in points]

    def test_each_is_a_line_against_network_calls(self) -> None:
        (axes,) = distance_figure(self.rows()).axes
        assert points(axes) == {"ddim": [(5, 4.0), (10, 2.0)], "heun": [(5, 8.0), (9, 3.0)]}
        assert axes.get_xlabel() == "nfe (network calls per image)"
        assert "FD against network calls" in axes.get_title(loc="left")
        axes.figure.canvas.draw()
        assert [text.get_text() for text in axes.get_xticklabels()] == ["5", "9", "10"]
        assert legend(axes) == ["ddim", "heun"], "and no heading that says the same"

    def test_a_line_stands_where_calls_were_made_and_not_where_they_were_asked_for(self) -> None:
        (axes,) = distance_figure([result(sampler="heun", steps=3, nfe=5, nfe_limit=6)]).axes
        assert points(axes) == {"η = 0": [(5, 4.0)]} and axes.get_xlabel() == "nfe (network calls per image)"

    def test_options_and_etas_are_lines_of_their_own(self) -> None:
        rows = [result(), result(eta=1.0), result(sampler="deis"), result(sampler="deis", options=(("order", 2),))]
        (axes,) = distance_figure(rows).axes
        assert set(points(axes)) == {"ddim, η = 0", "ddim, η = 1", "deis, η = 0", "deis order2, η = 0"}
        (axes,) = speed_figure(rows).axes
        assert len(points(axes)) == 4


@pytest.mark.parametrize("draw", [distance_figure, speed_figure])
def test_no_rows_are_refused(draw) -> None:
    with pytest.raises(ValueError, match="at least one"):
        draw([])


def test_no_text_covers_another_or_leaves_the_picture() -> None:
    floor = Floor(360, {"frechet_distance": 0.01})
    every = [10, 11, 12, 13, 20, 50, 90, 100, 500, 999, 1000]
    for rows in (
        grid(all_steps=every, resize="bilinear to 299 x 299 without antialiasing", compute_precision="bf16-mixed"),
        grid() + grid(weights="raw", checkpoint="outputs/" + "long-name" * 9) + grid(tau="quadratic", dataset="d" * 60),
        grid() + grid(features="pixels"),
        [result()],
    ):
        assert badly_placed_texts(distance_figure(rows, floor)) == []
        assert badly_placed_texts(speed_figure(rows)) == []


def test_files_are_whole_rgb_pictures_of_readable_width(tmp_path: Path) -> None:
    distance = distance_figure(grid(), Floor(360, {"frechet_distance": 0.05}))
    save_picture(drawn(distance), tmp_path / "distance.png")
    save_picture(drawn(speed_figure(grid())), tmp_path / "deep" / "speed.png")
    for path in (tmp_path / "distance.png", tmp_path / "deep" / "speed.png"):
        with Image.open(path) as picture:
            picture.load()
            assert picture.format == "PNG" and picture.mode == "RGB" and picture.width == 1400
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["deep", "distance.png", "speed.png"]


def test_of_values_too_close_for_labels_the_one_of_most_points_is_labelled() -> None:
    axes = Figure().add_subplot()
    set_ticks(axes, [5, 5, 5, 19, 20, 20], 0.1, 1.0)
    assert list(axes.get_xticks()) == [5, 20]
