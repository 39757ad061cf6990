"""Convergence, as it is told: the distance to samples of very many calls, against the calls."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from ddim.findings.labels import curve_key, eta_label, point_key, sampler_parts, significant
from ddim.findings.part import Chart, Line, Part, Rows, by_curve, in_unit, numbers, panel, several, stated, title_of
from ddim.findings.telling import Curves, Picture, Row, Strip, Words

RMSE = Line(
    "rmse",
    "Distance to samples of very many calls",
    "pixel RMSE on [0, 1]",
    y_log=True,
    x=("nfe", "nfe", "nfe (network calls per image)"),
    panel="root mean squared error of pixels on [0, 1]",
)


def pictures(rows: Rows, images: Sequence[Any], reference: Any) -> Iterator[tuple[str, Picture, str]]:
    """(what, picture, caption): the reference's images (n, C, H, W) above those of each of the rows."""
    first = rows[0]
    lines, breaks = [(f"ddim   {first['reference_steps']:,} calls", reference)], []
    for members in by_curve(rows).values():
        breaks.append(len(lines))
        name = setting(members[0], rows)
        for row in sorted(members, key=lambda row: row["nfe"]):
            text = f"{name}   {row['nfe']} calls   RMSE {significant(row['rmse'], 2)}"
            lines.append((text, images[rows.index(row)]))
    title = f"{first.get('dataset', 'samples')}: each column starts from the same latent"
    yield "images", Strip(lines, title, breaks=breaks), "the same x_T with few and with very many calls"
    curves = {setting(members[0], rows): members for members in by_curve(rows).values()}
    title = (
        f"{first.get('dataset', 'samples')}: distance to the images of {first['reference_steps']:,} network calls "
        f"from the same latents, {first['num_images']:,} samples"
    )
    about = {"weights": first.get("weights"), "precision": first["compute_precision"], "seed": first.get("seed")}
    yield "error", Curves([panel(RMSE, curves)], title, stated(about)), "error against network calls"


def setting(row: Row, rows: Rows) -> str:
    """ "heun order2, τ karras": what tells a curve from the others."""
    name = " ".join(sampler_parts(row)) or "ddim"
    eta = [title_of(row)] if eta_label(row) != "0" else []
    return ", ".join([name, *eta, *([f"τ {row['tau']}"] if several(rows, "tau") else [])])


def closest(rows: Rows) -> list[Row]:
    """Of all rows with as many calls the one that is closest, where there are several."""
    found = []
    for calls in dict.fromkeys(row["nfe"] for row in rows):
        members = [row for row in rows if row["nfe"] == calls and not row["draws_noise"]]
        if len(members) > 1:
            found.append(min(members, key=lambda row: row["rmse"]))
    return found


def _curves(row: Row) -> dict[str, Any]:
    return {f"convergence/rmse/{curve_key(row)}": row["rmse"]}


def _summary(rows: Rows, extra: Row) -> dict[str, Any]:
    """`convergence/rmse/eta0.000/linear/steps0010`."""
    return numbers(rows, ["rmse"], point_key, "convergence")


def _charts(rows: Rows) -> list[Chart]:
    points = [(row["nfe"], row["rmse"], setting(row, rows)) for row in rows]
    title = f"{rows[0].get('dataset', 'samples')}: RMSE to {rows[0]['reference_steps']:,} calls of the same latents"
    return [Chart("rmse_chart", title, ("nfe", "RMSE", "sampler"), points)]


def _words(rows: Rows, extra: Row, words: Words) -> None:
    first = rows[0]
    words.say(
        f"\nConvergence of {first['num_images']:,} samples: {in_unit('RMSE of pixels on [0, 1]', rows)}, unclipped, to "
        f"those of DDIM with η = 0 and S = {first['reference_steps']:,} from the same x_T",
        "bold",
    )
    best = closest(rows)
    lines = []
    for members in by_curve(rows).values():
        for row in sorted(members, key=lambda row: row["nfe"]):
            mark = "*" if any(row is other for other in best) else ""
            lines.append(
                [
                    setting(row, rows),
                    str(row["steps"]),
                    str(row["nfe"]),
                    mark + significant(row["rmse"], 3),
                    significant(row["rmse_standard_error"], 2),
                    significant(row["seconds"], 3),
                ]
            )
    marked = [line[3] for line in lines if line[3].startswith("*")]
    words.table(["sampler", "S", "network calls", "RMSE", "standard error", "seconds"], lines, best=marked)
    if best:
        words.say("* closest of its number of calls")
    noisy = list(dict.fromkeys(setting(row, rows) for row in rows if row["draws_noise"]))
    if noisy:
        words.say(
            f"{'; '.join(noisy)}: draws noise, which makes another image of the same latent; its distance is no "
            "solver's error and does not go to 0"
        )


PART = Part(
    name="convergence",
    title="Convergence",
    caption="Distances to samples of very many calls",
    about="The same x_T with few calls, compared with DDIM (η = 0) of very many: the root of the mean squared error of "
    "pixels on [0, 1], unclipped. For a sampler that draws no noise it is the error of its solver alone, goes down "
    "with the calls as far as the reference's own error, and says nothing of how good the images are; a sampler that "
    "draws noise stays away.",
    columns={
        "sampler": ("sampler", None),
        "η": ("eta", None),
        "S": ("steps", None),
        "τ": ("tau", None),
        "nfe": ("nfe", None),
        "RMSE": ("rmse", 3),
        "standard error": ("rmse_standard_error", 2),
        "draws noise": ("draws_noise", None),
    },
    pictures=["convergence-images*.png"],
    lines=[RMSE],
    keys=[
        ("convergence/rmse/<sampler>/<tau>", "curve", "pixel RMSE on [0, 1] to samples of very many calls"),
        ("convergence/rmse_chart", "chart", "the same against the network calls, one line per sampler"),
        ("convergence/results", "table", "convergence.csv"),
        ("convergence/rmse_chart_table", "table", "what `convergence/rmse_chart` is drawn from"),
        ("convergence/images", "picture", "the same latents with few and with very many calls"),
        ("convergence/error", "picture", "distance to samples of very many calls against the calls"),
        ("convergence/rmse/<sampler>/<tau>/<steps>", "summary", "RMSE of each point"),
    ],
    curves=_curves,
    summary=_summary,
    charts=_charts,
    words=_words,
)
