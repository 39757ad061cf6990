"""From a checked configuration to the parts of an evaluation, in the order in which they are run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ddim.build import build_measure, load_extractor, sampling
from ddim.callbacks import EvaluationGrid, Study
from ddim.config import EvaluateConfig
from ddim.data import ImageDataModule
from ddim.diffusion import NoiseSchedule
from ddim.evaluation_config import plan

# Parts that compare with the real images, and those that look at samples with the same features.
WITH_REFERENCE = ("grid", "diversity")
WITH_FEATURES = (*WITH_REFERENCE, "consistency")


def build_studies(
    config: EvaluateConfig,
    schedule: NoiseSchedule,
    datamodule: ImageDataModule,
    directory: Path,
    *,
    identity: Mapping[str, Any],
    show_progress: bool,
    context: Mapping[str, Any],
) -> list[Study]:
    """One study per part. Features and reference statistics are loaded once, and only where a part needs them.

    Raises:
        UserError: features or statistics are not to be had.
    """
    part = config.evaluation
    points = plan(config.sampler, part, schedule)
    extractor, measure, context = None, None, dict(context)
    if not set(points).isdisjoint(WITH_FEATURES):
        extractor = load_extractor(part.features, config, datamodule)
    if extractor is not None and not set(points).isdisjoint(WITH_REFERENCE):
        measure = build_measure(
            extractor,
            part.metrics,
            config,
            datamodule,
            split=part.reference_split,
            published=part.reference,
            with_floor=part.floor and "grid" in points,
        )
        context["reference"] = measure.reference.provenance
    common = (sampling(config.seed, datamodule, part.batch_size), directory, identity)
    more: dict[str, Any] = {"show_progress": show_progress, "context": context}
    studies: list[Study] = []
    for name, where in points.items():
        if name == "grid":
            assert measure is not None
            studies.append(
                EvaluationGrid(
                    where,
                    *common,
                    measure=measure,
                    num_samples=part.num_samples,
                    keep_images=part.grid_images,
                    **more,
                )
            )
        # further parts follow
    return studies
