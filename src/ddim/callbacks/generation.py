"""Samples of a grid point, divided among the processes and put together again in order."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import wraps
from typing import Any, TypeVar

import pytorch_lightning as pl
import torch
from torch import Tensor

from ddim.diffusion import NoiseSource
from ddim.errors import SharedError, UserError
from ddim.grid import GridPoint
from ddim.lit_module import DenoisingModule
from ddim.metrics import FeatureExtractor, Features

Result = TypeVar("Result")


@dataclass(frozen=True)
class Sampling:
    """Where samples come from, whatever the sampler.

    Attributes:
        noise: addresses the noise; sample i starts from the same x_T at every point.
        shape: (C, H, W) of an image.
        batch_size: images sampled at once by one process; results do not depend on it.
    """

    noise: NoiseSource
    shape: tuple[int, int, int]
    batch_size: int


@dataclass(frozen=True)
class Generation:
    """The images of one grid point, as far as they are kept."""

    features: Features
    first_images: Tensor
    seconds: float


@contextmanager
def sampling_context(trainer: pl.Trainer, module: pl.LightningModule) -> Iterator[None]:
    """The precision the trainer is set to, in evaluation mode, without gradients."""
    was_training = module.training
    module.eval()
    try:
        with torch.inference_mode(), trainer.precision_plugin.forward_context():
            yield
    finally:
        module.train(was_training)


def failing_together(gathering: Callable[..., Result]) -> Callable[..., Result]:
    """For a function of (trainer, ...) that works alone and at its end gathers once from all processes.

    A `UserError` of one process takes the place of what it would have given, and all raise it: none waits in vain.
    """

    @wraps(gathering)
    def together(trainer: pl.Trainer, *args: Any, **kwargs: Any) -> Result:
        try:
            return gathering(trainer, *args, **kwargs)
        except SharedError:
            raise
        except UserError as error:
            if trainer.world_size == 1:
                raise
            gather_objects(error, trainer.world_size)
            raise

    return together


def gather_objects(mine: Any, world_size: int) -> list[Any]:
    """What every process gives, by rank, on all. Raises `SharedError` where one of them gives a `UserError`."""
    everyone: list[Any] = [mine]
    if world_size > 1:
        everyone = [None] * world_size
        torch.distributed.all_gather_object(everyone, mine)
    for given in everyone:
        if isinstance(given, UserError):
            raise SharedError(str(given)) from given
    return everyone


@failing_together
def generate(
    trainer: pl.Trainer,
    module: DenoisingModule,
    extractor: FeatureExtractor,
    point: GridPoint,
    sampling: Sampling,
    *,
    num_samples: int,
    keep_images: int,
    advance: Callable[[int], None] = lambda images: None,
) -> Generation:
    """Samples 0 ... num_samples - 1 of a grid point, exactly those, split over the processes by their number.

    Returns on every process: the features in the order of the samples, the first `keep_images` images (uint8), and
    the seconds spent sampling (feature extraction apart) by the slowest process.
    """
    mine = torch.tensor(range(trainer.global_rank, num_samples, trainer.world_size), dtype=torch.long)
    seconds, parts, kept = 0.0, [], []
    for indices in mine.split(sampling.batch_size) if len(mine) else ():
        _synchronise(module.device)
        began = time.perf_counter()
        with sampling_context(trainer, module):
            images = module.sample_images(point, indices, sampling.shape, sampling.noise)
        _synchronise(module.device)
        seconds += time.perf_counter() - began
        parts.append(extractor(images).cpu())
        kept.append(images[indices < keep_images].cpu())
        advance(len(indices) * trainer.world_size)
    local = (Features.cat(parts), torch.cat(kept), seconds) if parts else None
    return _gather(local, trainer.world_size)


def _gather(local: tuple[Features, Tensor, float] | None, world_size: int) -> Generation:
    """Rank r holds samples r, r + W, ...: interleave them again."""
    present = [part for part in gather_objects(local, world_size) if part is not None]
    features = Features.cat([part[0] for part in present])
    order = _interleaving([len(part[0]) for part in present])
    images = torch.cat([part[1] for part in present])
    image_order = _interleaving([len(part[1]) for part in present])
    logits = None if features.logits is None else features.logits[order]
    return Generation(Features(features.features[order], logits), images[image_order], max(part[2] for part in present))


def _interleaving(lengths: Sequence[int]) -> Tensor:
    """Where sample i stands in the concatenation of per-rank parts of these lengths."""
    offsets = [sum(lengths[:rank]) for rank in range(len(lengths))]
    total = sum(lengths)
    return torch.tensor([offsets[i % len(lengths)] + i // len(lengths) for i in range(total)], dtype=torch.long)


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
