"""The evaluation grid as values: which (τ, S, η) are sampled, checked before anything runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ddim.diffusion.samplers.table import SAMPLERS
from ddim.diffusion.schedule import NoiseSchedule
from ddim.diffusion.tau import SPACINGS, explicit_timesteps, select_timesteps
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
        options: (name, value) of the rule's own options, by name, where they are not its defaults.
        nfe: how often the network runs for an image.
        nfe_limit: how often it may, where that is what was asked for.
    """

    steps: int
    eta: float
    variance: str
    tau: str
    timesteps: tuple[int, ...]
    clip_denoised: bool = False
    sampler: str = "ddim"
    options: tuple[tuple[str, Any], ...] = ()
    nfe: int = field(default=0, compare=False)
    nfe_limit: int | None = field(default=None, compare=False)

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
    options: Mapping[str, Any] | None = None,
    nfe: Any = None,
) -> list[GridPoint]:
    """All (η, S) in the order η-major, S-minor.

    Args:
        schedule: decides which timesteps there are.
        steps: S or a list of them; not used when `tau` is an explicit list.
        etas: values in [0, 1], "sigma_hat" or "sigma_hat_official", or a list of them.
        tau: a spacing's name, several of them, or one explicit increasing list of timesteps.
        prefix: where these values stand in the configuration, for the error messages.
        sampler: the rule, one of `ddim.diffusion.SAMPLERS`.
        options: the rule's own options, where they are not its defaults.
        nfe: instead of `steps`, the number of network calls that there may be, or a list of them: S is the largest
            that keeps to it.

    Raises:
        UserError: naming the first value that is wrong.
    """
    variances = [_parse_eta(eta, f"{prefix}.eta") for eta in _as_list(etas, f"{prefix}.eta")]
    _check_sampler(sampler, variances, clip_denoised, prefix)
    own = _options(sampler, options or {})
    selections = (
        [(*selection, None) for selection in _selections(schedule, steps, tau, prefix)]
        if nfe is None
        else _within(schedule, nfe, tau, sampler, own, prefix)
    )
    points = [
        GridPoint(
            *(count, eta, variance, name, timesteps, clip_denoised, sampler, own),
            nfe=_calls(sampler, schedule, timesteps, eta, dict(own)),
            nfe_limit=limit,
        )
        for eta, variance in variances
        for count, name, timesteps, limit in selections
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


def _options(sampler: str, given: Mapping[str, Any]) -> tuple[tuple[str, Any], ...]:
    """The rule's own options as a point holds them. Raises `UserError` for one that it does not have."""
    known = SAMPLERS[sampler].options
    for name, value in given.items():
        if name not in known:
            has = f"its own are {', '.join(known)}" if known else "it has none of its own"
            raise UserError(f"sampler.{name}={value} is no option of sampler.name={sampler}; {has}.")
    return tuple((name, _hashable(given[name])) for name in sorted(given) if given[name] != known[name])


def _calls(
    sampler: str, schedule: NoiseSchedule, timesteps: tuple[int, ...], eta: float, options: Mapping[str, Any]
) -> int:
    """How often the network runs. Raises `UserError` where the rule refuses its options."""
    rule = SAMPLERS[sampler]
    try:
        calls = rule.calls(schedule, timesteps, **options)
        if options and rule.version is None:
            # The rule itself knows best what its options may be; one number is sampled in no time.
            nothing = torch.zeros(1, 1)
            rule.run(lambda x, t: nothing, nothing, schedule, timesteps, eta=eta, noise=_no_noise, **options)
    except (ValueError, TypeError) as error:
        stated = ", ".join(f"sampler.{name}={value}" for name, value in options.items()) or f"sampler.name={sampler}"
        raise UserError(f"{stated} cannot be used with {len(timesteps)} timesteps: {error}.") from error
    return calls


def _no_noise(step: int, like: Tensor) -> Tensor:
    return torch.zeros_like(like)


def _hashable(value: Any) -> Any:
    return tuple(map(_hashable, value)) if isinstance(value, list | tuple) else value


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
        chosen = select_timesteps(schedule.num_timesteps, count, tau, schedule=schedule)
        selections.append((count, tau, tuple(chosen.tolist())))
    return selections


def _within(
    schedule: NoiseSchedule, nfe: Any, tau: Any, sampler: str, options: tuple[tuple[str, Any], ...], prefix: str
) -> list[tuple[int, str, tuple[int, ...], int]]:
    """For each limit of network calls the largest S that keeps to it, with its timesteps."""
    found = []
    spacings: list[Any] = [tau] if isinstance(tau, str) else list(tau) if isinstance(tau, Sequence) else [tau]
    if not all(isinstance(name, str) for name in spacings):
        raise UserError(f"{prefix}.nfe={nfe} chooses S, and {prefix}.tau={tau} does as well; take a spacing's name.")
    for spacing in spacings:
        for limit in _as_list(nfe, f"{prefix}.nfe"):
            if isinstance(limit, bool) or not isinstance(limit, int) or limit < 1:
                raise UserError(f"{prefix}.nfe={limit} must be a whole number of at least 1.")
            found.append((*_largest(schedule, limit, spacing, sampler, dict(options), prefix), limit))
    return found


def _largest(
    schedule: NoiseSchedule, limit: int, spacing: str, sampler: str, options: Mapping[str, Any], prefix: str
) -> tuple[int, str, tuple[int, ...]]:
    calls, rule = 0, SAMPLERS[sampler]
    for steps in range(min(limit, schedule.num_timesteps), 0, -1):
        (selection,) = _selections(schedule, steps, spacing, prefix)
        try:
            calls = rule.calls(schedule, selection[2], **options)
        except ValueError:
            # Too few timesteps for the rule to run at all.
            continue
        if calls <= limit:
            return selection
    fewest = f"; its fewest are {calls}" if calls else ""
    raise UserError(f"{prefix}.nfe={limit} network calls are too few for sampler.name={sampler}{fewest}.")


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


@dataclass
class SamplerConfig:
    """The grid: every number of steps with every η. `steps` and `eta` are one value or a list.

    Attributes:
        steps (whole number, or a list): S, the length of τ.
        eta (0 ... 1, sigma_hat, sigma_hat_official; or a list): η of eq. 16; sigma_hat is the paper's larger variance,
            sigma_hat_official as the official code samples it (x_0 clipped, no noise in the last step).
        tau (linear, quadratic, several of them, or a list of timesteps): how the S timesteps are chosen.
        clip_denoised: clip the predicted x_0 to [-1, 1] in every step.
        name (name, or a list): the rule, one of SAMPLERS, several of which are compared in one grid: ddim, which with η
            is the paper's whole family, a solver of higher order, or one of your own (docs/extending.md).
        nfe (whole number, or a list): instead of `steps`, the network calls that there may be; S is then the largest
            that keeps to it, so that samplers are compared at equal cost.
        options: the rule's own options; each may also be given as `sampler.NAME`.
    """

    steps: Any = field(default_factory=lambda: [5, 10, 20, 50])
    eta: Any = field(default_factory=lambda: [0.0, 0.5, 1.0])
    tau: Any = "linear"
    clip_denoised: bool = False
    name: Any = "ddim"
    options: dict[str, Any] = field(default_factory=dict)
    nfe: Any = None

    @property
    def names(self) -> list[str]:
        """The rules that are compared. Raises `UserError` for one that is not known, or named twice."""
        names = _as_list(self.name, "sampler.name")
        for name in names:
            if not isinstance(name, str) or name not in SAMPLERS:
                raise UserError(f"sampler.name={name} is not known; choose one of {', '.join(SAMPLERS)}.")
        if len(set(names)) != len(names):
            raise UserError(f"sampler.name={names} names a sampler twice.")
        return names

    @classmethod
    def with_options(cls, values: Mapping[str, Any]) -> dict[str, Any]:
        """The group's values with those that a sampler of this name has for itself gathered under `options`."""
        names, given = values.get("name"), values.get("options") or {}
        listed = names if isinstance(names, list | tuple) else [names]
        known = [SAMPLERS[name] for name in listed if isinstance(name, str) and name in SAMPLERS]
        own = {option for rule in known for option in rule.options}
        mine = {name: value for name, value in values.items() if name in own}
        rest = {name: value for name, value in values.items() if name not in own}
        # What is no mapping is for the schema to refuse.
        return {**rest, "options": {**mine, **given} if isinstance(given, Mapping) else given}

    def points(self, schedule: NoiseSchedule, prefix: str = "sampler") -> list[GridPoint]:
        """All points, sampler by sampler. Raises `UserError` naming the first value that is wrong."""
        names = self.names
        found = []
        for name in names:
            # Of several samplers an option goes to those that have it.
            own = {
                key: value for key, value in self.options.items() if len(names) == 1 or key in SAMPLERS[name].options
            }
            found += grid_points(
                schedule,
                steps=self.steps,
                etas=self.eta,
                tau=self.tau,
                clip_denoised=self.clip_denoised,
                prefix=prefix,
                sampler=name,
                options=own,
                nfe=self.nfe,
            )
        return found
