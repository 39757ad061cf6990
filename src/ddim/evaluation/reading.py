"""What stands in an image of two digits, as the classifier that ships with this package reads it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ddim.data.captioned_digits import BESIDE, CELLS, LAYOUTS, SIDE, STACKED, Caption
from ddim.metrics import FeatureExtractor, Features
from ddim.metrics.digits_cnn import DigitsFeatures

RULE = "layout by ink, digits in its two places"


class PairReader(FeatureExtractor):
    """uint8 images (N, 1, 16, 16) -> (N, 3): position in LAYOUTS, first digit, second digit.

    The layout is the one of whose own pixels, where the other leaves the image empty, more are bright; the digits are
    read in its two places. Whether anything else stands in the image is not seen.
    """

    def __init__(self) -> None:
        digits = DigitsFeatures()
        super().__init__("two-digits", 3, {"rule": RULE, "digits": digits.provenance})
        self.digits = digits
        covered = {layout: _places(layout) for layout in LAYOUTS}
        self.register_buffer("_beside_alone", covered[BESIDE] & ~covered[STACKED], persistent=False)
        self.register_buffer("_stacked_alone", covered[STACKED] & ~covered[BESIDE], persistent=False)

    _beside_alone: Tensor
    _stacked_alone: Tensor

    def extract(self, images: Tensor) -> Features:
        if images.shape[1:] != (1, SIDE, SIDE):
            raise ValueError(f"expected images of shape {(1, SIDE, SIDE)}, got {tuple(images.shape[1:])}")
        ink = images[:, 0].float()
        stacked = (ink * self._stacked_alone).sum((1, 2)) > (ink * self._beside_alone).sum((1, 2))
        found = torch.empty(len(images), 3, device=images.device)
        for number, layout in enumerate(LAYOUTS):
            here = stacked if layout is STACKED else ~stacked
            found[here, 0] = number
            for place, (rows, columns) in enumerate(CELLS[layout], start=1):
                if here.any():
                    found[here, place] = self.digits.classify(images[here][:, :, rows, columns]).to(found)
        return Features(found)


def asked(captions: Sequence[Caption]) -> Tensor:
    """What `PairReader` reads in images that obey the captions, float32 (N, 3)."""
    return torch.tensor(
        [[LAYOUTS.index(caption.layout), caption.first, caption.second] for caption in captions]
    ).float()


def right(read: Tensor, wanted: Tensor) -> Tensor:
    """bool (N,): whether both digits stand where they should, of what was read and what was `asked`, both (N, 3)."""
    return (read.cpu() == wanted).all(dim=1)


def same_digits(read: Tensor, wanted: Tensor) -> Tensor:
    """bool (N,): whether the two digits are those that were asked for, wherever they stand."""
    return (read[:, 1:].cpu().sort(dim=1).values == wanted[:, 1:].sort(dim=1).values).all(dim=1)


def _places(layout: tuple[str, str]) -> Tensor:
    covered = torch.zeros(SIDE, SIDE, dtype=torch.bool)
    for rows, columns in CELLS[layout]:
        covered[rows, columns] = True
    return covered
