"""Batches, ranks, memory, and what the datamodule tells about its images."""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import pytorch_lightning as pl
import torch

from ddim.data import ImageDataModule, datamodule
from ddim.data.loaders import InMemoryLoader, WorkerLoader
from ddim.data.memory import available_memory
from ddim.data.order import TrainingOrder
from ddim.errors import UserError

Make = Callable[..., ImageDataModule]


@pytest.fixture
def root(image_tree: Callable[..., Path]) -> Path:
    return image_tree({"train": 13, "test": 7})


def settings(root: Path, **more: Any) -> dict[str, Any]:
    return {"name": "image_folder", "root": str(root), "resolution": 8, **more}


def split_pixels(data: ImageDataModule, split: str) -> torch.Tensor:
    return torch.cat(list(data.images(split, 5)))


@pytest.mark.parametrize(("in_memory", "num_workers"), [(True, 2), (False, 0), (False, 2)])
def test_training_batches_are_the_order_applied_to_the_images(
    in_memory: bool, num_workers: int, root: Path, make_datamodule: Make
) -> None:
    config = settings(root, in_memory=in_memory, random_flip=True)
    data = make_datamodule(config, num_workers=num_workers, batch_size=5, seed=11)
    data.setup("fit")
    images = split_pixels(data, "train")
    order = TrainingOrder(13, 5, 11, random_flip=True)
    loader = data.train_dataloader()
    batches = list(loader)
    assert len(batches) == len(loader) == 2
    for number, batch in enumerate(batches):
        assert set(batch) == {"image", "index"}
        assert batch["image"].dtype == torch.uint8 and batch["index"].dtype == torch.int64
        items = order.batch(number)
        assert batch["index"].tolist() == [index for index, _ in items]
        for image, (index, flip) in zip(batch["image"], items, strict=True):
            assert torch.equal(image, images[index].flip(-1) if flip else images[index])
    assert any(flip for number in range(2) for _, flip in order.batch(number))


@pytest.mark.parametrize("in_memory", [True, False])
def test_mirroring_leaves_the_stored_images_alone(in_memory: bool, root: Path, make_datamodule: Make) -> None:
    data = make_datamodule(settings(root, in_memory=in_memory, random_flip=True))
    data.setup()
    before = split_pixels(data, "train").clone()
    for _ in range(3):
        list(data.train_dataloader())
    assert torch.equal(split_pixels(data, "train"), before)


@pytest.mark.parametrize("in_memory", [True, False])
@pytest.mark.parametrize("world_size", [1, 2, 3, 9])
def test_ranks_cover_each_test_image_once(in_memory: bool, world_size: int, root: Path, make_datamodule: Make) -> None:
    seen: dict[int, torch.Tensor] = {}
    for rank in range(world_size):
        data = make_datamodule(settings(root, in_memory=in_memory), batch_size=1)
        data.trainer = attached_trainer(rank, world_size)
        data.setup("test")
        for loader in (data.val_dataloader(), data.test_dataloader()):
            indices = [index for batch in loader for index in batch["index"].tolist()]
            assert indices == list(range(rank, 7, world_size))
        for batch in data.test_dataloader():
            seen |= dict(zip(batch["index"].tolist(), batch["image"], strict=True))
    images = split_pixels(make_datamodule(settings(root)), "test")
    assert sorted(seen) == list(range(7))
    assert all(torch.equal(images[index], image) for index, image in seen.items())


def attached_trainer(rank: int, world_size: int) -> Any:
    """The part of a Trainer that the datamodule reads."""
    total = SimpleNamespace(processed=0)
    fit_loop = SimpleNamespace(epoch_loop=SimpleNamespace(batch_progress=SimpleNamespace(total=total)))
    return SimpleNamespace(
        global_rank=rank, world_size=world_size, num_devices=world_size, fit_loop=fit_loop, overfit_batches=0
    )


def test_ranks_train_on_disjoint_images(root: Path, make_datamodule: Make) -> None:
    indices: list[int] = []
    for rank in range(3):
        data = make_datamodule(settings(root), batch_size=2)
        data.trainer = attached_trainer(rank, 3)
        data.setup("fit")
        assert len(data.train_dataloader()) == 2
        indices += [index for batch in data.train_dataloader() for index in batch["index"].tolist()]
    assert len(set(indices)) == len(indices) == 12


def test_images_come_in_a_fixed_order_up_to_the_limit(root: Path, make_datamodule: Make) -> None:
    data = make_datamodule(settings(root, random_flip=True))
    decoded = list(data.images("train", 5, limit=7))
    data.setup()
    loaded = list(data.images("train", 5, limit=7))
    assert [len(batch) for batch in decoded] == [len(batch) for batch in loaded] == [5, 2]
    assert torch.equal(torch.cat(decoded), torch.cat(loaded))
    assert sum(len(batch) for batch in data.images("test", 4, limit=100)) == 7
    assert list(data.images("test", 4, limit=0)) == []


def test_a_part_of_a_split_is_spread_over_it(root: Path, make_datamodule: Make) -> None:
    data = make_datamodule(settings(root))
    everything = torch.cat(list(data.images("train", 5)))
    expected = [number * len(everything) // 4 for number in range(4)]
    assert expected[-1] > 4, "the first four would be another part"
    for _ in range(2):  # from files, then from memory
        assert torch.equal(torch.cat(list(data.images("train", 3, limit=4))), everything[expected])
        data.setup()


def test_the_loss_is_of_a_part_that_is_spread(root: Path, make_datamodule: Make) -> None:
    data = make_datamodule(settings(root))
    data.setup("test")
    data.test_limit = 3
    found = torch.cat([batch["index"] for batch in data.test_dataloader()])
    assert found.tolist() == [0, 2, 4], "of seven"


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda data: data.num_images("valid"), "valid"),
        (lambda data: data.provenance(""), "split"),
        (lambda data: list(data.images("train", 0)), "batch_size=0"),
        (lambda data: list(data.images("train", 1, limit=-1)), "limit=-1"),
    ],
)
def test_wrong_arguments_are_refused(call: Callable[..., Any], message: str, root: Path, make_datamodule: Make) -> None:
    with pytest.raises(ValueError, match=message):
        call(make_datamodule(settings(root)))


@pytest.mark.parametrize(
    ("world_size", "batch_size", "fits"), [(1, 13, True), (1, 14, False), (2, 6, True), (2, 7, False)]
)
def test_batch_larger_than_the_training_split(
    world_size: int, batch_size: int, fits: bool, root: Path, make_datamodule: Make
) -> None:
    data = make_datamodule(settings(root), batch_size=batch_size)
    data.trainer = attached_trainer(0, world_size)
    if fits:
        data.setup("fit")
        return
    with pytest.raises(UserError, match=rf"batch_size={batch_size}.*13 images.*at most {13 // world_size}$"):
        data.setup("fit")
    data.setup("test")


@pytest.mark.parametrize(
    ("in_memory", "free_images", "processes", "expected"),
    [
        ("auto", 4 * 20 + 1, 1, InMemoryLoader),
        ("auto", 4 * 20, 1, WorkerLoader),
        ("auto", 4 * 20 + 1, 2, WorkerLoader),
        ("auto", 8 * 20 + 1, 2, InMemoryLoader),
        (True, 0, 1, InMemoryLoader),
        (False, 10**6, 1, WorkerLoader),
    ],
)
def test_images_live_in_memory_when_they_take_less_than_a_quarter(
    in_memory: Any,
    free_images: int,
    processes: int,
    expected: type,
    root: Path,
    make_datamodule: Make,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(datamodule, "available_memory", lambda: free_images * 3 * 8 * 8)
    data = make_datamodule(settings(root, in_memory=in_memory))
    data.trainer = attached_trainer(0, processes)
    data.setup()
    assert type(data.train_dataloader()) is type(data.val_dataloader()) is expected


def test_available_memory_is_plausible() -> None:
    assert 2**20 < available_memory() < 2**50


def test_setup_twice_reads_once(root: Path, make_datamodule: Make) -> None:
    data = make_datamodule(settings(root))
    data.setup()
    first = data.train_dataloader()
    data.setup("fit")
    second = data.train_dataloader()
    assert isinstance(first, InMemoryLoader) and isinstance(second, InMemoryLoader)
    assert first.images is second.images


def test_provenance_is_json_without_paths(root: Path, make_datamodule: Make, tmp_path: Path) -> None:
    record = make_datamodule(settings(root, label="noise", channels=1)).provenance("train")
    text = json.dumps(record)
    assert str(tmp_path) not in text
    expected = {"dataset": "noise", "split": "train", "count": 13, "channels": 1, "resolution": 8, "resize": "bilinear"}
    assert record | expected == record
    assert len(record["fingerprint"]) == 16 and int(record["fingerprint"], 16) >= 0


class Sums(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))

    def training_step(self, batch: dict[str, torch.Tensor], batch_idx: int) -> torch.Tensor:
        return self.weight * batch["image"].float().mean()

    def validation_step(self, batch: dict[str, torch.Tensor], batch_idx: int) -> None: ...

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def test_lightning_has_nothing_to_say_about_images_in_memory(root: Path, make_datamodule: Make, tmp_path: Path) -> None:
    trainer = pl.Trainer(
        max_epochs=2,
        accelerator="cpu",
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        default_root_dir=tmp_path,
    )
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer.fit(Sums(), make_datamodule(settings(root)))
        trainer.validate(Sums(), make_datamodule(settings(root)), verbose=False)
    # Of torch's own pytrees, and of a cluster whose commands this machine happens to have.
    others = ("LeafSpec", "`srun` command")
    said = [str(warning.message) for warning in caught if not any(other in str(warning.message) for other in others)]
    assert said == []


def test_the_room_stays_below_the_rooms_that_use_it() -> None:
    loaded = [name for name in sys.modules if name.startswith("ddim.")]
    source = Path(datamodule.__file__).parent
    imported = {
        line.split()[1]
        for path in source.glob("*.py")
        for line in path.read_text().splitlines()
        if line.startswith(("from ddim", "import ddim"))
    }
    assert loaded and all(name == "ddim.errors" or name.startswith(("ddim.data", "ddim.runs")) for name in imported)
