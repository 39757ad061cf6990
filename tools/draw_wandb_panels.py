"""Draw the panels of `docs/wandb.md` from the offline files of real runs, as W&B lays them out.

    python tools/draw_wandb_panels.py TRAINING EVALUATION [EVALUATION ...] --into docs/images

The directories are those of runs with `logger.mode=offline`. The first evaluation has a picture of its own, all of them
the comparison.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from ddim.display.axes import COLOURS
from ddim.tracking.keys import CURVE, TRAIN, all_keys
from ddim.tracking.offline_runs import OfflineRun, offline_files, read_offline_run

DASHES = ("-", (0, (4, 2)), (0, (1, 1.5)), (0, (5, 1, 1, 1)))
COLUMNS = ("best/frechet_distance", "best/eta", "best/steps", "floor/frechet_distance")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("training", type=Path)
    parser.add_argument("evaluations", type=Path, nargs="+")
    parser.add_argument("--into", type=Path, default=Path("docs/images"))
    arguments = parser.parse_args()
    training, *evaluations = [_open(directory) for directory in (arguments.training, *arguments.evaluations)]
    _save(draw_training(*training), arguments.into / "wandb-training.png")
    _save(draw_evaluation(*evaluations[0]), arguments.into / "wandb-evaluation.png")
    _save(draw_comparison(evaluations), arguments.into / "wandb-comparison.png")


def draw_training(files: Path, run: OfflineRun) -> Figure:
    """The panels of a training run: a curve per key, and both ends of the slider of samples."""
    curves = [entry for entry in all_keys() if entry.job == TRAIN and entry.kind == CURVE]
    families = {entry.name for entry in curves if not entry.is_family}
    keys = [key for key in sorted(families - {"epoch"}) if run.series(key)]
    figure = _figure(f"{run.run.display_name}  (group {run.run.run_group}, job_type {run.run.job_type})", (14, 12))
    axes = figure.subplots(4, 3).flatten()
    for panel, key in zip(axes, keys, strict=False):
        points = run.curve(key)
        _style(panel, key, run.metrics[key].step_metric)
        panel.plot(
            *zip(*points, strict=True), color=COLOURS[0], linewidth=1.4, marker="." if len(points) < 30 else None
        )
    pictures = run.curve("samples")
    for panel, (step, value) in zip(axes[len(keys) :], (pictures[0], pictures[-1]), strict=True):
        _show(panel, "samples", files, value, f"slider at step {step:g}, {len(pictures)} positions")
    return figure


def draw_evaluation(files: Path, run: OfflineRun) -> Figure:
    """The panels of an evaluation: both charts, curves against S, the slider of samples, the results."""
    figure = _figure(f"{run.run.display_name}  (group {run.run.run_group}, job_type {run.run.job_type})", (14, 12.5))
    panels = figure.subplots(3, 3)
    for panel, key in zip(panels[0], ("grid/distance_chart", "grid/time_chart"), strict=False):
        _draw_chart(panel, key, [(files, run)])
    _draw_curves(panels[0][2], run, "grid/images_per_second/")
    for panel, prefix in zip(
        panels[1], ("grid/frechet_distance/", "reconstruction/mse/", "consistency/mse/"), strict=True
    ):
        _draw_curves(panel, run, prefix)
    sliders = sorted(key for key in run.metrics if key.startswith("samples/"))
    for panel, key in zip(panels[2], sliders, strict=False):
        pictures = run.curve(key)
        steps, value = pictures[-1]
        text = f"slider over S: here {steps:g} of {', '.join(f'{s:g}' for s, _ in pictures)}"
        _show(panel, key, files, value, text)
    return figure


def draw_comparison(evaluations: Sequence[tuple[Path, OfflineRun]]) -> Figure:
    """Several evaluations: the shared chart, one curve of all of them, and columns of the run table."""
    figure = _figure("Comparison of evaluations", (14, 7.5))
    grid = figure.add_gridspec(2, 2, height_ratios=[3, 1])
    _draw_chart(figure.add_subplot(grid[0, 0]), "grid/distance_chart", evaluations)
    panel = figure.add_subplot(grid[0, 1])
    key = sorted(key for key in evaluations[0][1].metrics if key.startswith("grid/frechet_distance/"))[0]
    _style(panel, key, evaluations[0][1].metrics[key].step_metric)
    for number, (_, run) in enumerate(evaluations):
        points = sorted(run.curve(key))
        panel.plot(*zip(*points, strict=True), color=COLOURS[number], marker="o", label=run.run.display_name)
    panel.legend(fontsize=8, frameon=False)
    table = figure.add_subplot(grid[1, :])
    table.set_axis_off()
    names = ["Name", "weights", *COLUMNS]
    rows = [
        [run.run.display_name, run.config["subject"]["weights"], *(_text(run.summary.get(name)) for name in COLUMNS)]
        for _, run in evaluations
    ]
    drawn = table.table(cellText=rows, colLabels=names, loc="center", cellLoc="left", colLoc="left", edges="horizontal")
    drawn.auto_set_font_size(False)
    drawn.set_fontsize(10)
    drawn.scale(1, 1.6)
    return figure


def _draw_chart(panel: Axes, key: str, runs: Sequence[tuple[Path, OfflineRun]]) -> None:
    """W&B's line series preset: colour is the run, dashes are the line."""
    for number, (files, run) in enumerate(runs):
        config = run.config["_wandb"]["visualize"][key]["panel_config"]
        table = json.loads((files / run.series(f"{key}_table")[-1]["path"]).read_text())
        x, y, line = (table["columns"].index(config["fieldSettings"][name]) for name in ("step", "lineVal", "lineKey"))
        for dash, label in zip(DASHES, dict.fromkeys(row[line] for row in table["data"]), strict=False):
            points = sorted((row[x], row[y]) for row in table["data"] if row[line] == label)
            name = label if len(runs) == 1 else f"{run.run.display_name}: {label}"
            panel.plot(*zip(*points, strict=True), color=COLOURS[number], linestyle=dash, label=name)
        _style(panel, f"{key}\n{config['stringSettings']['title']}", config["stringSettings"]["xname"])
        panel.set_ylabel(table["columns"][y], fontsize=8)
    panel.legend(fontsize=8, frameon=False)


def _draw_curves(panel: Axes, run: OfflineRun, prefix: str) -> None:
    keys = sorted(key for key in run.metrics if key.startswith(prefix))
    _style(panel, f"{prefix}...", run.metrics[keys[0]].step_metric)
    for number, key in enumerate(keys):
        points = sorted(run.curve(key))
        panel.plot(*zip(*points, strict=True), color=COLOURS[number], marker="o", label=key.removeprefix(prefix))
    panel.legend(fontsize=8, frameon=False)


def _open(directory: Path) -> tuple[Path, OfflineRun]:
    path = offline_files(directory, (directory / "wandb_run_id").read_text().strip())[-1]
    return path.parent / "files", read_offline_run(path)


def _show(panel: Axes, key: str, files: Path, value: Any, text: str) -> None:
    panel.set_axis_off()
    panel.imshow(_picture(files, value))
    panel.set_title(key, fontsize=10, loc="left")
    panel.text(0.5, -0.04, text, transform=panel.transAxes, ha="center", va="top")


def _picture(files: Path, value: Any) -> Image.Image:
    path = value["path"] if "path" in value else value["filenames"][0]
    with Image.open(files / path) as picture:
        return picture.convert("RGB")


def _style(panel: Axes, title: str, xlabel: str) -> None:
    panel.set_title(title, fontsize=10, loc="left")
    panel.set_xlabel(xlabel, fontsize=8)
    panel.tick_params(labelsize=8)
    panel.grid(color="#e5e5e5")
    panel.set_axisbelow(True)
    panel.spines[["top", "right"]].set_visible(False)


def _text(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _figure(title: str, size: tuple[float, float]) -> Figure:
    figure = Figure(figsize=size, dpi=90, facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title, fontsize=13, x=0.01, ha="left")
    return figure


def _save(figure: Figure, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
    with Image.open(path) as picture:
        picture.convert("RGB").quantize(128, dither=Image.Dither.NONE).save(path, optimize=True)


if __name__ == "__main__":
    main()
