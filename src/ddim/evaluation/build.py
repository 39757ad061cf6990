"""From checked settings to the studies of an evaluation, in the order in which they are run."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch

from ddim.data import IMAGES, ImageDataModule, Space
from ddim.diffusion import NoiseSource
from ddim.diffusion.grid import GridPoint
from ddim.errors import UserError
from ddim.evaluation.settings import STUDIES, GeneralSettings
from ddim.evaluation.study import FEATURES, HELD_OUT, REFERENCE, Material, Study
from ddim.evaluation.subject import Sampling
from ddim.metrics.measure import Track, build_measure, load_extractor, other_split, statistics_of

# Values sampled at once. On two CPU cores the CIFAR-10 network takes 17% longer per image in batches of 128 than of 32.
CPU_PIXELS, GPU_PIXELS = 32 * 32**2, 1024 * 32**2
MOST_AT_ONCE = 4096


def build_studies(
    evaluation: GeneralSettings,
    points: Mapping[str, Sequence[GridPoint]],
    images: ImageDataModule,
    *,
    seed: int,
    cache_dir: str,
    device: torch.device,
    track: Track,
) -> tuple[list[Study], Material]:
    """One study per part. Features and reference statistics are loaded once, and only where a part needs them.

    Raises:
        UserError: features or statistics are not to be had, or there are fewer images than a study wants.
    """
    _check_space(points, images.space)
    needs = frozenset[str]().union(*(STUDIES[name].needs for name in points))
    extractor, measure, held_out = None, None, None
    if FEATURES in needs:
        extractor = load_extractor(evaluation.features, images, cache_dir=cache_dir, device=device)
    if extractor is not None and REFERENCE in needs:
        measure = build_measure(
            extractor,
            evaluation.metrics,
            images,
            cache_dir=cache_dir,
            device=device,
            seed=seed,
            track=track,
            split=evaluation.reference_split,
            published=evaluation.reference,
            with_floor=evaluation.floor and "grid" in points,
        )
    if extractor is not None and HELD_OUT in needs:
        held_out = statistics_of(other_split(evaluation.reference_split), extractor, images, cache_dir, track)
    material = Material(
        images,
        evaluation.num_samples,
        evaluation.grid_images,
        evaluation.seeds,
        evaluation.uncertainty,
        extractor,
        measure,
        held_out,
    )
    return studies_at(evaluation, points, material), material


def _check_space(points: Mapping[str, Sequence[GridPoint]], space: Space) -> None:
    """Refuse what is only defined for pixels where the samples are none."""
    if space.kind == IMAGES:
        return
    for part in points.values():
        for point in part:
            if point.clip_denoised or point.variance == "sigma_hat_official":
                asked = "sampler.eta=sigma_hat_official" if not point.clip_denoised else "sampler.clip_denoised=true"
                raise UserError(
                    f"{asked} clips the predicted x_0 to the range of pixels, which {space.kind} do not have; take "
                    "sampler.clip_denoised=false, and sigma_hat for the larger variance."
                )


def studies_at(
    evaluation: GeneralSettings, points: Mapping[str, Sequence[GridPoint]], material: Material
) -> list[Study]:
    """One study per part at these points. Raises `UserError` where there are fewer images than a study wants."""
    return [STUDIES[name].of(getattr(evaluation, name, None), where, material) for name, where in points.items()]


def sampling_batch(batch_size: int | None, shape: Sequence[int], device: torch.device) -> int:
    """`evaluation.batch_size`, or how many samples of shape (C, ...) or (D,) are drawn at once where it is null.

    On a CPU what the caches hold, on a GPU what keeps it busy; `in_batches` halves what memory does not hold.
    """
    if batch_size is not None:
        return batch_size
    pixels = GPU_PIXELS if device.type == "cuda" else CPU_PIXELS
    return min(MOST_AT_ONCE, max(1, pixels // math.prod(shape[1:])))


def sampling(seed: int, space: Space, batch_size: int) -> Sampling:
    """Samples of this space."""
    return Sampling(NoiseSource(seed), space, batch_size)
