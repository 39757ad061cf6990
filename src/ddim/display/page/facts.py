"""What was evaluated, with what and on what: the first table of a report."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ddim.display.page.tables import value_text
from ddim.findings.labels import significant
from ddim.findings.reading import Evaluation
from ddim.findings.rows import Floor

# Heading -> columns of the rows, read together.
_COLUMNS = {
    "data set": ("dataset",),
    "checkpoint": ("checkpoint",),
    "weights": ("weights", "weights_hash"),
    "images per point": ("num_samples",),
    "seed": ("seed",),
    "schedule": ("schedule",),
    "sampler": ("sampler",),
    "spacing of τ": ("tau",),
    "x_0 clipped": ("clip_denoised",),
    "features": ("features", "resize"),
    "reference": ("reference_source", "reference_split", "reference_images"),
    "hardware": ("device",),
    "precision": ("compute_precision",),
}
_UNITS = {"resize": "resize {}", "reference_images": "{} images", "weights_hash": "({})"}
# Not known to all rows; what a row lacks is not shown as missing.
_NOTHING = (None, "", "none")


def facts_of(evaluations: Sequence[Evaluation]) -> list[tuple[str, list[str], bool]]:
    """[(heading, a text for each evaluation, whether they differ)], without what none of them knows."""
    all_facts = [_facts(evaluation) for evaluation in evaluations]
    names = dict.fromkeys(name for facts in all_facts for name in facts)
    lines = [(name, [facts.get(name, "–") for facts in all_facts]) for name in names]
    return [(name, texts, len(set(texts)) > 1) for name, texts in lines if set(texts) != {"–"}]


def _facts(evaluation: Evaluation) -> dict[str, str]:
    facts = {}
    for name, columns in _COLUMNS.items():
        found = dict.fromkeys(_text(row, columns) for row in evaluation.records)
        known = [text for text in found if text]
        if known:
            # Rows of other parts know less of the same thing.
            whole = [text for text in known if not any(text != other and text in other for other in known)]
            facts[name] = "; ".join(whole)
    if evaluation.floor is not None:
        facts["floor"] = _floor(evaluation.floor)
    seconds = [row.get("seconds") for row in evaluation.records]
    spent = sum(value for value in seconds if isinstance(value, int | float))
    if spent:
        facts["time sampled"] = _duration(spent)
    versions = evaluation.context.get("versions")
    if isinstance(versions, dict):
        facts["versions"] = ", ".join(f"{name} {value}" for name, value in versions.items())
    return facts


def _text(row: Mapping[str, Any], columns: Iterable[str]) -> str:
    known = [(column, row[column]) for column in columns if row.get(column) not in _NOTHING]
    texts = [_UNITS.get(column, "{}").format(_number(value, column)) for column, value in known]
    return ", ".join(texts).replace(", (", " (")


def _number(value: Any, column: str) -> str:
    counted = isinstance(value, int) and not isinstance(value, bool) and column != "seed"
    return f"{value:,}" if counted else value_text(value)


def _floor(floor: Floor) -> str:
    distance = floor.distance
    measured = "" if distance is None else f", distance {significant(distance)}"
    return f"{floor.num_images:,} real held-out images{measured}"


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{significant(seconds, 3)} s"
    minutes, _ = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"
