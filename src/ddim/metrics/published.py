"""Statistics of real images in a file of their own: what others have published, and what lies beside a shipped network.

Ours say what they are of: `about` holds JSON with the provenance of the images and of the features, and the settings of
the data set without where it lies. Files are data: nothing in them is executed, and their claims are checked.
"""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ddim.errors import UserError
from ddim.metrics.cache import UNREADABLE
from ddim.metrics.reference import ReferenceStatistics
from ddim.runs.paths import usable_path

MAX_ABOUT_BYTES = 1 << 20
# Settings of a data set that are of the machine it lies on.
OF_THE_MACHINE = ("root", "download", "in_memory")


@dataclass(frozen=True)
class About:
    """What statistics are of.

    data: provenance of the images of a split, see `ImageDataModule.provenance`. extractor: that of the features.
    dataset: the settings from which the data set is built again, once somebody says where it lies.
    """

    data: Mapping[str, Any]
    extractor: Mapping[str, Any]
    dataset: Mapping[str, Any]


def statistics_file(statistics: ReferenceStatistics, dataset: Mapping[str, Any]) -> bytes:
    """The content of an .npz file with mu, sigma and what they are of; the same bytes for the same statistics.

    dataset: the settings that its images come from. Raises ValueError for statistics of unknown origin.
    """
    if not {"data", "extractor"} <= statistics.provenance.keys():
        raise ValueError("only statistics that say what they are of can be published")
    settings = {key: value for key, value in dataset.items() if key not in OF_THE_MACHINE}
    about = {key: statistics.provenance[key] for key in ("data", "extractor")}
    about["dataset"] = {**settings, "features": about["extractor"]["features"]}
    content = io.BytesIO()
    encoded = json.dumps(about, sort_keys=True).encode()
    np.savez(content, mu=statistics.mu, sigma=statistics.sigma, about=np.frombuffer(encoded, np.uint8))
    return content.getvalue()


def read_about(path: Path) -> About | None:
    """What the statistics in a file are of; None where it does not say.

    Raises UserError when the file cannot be read or says something that cannot be.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            if "about.npy" not in archive.namelist():
                return None
        shape = _shape_in(path, "about")
        if len(shape) != 1 or shape[0] > MAX_ABOUT_BYTES:
            raise ValueError(f"about has shape {shape}")
        with np.load(path, allow_pickle=False) as file:
            loaded = json.loads(file["about"].astype(np.uint8).tobytes())
        about = About(*(dict(loaded[key]) for key in ("data", "extractor", "dataset")))
        numbers = [about.data[key] for key in ("count", "channels", "resolution")]
        if not all(type(number) is int and 0 < number < 2**31 for number in numbers):
            raise ValueError(f"count, channels and resolution are {numbers}")
        texts = (about.data["dataset"], about.data["split"], about.dataset["name"], about.extractor["features"])
        if not all(isinstance(text, str) and text.isprintable() for text in texts):
            raise ValueError("names are no texts")
    except (*UNREADABLE, RecursionError) as error:
        raise UserError(
            f"the reference statistics {path} do not say what they are of, or cannot be read; give an intact copy"
        ) from error
    return About(about.data, about.extractor, {k: v for k, v in about.dataset.items() if k not in OF_THE_MACHINE})


def load_published_statistics(path: Path, dim: int, extractor: Mapping[str, Any] | None = None) -> ReferenceStatistics:
    """A published .npz with `mu` (dim,) and `sigma` (dim, dim), for example of a whole training set.

    extractor: the provenance of the features that are to be compared with it, where the file says of which it is.

    Raises UserError when the file is missing, cannot be read, or holds something else.
    """
    path = usable_path(path, "reference statistics")
    if not path.is_file():
        raise UserError(f"the reference statistics {path} do not exist: give an .npz file with arrays mu and sigma")
    try:
        # Before the arrays, which a few bytes of a compressed file can claim to be of any size.
        shapes = tuple(_shape_in(path, key) for key in ("mu", "sigma"))
        if shapes != ((dim,), (dim, dim)):
            raise UserError(
                f"the reference statistics {path} hold mu {shapes[0]} and sigma {shapes[1]}, but the features have "
                f"{dim} dimensions: take statistics of the same features"
            )
        with np.load(path, allow_pickle=False) as file:
            mu, sigma = (np.asarray(file[key], dtype=np.float64) for key in ("mu", "sigma"))
    except UNREADABLE as error:
        raise UserError(f"the reference statistics {path} are not an .npz file with arrays mu and sigma") from error
    if not (np.isfinite(mu).all() and np.isfinite(sigma).all()):
        raise UserError(f"the reference statistics {path} contain values that are not finite numbers")
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    provenance: dict[str, Any] = {"published": path.name, "sha256": sha256}
    about = read_about(path)
    if about is None:
        return ReferenceStatistics(mu, sigma, None, None, provenance, sha256[:16])
    if extractor is not None and about.extractor != extractor:
        raise UserError(
            f"the reference statistics {path} are of {about.extractor['features']} features as another version "
            "computes them, or of others: take statistics of the same features, or images (dataset.root=DIR)"
        )
    provenance |= {"data": dict(about.data), "extractor": dict(about.extractor)}
    return ReferenceStatistics(mu, sigma, about.data["count"], None, provenance, sha256[:16])


def _shape_in(path: Path, key: str) -> tuple[int, ...]:
    """Shape of an array in an .npz file, from its header."""
    with zipfile.ZipFile(path) as archive, archive.open(f"{key}.npy") as file:
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = read(file)
    if dtype.kind not in "fiu":
        raise ValueError(f"{key} holds {dtype}, not numbers")
    return shape
