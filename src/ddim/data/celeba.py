"""CelebA (Liu et al., 2015): aligned 178x218 faces with the official crop of the DDIM paper."""

from __future__ import annotations

import http.client
import os
import re
import tempfile
import urllib.request
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from ddim.data.celeba_attributes import ATTRIBUTE_NAMES, Attributes, read_attributes
from ddim.data.cifar10 import network_timeout
from ddim.data.decoding import RESIZE_FILTERS, Decoder
from ddim.data.image_folder import find_images, split_by_hash
from ddim.data.options import Options
from ddim.data.splits import ON_BAD_IMAGE, FileSplit
from ddim.errors import UserError
from ddim.runs.locking import locked

# left, top, right, bottom: rows 57-185 and columns 25-153 of the aligned image
CROP = (25, 57, 153, 185)
ALIGNED_SIZE = (178, 218)
PARTITION_NAMES = ("list_eval_partition.txt", "list_eval_partition.csv")
PARTITION_OF_SPLIT = {"train": 0, "test": 2}
NETWORK_TIMEOUT_SECONDS = 15.0


class CelebA:
    """Aligned CelebA images: a folder of them, or torchvision's layout `celeba/img_align_celeba`.

    Splits are the official ones (partition 0 trains, 2 tests, 1 is unused) when `list_eval_partition.txt` lies beside
    or in the image folder; otherwise a hash of the file name picks `test_fraction` of the images. Images are of classes
    where `attributes` names some of those in `list_attr_celeba.txt`, which lies in the same places.
    """

    def __init__(self, options: Options, cache_dir: Path) -> None:
        self.channels = options.choice("channels", 3, (1, 3))
        self.resolution = options.integer("resolution", 64)
        self.root = options.folder("root", cache_dir / "celeba")
        self.download = options.boolean("download", False)
        self.on_bad_image = options.choice("on_bad_image", "error", ON_BAD_IMAGE)
        self.attributes = options.names("attributes")
        self._cache_dir = cache_dir
        self.test_fraction = options.fraction("test_fraction", 0.1)
        self.decoder = Decoder(
            channels=self.channels,
            resolution=self.resolution,
            resize=options.choice("resize", "bilinear", tuple(RESIZE_FILTERS)),
            allow_upscale=options.boolean("allow_upscale", False),
            crop=CROP,
            source_size=ALIGNED_SIZE,
        )

    def prepare(self) -> None:
        """Find the images, or download them; UserError with what to put where when neither works."""
        if self._find_folder() is None and self.download:
            self._download()
        _ = self._splits, self._classes

    def open(self, split: str) -> FileSplit:
        """The images of "train" or "test"."""
        class_of = None if self._classes is None else self._classes.class_of
        return FileSplit(self._splits[split], self.root, self.decoder, self.on_bad_image, self._cache_dir, class_of)

    @property
    def meaning(self) -> dict[str, Any] | None:
        """The combinations of the chosen attributes, where there are any."""
        return None if self._classes is None else {"classes": self._classes.classes}

    def details(self) -> dict[str, Any]:
        rule = f"hash of the path, test fraction {self.test_fraction:g}"
        return {"split_rule": "official" if self._partition_file else rule}

    def _find_folder(self) -> Path | None:
        for below in ("celeba/img_align_celeba", "img_align_celeba/img_align_celeba", "img_align_celeba"):
            if (self.root / below).is_dir():
                return self.root / below
        return self.root if any(self.root.glob("*.jpg")) or any(self.root.glob("*.png")) else None

    @cached_property
    def _folder(self) -> Path:
        found = self._find_folder()
        if found is None:
            raise self._missing("no aligned images are there" if self.root.is_dir() else "that folder does not exist")
        return found

    @cached_property
    def _partition_file(self) -> Path | None:
        return self._beside(PARTITION_NAMES)

    @cached_property
    def _classes(self) -> Attributes | None:
        if not self.attributes:
            return None
        path = self._beside(ATTRIBUTE_NAMES)
        if path is None:
            raise UserError(
                f"dataset.attributes={self.attributes} needs {ATTRIBUTE_NAMES[0]} beside the images in {self._folder}: "
                "get it where these are from, or leave dataset.attributes out"
            )
        return read_attributes(path, self.attributes)

    def _beside(self, names: Sequence[str]) -> Path | None:
        places = (self._folder, self._folder.parent, self.root)
        return next((place / name for place in places for name in names if (place / name).is_file()), None)

    @cached_property
    def _splits(self) -> dict[str, list[Path]]:
        files = find_images(self._folder)
        if self._partition_file is None:
            return split_by_hash(files, self._folder, self.test_fraction)
        partition = _read_partition(self._partition_file)
        by_name = {path.name: path for path in files}
        absent = sorted(partition.keys() - by_name.keys())
        if absent:
            raise UserError(
                f"{self._partition_file} lists {len(partition)} images but {len(absent)} of them, {absent[0]} first, "
                f"are not in {self._folder}: unpack img_align_celeba.zip again, or remove that list to split by hash"
            )
        splits = {
            split: sorted(by_name[name] for name, part in partition.items() if part == number)
            for split, number in PARTITION_OF_SPLIT.items()
        }
        empty = [split for split, paths in splits.items() if not paths]
        if empty:
            raise UserError(f"{self._partition_file} gives no image to the {empty[0]} split: it is not CelebA's list")
        return splits

    def _download(self) -> None:
        try:
            with network_timeout(NETWORK_TIMEOUT_SECONDS):
                # gdown waits for ever on a silent network; this look first does not
                urllib.request.urlopen("https://drive.google.com", timeout=NETWORK_TIMEOUT_SECONDS).close()
                from torchvision.datasets import CelebA as TorchvisionCelebA

                target = self.root / TorchvisionCelebA.base_folder
                target.mkdir(parents=True, exist_ok=True)
                with locked(self.root), tempfile.TemporaryDirectory(dir=self.root, prefix=".download-") as work:
                    if self._find_folder() is not None:
                        return  # another process was faster
                    unpacked = Path(work) / TorchvisionCelebA.base_folder
                    unpacked.mkdir()
                    for path in target.iterdir():  # an archive that was put there is not downloaded again
                        (unpacked / path.name).symlink_to(path.resolve())
                    TorchvisionCelebA(work, download=True)
                    # The images come last: whoever sees them sees all of them, and the lists.
                    new = [path for path in unpacked.iterdir() if not path.is_symlink()]
                    for path in sorted(new, key=Path.is_dir):
                        os.replace(path, target / path.name)
        except (OSError, RuntimeError, ValueError, http.client.HTTPException) as error:
            reason = " ".join(str(error).strip("<>").split()) or type(error).__name__
            raise self._missing(f"the download failed: {reason}") from error
        except Exception as error:
            # gdown's own exceptions cannot be named here without importing an optional package
            if not type(error).__module__.startswith("gdown"):
                raise
            raise self._missing(f"Google Drive refused, usually because its daily quota is used up: {error}") from error

    def _missing(self, reason: str) -> UserError:
        return UserError(
            f"CelebA is not in dataset.root={self.root} ({reason}): get img_align_celeba.zip and "
            "list_eval_partition.txt from https://mmlab.ie.cuhk.edu.hk/projects/CelebA.html and unpack them as "
            f"{self.root / 'celeba' / 'img_align_celeba'} and {self.root / 'celeba' / PARTITION_NAMES[0]}, or try "
            "dataset.download=true (needs the package gdown and often meets Google Drive's quota)"
        )


def _read_partition(path: Path) -> dict[str, int]:
    """File name -> 0 (train), 1 (validation) or 2 (test), from the official text file or its csv form."""
    partition: dict[str, int] = {}
    for number, line in enumerate(path.read_text(errors="replace").splitlines(), start=1):
        fields = re.split(r"[,\s]+", line.strip())
        if fields == [""] or (number == 1 and fields[0] == "image_id"):
            continue
        if len(fields) != 2 or fields[1] not in ("0", "1", "2"):
            raise UserError(f"{path} line {number} is not 'name 0|1|2': it is not CelebA's list of partitions")
        partition[fields[0]] = int(fields[1])
    return partition
