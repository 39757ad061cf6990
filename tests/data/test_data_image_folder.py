"""Which files an image folder takes, which split they go to, and what happens to files that cannot be used."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from ddim.data import ImageDataModule
from ddim.data.decoding import Decoder
from ddim.data.image_folder import find_images, split_by_hash
from ddim.errors import UserError

Make = Callable[..., ImageDataModule]


def settings(root: Path, **more: Any) -> dict[str, Any]:
    return {"name": "image_folder", "root": str(root), "resolution": 8, **more}


def pixels(data: ImageDataModule, split: str) -> torch.Tensor:
    return torch.cat(list(data.images(split, 3)))


def truncate(path: Path) -> None:
    """Replace an image by the first half of a JPEG."""
    Image.effect_noise((32, 32), 90).save(path, format="JPEG")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize("test_folder", ["test", "val", "valid", "validation"])
def test_train_and_test_folders_are_the_splits(
    test_folder: str, image_tree: Callable[..., Path], make_datamodule: Make
) -> None:
    root = image_tree({"train/cat": 3, "train/dog/brown": 2, f"{test_folder}/cat": 2})
    data = make_datamodule(settings(root))
    data.prepare_data()
    assert (data.num_images("train"), data.num_images("test")) == (5, 2)
    in_order = sorted((root / "train").rglob("*.png"))
    expected = np.stack([np.asarray(Image.open(path)).transpose(2, 0, 1) for path in in_order])
    assert np.array_equal(pixels(data, "train").numpy(), expected)
    assert data.provenance("test")["split_rule"] == f"folders train and {test_folder}"


def test_test_comes_before_val(image_tree: Callable[..., Path], make_datamodule: Make) -> None:
    data = make_datamodule(settings(image_tree({"train": 3, "val": 1, "test": 2})))
    assert data.num_images("test") == 2


@pytest.mark.parametrize("folders", [{".": 20}, {"cat": 12, "dog": 8}, {"train": 20}, {"test": 20}])
def test_other_trees_are_split_by_hash(
    folders: dict[str, int], image_tree: Callable[..., Path], make_datamodule: Make
) -> None:
    data = make_datamodule(settings(image_tree(folders), test_fraction=0.25))
    assert (data.num_images("train"), data.num_images("test")) == (15, 5)
    together = torch.cat([pixels(data, "train"), pixels(data, "test")]).flatten(1)
    assert len(together.unique(dim=0)) == 20


def test_hash_split_depends_on_relative_paths_only() -> None:
    files = [Path("a") / f"{number}.png" for number in range(100)]
    split = split_by_hash(files, Path("a"), 0.1)
    moved = split_by_hash([Path("b/c") / path.name for path in reversed(files)], Path("b/c"), 0.1)
    assert len(split["test"]) == 10 and len(split["train"]) == 90
    assert {path.name for path in split["test"]} == {path.name for path in moved["test"]}
    assert {path.name for path in split["test"]} != {f"{number}.png" for number in range(10)}
    more = split_by_hash([*files, Path("a/new.png")], Path("a"), 0.1)
    assert len(set(split["test"]) ^ set(more["test"])) <= 2


def test_only_images_are_found_and_links_are_followed(tmp_path: Path) -> None:
    root = tmp_path / "root"
    for name in ("b.PNG", "a.jpeg", "notes.txt", ".hidden.png", "sub/c.tif", ".git/d.png", "__MACOSX/e.png"):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "f.webp").write_bytes(b"")
    os.symlink(elsewhere, root / "link")
    os.symlink(root, root / "sub" / "loop")
    names = [path.relative_to(root).as_posix() for path in find_images(root)]
    assert names == ["a.jpeg", "b.PNG", "link/f.webp", "sub/c.tif"]


def test_folder_without_permission_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make_datamodule: Make
) -> None:
    def refuse(path: Any) -> Any:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(os, "scandir", refuse)  # chmod does not stop the superuser
    with pytest.raises(UserError, match=f"{tmp_path}.*permissions"):
        make_datamodule(settings(tmp_path)).prepare_data()


def test_channels_resize_and_background_reach_the_pixels(tmp_path: Path, make_datamodule: Make) -> None:
    for index in range(2):
        Image.new("RGBA", (20, 30), (200, 100, 0, 0)).save(tmp_path / f"{index}.png")
    data = make_datamodule(settings(tmp_path, channels=1, background="black", test_fraction=0.5))
    assert pixels(data, "train").shape == (1, 1, 8, 8)
    assert (pixels(data, "train") == 0).all()
    colour = make_datamodule(settings(tmp_path, test_fraction=0.5))
    assert (pixels(colour, "train") == 255).all() and colour.space.shape[0] == 3


@pytest.mark.parametrize("in_memory", [True, False])
def test_truncated_image_is_named(in_memory: bool, image_tree: Callable[..., Path], make_datamodule: Make) -> None:
    root = image_tree({"train": 9, "test": 2})
    truncate(root / "train" / "004.png")
    data = make_datamodule(settings(root, in_memory=in_memory))
    data.prepare_data()
    with pytest.raises(UserError, match=r"train/004\.png cannot be used: .*truncated.*dataset\.on_bad_image=skip"):
        data.setup()


@pytest.mark.parametrize("in_memory", [True, False])
def test_skipped_images_are_counted_and_the_others_stay(
    in_memory: bool,
    image_tree: Callable[..., Path],
    make_datamodule: Make,
    caplog: pytest.LogCaptureFixture,
) -> None:
    root = image_tree({"train": 9, "test": 2})
    truncate(root / "train" / "004.png")
    (root / "train" / "007.png").write_text("not an image")
    shutil.copytree(root, root.parent / "clean")
    for name in ("004.png", "007.png"):
        (root.parent / "clean" / "train" / name).unlink()
    clean = make_datamodule(settings(root.parent / "clean"))
    with caplog.at_level(logging.WARNING):
        data = make_datamodule(settings(root, in_memory=in_memory, on_bad_image="skip"))
        data.setup()
        assert data.num_images("train") == 7
    warnings = [record.getMessage() for record in caplog.records if "skipped" in record.getMessage()]
    assert len(warnings) == 1 and "2 of 9 images skipped, the first is train/004.png" in warnings[0]
    assert torch.equal(pixels(data, "train"), pixels(clean, "train"))
    assert data.provenance("train") == clean.provenance("train") | {"skipped": 2}
    indices = [index for batch in data.train_dataloader() for index in batch["index"].tolist()]
    assert set(indices) <= set(range(7))


def test_nothing_left_after_skipping(image_tree: Callable[..., Path], make_datamodule: Make) -> None:
    root = image_tree({"train": 2, "test": 1})
    for path in (root / "train").iterdir():
        path.write_text("not an image")
    with pytest.raises(UserError, match="none of the 2 images"):
        make_datamodule(settings(root, on_bad_image="skip")).setup()


def test_file_that_vanishes_after_setup_is_named(image_tree: Callable[..., Path], make_datamodule: Make) -> None:
    root = image_tree({"train": 4, "test": 1})
    data = make_datamodule(settings(root, in_memory=False))
    data.setup()
    (root / "train" / "002.png").unlink()
    with pytest.raises(UserError, match=r"002\.png"):
        list(data.train_dataloader())
    with pytest.raises(UserError, match=r"002\.png"):
        list(data.images("train", 2))


def test_fingerprint_follows_the_pixels_not_the_place(
    image_tree: Callable[..., Path], tmp_path: Path, make_datamodule: Make
) -> None:
    root = image_tree({"train": 4, "test": 1})
    original = make_datamodule(settings(root)).provenance("train")
    shutil.copytree(root, tmp_path / "copy")
    assert make_datamodule(settings(tmp_path / "copy")).provenance("train") == original
    assert make_datamodule(settings(root)).provenance("test")["fingerprint"] != original["fingerprint"]
    assert (
        make_datamodule(settings(root, resize="lanczos")).provenance("train")["fingerprint"] != original["fingerprint"]
    )

    image = Image.open(root / "train" / "002.png")
    image.putpixel((0, 0), tuple(255 - value for value in image.getpixel((0, 0))))  # type: ignore[union-attr, misc]
    image.save(root / "train" / "002.png")
    changed = make_datamodule(settings(root)).provenance("train")
    assert changed["fingerprint"] != original["fingerprint"]


def test_files_are_read_once_and_remembered_until_they_change(
    image_tree: Callable[..., Path], make_datamodule: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = image_tree({"train": 6, "test": 2})
    decoded: list[int] = []
    decode = Decoder.__call__

    def counting(self: Decoder, data: bytes) -> np.ndarray:
        decoded.append(len(data))
        return decode(self, data)

    monkeypatch.setattr(Decoder, "__call__", counting)
    first = make_datamodule(settings(root, in_memory=False)).provenance("train")
    assert len(decoded) == 6
    assert make_datamodule(settings(root, in_memory=False)).provenance("train") == first
    assert len(decoded) == 6
    os.utime(root / "train" / "003.png", ns=(1, 1))
    assert make_datamodule(settings(root, in_memory=False)).provenance("train") == first
    assert len(decoded) == 12


def test_damaged_memory_of_a_reading_is_ignored(
    image_tree: Callable[..., Path], make_datamodule: Make, cache_dir: Path
) -> None:
    root = image_tree({"train": 6, "test": 2})
    first = make_datamodule(settings(root)).provenance("train")
    for content in ("", "{", "[]", '{"fingerprint": 1}', '{"fingerprint": "x", "bad": 3}'):
        for record in cache_dir.rglob("*.json"):
            record.write_text(content)
        assert make_datamodule(settings(root)).provenance("train") == first
    assert not list(cache_dir.rglob("*.tmp"))


def test_read_only_cache_only_costs_time(
    image_tree: Callable[..., Path], make_datamodule: Make, tmp_path: Path
) -> None:
    root = image_tree({"train": 6, "test": 2})
    (tmp_path / "file").write_text("")
    data = make_datamodule(settings(root), cache_dir=tmp_path / "file" / "cache")
    assert data.provenance("train")["count"] == 6
