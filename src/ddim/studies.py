"""From a checked configuration to the parts of an evaluation, in the order in which they are run."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from ddim.build import build_measure, load_extractor, sampling, sampling_batch, warn_of_few_samples
from ddim.callbacks import (
    Consistency,
    Diversity,
    EvaluationGrid,
    Interpolation,
    Reconstruction,
    Resumption,
    Study,
    Trajectory,
)
from ddim.config import EvaluateConfig
from ddim.data import ImageDataModule
from ddim.diffusion import NoiseSchedule
from ddim.errors import UserError
from ddim.evaluation_config import plan
from ddim.grid import GridPoint
from ddim.paper import TABLES

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
    resumption: Resumption | None = None,
) -> list[Study]:
    """One study per part. Features and reference statistics are loaded once, and only where a part needs them.

    Raises:
        UserError: features or statistics are not to be had, or there are fewer images than are to be reconstructed.
    """
    part = config.evaluation
    points = plan(config.sampler, part, schedule)
    if config.table is not None and "grid" in points:
        points["grid"] = TABLES[config.table].wanted(points["grid"])
    reconstructed = _reconstructed(config, datamodule) if "reconstruction" in points else 0
    extractor, measure = None, None
    # Tells a killed evaluation from a finished one.
    context = {**context, "planned": {name: len(where) for name, where in points.items()}}
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
    common: dict[str, Any] = {
        "sampling": sampling(
            config.seed, datamodule, sampling_batch(part.batch_size, datamodule.resolution, config.trainer)
        ),
        "directory": directory,
        "identity": identity,
        "show_progress": show_progress,
        "context": context,
        "resumption": resumption,
    }

    def grid(where: list[GridPoint]) -> Study:
        assert measure is not None
        warn_of_few_samples("evaluation.num_samples", part.num_samples, measure.extractor, measure.metrics)
        return EvaluationGrid(
            where, measure=measure, num_samples=part.num_samples, keep_images=part.grid_images, **common
        )

    def reconstruction(where: list[GridPoint]) -> Study:
        images = partial(datamodule.images, "test", limit=reconstructed)
        return Reconstruction(
            where,
            images=images,
            num_images=reconstructed,
            shown=part.reconstruction.shown,
            source=datamodule.provenance("test"),
            **common,
        )

    def consistency(where: list[GridPoint]) -> Study:
        assert extractor is not None
        settings = part.consistency
        return Consistency(where, extractor=extractor, num_images=settings.num_images, shown=settings.shown, **common)

    def interpolation(where: list[GridPoint]) -> Study:
        settings = part.interpolation
        return Interpolation(
            where, lines=settings.lines, points_per_line=settings.points, corners=settings.corners, **common
        )

    def trajectory(where: list[GridPoint]) -> Study:
        settings = part.trajectory
        return Trajectory(
            where,
            num_images=settings.num_images,
            shown=settings.shown,
            frame_milliseconds=settings.frame_milliseconds,
            **common,
        )

    def diversity(where: list[GridPoint]) -> Study:
        assert measure is not None and extractor is not None
        other = "test" if part.reference_split == "train" else "train"
        return Diversity(
            where,
            measure=measure,
            held_out=build_measure(extractor, [], config, datamodule, split=other).reference,
            reference_images=partial(datamodule.images, part.reference_split, batch_size=500),
            num_samples=part.num_samples,
            shown=part.diversity.shown,
            **common,
        )

    builders = {
        "grid": grid,
        "reconstruction": reconstruction,
        "consistency": consistency,
        "interpolation": interpolation,
        "trajectory": trajectory,
        "diversity": diversity,
    }
    return [builders[name](where) for name, where in points.items()]


def _reconstructed(config: EvaluateConfig, datamodule: ImageDataModule) -> int:
    """How many images of the test split are reconstructed. Raises `UserError` where there are not so many."""
    wanted, available = config.evaluation.reconstruction.num_images, datamodule.num_images("test")
    if wanted is not None and wanted > available:
        raise UserError(
            f"evaluation.reconstruction.num_images={wanted} is more than the {available} images of the test split of "
            f"{datamodule.name}; take at most {available}, or null for all."
        )
    return available if wanted is None else wanted
