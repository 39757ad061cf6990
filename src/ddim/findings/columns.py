"""What is measured of a grid point: every column once, with how it is called, rounded and compared."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

# What features of data that are no images are called: the values themselves.
VALUES = "values"


@dataclass(frozen=True)
class Column:
    """A measured number of a row.

    Attributes:
        name: of the column.
        heading: in tables.
        digits: significant ones that are shown.
        better: which way is better; None where nobody can say.
        metric: the name in `evaluation.metrics` that measures it.
        monitored: whether a best checkpoint may be chosen by it.
    """

    name: str
    heading: str
    digits: int = 4
    better: Literal["min", "max"] | None = None
    metric: str = ""
    monitored: bool = False

    @property
    def sd(self) -> str:
        """The column of its standard deviation over other draws of the samples."""
        return f"{self.name}_sd"

    def best(self) -> Callable[..., float] | None:
        """`min` or `max`, whichever finds the best of several values."""
        return None if self.better is None else {"min": min, "max": max}[self.better]


DISTANCE = Column("frechet_distance", "FD", 4, "min", "frechet_distance", monitored=True)
# Of what is no image.
ENERGY = Column("energy_distance", "energy", 4, "min", "energy_distance", monitored=True)
# In the order in which tables show them.
MEASURED = {
    column.name: column
    for column in (
        DISTANCE,
        ENERGY,
        Column("sliced_wasserstein", "SW2", 3, "min", "sliced_wasserstein", monitored=True),
        Column("c2st", "C2ST", 3, "min", "c2st", monitored=True),
        # Neither way is better: samples that crowd together have more than real ones.
        Column("log_density", "log p", 4, None, "log_density"),
        Column("kid_mean", "KID", 3, "min", "kid", monitored=True),
        Column("precision", "precision", 3, "max", "precision_recall"),
        Column("recall", "recall", 3, "max", "precision_recall"),
        Column("inception_score_mean", "IS", 4, "max", "inception_score", True),
        # Of samples that have labels.
        Column("label_accuracy", "label accuracy", 3, "max"),
        Column("class_distance", "FD per class", 4, "min"),
    )
}


def distance_of(features: str) -> Column:
    """The distance that a grid on these features is about."""
    return ENERGY if features == VALUES else DISTANCE


def further(features: str) -> tuple[Column, ...]:
    """What is measured besides the distance."""
    return tuple(column for column in MEASURED.values() if column is not distance_of(features))


# By metric: the column of the one number that a best checkpoint may be chosen by.
MONITORED = {column.metric: column.name for column in MEASURED.values() if column.monitored}


def own(name: str) -> Column:
    """The column of a user's own metric."""
    return Column(name, name, 4, None, name)
