"""CIFAR-10 through torchvision's own parser, on a small archive in the published layout."""

from __future__ import annotations

import functools
import hashlib
import http.server
import pickle
import shutil
import socket
import tarfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision.datasets import CIFAR10

from ddim.data import ImageDataModule, build_datamodule, cifar10
from ddim.errors import UserError

PER_BATCH = 3


def pixels(batch: int) -> np.ndarray:
    """(PER_BATCH, 3, 32, 32): values that tell the batch, image, channel, row and column apart."""
    return np.random.default_rng(batch).integers(0, 256, (PER_BATCH, 3, 32, 32), dtype=np.uint8)


@pytest.fixture(autouse=True)
def no_proxy_for_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")


@pytest.fixture
def published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the archive; torchvision is told the md5 sums of these files in place of the real ones."""
    folder = tmp_path / "published"
    batches = folder / CIFAR10.base_folder
    batches.mkdir(parents=True)
    names = [name for name, _ in CIFAR10.train_list + CIFAR10.test_list]
    for number, name in enumerate(names):
        entry = {"data": pixels(number).reshape(PER_BATCH, -1), "labels": [0] * PER_BATCH}
        (batches / name).write_bytes(pickle.dumps(entry))
    (batches / CIFAR10.meta["filename"]).write_bytes(pickle.dumps({"label_names": ["airplane"]}))
    archive = folder / CIFAR10.filename
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(batches, CIFAR10.base_folder)

    def md5(path: Path) -> str:
        return hashlib.md5(path.read_bytes()).hexdigest()

    monkeypatch.setattr(CIFAR10, "train_list", [[name, md5(batches / name)] for name in names[:-1]])
    monkeypatch.setattr(CIFAR10, "test_list", [[names[-1], md5(batches / names[-1])]])
    monkeypatch.setattr(CIFAR10, "meta", CIFAR10.meta | {"md5": md5(batches / CIFAR10.meta["filename"])})
    monkeypatch.setattr(CIFAR10, "tgz_md5", md5(archive))
    return folder


@pytest.fixture
def server(published: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Serves the archive where torchvision looks for it."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args: object) -> None: ...

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=published)) as httpd:
        threading.Thread(target=httpd.serve_forever, daemon=True).start()
        monkeypatch.setattr(CIFAR10, "url", f"http://127.0.0.1:{httpd.server_port}/{CIFAR10.filename}")
        yield
        httpd.shutdown()


def check(data: ImageDataModule) -> None:
    data.prepare_data()
    train, test = (torch.cat(list(data.images(split, 4))) for split in ("train", "test"))
    assert np.array_equal(train.numpy(), np.concatenate([pixels(number) for number in range(5)]))
    assert np.array_equal(test.numpy(), pixels(5))
    assert data.random_flip and data.space.shape == (3, 32, 32)


def settings(root: Path, download: bool = False) -> dict[str, object]:
    return {"name": "cifar10", "root": str(root), "download": download}


@pytest.mark.parametrize("below", [".", CIFAR10.base_folder])
def test_unpacked_folder_is_read(below: str, published: Path, make_datamodule: Callable[..., ImageDataModule]) -> None:
    check(make_datamodule(settings(published / below)))


def test_archive_put_there_by_hand_is_unpacked(
    published: Path, tmp_path: Path, make_datamodule: Callable[..., ImageDataModule]
) -> None:
    root = tmp_path / "root"
    root.mkdir()
    archive = shutil.copy(published / CIFAR10.filename, root)
    check(make_datamodule(settings(root)))
    assert sorted(path.name for path in root.iterdir()) == [CIFAR10.base_folder, CIFAR10.filename]
    Path(archive).unlink()
    check(make_datamodule(settings(root)))


@pytest.mark.usefixtures("server")
@pytest.mark.parametrize("before", ["nothing", "incomplete folder", "damaged archive"])
def test_missing_data_are_downloaded(
    before: str, published: Path, cache_dir: Path, make_datamodule: Callable[..., ImageDataModule]
) -> None:
    root = cache_dir / "cifar10"
    if before == "incomplete folder":
        shutil.copytree(published / CIFAR10.base_folder, root / CIFAR10.base_folder)
        (root / CIFAR10.base_folder / "data_batch_3").unlink()
    if before == "damaged archive":
        root.mkdir(parents=True)
        (root / CIFAR10.filename).write_bytes(b"half of it")
    check(make_datamodule({"name": "cifar10"}))
    assert not [path for path in root.iterdir() if path.name.startswith(".")]


def test_damaged_batch_is_refused_not_unpickled(
    published: Path, make_datamodule: Callable[..., ImageDataModule]
) -> None:
    (published / CIFAR10.base_folder / "test_batch").write_bytes(b"cos\nsystem\n(S'false'\ntR.")
    data = make_datamodule(settings(published))
    data.prepare_data()
    with pytest.raises(UserError, match=r"differs from the published one \(md5\)"):
        data.setup()


def refused(data: ImageDataModule, root: Path, reason: str) -> None:
    with pytest.raises(UserError, match=reason) as caught:
        data.prepare_data()
    message = str(caught.value)
    assert f"dataset.root={root}" in message and CIFAR10.filename in message and "\n" not in message
    assert not root.exists() or not list(root.glob(".*"))


def test_missing_data_without_download(tmp_path: Path, make_datamodule: Callable[..., ImageDataModule]) -> None:
    refused(make_datamodule(settings(tmp_path / "no")), tmp_path / "no", "dataset.download=false")


def test_damaged_archive_without_download(published: Path, make_datamodule: Callable[..., ImageDataModule]) -> None:
    shutil.rmtree(published / CIFAR10.base_folder)
    (published / CIFAR10.filename).write_bytes(b"half of it")
    refused(make_datamodule(settings(published)), published, "is damaged")


def test_refused_connection_ends_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make_datamodule: Callable[..., ImageDataModule]
) -> None:
    monkeypatch.setattr(CIFAR10, "url", "http://127.0.0.1:9/cifar-10-python.tar.gz")
    refused(make_datamodule(settings(tmp_path / "new", download=True)), tmp_path / "new", "failed")


def test_silent_network_ends_after_the_timeout(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make_datamodule: Callable[..., ImageDataModule]
) -> None:
    monkeypatch.setattr(cifar10, "NETWORK_TIMEOUT_SECONDS", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setattr(CIFAR10, "url", f"http://127.0.0.1:{silent.getsockname()[1]}/{CIFAR10.filename}")
        start = time.monotonic()
        refused(make_datamodule(settings(tmp_path / "new", download=True)), tmp_path / "new", "timed out")
        assert time.monotonic() - start < 10
    assert socket.getdefaulttimeout() is None


def test_root_that_cannot_be_made(tmp_path: Path, make_datamodule: Callable[..., ImageDataModule]) -> None:
    (tmp_path / "file").write_text("")
    root = tmp_path / "file" / "below"
    with pytest.raises(UserError, match=str(root)):
        make_datamodule(settings(root, download=True)).prepare_data()


@pytest.mark.usefixtures("published")
@pytest.mark.parametrize("before", ["nothing", "incomplete folder"])
def test_two_processes_prepare_the_same_folder_at_once(before: str, published: Path, tmp_path: Path) -> None:
    """Threads stand for processes, whose locks exclude them just as well: both find all images, every time."""
    root = tmp_path / "root"
    root.mkdir()
    shutil.copy(published / CIFAR10.filename, root)
    if before == "incomplete folder":
        (root / CIFAR10.base_folder).mkdir()
        (root / CIFAR10.base_folder / "data_batch_1").write_bytes(b"half")
    unpacked: list[str] = []
    original = CIFAR10.download

    def download(self: CIFAR10) -> None:
        unpacked.append(str(self.root))
        time.sleep(0.2)
        original(self)

    def prepare(_: int) -> None:
        data = build_datamodule(
            settings(root), batch_size=2, eval_batch_size=2, num_workers=0, seed=0, cache_dir=tmp_path / "cache"
        )
        check(data)

    with pytest.MonkeyPatch.context() as patch, ThreadPoolExecutor(4) as pool:
        patch.setattr(CIFAR10, "download", download)
        list(pool.map(prepare, range(4)))
    assert len(unpacked) == 1, "one of them unpacks, the others wait"
    assert sorted(path.name for path in root.iterdir()) == [CIFAR10.base_folder, CIFAR10.filename]
