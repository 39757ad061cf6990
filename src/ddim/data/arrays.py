"""A user's own numbers: tables and series from files, checked before anything is done with them."""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ddim.errors import UserError

SPLIT_SEED = 0


def read_npy(path: Path, key: str, dimensions: tuple[int, ...]) -> NDArray[np.float32]:
    """The array of a .npy file, float32, of one of these numbers of dimensions; nothing in it is executed.

    Raises:
        UserError: there is no such file, it holds something else, or numbers that are not finite.
    """
    try:
        array = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"{key}={path} is not a .npy file of numbers: {_reason(error)}") from error
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "fiu" or array.ndim not in dimensions:
        found = f"{array.dtype} {array.shape}" if isinstance(array, np.ndarray) else "several arrays"
        wanted = " or ".join(("", "(N)", "(N, D)", "(N, channels, length)")[number] for number in dimensions)
        raise UserError(f"{key}={path} must hold one array of numbers of shape {wanted}, it holds {found}")
    return finite(array, key, path)


def read_csv(path: Path, key: str, columns: Sequence[str] | None) -> tuple[NDArray[np.float32], list[str]]:
    """The numbers of a .csv file whose first line names its columns: float32 (N, D), and the names.

    columns: those that are taken; None takes all.

    Raises:
        UserError: naming the line and the column of the first cell that is no finite number, or a column that is not
            there.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            header, *lines = list(csv.reader(file)) or [[]]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{key}={path} is not a .csv file: {_reason(error)}") from error
    names = [name.strip() for name in header]
    wanted = names if columns is None else list(columns)
    absent = [name for name in wanted if name not in names]
    if absent or not wanted:
        raise UserError(f"dataset.columns: {path} has no column {', '.join(absent)}; it has {', '.join(names)}")
    places = [names.index(name) for name in wanted]
    rows = []
    for number, line in enumerate(lines, start=2):
        if not line:
            continue
        if len(line) != len(names):
            raise UserError(f"{key}={path} has {len(line)} cells in line {number} and {len(names)} column names")
        rows.append([_number(line[place], path, key, number, names[place]) for place in places])
    return np.asarray(rows, dtype=np.float32).reshape(-1, len(wanted)), wanted


def _number(text: str, path: Path, key: str, line: int, column: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value) or abs(value) > np.finfo(np.float32).max:
        raise UserError(
            f"{key}={path} has {text.strip()[:40]!r} in line {line}, column {column}, where a finite number must be; "
            "leave the line out, or name the columns to take in dataset.columns"
        )
    return value


def finite(array: NDArray[np.generic], key: str, path: Path) -> NDArray[np.float32]:
    """As float32. Raises `UserError` naming the first row (counted from 0) with what is no finite number."""
    values = np.ascontiguousarray(array, dtype=np.float32)
    bad = ~np.isfinite(values.reshape(len(values), -1)).all(axis=1)
    if bad.any():
        raise UserError(
            f"{key}={path} has a value that is no finite number in row {int(bad.argmax())}; leave the row out"
        )
    return values


def held_out(count: int, fraction: float) -> NDArray[np.bool_]:
    """Which of `count` rows are the test split: that fraction, at least one, at random and the same every time."""
    chosen = np.random.default_rng(SPLIT_SEED).permutation(count)[: max(1, round(fraction * count))]
    mask = np.zeros(count, dtype=bool)
    mask[chosen] = True
    return mask


def split_of(values: NDArray[np.float32], fraction: float, split: str, what: str) -> Tensor:
    """The rows of "train" or "test". Raises `UserError` where there are fewer than two of either."""
    is_test = held_out(len(values), fraction) if len(values) else np.zeros(0, dtype=bool)
    for name, number in (("train", int((~is_test).sum())), ("test", int(is_test.sum()))):
        if number < 2:
            raise UserError(
                f"{what} has {len(values)} rows, of which {number} are left for the {name} split: give more"
            )
    return torch.from_numpy(values[is_test if split == "test" else ~is_test])


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error).splitlines()[0]
