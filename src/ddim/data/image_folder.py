"""Any directory tree of images, with or without class folders, with or without train and test folders."""

from __future__ import annotations

import hashlib
import os
from functools import cached_property
from pathlib import Path
from typing import Any, NoReturn

from ddim.data.decoding import BACKGROUNDS, RESIZE_FILTERS, Decoder
from ddim.data.options import Options
from ddim.data.splits import ON_BAD_IMAGE, FileSplit
from ddim.errors import UserError

EXTENSIONS = {".bmp", ".gif", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}
TEST_FOLDERS = ("test", "val", "valid", "validation")


class ImageFolder:
    """All image files below `root`, in the order of their relative paths.

    `root/train` and the first of `root/test`, `val`, `valid`, `validation` are the splits when both exist. Otherwise
    `test_fraction` of all files is the test split, chosen by a hash of the relative path.

    Where every file lies in one of several folders of its split (of `root`, where there are no splits), these are the
    classes of the images, in the order of their names.
    """

    def __init__(self, options: Options, cache_dir: Path) -> None:
        self.channels = options.choice("channels", 3, (1, 3))
        self.resolution = options.integer("resolution", 32)
        self.root = options.folder("root", None)
        self.on_bad_image = options.choice("on_bad_image", "error", ON_BAD_IMAGE)
        self._cache_dir = cache_dir
        self.test_fraction = options.fraction("test_fraction", 0.1)
        self.decoder = Decoder(
            channels=self.channels,
            resolution=self.resolution,
            resize=options.choice("resize", "bilinear", tuple(RESIZE_FILTERS)),
            background=options.choice("background", "white", tuple(BACKGROUNDS)),
            allow_upscale=options.boolean("allow_upscale", False),
        )

    def prepare(self) -> None:
        """Check that both splits have files; UserError otherwise."""
        _ = self._splits

    def open(self, split: str) -> FileSplit:
        """The images of "train" or "test"."""
        class_of = None if self._classes is None else self._class_of
        return FileSplit(self._splits[split], self.root, self.decoder, self.on_bad_image, self._cache_dir, class_of)

    @property
    def meaning(self) -> dict[str, Any] | None:
        """The names of the class folders, where there are any."""
        return None if self._classes is None else {"classes": self._classes}

    def details(self) -> dict[str, Any]:
        test = self._test_folder
        rule = f"folders train and {test.name}" if test else f"hash of the path, test fraction {self.test_fraction:g}"
        return {"split_rule": rule}

    @cached_property
    def _test_folder(self) -> Path | None:
        if not (self.root / "train").is_dir():
            return None
        folders = [self.root / name for name in TEST_FOLDERS]
        return next((folder for folder in folders if folder.is_dir()), None)

    @cached_property
    def _classes(self) -> list[str] | None:
        folders = {self._folder_of(path) for files in self._splits.values() for path in files}
        return None if "" in folders or len(folders) < 2 else sorted(folders)

    def _class_of(self, path: Path) -> int:
        assert self._classes is not None
        return self._classes.index(self._folder_of(path))

    def _folder_of(self, path: Path) -> str:
        """The folder directly below that of the split; empty where the file lies in that itself."""
        parts = path.relative_to(self.root).parts[self._test_folder is not None :]
        return parts[0] if len(parts) > 1 else ""

    @cached_property
    def _splits(self) -> dict[str, list[Path]]:
        check_root(self.root)
        if self._test_folder is not None:
            return {"train": find_images(self.root / "train"), "test": find_images(self._test_folder)}
        return split_by_hash(find_images(self.root), self.root, self.test_fraction)


def check_root(root: Path) -> None:
    """Refuse, with a UserError, a dataset root that is not a folder."""
    if not root.exists():
        raise UserError(f"dataset.root={root} does not exist: give the folder that holds the images")
    if not root.is_dir():
        raise UserError(f"dataset.root={root} is a file: give the folder that holds the images")
    try:
        os.scandir(root).close()
        os.stat(os.path.join(root, "."))  # entering is another permission than listing
    except OSError as error:
        raise UserError(f"dataset.root={root} cannot be read ({error.strerror}): check its permissions") from error


def find_images(folder: Path) -> list[Path]:
    """Image files below a folder, known by their extension, sorted by relative path; links are followed.

    Names that begin with a dot and macOS's resource folders are left out.

    Raises:
        UserError: a folder cannot be read, or there is no image.
    """

    def refuse(error: OSError) -> NoReturn:
        raise UserError(f"cannot read {error.filename} below dataset.root ({error.strerror}): check its permissions")

    found: list[Path] = []
    visited: set[tuple[int, int]] = set()
    for directory, subfolders, names in os.walk(folder, onerror=refuse, followlinks=True):
        try:
            status = os.stat(directory)
        except OSError as error:
            refuse(error)
        if (status.st_dev, status.st_ino) in visited:  # a link that leads back up
            subfolders.clear()
            continue
        visited.add((status.st_dev, status.st_ino))
        subfolders[:] = [name for name in sorted(subfolders) if not name.startswith(".") and name != "__MACOSX"]
        for name in names:
            if not name.startswith(".") and os.path.splitext(name)[1].lower() in EXTENSIONS:
                found.append(Path(directory, name))
    if not found:
        known = " ".join(sorted(EXTENSIONS))
        raise UserError(f"no images in {folder} (dataset.root): it needs files that end in one of {known}")
    return sorted(found, key=lambda path: path.relative_to(folder).as_posix())


def split_by_hash(files: list[Path], root: Path, test_fraction: float) -> dict[str, list[Path]]:
    """Choose round(test_fraction * N) test files, at least one, by the sha256 of the path relative to `root`.

    Raises:
        UserError: no file would be left for training.
    """
    num_test = max(1, round(test_fraction * len(files)))
    if num_test >= len(files):
        raise UserError(
            f"dataset.root={root} has {len(files)} image(s), and dataset.test_fraction={test_fraction:g} leaves none "
            "to train on: add images or lower it"
        )
    hashed = sorted(files, key=lambda path: hashlib.sha256(path.relative_to(root).as_posix().encode()).digest())
    test = set(hashed[:num_test])
    return {"train": [path for path in files if path not in test], "test": [path for path in files if path in test]}
