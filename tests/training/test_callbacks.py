"""What runs beside training sees the right weights at the right time."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
from PIL import Image
from pytorch_lightning.callbacks import ModelCheckpoint
from torch import Tensor

from ddim.data import Pixels, build_datamodule
from ddim.diffusion import NoiseSchedule, NoiseSource
from ddim.diffusion.grid import grid_points
from ddim.evaluation.subject import Sampling
from ddim.findings.labels import point_key
from ddim.metrics import build_extractor, reference_statistics
from ddim.metrics.measure import Measure
from ddim.training.build import training_callbacks
from ddim.training.callbacks import throughput as throughput_module
from ddim.training.callbacks.averaging import WeightEma, constant_decay, halflife_decay
from ddim.training.callbacks.last_checkpoint import LastCheckpoint
from ddim.training.callbacks.progress import TrainingProgress
from ddim.training.callbacks.sample_grid import SampleGrid
from ddim.training.callbacks.throughput import Throughput
from ddim.training.callbacks.training_evaluation import TrainingEvaluation
from ddim.training.module import DenoisingModule
from ddim.training.settings import CallbacksConfig, SampleGridConfig, TrainConfig, TrainingEvaluationConfig

SHAPE = (1, 8, 8)
SCHEDULE = NoiseSchedule.linear(1000)
DECAY = 0.7
CPU = torch.device("cpu")
State = dict[str, Tensor]


@pytest.fixture
def module_of(small_unet) -> Callable[[], DenoisingModule]:
    # A large learning rate: after few steps raw and averaged weights are far apart.
    optimizer = {"name": "adam", "lr": 1e-2, "betas": [0.9, 0.999], "weight_decay": 0.0, "warmup_steps": 1}
    return lambda: DenoisingModule(small_unet(), SCHEDULE, optimizer=optimizer)


@pytest.fixture
def digits(tmp_path):
    datamodule = build_datamodule(
        {"name": "digits"}, batch_size=16, eval_batch_size=360, num_workers=0, seed=0, cache_dir=tmp_path / "cache"
    )
    datamodule.prepare_data()
    datamodule.setup()
    return datamodule


def trainer_of(*callbacks: pl.Callback, **more) -> pl.Trainer:
    arguments = {"max_steps": 5, "val_check_interval": 2, "check_val_every_n_epoch": None, "num_sanity_val_steps": 0}
    return pl.Trainer(
        **arguments | more,
        accelerator="cpu",
        gradient_clip_val=1.0,
        logger=False,
        enable_checkpointing=any(isinstance(callback, LastCheckpoint) for callback in callbacks),
        enable_progress_bar=any(isinstance(callback, TrainingProgress) for callback in callbacks),
        enable_model_summary=False,
        use_distributed_sampler=False,
        callbacks=list(callbacks),
    )


def weights(module: DenoisingModule) -> State:
    return {name: value.detach().clone() for name, value in module.denoiser.state_dict().items()}


def same(first: State, second: State, tolerance: float = 0.0) -> bool:
    assert first.keys() == second.keys()
    return all(torch.allclose(first[name], second[name], rtol=tolerance, atol=tolerance) for name in first)


class RawWeights(pl.Callback):
    """The raw weights after each optimizer step, taken where Lightning hands them over and not from the average.

    `averaged` is the EMA of them, computed here: the first value itself, then decay * average + (1 - decay) * raw.
    """

    def __init__(self) -> None:
        self.raw: dict[int, State] = {}
        self.averaged: dict[int, State] = {}

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        step = trainer.global_step
        if step in self.raw:
            return
        self.raw[step] = weights(pl_module)
        before = self.averaged.get(step - 1)
        self.averaged[step] = (
            self.raw[step]
            if before is None
            else {name: DECAY * before[name] + (1 - DECAY) * value for name, value in self.raw[step].items()}
        )


class Watch:
    """Wraps a callback's hook and notes the weights it finds."""

    def __init__(self, callback: pl.Callback, monkeypatch: pytest.MonkeyPatch) -> None:
        self.seen: dict[int, State] = {}
        original = callback.on_validation_epoch_end

        def hook(trainer, pl_module):
            self.seen[trainer.global_step] = weights(pl_module)
            original(trainer, pl_module)

        monkeypatch.setattr(callback, "on_validation_epoch_end", hook)


def config_of(every_n_steps: int = 2) -> TrainConfig:
    callbacks = CallbacksConfig(
        sample_grid=SampleGridConfig(num_images=4, steps=2),
        evaluation=TrainingEvaluationConfig(every_n_validations=1, num_samples=70, batch_size=70, steps=[2]),
    )
    callbacks.ema.decay = DECAY
    callbacks.checkpoint.every_n_steps = every_n_steps
    return TrainConfig(dataset={}, denoiser={}, schedule={}, trainer={"accelerator": "cpu"}, callbacks=callbacks)


class TestWeights:
    """With the callbacks in the order in which `ddim.training.build` makes them."""

    def fit(self, module_of, digits, tmp_path, monkeypatch, **more):
        config = config_of(more.pop("every_n_steps", 2))
        config.cache_dir = str(tmp_path / "cache")
        module = module_of()
        callbacks = training_callbacks(config, module, digits, tmp_path, CPU)
        sampled = [callback for callback in callbacks if isinstance(callback, SampleGrid | TrainingEvaluation)]
        assert len(sampled) == 2
        watches = [Watch(callback, monkeypatch) for callback in sampled]
        record = RawWeights()
        after = EveryTrainingStart()
        trainer = trainer_of(record, *callbacks, after, **more)
        trainer.fit(module, digits)
        return record, watches, after, trainer

    def test_pictures_and_measurements_see_the_average_and_training_goes_on_from_raw(
        self, module_of, digits, tmp_path, monkeypatch
    ):
        record, watches, after, _ = self.fit(module_of, digits, tmp_path, monkeypatch)
        assert sorted(record.raw) == [1, 2, 3, 4, 5]
        assert not same(record.raw[4], record.averaged[4], 1e-3)
        for watch in watches:
            assert sorted(watch.seen) == [2, 4]
            for step, seen in watch.seen.items():
                assert same(seen, record.averaged[step], 1e-5)
        for step in (1, 2, 3, 4):
            assert same(after.found[step], record.raw[step]), f"step {step + 1} does not start from the raw weights"

    @pytest.mark.parametrize("last", [4, 5])
    def test_the_last_checkpoint_holds_both_weights_of_the_last_step(
        self, module_of, digits, tmp_path, monkeypatch, last
    ):
        """Also where a validation, during which the weights are swapped, follows the last step."""
        record, _, _, trainer = self.fit(module_of, digits, tmp_path, monkeypatch, max_steps=last)
        checkpoint = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)
        assert checkpoint["global_step"] == trainer.global_step == last
        for key, expected, tolerance in (
            ("current_model_state", record.raw[last], 0.0),
            ("state_dict", record.averaged[last], 1e-5),
        ):
            found = {name.removeprefix("denoiser."): value for name, value in checkpoint[key].items()}
            assert same(found, expected, tolerance), key

    def test_the_best_checkpoint_holds_the_average_as_well(self, module_of, digits, tmp_path, monkeypatch):
        record, *_ = self.fit(module_of, digits, tmp_path, monkeypatch)
        checkpoint = torch.load(tmp_path / "checkpoints" / "best.ckpt", weights_only=True)
        step = checkpoint["global_step"]
        for key, states in (("current_model_state", record.raw), ("state_dict", record.averaged)):
            found = {name.removeprefix("denoiser."): value for name, value in checkpoint[key].items()}
            assert same(found, states[step], 1e-5), key

    def test_the_average_follows_every_nth_step_from_the_first_on(self, module_of, digits, tmp_path):
        record, ema = RawWeights(), WeightEma(constant_decay(DECAY), update_every_n_steps=2)
        trainer_of(record, ema, limit_val_batches=0).fit(module_of(), digits)
        expected = record.raw[1]
        for step in (3, 5):
            expected = {name: DECAY * expected[name] + (1 - DECAY) * record.raw[step][name] for name in expected}
        assert ema._average_model is not None
        assert same(weights(ema._average_model.module), expected, 1e-5)

    @pytest.mark.parametrize(("halflife", "ramp"), [(2.0, None), (100.0, 0.5)])
    def test_a_half_life_is_counted_in_images(self, module_of, digits, tmp_path, halflife, ramp):
        # Two updates: what is left of the first weights is the product of the decays of the later ones.
        record, ema = RawWeights(), WeightEma(halflife_decay(halflife, ramp))
        trainer_of(record, ema, limit_val_batches=0, max_steps=3).fit(module_of(), digits)
        expected = record.raw[1]
        for step in (2, 3):
            length = halflife if ramp is None else min(halflife, ramp * (step - 1))
            kept = 0.5 ** (1 / length)
            expected = {name: kept * expected[name] + (1 - kept) * record.raw[step][name] for name in expected}
        assert ema._average_model is not None
        assert same(weights(ema._average_model.module), expected, 1e-5)

    @pytest.mark.parametrize(("devices", "accumulated", "updates"), [(1, 1, 625), (4, 1, 156.25), (2, 8, 39.0625)])
    def test_the_half_life_goes_with_all_images_of_a_step(
        self, module_of, digits, tmp_path, monkeypatch, devices, accumulated, updates
    ):
        made = []
        monkeypatch.setattr("ddim.training.build.halflife_decay", lambda *a: made.append(a) or constant_decay(0.5))
        config = config_of()
        config.cache_dir = str(tmp_path / "cache")
        config.loader.batch_size, config.trainer["accumulate_grad_batches"] = 16, accumulated
        config.callbacks.ema.halflife_images, config.callbacks.ema.ramp = 10_000, 0.1
        training_callbacks(config, module_of(), digits, tmp_path, CPU, devices=devices)
        assert made == [(updates, 0.1)]

    def test_the_order_without_which_this_fails(self, module_of, digits, tmp_path, monkeypatch):
        config = config_of()
        config.cache_dir = str(tmp_path / "cache")
        kinds = [type(callback) for callback in training_callbacks(config, module_of(), digits, tmp_path, CPU)]
        assert kinds.index(SampleGrid) < kinds.index(WeightEma) < kinds.index(LastCheckpoint)
        assert kinds.index(TrainingEvaluation) < kinds.index(WeightEma)

    def test_what_is_switched_off_is_not_there(self, module_of, digits, tmp_path):
        config = config_of()
        config.callbacks.ema.enabled = config.callbacks.sample_grid.enabled = config.callbacks.evaluation.enabled = (
            False
        )
        config.callbacks.checkpoint.monitor = None
        callbacks = training_callbacks(config, module_of(), digits, tmp_path, CPU)
        assert [type(callback).__name__ for callback in callbacks] == [
            "TrainingProgress",
            "StopOnDivergence",
            "Throughput",
            "LastCheckpoint",
        ]


class EveryTrainingStart(pl.Callback):
    """The weights that the step after `step` starts from."""

    def __init__(self) -> None:
        self.found: dict[int, State] = {}

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
        self.found[trainer.global_step] = weights(pl_module)


class TestLastCheckpoint:
    @pytest.mark.parametrize(
        ("max_steps", "every", "expected"),
        [(5, 2, [2, 4, 5]), (4, 2, [2, 4]), (3, 10, [3]), (3, 1, [1, 2, 3])],
    )
    def test_it_saves_every_n_steps_and_at_the_last(
        self, module_of, digits, tmp_path, monkeypatch, max_steps, every, expected
    ):
        saved: list[int] = []
        original = pl.Trainer.save_checkpoint

        def save(trainer, path, *arguments, **more):
            saved.append(trainer.global_step)
            original(trainer, path, *arguments, **more)

        monkeypatch.setattr(pl.Trainer, "save_checkpoint", save)
        path = tmp_path / "checkpoints" / "last.ckpt"
        trainer_of(LastCheckpoint(path, every), max_steps=max_steps, limit_val_batches=0).fit(module_of(), digits)
        assert saved == expected
        assert torch.load(path, weights_only=True)["global_step"] == max_steps

    def test_it_knows_what_the_last_validation_found(self, module_of, digits, tmp_path, monkeypatch):
        """A run resumed from it neither forgets the best score nor how often was sampled."""
        *_, trainer = TestWeights().fit(module_of, digits, tmp_path, monkeypatch, max_steps=4)
        states = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)["callbacks"]
        by_kind = {name.split("{")[0].split(".")[-1]: state for name, state in states.items()}
        assert by_kind["SampleGrid"] == by_kind["TrainingEvaluation"] == {"validations": 2}
        best = next(c for c in trainer.checkpoint_callbacks if isinstance(c, ModelCheckpoint))
        assert by_kind["ModelCheckpoint"]["best_model_score"] == best.best_model_score is not None

    def test_steps_are_counted_not_batches(self, module_of, digits, tmp_path, monkeypatch):
        """With two batches to a step a step is saved once, after its second batch."""
        saved: list[int] = []
        monkeypatch.setattr(pl.Trainer, "save_checkpoint", lambda trainer, path: saved.append(trainer.global_step))
        callback = LastCheckpoint(tmp_path / "last.ckpt", 2)
        trainer_of(callback, max_steps=5, accumulate_grad_batches=2, limit_val_batches=0).fit(module_of(), digits)
        assert saved == [2, 4, 5]

    def test_a_run_that_is_stopped_is_saved(self, module_of, digits, tmp_path):
        class Stop(pl.Callback):
            def on_train_batch_end(self, trainer, *_):
                trainer.should_stop = trainer.global_step == 3

        path = tmp_path / "last.ckpt"
        trainer_of(Stop(), LastCheckpoint(path, 100), max_steps=50).fit(module_of(), digits)
        assert torch.load(path, weights_only=True)["global_step"] == 3

    @pytest.mark.parametrize("limit", [{"max_epochs": 1}, {"max_time": "00:00:00:01"}])
    def test_the_last_step_is_saved_whatever_ends_the_training(self, module_of, digits, tmp_path, limit):
        path = tmp_path / "last.ckpt"
        digits.batch_size = 700
        trainer = trainer_of(LastCheckpoint(path, 10_000), max_steps=-1, limit_val_batches=0, **limit)
        trainer.fit(module_of(), digits)
        assert torch.load(path, weights_only=True)["global_step"] == trainer.global_step > 0


class TestSamplePictures:
    def test_the_latents_are_fixed_and_every_nth_validation_counts(self, module_of, digits, tmp_path):
        (point,) = grid_points(SCHEDULE, steps=2, etas=0.0, tau="linear")

        def pictures(folder: str, batch_size: int, every: int) -> dict[str, bytes]:
            grid = SampleGrid(
                point,
                Sampling(NoiseSource(0), Pixels(SHAPE), batch_size),
                tmp_path / folder,
                num_images=6,
                every_n_validations=every,
            )
            trainer_of(grid, max_steps=6).fit(module_of(), digits)
            return {path.name: Image.open(path).tobytes() for path in (tmp_path / folder).iterdir()}

        all_of_them = pictures("all", 6, 1)
        assert set(all_of_them) == {f"samples-{step:07d}.png" for step in (2, 4, 6)}
        assert len(set(all_of_them.values())) == 3, "the network learns, the pictures change"
        second = pictures("second", 6, 2)
        assert second == {"samples-0000004.png": all_of_them["samples-0000004.png"]}

    def test_nothing_is_drawn_at_the_sanity_check(self, module_of, digits, tmp_path):
        (point,) = grid_points(SCHEDULE, steps=2, etas=0.0, tau="linear")
        grid = SampleGrid(point, Sampling(NoiseSource(0), Pixels(SHAPE), 2), tmp_path / "s", num_images=2)
        trainer_of(grid, max_steps=1, num_sanity_val_steps=1, val_check_interval=80).fit(module_of(), digits)
        assert grid.validations == 0 and not (tmp_path / "s").exists()

    def test_sampling_does_not_change_what_is_trained(self, module_of, digits, tmp_path):
        """Neither pictures nor measurements draw from the generators that training draws from."""
        config = config_of()
        config.cache_dir = str(tmp_path / "cache")
        final = []
        for sampling in (True, False):
            config.callbacks.sample_grid.enabled = config.callbacks.evaluation.enabled = sampling
            module, record = module_of(), RawWeights()
            trainer_of(record, *training_callbacks(config, module, digits, tmp_path, CPU)).fit(module, digits)
            final.append(record.raw[5])
        assert same(*final)


class TestTrainingEvaluation:
    def test_it_logs_every_point_every_nth_time_and_remembers_the_count(self, module_of, digits, tmp_path):
        extractor = build_extractor("pixels", channels=1, resolution=8, weights_dir=Path())
        reference = reference_statistics(
            extractor, lambda: digits.images("train", 500), digits.provenance("train"), tmp_path / "reference"
        )
        points = grid_points(SCHEDULE, steps=[2, 3], etas=[0.0, "sigma_hat"], tau="linear")
        evaluation = TrainingEvaluation(
            points,
            Measure(extractor, reference, ("frechet_distance",)),
            Sampling(NoiseSource(0), Pixels(SHAPE), 33),
            num_samples=70,
            every_n_validations=2,
            seed=0,
        )
        seen: dict[int, dict[str, float]] = {}

        class Look(pl.Callback):
            def on_validation_end(self, trainer, pl_module):
                seen[trainer.global_step] = {key: value.item() for key, value in trainer.logged_metrics.items()}

        trainer_of(evaluation, Look(), max_steps=4).fit(module_of(), digits)
        keys = {f"val/frechet_distance/{point_key(point)}" for point in points}
        assert len(keys) == 4
        assert not {key for key in seen[2] if "frechet" in key}
        assert {key for key in seen[4] if "frechet" in key} == keys | {"val/frechet_distance"}
        assert seen[4]["val/frechet_distance"] == seen[4][f"val/frechet_distance/{point_key(points[0])}"] > 0
        assert evaluation.state_dict() == {"validations": 2}
        evaluation.load_state_dict({"validations": 7})
        assert evaluation.validations == 7


def test_throughput_counts_images_over_time(module_of, digits, monkeypatch):
    """A clock that ticks half a second per look: two steps of 16 images between looks one tick apart."""
    ticks = iter(range(1000))
    monkeypatch.setattr(throughput_module.time, "perf_counter", lambda: next(ticks) / 2)
    rates: list[float] = []

    class Look(pl.Callback):
        def on_train_batch_end(self, trainer, *_):
            rates.append(throughput.images_per_second)

    throughput = Throughput(2)
    trainer_of(throughput, Look(), max_steps=6, limit_val_batches=0).fit(module_of(), digits)
    # The first batch starts the clock, so the first rate is over one step, the later ones over two.
    assert rates == [None, 32.0, 32.0, 64.0, 64.0, 64.0]
