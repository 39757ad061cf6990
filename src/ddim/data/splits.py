"""One split of a dataset, from an array or from files: how many images, their pixels, and what identifies them."""

from __future__ import annotations

import copy
import hashlib
import json
import logging
import os
import stat
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from ddim.data.decoding import BadImage, Decoder
from ddim.errors import UserError

log = logging.getLogger(__name__)
ON_BAD_IMAGE = ("error", "skip")
BLOCK = 256
# Below this mean file size the interpreter, not the decoder, is the bottleneck, and threads only fight over its lock.
THREADS_PAY_FROM_BYTES = 4096


def spread(count: int, limit: int) -> list[int]:
    """At most `limit` of the numbers 0 ... count - 1, evenly over all of them: a part that stands for the whole."""
    chosen = min(count, limit)
    return [number * count // chosen for number in range(chosen)]


class ArraySplit:
    """Samples that are in memory, and where they have any their conditions (N, ...), int64.

    They are uint8 (N, C, H, W) of images, float32 (N, ...) of anything else.
    """

    def __init__(self, images: Tensor, conditions: Tensor | None = None) -> None:
        self.images = images
        self.conditions = conditions

    def __len__(self) -> int:
        return len(self.images)

    def with_conditions(self, meanings: Tensor) -> ArraySplit:
        """The same samples with `meanings[c]` in place of every condition c."""
        assert self.conditions is not None
        return ArraySplit(self.images, meanings[self.conditions])

    def stream(self, batch_size: int, limit: int) -> Iterator[Tensor]:
        """uint8 (B, C, H, W) batches of `limit` images, evenly over the split; of all of them where there are fewer."""
        if limit >= len(self.images):
            yield from self.images.split(batch_size)
        elif limit:
            yield from self.images[spread(len(self.images), limit)].split(batch_size)

    def provenance(self) -> dict[str, Any]:
        """A sha256 (first 16 hex digits) of shape and values."""
        digest = hashlib.sha256(repr(tuple(self.images.shape)).encode())
        digest.update(self.images.contiguous().numpy().data)
        return {"fingerprint": digest.hexdigest()[:16]}


@dataclass(frozen=True)
class Inspection:
    """What reading every file once has shown.

    `fingerprint`: sha256 (first 16 hex digits) of the decoder's settings and the usable files' bytes, in order.
    `bad`: relative path -> reason, for the files that cannot be used.
    """

    fingerprint: str
    bad: dict[str, str]


class FileSplit:
    """Images in files below `root`, decoded on demand; all kept in memory after :meth:`load`.

    With `on_bad_image="error"` the first file that cannot be used raises a UserError that names it. With "skip" such
    files are counted, logged, and left out of the split. Finding them takes one pass over all files, whose outcome is
    kept in `cache_dir` for as long as the files' names, sizes and modification times stay the same.

    class_of: the number of the class of a file; None where files have no classes.
    """

    def __init__(
        self,
        files: Sequence[Path],
        root: Path,
        decoder: Decoder,
        on_bad_image: str,
        cache_dir: Path,
        class_of: Callable[[Path], int | list[int]] | None = None,
    ) -> None:
        self.decoder = decoder
        self.images: Tensor | None = None
        self._class_of = class_of
        self._all_files = list(files)
        self._root = root
        self._skip = on_bad_image == "skip"
        self._cache_dir = cache_dir / "inspected_images"
        self._inspection: Inspection | None = None

    def __len__(self) -> int:
        return len(self.files())

    @property
    def num_bytes(self) -> int:
        """Size of all images when decoded."""
        return len(self._all_files) * self.decoder.channels * self.decoder.resolution**2

    def files(self) -> list[Path]:
        """The usable files, in order."""
        if not self._skip:
            return self._all_files
        bad = self.inspect().bad
        return [path for path in self._all_files if self._name(path) not in bad] if bad else self._all_files

    @cached_property
    def conditions(self) -> Tensor | None:
        """The class of each usable file, int64 (N,), or what stands for it (N, ...); None where files have none."""
        return None if self._class_of is None else torch.tensor([self._class_of(path) for path in self.files()])

    def with_conditions(self, meanings: Tensor) -> FileSplit:
        """The same images with `meanings[c]` in place of every class c."""
        assert self._class_of is not None
        other, class_of = copy.copy(self), self._class_of
        other._class_of = lambda path: meanings[class_of(path)].tolist()
        return other

    def load(self) -> None:
        """Decode everything into `images`, uint8 (N, C, H, W)."""
        if self.images is not None:
            return
        shape = (len(self._all_files), self.decoder.channels, self.decoder.resolution, self.decoder.resolution)
        pixels = np.empty(shape, dtype=np.uint8)
        inspection = self._read_all(pixels)
        self._remember(inspection)
        if inspection.bad:
            pixels = pixels[[self._name(path) not in inspection.bad for path in self._all_files]]
        self.images = torch.from_numpy(pixels)

    def stream(self, batch_size: int, limit: int) -> Iterator[Tensor]:
        """uint8 (B, C, H, W) batches of `limit` images, evenly over the split; decodes anew unless they were loaded."""
        if self.images is not None:
            yield from ArraySplit(self.images).stream(batch_size, limit)
            return
        usable = self.files()
        files = [usable[number] for number in spread(len(usable), limit)] if limit else []
        with ThreadPoolExecutor(_num_threads(files)) as pool:
            for start in range(0, len(files), batch_size):
                batch = list(pool.map(self._decode_or_refuse, files[start : start + batch_size]))
                yield torch.from_numpy(np.stack(batch))

    def provenance(self) -> dict[str, Any]:
        """The decoder's settings, the number of skipped files, and the fingerprint of :class:`Inspection`."""
        inspection = self.inspect()
        skipped = len(inspection.bad)
        return {**self.decoder.settings(), "skipped": skipped, "fingerprint": inspection.fingerprint}

    def inspect(self) -> Inspection:
        """Read and decode every file once, or recall what that has shown; UserError unless bad files are skipped."""
        if self._inspection is None:
            recalled = self._recall()
            if recalled is None:
                self._remember(self._read_all(None))
            else:
                self._take_note(recalled)
        assert self._inspection is not None
        return self._inspection

    def _name(self, path: Path) -> str:
        return path.relative_to(self._root).as_posix()

    def _read_all(self, out: np.ndarray | None) -> Inspection:
        digest = hashlib.sha256(json.dumps(self.decoder.settings(), sort_keys=True).encode())
        bad: dict[str, str] = {}
        blocks = [range(i, min(i + BLOCK, len(self._all_files))) for i in range(0, len(self._all_files), BLOCK)]
        pool = ThreadPoolExecutor(_num_threads(self._all_files))
        # a bar appears only on a terminal, and only when this takes long
        bar = tqdm(total=len(self._all_files), desc="reading images", unit="img", delay=2, leave=False, disable=None)
        try:
            for result in pool.map(lambda block: [self._read_one(i, out) for i in block], blocks):
                for path, file_digest, reason in result:
                    if reason is None:
                        digest.update(file_digest)
                    elif self._skip:
                        bad[self._name(path)] = reason
                    else:
                        raise self._refusal(path, reason)
                bar.update(len(result))
        finally:
            bar.close()
            pool.shutdown(cancel_futures=True)
        if len(bad) == len(self._all_files):
            name, reason = next(iter(bad.items()))
            raise UserError(f"none of the {len(bad)} images in {self._root} can be used, the first is {name}: {reason}")
        return Inspection(digest.hexdigest()[:16], bad)

    def _read_one(self, index: int, out: np.ndarray | None) -> tuple[Path, bytes, str | None]:
        path = self._all_files[index]
        try:
            data = _read_bytes(path)
            pixels = self.decoder(data)
        except BadImage as error:
            return path, b"", str(error)
        if out is not None:
            out[index] = pixels
        return path, hashlib.sha256(data).digest(), None

    def _decode_or_refuse(self, path: Path) -> np.ndarray:
        try:
            return self.decoder(_read_bytes(path))
        except BadImage as error:
            raise self._refusal(path, str(error)) from error

    def _refusal(self, path: Path, reason: str) -> UserError:
        return UserError(
            f"the image {path} cannot be used: {reason}; repair or remove it, or leave out such images with "
            "dataset.on_bad_image=skip"
        )

    def _take_note(self, inspection: Inspection) -> None:
        if inspection.bad and self._inspection is None:
            name, reason = next(iter(inspection.bad.items()))
            total = len(self._all_files)
            log.warning("%d of %d images skipped, the first is %s: %s", len(inspection.bad), total, name, reason)
        self._inspection = inspection

    def _record(self) -> Path:
        key = hashlib.sha256(json.dumps([self.decoder.settings(), self._skip], sort_keys=True).encode())
        key.update(str(self._root.resolve()).encode(errors="surrogateescape"))
        for path in self._all_files:
            status = path.stat()
            key.update(f"{path}\0{status.st_size}\0{status.st_mtime_ns}\n".encode(errors="surrogateescape"))
        return self._cache_dir / f"{key.hexdigest()[:32]}.json"

    def _recall(self) -> Inspection | None:
        try:
            record = json.loads(self._record().read_text())
            return Inspection(str(record["fingerprint"]), {str(k): str(v) for k, v in record["bad"].items()})
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None

    def _remember(self, inspection: Inspection) -> None:
        self._take_note(inspection)
        try:
            record = self._record()
            record.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile("w", dir=record.parent, suffix=".tmp", delete=False) as file:
                json.dump({"fingerprint": inspection.fingerprint, "bad": inspection.bad}, file)
            os.replace(file.name, record)
        except OSError as error:  # a read-only cache only costs time
            log.info("the outcome of reading the images is not kept: %s", error)


def _read_bytes(path: Path) -> bytes:
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise BadImage("it is not a regular file")  # reading a pipe would wait for ever
        return path.read_bytes()
    except OSError as error:
        raise BadImage(f"it cannot be read ({error.strerror})") from error


def _num_threads(files: Sequence[Path]) -> int:
    sample = files[:: max(1, len(files) // 16)]
    sizes = [os.path.getsize(path) for path in sample if os.path.isfile(path)]
    pays = bool(sizes) and sum(sizes) / len(sizes) >= THREADS_PAY_FROM_BYTES
    return min(8, os.cpu_count() or 1) if pays else 1
