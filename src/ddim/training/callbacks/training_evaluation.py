"""A small evaluation grid while the network trains."""

from __future__ import annotations

from collections.abc import Sequence

import pytorch_lightning as pl

from ddim.diffusion.grid import GridPoint
from ddim.evaluation.sampling import generate
from ddim.evaluation.subject import Sampling, Subject
from ddim.findings.labels import point_key
from ddim.metrics import compute_metrics
from ddim.metrics.measure import Measure
from ddim.training.callbacks.periodic import EveryNValidations
from ddim.training.module import DenoisingModule


class TrainingEvaluation(EveryNValidations):
    """A small grid every so many validations, with the weights that were validated (EMA, if on).

    Logs `val/frechet_distance` (the first point) and `val/<metric>/<sampler>/steps...` for all.
    """

    def __init__(
        self,
        points: Sequence[GridPoint],
        measure: Measure,
        sampling: Sampling,
        *,
        num_samples: int,
        every_n_validations: int,
        seed: int,
    ) -> None:
        super().__init__(every_n_validations)
        self.points = list(points)
        self.measure = measure
        self.sampling = sampling
        self.num_samples = num_samples
        self.seed = seed

    def on_due_validation(self, trainer: pl.Trainer, module: DenoisingModule) -> None:
        self.measure.extractor.to(module.device)
        subject = Subject.of(trainer, module, self.sampling)
        for number, point in enumerate(self.points):
            generation = generate(
                subject,
                self.measure.extractor,
                point,
                num_samples=self.num_samples,
                keep_images=0,
                keep_features=self.measure.needs_features,
            )
            metrics = compute_metrics(
                generation.measured, self.measure.reference, self.measure.metrics, self.seed, module.device
            )
            for name, value in metrics.items():
                module.log(f"val/{name}/{point_key(point)}", value)
                if number == 0:
                    module.log(f"val/{name}", value)
