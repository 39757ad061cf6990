"""What a feature extractor is, what it returns, and the one that needs no network: averaged pixels."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Features:
    """Features of N images, in the order of the images.

    features: float32 (N, D). logits: float32 (N, K) of an ImageNet classifier, from which the Inception score is
    computed, or None where the extractor has none.
    """

    features: Tensor
    logits: Tensor | None = None

    def __len__(self) -> int:
        return len(self.features)

    def cpu(self) -> Features:
        return Features(self.features.cpu(), None if self.logits is None else self.logits.cpu())

    @classmethod
    def cat(cls, parts: Iterable[Features]) -> Features:
        """All parts, one after the other. Raises ValueError when there is none."""
        parts = list(parts)
        if not parts:
            raise ValueError("no features to concatenate: there were no images")
        logits = [part.logits for part in parts if part.logits is not None]
        return cls(
            torch.cat([part.features for part in parts]),
            torch.cat(logits) if len(logits) == len(parts) else None,
        )


@contextmanager
def full_float32(device_type: str) -> Iterator[None]:
    """Arithmetic in true float32: no autocast, TF32 or bfloat16, whatever the caller has switched on.

    Reduced precision changes features by about 1e-3 relative, which is more than the distances between good samplers.
    """
    # Any: torch creates some of these attributes at import, where a type checker does not see them.
    cuda, cudnn, mkldnn = cast(tuple[Any, Any, Any], (torch.backends.cuda, torch.backends.cudnn, torch.backends.mkldnn))
    backends = (cuda.matmul, cudnn.conv, mkldnn.matmul, mkldnn.conv)
    before = [backend.fp32_precision for backend in backends]
    try:
        for backend in backends:
            backend.fp32_precision = "ieee"
        with torch.autocast(device_type, enabled=False):
            yield
    finally:
        for backend, precision in zip(backends, before, strict=True):
            backend.fp32_precision = precision


class FeatureExtractor(nn.Module):
    """Images -> Features, the same numbers whatever the batch size and the caller's precision.

    Always in eval mode, without gradients, in float32. `provenance` is a JSON-able dict with everything that the
    numbers depend on besides the images; statistics may be compared only if it is equal.
    """

    _device: Tensor

    def __init__(self, name: str, dim: int, provenance: Mapping[str, Any]) -> None:
        super().__init__()
        self.name = name
        self.dim = dim
        self.provenance: dict[str, Any] = {"features": name, "dim": dim, **provenance}
        # Follows .to(device), so that extractors without parameters know their device as well.
        self.register_buffer("_device", torch.empty(0), persistent=False)
        # How many images fit into memory at once, once that is known.
        self._at_once: int | None = None

    def train(self, mode: bool = True) -> FeatureExtractor:
        """Stays in eval mode: a parent module that switches to training must not change the features."""
        return super().train(False)

    def forward(self, images: Tensor) -> Features:
        """images: uint8 (N, C, H, W). Returns float32 features (N, D) on the extractor's device.

        Raises ValueError for anything but uint8 images: rounding belongs to the caller, who does it once.
        """
        self.check(images)
        # A caller may have switched an inner module, which does not pass through train().
        self.eval()
        parts: list[Features] = []
        start = 0
        while start < len(images) or not parts:
            part = self._extract_if_it_fits(images[start : start + (self._at_once or max(1, len(images)))])
            if part is not None:
                parts.append(part)
                start += len(part)
        return parts[0] if len(parts) == 1 else Features.cat(parts)

    def check(self, images: Tensor) -> None:
        """Raises ValueError for what it takes no features of."""
        if images.dtype != torch.uint8 or images.dim() != 4:
            raise ValueError(
                f"feature extractors take uint8 images of shape (N, C, H, W), got {images.dtype} {tuple(images.shape)}"
            )

    def _extract_if_it_fits(self, images: Tensor) -> Features | None:
        """None, and smaller parts from then on, where memory runs out. Raises OutOfMemoryError for a single image."""
        device = self._device.device
        try:
            with torch.no_grad(), full_float32(device.type):
                return self.extract(images.to(device))
        except torch.OutOfMemoryError:
            if len(images) <= 1:
                raise
        # Outside the handler, whose exception refers to what was allocated.
        self._at_once = len(images) // 2
        logger.warning(
            "Out of memory for %s features of %d images: %d at a time.", self.name, len(images), self._at_once
        )
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        return None

    def extract(self, images: Tensor) -> Features:
        raise NotImplementedError


class PixelFeatures(FeatureExtractor):
    """Images averaged over areas to at most 16x16, scaled to [0, 1] and flattened: D = C * min(H, 16) * min(W, 16)."""

    max_size = 16

    def __init__(self, channels: int, resolution: int) -> None:
        size = min(resolution, self.max_size)
        super().__init__("pixels", channels * size * size, {"resize": f"area average to {size}x{size}"})
        self.image_shape = (channels, resolution, resolution)
        self.size = size

    def extract(self, images: Tensor) -> Features:
        if images.shape[1:] != self.image_shape:
            raise ValueError(f"expected images of shape {self.image_shape}, got {tuple(images.shape[1:])}")
        small = functional.interpolate(images.float() / 255, size=(self.size, self.size), mode="area")
        return Features(small.flatten(1))


def extract_features(
    extractor: FeatureExtractor, batches: Iterable[Tensor], progress: Callable[[int], None] | None = None
) -> Features:
    """Features on the CPU of every image in `batches` (uint8 (N, C, H, W)), in order.

    `progress` is called after each batch with the number of images done so far.
    """
    parts, done = [], 0
    for images in batches:
        parts.append(extractor(images).cpu())
        done += len(images)
        if progress is not None:
            progress(done)
    return Features.cat(parts)
