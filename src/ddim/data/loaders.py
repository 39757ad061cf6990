"""Loaders that turn batches of items into {"image": as stored (B, ...), "index": int64 (B,)}.

Images are uint8 (B, C, H, W). Where a data set has conditions, batches have "condition", int64 (B, ...), as well.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning.utilities.rank_zero import rank_zero_warn
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ddim.data.decoding import BadImage, Decoder
from ddim.data.order import EvaluationBatches, Item, TrainingBatches
from ddim.errors import UserError

Batches = TrainingBatches | EvaluationBatches
Batch = dict[str, Tensor]


class _Resumable:
    """Tells Lightning that a mid-epoch checkpoint can be resumed, and checks that the order is still the same one."""

    batch_sampler: Any

    def state_dict(self) -> dict[str, Any]:
        if not isinstance(self.batch_sampler, TrainingBatches):
            return {}
        order = self.batch_sampler.order
        return {
            "num_images": order.num_images,
            "batch_size": order.batch_size,
            "world_size": order.world_size,
            "seed": order.seed,
            "random_flip": order.random_flip,
        }

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        now = self.state_dict()
        changed = [f"{key} was {state_dict[key]} and is {now[key]}" for key in now if state_dict.get(key) != now[key]]
        if changed:
            rank_zero_warn(f"training goes on with another order of images than it began with: {', '.join(changed)}")


class InMemoryLoader(_Resumable):
    """Batches gathered from one tensor (N, ...), uint8 (N, C, H, W) of images.

    Not a `DataLoader`: a gather takes microseconds, and worker processes would only copy its result. Where there is an
    accelerator it gathers into page-locked memory, from which the device takes the batch when it gets there; copying
    from other memory would wait until the step before has ended.
    """

    def __init__(self, images: Tensor, batch_sampler: Batches, conditions: Tensor | None = None) -> None:
        self.images = images
        self.conditions = conditions
        self.batch_sampler = batch_sampler
        self._pin_memory = torch.cuda.is_available()

    def __len__(self) -> int:
        return len(self.batch_sampler)

    def __iter__(self) -> Iterator[Batch]:
        return map(self._gather, iter(self.batch_sampler))

    def _gather(self, items: Sequence[Item]) -> Batch:
        indices = torch.tensor([index for index, _ in items], dtype=torch.int64)
        images = torch.empty(len(indices), *self.images.shape[1:], dtype=self.images.dtype, pin_memory=self._pin_memory)
        torch.index_select(self.images, 0, indices, out=images)
        flipped = torch.tensor([position for position, (_, flip) in enumerate(items) if flip], dtype=torch.int64)
        if len(flipped):
            images[flipped] = images.index_select(0, flipped).flip(-1)
        batch = {"image": images, "index": indices}
        return batch if self.conditions is None else {**batch, "condition": self.conditions[indices]}


class OnDiskImages(Dataset[dict[str, Any]]):
    """Decodes one image per item, in a worker process."""

    def __init__(self, files: Sequence[Path], decoder: Decoder, conditions: Tensor | None = None) -> None:
        self._files = files
        self._decoder = decoder
        self._conditions = conditions

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, item: Item) -> dict[str, Any]:
        index, flip = item
        path = self._files[index]
        try:
            image = torch.from_numpy(self._decoder(path.read_bytes()).copy())
        except (BadImage, OSError) as error:
            raise UserError(f"the image {path} can no longer be used: {error}") from error
        found = {"image": image.flip(-1) if flip else image, "index": index}
        return found if self._conditions is None else {**found, "condition": self._conditions[index]}


class WorkerLoader(_Resumable, DataLoader[dict[str, Any]]):
    """Batches decoded by `num_workers` processes (0: in this one)."""

    def __init__(self, dataset: OnDiskImages, batch_sampler: Batches, num_workers: int) -> None:
        super().__init__(
            dataset,
            batch_sampler=batch_sampler,
            num_workers=num_workers,
            persistent_workers=num_workers > 0,
            pin_memory=torch.cuda.is_available(),
        )
