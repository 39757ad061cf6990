"""tau, the increasing sub-sequence of {0, ..., T - 1} that is sampled (DDIM section 4.2 and appendix D.2).

The official code spaces tau quadratically for CIFAR10 and linearly elsewhere; which one is used moves the FID.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from fractions import Fraction
from itertools import pairwise
from numbers import Integral

import torch
from torch import Tensor

from ddim.diffusion.schedule import NoiseSchedule

SPACINGS = ("linear", "quadratic", "trailing", "logsnr", "karras")
# The spacings of noise levels; the others are of timesteps alone and look at no schedule.
OF_NOISE_LEVELS = ("logsnr", "karras")

KARRAS_RHO = 7.0
# Over the last four timesteps of a cosine schedule lambda falls from -5.1 to -9.9, where there is less than 1 % of
# signal: a grid of noise levels would spend a third of its steps there. DPM-Solver's code cuts at the same place.
LAMBDA_MIN = -5.1


def select_timesteps(
    num_timesteps: int, num_steps: int, spacing: str = "linear", *, schedule: NoiseSchedule | None = None
) -> Tensor:
    """tau as an increasing LongTensor (S,).

    "linear": floor(i T / S) for i < S, exactly S values. Where S divides T it is the official `range(0, T, T // S)`,
    which elsewhere gives more than S (31 for S = 30).

    "quadratic": the official int(linspace(0, sqrt(0.8 T), S)^2). Small indices repeat; a repeated timestep changes
    nothing, so it is dropped and fewer than S values may come back (49 for S = 50 and T = 1000).

    "trailing": round((i + 1) T / S) - 1 for i < S, exactly S values that end at T - 1 (Lin et al. 2024, "Common
    diffusion noise schedules and sample steps are flawed", table 2). Halves round to even, as in diffusers.

    "logsnr": S values of lambda = log(sqrt(alpha_bar / (1 - alpha_bar))) at equal distances (Lu et al. 2022).
    "karras": S values of sigma = exp(-lambda) whose 7th roots are at equal distances (Karras et al. 2022, eq. 5).
    Both run from timestep 0 to the last one with lambda >= LAMBDA_MIN, T - 1 in a linear schedule, and need
    `schedule`. Each level is given the timestep of nearest lambda. Where timesteps are further apart than the levels
    several levels have the same one: the later ones move to the next free timestep above, or below where there is
    none, so that exactly S distinct timesteps come back. (No published number rests on the repeats, as it does for
    "quadratic"; and who asks for 100 calls should not be given 95.)

    The lowest timestep is 0, but for "trailing" round(T / S) - 1; the last step goes from there to the clean data in
    any case. With S = 1, "linear" and "quadratic" give tau = (0,), the others the noisiest timestep they have.

    Raises ValueError unless 1 <= num_steps <= num_timesteps and spacing is one of SPACINGS, and when a spacing of
    noise levels has no schedule, or one of other length.
    """
    if not _is_int(num_timesteps) or num_timesteps < 1:
        raise ValueError(f"num_timesteps must be an integer >= 1, got {num_timesteps!r}")
    if not _is_int(num_steps) or not 1 <= num_steps <= num_timesteps:
        raise ValueError(f"num_steps must be an integer in [1, {num_timesteps}], got {num_steps!r}")
    if schedule is not None and schedule.num_timesteps != num_timesteps:
        raise ValueError(f"schedule must have num_timesteps={num_timesteps} timesteps, got {schedule.num_timesteps}")
    if spacing == "linear":
        return torch.tensor([i * num_timesteps // num_steps for i in range(num_steps)], dtype=torch.long)
    if spacing == "quadratic":
        last = math.sqrt(0.8 * num_timesteps)
        width = last / max(num_steps - 1, 1)
        roots = [i * width for i in range(num_steps - 1)] + [last if num_steps > 1 else 0.0]
        return torch.tensor(sorted({int(root * root) for root in roots}), dtype=torch.long)
    if spacing == "trailing":
        # Fractions, because the same in floating point gives a 62nd value, -1, for S = 61 and T = 1000.
        ends = [round(Fraction((i + 1) * num_timesteps, num_steps)) for i in range(num_steps)]
        return torch.tensor(ends, dtype=torch.long) - 1
    if spacing in OF_NOISE_LEVELS:
        if schedule is None:
            raise ValueError(f"schedule must be given with spacing={spacing!r}, which spaces its noise levels")
        return _distinct(_nearest(_levels(schedule, num_steps, spacing), schedule))
    raise ValueError(f"spacing must be one of {', '.join(SPACINGS)}, got {spacing!r}")


def half_log_snr(alpha_bar: Tensor) -> Tensor:
    """lambda = log(sqrt(alpha_bar) / sqrt(1 - alpha_bar)) of alpha_bar in (0, 1), same shape."""
    return 0.5 * (alpha_bar.log() - torch.log1p(-alpha_bar))


def _levels(schedule: NoiseSchedule, num_steps: int, spacing: str) -> Tensor:
    """lambda (S,) of the ideal levels, falling."""
    table = half_log_snr(schedule.alpha_bar)
    usable = table[table >= LAMBDA_MIN]
    clean, noisy = float(table[0]), float(usable[-1]) if len(usable) else float(table[0])
    # From the noisy end, so that it is the one that a single step has.
    position = torch.linspace(0, 1, num_steps, dtype=torch.float64).flip(0)
    if num_steps == 1:
        position = torch.zeros(1, dtype=torch.float64)
    if spacing == "logsnr":
        return noisy + position * (clean - noisy)
    roots = [math.exp(-level / KARRAS_RHO) for level in (noisy, clean)]
    return -KARRAS_RHO * (roots[0] + position * (roots[1] - roots[0])).log()


def _nearest(levels: Tensor, schedule: NoiseSchedule) -> Tensor:
    """The timestep of nearest lambda for each level (S,) between those of timesteps 0 and T - 1."""
    rising = -half_log_snr(schedule.alpha_bar)
    above = torch.searchsorted(rising, -levels).clamp(1 if len(rising) > 1 else 0, len(rising) - 1)
    below = (above - 1).clamp(min=0)
    return torch.where(rising[above] + levels > -levels - rising[below], below, above)


def _distinct(timesteps: Tensor) -> Tensor:
    """The timesteps (S,), which do not decrease, moved apart until they increase strictly, within the same two ends.

    Only where there are fewer than S timesteps up to the last of them do they go beyond it.
    """
    count = torch.arange(len(timesteps))
    room = (timesteps[-1] - len(timesteps) + 1).clamp(min=0)
    return torch.minimum((timesteps - count).cummax(dim=0).values, room) + count


def explicit_timesteps(num_timesteps: int, timesteps: Sequence[int] | Tensor) -> Tensor:
    """The given timesteps as a LongTensor (S,) on the CPU, checked.

    Raises ValueError unless they are integers, at least one, strictly increasing, all in [0, num_timesteps - 1].
    """
    given = timesteps.tolist() if isinstance(timesteps, Tensor) else timesteps
    values = list(given) if isinstance(given, Iterable) else []
    if not values:
        raise ValueError(f"timesteps must be a list of at least one integer, got {timesteps!r}")
    for value in values:
        if not _is_int(value):
            raise ValueError(f"timesteps must be integers, got {value!r}")
        if not 0 <= value < num_timesteps:
            raise ValueError(f"timesteps must be in [0, {num_timesteps - 1}], got {value}")
    for before, after in pairwise(values):
        if after <= before:
            raise ValueError(f"timesteps must increase strictly, got {after} after {before}")
    return torch.tensor(values, dtype=torch.long)


def _is_int(value: object) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)
