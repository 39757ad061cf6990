"""The published figures of the DDIM paper (Song, Meng, Ermon, ICLR 2021), and what they were measured with.

The CSV files beside this module hold the numbers of its tables 1, 2 and 3. `PaperTable.differences` says what a result
lacks to be comparable with them.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any, TypeVar

from ddim.findings.labels import Setting

P = TypeVar("P", bound=Setting)
FID_SAMPLES = 50_000
# What the published networks were trained with; their files do not say it.
OFFICIAL_SCHEDULE = {"name": "linear", "num_timesteps": 1000, "beta_start": 1e-4, "beta_end": 0.02}
SCHEDULE = "linear(num_timesteps=1000, beta_start=0.0001, beta_end=0.02)"


@dataclass(frozen=True)
class PaperTable:
    """One table, or one data set's half of one.

    Attributes:
        name: as in `table=`.
        title: what is printed above it.
        file, dataset: where its numbers are.
        metric: the column of a result that it publishes: "frechet_distance" or "mse_per_dimension".
        tau: the spacing of its sub-sequences; None where the paper does not say.
        configuration: the option of the `dataset` group for checkpoints that do not say what they were trained on.
    """

    name: str
    title: str
    file: str
    dataset: str
    metric: str
    tau: str | None
    configuration: str

    @property
    def values(self) -> Mapping[tuple[str, int], float]:
        """{(row, S): published value}; rows are "0.0", "0.2", ..., "sigma_hat"."""
        return {key: value for dataset, key, value in _published(self.file) if dataset == self.dataset}

    def value(self, eta: float, variance: str, steps: int) -> float | None:
        """The published number for these settings, None where the paper has none.

        The row of the larger variance stands beside both ways to sample it: the paper's definition ("sigma_hat") and
        the official code's ("sigma_hat_official").
        """
        return self.values.get((_row(eta, variance), steps))

    def wanted(self, points: Sequence[P]) -> list[P]:
        """`points` without those whose η and S the table has but whose cell it leaves empty (DDIM at S=1000 on LSUN).

        Settings that do not occur in the table at all are somebody's own and stay; so do all points where nothing
        would be left.
        """
        rows, steps = {row for row, _ in self.values}, {steps for _, steps in self.values}
        kept = [
            point
            for point in points
            if self.value(point.eta, point.variance, point.steps) is not None
            or point.steps not in steps
            or _row(point.eta, point.variance) not in rows
        ]
        return kept or list(points)

    def differences(self, row: Mapping[str, Any]) -> list[str]:
        """What keeps a result from being comparable: "quadratic tau, here linear". Empty if nothing is known to."""
        needed: dict[str, tuple[Any, Any]] = {
            "data set": (self.dataset, row["dataset"]),
            "weights": ("ema", row["weights"]),
            "schedule": (SCHEDULE, row["schedule"]),
            "tau": (self.tau or ("linear or quadratic" if row["tau"] == "explicit" else None), row["tau"]),
            "clip_denoised": (False, row["clip_denoised"]),
            "precision": ("32-true", row["compute_precision"]),
        }
        if self.metric == "frechet_distance":
            needed["samples"] = (FID_SAMPLES, row["num_samples"])
            needed["features"] = ("inception-v3-compat", row["features"])
            # Published statistics do not say which images, cropped how, they are of.
            needed["reference"] = ("train", row.get("reference_split") or row.get("reference_source") or "unknown")
        else:
            needed["images"] = (10_000, row["num_images"])
        return [
            f"{name} {_text(here)} (the paper: {_text(there)})"
            for name, (there, here) in needed.items()
            if there is not None and there != here
        ]


def _row(eta: float, variance: str) -> str:
    return str(float(eta)) if variance == "eta" else "sigma_hat"


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:,}" if isinstance(value, int) else str(value)


@cache
def _published(file: str) -> tuple[tuple[str, tuple[str, int], float], ...]:
    return tuple(_read(file))


def _read(file: str) -> Iterator[tuple[str, tuple[str, int], float]]:
    text = resources.files(__name__).joinpath(file).read_text(encoding="utf-8")
    for record in csv.DictReader(text.splitlines()):
        *_, value = record.values()
        yield record["dataset"], (record.get("eta", "0.0"), int(record["steps"])), float(value)


TABLES = {
    table.name: table
    for table in (
        PaperTable(
            "cifar10_table1",
            "Table 1, CIFAR10: FID",
            "table1_fid.csv",
            "cifar10",
            "frechet_distance",
            "quadratic",
            "cifar10",
        ),
        PaperTable(
            "celeba_table1",
            "Table 1, CelebA 64x64: FID",
            "table1_fid.csv",
            "celeba",
            "frechet_distance",
            "linear",
            "celeba",
        ),
        PaperTable(
            "cifar10_table2",
            "Table 2, CIFAR10: reconstruction error per dimension",
            "table2_reconstruction.csv",
            "cifar10",
            "mse_per_dimension",
            None,
            "cifar10",
        ),
        PaperTable(
            "lsun_bedroom_table3",
            "Table 3, LSUN bedroom 256x256: FID",
            "table3_lsun_fid.csv",
            "lsun_bedroom",
            "frechet_distance",
            "linear",
            "lsun_bedroom",
        ),
        PaperTable(
            "lsun_church_table3",
            "Table 3, LSUN church 256x256: FID",
            "table3_lsun_fid.csv",
            "lsun_church",
            "frechet_distance",
            "linear",
            "lsun_church",
        ),
    )
}
