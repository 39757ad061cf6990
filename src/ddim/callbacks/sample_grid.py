"""Pictures of the same samples again and again while the network learns."""

from __future__ import annotations

from pathlib import Path

import pytorch_lightning as pl
import torch
from torch import Tensor

from ddim.callbacks.generation import Sampling, in_batches, sampling_context
from ddim.callbacks.periodic import EveryNValidations
from ddim.figures import image_grid
from ddim.files import save_picture
from ddim.grid import GridPoint
from ddim.lit_module import DenoisingModule
from ddim.show import show_image


class SampleGrid(EveryNValidations):
    """Draws a grid of samples at the end of a validation: the weights are those that were validated (EMA, if on).

    The latents are fixed, so the pictures of one run show one set of images sharpen. They go to
    `<directory>/samples-<step>.png` and to the loggers under one key.
    """

    def __init__(
        self,
        point: GridPoint,
        sampling: Sampling,
        directory: Path,
        *,
        num_images: int,
        every_n_validations: int = 1,
    ) -> None:
        super().__init__(every_n_validations)
        self.point = point
        self.sampling = sampling
        self.directory = directory
        self.num_images = num_images

    def on_due_validation(self, trainer: pl.Trainer, module: DenoisingModule) -> None:
        if not trainer.is_global_zero:
            return

        def work(indices: Tensor) -> Tensor:
            with sampling_context(trainer, module):
                return module.sample_images(self.point, indices, self.sampling.shape, self.sampling.noise).cpu()

        images = torch.cat(list(in_batches(self.sampling, torch.arange(self.num_images), work)))
        columns = max(1, round(self.num_images**0.5))
        picture = image_grid(images, columns)
        save_picture(picture, self.directory / f"samples-{trainer.global_step:07d}.png")
        show_image(trainer, "samples", picture, f"step {trainer.global_step}")
