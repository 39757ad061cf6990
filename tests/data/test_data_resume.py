"""A training run that was stopped anywhere and resumed sees the batches that the uninterrupted run sees."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint

from ddim.data import ImageDataModule

NUM_TRAIN, BATCH_SIZE = 22, 4
BATCHES_PER_EPOCH = 5
TOTAL_STEPS = 3 * BATCHES_PER_EPOCH + 2


class Recorder(pl.LightningModule):
    """Writes down each batch it trains on: the indices, and the pixels (which tell whether they were mirrored)."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen: list[tuple[list[int], int]] = []

    def training_step(self, batch: dict[str, torch.Tensor], batch_idx: int) -> torch.Tensor:
        columns = torch.arange(1, batch["image"].shape[-1] + 1)
        self.seen.append((batch["index"].tolist(), int((batch["image"] * columns).sum())))
        return self.weight * 1.0

    def validation_step(self, batch: dict[str, torch.Tensor], batch_idx: int) -> None: ...

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class SaveBeforeStep(pl.Callback):
    """Saves when a batch has been fetched but not yet trained on, as an exception handler would."""

    def __init__(self, step: int, path: Path) -> None:
        self.step, self.path = step, path

    def on_train_batch_start(self, trainer: pl.Trainer, *args: Any) -> None:
        if trainer.global_step == self.step:
            trainer.save_checkpoint(self.path)


def trainer(max_steps: int, callbacks: list[pl.Callback], folder: Path, **arguments: Any) -> pl.Trainer:
    return pl.Trainer(
        max_steps=max_steps,
        callbacks=callbacks,
        default_root_dir=folder,
        accelerator="cpu",
        devices=1,
        logger=False,
        enable_checkpointing=any(isinstance(callback, ModelCheckpoint) for callback in callbacks),
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        **arguments,
    )


@pytest.fixture
def datamodule(
    image_tree: Callable[..., Path], make_datamodule: Callable[..., ImageDataModule]
) -> Callable[..., ImageDataModule]:
    root = image_tree({"train": NUM_TRAIN, "test": 3})

    def make(in_memory: bool = True) -> ImageDataModule:
        config = {"name": "image_folder", "root": str(root), "resolution": 8, "random_flip": True}
        num_workers = 0 if in_memory else 1
        return make_datamodule(
            config | {"in_memory": in_memory}, batch_size=BATCH_SIZE, num_workers=num_workers, seed=3
        )

    return make


def fit(module: Recorder, data: ImageDataModule, lightning: pl.Trainer, checkpoint: Path | None = None) -> None:
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*is not resumable.*")
        warnings.filterwarnings("error", message=".*another order of images.*")
        lightning.fit(module, data, ckpt_path=checkpoint)


def saving_at(when: str, step: int, folder: Path) -> tuple[list[pl.Callback], dict[str, Any], Path]:
    """Callbacks and trainer arguments that write a checkpoint at global step `step`, and its path."""
    folder = folder / "checkpoints"
    path = folder / "saved.ckpt"
    if when == "before_step":
        return [SaveBeforeStep(step, path)], {}, path
    arguments: dict[str, Any] = {"dirpath": folder, "filename": "saved"}
    if when == "after_step":
        return [ModelCheckpoint(every_n_train_steps=step, save_top_k=1, **arguments)], {}, path
    if when == "validation":
        save = ModelCheckpoint(every_n_epochs=1, save_on_train_epoch_end=False, **arguments)
        return [save], {"val_check_interval": step, "check_val_every_n_epoch": None}, path
    return [ModelCheckpoint(every_n_epochs=1, save_on_train_epoch_end=True, **arguments)], {}, path


PLACES = [
    ("after_step", 1),
    ("after_step", 7),
    ("after_step", BATCHES_PER_EPOCH),
    ("after_step", 2 * BATCHES_PER_EPOCH),
    ("after_step", 12),
    ("before_step", 0),
    ("before_step", 8),
    ("before_step", BATCHES_PER_EPOCH),
    ("validation", 3),
    ("validation", BATCHES_PER_EPOCH),
    ("validation", 8),
    ("epoch_end", BATCHES_PER_EPOCH),
    ("epoch_end", 7),
    ("epoch_end", 2 * BATCHES_PER_EPOCH),
]


@pytest.mark.parametrize(("when", "step"), PLACES)
@pytest.mark.parametrize("validates", [True, False])
def test_resumed_run_sees_the_remaining_batches(
    when: str, step: int, validates: bool, datamodule: Callable[..., ImageDataModule], tmp_path: Path
) -> None:
    arguments: dict[str, Any] = {} if validates or when == "validation" else {"limit_val_batches": 0}
    check_resumption(when, step, datamodule, tmp_path, in_memory=True, **arguments)


@pytest.mark.parametrize(("when", "step"), [("after_step", 7), ("before_step", 8), ("epoch_end", 7)])
def test_resumed_run_with_a_worker_sees_the_remaining_batches(
    when: str, step: int, datamodule: Callable[..., ImageDataModule], tmp_path: Path
) -> None:
    check_resumption(when, step, datamodule, tmp_path, in_memory=False)


def check_resumption(
    when: str,
    step: int,
    datamodule: Callable[..., ImageDataModule],
    folder: Path,
    *,
    in_memory: bool,
    **arguments: Any,
) -> None:
    whole = Recorder()
    fit(whole, datamodule(in_memory), trainer(TOTAL_STEPS, [], folder, **arguments))
    callbacks, extra, checkpoint = saving_at(when, step, folder)
    stopped = Recorder()
    last = step if when != "before_step" else step + 1
    fit(stopped, datamodule(in_memory), trainer(last, callbacks, folder, **arguments, **extra))
    resumed = Recorder()
    fit(resumed, datamodule(in_memory), trainer(TOTAL_STEPS, [], folder, **arguments), checkpoint)

    assert len(whole.seen) == TOTAL_STEPS
    assert stopped.seen == whole.seen[:last]
    assert resumed.seen == whole.seen[step:]


def test_memory_and_workers_give_the_same_batches(datamodule: Callable[..., ImageDataModule], tmp_path: Path) -> None:
    recorders = [Recorder(), Recorder()]
    for recorder, in_memory in zip(recorders, [True, False], strict=True):
        fit(recorder, datamodule(in_memory), trainer(TOTAL_STEPS, [], tmp_path))
    assert recorders[0].seen == recorders[1].seen


def test_epochs_hold_each_image_once_and_differ(datamodule: Callable[..., ImageDataModule], tmp_path: Path) -> None:
    recorder = Recorder()
    fit(recorder, datamodule(), trainer(TOTAL_STEPS, [], tmp_path))
    images = [index for indices, _ in recorder.seen for index in indices]
    per_epoch = BATCHES_PER_EPOCH * BATCH_SIZE
    epochs = [images[start : start + per_epoch] for start in range(0, 3 * per_epoch, per_epoch)]
    assert all(len(set(epoch)) == 20 for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3


def test_run_counted_in_epochs_is_resumed_as_well(datamodule: Callable[..., ImageDataModule], tmp_path: Path) -> None:
    whole, stopped, resumed = Recorder(), Recorder(), Recorder()
    fit(whole, datamodule(), trainer(-1, [], tmp_path, max_epochs=3))
    callbacks, _, checkpoint = saving_at("epoch_end", 0, tmp_path)
    fit(stopped, datamodule(), trainer(-1, callbacks, tmp_path, max_epochs=1))
    fit(resumed, datamodule(), trainer(-1, [], tmp_path, max_epochs=3), checkpoint)
    assert stopped.seen + resumed.seen == whole.seen


def test_overfitting_repeats_its_batches(datamodule: Callable[..., ImageDataModule], tmp_path: Path) -> None:
    recorder = Recorder()
    fit(recorder, datamodule(), trainer(7, [], tmp_path, overfit_batches=2))
    assert recorder.seen == (recorder.seen[:2] * 4)[:7]


def test_limited_epochs_go_on_through_the_data(datamodule: Callable[..., ImageDataModule], tmp_path: Path) -> None:
    whole, limited = Recorder(), Recorder()
    fit(whole, datamodule(), trainer(12, [], tmp_path))
    fit(limited, datamodule(), trainer(12, [], tmp_path, limit_train_batches=3))
    assert limited.seen == whole.seen


def test_another_order_than_before_is_said(datamodule: Callable[..., ImageDataModule], tmp_path: Path) -> None:
    callbacks, _, checkpoint = saving_at("after_step", 3, tmp_path)
    fit(Recorder(), datamodule(), trainer(3, callbacks, tmp_path))
    data = datamodule()
    data.batch_size = 5
    with pytest.warns(UserWarning, match="batch_size was 4 and is 5"):
        trainer(6, [], tmp_path).fit(Recorder(), data, ckpt_path=checkpoint)
