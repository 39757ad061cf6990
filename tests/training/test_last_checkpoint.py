"""When `last.ckpt` is written so that nothing is lost: around validations, in accumulated steps, on request."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from ddim.data import build_datamodule
from ddim.denoisers import UNet
from ddim.diffusion import NoiseSchedule
from ddim.errors import UserError
from ddim.runs.signals import Stopped, StopRequest
from ddim.training.callbacks.averaging import WeightEma, constant_decay
from ddim.training.callbacks.divergence import StopOnDivergence
from ddim.training.callbacks.last_checkpoint import LastCheckpoint
from ddim.training.callbacks.periodic import EveryNValidations
from ddim.training.callbacks.stopping import SignalHandlers
from ddim.training.checkpoint_io import AtomicCheckpointIO
from ddim.training.module import DenoisingModule

STEPS = 8


def module_of(lr: float = 1e-3) -> DenoisingModule:
    torch.manual_seed(0)
    denoiser = UNet(
        in_channels=1,
        resolution=8,
        base_channels=8,
        channel_mult=(1,),
        num_res_blocks=1,
        attention_resolutions=(),
        dropout=0.1,
        norm_groups=4,
    )
    optimizer = {"name": "adam", "lr": lr, "betas": [0.9, 0.999], "weight_decay": 0.0, "warmup_steps": 4}
    return DenoisingModule(denoiser, NoiseSchedule.linear(1000), optimizer=optimizer)


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    datamodule = build_datamodule(
        {"name": "digits"},
        batch_size=200,  # seven batches are an epoch
        eval_batch_size=360,
        num_workers=0,
        seed=0,
        cache_dir=tmp_path_factory.mktemp("cache"),
    )
    datamodule.prepare_data()
    datamodule.setup()
    return datamodule


class Validations(EveryNValidations):
    """Notes the step of every validation and, once, does `on_next` in one."""

    def __init__(self, on_next=None) -> None:
        super().__init__(1)
        self.steps: list[int] = []
        self.on_next = on_next

    def on_due_validation(self, trainer, module) -> None:
        if self.on_next is not None:
            self.on_next()
        self.steps.append(trainer.global_step)


class AtBatch(pl.Callback):
    """Does something at the end of the backward pass of a batch: in the middle of a step."""

    def __init__(self, number: int, what) -> None:
        self.number = number
        self.what = what

    def on_after_backward(self, trainer, pl_module) -> None:
        if trainer.fit_loop.epoch_loop.batch_progress.total.ready == self.number:
            self.what()


def fit(
    folder: Path, digits, *callbacks: pl.Callback, module=None, resume=False, stop=None, every=3, **arguments: Any
) -> dict[str, Any]:
    """Train and return the checkpoint; `resume` begins with the one that is there."""
    last = folder / "last.ckpt"
    trainer = pl.Trainer(
        **{"max_steps": STEPS, "val_check_interval": 4} | arguments,
        check_val_every_n_epoch=None,
        num_sanity_val_steps=0,
        accelerator="cpu",
        gradient_clip_val=1.0,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        plugins=[AtomicCheckpointIO()],
        callbacks=[*callbacks, WeightEma(constant_decay(0.7)), LastCheckpoint(last, every, stop)],
    )
    trainer.fit(module or module_of(), digits, ckpt_path=last if resume else None, weights_only=True)
    return stored(folder)


def stored(folder: Path) -> dict[str, Any]:
    return torch.load(folder / "last.ckpt", weights_only=True)


def assert_same(found: Any, expected: Any) -> None:
    if isinstance(expected, torch.Tensor):
        assert torch.equal(found, expected)
    elif isinstance(expected, dict):
        assert found.keys() == expected.keys()
        for key in expected:
            assert_same(found[key], expected[key])
    elif isinstance(expected, list | tuple):
        assert len(found) == len(expected)
        for pair in zip(found, expected, strict=True):
            assert_same(*pair)
    else:
        assert found == expected


def assert_same_training(found: dict[str, Any], expected: dict[str, Any]) -> None:
    for key in ("global_step", "state_dict", "current_model_state", "optimizer_states", "lr_schedulers"):
        assert_same(found[key], expected[key])


class Killed(BaseException):
    """Stands for SIGKILL: nothing is saved on its account."""


def kill() -> None:
    raise Killed


@pytest.mark.parametrize(("killed_at", "redone"), [(0, [4, 8]), (1, [8])])
def test_a_validation_cut_short_is_done_again(digits, tmp_path, killed_at, redone):
    """Also the last one of a run, when nothing is left to train."""
    whole = fit(tmp_path / "whole", digits, Validations())
    first, second = Validations(), Validations()
    first.on_next = lambda: kill() if len(first.steps) == killed_at else None
    with pytest.raises(Killed):
        fit(tmp_path, digits, first)
    assert stored(tmp_path)["global_step"] == 4 * (killed_at + 1), "no step has to be repeated"
    resumed = fit(tmp_path, digits, second, resume=True)
    assert second.steps == redone
    assert_same_training(resumed, whole)
    assert resumed["callbacks"]["Validations"] == whole["callbacks"]["Validations"] == {"validations": 2}
    # What counts the steps in the loggers; one of the two is written before Lightning has counted the last.
    count = [state["loops"]["fit_loop"]["epoch_loop.state_dict"]["_batches_that_stepped"] for state in (resumed, whole)]
    assert count[0] == count[1]


def test_a_validation_that_was_done_is_not_done_again(digits, tmp_path):
    fit(tmp_path, digits, max_steps=4)
    validations = Validations()
    fit(tmp_path, digits, validations, resume=True)
    assert validations.steps == [8]


@pytest.mark.parametrize("batch", [7, 8, 9])
def test_a_request_waits_for_the_end_of_an_accumulated_step(digits, tmp_path, batch):
    """Three batches are a step and validation falls between them: gradients of half a step are in no checkpoint."""
    accumulated = {"accumulate_grad_batches": 3, "val_check_interval": 5, "every": 1}
    whole = fit(tmp_path / "whole", digits, **accumulated)
    with StopRequest(lambda: "go on") as stop, pytest.raises(Stopped, match="143"):
        request = AtBatch(batch, lambda: signal.raise_signal(signal.SIGTERM))
        fit(tmp_path, digits, SignalHandlers(stop), request, stop=stop, **accumulated)
    # An epoch's last batch ends a step as well.
    assert stored(tmp_path)["global_step"] == {7: 3, 8: 4, 9: 4}[batch]
    assert_same_training(fit(tmp_path, digits, resume=True, **accumulated), whole)


def test_a_job_whose_time_is_almost_up_is_requeued_between_two_steps_and_goes_on(digits, tmp_path, monkeypatch):
    """Lightning's answer saves with all processes: within a step they stand at different places and wait for ever."""
    accumulated = {"accumulate_grad_batches": 3, "every": 100}
    whole = fit(tmp_path / "whole", digits, **accumulated)
    answered = []

    class Cluster(pl.Callback):
        def on_train_start(self, trainer, pl_module) -> None:
            def answer(signum, frame):
                loop = trainer.fit_loop.epoch_loop
                answered.append(
                    (signum, trainer.global_step, loop._should_accumulate(), (tmp_path / "last.ckpt").is_file())
                )

            signal.signal(signal.SIGUSR1, answer)
            stop.take_requeueing(signal.SIGUSR1)

    before = signal.getsignal(signal.SIGUSR1)
    with StopRequest(lambda: "go on") as stop:
        request = AtBatch(7, lambda: signal.raise_signal(signal.SIGUSR1))
        done = fit(tmp_path, digits, Cluster(), request, stop=stop, **accumulated)
    assert answered == [(signal.SIGUSR1, 3, False, True)]
    assert signal.getsignal(signal.SIGUSR1) == before
    assert_same_training(done, whole)


def test_a_validation_within_an_accumulated_step_saves_after_it(digits, tmp_path):
    steps: list[tuple[int, int]] = []

    class Saves(pl.Callback):
        def on_save_checkpoint(self, trainer, pl_module, checkpoint) -> None:
            steps.append((checkpoint["global_step"], trainer.fit_loop.epoch_loop.batch_progress.total.ready))

    fit(tmp_path, digits, Saves(), accumulate_grad_batches=2, val_check_interval=3, every=100, max_steps=2)
    assert steps == [(2, 4)]


def test_a_request_in_the_last_step_lets_the_run_end(digits, tmp_path):
    with StopRequest(lambda: "go on") as stop:
        request = AtBatch(STEPS, lambda: signal.raise_signal(signal.SIGINT))
        assert fit(tmp_path, digits, request, stop=stop, val_check_interval=100)["global_step"] == STEPS


class Infinite(DenoisingModule):
    """Its loss is infinite in one step, and its weights are as good as ever."""

    bad_step = 6

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        return loss + torch.inf if self.global_step + 1 == self.bad_step else loss


class TestDivergence:
    def module(self, bad_step: int) -> Infinite:
        module = module_of()
        module.__class__ = Infinite
        module.bad_step = bad_step
        return module

    def watch(self, folder: Path, every: int) -> StopOnDivergence:
        return StopOnDivergence(every, folder / "last.ckpt")

    @pytest.mark.parametrize(("every", "val_check_interval"), [(1, 100), (100, 100), (0, 7)])
    def test_an_infinite_loss_is_not_saved(self, digits, tmp_path, every, val_check_interval):
        """Found at a logged step, before a validation, or before the save at the latest."""
        watch = self.watch(tmp_path, every)
        with pytest.raises(UserError) as caught:
            fit(tmp_path, digits, watch, module=self.module(6), val_check_interval=val_check_interval, every=5)
        assert str(caught.value).startswith(
            f"The loss is not a finite number at step 6 (learning rate 0.001); "
            f"the last good checkpoint is {tmp_path / 'last.ckpt'}: "
        )
        assert stored(tmp_path)["global_step"] == 5

    def test_the_step_and_its_rate_are_those_of_the_first_one(self, digits, tmp_path):
        with pytest.raises(UserError, match=r"step 2 \(learning rate 0.0005\); no checkpoint was saved yet"):
            fit(tmp_path, digits, self.watch(tmp_path, 4), module=self.module(2), every=100, val_check_interval=100)
        assert not (tmp_path / "last.ckpt").exists()

    def test_weights_ruined_by_a_finite_loss_are_not_saved(self, digits, tmp_path):
        module = module_of()

        def ruin() -> None:
            next(module.denoiser.parameters()).grad.fill_(torch.nan)

        with pytest.raises(UserError, match=r"The weights are not finite numbers after step 6 \(learning rate 0.001\)"):
            fit(tmp_path, digits, self.watch(tmp_path, 100), AtBatch(6, ruin), module=module, val_check_interval=100)
        assert stored(tmp_path)["global_step"] == 3

    def test_the_device_is_not_waited_for_at_every_step(self, digits, tmp_path):
        """Reading a number from the device is what waits for it."""
        read: list[int] = []

        class Watch(StopOnDivergence):
            def on_train_batch_end(self, trainer, *arguments) -> None:
                with Reads(lambda: read.append(trainer.global_step)):
                    super().on_train_batch_end(trainer, *arguments)

        fit(tmp_path, digits, Watch(4, tmp_path / "last.ckpt"), val_check_interval=100, every=100)
        assert read == [4, 8]


class Reads(TorchDispatchMode):
    def __init__(self, on_read) -> None:
        super().__init__()
        self.on_read = on_read

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function is torch.ops.aten._local_scalar_dense.default:
            self.on_read()
        return function(*args, **kwargs or {})


class Rates(pl.Callback):
    def __init__(self) -> None:
        self.used: list[float] = []

    def on_train_batch_start(self, trainer, *_) -> None:
        self.used.append(trainer.optimizers[0].param_groups[0]["lr"])


def test_another_learning_rate_holds_from_the_checkpoint_on(digits, tmp_path):
    """From the first step, in the middle of the warm-up over four."""
    fit(tmp_path, digits, max_steps=2)
    rates = Rates()
    fit(tmp_path, digits, rates, resume=True, module=module_of(lr=1e-5), max_steps=5)
    assert rates.used == pytest.approx([0.75e-5, 1e-5, 1e-5])
