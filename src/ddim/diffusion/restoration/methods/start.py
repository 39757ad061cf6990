"""SDEdit: a measurement as the place to start from; any sampler goes on from there."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor

from ddim.diffusion.restoration.measurement import Measurement
from ddim.diffusion.samplers.options import check_number
from ddim.diffusion.schedule import NoiseSchedule
from ddim.diffusion.tau import explicit_timesteps


def sdedit(
    x_T: Tensor,
    schedule: NoiseSchedule,
    timesteps: Sequence[int] | Tensor,
    measurement: Measurement,
    *,
    start: float = 0.5,
) -> Tensor:
    """The state to start from (Meng et al. 2022), (N, ...): sqrt(alpha_bar) A^+ y + sqrt(1 - alpha_bar) x_T.

    alpha_bar is that of the last of `sdedit_timesteps`, which the sampler is to go down. The less noise, the more is
    kept of A^+ y; nothing makes the result explain y.
    """
    last = int(sdedit_timesteps(schedule, timesteps, start)[-1])
    level = schedule.alpha_bar_at(last)
    guide = measurement.operator.A_dagger(measurement.y.to(x_T))
    return math.sqrt(level) * guide + math.sqrt(1 - level) * x_T


def sdedit_timesteps(schedule: NoiseSchedule, timesteps: Sequence[int] | Tensor, start: float = 0.5) -> Tensor:
    """Those of the timesteps up to `start` T, at least the first: LongTensor (K,). ValueError for another share."""
    check_number("start", start, 0.0, 1.0)
    tau = explicit_timesteps(schedule.num_timesteps, timesteps)
    kept = tau[tau <= start * schedule.num_timesteps]
    return kept if len(kept) else tau[:1]
