"""The exponential moving average of the weights, on the device where training happens."""

from __future__ import annotations

import pytorch_lightning as pl
from pytorch_lightning.callbacks import WeightAveraging
from torch.optim.swa_utils import get_ema_multi_avg_fn


class WeightEma(WeightAveraging):
    """ema <- decay ema + (1 - decay) weights after every n-th optimizer step, the first one included.

    `state_dict` of a checkpoint holds the average, `current_model_state` the raw weights. Not Lightning's
    `EMAWeightAveraging`, which makes three tensors of every weight where one pass over all of them does.
    """

    def __init__(self, decay: float, update_every_n_steps: int = 1) -> None:
        super().__init__(multi_avg_fn=get_ema_multi_avg_fn(decay))
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
