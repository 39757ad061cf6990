"""Labels: which data sets have them, that they stay with their images, and what samples are drawn with."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

from ddim.data import ImageDataModule
from ddim.data.celeba_attributes import read_attributes
from ddim.data.conditions import in_turn
from ddim.errors import UserError

Make = Callable[..., ImageDataModule]


def batches_of(data: ImageDataModule, loader: Any) -> list[dict[str, torch.Tensor]]:
    data.setup("fit")
    return list(getattr(data, loader)())


@pytest.mark.parametrize("loader", ["train_dataloader", "val_dataloader"])
def test_digits_come_with_the_digit_that_they_are(loader: str, make_datamodule: Make) -> None:
    data = make_datamodule({"name": "digits"}, batch_size=128, eval_batch_size=100)
    table = load_digits()
    digit = {image.tobytes(): label for image, label in zip(table.images.astype(np.uint8), table.target, strict=True)}
    assert data.meaning == {"classes": [*"0123456789"]}
    for batch in batches_of(data, loader):
        assert batch["condition"].dtype == torch.int64
        levels = (batch["image"][:, 0].double() * 16 / 255).round().to(torch.uint8).numpy()
        assert batch["condition"].tolist() == [digit[level.tobytes()] for level in levels]


@pytest.mark.parametrize("in_memory", [True, False])
@pytest.mark.parametrize("split", [True, False])
def test_class_folders_are_the_classes(in_memory: bool, split: bool, image_tree: Any, make_datamodule: Make) -> None:
    folders = {"train/dog": 5, "train/cat/old": 6, "test/cat": 4, "test/dog": 2} if split else {"dog": 9, "cat/old": 8}
    root = image_tree(folders)
    config = {"name": "image_folder", "root": str(root), "resolution": 8, "in_memory": in_memory, "random_flip": True}
    data = make_datamodule(config)
    assert data.meaning == {"classes": ["cat", "dog"]}
    files = [path for path in sorted(root.rglob("*.png"))]
    pixels = {np.asarray(Image.open(path)).transpose(2, 0, 1).tobytes(): path for path in files}
    count = 0
    for loader in ("train_dataloader", "val_dataloader"):
        for batch in batches_of(data, loader):
            for image, number in zip(batch["image"], batch["condition"].tolist(), strict=True):
                path = pixels.get(image.numpy().tobytes()) or pixels[image.flip(-1).numpy().tobytes()]
                assert data.meaning["classes"][number] in path.relative_to(root).parts
                count += 1
    assert count >= 12


def test_labels_stay_with_their_images_where_bad_ones_are_skipped(image_tree: Any, make_datamodule: Make) -> None:
    root = image_tree({"train/a": 5, "train/b": 5, "test/a": 2, "test/b": 2})
    (root / "train" / "a" / "001.png").write_bytes(b"no image")
    config = {"name": "image_folder", "root": str(root), "resolution": 8, "on_bad_image": "skip"}
    data = make_datamodule(config)
    data.setup("fit")
    conditions = data.conditions("train")
    assert conditions is not None and conditions.tolist() == [0] * 4 + [1] * 5 and data.num_images("train") == 9


@pytest.mark.parametrize("folders", [{".": 9}, {"only": 9}, {"a": 5, ".": 4}, {"train": 5, "test": 4}])
def test_without_class_folders_there_are_no_labels(folders: Any, image_tree: Any, make_datamodule: Make) -> None:
    data = make_datamodule({"name": "image_folder", "root": str(image_tree(folders)), "resolution": 8})
    assert data.meaning is None and data.conditions("train") is None
    assert all("condition" not in batch for batch in batches_of(data, "train_dataloader"))
    assert data.condition_of is None


TEXT = "3\nSmiling Male Young\n000001.jpg -1  1  1\n000002.jpg  1 -1 -1\n000003.jpg  1  1 -1\n"
TABLE = "image_id,Smiling,Male,Young\n000001.jpg,-1,1,1\n000002.jpg,1,-1,-1\n000003.jpg,1,1,-1\n"


@pytest.mark.parametrize("text", [TEXT, TABLE], ids=["txt", "csv"])
def test_attributes_of_celeba_make_classes(text: str, tmp_path: Path) -> None:
    path = tmp_path / "list"
    path.write_text(text)
    found = read_attributes(path, ["Male", "Smiling"])
    assert found.classes == ["not Male, not Smiling", "Male, not Smiling", "not Male, Smiling", "Male, Smiling"]
    assert [found.class_of(Path(f"x/00000{number}.jpg")) for number in (1, 2, 3)] == [1, 2, 3]
    assert read_attributes(path, ["Young"]).classes == ["not Young", "Young"]
    with pytest.raises(UserError, match=r"000009.jpg is not in CelebA's list of attributes"):
        found.class_of(Path("000009.jpg"))


def test_celeba_has_labels_where_attributes_are_chosen(
    tmp_path: Path, random_pixels: Any, make_datamodule: Make
) -> None:
    folder = tmp_path / "faces" / "img_align_celeba"
    folder.mkdir(parents=True)
    for number in range(1, 13):
        Image.fromarray(random_pixels(number, 218, 178, 3)).save(folder / f"{number:06d}.jpg")
    signs = [(-1) ** number for number in range(1, 13)]
    rows = "".join(f"{number:06d}.jpg {sign}\n" for number, sign in enumerate(signs, start=1))
    config = {"name": "celeba", "root": str(folder.parent), "resolution": 8}
    with pytest.raises(UserError, match=r"dataset.attributes=\['Male'\] needs list_attr_celeba.txt beside the images"):
        make_datamodule({**config, "attributes": "Male"}).prepare_data()
    (folder.parent / "list_attr_celeba.txt").write_text(f"12\nMale\n{rows}")
    data = make_datamodule({**config, "attributes": "Male"})
    data.prepare_data()
    data.setup("fit")
    assert data.meaning == {"classes": ["not Male", "Male"]}
    known = [data.conditions(split) for split in ("train", "test")]
    assert all(labels is not None for labels in known)
    assert torch.cat([labels for labels in known if labels is not None]).sum() == 6
    assert make_datamodule(config).meaning is None


@pytest.mark.parametrize(
    ("chosen", "text", "message"),
    [
        (["Bald"], TEXT, "dataset.attributes=Bald is no attribute in .*; it has Smiling, Male, Young"),
        (["Male", "Male"], TEXT, "must be from 1 to 8 different names"),
        (["Male"], TEXT.replace("-1  1  1", "-1  1"), "is not CelebA's list: the line of 000001.jpg has not 3 values"),
        (["Male"], TEXT.replace("-1  1  1", "-1  2  1"), "is not CelebA's list: the line of 000001.jpg"),
        (["Male"], "", "dataset.attributes=Male is no attribute"),
    ],
)
def test_bad_attributes(chosen: list[str], text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "list"
    path.write_text(text)
    with pytest.raises(UserError, match=message):
        read_attributes(path, chosen)


def test_classes_in_turn() -> None:
    numbers = torch.tensor([0, 7, 23, 2, 10_000_000_001])
    assert in_turn(3)(numbers).tolist() == [0, 1, 2, 2, (10_000_000_001) % 3]
    assert in_turn([5, 5, 1])(numbers).tolist() == [5, 5, 1, 1, [5, 5, 1][10_000_000_001 % 3]]
    with pytest.raises(ValueError, match="at least one class"):
        in_turn([])
