"""Trajectories, as they are told: the predicted x_0 on the way from noise to image."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ddim.findings.labels import Setting, eta_label, noise_key, point_key, significant
from ddim.findings.part import Line, Part, Rows, in_unit, several, title_of
from ddim.findings.telling import Animation, Flow, Picture, Row, Strip, Words

# Shares of the way at which the terminal says how far the prediction still is from the final image.
REPORTED = (0.0, 0.25, 0.5, 0.75, 1.0)


def pictures(
    point: Setting,
    timesteps: Sequence[int],
    seen: Mapping[int, Any],
    columns: Sequence[int],
    frames: Sequence[int],
    milliseconds: int,
    data: str,
    suffix: str,
) -> Iterator[tuple[str, Picture, str]]:
    """(what, picture, caption) of one point.

    timesteps: from the noisiest on. seen: step -> the predicted images (N, C, H, W). columns, frames: the steps in the
    strip and in the animation. suffix: tells the pictures of several points apart.
    """
    title = title_of(point)
    strip = Strip(
        [(f"sample {number}", [seen[step][number] for step in columns]) for number in range(len(seen[columns[0]]))],
        f"The predicted x_0 along the way: {data}, {title}, S = {point.steps}",
        [f"t = {timesteps[step]}" for step in columns],
    )
    what, caption = f"{noise_key(point)}{suffix}", f"{title}, S {point.steps}"
    yield what, strip, caption
    labels = [f"{title}, t = {timesteps[step]}" for step in frames]
    yield what, Animation([seen[step] for step in frames], labels, milliseconds), caption


def flow(ways: Sequence[tuple[Setting, Any]], real: Any, data: str) -> tuple[str, Picture, str]:
    """(what, picture, caption) of the ways that points of the plane take at each of the settings.

    ways: (point, states (n, steps + 1, 2)). real: (m, 2), of the data, in the model's space as the states are.
    """
    several_s = len({point.steps for point, _ in ways}) > 1
    panels = [(f"{title_of(point)}{f', S = {point.steps}' if several_s else ''}", paths) for point, paths in ways]
    steps = "" if several_s else f", S = {ways[0][0].steps}"
    title = f"From the same noise to {data}{steps}: circles are x_T, dots where samples arrive"
    return "flow", Flow(panels, real, title), "the ways of samples from noise to data"


def _by_point(rows: Rows) -> dict[str, list[Row]]:
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(point_key(row), []).append(row)
    return found


def _quarters(rows: Rows) -> list[Row]:
    """Of each trajectory the steps at a quarter, half, three quarters and the whole of the way."""
    lines: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        # What a file holds may be anybody's.
        lines.setdefault((title_of(row), str(row.get("tau")), str(row.get("steps"))), []).append(row)
    return [line[round(share * (len(line) - 1))] for line in lines.values() for share in REPORTED]


def _summary(rows: Rows, extra: Row) -> dict[str, Any]:
    """The error half way; the last one is 0 by definition."""
    return {
        f"trajectory/mse_half_way/{key}": members[(len(members) - 1) // 2]["mse_to_final"]
        for key, members in _by_point(rows).items()
    }


def _words(rows: Rows, extra: Row, words: Words) -> None:
    spacing = several(rows, "tau")
    table = []
    for members in _by_point(rows).values():
        first = members[0]
        chosen = [members[round(share * (len(members) - 1))] for share in REPORTED]
        label = [eta_label(first), *([first["tau"]] if spacing else [])]
        table.append([*label, str(first["steps"]), *(significant(row["mse_to_final"], 3) for row in chosen)])
    headers = ["η", *(["τ"] if spacing else []), "S", *(f"{share:.0%} of the way" for share in REPORTED)]
    words.say(in_unit("\nTrajectory: MSE on [0, 1] between the predicted x_0 and the final image", rows))
    words.table(headers, table)


PART = Part(
    name="trajectory",
    title="Trajectory",
    caption="On the way",
    about="The predicted x_0 along the way from noise to image, and its mean squared error on [0, 1] to the final "
    "image.",
    columns={
        "η": ("eta", None),
        "S": ("steps", None),
        "τ": ("tau", None),
        "step": ("step", None),
        "t": ("timestep", None),
        "MSE to the final image": ("mse_to_final", 3),
    },
    pictures=["trajectory-*.png"],
    lines=[
        Line(
            "mse_to_final",
            "Distance of the predicted x_0 from the final image",
            "mean squared error on [0, 1]",
            y_log=False,
            x=("timestep", "t", "t, from noise to image"),
            x_log=False,
        )
    ],
    animations="trajectory-*.gif",
    keys=[
        ("trajectory/<sampler>", "picture", "the predicted x_0 along the way: strip and animation"),
        ("trajectory/flow", "picture", "of points of the plane: the ways of samples from noise to data"),
        ("trajectory/mse_half_way/<sampler>/<tau>/<steps>", "summary", "error of the predicted x_0 half way"),
    ],
    summary=_summary,
    table=None,
    words=_words,
    shown_rows=_quarters,
)
