"""What one grid point of an evaluation found, and when two such numbers may stand side by side.

Numbers are only compared when what produced them is the same; `provenance` is the one place that says what "the same"
means, for the tables of `ddim.results` and for the lines of `ddim.figures`.
"""

from __future__ import annotations

import dataclasses
import math
import operator
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol


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


_CONVERT: dict[str, Callable[[Any], Any]] = {
    "str": str,
    "int": _int,
    "float": float,
    "bool": _bool,
    "tuple[int, ...]": _timesteps,
    "tuple[tuple[str, float], ...]": _pairs,
}


@dataclass(frozen=True, kw_only=True)
class GridResult:
    """One point (sampler variance or eta, tau, S) of an evaluation grid. Field order is column order.

    Values are converted to the declared types on construction, so tensors, numpy scalars and the text of a CSV cell
    are accepted. None means "not known" or "not measured". Raises ValueError naming the field where that fails.

    `precision` and `recall` are the metrics of Kynkäänniemi et al. (2019); the arithmetic is `compute_precision`.
    `other_metrics` are (name, number) pairs of a user's own metrics; each is a column of its own in files and tables.
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
    def seconds_per_50000(self) -> float:
        """Seconds that 50,000 images would take at this rate (the paper's Figure 4)."""
        return self.seconds / self.num_samples * 50_000

    def as_record(self) -> dict[str, Any]:
        """Plain JSON-able dictionary in column order; `GridResult(**record)` is its inverse."""
        record = {name: jsonable(value) for name, value in vars(self).items()}
        if self.other_metrics is None:
            del record["other_metrics"]
        return record


COLUMNS = tuple(entry.name for entry in dataclasses.fields(GridResult) if entry.name != "other_metrics")
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

    def applies_to(self, row: GridResult) -> bool:
        return self.features in (None, row.features) and self.reference in (None, row.reference)


def distance_name(features: str) -> str:
    """ "FID" on the canonical Inception features only; "FD (<features>)" on any others."""
    return "FID" if features == "inception-v3-compat" else f"FD ({features})"


class Variance(Protocol):
    """What a sampler adds as noise: of a result, or of a point that is yet to be sampled."""

    @property
    def eta(self) -> float: ...
    @property
    def variance(self) -> str: ...


class Setting(Variance, Protocol):
    """A point of the grid: of a result, or one that is yet to be sampled."""

    @property
    def tau(self) -> str: ...
    @property
    def steps(self) -> int: ...


def point_key(point: Setting) -> str:
    """`eta0.000/linear/steps0010`: sorts by η, then by spacing, then by S."""
    sampler = f"eta{point.eta:.3f}" if point.variance == "eta" else point.variance
    return f"{sampler}/{point.tau}/steps{point.steps:04d}"


def curve_key(point: Setting) -> str:
    """`eta0.000/linear`: what the points of one curve against S have in common."""
    return point_key(point).rpartition("/")[0]


def eta_label(row: Variance) -> str:
    """ "0", "0.2", "1" for sigma(eta); "σ̂" for the paper's larger variance, "σ̂ clipped" for the official code's."""
    return {"sigma_hat": "σ̂", "sigma_hat_official": "σ̂ clipped"}.get(row.variance, f"{row.eta:g}")


def eta_title(label: str) -> str:
    """ "η = 0.2" for a number, "σ̂" as it is."""
    return f"η = {label}" if label[:1].isdigit() else label


def eta_order(label: str) -> tuple[float, str]:
    """Sort key of eta labels: numbers by value, then "σ̂", then "σ̂ clipped"."""
    try:
        return float(label), ""
    except ValueError:
        return math.inf, label


def title_order(title: str) -> tuple[float, str]:
    """Sort key of titles, as `eta_order` is of labels."""
    return eta_order(title.removeprefix("η = "))


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
        "sampler": row.sampler,
        "τ": tau,
        "clip_denoised": None if row.clip_denoised is None else str(row.clip_denoised).lower(),
        "compute_precision": row.compute_precision,
        "features": row.features,
        "resize": row.resize,
        "N": row.num_samples,
        "seed": row.seed,
        "reference": row.reference,
        "preprocessing": row.preprocessing,
    }
    return {name: "unknown" if value is None else str(value) for name, value in values.items()}


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


def significant(value: float | None, digits: int = 4) -> str:
    """Text with that many significant digits, never fewer than the whole part has; "-" for None."""
    if value is None or not math.isfinite(value):
        return "-" if value is None else str(value)
    scientific = f"{value:.{digits - 1}e}"
    exponent = int(scientific.split("e")[1])
    return scientific if exponent < -4 else f"{value:.{max(0, digits - 1 - exponent)}f}"
