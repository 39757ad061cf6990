"""Work at the end of every n-th validation, when the averaged weights are in place."""

from __future__ import annotations

import pytorch_lightning as pl

from ddim.training.module import DenoisingModule


class EveryNValidations(pl.Callback):
    """Calls `on_due_validation` at the end of every n-th validation of a run, interruptions not counted.

    It must stand before the EMA callback, which swaps the raw weights back in the same hook.
    """

    def __init__(self, every_n_validations: int) -> None:
        self.every_n_validations = every_n_validations
        self.validations = 0

    def on_due_validation(self, trainer: pl.Trainer, module: DenoisingModule) -> None:
        raise NotImplementedError

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.sanity_checking:
            return
        self.validations += 1
        if self.validations % self.every_n_validations == 0:
            assert isinstance(pl_module, DenoisingModule)
            self.on_due_validation(trainer, pl_module)

    def state_dict(self) -> dict[str, int]:
        return {"validations": self.validations}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        self.validations = state_dict["validations"]
