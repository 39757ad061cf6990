"""What likelihoods are told in: bits per dimension of the 256 values of a pixel, nats per sample of anything else."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ddim.data import Space

LOG_2 = math.log(2)
# Of vectors up to this many dimensions the trace of a flow's Jacobian is computed; else it is estimated.
EXACT_DIMENSIONS = 64


@dataclass(frozen=True)
class Bits:
    """Per dimension, of images of 8-bit values; lower is better."""

    levels: int | None = 256
    divergence: str = "hutchinson"

    def row(self, bits: Tensor, stored: Callable[[], Tensor]) -> dict[str, Any]:
        """Columns of bits (N,) per dimension: the mean and its standard error, which one image does not have."""
        return {"bits_per_dimension": bits.mean().item(), "standard_error": standard_error(bits)}

    def ends(self, prior: Tensor, decoder: Tensor) -> dict[str, float]:
        """The first and the last step of a bound, (N,) bits per dimension each."""
        return {"prior": prior.mean().item(), "decoder": decoder.mean().item()}


@dataclass(frozen=True)
class Nats:
    """Of the density per sample, in the units that data are stored in; higher is better.

    space: whose `log_volume` takes the density of what the network sees to that of what is stored.
    exact: the exact log-density in nats of what is stored, (N, ...) -> (N,), where somebody knows it.
    """

    space: Space
    exact: Callable[[Tensor], Tensor] | None = None
    levels: int | None = None

    @property
    def divergence(self) -> str:
        return "exact" if len(self.space.shape) == 1 and self.space.shape[0] <= EXACT_DIMENSIONS else "hutchinson"

    def log_density(self, bits: Tensor) -> Tensor:
        """float64 (N,), of bits (N,) per dimension in the model's space, of values without levels."""
        return -bits.double() * LOG_2 * math.prod(self.space.shape) - self.space.log_volume

    def row(self, bits: Tensor, stored: Callable[[], Tensor]) -> dict[str, Any]:
        """Columns of bits (N,) per dimension, of what is `stored` (N, ...).

        log_density: the mean. Where the exact one is known, exact: its mean over the same samples; difference: of
        the two, sample by sample, with its own standard error; difference_rms, and the correlation of both.
        """
        found = self.log_density(bits)
        row = {"log_density": found.mean().item(), "standard_error": standard_error(found)}
        if self.exact is None:
            return row
        exact = self.exact(stored()).double()
        difference = found - exact
        return {
            **row,
            "exact": exact.mean().item(),
            "difference": difference.mean().item(),
            "difference_standard_error": standard_error(difference),
            "difference_rms": difference.square().mean().sqrt().item(),
            "correlation": torch.corrcoef(torch.stack([found, exact]))[0, 1].item() if len(found) > 1 else None,
        }

    def ends(self, prior: Tensor, decoder: Tensor) -> dict[str, float]:
        """As `Bits.ends`, nats per sample; the volume of the units is the decoder's."""
        scale = LOG_2 * math.prod(self.space.shape)
        return {
            "prior": scale * prior.mean().item(),
            "decoder": scale * decoder.mean().item() + self.space.log_volume,
        }


def standard_error(values: Tensor) -> float | None:
    """Of the mean of (N,); None of one."""
    return values.std().item() / math.sqrt(len(values)) if len(values) > 1 else None
