"""The training step, its randomness, the optimizer and the held-out loss, against independent computations."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from ddim.data import build_datamodule
from ddim.diffusion import NoiseSchedule, NoiseSource
from ddim.training.module import GOLDEN_RATIO, VALIDATION_SEED, DenoisingModule

OPTIMIZER = {"name": "adam", "lr": 1e-3, "betas": [0.9, 0.999], "weight_decay": 0.0, "warmup_steps": 4}
SCHEDULE = NoiseSchedule.linear(1000)


class Recorder(nn.Module):
    """A denoiser that remembers what it was asked and answers a fixed function of it."""

    def __init__(self, channels: int = 1) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(0.3))
        self.asked: list[tuple[Tensor, Tensor]] = []

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        self.asked.append((x.detach().clone(), t.clone()))
        return self.scale * x + (t.float() / 1000).reshape(-1, 1, 1, 1)


def module_of(denoiser: nn.Module, seed: int = 0, **more) -> DenoisingModule:
    return DenoisingModule(denoiser, SCHEDULE, optimizer=OPTIMIZER | more.pop("optimizer", {}), seed=seed, **more)


def digits(tmp_path: Path, batch_size: int = 16, eval_batch_size: int = 500, seed: int = 0):
    return build_datamodule(
        {"name": "digits"},
        batch_size=batch_size,
        eval_batch_size=eval_batch_size,
        num_workers=0,
        seed=seed,
        cache_dir=tmp_path,
    )


def fit(module: DenoisingModule, data, steps: int, *callbacks: pl.Callback, **more) -> pl.Trainer:
    trainer = pl.Trainer(
        **{"max_steps": steps, "gradient_clip_val": 1.0, "limit_val_batches": 0} | more,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        callbacks=list(callbacks),
    )
    trainer.fit(module, data)
    return trainer


class EveryStep(pl.Callback):
    """Calls a function with (trainer, module, batch) after every training batch."""

    def __init__(self, look) -> None:
        self.look = look
        self.seen: list = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        self.seen.append(self.look(trainer, pl_module, outputs, batch))


class TestTrainingStep:
    @pytest.mark.parametrize("weighting", ["simple", "min_snr", "snr_truncated"])
    def test_the_loss_is_the_formula_for_what_the_denoiser_was_asked(self, weighting):
        """From x_t and t alone: eps = (x_t - sqrt(abar) x_0) / sqrt(1 - abar)."""
        denoiser = Recorder()
        module = module_of(denoiser, weighting=weighting)
        image = torch.randint(0, 256, (64, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
        module.log = lambda *_, **__: None
        torch.manual_seed(5)
        loss = module.training_step({"image": image}, 0)
        ((x_t, t),) = denoiser.asked
        x_0 = image.double() / 127.5 - 1
        beta = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
        alpha_bar = torch.cumprod(1 - beta, 0)[t].reshape(-1, 1, 1, 1)
        eps = (x_t.double() - alpha_bar.sqrt() * x_0) / (1 - alpha_bar).sqrt()
        predicted = 0.3 * x_t.double() + (t / 1000).reshape(-1, 1, 1, 1)
        snr = (alpha_bar / (1 - alpha_bar)).flatten()
        weight = {
            "simple": torch.ones_like(snr),
            "min_snr": torch.clamp(5 / snr, max=1),
            "snr_truncated": torch.clamp(1 / snr, min=1),
        }[weighting]
        expected = (weight * (predicted - eps).square().mean((1, 2, 3))).mean()
        assert loss.item() == pytest.approx(expected.item(), rel=1e-3)
        # The recovered noise is standard normal, t uniform over the whole schedule.
        late = t > 100
        assert abs(eps[late].mean()) < 0.1 and abs(eps[late].std() - 1) < 0.05
        assert 0 <= t.min() < 100 and 900 < t.max() <= 999

    def test_every_timestep_is_drawn(self):
        denoiser = Recorder()
        module = DenoisingModule(denoiser, NoiseSchedule.linear(5, beta_end=0.5), optimizer=OPTIMIZER)
        module.log = lambda *_, **__: None
        module.training_step({"image": torch.zeros(500, 1, 2, 2, dtype=torch.uint8)}, 0)
        counts = torch.bincount(denoiser.asked[0][1], minlength=5)
        assert len(counts) == 5 and counts.min() > 60


class TestRandomness:
    def asked(self, tmp_path: Path, seed: int, steps: int = 3) -> list[tuple[Tensor, Tensor]]:
        denoiser = Recorder()
        fit(module_of(denoiser, seed=seed, optimizer={"lr": 0.0}), digits(tmp_path, batch_size=700), steps)
        return denoiser.asked

    def test_a_step_repeats_for_the_same_seed_and_number(self, tmp_path):
        first = self.asked(tmp_path, 0)
        torch.manual_seed(99)
        again = self.asked(tmp_path, 0)
        for (x, t), (y, u) in zip(first, again, strict=True):
            assert torch.equal(x, y) and torch.equal(t, u)

    def test_another_seed_or_another_step_differs(self, tmp_path):
        """Also across epochs: the third step is the first of the second epoch."""
        timesteps = [t for seed in (0, 1) for _, t in self.asked(tmp_path, seed)]
        assert len({tuple(t.tolist()) for t in timesteps}) == 6

    def test_dropout_repeats_too(self, small_unet, tmp_path):
        def losses(seed: int, mess: int) -> list[float]:
            module = module_of(small_unet(dropout=0.5), seed=seed, optimizer={"lr": 0.0, "warmup_steps": 1})
            torch.manual_seed(mess)
            record = EveryStep(lambda trainer, module, outputs, batch: outputs["loss"].item())
            fit(module, digits(tmp_path), 3, record)
            return record.seen

        assert losses(0, mess=1) == losses(0, mess=2)
        assert losses(0, mess=1) != losses(1, mess=1)

    def test_a_later_start_sees_what_the_uninterrupted_run_saw(self, tmp_path):
        """Noise and timesteps of step n do not depend on which steps this process ran before."""
        through = Recorder()
        fit(module_of(through), digits(tmp_path), 4)
        first = module_of(Recorder())
        fit(first, digits(tmp_path), 2).save_checkpoint(tmp_path / "half.ckpt")
        second = Recorder()
        trainer = pl.Trainer(
            max_steps=4,
            gradient_clip_val=1.0,
            limit_val_batches=0,
            accelerator="cpu",
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            use_distributed_sampler=False,
        )
        trainer.fit(module_of(second), digits(tmp_path), ckpt_path=tmp_path / "half.ckpt", weights_only=True)
        assert len(second.asked) == 2
        for (x, t), (y, u) in zip(through.asked[2:], second.asked, strict=True):
            assert torch.equal(x, y) and torch.equal(t, u)


class TestOptimizer:
    def test_the_learning_rate_warms_up_linearly_and_stays(self, small_unet, tmp_path):
        rates: list[float] = []

        class Look(pl.Callback):
            def on_before_optimizer_step(self, trainer, pl_module, optimizer):
                rates.append(optimizer.param_groups[0]["lr"])

        fit(module_of(small_unet()), digits(tmp_path), 7, Look())
        assert rates == pytest.approx([1e-3 * factor for factor in (0.25, 0.5, 0.75, 1, 1, 1, 1)])

    @pytest.mark.parametrize("warmup", [0, 1])
    def test_without_warm_up_the_first_step_is_full(self, small_unet, warmup):
        module = module_of(small_unet(), optimizer={"warmup_steps": warmup})
        configured = module.configure_optimizers()
        assert configured["optimizer"].param_groups[0]["lr"] == 1e-3
        assert configured["lr_scheduler"]["interval"] == "step"

    @pytest.mark.parametrize(("name", "kind"), [("adam", torch.optim.Adam), ("adamw", torch.optim.AdamW)])
    def test_the_optimizer_has_what_was_asked_for(self, small_unet, name, kind):
        settings = {"name": name, "betas": [0.8, 0.9], "weight_decay": 0.03}
        module = module_of(small_unet(), optimizer=settings)
        optimizer = module.configure_optimizers()["optimizer"]
        assert type(optimizer) is kind
        (group,) = optimizer.param_groups
        assert (group["betas"], group["weight_decay"]) == ((0.8, 0.9), 0.03)
        assert sum(p.numel() for p in group["params"]) == sum(p.numel() for p in module.denoiser.parameters())

    @pytest.mark.parametrize("accumulate", [1, 2])
    @pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
    def test_fused_steps_are_those_of_the_optimizer_as_it_is_written(
        self, small_unet, tmp_path, monkeypatch, precision, accumulate
    ):
        """torch's fused kernel silently pairs the wrong elements where a gradient's layout is not its weight's."""

        class Layouts(pl.Callback):
            def on_before_optimizer_step(self, trainer, pl_module, optimizer):
                for weight in pl_module.denoiser.parameters():
                    assert weight.grad.stride() == weight.stride()

        def trained(fused):
            monkeypatch.setattr(DenoisingModule, "_fused", fused)
            module, options = module_of(small_unet()), {"precision": precision, "accumulate_grad_batches": accumulate}
            trainer = fit(module, digits(tmp_path), 4, Layouts(), **options)
            assert trainer.optimizers[0].param_groups[0]["fused"] is fused
            return module.denoiser.state_dict()

        theirs = trained(None)
        for name, weight in trained(True).items():
            if name.endswith("k.bias"):
                continue  # softmax does not see it: its gradient is rounding alone, which Adam makes large
            torch.testing.assert_close(weight, theirs[name], rtol=1e-4, atol=1e-5, msg=name)

    @pytest.mark.parametrize(("scaler", "fused"), [(None, True), (object(), None)])
    def test_the_optimizer_is_fused_unless_a_loss_scale_must_be_undone_before_clipping(self, small_unet, scaler, fused):
        module = module_of(small_unet())
        # Lightning has a loss scale only on a GPU.
        module._trainer = SimpleNamespace(precision_plugin=SimpleNamespace(scaler=scaler))
        assert module.configure_optimizers()["optimizer"].param_groups[0]["fused"] is fused
        # Also where the checkpoint is of a run that did otherwise.
        group = {"lr": 1e-3, "initial_lr": 1e-3, "fused": None if fused else True}
        checkpoint = {"optimizer_states": [{"param_groups": [group]}], "lr_schedulers": []}
        module.on_load_checkpoint(checkpoint)
        assert group["fused"] is fused

    @pytest.mark.parametrize("limit", [1.0, 0.01, 1e6, None, 0])
    def test_the_norm_is_logged_and_the_gradient_is_clipped(self, small_unet, tmp_path, limit):
        def norm(module) -> float:
            squares = (p.grad.double().square().sum() for p in module.denoiser.parameters())
            return math.sqrt(sum(square.item() for square in squares))

        true: list[float] = []
        used: list[float] = []

        class Look(pl.Callback):
            def on_after_backward(self, trainer, pl_module):
                true.append(norm(pl_module))

            def on_before_zero_grad(self, trainer, pl_module, optimizer):
                if pl_module.denoiser.conv_in.weight.grad is not None:
                    used.append(norm(pl_module))

        logged = EveryStep(lambda trainer, *_: trainer.callback_metrics["train/gradient_norm"].item())
        # Lightning clears gradients before a step's backward pass: the last ones used are seen one step later.
        fit(module_of(small_unet()), digits(tmp_path), 4, Look(), logged, gradient_clip_val=limit)
        assert logged.seen == pytest.approx(true, rel=1e-4)
        assert len(true) == 4 and len(used) >= 3
        bound = limit or math.inf  # 0 and null are off
        assert used == pytest.approx([min(value, bound) for value in true[: len(used)]], rel=1e-4)
        if limit == 0.01:
            assert min(true) > 0.01, "nothing was clipped"

    def test_clipping_by_value_is_lightnings(self, small_unet, tmp_path):
        largest: list[float] = []

        class Look(pl.Callback):
            def on_before_zero_grad(self, trainer, pl_module, optimizer):
                grads = [p.grad for p in pl_module.denoiser.parameters() if p.grad is not None]
                if grads:
                    largest.append(max(grad.abs().max().item() for grad in grads))

        data = digits(tmp_path)
        fit(module_of(small_unet()), data, 3, Look(), gradient_clip_val=1e-3, gradient_clip_algorithm="value")
        assert largest and max(largest) <= 1e-3 * (1 + 1e-6)


class TestHeldOutLoss:
    def validate(
        self, denoiser: nn.Module, tmp_path: Path, stage: str = "validate", seed: int = 0, eval_batch_size: int = 500
    ):
        module = module_of(denoiser, seed=seed)
        pl.seed_everything(seed, verbose=False)
        trainer = pl.Trainer(
            accelerator="cpu",
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            use_distributed_sampler=False,
        )
        data = digits(tmp_path, eval_batch_size=eval_batch_size, seed=seed)
        (metrics,) = getattr(trainer, stage)(module, data, verbose=False)
        return metrics

    def test_it_is_the_mean_of_the_quartiles_of_the_fixed_noise(self, tmp_path):
        """All of it once more: index -> t by the golden ratio, noise by the index, squared error, quartiles of t."""
        denoiser = Recorder()
        metrics = self.validate(denoiser, tmp_path)
        data = digits(tmp_path)
        data.prepare_data()
        data.setup()
        image = torch.cat(list(data.images("test", 500)))
        index = torch.arange(len(image))
        t = torch.floor((index.double() + 0.5) * GOLDEN_RATIO % 1 * 1000).long()
        noise = NoiseSource(VALIDATION_SEED).normal("validation", index, 0, (1, 8, 8))
        alpha_bar = SCHEDULE.alpha_bar[t].reshape(-1, 1, 1, 1)
        x_t = alpha_bar.sqrt() * (image.double() / 127.5 - 1) + (1 - alpha_bar).sqrt() * noise.double()
        error = (0.3 * x_t + (t / 1000).reshape(-1, 1, 1, 1) - noise).square().mean((1, 2, 3))
        quartiles = [error[(t >= 250 * q) & (t < 250 * (q + 1))] for q in range(4)]
        assert sum(map(len, quartiles)) == len(image) == 360
        # The golden ratio spreads timesteps evenly: each quartile gets its share.
        assert all(85 <= len(quartile) <= 95 for quartile in quartiles)
        for number, quartile in enumerate(quartiles, start=1):
            assert metrics[f"val/loss_q{number}"] == pytest.approx(quartile.mean().item(), rel=1e-4)
        assert metrics["val/loss"] == pytest.approx(sum(q.mean().item() for q in quartiles) / 4, rel=1e-4)

    def test_neither_batch_size_nor_seed_nor_stage_matters(self, small_unet, tmp_path):
        denoiser = small_unet().eval()
        expected = self.validate(denoiser, tmp_path)
        for more in ({"eval_batch_size": 7}, {"seed": 3}, {"eval_batch_size": 360, "seed": 1}):
            assert self.validate(denoiser, tmp_path, **more) == pytest.approx(expected, rel=1e-5)
        tested = self.validate(denoiser, tmp_path, stage="test")
        assert tested == pytest.approx({key.replace("val/", "test/"): value for key, value in expected.items()})

    def test_the_order_of_the_images_does_not_matter(self):
        index = torch.randperm(96, generator=torch.Generator().manual_seed(0))
        image = torch.randint(0, 256, (96, 1, 8, 8), dtype=torch.uint8)
        values = []
        for order in (torch.arange(96), index):
            module = module_of(Recorder())
            module.all_gather = lambda tensor: tensor  # what it does on one device
            logged: dict[str, Tensor] = {}
            module.log = lambda key, value, logged=logged, **_: logged.update({key: value})
            for part in order.split(10):
                module.validation_step({"image": image[part], "index": part}, 0)
            module.on_validation_epoch_end()
            values.append({key: value.item() for key, value in logged.items()})
        assert values[0] == pytest.approx(values[1], rel=1e-5)
        assert set(values[0]) == {"val/loss", *(f"val/loss_q{q}" for q in range(1, 5))}

    def test_a_second_validation_starts_anew(self):
        """And a quartile without images is left out rather than counted as zero."""
        module = module_of(Recorder())
        module.all_gather = lambda tensor: tensor
        logged: dict[str, Tensor] = {}
        module.log = lambda key, value, **_: logged.update({key: value})
        image = torch.randint(0, 256, (40, 1, 8, 8), dtype=torch.uint8)
        module.validation_step({"image": image, "index": torch.arange(40)}, 0)
        module.on_validation_epoch_end()
        logged.clear()
        module.validation_step({"image": image[:1], "index": torch.arange(1)}, 0)
        module.on_validation_epoch_end()
        (quartile,) = (key for key in logged if key != "val/loss")
        assert quartile == f"val/loss_q{math.floor(0.5 * GOLDEN_RATIO * 4) + 1}"
        assert logged["val/loss"] == logged[quartile]

    @pytest.mark.parametrize("num_timesteps", [4, 10, 50, 999])
    def test_the_quartiles_part_all_timesteps(self, num_timesteps):
        t = torch.arange(num_timesteps)
        counts = torch.bincount(t * 4 // num_timesteps, minlength=4)
        assert len(counts) == 4 and counts.max() - counts.min() <= 1


class TestCheckpoint:
    def test_what_is_added_is_plain_data(self, small_unet, tmp_path):
        config = {"dataset": {"name": "digits"}, "denoiser": {"name": "unet", "channel_mult": [1, 2]}, "schedule": {}}
        module = module_of(small_unet(), config=config)
        fit(module, digits(tmp_path), 1).save_checkpoint(tmp_path / "a.ckpt")
        checkpoint = torch.load(tmp_path / "a.ckpt", weights_only=True)
        assert checkpoint["ddim"] == json.loads(json.dumps(checkpoint["ddim"])) == {"format": 1, "config": config}
        names = {f"denoiser.{name}" for name, _ in module.denoiser.named_parameters()}
        assert set(checkpoint["state_dict"]) == names, "nothing but the denoiser is saved, or averaged"

    def test_the_module_holds_no_parameters_but_the_denoisers(self, small_unet):
        module = module_of(small_unet())
        assert set(module.state_dict()) == {f"denoiser.{name}" for name in module.denoiser.state_dict()}


def test_the_denoiser_is_asked_in_the_precision_of_its_weights():
    denoiser = Recorder().double()
    module = module_of(denoiser)
    out = module(torch.zeros(2, 1, 4, 4), torch.zeros(2, dtype=torch.long))
    assert out.dtype == denoiser.asked[0][0].dtype == torch.float64


class TestPredictions:
    @pytest.mark.parametrize("predicts", ["eps", "x0", "v"])
    def test_the_module_is_eps_whatever_its_network_says(self, predicts):
        denoiser = Recorder()
        module = module_of(denoiser, predicts=predicts)
        x, t = torch.randn(6, 1, 4, 4), torch.tensor([0, 10, 100, 400, 800, 999])
        said = denoiser(x, t).double()
        alpha_bar = SCHEDULE.alpha_bar[t].reshape(-1, 1, 1, 1)
        signal, sigma = alpha_bar.sqrt(), (1 - alpha_bar).sqrt()
        expected = {"eps": said, "x0": (x - signal * said) / sigma, "v": sigma * x + signal * said}[predicts]
        torch.testing.assert_close(module(x, t).double(), expected, rtol=1e-4, atol=1e-4)

    def test_training_minimises_the_error_of_v(self):
        denoiser = Recorder()
        module = module_of(denoiser, predicts="v")
        image = torch.randint(0, 256, (64, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
        module.log = lambda *_, **__: None
        torch.manual_seed(5)
        loss = module.training_step({"image": image}, 0)
        ((x_t, t),) = denoiser.asked
        x_0, alpha_bar = image.double() / 127.5 - 1, SCHEDULE.alpha_bar[t].reshape(-1, 1, 1, 1)
        eps = (x_t - alpha_bar.sqrt() * x_0) / (1 - alpha_bar).sqrt()
        v = alpha_bar.sqrt() * eps - (1 - alpha_bar).sqrt() * x_0
        predicted = 0.3 * x_t.double() + (t / 1000).reshape(-1, 1, 1, 1)
        assert loss.item() == pytest.approx((predicted - v).square().mean().item(), rel=1e-3)

    def test_timesteps_follow_the_law_that_is_named(self):
        denoiser = Recorder()
        module = module_of(denoiser, times="lognormal", times_options={"mean": -4.0, "std": 0.1})
        module.log = lambda *_, **__: None
        module.training_step({"image": torch.zeros(200, 1, 2, 2, dtype=torch.uint8)}, 0)
        log_sigma = (0.5 * ((1 - SCHEDULE.alpha_bar) / SCHEDULE.alpha_bar).log())[denoiser.asked[0][1]]
        assert (log_sigma + 4).abs().max() < 0.6

    def test_a_rate_that_falls_to_the_end_of_training(self, tmp_path):
        module = module_of(Recorder(), optimizer={"warmup_steps": 1, "schedule": "cosine"})
        rates = EveryStep(lambda trainer, *_: trainer.optimizers[0].param_groups[0]["lr"])
        fit(module, digits(tmp_path), 10, rates)
        # Looked at after a step: of the step to come.
        expected = [1e-3 * (1 + math.cos(math.pi * step / 9)) / 2 for step in range(10)]
        assert rates.seen == pytest.approx(expected, abs=1e-9)
