"""CIFAR-10 (Krizhevsky, 2009) through torchvision: 50,000 training and 10,000 test images of 3x32x32."""

from __future__ import annotations

import contextlib
import http.client
import os
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import torch

from ddim.data.options import Options
from ddim.data.splits import ArraySplit
from ddim.errors import UserError
from ddim.runs.locking import locked

NETWORK_TIMEOUT_SECONDS = 15.0
# In the order of the published numbers.
CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


class Cifar10:
    """The python version of CIFAR-10 below `root`, downloaded when it is missing and `download` is true.

    An archive `cifar-10-python.tar.gz` that lies in `root` is unpacked instead of downloaded. torchvision checks the
    md5 sum of every pickle before it is read.
    """

    meaning: ClassVar[dict[str, Any]] = {"classes": CLASSES}

    def __init__(self, options: Options, cache_dir: Path) -> None:
        self.channels = options.choice("channels", 3, (3,))
        self.resolution = options.choice("resolution", 32, (32,))
        root = options.folder("root", cache_dir / "cifar10")
        self.download = options.boolean("download", True)
        self.root = root.parent if root.name == _torchvision_cifar10().base_folder else root

    def prepare(self) -> None:
        """Make sure that the data are below `root`; never leaves a half-unpacked folder.

        Raises:
            UserError: they are not, and cannot be got.
        """
        cifar10 = _torchvision_cifar10()
        folder, archive = self.root / cifar10.base_folder, self.root / cifar10.filename
        needed = [name for name, _ in [*cifar10.train_list, *cifar10.test_list]] + [cifar10.meta["filename"]]

        def complete() -> bool:
            return all((folder / name).is_file() for name in needed)

        if complete():
            return
        from torchvision.datasets.utils import check_integrity

        have_archive = archive.is_file() and check_integrity(archive, cifar10.tgz_md5)
        if not have_archive and not self.download:
            state = "is damaged" if archive.is_file() else "is not there"
            raise self._missing(f"{archive.name} {state} and dataset.download=false")
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            with locked(self.root), tempfile.TemporaryDirectory(dir=self.root, prefix=".download-") as work:
                if complete():
                    return  # another process was faster
                if have_archive:
                    (Path(work) / archive.name).symlink_to(archive.resolve())
                with network_timeout(NETWORK_TIMEOUT_SECONDS):
                    cifar10(work, download=True)
                if folder.exists():
                    os.replace(folder, Path(work) / "incomplete")
                os.replace(Path(work) / cifar10.base_folder, folder)
        except (OSError, RuntimeError, http.client.HTTPException) as error:
            raise self._missing(f"getting it from {cifar10.url} failed: {_reason(error)}") from error

    def open(self, split: str) -> ArraySplit:
        """uint8 (N, 3, 32, 32), "train" or "test" in the order of the published batches, and which class each is of.

        Raises:
            UserError: files below `root` are missing or differ from the published ones.
        """
        try:
            dataset = _torchvision_cifar10()(self.root, train=split == "train", download=False)
        except (OSError, RuntimeError) as error:
            raise self._missing("a file is missing or differs from the published one (md5)") from error
        return ArraySplit(torch.from_numpy(dataset.data.transpose(0, 3, 1, 2).copy()), torch.tensor(dataset.targets))

    def details(self) -> dict[str, Any]:
        return {"split_rule": "official"}

    def _missing(self, reason: str) -> UserError:
        cifar10 = _torchvision_cifar10()
        return UserError(
            f"CIFAR-10 is not complete in dataset.root={self.root} ({reason}): put the file {cifar10.filename} from "
            f"{cifar10.url}, or its unpacked folder {cifar10.base_folder}, into that folder"
        )


@contextlib.contextmanager
def network_timeout(seconds: float) -> Iterator[None]:
    """Give urllib, which torchvision calls without a timeout, one: a silent network must not hang a run."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def _reason(error: BaseException) -> str:
    return " ".join(str(error).strip("<>").split()) or type(error).__name__


def _torchvision_cifar10() -> Any:
    # torchvision takes a second to import and only this dataset needs it.
    from torchvision.datasets import CIFAR10

    return CIFAR10
