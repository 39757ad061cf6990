"""Reads the `dataset.*` settings one by one and refuses what is wrong in one sentence that names the key."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from ddim.errors import UserError
from ddim.runs.paths import usable_path

# What each setting means, for docs/configuration.md. `features`, `metrics`, `grid_images`, `tau` and `table` are read
# by the sampler and the evaluation.
MEANINGS = {
    "name": "which data set.",
    "channels": "1 or 3; files of other modes are converted.",
    "resolution": "height and width of the images.",
    "random_flip": "mirror training images at random.",
    "in_memory": "whether decoded images are kept; auto: when they take less than a quarter of the free memory.",
    "label": "the name shown in results; null: the data set's own.",
    "captions": "classes: images have a caption with the name of their class, a photograph of a horse, which "
    "`denoiser=text_unet` reads; null: their label.",
    "root": "folder of the images; null: under `cache_dir`. `train/` and `test/` (or `val/`) in it are the splits. "
    "Of signals a .npy file (N, length) or (N, channels, length), or a folder of .wav files; null: days of electricity "
    "demand, from the package aeon.",
    "download": "whether missing data are downloaded.",
    "resize": "filter that brings the shorter side to `resolution`, before the centre is cropped.",
    "background": "what is put behind transparent pixels.",
    "attributes": "names, such as [Male, Smiling], whose combinations are the classes; null: there are none.",
    "test_fraction": "of the files that is held out where no splits are given, chosen by a hash of the path; of a "
    "table's rows or the windows of signals, at random and the same every time.",
    "allow_upscale": "accept images that are smaller than `resolution`.",
    "on_bad_image": "what to do with files that are no usable image; skip counts them and goes on.",
    "count": "training images that are composed; image i does not depend on it.",
    "test_count": "test images that are composed.",
    "features": "what distances are measured on unless the evaluation says otherwise.",
    "tau": "spacing of the timesteps unless the sampler says otherwise.",
    "shape": "of the points; the mixture is of Gaussians on a circle, and its density is known.",
    "num_train": "points that are trained on.",
    "num_test": "points that are held out.",
    "noise": "of scikit-learn's shapes.",
    "modes": "Gaussians of the mixture.",
    "deviation": "of each Gaussian, in radii of the circle.",
    "weights": "of the Gaussians; null: all as heavy as each other.",
    "data": "a table that comes with scikit-learn.",
    "file": "a table of one's own in place of it; a .csv has the names of its columns in the first line.",
    "columns": "names of those that are taken; null takes all.",
    "length": "values of a window; null: all of a series. Divisible by the UNet's downsampling.",
    "metrics": "what is measured unless the evaluation says otherwise.",
    "grid_images": "samples that are shown per grid point unless the evaluation says otherwise.",
    "predicts": "what a network is trained to predict unless the objective says otherwise.",
    "parts": "of evaluation=all, where it is not what images have.",
    "likelihood_images": "held-out samples of evaluation=likelihood unless the evaluation says otherwise; null: all.",
    "table": "the paper's tables in miniature: `num_samples` instead of 50,000, `num_images` instead of 10,000.",
}


class Options:
    """The settings of one dataset; each is taken once, :meth:`finish` refuses those that nobody took.

    `kinds` says of each that was taken what it may be, for the documentation.

    All methods raise :class:`~ddim.errors.UserError`.
    """

    def __init__(self, config: Mapping[str, Any]) -> None:
        self._values = {str(key): value for key, value in config.items()}
        self._known: list[str] = []
        self.kinds: dict[str, str] = {}

    def _take(self, key: str, default: Any, kind: str) -> Any:
        self._known.append(key)
        self.kinds[key] = kind
        return self._values.pop(key, default)

    def choice(self, key: str, default: Any, choices: Collection[Any]) -> Any:
        kind = ", ".join(str(choice).lower() if isinstance(choice, bool) else str(choice) for choice in choices)
        value = self._take(key, default, kind)
        # True == 1, so types are compared too
        if not any(value == choice and type(value) is type(choice) for choice in choices):
            known = ", ".join(str(choice) for choice in choices)
            raise UserError(f"dataset.{key}={value} is not one of: {known}")
        return value

    def integer(self, key: str, default: int, minimum: int = 1) -> int:
        value = self._take(key, default, "whole number")
        if isinstance(value, bool) or not isinstance(value, int) or value < minimum:
            raise UserError(f"dataset.{key}={value} must be a whole number of at least {minimum}")
        return value

    def boolean(self, key: str, default: bool) -> bool:
        value = self._take(key, default, "true, false")
        if not isinstance(value, bool):
            raise UserError(f"dataset.{key}={value} must be true or false")
        return value

    def fraction(self, key: str, default: float) -> float:
        """A number strictly between 0 and 1."""
        value = self._take(key, default, "number in (0, 1)")
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not is_number or not 0 < value < 1:
            raise UserError(f"dataset.{key}={value} must be a number between 0 and 1, both excluded")
        return float(value)

    def names(self, key: str) -> list[str]:
        """One text or a list of them; none where the key is null or not given."""
        value = self._take(key, None, "text, or a list")
        listed = [] if value is None else [value] if isinstance(value, str) else value
        if not isinstance(listed, list | tuple) or not all(isinstance(name, str) and name for name in listed):
            raise UserError(f"dataset.{key}={value} must be a name or a list of names")
        return list(listed)

    def number(self, key: str, default: float, low: float, high: float) -> float:
        """A number from low to high, both included."""
        value = self._take(key, default, f"number from {low:g} to {high:g}")
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not is_number or not low <= value <= high:
            raise UserError(f"dataset.{key}={value} must be a number from {low:g} to {high:g}")
        return float(value)

    def numbers(self, key: str, default: list[float] | None) -> list[float] | None:
        """Finite numbers, or null."""
        value = self._take(key, default, "numbers or null")
        if value is None:
            return None
        listed = value if isinstance(value, list) else [value]
        if not listed or not all(type(item) in (int, float) and math.isfinite(item) for item in listed):
            raise UserError(f"dataset.{key}={value} must be a list of numbers, as [1,1,2], or null")
        return [float(item) for item in listed]

    def optional_names(self, key: str) -> list[str] | None:
        """A name or a list of different ones, or null."""
        names = self.names(key)
        if len(set(names)) != len(names):
            raise UserError(f"dataset.{key}={names} names one twice")
        return names or None

    def optional_integer(self, key: str, minimum: int) -> int | None:
        """A whole number, or null."""
        value = self._take(key, None, "whole number or null")
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < minimum):
            raise UserError(f"dataset.{key}={value} must be a whole number of at least {minimum}, or null")
        return value

    def path(self, key: str) -> Path | None:
        """A file or folder that is there, with ~ expanded, or null."""
        value = self._take(key, None, "file or folder, or null")
        if value is None:
            return None
        if not isinstance(value, str | Path) or not str(value).strip():
            raise UserError(f"dataset.{key}={value} must be the path of a file or folder, or null")
        path = usable_path(value, f"dataset.{key}")
        if not path.exists():
            raise UserError(f"dataset.{key}={path} does not exist")
        return path

    def file(self, key: str, endings: tuple[str, ...]) -> Path | None:
        """A file that is there and has one of the endings, or null."""
        path = self.path(key)
        self.kinds[key] = f"{' or '.join(endings)} file, or null"
        if path is not None and (not path.is_file() or path.suffix not in endings):
            raise UserError(f"dataset.{key}={path} is not a {' or '.join(endings)} file")
        return path

    def text(self, key: str, default: str | None) -> str | None:
        value = self._take(key, default, "text or null")
        if value is not None and (not isinstance(value, str) or not value.strip()):
            raise UserError(f"dataset.{key}={value} must be a short text or null")
        return value

    def like(self, key: str, default: Any) -> Any:
        """A value of the default's type; a whole number is a number as well."""
        value = self._take(key, default, type(default).__name__)
        if type(value) is int and isinstance(default, float):
            return float(value)
        if default is not None and type(value) is not type(default):
            raise UserError(f"dataset.{key}={value} must be of the type of its default, {default}")
        return value

    def folder(self, key: str, default: Path | None) -> Path:
        """A path with ~ expanded; whether it exists is checked when the data are prepared."""
        value = self._take(key, None, "folder")
        if value is None and default is not None:
            return default
        if not isinstance(value, str | Path) or not str(value).strip():
            raise UserError(f"dataset.{key} is not set: give the folder that holds the images, as dataset.{key}=DIR")
        return usable_path(value, f"dataset.{key}")

    def finish(self) -> None:
        """Refuse keys that no dataset of this name knows."""
        if self._values:
            unknown = ", ".join(f"dataset.{key}" for key in sorted(self._values))
            raise UserError(f"{unknown} is not a setting of this dataset; it has: {', '.join(sorted(self._known))}")
