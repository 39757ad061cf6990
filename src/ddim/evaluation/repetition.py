"""Grid points measured with several seeds as one row, and against each other."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import chain
from statistics import fmean
from typing import Any

from ddim.diffusion.grid import GridPoint
from ddim.evaluation.kept.finished import Finished
from ddim.findings.columns import MEASURED
from ddim.findings.comparable import by_calls, cost, told_apart
from ddim.findings.rows import GridResult
from ddim.metrics import Jackknife, compare, over_seeds, simultaneous_multiple


def repeated(parts: Mapping[int, Finished]) -> Finished:
    """One row of a point from those of its seeds, {number: finished}: means, and standard deviations over the seeds.

    The deviation is that of one measurement, not of the mean: how far another seed may be from this one. Images are
    those of the first seed.
    """
    members = [GridResult(**parts[number].row) for number in sorted(parts)]
    if len(members) == 1:
        return parts[0]
    first = members[0]
    changed: dict[str, Any] = {"seeds": tuple(row.seed for row in members)}
    for name in (*MEASURED, "frechet_distance_unbiased", "kid_std", "inception_score_std"):
        changed[name] = _mean([row.value(name) for row in members])
    for column in MEASURED.values():
        changed[column.sd] = _sd([row.value(column.name) for row in members])
    own = {name: _mean([row.value(name) for row in members]) for name, _ in first.other_metrics or ()}
    changed["other_metrics"] = tuple((name, mean) for name, mean in own.items() if mean is not None) or None
    classes = [name for name, _ in first.class_distances or ()]
    by_class = {name: _mean([dict(row.class_distances or ()).get(name) for row in members]) for name in classes}
    changed["class_distances"] = tuple((name, mean) for name, mean in by_class.items() if mean is not None) or None
    # Those of some seeds alone would be paired with other seeds of another point.
    kept = [row.leave_one_out for row in members if row.leave_one_out is not None]
    changed["leave_one_out"] = tuple(chain.from_iterable(kept)) if len(kept) == len(members) else None
    changed["seconds"] = fmean(row.seconds for row in members)
    changed["images_per_second"] = first.num_samples / changed["seconds"]
    return Finished(GridResult(**{**vars(first), **changed}).as_record(), parts[min(parts)].images)


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return fmean(known) if len(known) == len(values) else None


def _sd(values: Sequence[float | None]) -> float | None:
    """Over the seeds; None where one of them has no finite number."""
    known = [value for value in values if value is not None and math.isfinite(value)]
    return over_seeds(known).sd if len(known) == len(values) else None


def compared(rows: Mapping[GridPoint, Mapping[str, Any]]) -> dict[GridPoint, dict[str, Any]]:
    """The rows with the paired difference of each to the lowest distance of its cost, where that can be said.

    Samples of the same number start from the same latent at every point, so that a difference is known better than
    either of its distances. Points are held against each other that share everything but the sampler and its noise.
    Which of them cannot be told apart from the best is decided at a level that holds for all of them together
    (`simultaneous_multiple`).
    """
    results = {point: GridResult(**row) for point, row in rows.items()}
    calls = by_calls(results.values())
    groups: dict[tuple[Any, ...], list[GridPoint]] = {}
    for point, row in results.items():
        groups.setdefault((*told_apart(row).values(), cost(row, calls)), []).append(point)
    found = {point: dict(row) for point, row in rows.items()}
    for members in groups.values():
        measured = [_jackknives(results[point]) for point in members]
        if len(members) < 2 or len({tuple(len(one.leave_one_out) for one in point) for point in measured}) != 1:
            continue
        if not measured[0]:
            continue
        # Every seed adds as many degrees of freedom as it has blocks but one.
        blocks = 1 + sum(len(one.leave_one_out) - 1 for one in measured[0])
        result = compare(measured, better="min", multiple=simultaneous_multiple(len(members), blocks))
        for point, gap, as_good in zip(members, result.differences, result.as_good, strict=True):
            found[point] |= {"difference": gap.value, "difference_sd": gap.sd, "as_good": as_good}
    return found


def _jackknives(row: GridResult) -> list[Jackknife]:
    """Of the distance, one for each seed; none of a row that does not have them."""
    return [Jackknife(numbers[0], numbers[1:], row.num_samples) for numbers in row.leave_one_out or ()]
