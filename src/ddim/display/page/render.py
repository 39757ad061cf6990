"""One or several evaluations as the text of an HTML page."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from ddim.display.page.charts import distance_charts, time_charts
from ddim.display.page.contents import Shown, shown
from ddim.display.page.entries import Entry, entries_of, letters, measured_alike
from ddim.display.page.facts import facts_of
from ddim.display.page.pictures import Picture, inlined
from ddim.display.page.tables import grid_tables, measured_text, not_comparable, paper_table
from ddim.findings.labels import distance_name, title_order
from ddim.findings.part import Part
from ddim.findings.parts import GRID, PARTS
from ddim.findings.reading import Evaluation

FOLDER = "assets"


@dataclass(frozen=True)
class Sample:
    """The sample grid of a point. `setting` is one value for each choice of the switch."""

    setting: Sequence[str]
    caption: str
    picture: Picture


def render(evaluations: Sequence[Evaluation]) -> str:
    """The page. The same evaluations give the same text."""
    names = letters(len(evaluations))
    entries = entries_of(evaluations)
    comparisons = [comparison for evaluation in evaluations for comparison in evaluation.comparisons]
    charts = distance_charts(entries, comparisons)
    speed = time_charts(entries)
    choices, samples = _samples(evaluations, entries)
    parts = list(_parts(evaluations))
    everything = [*charts, *speed, *(chart for _, found in parts for _, part in found for chart in part.charts)]
    styles, library, script = _file("page.css"), _library(), _file("page.js")
    return (
        _environment()
        .get_template("page.html")
        .render(
            title=_title(evaluations),
            policy=_policy([styles], [library, script]),
            styles=Markup(styles),
            library=Markup(library),
            script=Markup(script),
            charts=[chart.as_record() for chart in everything],
            evaluations=[
                {
                    "letter": letter,
                    "name": evaluation.directory.name,
                    "command": evaluation.command,
                    "configuration": _configuration(evaluation),
                    "of_job": len(evaluation.folders) > 1,
                    "notices": evaluation.notices,
                    "papers": [
                        {"name": c.name, "title": c.title, "tables": paper_table(c), "reasons": not_comparable(c)}
                        for c in evaluation.comparisons
                    ],
                }
                for letter, evaluation in zip(names, evaluations, strict=True)
            ],
            facts=facts_of(evaluations),
            tables=grid_tables(entries),
            differs=sorted({name for differs, _ in measured_alike(entries) for name in differs}),
            distances=charts,
            speed=speed,
            choices=choices,
            samples=samples,
            sheets=[] if samples else _sheets(evaluations),
            parts=parts,
        )
    )


def _title(evaluations: Sequence[Evaluation]) -> str:
    datasets = dict.fromkeys(str(row["dataset"]) for e in evaluations for row in e.records if row.get("dataset"))
    what = f"{len(evaluations)} evaluations" if len(evaluations) > 1 else evaluations[0].directory.name
    return f"{', '.join(datasets)}: {what}" if datasets else what


def _parts(evaluations: Sequence[Evaluation]) -> Iterator[tuple[Part, list[tuple[str, Shown]]]]:
    for part in (part for name, part in PARTS.items() if name != GRID):
        found = [
            (letter, shown(part, evaluation, number))
            for number, (letter, evaluation) in enumerate(zip(letters(len(evaluations)), evaluations, strict=True))
            if part.name in evaluation.parts
        ]
        if found:
            yield part, found


def _samples(
    evaluations: Sequence[Evaluation], entries: Sequence[Entry]
) -> tuple[list[tuple[str, list[str]]], list[Sample]]:
    """The switch, [(what is chosen, its values)], and the grids that there are; what has one value is no choice."""
    by_letter = dict(zip(letters(len(evaluations)), evaluations, strict=True))
    found = []
    for entry in entries:
        path = by_letter[entry.letter].samples.get(entry.number)
        if path is not None:
            row = entry.row
            distance = measured_text(row.distance)
            caption = f"{entry.label}, S = {row.steps}, {distance_name(row.features)} {distance}"
            found.append(Sample((entry.variant, entry.eta, str(row.steps)), caption, inlined(path)))
    found = [sample for sample in found if sample.picture.data]
    names = ("setting", "η", "S")
    orders: tuple[Callable[[str], Any], ...] = (lambda _: 0, title_order, int)
    choices = []
    for place, (name, order) in enumerate(zip(names, orders, strict=True)):
        values = list(dict.fromkeys(sample.setting[place] for sample in found))
        choices.append((name, sorted(values, key=order)))
    return choices, found


def _sheets(evaluations: Sequence[Evaluation]) -> list[tuple[str, Picture]]:
    """The sheets of all points, where the grids of single points are not at hand."""
    paths = [path for evaluation in evaluations for path in sorted(evaluation.directory.glob("samples*.png"))]
    return [(f"Samples from the same latents, {path.stem}", inlined(path)) for path in paths]


def _configuration(evaluation: Evaluation) -> str:
    config = evaluation.context.get("config")
    return yaml.safe_dump(config, sort_keys=False, allow_unicode=True) if isinstance(config, dict) else ""


def _policy(styles: Sequence[str], scripts: Sequence[str]) -> str:
    """Nothing is loaded from anywhere, and only our own scripts run, whatever else might have got into the page."""
    sources = {"style-src": styles, "script-src": scripts}
    rules = [f"{name} {' '.join(map(_hash, texts))}" for name, texts in sources.items()]
    return "; ".join(["default-src 'none'", "img-src data:", *rules, "base-uri 'none'", "form-action 'none'"])


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


@cache
def _file(name: str) -> str:
    return resources.files(__package__).joinpath(FOLDER, name).read_text(encoding="utf-8")


def _library() -> str:
    """Without its last line, which sends a browser's developer tools to a file beside the page."""
    return _file("chart.umd.min.js").partition("//# sourceMappingURL=")[0]


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader(str(__package__), FOLDER),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    policies: dict[str, Any] = environment.policies
    policies["json.dumps_kwargs"] = {"allow_nan": False}
    return environment
