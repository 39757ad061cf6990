"""Tables of numbers: those that come with scikit-learn, or a user's own CSV or NPY file."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ddim.data.arrays import SPLIT_SEED, read_csv, read_npy, split_of
from ddim.data.options import Options
from ddim.data.splits import ArraySplit
from ddim.errors import UserError

TABLES = ("breast_cancer", "diabetes", "iris", "wine")


class Tabular:
    """The rows of a table as vectors, float32 (N, D), in the units of the table.

    Columns are taken for continuous: whole numbers and categories come back as numbers between them.
    """

    kind = "vectors"

    def __init__(self, options: Options, cache_dir: Path) -> None:
        self.data = options.choice("data", "breast_cancer", TABLES)
        self.file = options.file("file", (".csv", ".npy"))
        self.columns = options.optional_names("columns")
        self.fraction = options.fraction("test_fraction", 0.2)

    def prepare(self) -> None:
        """Read the table and see whether it can be used."""
        self.open("train")

    def open(self, split: str) -> ArraySplit:
        return ArraySplit(split_of(self._table[0], self.fraction, split, f"the table {self.file or self.data}"))

    def details(self) -> dict[str, Any]:
        split_rule = f"{self.fraction} of the rows, seed {SPLIT_SEED}"
        return {"split_rule": split_rule, "columns": self._table[1]}

    @cached_property
    def _table(self) -> tuple[NDArray[np.float32], list[str]]:
        if self.file is not None and self.file.suffix == ".csv":
            return read_csv(self.file, "dataset.file", self.columns)
        if self.file is not None:
            if self.columns is not None:
                raise UserError(f"dataset.columns={self.columns} are names, which {self.file} has none of")
            values = read_npy(self.file, "dataset.file", (2,))
            return values, [str(number) for number in range(values.shape[1])]
        from sklearn import datasets

        table = getattr(datasets, f"load_{self.data}")()
        values = np.ascontiguousarray(table.data, dtype=np.float32)
        names = [str(name) for name in table.feature_names]
        if self.columns is None:
            return values, names
        absent = [name for name in self.columns if name not in names]
        if absent:
            raise UserError(
                f"dataset.columns: {self.data} has no column {', '.join(absent)}; it has {', '.join(names)}"
            )
        return np.ascontiguousarray(values[:, [names.index(name) for name in self.columns]]), self.columns
