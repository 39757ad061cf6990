"""eta as a function of the timestep: one number per step of a stochastic sampler, noisiest step first."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

from torch import Tensor

from ddim.diffusion.samplers.levels import downwards
from ddim.diffusion.samplers.options import check_choice, check_number
from ddim.diffusion.schedule import NoiseSchedule

# The share of the timesteps between which "middle" adds noise: SA-Solver's tau(t) = 1 for t in [0.2, 0.8] T.
MIDDLE = (0.2, 0.8)


def constant(eta: float, schedule: NoiseSchedule, timesteps: Sequence[int] | Tensor) -> tuple[float, ...]:
    """eta at every step, as DDIM has it."""
    return (float(eta),) * len(timesteps)


def middle(eta: float, schedule: NoiseSchedule, timesteps: Sequence[int] | Tensor) -> tuple[float, ...]:
    """eta at the steps that start in the middle of the timesteps, between the shares MIDDLE of T, and 0 at the others.

    With eta = 1 it is SA-Solver's tau(t), 1 there and 0 elsewhere (Xue et al. 2023).
    """
    low, high = (share * schedule.num_timesteps for share in MIDDLE)
    return tuple(float(eta) if low <= here.timestep <= high else 0.0 for here in downwards(schedule, timesteps)[:-1])


def constant_tau(eta: float, schedule: NoiseSchedule, timesteps: Sequence[int] | Tensor) -> tuple[float, ...]:
    """The eta of each step for which SA-Solver's tau is the number `eta` at all of them: see `eta_of_tau`."""
    path = downwards(schedule, timesteps)
    spans = [there.half_log_snr - here.half_log_snr for here, there in pairwise(path)]
    return tuple(eta_of_tau(eta, h) for h in spans)


ETA_SCHEDULES: dict[str, Callable[..., tuple[float, ...]]] = {
    "constant": constant,
    "middle": middle,
    "constant_tau": constant_tau,
}


def eta_of_tau(tau: float, h: float) -> float:
    """The eta of a step of length h > 0 in half the log signal-to-noise ratio at which the noise scale is tau.

    eta^2 = (1 - exp(-2 tau^2 h)) / (1 - exp(-2 h)): tau multiplies the noise of the reverse stochastic differential
    equation (Xue et al. 2023), 0 and 1 mean the same for both, and to keep one of them constant is not to keep the
    other. tau^2 is the "eta" of k-diffusion's second-order stochastic samplers.
    """
    check_number("tau", tau, 0.0)
    if tau == 0:
        return 0.0
    return math.sqrt(math.expm1(-2 * tau * tau * h) / math.expm1(-2 * h))


def eta_per_step(
    eta: float | Sequence[float],
    schedule: NoiseSchedule,
    timesteps: Sequence[int] | Tensor,
    name: str | float = "constant",
) -> tuple[float, ...]:
    """eta of each step, noisiest first: as the list says, or what the schedule `name` makes of one number.

    name: of ETA_SCHEDULES, or numbers in [0, 1] with spaces between them, one per step, by which eta is multiplied: a
        list that a configuration can name, as text.

    Raises ValueError for an unknown name, an eta outside [0, 1], or a list that has not one for each timestep.
    """
    factors = _numbers(name)
    if not factors:
        check_choice("eta_schedule", name, (*ETA_SCHEDULES, "one number per step"))
    if isinstance(eta, Sequence) and not isinstance(eta, str):
        if name != "constant":
            raise ValueError(f"eta must be one number with the eta schedule {name!r}, got a list of {len(eta)}")
        etas = tuple(eta)
    else:
        check_number("eta", eta, 0.0, 1.0)
        for factor in factors:
            check_number("eta_schedule", factor, 0.0, 1.0)
        etas = tuple(eta * factor for factor in factors) or ETA_SCHEDULES[str(name)](eta, schedule, timesteps)
    if factors and len(factors) != len(timesteps):
        raise ValueError(
            f"eta_schedule must have one number for each of the {len(timesteps)} steps, got {len(factors)}: {name!r}"
        )
    if len(etas) != len(timesteps):
        raise ValueError(f"eta must be one number, or one for each of the {len(timesteps)} steps, got {len(etas)}")
    for value in etas:
        check_number("eta", value, 0.0, 1.0)
    return etas


def _numbers(text: object) -> tuple[float, ...]:
    """The numbers that `text` lists, none if it lists anything else."""
    try:
        return tuple(float(word) for word in str(text).split())
    except ValueError:
        return ()
