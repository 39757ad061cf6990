"""Consistency, as it is told: distances to the images of the largest S from the same latents."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ddim.findings.labels import curve_key, eta_label, point_key, significant
from ddim.findings.part import Line, Part, Rows, by_curve, in_unit, numbers, panel, several, stated, suffix, title_of
from ddim.findings.telling import Curves, Picture, Row, Strip, Words

# Columns that go to the loggers as single numbers.
NUMBERS = ("mse", "ssim", "feature_distance_relative")
LINES = (
    Line(
        "mse",
        "Pixels: distance to the largest S",
        "mean squared error on [0, 1]",
        ("mse_between_samples", "two different samples"),
        panel="pixels: mean squared error on [0, 1]",
    ),
    Line(
        "feature_distance_relative",
        "Features: distance to the largest S",
        "relative feature distance",
        (1.0, "two different samples"),
        panel="features: relative distance",
    ),
)


def pictures(rows: Rows, images: Mapping[Any, Any]) -> Iterator[tuple[str, Picture, str]]:
    """(what, picture, caption). images: point -> its first images; points of one η and τ stand together, by S."""
    data = rows[0].get("dataset", "samples")
    for tau in dict.fromkeys(row["tau"] for row in rows):
        order = [point for point in images if point.tau == tau]
        breaks = [n for n, point in enumerate(order) if n == 0 or curve_key(point) != curve_key(order[n - 1])]
        lines = [(f"{title_of(point)}   S = {point.steps}", images[point]) for point in order]
        strip = Strip(lines, f"{data}: each column starts from the same latent", breaks=breaks)
        yield f"images{suffix(tau, rows)}", strip, "the same x_T at every S"
        yield f"distance{suffix(tau, rows)}", _figure([row for row in rows if row["tau"] == tau], data), ""


def _figure(rows: Rows, data: str) -> Curves:
    row = rows[0]
    curves = {title_of(members[0]): members for members in by_curve(rows).values()}
    about = {"weights": row.get("weights"), "τ": row["tau"], "seed": row.get("seed"), "features": row["features"]}
    # The relative distance begins at 0 in the figure, where the page lets the values decide.
    panels = [panel(LINES[0], curves), panel(LINES[1], curves)]
    panels[1] = type(panels[1])(panels[1].ylabel, panels[1].lines, log=False, level=panels[1].level)
    title = (
        f"{data}: images of S steps against those of {row['reference_steps']} "
        f"from the same latents, {row['num_images']:,} samples"
    )
    return Curves(panels, title, stated(about))


def closer(rows: Rows) -> list[tuple[Row, float | None]]:
    """How many times larger than at eta = 0 the MSE is at another eta: at the second largest S, for each tau.

    None where there is no error at eta = 0.
    """
    last = {curve_key(row): row for row in sorted(rows, key=lambda row: row["steps"])}
    still = {row["tau"]: row for row in last.values() if eta_label(row) == "0"}
    ratios: list[tuple[Row, float | None]] = []
    for row in last.values():
        beside = still.get(row["tau"])
        if beside is not None and eta_label(row) != "0":
            ratios.append((row, row["mse"] / beside["mse"] if beside["mse"] > 0 else None))
    return ratios


def _curves(row: Row) -> dict[str, Any]:
    return {f"consistency/{name}/{curve_key(row)}": row[name] for name in NUMBERS}


def _summary(rows: Rows, extra: Row) -> dict[str, Any]:
    """`consistency/mse/eta0.000/linear/steps0010`, and how many times closer eta = 0 is than each other eta."""
    ratios = {f"consistency/mse_over_eta0/{point_key(row)}": ratio for row, ratio in closer(rows)}
    known = {key: ratio for key, ratio in ratios.items() if ratio is not None}
    return numbers(rows, NUMBERS, point_key, "consistency") | known


def _words(rows: Rows, extra: Row, words: Words) -> None:
    spacing = several(rows, "tau")
    words.say(
        f"\nConsistency of {rows[0]['num_images']:,} samples: distance to the images of the largest S "
        "from the same x_T",
        "bold",
    )
    for members in by_curve(rows).values():
        row = members[0]
        of_tau = f", {row['tau']} τ" if spacing else ""
        words.say(
            f"{title_of(row)}{of_tau}, to S = {row['reference_steps']} "
            f"(two different samples: MSE {significant(row['mse_between_samples'], 3)}, feature distance 1)"
        )
        lines = [
            [
                str(row["steps"]),
                significant(row["mse"], 3),
                significant(None) if row["ssim"] is None else f"{row['ssim']:.3f}",
                significant(row["feature_distance_relative"], 3),
                significant(row["seconds"], 3),
            ]
            for row in sorted(members, key=lambda row: row["steps"])
        ]
        words.table(["S", "MSE", "SSIM", "feature distance", "seconds"], lines)
        words.say()
    alike = "MSE" if rows[0]["ssim"] is None else "MSE and SSIM"
    words.say(f"{in_unit(f'{alike} of pixels on [0, 1]', rows)}, distance of {rows[0]['features']} features")
    for row, ratio in closer(rows):
        of_tau = f", {row['tau']} τ" if spacing else ""
        where = f"(MSE, S={row['steps']} to S={row['reference_steps']}{of_tau})"
        how = "at no distance" if ratio is None else f"{significant(ratio, 3)} times closer than"
        words.say(f"η = 0 is {how} {'' if ratio is None else title_of(row) + ' '}{where}")


PART = Part(
    name="consistency",
    title="Consistency",
    caption="Distances to the images of the largest S",
    about="The same x_T decoded with different S, compared with the images of the largest S.",
    columns={
        "η": ("eta", None),
        "S": ("steps", None),
        "τ": ("tau", None),
        "compared with S": ("reference_steps", None),
        "MSE": ("mse", 3),
        "SSIM": ("ssim", 3),
        "feature distance": ("feature_distance_relative", 3),
    },
    pictures=["consistency-images*.png"],
    lines=LINES,
    keys=[
        (
            "consistency/<distance>/<sampler>/<tau>",
            "curve",
            "distance to the images of the largest S from the same latents",
        ),
        ("consistency/results", "table", "consistency.csv"),
        ("consistency/images<-tau>", "picture", "the same latents under every S and η"),
        ("consistency/distance<-tau>", "picture", "distance to the largest S against S"),
        (
            "consistency/<distance>/<sampler>/<tau>/<steps>",
            "summary",
            "distance to the largest S; `mse_over_eta0`: ratio to η = 0",
        ),
    ],
    curves=_curves,
    summary=_summary,
    words=_words,
)
