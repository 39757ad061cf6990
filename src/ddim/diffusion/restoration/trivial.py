"""Answers without a network, which a method has to be better than."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ddim.diffusion.restoration.measurement import Measurement
from ddim.diffusion.restoration.operators.averaging import SuperResolution
from ddim.diffusion.restoration.operators.inpainting import Inpainting


def trivial_answers(measurement: Measurement) -> dict[str, Tensor]:
    """{name: x_0 (N, *shape)}: A^+ y of every operator, and what else is usual for this one.

    "pseudo_inverse" repeats the pixels of a small image and leaves unknown ones grey (0). "bicubic" enlarges a small
    image, "nearest" gives an unknown pixel or time the value of the nearest known one; columns have no neighbours.
    """
    operator = measurement.operator
    found = {"pseudo_inverse": operator.A_dagger(measurement.y)}
    if isinstance(operator, SuperResolution):
        small = measurement.y.reshape(len(measurement), *operator.small)
        found["bicubic"] = F.interpolate(small, scale_factor=operator.factor, mode="bicubic", align_corners=False)
    if isinstance(operator, Inpainting) and len(operator.shape) > 1:
        found["nearest"] = _nearest(found["pseudo_inverse"], operator.known)
    return found


def _nearest(images: Tensor, known: Tensor) -> Tensor:
    """Of several that are equally near the first in row-major order."""
    places = torch.nonzero(torch.ones_like(known)).double()
    of_known = known.flatten().nonzero()[:, 0]
    source = of_known[torch.cdist(places, places[of_known]).argmin(dim=1)]
    return images.flatten(2)[:, :, source.to(images.device)].reshape(images.shape)
