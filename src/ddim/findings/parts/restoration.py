"""Restoration, as it is told: how good, how varied and how true to the measurement, by method and network calls."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from ddim.findings.labels import eta_label, eta_title, sampler_parts, significant, with_sd
from ddim.findings.part import Chart, Line, Part, Rows, panel, stated
from ddim.findings.telling import Curves, Picture, Row, Single, Strip, Words

PSNR = Line(
    "psnr",
    "Peak signal-to-noise ratio against network calls",
    "PSNR in dB of one draw, higher is better",
    y_log=False,
    x=("calls", "nfe", "nfe (network calls per image)"),
    panel="PSNR of one draw, dB",
)
FEATURES = Line(
    "feature_distance",
    "Distance to the original's features against network calls",
    "distance of features, lower is better",
    y_log=False,
    x=("calls", "nfe", "nfe (network calls per image)"),
    panel="distance of features",
)
RMSE = Line(
    "rmse",
    "Error of missing values against network calls",
    "RMSE in standard deviations of one draw, lower is better",
    x=("calls", "nfe", "nfe (network calls per sample)"),
    panel="RMSE of one draw, standard deviations",
)
GAUSSIAN = "gaussian_posterior_mean"
TRIVIAL = {
    "pseudo_inverse": "pseudo-inverse",
    "bicubic": "bicubic",
    "nearest": "nearest pixel",
    GAUSSIAN: "Gaussian posterior mean",
    "gaussian_mean": "Gaussian posterior mean",  # in files of before it had its whole name
}


def name_of(row: Row) -> str:
    """ "ddrm"; of a method that a sampler runs "pigdm, ddim η = 0"; of an answer without a network what it is."""
    method = str(row.get("method"))
    if not row.get("calls") or row.get("sampler") == method:
        # Of standardised data what is not known is 0, the mean of the training split.
        unknown_is_mean = "rmse" in row and row.get("operator") == "inpainting"
        return "training mean" if method == "pseudo_inverse" and unknown_is_mean else TRIVIAL.get(method, method)
    sampler = " ".join(sampler_parts(row)) or "ddim"
    return f"{method}, {sampler} {eta_title(eta_label(row))}"


def label_of(row: Row, rows: Rows) -> str:
    """`name_of` with what else tells lines of these rows apart: the operator, and the spacing."""
    several = {name: len({str(other.get(name)) for other in rows if other.get("calls")}) > 1 for name in ("tau",)}
    operators = len({str(other.get("operator")) for other in rows}) > 1
    parts = [str(row.get("operator"))] if operators else []
    return ", ".join([*parts, name_of(row), *([f"τ {row.get('tau')}"] if several["tau"] and row.get("calls") else [])])


def by_operator(rows: Rows) -> dict[str, list[Row]]:
    """Rows of one operator together, in order of first appearance."""
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(str(row["operator"]), []).append(row)
    return found


def pictures(
    tasks: Sequence[tuple[Row, Any]], trivial: Sequence[tuple[Row, Any]], truth: Any
) -> Iterator[tuple[str, Picture, str]]:
    """(what, picture, caption). tasks, trivial: rows with images uint8 (n, C, H, W). truth: such images, or None."""
    for operator, members in by_operator([row for row, _ in tasks]).items():
        mine = [(row, images) for row, images in tasks if row["operator"] == operator]
        without = [(row, images) for row, images in trivial if row["operator"] == operator]
        if truth is None:
            yield from _of_a_picture(operator, mine, without)
            continue
        count = min(len(truth), *(len(images) for _, images in [*mine, *without]))
        kind = "samples" if "rmse" in members[0] else "images"
        lines = [(f"original: {members[0]['split']} {kind}", truth[:count])]
        lines += [(f"{name_of(row)}   {_decibels(row)}", images[:count]) for row, images in without]
        lines += [
            (f"{label_of(row, members)}   {row['nfe']} calls   {_decibels(row)}", images[:count])
            for row, images in mine
        ]
        title = f"{members[0].get('dataset', 'images')}: {_measurement(members[0])}, first draws"
        yield f"images-{operator}", Strip(lines, title, breaks=[1, 1 + len(without)]), "originals above restorations"
    if truth is not None:
        yield from _curve_pictures([row for row, _ in tasks], [row for row, _ in trivial])


def _of_a_picture(
    operator: str, mine: Sequence[tuple[Row, Any]], without: Sequence[tuple[Row, Any]]
) -> Iterator[tuple[str, Picture, str]]:
    """All draws of one picture, and the first of each as it is."""
    draws = len(mine[0][1])
    rows = [row for row, _ in mine]
    lines = [(name_of(row), [images[0]] * draws) for row, images in without]
    lines += [(f"{label_of(row, rows)}   {row['nfe']} calls", list(images)) for row, images in mine]
    title = f"Your picture, {_measurement(rows[0])}: {draws} draws of each method"
    yield f"images-{operator}", Strip(lines, title, breaks=[len(without)]), "a picture and its restorations"
    for row, images in mine:
        name = "-".join([*sampler_parts(row), *([] if row["eta"] is None else [f"eta{row['eta']:g}"])])
        what = "-".join(dict.fromkeys([operator, str(row["method"]), *([name] if name != row["method"] else [])]))
        yield f"restored-{what}-steps{row['steps']:04d}", Single(images[0]), label_of(row, rows)


def _curve_pictures(rows: Rows, trivial: Rows) -> Iterator[tuple[str, Picture, str]]:
    for line, what in ((PSNR, "psnr"), (FEATURES, "features"), (RMSE, "rmse")):
        panels = []
        for operator, members in by_operator([row for row in rows if line.column in row]).items():
            curves: dict[str, list[Row]] = {}
            for row in members:
                curves.setdefault(label_of(row, members), []).append(row)
            level = next(
                (row[line.column] for row in trivial if (row["operator"], row["method"]) == (operator, GAUSSIAN)), None
            )
            drawn = panel(line, curves)
            error = f"{line.column}_standard_error"
            bars = {
                label: [(row[line.x[0]], row[line.column], row[error]) for row in of_line if row.get(error)]
                for label, of_line in curves.items()
            }
            text = f"{operator}: {line.panel}"
            known = None if level is None else (level, TRIVIAL[GAUSSIAN])
            panels.append(replace(drawn, ylabel=text, level=known, bars=bars, from_zero=line is not PSNR))
        if panels:
            first = rows[0]
            about = {"σ_y": f"{first['sigma_y']:g}", "weights": first.get("weights"), "seed": first.get("seed")}
            title = (
                f"{first.get('dataset', 'images')}: restorations of {first['num_images']:,} held-out "
                f"{'samples' if 'rmse' in first else 'images'}, "
                f"{'PSNR against network calls' if what == 'psnr' else line.title.lower()}"
            )
            yield what, Curves(panels, title, stated(about)), line.title


def _measurement(row: Row) -> str:
    return f"{row['operator']}, noise σ_y = {row['sigma_y']:g}" if row["sigma_y"] else f"{row['operator']}, no noise"


def _decibels(row: Row) -> str:
    if row.get("rmse") is not None:
        return f"RMSE {row['rmse']:.2f}"
    return f"{row['psnr']:.1f} dB" if row.get("psnr") is not None else ""


def _key(row: Row) -> str:
    """`inpainting/ddrm`, `inpainting/pigdm/ddim/eta0.000`."""
    own = row.get("sampler") == row["method"] or not row.get("calls")
    parts = [] if own else [*(sampler_parts(row) or ["ddim"]), f"eta{row['eta']:.3f}"]
    return "/".join([str(row["operator"]), str(row["method"]), *parts])


OF_IMAGES = ("psnr", "psnr_of_mean", "ssim", "feature_distance", "frechet_distance")
NUMBERS = (*OF_IMAGES, "rmse", "rmse_of_mean", "energy_distance", "consistency", "spread")


def _curves(row: Row) -> dict[str, Any]:
    if not row.get("calls"):
        return {}
    return {f"restoration/{name}/{_key(row)}": row[name] for name in NUMBERS if row.get(name) is not None}


def _summary(rows: Rows, extra: Row) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for row in rows:
        steps = f"/steps{row['steps']:04d}" if row.get("steps") else ""
        found |= {f"restoration/{name}/{_key(row)}{steps}": row[name] for name in NUMBERS if row.get(name) is not None}
    return found


def _charts(rows: Rows) -> list[Chart]:
    points = [(row["calls"], row["psnr"], label_of(row, rows)) for row in rows if row.get("calls") and "psnr" in row]
    title = f"{rows[0].get('dataset', 'images')}: PSNR of restorations against network calls"
    return [Chart("psnr_chart", title, ("nfe", "PSNR", "method"), points)] if points else []


def _words(rows: Rows, extra: Row, words: Words) -> None:
    first = next(row for row in rows if row.get("calls"))
    kind = "samples" if "rmse" in first else "images"
    whose = "a picture" if first["split"] is None else f"{first['num_images']:,} {first['split']} {kind}"
    for members in by_operator(rows).values():
        draws = first["draws"]
        words.say(f"\nRestoration of {whose}, {draws} draws each: {_measurement(members[0])}", "bold")
        lines, known = [], any("psnr" in row or "rmse" in row for row in members)
        for row in members:
            measured = (
                _of_values(row)
                if kind == "samples"
                else [
                    with_sd(row.get("psnr"), row.get("psnr_standard_error")),
                    significant(row.get("psnr_of_mean")),
                    significant(row.get("ssim"), 3),
                    with_sd(row.get("feature_distance"), row.get("feature_distance_standard_error"), 3),
                    with_sd(row.get("frechet_distance"), row.get("frechet_distance_sd"), 3),
                ]
            )
            lines.append(
                [
                    label_of(row, members),
                    str(row["nfe"]),
                    *(measured if known else []),
                    significant(row["consistency"], 2),
                    significant(row.get("spread"), 2),
                    significant(row.get("milliseconds_per_image"), 2),
                ]
            )
        told = ["PSNR", "of the mean", "SSIM", "features", "FD"] if known else []
        told = ["RMSE", "of the mean", "energy distance"] if kind == "samples" else told
        words.table(["method", "calls", *told, "|Ax−y|", "spread", "ms"], lines)
    if kind == "samples":
        counts = {name: members[0]["missing"] for name, members in by_operator(rows).items()}
        missing = ", ".join(f"{count} ({name})" for name, count in counts.items() if count)
        words.say(f"Missing values of each sample: {missing}. {OF_VALUES}" if missing else OF_VALUES)
        return
    words.say(ABOUT if first["split"] is not None else f"|Ax−y| is {CONSISTENCY}")


def _of_values(row: Row) -> list[str]:
    """Cells of a row of data that are no images."""
    return [
        with_sd(row["rmse"], row["rmse_standard_error"], 3),
        with_sd(row["rmse_of_mean"], row["rmse_of_mean_standard_error"], 3),
        with_sd(row.get("energy_distance"), row.get("energy_distance_sd"), 3),
    ]


OF_VALUES = (
    "RMSE of missing values (of all, where none is) in standard deviations of the training data, with the standard "
    "error over samples; a draw of the exact posterior errs by √2 of what its mean does. Energy distance of the "
    "completed first draws to the reference. |Ax−y| and spread in standard deviations."
)
CONSISTENCY = "the root mean square on [0, 1], of exact answers σ_y; spread the deviation over the draws"
ABOUT = (
    "PSNR (dB) and SSIM on [0, 1] of stored images, with the standard error over images; a perfect draw lies 3 dB "
    "below the best mean. Features: distance to the original's. FD: Fréchet distance of the set of first draws to the "
    f"reference. The Gaussian of the posterior mean is fitted to training images. |Ax−y| is {CONSISTENCY}; "
    "ms per draw of an image."
)

PART = Part(
    name="restoration",
    title="Restoration",
    caption="Restorations",
    about="Held-out images are damaged, and restored by methods that know the damage with a network that does not. "
    + f"{ABOUT} Of data that are no images: {OF_VALUES}",
    columns={
        "operator": ("operator", None),
        "method": ("method", None),
        "sampler": ("sampler", None),
        "η": ("eta", None),
        "τ": ("tau", None),
        "S": ("steps", None),
        "nfe": ("nfe", None),
        "PSNR": ("psnr", 4),
        "± of PSNR": ("psnr_standard_error", 2),
        "PSNR of the mean": ("psnr_of_mean", 4),
        "SSIM": ("ssim", 3),
        "distance of features": ("feature_distance", 3),
        "FD": ("frechet_distance", 3),
        "± of FD": ("frechet_distance_sd", 2),
        "RMSE": ("rmse", 3),
        "± of RMSE": ("rmse_standard_error", 2),
        "RMSE of the mean": ("rmse_of_mean", 3),
        "energy distance": ("energy_distance", 3),
        "± of it": ("energy_distance_sd", 2),
        "|Ax−y|": ("consistency", 2),
        "spread": ("spread", 2),
        "ms per image": ("milliseconds_per_image", 2),
    },
    pictures=["restoration-images*.png", "restoration-restored*.png"],
    lines=[PSNR, FEATURES, RMSE],
    keys=[
        (
            "restoration/<number>/<operator>/<method>",
            "curve",
            "psnr, ssim, consistency, ... of a method's restorations",
        ),
        ("restoration/psnr_chart", "chart", "PSNR against the network calls, one line per operator and method"),
        ("restoration/results", "table", "restoration.csv"),
        ("restoration/psnr_chart_table", "table", "what `restoration/psnr_chart` is drawn from"),
        ("restoration/images-<operator>", "picture", "originals above restorations"),
        ("restoration/restored-<method>", "picture", "a picture of one's own, restored"),
        ("restoration/psnr", "picture", "PSNR against network calls"),
        ("restoration/features", "picture", "distance of features to the original's against network calls"),
        ("restoration/rmse", "picture", "error of missing values against network calls"),
        ("restoration/<number>/<operator>/<method>/<steps>", "summary", "the same of each S"),
    ],
    curves=_curves,
    summary=_summary,
    charts=_charts,
    words=_words,
    label=label_of,
)
