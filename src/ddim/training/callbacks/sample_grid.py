"""Pictures of the same samples again and again while the network learns."""

from __future__ import annotations

from pathlib import Path

import pytorch_lightning as pl
import torch

from ddim.diffusion.grid import GridPoint
from ddim.display.images import samples_picture
from ddim.display.samples import is_image, overview
from ddim.evaluation.sampling import in_batches
from ddim.evaluation.subject import Sampling, Subject
from ddim.runs.files import save_picture
from ddim.tracking.show import show_image
from ddim.training.callbacks.periodic import EveryNValidations
from ddim.training.module import DenoisingModule


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

        subject = Subject.of(trainer, module, self.sampling)
        numbers = torch.arange(self.num_images)
        parts = in_batches(self.sampling, numbers, lambda indices: subject.draw(self.point, indices).cpu())
        samples = torch.cat(list(parts))
        picture = samples_picture(samples if is_image(samples) else overview(samples))
        save_picture(picture, self.directory / f"samples-{trainer.global_step:07d}.png")
        show_image(trainer, "samples", picture, f"step {trainer.global_step}")
