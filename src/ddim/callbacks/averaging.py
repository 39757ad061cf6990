"""The exponential moving average of the weights, on the device where training happens."""

from __future__ import annotations

import pytorch_lightning as pl
from pytorch_lightning.callbacks import EMAWeightAveraging


class WeightEma(EMAWeightAveraging):
    """Lightning's EMA; `state_dict` of a checkpoint holds the average, `current_model_state` the raw weights.

    Lightning calls `setup` before it moves the module to its device, so that the average would stay on the CPU and
    every step copy all weights there.
    """

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        self._device = trainer.strategy.root_device
        super().setup(trainer, pl_module, stage)
