"""The parts of an evaluation besides the grid, as a report shows them: text, table, charts and pictures of each."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from ddim.report.reading import Row
from ddim.report.tables import eta_of


@dataclass(frozen=True)
class Line:
    """A chart of `column` against `x`.

    `level` is a horizontal line: a value, or the column that has it, and what it is.
    """

    column: str
    title: str
    y_label: str
    level: tuple[str | float, str] | None = None
    y_log: bool | None = None
    x: tuple[str, str, str] = ("steps", "S", "S (sampling steps)")
    x_log: bool = True


@dataclass(frozen=True)
class Section:
    """What is shown of a part.

    Attributes:
        caption: of the table.
        columns: heading -> (column, significant digits); those with None digits say what a row is of.
        pictures, animations: patterns of file names.
        rows: which rows the table has, where not all.
        closing: a further row of the table, from what the file holds beside the rows.
    """

    part: str
    title: str
    caption: str
    about: str
    columns: Mapping[str, tuple[str, int | None]]
    pictures: Sequence[str]
    lines: Sequence[Line] = ()
    animations: str = ""
    rows: Callable[[Sequence[Row]], Sequence[Row]] = list
    closing: tuple[str, str] | None = None


def _quarters(rows: Sequence[Row]) -> list[Row]:
    """Of each trajectory the steps at a quarter, half, three quarters and the whole of the way."""
    lines: dict[tuple[str, str, str], list[Row]] = {}
    for row in rows:
        lines.setdefault((eta_of(row), str(row.get("tau")), str(row.get("steps"))), []).append(row)
    return [line[round(share * (len(line) - 1))] for line in lines.values() for share in (0, 0.25, 0.5, 0.75, 1)]


_ETA = "η"
SECTIONS = (
    Section(
        "reconstruction",
        "Reconstruction",
        "Errors",
        "Real images encoded to x_T and decoded with the same S, η = 0. "
        "The error is the mean squared error per dimension on [0, 1] (the paper's Table 2).",
        {
            "S": ("steps", None),
            "τ": ("tau", None),
            "images": ("num_images", None),
            "MSE": ("mse_per_dimension", 3),
            "seconds": ("seconds", 3),
        },
        ["reconstruction-images*.png"],
        [Line("mse_per_dimension", "Reconstruction error against S", "mean squared error per dimension")],
    ),
    Section(
        "consistency",
        "Consistency",
        "Distances to the images of the largest S",
        "The same x_T decoded with different S, compared with the images of the largest S.",
        {
            _ETA: ("eta", None),
            "S": ("steps", None),
            "τ": ("tau", None),
            "compared with S": ("reference_steps", None),
            "MSE": ("mse", 3),
            "SSIM": ("ssim", 3),
            "feature distance": ("feature_distance_relative", 3),
        },
        ["consistency-images*.png"],
        [
            Line(
                "mse",
                "Pixels: distance to the largest S",
                "mean squared error on [0, 1]",
                ("mse_between_samples", "two different samples"),
            ),
            Line(
                "feature_distance_relative",
                "Features: distance to the largest S",
                "relative feature distance",
                (1.0, "two different samples"),
            ),
        ],
    ),
    Section(
        "interpolation",
        "Interpolation",
        "Along the lines",
        "Slerp between the latents of two samples, η = 0. Jumps are mean squared errors between neighbouring images; "
        "a largest jump of 1 of the ends' distance is a line that changes at one place only.",
        {
            "line": ("line", None),
            "S": ("steps", None),
            "τ": ("tau", None),
            "MSE of ends": ("mse_ends", 3),
            "mean jump": ("mse_mean_jump", 3),
            "largest jump": ("mse_largest_jump", 3),
            "largest / ends": ("largest_jump_share", 3),
        },
        ["interpolation-lines*.png", "interpolation-corners*.png"],
    ),
    Section(
        "trajectory",
        "Trajectory",
        "On the way",
        "The predicted x_0 along the way from noise to image, and its mean squared error on [0, 1] to the final image.",
        {
            _ETA: ("eta", None),
            "S": ("steps", None),
            "τ": ("tau", None),
            "step": ("step", None),
            "t": ("timestep", None),
            "MSE to the final image": ("mse_to_final", 3),
        },
        ["trajectory-*.png"],
        [
            Line(
                "mse_to_final",
                "Distance of the predicted x_0 from the final image",
                "mean squared error on [0, 1]",
                y_log=False,
                x=("timestep", "t", "t, from noise to image"),
                x_log=False,
            )
        ],
        "trajectory-*.gif",
        _quarters,
    ),
    Section(
        "diversity",
        "Diversity",
        "Distances from real images",
        "How near samples are to the real images of the reference. Copy ratio: the share that is no farther from one "
        "of them than the nearest 1% of held-out images; 0.01 where nothing is copied.",
        {
            _ETA: ("eta", None),
            "S": ("steps", None),
            "τ": ("tau", None),
            "images": ("num_samples", None),
            "precision": ("precision", 3),
            "recall": ("recall", 3),
            "spread": ("relative_spread", 3),
            "nearest: median": ("nearest_median", 3),
            "nearest 1%": ("nearest_percentile_1", 3),
            "copy ratio": ("copy_ratio", 3),
        },
        ["diversity-neighbours-*.png"],
        closing=("held_out", "real held-out images"),
    ),
)
