"""What one grid point of an evaluation found, as one row, and the floor beside it."""

from __future__ import annotations

import dataclasses
import math
import operator
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ddim.findings.columns import distance_of


def _bool(value: Any) -> bool:
    if isinstance(value, str):
        return {"true": True, "false": False}[value.lower()]
    return bool(value)


def _int(value: Any) -> int:
    return int(value) if isinstance(value, str) else operator.index(value)


def _timesteps(value: Any) -> tuple[int, ...]:
    return tuple(_int(t) for t in (value.split() if isinstance(value, str) else value))


def _pairs(value: Any) -> tuple[tuple[str, float], ...]:
    return tuple((str(name), float(number)) for name, number in value)


def _blocks(value: Any) -> tuple[tuple[float, ...], ...]:
    return tuple(tuple(map(float, numbers)) for numbers in value)


def _options(value: Any) -> tuple[tuple[str, Any], ...]:
    return tuple((str(name), tuple(given) if isinstance(given, list) else given) for name, given in value)


_CONVERT: dict[str, Callable[[Any], Any]] = {
    "str": str,
    "int": _int,
    "float": float,
    "bool": _bool,
    "tuple[int, ...]": _timesteps,
    "tuple[tuple[str, float], ...]": _pairs,
    "tuple[tuple[float, ...], ...]": _blocks,
    "tuple[tuple[str, Any], ...]": _options,
}


@dataclass(frozen=True, kw_only=True)
class GridResult:
    """One point (sampler variance or eta, tau, S) of an evaluation grid. Field order is column order.

    Values are converted to the declared types on construction, so tensors, numpy scalars and the text of a CSV cell
    are accepted. None means "not known" or "not measured". Raises ValueError naming the field where that fails.

    `precision` and `recall` are the metrics of Kynkäänniemi et al. (2019); the arithmetic is `compute_precision`.
    `options` are (name, value) pairs of the sampler's own options, `other_metrics` (name, number) pairs of a user's own
    metrics; each is a column of its own in files and tables.

    The columns of KNOWN_LATER are only there where a row has them. `<column>_sd` is the standard deviation of a number
    over other draws of the samples (`seeds` says over which seeds, else over blocks of the samples),
    `frechet_distance_unbiased` the distance without its bias of order 1/N. `difference` is that of the distance to the
    lowest one at the same cost, paired by the samples' latents, with `difference_sd`; `as_good` says that the two
    cannot be told apart. `nfe_limit` is the number of network calls that was asked for, of which `nfe` are made.
    `leave_one_out` are the numbers that deviations and differences are made from: for each seed the distance of all
    samples, and that without each block of them.
    `label_accuracy` is the part of the samples that a classifier takes for what they were drawn as, `class_distance`
    the mean of `class_distances`, the Fréchet distance of each class by its name.
    `steps` is the S asked for, `nfe` how often the network ran, `seconds` the time of all `num_samples` images.
    `weights_hash` identifies the weights themselves, which a path does not.
    `clip_denoised` is the setting asked for: "sigma_hat_official" clips whatever it says. `reference` identifies the
    reference statistics, `preprocessing` how their images and features were made from files.
    """

    dataset: str
    checkpoint: str
    weights: str
    sampler: str
    eta: float
    variance: str
    tau: str
    steps: int
    nfe: int
    num_samples: int
    seed: int
    features: str
    frechet_distance: float | None
    seconds: float
    images_per_second: float
    kid_mean: float | None = None
    kid_std: float | None = None
    precision: float | None = None
    recall: float | None = None
    inception_score_mean: float | None = None
    inception_score_std: float | None = None
    weights_hash: str | None = None
    clip_denoised: bool | None = None
    schedule: str | None = None
    compute_precision: str | None = None
    device: str | None = None
    resize: str | None = None
    reference: str | None = None
    reference_source: str | None = None
    reference_images: int | None = None
    reference_split: str | None = None
    preprocessing: str | None = None
    timesteps: tuple[int, ...] | None = None
    nfe_limit: int | None = None
    seeds: tuple[int, ...] | None = None
    frechet_distance_sd: float | None = None
    frechet_distance_unbiased: float | None = None
    difference: float | None = None
    difference_sd: float | None = None
    as_good: bool | None = None
    kid_mean_sd: float | None = None
    precision_sd: float | None = None
    recall_sd: float | None = None
    inception_score_mean_sd: float | None = None
    energy_distance: float | None = None
    energy_distance_sd: float | None = None
    sliced_wasserstein: float | None = None
    sliced_wasserstein_sd: float | None = None
    c2st: float | None = None
    c2st_sd: float | None = None
    log_density: float | None = None
    log_density_sd: float | None = None
    label_accuracy: float | None = None
    label_accuracy_sd: float | None = None
    class_distance: float | None = None
    class_distance_sd: float | None = None
    leave_one_out: tuple[tuple[float, ...], ...] | None = None
    class_distances: tuple[tuple[str, float], ...] | None = None
    options: tuple[tuple[str, Any], ...] | None = None
    other_metrics: tuple[tuple[str, float], ...] | None = None

    def __post_init__(self) -> None:
        for entry in dataclasses.fields(self):
            value, kind = getattr(self, entry.name), str(entry.type)
            try:
                if kind.endswith(" | None") and (value is None or (isinstance(value, str) and value == "")):
                    value = None
                elif value is None:
                    raise TypeError
                else:
                    value = _CONVERT[kind.removesuffix(" | None")](value)
            except (TypeError, ValueError, KeyError, OverflowError):
                raise ValueError(f"{entry.name} must be {kind}, got {value!r}") from None
            object.__setattr__(self, entry.name, value)

    @property
    def distance(self) -> float | None:
        """What the grid is about: the Fréchet distance, or of what is no image the energy distance."""
        return self.value(distance_of(self.features).name)

    @property
    def distance_sd(self) -> float | None:
        """Its standard deviation."""
        return self.value(distance_of(self.features).sd)

    @property
    def seconds_per_50000(self) -> float:
        """Seconds that 50,000 images would take at this rate (the paper's Figure 4)."""
        return self.seconds / self.num_samples * 50_000

    def as_record(self) -> dict[str, Any]:
        """Plain JSON-able dictionary in column order; `GridResult(**record)` is its inverse."""
        record = {name: jsonable(value) for name, value in vars(self).items()}
        for name in (*GROUPED, *KNOWN_LATER):
            if record[name] is None:
                del record[name]
        return record

    def value(self, column: str) -> float | None:
        """A measured number by the name of its column, a user's own metric included; None where there is none."""
        known: float | None = getattr(self, column, None)
        return dict(self.other_metrics or ()).get(column, known)


# Fields that stand for columns whose names are only known when the rows are.
GROUPED = ("options", "other_metrics", "class_distances")
# Columns that are only in files whose rows have them; the last of them is too long for a table.
KNOWN_LATER = (
    *("nfe_limit", "seeds", "frechet_distance_sd", "frechet_distance_unbiased"),
    *("difference", "difference_sd", "as_good"),
    *("kid_mean_sd", "precision_sd", "recall_sd", "inception_score_mean_sd"),
    *("energy_distance", "energy_distance_sd", "sliced_wasserstein", "sliced_wasserstein_sd"),
    *("c2st", "c2st_sd", "log_density", "log_density_sd"),
    *("label_accuracy", "label_accuracy_sd", "class_distance", "class_distance_sd", "leave_one_out"),
)
COLUMNS = tuple(entry.name for entry in dataclasses.fields(GridResult) if entry.name not in (*GROUPED, *KNOWN_LATER))


def columns_of(rows: Sequence[GridResult]) -> list[str]:
    """The columns of a table of these rows, those among them that only these rows have."""
    later = [name for name in KNOWN_LATER[:-1] if any(getattr(row, name) is not None for row in rows)]
    options = dict.fromkeys(name for row in rows for name, _ in row.options or ())
    own = dict.fromkeys(name for row in rows for name, _ in row.other_metrics or ())
    return [*COLUMNS, *later, *options, *own]


def cells_of(row: GridResult) -> dict[str, Any]:
    """The values of a row by the name of their column."""
    return {**vars(row), **dict(row.options or ()), **dict(row.other_metrics or ())}


REQUIRED_COLUMNS = tuple(entry.name for entry in dataclasses.fields(GridResult) if entry.default is dataclasses.MISSING)


@dataclass(frozen=True)
class Floor:
    """Real held-out images scored against the reference: what a perfect sampler would reach with `num_images`.

    metrics: keys as in `GridResult` (frechet_distance, kid_mean, precision, ...). `features` and `reference` (digest)
    say what the floor was measured with; without them it is shown only where all rows agree on both.
    """

    num_images: int
    metrics: Mapping[str, float] = field(default_factory=dict)
    features: str | None = None
    reference: str | None = None

    @property
    def distance(self) -> float | None:
        """Of the real images, what the grid is about."""
        return self.metrics.get(distance_of(self.features or "").name)

    def applies_to(self, row: GridResult) -> bool:
        return self.features in (None, row.features) and self.reference in (None, row.reference)


def jsonable(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): jsonable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [jsonable(item) for item in value]
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else str(float(value))
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    return jsonable(value.tolist()) if hasattr(value, "tolist") else value
