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

    def __init__(self, fail_before_step: int | None = None) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen: list[tuple[list[int], int]] = []
        self.fail_before_step = fail_before_step

    def training_step(self, batch: dict[str, torch.Tensor], batch_idx: int) -> torch.Tensor:
        if self.global_step == self.fail_before_step:
            raise KeyboardInterrupt
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
    arguments = {"dirpath": folder, "filename": "saved"}
    if when == "after_step":
        return [ModelCheckpoint(every_n_train_steps=step, save_top_k=1, **arguments)], {}, path
    if when == "validation":
        save = ModelCheckpoint(every_n_epochs=1, save_on_train_epoch_end=False, **arguments)
        return [save], {"val_check_interval": step, "check_val_every_n_epoch": None}, path
    return [ModelCheckpoint(every_n_epochs=1, save_on_train_epoch_end=True, **arguments)], {}, path


@pytest.mark.parametrize(
    ("when", "step"),
    [
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
    ],
)
@pytest.mark.parametrize("validates", [True, False])
def test_resumed_run_sees_the_remaining_batches(
    when: str, step: int, validates: bool, datamodule: Callable[..., ImageDataModule], tmp_path: Path
) -> None:
    arguments: dict[str, Any] = {} if validates else {"limit_val_batches": 0}
    if when == "validation" and not validates:
        pytest.skip("there is no validation to save at")
    whole = Recorder()
    fit(whole, datamodule(), trainer(TOTAL_STEPS, [], tmp_path, **arguments))

    callbacks, extra, checkpoint = saving_at(when, step, tmp_path)
    stopped = Recorder()
    last = step if when != "before_step" else step + 1
    fit(stopped, datamodule(), trainer(last, callbacks, tmp_path, **arguments, **extra))
    resumed = Recorder()
    fit(resumed, datamodule(), trainer(TOTAL_STEPS, [], tmp_path, **arguments), checkpoint)

    assert len(whole.seen) == TOTAL_STEPS
    assert stopped.seen == whole.seen[:last]
    assert resumed.seen == whole.seen[step:]
