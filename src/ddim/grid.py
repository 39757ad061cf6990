"""The evaluation grid as values: which (τ, S, η) are sampled, checked before anything runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ddim.diffusion import SAMPLERS, SPACINGS, NoiseSchedule, explicit_timesteps, select_timesteps
from ddim.errors import UserError

NAMED_VARIANCES = ("sigma_hat", "sigma_hat_official")


@dataclass(frozen=True)
class GridPoint:
    """One setting of the sampler.

    Attributes:
        steps: S as it was asked for; the official quadratic rule repeats timesteps, so fewer may be distinct.
        eta: η in [0, 1]; 1 for the σ̂ variants, whose mean it is.
        variance: "eta", "sigma_hat" or "sigma_hat_official" (see `ddim.diffusion.sample`).
        tau: "linear", "quadratic" or "explicit".
        timesteps: the increasing sub-sequence that is sampled; of ddim its length is the number of network calls.
        clip_denoised: whether the predicted x_0 is clipped to [-1, 1].
        sampler: the rule, one of `ddim.diffusion.SAMPLERS`.
    """

    steps: int
    eta: float
    variance: str
    tau: str
    timesteps: tuple[int, ...]
    clip_denoised: bool = False
    sampler: str = "ddim"

    @property
    def nfe(self) -> int:
        return SAMPLERS[self.sampler].nfe(len(self.timesteps))

    def timesteps_tensor(self) -> Tensor:
        return torch.tensor(self.timesteps, dtype=torch.long)


def grid_points(
    schedule: NoiseSchedule,
    *,
    steps: Any,
    etas: Any,
    tau: Any,
    clip_denoised: bool = False,
    prefix: str = "sampler",
    sampler: str = "ddim",
) -> list[GridPoint]:
    """All (η, S) in the order η-major, S-minor.

    Args:
        schedule: decides which timesteps there are.
        steps: S or a list of them; not used when `tau` is an explicit list.
        etas: values in [0, 1], "sigma_hat" or "sigma_hat_official", or a list of them.
        tau: a spacing's name, several of them, or one explicit increasing list of timesteps.
        prefix: where these values stand in the configuration, for the error messages.
        sampler: the rule, one of `ddim.diffusion.SAMPLERS`.

    Raises:
        UserError: naming the first value that is wrong.
    """
    selections = _selections(schedule, steps, tau, prefix)
    variances = [_parse_eta(eta, f"{prefix}.eta") for eta in _as_list(etas, f"{prefix}.eta")]
    _check_sampler(sampler, variances, clip_denoised, prefix)
    points = [
        GridPoint(count, eta, variance, name, timesteps, clip_denoised, sampler)
        for eta, variance in variances
        for count, name, timesteps in selections
    ]
    if len(set(points)) != len(points):
        raise UserError(f"{prefix}.steps={steps} with {prefix}.eta={etas} names a grid point twice.")
    return points


def _check_sampler(name: str, variances: Sequence[tuple[float, str]], clip_denoised: bool, prefix: str) -> None:
    if name not in SAMPLERS:
        raise UserError(f"sampler.name={name} is not known; choose one of {', '.join(SAMPLERS)}.")
    rule = SAMPLERS[name]
    for eta, variance in variances:
        if (eta != 0 and not rule.takes("eta")) or (variance != "eta" and not rule.takes("variance")):
            given = eta if variance == "eta" else variance
            alone = "0" if not rule.takes("eta") else "a number"
            raise UserError(f"{prefix}.eta={given} is not possible with sampler.name={name}; take {alone}.")
    if clip_denoised and not rule.takes("clip_denoised"):
        raise UserError(f"sampler.clip_denoised=true is not possible with sampler.name={name}; take false.")


def _selections(schedule: NoiseSchedule, steps: Any, tau: Any, prefix: str) -> list[tuple[int, str, tuple[int, ...]]]:
    if isinstance(tau, Sequence) and not isinstance(tau, str) and tau and all(isinstance(name, str) for name in tau):
        return [selection for name in tau for selection in _selections(schedule, steps, name, prefix)]
    if not isinstance(tau, str | Sequence):
        raise UserError(f"{prefix}.tau={tau} must be one of {', '.join(SPACINGS)} or a list of timesteps.")
    if not isinstance(tau, str):
        try:
            chosen = explicit_timesteps(schedule.num_timesteps, list(tau))
        except (ValueError, TypeError) as error:
            raise UserError(f"{prefix}.tau={tau} is not usable: {error}") from error
        return [(len(chosen), "explicit", tuple(chosen.tolist()))]
    if tau not in SPACINGS:
        raise UserError(f"{prefix}.tau={tau} is not known; choose one of {', '.join(SPACINGS)} or a list of timesteps.")
    selections = []
    for count in _as_list(steps, f"{prefix}.steps"):
        if isinstance(count, bool) or not isinstance(count, int) or not 1 <= count <= schedule.num_timesteps:
            raise UserError(
                f"{prefix}.steps={count} must be a whole number from 1 to {schedule.num_timesteps}, "
                "the timesteps of the schedule."
            )
        chosen = select_timesteps(schedule.num_timesteps, count, tau)
        selections.append((count, tau, tuple(chosen.tolist())))
    return selections


def _parse_eta(eta: Any, key: str) -> tuple[float, str]:
    if eta in NAMED_VARIANCES:
        return 1.0, eta
    if isinstance(eta, bool) or not isinstance(eta, int | float) or not 0 <= eta <= 1:
        raise UserError(f"{key}={eta} must be a number from 0 to 1, {' or '.join(NAMED_VARIANCES)}.")
    return float(eta), "eta"


def _as_list(value: Any, key: str) -> list[Any]:
    values = list(value) if isinstance(value, Sequence) and not isinstance(value, str) else [value]
    if not values:
        raise UserError(f"{key}=[] is empty; give at least one value.")
    return values
