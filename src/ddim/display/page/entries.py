"""The rows of one or several evaluations under names that tell them apart, and which of them may be compared."""

from __future__ import annotations

import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ddim.findings.comparable import group_rows, shared_parts, told_apart
from ddim.findings.labels import distance_name, eta_title, line_label
from ddim.findings.reading import Evaluation
from ddim.findings.rows import Floor, GridResult

SHORT = 28
# What two distances must share besides, to be better and worse of one another: how they were measured.
MEASURED_WITH = {
    "data set": "dataset",
    "features": "features",
    "resize": "resize",
    "N": "num_samples",
    "reference": "reference",
    "preprocessing": "preprocessing",
}


@dataclass(frozen=True)
class Entry:
    """A row of a grid.

    Attributes:
        letter: of its evaluation, where there are several.
        variant: what else tells its lines from others: "A", "τ quadratic", "A, weights raw".
        eta: "η = 0.5", "σ̂", or where there are several samplers "deis".
        number: its place among the rows of its evaluation.
    """

    row: GridResult
    floor: Floor | None
    letter: str
    variant: str
    eta: str
    number: int

    @property
    def label(self) -> str:
        return ", ".join(text for text in (self.variant, self.eta) if text)


def letters(count: int) -> list[str]:
    """A, B, ... for several evaluations; none for one."""
    if count == 1:
        return [""]
    return [string.ascii_uppercase[n] if n < 26 else f"A{n}" for n in range(count)]


def entries_of(evaluations: Sequence[Evaluation]) -> list[Entry]:
    """All rows of the grids, in order of η and S within each evaluation and group of comparable rows."""
    entries = []
    everyone = [row for evaluation in evaluations for row in evaluation.rows]
    for letter, evaluation in zip(letters(len(evaluations)), evaluations, strict=True):
        numbers = {id(row): number for number, row in enumerate(evaluation.rows)}
        groups = group_rows(evaluation.rows, told_apart)
        short = shortened([differs for differs, _ in groups])
        for differs, members in groups:
            told = [f"{name} {short[name, value]}" for name, value in differs.items()]
            variant = ", ".join([letter] * bool(letter) + told)
            for row in members:
                eta = eta_title(line_label(row, everyone))
                entries.append(Entry(row, evaluation.floor, letter, variant, eta, numbers[id(row)]))
    return entries


def measured_alike(entries: Sequence[Entry]) -> list[tuple[dict[str, str], list[Entry]]]:
    """Entries whose distances may be ranked, together: [(what differs between the groups, entries)]."""
    groups: dict[tuple[str, ...], list[Entry]] = {}
    for entry in entries:
        key = tuple(str(getattr(entry.row, column)) for column in MEASURED_WITH.values())
        groups.setdefault(key, []).append(entry)
    varying = [n for n, values in enumerate(zip(*groups, strict=True)) if len(set(values)) > 1]
    names = list(MEASURED_WITH)
    return [({names[n]: key[n] for n in varying}, members) for key, members in groups.items()]


def dataset_and_features(row: GridResult) -> tuple[str, str]:
    return row.dataset, row.features


def heading(entries: Sequence[Entry], differs: Mapping[str, str]) -> str:
    """What a table of these distances is called."""
    name = distance_name(entries[0].row.features)
    return ", ".join([name, *(f"{key} {value}" for key, value in differs.items())])


def shortened(all_differs: Sequence[Mapping[str, str]]) -> dict[tuple[str, str], str]:
    """Short texts for (name, value): of long paths only what not all have in common."""
    texts = {}
    for name in dict.fromkeys(name for differs in all_differs for name in differs):
        values = list(dict.fromkeys(differs[name] for differs in all_differs if name in differs))
        paths = [value.split("/") for value in values]
        head = shared_parts(paths)
        tail = shared_parts([path[head:][::-1] for path in paths])
        for value, path in zip(values, paths, strict=True):
            middle = "/".join(path[head : len(path) - tail])
            texts[name, value] = value if len(value) <= SHORT else middle or value
    return texts
