"""CelebA: the official crop, the layouts it comes in, its splits, and a download that fails."""

from __future__ import annotations

import hashlib
import shutil
import urllib.error
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.datasets import CelebA as TorchvisionCelebA
from torchvision.datasets import celeba as torchvision_celeba
from torchvision.transforms import functional as F

from ddim.data import ImageDataModule, celeba
from ddim.errors import UserError

WIDTH, HEIGHT = 178, 218
PARTITION = {"000001": 0, "000002": 0, "000003": 1, "000004": 2, "000005": 0, "000006": 2}


def coordinates(blue: int = 0) -> Image.Image:
    """An aligned image whose red is the column and whose green is the row."""
    pixels = np.full((HEIGHT, WIDTH, 3), blue, dtype=np.uint8)
    pixels[..., 0] = np.arange(WIDTH)
    pixels[..., 1] = np.arange(HEIGHT)[:, None]
    return Image.fromarray(pixels)


def write_images(folder: Path, extension: str = "png") -> None:
    """The blue channel of each image is its number times 40, so that the splits can be told."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in PARTITION:
        coordinates(40 * int(name)).save(folder / f"{name}.{extension}")


def write_partition(path: Path, extension: str = "png") -> None:
    if path.suffix == ".csv":
        lines = ["image_id,partition", *(f"{name}.{extension},{part}" for name, part in PARTITION.items())]
    else:
        lines = [f"{name}.{extension} {part}" for name, part in PARTITION.items()]
    path.write_text("\n".join(lines) + "\n")


def settings(root: Path, **more: Any) -> dict[str, Any]:
    return {"name": "celeba", "root": str(root), **more}


def numbers(data: ImageDataModule, split: str) -> list[int]:
    return [int(image[2].float().mean() / 40 + 0.5) for batch in data.images(split, 2) for image in batch]


def test_crop_is_rows_57_to_185_and_columns_25_to_153(
    tmp_path: Path, make_datamodule: Callable[..., ImageDataModule]
) -> None:
    write_images(tmp_path / "faces")
    image = next(make_datamodule(settings(tmp_path / "faces", resolution=128)).images("train", 1))[0]
    assert torch.equal(image[0], torch.arange(25, 153, dtype=torch.uint8).expand(128, 128))
    assert torch.equal(image[1], torch.arange(57, 185, dtype=torch.uint8)[:, None].expand(128, 128))


def test_default_is_the_crop_resized_to_64_bilinearly(
    tmp_path: Path, make_datamodule: Callable[..., ImageDataModule]
) -> None:
    write_images(tmp_path / "faces")
    data = make_datamodule(settings(tmp_path / "faces"))
    expected = F.resize(F.crop(coordinates(40), 57, 25, 128, 128), 64, F.InterpolationMode.BILINEAR)
    images = torch.cat(list(data.images("train", 9)) + list(data.images("test", 9)))
    assert images.shape == (6, 3, 64, 64) and data.random_flip
    assert any(np.array_equal(image.permute(1, 2, 0), np.asarray(expected)) for image in images)


@pytest.mark.parametrize(
    ("folder", "partition"),
    [
        ("celeba/img_align_celeba", "celeba/list_eval_partition.txt"),
        ("img_align_celeba", "list_eval_partition.txt"),
        ("img_align_celeba/img_align_celeba", "list_eval_partition.csv"),
        (".", "list_eval_partition.txt"),
        (".", "../list_eval_partition.txt"),
    ],
)
def test_official_splits_in_every_layout(
    folder: str, partition: str, tmp_path: Path, make_datamodule: Callable[..., ImageDataModule]
) -> None:
    root = tmp_path / "root"
    write_images(root / folder)
    write_partition(root / partition)
    data = make_datamodule(settings(root))
    data.prepare_data()
    assert numbers(data, "train") == [1, 2, 5]
    assert numbers(data, "test") == [4, 6]
    assert data.provenance("test")["split_rule"] == "official"


def test_without_the_list_a_hash_splits(tmp_path: Path, make_datamodule: Callable[..., ImageDataModule]) -> None:
    write_images(tmp_path / "faces")
    data = make_datamodule(settings(tmp_path / "faces", test_fraction=0.34))
    assert sorted(numbers(data, "train") + numbers(data, "test")) == [1, 2, 3, 4, 5, 6]
    assert data.num_images("test") == 2
    assert "hash" in data.provenance("test")["split_rule"]


def refusal(data: ImageDataModule) -> str:
    with pytest.raises(UserError) as caught:
        data.prepare_data()
        data.setup()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_wrong_size_is_named(tmp_path: Path, make_datamodule: Callable[..., ImageDataModule]) -> None:
    write_images(tmp_path / "faces")
    Image.new("RGB", (64, 64)).save(tmp_path / "faces" / "000009.png")
    message = refusal(make_datamodule(settings(tmp_path / "faces")))
    assert "000009.png" in message and "64x64" in message and "178x218" in message


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("000001.png 0\n000777.png 2\n", "000777.png"),
        ("000001.png 0\nnot a partition at all\n", "line 2"),
        ("000001.png 0\n000002.png 7\n", "line 2"),
        ("000001.png 0\n000002.png 0\n", "test"),
    ],
)
def test_bad_lists_are_refused(
    content: str, expected: str, tmp_path: Path, make_datamodule: Callable[..., ImageDataModule]
) -> None:
    write_images(tmp_path / "faces")
    (tmp_path / "faces" / "list_eval_partition.txt").write_text(content)
    message = refusal(make_datamodule(settings(tmp_path / "faces")))
    assert expected in message and "list_eval_partition.txt" in message


@pytest.mark.parametrize("exists", [True, False])
def test_missing_images_say_what_to_put_where(
    exists: bool, tmp_path: Path, make_datamodule: Callable[..., ImageDataModule]
) -> None:
    if exists:
        (tmp_path / "faces").mkdir()
    message = refusal(make_datamodule(settings(tmp_path / "faces")))
    assert f"dataset.root={tmp_path / 'faces'}" in message
    assert "img_align_celeba.zip" in message and "list_eval_partition.txt" in message


def unreachable(*_: Any, **__: Any) -> None:
    raise urllib.error.URLError("no route to host")


def quota_page(*_: Any, **__: Any) -> None:
    # what torchvision raises when Google Drive sends a page instead of the file
    raise RuntimeError("File not found or corrupted.")


class Reachable:
    def close(self) -> None: ...


def test_download_without_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make_datamodule: Callable[..., ImageDataModule]
) -> None:
    monkeypatch.setattr(celeba.urllib.request, "urlopen", unreachable)
    message = refusal(make_datamodule(settings(tmp_path / "faces", download=True)))
    assert "no route to host" in message and "img_align_celeba.zip" in message


def test_download_that_meets_the_quota(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make_datamodule: Callable[..., ImageDataModule]
) -> None:
    monkeypatch.setattr(celeba.urllib.request, "urlopen", lambda *_, **__: Reachable())
    monkeypatch.setattr(torchvision_celeba, "download_file_from_google_drive", quota_page)
    message = refusal(make_datamodule(settings(tmp_path / "faces", download=True)))
    assert "quota" in message and "img_align_celeba.zip" in message


def test_download_through_torchvision(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make_datamodule: Callable[..., ImageDataModule]
) -> None:
    """Only Google Drive is replaced; torchvision checks the md5 sums, unpacks and parses."""
    drive = tmp_path / "drive"
    write_images(drive / "img_align_celeba", "jpg")
    write_partition(drive / "list_eval_partition.txt", "jpg")
    with zipfile.ZipFile(drive / "img_align_celeba.zip", "w") as archive:
        for path in (drive / "img_align_celeba").iterdir():
            archive.write(path, f"img_align_celeba/{path.name}")
    (drive / "identity_CelebA.txt").write_text("".join(f"{name}.jpg 1\n" for name in PARTITION))
    for name in ("list_attr_celeba.txt", "list_bbox_celeba.txt", "list_landmarks_align_celeba.txt"):
        (drive / name).write_text("6\na b\n" + "".join(f"{image}.jpg 1 -1\n" for image in PARTITION))

    def md5(name: str) -> str:
        return hashlib.md5((drive / name).read_bytes()).hexdigest()

    def fetch(file_id: str, root: str, filename: str, md5: str) -> None:
        Path(root).mkdir(parents=True, exist_ok=True)
        shutil.copy(drive / filename, root)

    files = [(file_id, md5(name), name) for file_id, _, name in TorchvisionCelebA.file_list]
    monkeypatch.setattr(TorchvisionCelebA, "file_list", files)
    monkeypatch.setattr(torchvision_celeba, "download_file_from_google_drive", fetch)
    monkeypatch.setattr(celeba.urllib.request, "urlopen", lambda *_, **__: Reachable())
    data = make_datamodule(settings(tmp_path / "root", download=True))
    data.prepare_data()
    assert numbers(data, "train") == [1, 2, 5]
    assert numbers(data, "test") == [4, 6]
    monkeypatch.setattr(celeba.urllib.request, "urlopen", unreachable)
    make_datamodule(settings(tmp_path / "root", download=True)).prepare_data()
