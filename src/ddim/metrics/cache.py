"""Files beside cached reference statistics: what is derived from their features, and arrays written whole."""

from __future__ import annotations

import logging
import os
import struct
import tempfile
import tokenize
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ddim.metrics.kid import off_diagonal_sum
from ddim.metrics.manifold import neighbour_radii

logger = logging.getLogger(__name__)
# Changes with the way in which what is kept here is computed.
VERSION = 1
# What reading a damaged or foreign .npz raises, pickled arrays (which are refused) included.
UNREADABLE = (
    *(OSError, EOFError, LookupError, ValueError, TypeError, AttributeError, SyntaxError, ArithmeticError),
    *(RuntimeError, MemoryError, struct.error, tokenize.TokenError, zipfile.BadZipFile, zlib.error),
)


def save_arrays(path: Path, **arrays: Any) -> None:
    """An .npz file, written beside the target and renamed: readers and processes that race see a whole file or none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".reference-") as folder:
        partial = Path(folder) / path.name
        np.savez(partial, **arrays)
        os.replace(partial, path)


def cached_radii(statistics: Path | None, k: int, features: Tensor, device: torch.device | str) -> Tensor:
    """`neighbour_radii` of the features in the cache file `statistics`, kept beside it; nowhere if that is None."""
    if statistics is None:
        return neighbour_radii(features, k, device)

    def usable(arrays: dict[str, NDArray[Any]]) -> bool:
        radii = arrays["radii"]
        return radii.shape == (len(features),) and radii.dtype == np.float32 and bool((radii >= 0).all())

    def compute() -> dict[str, NDArray[Any]]:
        return {"radii": neighbour_radii(features, k, device).numpy()}

    return torch.from_numpy(derived(statistics, f"radii{k}", compute, usable)["radii"])


def cached_kernel_sum(statistics: Path | None, features: Tensor, device: torch.device | str) -> float:
    """`off_diagonal_sum` of the features in the cache file `statistics`, kept beside it; nowhere if that is None."""
    if statistics is None:
        return off_diagonal_sum(features, device)

    def usable(arrays: dict[str, NDArray[Any]]) -> bool:
        total = arrays["sum"]
        return total.shape == () and total.dtype == np.float64 and bool(np.isfinite(total))

    def compute() -> dict[str, NDArray[Any]]:
        return {"sum": np.asarray(off_diagonal_sum(features, device), np.float64)}

    return float(derived(statistics, "kernel", compute, usable)["sum"])


def derived(
    statistics: Path,
    what: str,
    compute: Callable[[], dict[str, NDArray[Any]]],
    usable: Callable[[dict[str, NDArray[Any]]], bool],
) -> dict[str, NDArray[Any]]:
    """Arrays by name from the file `what` beside the cache file `statistics`, or computed and kept there.

    A file that cannot be read, or is not `usable`, is computed anew. That, and one that cannot be written, costs a
    warning.
    """
    path = _derived(statistics, what)
    if path.is_file():
        try:
            with np.load(path, allow_pickle=False) as file:
                arrays = {key: file[key] for key in file}
            if int(arrays.pop("version", np.zeros(()))) != VERSION:
                raise ValueError("another version of ddim wrote it")
            if not usable(arrays):
                raise ValueError("it holds something else")
            return arrays
        except UNREADABLE as error:
            logger.warning("the cached %s cannot be read and is computed anew: %s", path, error)
    arrays = compute()
    try:
        save_arrays(path, version=VERSION, **arrays)
    except OSError as error:
        logger.warning("%s could not be cached: %s", path, error)
    return arrays


def forget_derived(statistics: Path) -> None:
    """Remove what was derived from the features of an earlier file of that name."""
    for path in statistics.parent.glob(_derived(statistics, "*").name):
        path.unlink(missing_ok=True)


def _derived(statistics: Path, what: str) -> Path:
    return statistics.with_name(f"{statistics.stem}-{what}.npz")
