"""When two numbers may stand side by side.

Numbers are only compared when what produced them is the same; `provenance` is the one place that says what "the same"
means, for every table and every line of a figure.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from ddim.findings.labels import solver_parts
from ddim.findings.rows import Floor, GridResult


def provenance(row: GridResult) -> dict[str, str]:
    """What has to agree before two distances may share a table or a line, as {short name: text}."""
    tau = row.tau
    if tau == "explicit" and row.timesteps is not None:
        tau += f" ({_abbreviated(row.timesteps)})"
    values = {
        "dataset": row.dataset,
        "checkpoint": row.checkpoint,
        "weights": row.weights,
        "weights_hash": row.weights_hash,
        "schedule": row.schedule,
        "sampler": " ".join([row.sampler, *(f"{name}={value}" for name, value in row.options or ())]),
        "τ": tau,
        "clip_denoised": None if row.clip_denoised is None else str(row.clip_denoised).lower(),
        "compute_precision": row.compute_precision,
        "features": row.features,
        "resize": row.resize,
        "N": row.num_samples,
        "seed": row.seed if not row.seeds else f"mean over {' '.join(map(str, row.seeds))}",
        "reference": row.reference,
        "preprocessing": row.preprocessing,
    }
    return {name: "unknown" if value is None else str(value) for name, value in values.items()}


def told_apart(row: GridResult) -> dict[str, str]:
    """What has to agree before two distances may share a table: all but the sampler, which is a line of its own."""
    return {name: text for name, text in provenance(row).items() if name != "sampler"}


def by_calls(rows: Iterable[GridResult]) -> bool:
    """Whether rows stand at their network calls and not at S: where S does not say what a sample costs."""
    rows = list(rows)
    return any(row.nfe_limit is not None for row in rows) or len({tuple(solver_parts(row)) for row in rows}) > 1


def cost(row: GridResult, calls: bool) -> int:
    """Where a row stands: at S, or at the network calls that were asked for or made."""
    return row.steps if not calls else row.nfe if row.nfe_limit is None else row.nfe_limit


def _abbreviated(timesteps: Sequence[int]) -> str:
    """All of a short list; the ends and a sum of a long one, so that two lists rarely read the same."""
    if len(timesteps) <= 6:
        return " ".join(map(str, timesteps))
    return f"{timesteps[0]} {timesteps[1]} ... {timesteps[-1]}, {len(timesteps)} steps, sum {sum(timesteps)}"


def group_rows(
    rows: Iterable[GridResult], key: Callable[[GridResult], dict[str, str]] = provenance
) -> list[tuple[dict[str, str], list[GridResult]]]:
    """Rows that may be compared, together: [(what differs between the groups, rows)], in order of first appearance."""
    groups: dict[tuple[tuple[str, str], ...], list[GridResult]] = {}
    for row in rows:
        groups.setdefault(tuple(key(row).items()), []).append(row)
    varying = [name for name, values in _columns(groups) if len(values) > 1]
    return [({name: dict(items)[name] for name in varying}, members) for items, members in groups.items()]


def _columns(groups: Iterable[tuple[tuple[str, str], ...]]) -> list[tuple[str, set[str]]]:
    return [(cells[0][0], {value for _, value in cells}) for cells in zip(*groups, strict=True)]


def shows_floor(floor: Floor, rows: Sequence[GridResult], row: GridResult) -> bool:
    """Whether the floor may stand beside `row`, one of `rows`."""
    measured_with = {(other.features, other.reference) for other in rows}
    return floor.applies_to(row) and (len(measured_with) == 1 or None not in (floor.features, floor.reference))


def shared_parts(paths: Sequence[Sequence[str]]) -> int:
    """How many leading components all paths have in common."""
    count = 0
    for components in zip(*paths, strict=False):
        if len(set(components)) > 1:
            break
        count += 1
    return count
