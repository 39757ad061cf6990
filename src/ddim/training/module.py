"""The LightningModule: a denoiser, a noise schedule, the loss and the optimizer. Nothing else has parameters here,
so that weight averaging, which copies the whole module, copies only the denoiser."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from ddim.data import Space, to_model_space
from ddim.denoisers.build import null_condition, takes_condition
from ddim.denoisers.formats.own import HEADER, describe
from ddim.diffusion import TIMES, Conditional, Denoiser, NoiseSchedule, NoiseSource, as_eps, denoising_loss, simple_loss
from ddim.training.rates import LIMITED, learning_rate

# Validation noise does not depend on the run's seed: its losses are comparable between runs.
VALIDATION_SEED = 0
GOLDEN_RATIO = 0.6180339887498949


class DenoisingModule(pl.LightningModule):
    """ε_θ with its training objective.

    Args:
        denoiser: `(x (N, ...), t (N,))` -> what it predicts, a conditional one with the condition (N, ...) as a third
            argument.
        schedule: the noise schedule the denoiser is trained on.
        optimizer: `{name, lr, betas, weight_decay, warmup_steps, ...}`, see `ddim.training.rates`.
        predicts: one of `ddim.diffusion.PREDICTIONS`; the module itself is `(x, t) -> eps` whatever it is.
        times: of `ddim.diffusion.TIMES`, where training's timesteps come from; `times_options` are its own parameters.
        weighting: of the loss over timesteps, see `ddim.diffusion.loss_weights`.
        seed: noise, timesteps and dropout of a training step are a function of (seed, number of the batch, rank).
        config: `{dataset, denoiser, schedule}` as plain data; saved with the weights.
        label_dropout: probability in [0, 1] with which a conditional denoiser is trained on the condition that stands
            for none in place of an image's own (Ho & Salimans 2022).
        condition_of: sample numbers (N,) -> the conditions (N, ...) that samples are drawn with; None draws them
            without.
        space: how batches become what the denoiser sees; None for uint8 images.
        guide: a second, worse network of the same kind, to guide by in an evaluation, which predicts `guide_predicts`.
        guide_hash: identifies the weights of the guide.
    """

    def __init__(
        self,
        denoiser: nn.Module,
        schedule: NoiseSchedule,
        *,
        optimizer: Mapping[str, Any],
        predicts: str = "eps",
        times: str = "uniform",
        times_options: Mapping[str, Any] | None = None,
        weighting: str = "simple",
        seed: int = 0,
        config: Mapping[str, Any] | None = None,
        label_dropout: float = 0.0,
        condition_of: Callable[[Tensor], Tensor] | None = None,
        space: Space | None = None,
        guide: nn.Module | None = None,
        guide_predicts: str = "eps",
        guide_hash: str | None = None,
    ) -> None:
        super().__init__()
        self.denoiser = denoiser.to(memory_format=torch.channels_last)
        self.schedule = schedule
        self.optimizer_config = dict(optimizer)
        self.predicts = predicts
        self.times = times
        self.times_options = dict(times_options or {})
        self.weighting = weighting
        self.seed = seed
        self._eps = as_eps(self._predicted, predicts, schedule)
        self.config = dict(config or {})
        self.label_dropout = label_dropout
        self.condition_of = condition_of
        self.to_model = to_model_space if space is None else space.to_model
        self.guide = None if guide is None else guide.to(memory_format=torch.channels_last)
        self.guide_predicts = guide_predicts
        self.guide_hash = guide_hash
        # Sum and count of the held-out losses by quartile of t.
        self._quartiles = torch.zeros(4, 2)

    def forward(self, x: Tensor, t: Tensor, condition: Tensor | None = None) -> Tensor:
        """ε_θ(x_t, t) for any floating x; computed in the precision the weights are in."""
        return self._eps(x, t) if condition is None else self._eps(x, t, condition)

    def bound_to(self, condition: Tensor | None) -> Conditional:
        """The network with the conditions (N, ...) of a batch, and its guide with the same; None goes without."""

        def of(network: nn.Module, eps: Callable[..., Tensor], guide: Conditional | None) -> Conditional:
            own = condition if takes_condition(network) else None
            return Conditional(eps, own, null_condition(network), self.schedule, guide)

        if self.guide is None:
            return of(self.denoiser, self, None)
        eps = as_eps(partial(_answer, self.guide), self.guide_predicts, self.schedule)
        return of(self.denoiser, self, of(self.guide, eps, None))

    def _predicted(self, x: Tensor, t: Tensor, condition: Tensor | None = None) -> Tensor:
        return _answer(self.denoiser, x, t, condition)

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        # A step's randomness is addressed, not remembered: a resumed run repeats it without stored generator states.
        # `total.processed` is Lightning's one batch counter that is right wherever a checkpoint was written.
        batch_number: int = self.trainer.fit_loop.epoch_loop.batch_progress.total.processed  # type: ignore[attr-defined]
        address = (self.seed, batch_number, self.trainer.global_rank)
        torch.manual_seed(_mix(address))

    def training_step(self, batch: Mapping[str, Tensor], batch_idx: int) -> Tensor:
        x_0 = self.to_model(batch["image"])
        t = TIMES[self.times](len(x_0), self.schedule, **self.times_options).to(x_0.device)
        noise = torch.randn_like(x_0)
        network = self._conditioned(self._predicted, batch, self.label_dropout)
        losses = denoising_loss(
            *(network, x_0, t, noise, self.schedule), predicts=self.predicts, weighting=self.weighting
        )
        loss = losses.mean()
        self.log("train/loss", loss, prog_bar=True)
        return loss

    def _conditioned(
        self, network: Callable[..., Tensor], batch: Mapping[str, Tensor], dropout: float = 0.0
    ) -> Denoiser:
        """(x, t) -> what `network` says of the images of a batch, with their conditions where it takes any."""
        condition = batch.get("condition") if takes_condition(self.denoiser) else None
        if condition is None:
            return network
        null = null_condition(self.denoiser)
        if dropout and null is not None:
            # From the generator that this step has seeded, after everything that an unconditional network draws.
            dropped = torch.rand(len(condition), device=condition.device) < dropout
            condition = torch.where(dropped.view(-1, *[1] * null.ndim), null.to(condition.device), condition)
        return lambda x, t: network(x, t, condition)

    def validation_step(self, batch: Mapping[str, Tensor], batch_idx: int) -> None:
        self._held_out_step(batch)

    def test_step(self, batch: Mapping[str, Tensor], batch_idx: int) -> None:
        if len(batch["image"]):  # none where a data set is known by its description alone
            self._held_out_step(batch)

    def on_validation_epoch_end(self) -> None:
        self._log_held_out("val")

    def on_test_epoch_end(self) -> None:
        self._log_held_out("test")

    def _held_out_step(self, batch: Mapping[str, Tensor]) -> None:
        """L_simple, whatever is minimised, with the noise and the timestep fixed by the image's index."""
        x_0, index = self.to_model(batch["image"]), batch["index"]
        num_timesteps = self.schedule.num_timesteps
        # In float64 on the CPU: some accelerators have none, and the timesteps must be the same everywhere.
        t = ((index.cpu().double() + 0.5) * GOLDEN_RATIO % 1 * num_timesteps).long()
        noise = NoiseSource(VALIDATION_SEED).normal("validation", index, 0, x_0.shape[1:], x_0.device)
        loss = simple_loss(self._conditioned(self, batch), x_0, t.to(x_0.device), noise, self.schedule)
        entries = torch.stack([loss.float().cpu(), torch.ones(len(loss))], dim=1)
        self._quartiles.index_add_(0, t * 4 // num_timesteps, entries)

    def _log_held_out(self, stage: str) -> None:
        # One reduction for all quartiles: on several devices some may have seen none of a quartile.
        gathered = self.all_gather(self._quartiles.to(self.device))
        assert isinstance(gathered, Tensor)
        sums = gathered.reshape(-1, 4, 2).sum(0).cpu()
        self._quartiles.zero_()
        if not sums.any():
            return
        means = sums[:, 0] / sums[:, 1]
        for quartile, mean in enumerate(means, start=1):
            if sums[quartile - 1, 1] > 0:
                self.log(f"{stage}/loss_q{quartile}", mean)
        # Quartiles count alike, so that the number does not depend on how many images fell into each.
        self.log(f"{stage}/loss", means[sums[:, 1] > 0].mean(), prog_bar=True)

    def configure_optimizers(self) -> Any:
        config = self.optimizer_config
        kinds = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}
        optimizer = kinds[config["name"]](
            self.denoiser.parameters(),
            lr=config["lr"],
            betas=tuple(config["betas"]),
            weight_decay=config["weight_decay"],
            fused=self._fused,
        )
        scheduler = LambdaLR(optimizer, learning_rate(config, self._optimizer_steps))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    @property
    def _optimizer_steps(self) -> int | None:
        """How many there will be; None where nothing but the time or the user ends training, or nobody asks."""
        if self._trainer is None or self.optimizer_config.get("schedule") not in LIMITED:
            return None
        steps = self.trainer.estimated_stepping_batches
        return int(steps) if 0 < steps < float("inf") else None

    @property
    def _fused(self) -> bool | None:
        """True where the optimizer may be one pass over all weights; None leaves the choice to torch.

        With a loss scale (16-mixed) it may not: the scale would be undone within that pass, after clipping.
        """
        scaled = self._trainer is not None and getattr(self.trainer.precision_plugin, "scaler", None) is not None
        return None if scaled else True

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: int | float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        # Clipping by norm computes the norm anyway; taking it from there makes logging it free.
        if gradient_clip_val is not None and gradient_clip_algorithm == "value":
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)
            return
        # 0 means off, as Lightning has it; scaling the gradients to norm 0 would stop training silently.
        limit = gradient_clip_val or float("inf")
        self.log("train/gradient_norm", nn.utils.clip_grad_norm_(self.denoiser.parameters(), limit))

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint[HEADER] = describe(self.config)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        # Lightning restores the optimizer's settings with its state. What is configured now, perhaps a lower rate after
        # training has diverged, goes over them; settings that did not change stay the same to the last bit.
        now = self.optimizer_config
        for group in (group for state in checkpoint["optimizer_states"] for group in state["param_groups"]):
            group["lr"] *= now["lr"] / group["initial_lr"]
            group.update(initial_lr=now["lr"], betas=tuple(now["betas"]), weight_decay=now["weight_decay"])
            group["fused"] = self._fused
        for scheduler in checkpoint["lr_schedulers"]:
            scheduler["base_lrs"] = [now["lr"]] * len(scheduler["base_lrs"])


def _answer(network: nn.Module, x: Tensor, t: Tensor, condition: Tensor | None = None) -> Tensor:
    weights = next(network.parameters())
    layout = torch.channels_last if x.ndim == 4 else torch.preserve_format
    x = x.to(weights.dtype, memory_format=layout)
    return network(x, t) if condition is None else network(x, t, condition)


def _mix(address: tuple[int, ...]) -> int:
    """One 63-bit seed from several integers (FNV-1a over their bytes): near addresses give unrelated generators."""
    state = 0xCBF29CE484222325
    for number in address:
        for byte in number.to_bytes(8, "little", signed=False):
            state = ((state ^ byte) * 0x100000001B3) & 0xFFFFFFFFFFFFFFFF
    return state >> 1
