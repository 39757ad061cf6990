"""Likelihood, as it is told: bits per dimension of test images, by bound and by flow, and what each timestep costs."""

from __future__ import annotations

from typing import Any

from ddim.findings.labels import curve_key, eta_label, point_key, significant
from ddim.findings.part import Chart, Line, Part, Rows, several, title_of
from ddim.findings.telling import Row, Words

# The kinds of rows; those of a timestep belong to the bound along all of them with the same eta.
BOUND, FLOW, TIMESTEP = "bound", "flow", "timestep"
BITS = "bits per dimension"


def of_kind(rows: Rows, *kinds: str) -> list[Row]:
    return [row for row in rows if row.get("kind") in kinds]


def totals(rows: Rows) -> list[Row]:
    """All but those of single timesteps."""
    return of_kind(rows, BOUND, FLOW)


def _curves(row: Row) -> dict[str, Any]:
    return {f"likelihood/bound/{curve_key(row)}": row["bits_per_dimension"]} if row["kind"] == BOUND else {}


def _summary(rows: Rows, extra: Row) -> dict[str, Any]:
    """`likelihood/bound/eta1.000/linear/steps0010` and `likelihood/flow/truncated_normal`."""
    bounds = {f"likelihood/bound/{point_key(row)}": row["bits_per_dimension"] for row in of_kind(rows, BOUND)}
    flows = {f"likelihood/flow/{row['dequantization']}": row["bits_per_dimension"] for row in of_kind(rows, FLOW)}
    return bounds | flows


def _table(rows: Rows) -> tuple[list[str], list[list[Any]]]:
    found = totals(rows)
    columns = list(dict.fromkeys(key for row in found for key in row if "timesteps" not in key))
    return columns, [[row.get(column) for column in columns] for row in found]


def _charts(rows: Rows) -> list[Chart]:
    each = [(row["timestep"], row["step_bits"], title_of(row)) for row in of_kind(rows, TIMESTEP)]
    title = f"{rows[0].get('dataset', 'images')}: {BITS} of each timestep"
    return [Chart("timesteps_chart", title, ("timestep", BITS, "model"), each)] if each else []


def _words(rows: Rows, extra: Row, words: Words) -> None:
    found = totals(rows)
    first = found[0]
    spacing = several(of_kind(rows, BOUND), "tau")
    words.say(
        f"\nLikelihood of {first['num_images']:,} {first['split']} images: {BITS}, lower is better, "
        "and the standard error over images",
        "bold",
    )
    lines = []
    for row in found:
        lines.append(
            [
                row["kind"],
                eta_label(row),
                *([str(row["tau"])] if spacing else []),
                "-" if row["steps"] is None else str(row["steps"]),
                str(row["nfe"]),
                significant(row["bits_per_dimension"]),
                significant(row["standard_error"], 2),
                *(significant(row.get(name), 3) for name in ("prior", "decoder")),
                row.get("dequantization") or "-",
            ]
        )
    headers = ["of", "η", *(["τ"] if spacing else []), "S", "network calls", BITS, "standard error"]
    words.table([*headers, "prior", "decoder", "dequantization"], lines)
    words.say("prior and decoder are the first and the last of the steps that a bound is the sum of")
    flows = of_kind(rows, FLOW)
    if flows:
        words.say(f"flow: solver's tolerance {flows[0]['tolerance']:g}, one probe per image")
    if any(row["dequantization"] == "uniform" for row in flows):
        words.say(UNIFORM)


UNIFORM = (
    "With uniform dequantization the flow may lie above the bound where many pixels are black or white (half of a "
    "digit's are exactly -1): it pays for both sides of their bins, of which bound and truncated_normal leave the "
    "outer one open."
)


PART = Part(
    name="likelihood",
    title="Likelihood",
    caption="Bits per dimension",
    about="Bits per dimension of test images, lower is better. Bounds are those of the random samplers (η > 0) along "
    f"their τ; the flow's value is that of the deterministic sampler (η = 0) along all timesteps. {UNIFORM}",
    columns={
        "of": ("kind", None),
        "η": ("eta", None),
        "S": ("steps", None),
        "τ": ("tau", None),
        "nfe": ("nfe", None),
        BITS: ("bits_per_dimension", 4),
        "standard error": ("standard_error", 2),
        "prior": ("prior", 3),
        "decoder": ("decoder", 3),
        "dequantization": ("dequantization", None),
        "images": ("num_images", None),
    },
    lines=[
        Line(
            "bits_per_dimension",
            "Bits per dimension against network calls",
            f"{BITS}, lower is better",
            x=("nfe", "nfe", "nfe (network calls per image)"),
        ),
        Line(
            "step_bits",
            "What each timestep adds to the bound along all of them",
            BITS,
            y_log=True,
            x=("timestep", "t", "t, from noise to image"),
            x_log=False,
        ),
    ],
    keys=[
        ("likelihood/bound/<sampler>/<tau>", "curve", "variational bound in bits per dimension"),
        ("likelihood/timesteps_chart", "chart", "bits per dimension that each timestep adds to the bound along all"),
        ("likelihood/results", "table", "likelihood.csv without its rows of single timesteps"),
        ("likelihood/timesteps_chart_table", "table", "what `likelihood/timesteps_chart` is drawn from"),
        ("likelihood/bound/<sampler>/<tau>/<steps>", "summary", "bound of each point, bits per dimension"),
        ("likelihood/flow/<dequantization>", "summary", "likelihood of the flow, bits per dimension"),
    ],
    curves=_curves,
    summary=_summary,
    table=_table,
    charts=_charts,
    words=_words,
    shown_rows=totals,
)
