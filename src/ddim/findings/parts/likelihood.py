"""Likelihood, as it is told: bits per dimension of test images, by bound and by flow, and what each timestep costs; of
data that are no images the log-density in nats."""

from __future__ import annotations

from typing import Any

from ddim.findings.labels import curve_key, eta_label, point_key, significant, with_sd
from ddim.findings.part import Chart, Line, Part, Rows, several, title_of
from ddim.findings.telling import Densities, Row, Words

# The kinds of rows; those of a timestep belong to the bound along all of them with the same eta.
BOUND, FLOW, TIMESTEP = "bound", "flow", "timestep"
BITS = "bits per dimension"
# What a row is about: lower is better of the first, higher of the second.
IN_BITS, IN_NATS = "bits_per_dimension", "log_density"


def of_kind(rows: Rows, *kinds: str) -> list[Row]:
    return [row for row in rows if row.get("kind") in kinds]


def totals(rows: Rows) -> list[Row]:
    """All but those of single timesteps."""
    return of_kind(rows, BOUND, FLOW)


def in_nats(row: Row) -> bool:
    """Whether a row is of data that are no images."""
    return IN_NATS in row


def _value(row: Row) -> Any:
    return row[IN_NATS if in_nats(row) else IN_BITS]


def _curves(row: Row) -> dict[str, Any]:
    if row["kind"] != BOUND:
        return {}
    return {f"likelihood/{'log_density' if in_nats(row) else 'bound'}/{curve_key(row)}": _value(row)}


def _summary(rows: Rows, extra: Row) -> dict[str, Any]:
    """`likelihood/bound/eta1.000/linear/steps0010` and `likelihood/flow/truncated_normal`; nats below `log_density`."""
    found = {}
    for row in totals(rows):
        which = "flow" if row["kind"] == FLOW else point_key(row)
        if in_nats(row):
            found[f"likelihood/log_density/{which}"] = _value(row)
            if row.get("difference") is not None:
                found[f"likelihood/difference/{which}"] = row["difference"]
        else:
            how = f"flow/{row['dequantization']}" if row["kind"] == FLOW else f"bound/{which}"
            found[f"likelihood/{how}"] = _value(row)
    return found


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
    if in_nats(found[0]):
        _words_in_nats(found, words)
        return
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


def _words_in_nats(found: Rows, words: Words) -> None:
    first, spacing = found[0], several(of_kind(found, BOUND), "tau")
    words.say(
        f"\nLikelihood of {first['num_images']:,} {first['split']} samples: log-density in nats per sample, in the "
        "data's own units, higher is better",
        "bold",
    )
    exact = any(row.get("exact") is not None for row in found)
    lines = []
    for row in found:
        line = [
            row["kind"],
            eta_label(row),
            *([str(row["tau"])] if spacing else []),
            "-" if row["steps"] is None else str(row["steps"]),
            str(row["nfe"]),
            with_sd(row[IN_NATS], row["standard_error"]),
        ]
        if exact:
            line += [
                significant(row["exact"]),
                with_sd(row["difference"], row["difference_standard_error"], 3),
                significant(row["difference_rms"], 3),
                significant(row["correlation"], 4),
            ]
        lines.append(line)
    headers = ["of", "η", *(["τ"] if spacing else []), "S", "network calls", "log-density"]
    words.table([*headers, *(["exact", "minus exact", "RMS of it", "correlation"] if exact else [])], lines)
    words.say(f"{NATS} +- are standard errors over samples." + (f" {EXACT}" if exact else ""))


NATS = (
    "A bound (η > 0) lies below the log-density of its sampler; the flow's value is the deterministic sampler's "
    "(η = 0) along all timesteps, standardisation included."
)
EXACT = "Minus exact: sample by sample, the learnt log-density minus the true one at the same samples."


def densities(
    dataset: str, learnt: Any, exact: Any, points: Any, square: tuple[float, float, float, float]
) -> tuple[str, Densities, str]:
    """(what, picture, caption) of maps (k, k) of the log-density over `square`; exact: None where nobody knows it."""
    panels, difference = [("learnt, by the flow", learnt)], None
    if exact is not None:
        panels.append(("exact", exact))
        difference = ("learnt minus exact", learnt - exact)
    title = (
        f"{dataset}: log-density in nats, learnt {'beside exact' if exact is not None else 'beside held-out points'}"
    )
    return "density", Densities(panels, square, points, title, difference), "log-density over the plane"


UNIFORM = (
    "With uniform dequantization the flow may lie above the bound where many pixels are black or white (half of a "
    "digit's are exactly -1): it pays for both sides of their bins, of which bound and truncated_normal leave the "
    "outer one open."
)


PART = Part(
    name="likelihood",
    title="Likelihood",
    caption="Likelihood of held-out data",
    about="Bits per dimension of test images, lower is better; of data that are no images nats per sample in their own "
    "units, higher is better. Bounds are those of the random samplers (η > 0) along their τ; the flow's value is that "
    f"of the deterministic sampler (η = 0) along all timesteps. {UNIFORM}",
    columns={
        "of": ("kind", None),
        "η": ("eta", None),
        "S": ("steps", None),
        "τ": ("tau", None),
        "nfe": ("nfe", None),
        BITS: ("bits_per_dimension", 4),
        "log-density": (IN_NATS, 4),
        "standard error": ("standard_error", 2),
        "exact": ("exact", 4),
        "minus exact": ("difference", 3),
        "± of it": ("difference_standard_error", 2),
        "RMS of it": ("difference_rms", 3),
        "correlation": ("correlation", 4),
        "prior": ("prior", 3),
        "decoder": ("decoder", 3),
        "dequantization": ("dequantization", None),
        "images": ("num_images", None),
    },
    pictures=["likelihood-density.png"],
    lines=[
        Line(
            "bits_per_dimension",
            "Bits per dimension against network calls",
            f"{BITS}, lower is better",
            x=("nfe", "nfe", "nfe (network calls per image)"),
        ),
        Line(
            IN_NATS,
            "Log-density against network calls",
            "bound in nats per sample, higher is better",
            y_log=False,
            x=("nfe", "nfe", "nfe (network calls per sample)"),
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
        ("likelihood/log_density/<sampler>/<tau>", "curve", "bound of the log-density, nats per sample"),
        ("likelihood/log_density/<sampler>/<tau>/<steps>", "summary", "the same of each point"),
        ("likelihood/log_density/flow", "summary", "log-density of the flow, nats per sample"),
        ("likelihood/difference/<sampler>/<tau>/<steps>", "summary", "a bound minus the exact log-density, nats"),
        ("likelihood/difference/flow", "summary", "learnt minus exact log-density, nats per sample"),
        ("likelihood/density", "picture", "learnt log-density over the plane beside the exact one"),
    ],
    curves=_curves,
    summary=_summary,
    table=_table,
    charts=_charts,
    words=_words,
    shown_rows=totals,
)
