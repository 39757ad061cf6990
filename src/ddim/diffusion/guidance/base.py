"""What every guidance is made of: a network with the conditions of a batch bound to it, and where guidance applies."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ddim.diffusion.samplers.base import Denoiser
from ddim.diffusion.samplers.options import check_number
from ddim.diffusion.schedule import NoiseSchedule

# (x (N, ...), t (N,), condition (N, ...) or None for the one that stands for none) -> eps (N, ...).
Network = Callable[[Tensor, Tensor, Tensor | None], Tensor]
# Noise levels sigma = sqrt((1 - alpha_bar) / alpha_bar), both ends included.
EVERYWHERE = (0.0, math.inf)


@dataclass(frozen=True)
class Conditional:
    """A network and what the samples of one batch are of.

    Attributes:
        network: of a conditional model, or of one that is always given None.
        condition: LongTensor (N, ...), one for each sample of the batch; None for an unconditional network.
        null: one condition that stands for none, without the batch's dimension; None where the network has no such.
        schedule: says how noisy a timestep is.
        guide: a second, worse network with the same conditions; None where there is none.
    """

    network: Network
    condition: Tensor | None
    null: Tensor | None
    schedule: NoiseSchedule
    guide: Conditional | None = None

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        """eps (N, ...) of the samples' own conditions."""
        return self.network(x, t, self.condition)

    def unconditional(self, x: Tensor, t: Tensor) -> Tensor:
        """eps (N, ...) whatever the samples are of."""
        return self.network(x, t, None)

    def both(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """(conditional, unconditional) eps, of one batch that holds every sample twice."""
        assert self.condition is not None and self.null is not None
        null = self.null.to(self.condition.device).expand_as(self.condition)
        eps = self.network(torch.cat([x, x]), torch.cat([t, t]), torch.cat([self.condition, null]))
        one, other = eps.chunk(2)
        return one, other


def check_scale(scale: float) -> None:
    """Raises ValueError unless the scale of a guidance is a finite number of at least 0."""
    check_number("scale", scale, 0.0)


def check_interval(interval: tuple[float, float]) -> None:
    """Raises ValueError unless these are two noise levels, the lower one first."""
    numbers = len(interval) == 2 and all(
        isinstance(end, int | float) and not isinstance(end, bool) and not math.isnan(end) for end in interval
    )
    if not numbers or not 0 <= interval[0] <= interval[1]:
        raise ValueError(f"interval must be two noise levels sigma, 0 <= low <= high, got {list(interval)!r}")


def inside(schedule: NoiseSchedule, t: Tensor, interval: tuple[float, float]) -> Tensor:
    """bool (N,): whether sigma = sqrt((1 - alpha_bar) / alpha_bar) of timesteps t (N,) lies in the interval."""
    alpha_bar = schedule.alpha_bar_at(t)
    sigma = ((1 - alpha_bar) / alpha_bar).sqrt()
    return (interval[0] <= sigma) & (sigma <= interval[1])


def in_interval(
    schedule: NoiseSchedule, interval: tuple[float, float], guided: Denoiser, elsewhere: Denoiser
) -> Denoiser:
    """`guided` where the noise level of a sample lies in the interval, `elsewhere` where it does not.

    A sampler has one timestep for a whole batch, so that one of the two is called; of a mixed batch both are.
    """
    if tuple(interval) == EVERYWHERE:
        return guided

    def denoiser(x: Tensor, t: Tensor) -> Tensor:
        where = inside(schedule, t, interval)
        if bool(where.all()):
            return guided(x, t)
        if not bool(where.any()):
            return elsewhere(x, t)
        mask = where.to(x.device).reshape(-1, *[1] * (x.ndim - 1))
        return torch.where(mask, guided(x, t), elsewhere(x, t))

    return denoiser
