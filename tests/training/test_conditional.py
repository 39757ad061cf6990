"""Training with labels: which ones the network is shown, when none, and what a checkpoint says of them."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from ddim.data import build_datamodule
from ddim.denoisers.pretrained import open_pretrained
from ddim.diffusion import NoiseSchedule
from ddim.training.build import build_training
from ddim.training.module import DenoisingModule
from ddim.training.settings import ObjectiveConfig, TrainConfig

OPTIMIZER = {"name": "adam", "lr": 1e-3, "betas": [0.9, 0.999], "weight_decay": 0.0, "warmup_steps": 4}
NULL = 10


class Recorder(nn.Module):
    """A conditional denoiser that remembers what it was asked."""

    def __init__(self, null: Tensor | None) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(0.3))
        self.null_condition = null
        self.asked: list[tuple[Tensor, Tensor, Tensor | None]] = []

    def forward(self, x: Tensor, t: Tensor, condition: Tensor | None = None) -> Tensor:
        self.asked.append((x.detach().clone(), t.clone(), condition))
        return self.scale * x


def trained(tmp_path: Path, dropout: float, null: Tensor | None = None, steps: int = 6) -> tuple[Recorder, Any]:
    denoiser = Recorder(torch.tensor(NULL) if null is None else null)
    data = build_datamodule(
        {"name": "digits"}, batch_size=100, eval_batch_size=100, num_workers=0, seed=0, cache_dir=tmp_path
    )
    module = DenoisingModule(denoiser, NoiseSchedule.linear(1000), optimizer=OPTIMIZER, label_dropout=dropout)
    seen: list[Tensor] = []
    trainer = pl.Trainer(
        max_steps=steps,
        limit_val_batches=0,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        callbacks=[Look(seen)],
    )
    trainer.fit(module, data)
    return denoiser, seen


class Look(pl.Callback):
    def __init__(self, seen: list[Tensor]) -> None:
        self.seen = seen

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.seen.append(batch["condition"].clone())


def shown(denoiser: Recorder) -> Tensor:
    return torch.stack([condition for *_, condition in denoiser.asked if condition is not None])


def test_a_tenth_is_shown_no_label_and_which_one_is_a_function_of_the_step(tmp_path):
    denoiser, seen = trained(tmp_path, 0.1)
    labels, given = torch.stack(seen), shown(denoiser)
    dropped = given == NULL
    assert torch.equal(given[~dropped], labels[~dropped])
    assert 30 <= dropped.sum() <= 90 and not torch.equal(dropped[0], dropped[1])
    again, _ = trained(tmp_path, 0.1)
    assert torch.equal(shown(again), given)
    # Noise and timesteps are those of a training without dropout, which differs in the labels alone.
    whole, _ = trained(tmp_path, 0.0)
    assert torch.equal(shown(whole), labels)
    assert all(torch.equal(one[1], other[1]) for one, other in zip(whole.asked, denoiser.asked, strict=True))
    assert torch.equal(whole.asked[0][0], denoiser.asked[0][0])


def test_conditions_of_several_numbers_are_dropped_whole(tmp_path, monkeypatch):
    from ddim.data.splits import ArraySplit

    words = ArraySplit.__init__

    def as_words(self: Any, images: Tensor, conditions: Tensor) -> None:
        words(self, images, torch.stack([conditions, conditions + 1, conditions + 2], dim=1))

    monkeypatch.setattr(ArraySplit, "__init__", as_words)
    denoiser, seen = trained(tmp_path, 0.3, null=torch.tensor([0, 0, 0]), steps=2)
    given, said = shown(denoiser), torch.stack(seen)
    dropped = (given == 0).all(dim=-1)
    assert 30 <= dropped.sum() <= 90
    assert torch.equal(given[~dropped], said[~dropped])


def test_held_out_images_have_their_own_label(tmp_path):
    denoiser = Recorder(torch.tensor(NULL))
    module = DenoisingModule(denoiser, NoiseSchedule.linear(100), optimizer={}, label_dropout=1.0)
    batch = {"image": torch.zeros(3, 1, 8, 8, dtype=torch.uint8), "index": torch.arange(3)}
    module.validation_step({**batch, "condition": torch.tensor([4, 0, 7])}, 0)
    assert denoiser.asked[0][2].tolist() == [4, 0, 7]
    module.validation_step(batch, 0)
    assert denoiser.asked[1][2] is None


@pytest.mark.parametrize("script", [("train.py", "denoiser=unet_digits_class")])
def test_a_checkpoint_says_its_classes_and_is_evaluated_with_them(script, run_script, workplace, tiny_training):
    done = run_script(*script, *tiny_training, "logger=csv", "hydra.run.dir=run")
    assert done.status == 0, done.errors
    opened = open_pretrained("run")
    assert opened.condition == {"classes": [*"0123456789"]}
    assert opened.denoiser["num_classes"] == 10 and opened.build().null_condition.tolist() == 10
    before = torch.load("run/checkpoints/last.ckpt", weights_only=True)
    assert before["state_dict"]["denoiser.class_embedding.weight"].shape == (11, 32)
    done = run_script("train.py", "resume=run", "trainer.max_steps=6")
    assert done.status == 0, done.errors
    done = run_script("evaluate.py", "checkpoint=run", "sampler.steps=2", "sampler.eta=0", "evaluation.num_samples=70")
    assert done.status == 0, done.errors


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["denoiser.num_classes=7"], "denoiser.num_classes=7 does not fit dataset digits with 10 classes"),
        (["denoiser.num_classes=0"], "num_classes must be a positive integer or null, got 0"),
    ],
)
def test_other_classes_are_refused_before_training(overrides, sentence, run_script, tiny_training):
    done = run_script("train.py", *tiny_training, "logger=none", *overrides)
    assert done.status == 2 and sentence in done.errors and len(done.errors.strip().splitlines()) == 1


@pytest.mark.parametrize("dropout", [0.0, 0.25])
def test_the_configured_dropout_reaches_the_module(monkeypatch, tmp_path, dropout):
    made = {}

    class Enough(Exception):
        """Nothing more is looked at."""

    def take(*_, **settings):
        made.update(settings)
        raise Enough

    monkeypatch.setattr("ddim.training.build.DenoisingModule", take)
    config = TrainConfig(
        dataset={"name": "digits"},
        denoiser={
            **{"name": "unet", "in_channels": 1, "resolution": 8, "base_channels": 8, "channel_mult": [1]},
            **{"num_res_blocks": 1, "attention_resolutions": [], "norm_groups": 4, "num_classes": 10},
        },
        schedule={"name": "linear"},
        trainer={},
        cache_dir=str(tmp_path),
        objective=ObjectiveConfig(label_dropout=dropout),
    )
    with pytest.raises(Enough):
        build_training(config, SimpleNamespace(world_size=1), tmp_path, hyperparameters={})
    assert made["label_dropout"] == dropout
