"""The exponential moving average of the weights, on the device where training happens."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import WeightAveraging
from torch.optim.swa_utils import get_ema_multi_avg_fn


def constant_decay(decay: float) -> Callable[[int], float]:
    """The same decay, in [0, 1), at every update."""
    return lambda updates: decay


def halflife_decay(halflife: float, ramp: float | None = None) -> Callable[[int], float]:
    """The decay at each update for a half-life counted in updates, and at most `ramp` times those done so far.

    With a ramp the average always spans the same share of the training behind it, until that is `halflife` (Karras et
    al. 2022, appendix F.2): weights of the beginning do not linger in the average of a short training.
    """

    def decay(updates: int) -> float:
        length = halflife if ramp is None else min(halflife, ramp * updates)
        return 0.5 ** (1 / length) if length > 0 else 0.0

    return decay


class WeightEma(WeightAveraging):
    """ema <- decay ema + (1 - decay) weights after every n-th optimizer step, the first one included.

    `decay` is a function of the number of updates before this one. `state_dict` of a checkpoint holds the average,
    `current_model_state` the raw weights. Not Lightning's `EMAWeightAveraging`, which makes three tensors of every
    weight where one pass over all of them does.
    """

    def __init__(self, decay: Callable[[int], float], update_every_n_steps: int = 1) -> None:
        # By the decay, so that one that does not change makes one function.
        averages: dict[float, Callable[..., Any]] = {}

        def average(ema: Any, weights: Any, updates: Any) -> None:
            now = decay(int(updates))
            if now not in averages:
                averages.clear()
                averages[now] = get_ema_multi_avg_fn(now)
            averages[now](ema, weights, updates)

        super().__init__(multi_avg_fn=average)
        self.update_every_n_steps = update_every_n_steps

    def should_update(self, step_idx: int | None = None, epoch_idx: int | None = None) -> bool:
        return step_idx is not None and step_idx % self.update_every_n_steps == 0

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        # Lightning calls this before it moves the module to its device, so that the average would stay on the CPU and
        # every step copy all weights there.
        self._device = trainer.strategy.root_device
        super().setup(trainer, pl_module, stage)
        if self._average_model is not None:
            # It is compared with 0 at every update, which on an accelerator would wait for the step to end.
            self._average_model.n_averaged = self._average_model.n_averaged.cpu()
