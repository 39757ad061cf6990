"""Files beside cached reference statistics: what is derived from their features, and arrays written whole."""

from __future__ import annotations

import logging
import os
import struct
import tempfile
import tokenize
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ddim.metrics.manifold import neighbour_radii

logger = logging.getLogger(__name__)

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
    path = _derived(statistics, f"radii{k}")
    radii = _read_radii(path, len(features))
    if radii is None:
        radii = neighbour_radii(features, k, device)
        try:
            save_arrays(path, radii=radii.numpy())
        except OSError as error:
            logger.warning("radii of the reference could not be cached in %s: %s", path, error)
    return radii


def forget_derived(statistics: Path) -> None:
    """Remove what was derived from the features of an earlier file of that name."""
    for path in statistics.parent.glob(_derived(statistics, "*").name):
        path.unlink(missing_ok=True)


def _derived(statistics: Path, what: str) -> Path:
    return statistics.with_name(f"{statistics.stem}-{what}.npz")


def _read_radii(path: Path, count: int) -> Tensor | None:
    if not path.is_file():
        return None
    try:
        with np.load(path, allow_pickle=False) as file:
            radii = file["radii"]
        if radii.shape != (count,) or radii.dtype != np.float32 or not (radii >= 0).all():
            raise ValueError("they are of something else")
        return torch.from_numpy(radii)
    except UNREADABLE as error:
        logger.warning("the cached radii %s cannot be read and are computed anew: %s", path, error)
        return None
