"""The language between those who compute and those who show: rows, and pictures as data.

A study says what it finds to its `Findings`; whoever listens is an `Audience`: files, pictures on disk and the
terminal, loggers. Nothing here draws, and arrays are passed on as they are, so that nobody needs torch for it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from ddim.findings.part import Part
    from ddim.findings.rows import Floor, GridResult

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Strip:
    """Rows of images under one title.

    In strips, sheets and films samples that are no images may stand for images, as they are stored.

    rows: (label, uint8 (n, C, H, W)); all of one number and shape. columns: labels above the columns, one for each or
    none. breaks: numbers of rows that have a wider gap above them, which groups the rows.
    """

    rows: Sequence[tuple[str, Any]]
    title: str
    columns: Sequence[str] = ()
    breaks: Sequence[int] = ()


@dataclass(frozen=True)
class Captioned:
    """Images uint8 (n, C, H, W), each above its own caption, which is red where the image is `marked`."""

    images: Any
    captions: Sequence[str]
    marked: Sequence[bool]
    title: str


@dataclass(frozen=True)
class Sheet:
    """All points of a grid: {(label, S): uint8 (n, C, H, W)}; rows are eta or samplers, columns S or network calls.

    column: what columns are.
    """

    images: Mapping[tuple[str, int], Any]
    title: str | None = None
    column: str = "S"


@dataclass(frozen=True)
class Panel:
    """One pair of axes.

    Attributes:
        ylabel: what is drawn.
        lines: label -> (S, value) pairs, or with another `xlabel` (place, value); values that are None, not finite or,
            on a log axis, not positive are left out. Points are joined from left to right, or in the order given where
            places have no log axis.
        log: whether the values have a log axis; without one it begins at 0, unless not `from_zero`.
        level: a value that is drawn as a dashed horizontal line, and what it is.
        x_log: whether places have a log axis with a tick for each.
        notes: (place, value, text) beside points.
        bars: label -> (place, value, standard deviation) of points of a line, drawn up and down.
    """

    ylabel: str
    lines: Mapping[str, Sequence[tuple[float, float | None]]]
    log: bool = True
    level: tuple[float, str] | None = None
    xlabel: str = "S (sampling steps)"
    x_log: bool = True
    notes: Sequence[tuple[float, float, str]] = ()
    bars: Mapping[str, Sequence[tuple[float, float, float]]] = field(default_factory=dict)
    from_zero: bool = True


@dataclass(frozen=True)
class Curves:
    """Panels side by side, each a quantity against S."""

    panels: Sequence[Panel]
    title: str
    subtitle: str = ""


@dataclass(frozen=True)
class Animation:
    """An endless film: each frame's images (N, C, H, W) side by side under its label."""

    frames: Sequence[Any]
    labels: Sequence[str]
    milliseconds: int


@dataclass(frozen=True)
class Single:
    """One image as it is, pixel by pixel: uint8 (C, H, W)."""

    image: Any


@dataclass(frozen=True)
class GridFigure:
    """A plot of all rows of a grid: `of` is "distance" or "speed"."""

    of: str
    rows: Sequence[GridResult]
    floor: Floor | None = None


@dataclass(frozen=True)
class Flow:
    """Ways of points of the plane from noise to data.

    panels: (title, (n, steps + 1, 2)), the states of n samples, the first is x_T. real: (m, 2), of the data, in the
    model's space as the states are. drawn: of how many samples the way is drawn; of the others where it ends.
    """

    panels: Sequence[tuple[str, Any]]
    real: Any
    title: str
    drawn: int = 10


@dataclass(frozen=True)
class Against:
    """Samples that are no images beside real ones, all as they are stored: (n, D) or (n, C, L).

    panels: (title, samples). names: of the columns of a table. pairs: whether columns are drawn against each other, of
    the last panel over the real ones, and not one by one.
    """

    panels: Sequence[tuple[str, Any]]
    real: Any
    title: str
    names: Sequence[str] = ()
    pairs: bool = False


@dataclass(frozen=True)
class Densities:
    """Log-densities in nats over a square of the plane, as maps in the same colours.

    panels: (title, (k, k)), rows from low to high. square: low and high of the first axis, then of the second. points:
    (m, 2), of the data. difference: (title, (k, k)), a further map around 0; None leaves it out.
    """

    panels: Sequence[tuple[str, Any]]
    square: tuple[float, float, float, float]
    points: Any
    title: str
    difference: tuple[str, Any] | None = None


Picture = Strip | Captioned | Sheet | Curves | Animation | Single | GridFigure | Flow | Against | Densities


class Words(Protocol):
    """Where sentences and tables are printed."""

    def say(self, text: str = "", style: str = "") -> None: ...

    def table(self, headers: Sequence[str], rows: Sequence[Sequence[str]], best: Sequence[str] = ()) -> None: ...


class Audience:
    """Who listens to what a part of an evaluation finds; only on the first process there is anybody."""

    def begin(self, said: Findings) -> None:
        """The part begins; `said.rows` are those that an earlier attempt has finished."""

    def row(self, said: Findings, rows: Sequence[Row], images: Any) -> None:
        """`rows` were found, among all `said.rows`; images, uint8 (n, C, H, W) or None, are samples of the one row."""

    def picture(self, said: Findings, what: str, picture: Picture, caption: str) -> None:
        """`what` tells the pictures of a part apart."""

    def end(self, said: Findings) -> None:
        """The part has found all it was asked for."""


class Findings:
    """What one part says while it works.

    Rows that are said with their point stand in the order of the points, others in the order in which they are said.

    Args:
        part: what the findings are of.
        audiences: who is told, in this order; nobody on other processes than the first.
        context: of the whole evaluation (configuration, versions, hardware); goes beside the rows.
    """

    def __init__(self, part: Part, audiences: Sequence[Audience] = (), context: Row | None = None) -> None:
        self.part = part
        self.audiences = list(audiences)
        self.extra: dict[str, Any] = dict(context or {})
        self._order: dict[Any, int] = {}
        self._rows: list[tuple[int, Row]] = []

    @property
    def rows(self) -> list[Row]:
        """All rows so far, in their order."""
        return [row for _, row in sorted(self._rows, key=lambda entry: entry[0])]

    def begin(self, points: Sequence[Any] = (), finished: Mapping[Any, tuple[Row, Any]] | None = None) -> None:
        """The points in their order, and of those that are finished already (row, images)."""
        self._order = {point: number for number, point in enumerate(points)}
        known = finished or {}
        for point, (row, _) in known.items():
            self._add(row, point)
        for audience in self.audiences:
            audience.begin(self)
        for row, images in known.values():
            for audience in self.audiences:
                audience.row(self, [row], images)

    def row(self, *rows: Row, point: Any = None, images: Any = None) -> None:
        """Finished rows; with their point where there is one of each, and then perhaps with its first samples."""
        for row in rows:
            self._add(row, point)
        for audience in self.audiences:
            audience.row(self, rows, images)

    def revise(self, rows: Mapping[Any, Row]) -> None:
        """What is known in the end of rows that were said before: {point: its row}. They are told again at `end`."""
        by_place = {self._order[point]: row for point, row in rows.items()}
        self._rows = [(place, by_place.get(place, row)) for place, row in self._rows]

    def picture(self, what: str, picture: Picture, caption: str = "") -> None:
        for audience in self.audiences:
            audience.picture(self, what, picture, caption)

    def beside(self, **extra: Any) -> None:
        """What the file of the part holds beside the rows."""
        self.extra |= extra

    def end(self) -> None:
        for audience in self.audiences:
            audience.end(self)

    def _add(self, row: Row, point: Any) -> None:
        self._rows.append((self._order.get(point, len(self._order)), row))
