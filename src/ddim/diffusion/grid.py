"""The evaluation grid as values: which (τ, S, η) are sampled, checked before anything runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from torch import Tensor

from ddim.diffusion.guidance.settings import of_options, without_guidance
from ddim.diffusion.samplers.base import Denoiser
from ddim.diffusion.samplers.scaling import scale_eps
from ddim.diffusion.samplers.table import SAMPLERS
from ddim.diffusion.schedule import NoiseSchedule
from ddim.diffusion.selection import as_list, selections, within
from ddim.errors import UserError

NAMED_VARIANCES = ("sigma_hat", "sigma_hat_official")
# Options of every sampler, which change the denoiser and not the rule, with their defaults.
EPS_SCALING = {"eps_scale": 1.0, "eps_slope": 0.0}


@dataclass(frozen=True)
class GridPoint:
    """One setting of the sampler.

    Attributes:
        steps: S as it was asked for; the official quadratic rule repeats timesteps, so fewer may be distinct.
        eta: η in [0, 1]; 1 for the σ̂ variants, whose mean it is.
        variance: "eta", "sigma_hat" or "sigma_hat_official" (see `ddim.diffusion.sample`).
        tau: "explicit", or how the timesteps were spaced; "gits" and "elbo" are searched with the network.
        timesteps: the increasing sub-sequence that is sampled; of ddim its length is the number of network calls.
        clip_denoised: whether the predicted x_0 is clipped to [-1, 1].
        sampler: the rule, one of `ddim.diffusion.SAMPLERS`.
        options: (name, value) of the rule's own options and of EPS_SCALING, by name, where they are not its defaults,
            and of the guidance: "guidance", its name, and "guidance_<option>", where there is any.
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

    @property
    def own_options(self) -> dict[str, Any]:
        """Those of the rule."""
        return _own(self.sampler, dict(without_guidance(self.options)))

    @property
    def guidance(self) -> tuple[str, dict[str, Any]]:
        """What the denoiser is guided by, one of GUIDANCE, and the options of that."""
        return of_options(self.options)

    def scaled(self, denoiser: Denoiser) -> Denoiser:
        """The denoiser with its eps scaled as `options` say; the one given where they say nothing."""
        own = self.own_options
        options = without_guidance(self.options)
        scaling = {**EPS_SCALING, **{name: value for name, value in options if name not in own}}
        if scaling == EPS_SCALING:
            return denoiser
        return scale_eps(denoiser, scaling["eps_scale"], scaling["eps_slope"], timesteps=self.timesteps)


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
        options: the rule's own options and those of EPS_SCALING, where they are not its defaults.
        nfe: instead of `steps`, the number of network calls that there may be, or a list of them: S is the largest
            that keeps to it.

    Raises:
        UserError: naming the first value that is wrong.
    """
    variances = [_parse_eta(eta, f"{prefix}.eta") for eta in as_list(etas, f"{prefix}.eta")]
    _check_sampler(sampler, variances, clip_denoised, prefix)
    own = _options(sampler, options or {})
    chosen = (
        [(*selection, None) for selection in selections(schedule, steps, tau, prefix)]
        if nfe is None
        else within(schedule, nfe, tau, sampler, _own(sampler, dict(own)), prefix)
    )
    points = [
        GridPoint(
            *(count, eta, variance, name, timesteps, clip_denoised, sampler, own),
            nfe=network_calls(sampler, schedule, timesteps, eta, _own(sampler, dict(own))),
            nfe_limit=limit,
        )
        for eta, variance in variances
        for count, name, timesteps, limit in chosen
    ]
    if len(set(points)) != len(points):
        sizes = f"{prefix}.steps={steps}" if nfe is None else f"{prefix}.nfe={nfe}"
        raise UserError(f"{sizes} with {prefix}.eta={etas} names a grid point twice.")
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
    of_rule = SAMPLERS[sampler].options
    known = {**EPS_SCALING, **of_rule}
    for name, value in given.items():
        if name not in known:
            has = f"its own are {', '.join(of_rule)}" if of_rule else "it has none of its own"
            raise UserError(f"sampler.{name}={value} is no option of sampler.name={sampler}; {has}.")
    scaling = {**EPS_SCALING, **{name: value for name, value in given.items() if name not in of_rule}}
    try:
        scale_eps(lambda x, t: x, scaling["eps_scale"], scaling["eps_slope"])
    except ValueError as error:
        stated = ", ".join(f"sampler.{name}={value}" for name, value in scaling.items())
        raise UserError(f"{stated} cannot be used: {error}.") from error
    return tuple((name, _hashable(given[name])) for name in sorted(given) if given[name] != known[name])


def _own(sampler: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Of a point's options those of its rule, which may have one that is called like one of EPS_SCALING."""
    return {name: value for name, value in options.items() if name in SAMPLERS[sampler].options}


def network_calls(
    sampler: str, schedule: NoiseSchedule, timesteps: tuple[int, ...], eta: float, options: Mapping[str, Any]
) -> int:
    """How often the network runs, with the rule's own options. Raises `UserError` where it refuses them."""
    rule = SAMPLERS[sampler]
    try:
        calls = rule.calls(schedule, timesteps, **options)
        if options and rule.version is None:
            # The rule itself knows best what its options may be; one number is sampled in no time.
            nothing = torch.zeros(1, 1)
            rule.run(lambda x, t: nothing, nothing, schedule, timesteps, eta=eta, noise=no_noise, **options)
    except (ValueError, TypeError) as error:
        stated = ", ".join(f"sampler.{name}={value}" for name, value in options.items()) or f"sampler.name={sampler}"
        raise UserError(f"{stated} cannot be used with {len(timesteps)} timesteps: {error}.") from error
    return calls


def no_noise(step: int, like: Tensor) -> Tensor:
    return torch.zeros_like(like)


def _hashable(value: Any) -> Any:
    return tuple(map(_hashable, value)) if isinstance(value, list | tuple) else value


def _parse_eta(eta: Any, key: str) -> tuple[float, str]:
    if eta in NAMED_VARIANCES:
        return 1.0, eta
    if isinstance(eta, bool) or not isinstance(eta, int | float) or not 0 <= eta <= 1:
        raise UserError(f"{key}={eta} must be a number from 0 to 1, {' or '.join(NAMED_VARIANCES)}.")
    return float(eta), "eta"


@dataclass
class SamplerConfig:
    """The grid: every number of steps with every η. `steps` and `eta` are one value or a list.

    Attributes:
        steps (whole number, or a list): S, the length of τ.
        eta (0 ... 1, sigma_hat, sigma_hat_official; or a list): η of eq. 16; sigma_hat is the paper's larger variance,
            sigma_hat_official as the official code samples it (x_0 clipped, no noise in the last step).
        tau (linear, quadratic, trailing, logsnr, karras, gits, elbo, several of them, or a list of timesteps): how the
            S timesteps are chosen; gits and elbo are searched with the trained network, once per checkpoint.
        clip_denoised: clip the predicted x_0 to [-1, 1] in every step.
        name (name, or a list): the rule, one of SAMPLERS, several of which are compared in one grid: ddim, which with η
            is the paper's whole family, a solver of higher order, or one of your own (docs/extending.md).
        nfe (whole number, or a list): instead of `steps`, the network calls that there may be; S is then the largest
            that keeps to it, so that samplers are compared at equal cost.
        options: the rule's own options; each may also be given as `sampler.NAME`.
        eps_scale: the predicted noise is divided by this, 1.005 to 1.02 against the exposure bias of few steps.
        eps_slope: grows that divisor by so much with every step from the last one up.
    """

    steps: Any = field(default_factory=lambda: [5, 10, 20, 50])
    eta: Any = field(default_factory=lambda: [0.0, 0.5, 1.0])
    tau: Any = "linear"
    clip_denoised: bool = False
    name: Any = "ddim"
    options: dict[str, Any] = field(default_factory=dict)
    nfe: Any = None
    eps_scale: float = EPS_SCALING["eps_scale"]
    eps_slope: float = EPS_SCALING["eps_slope"]

    @property
    def names(self) -> list[str]:
        """The rules that are compared. Raises `UserError` for one that is not known, or named twice."""
        names = as_list(self.name, "sampler.name")
        for name in names:
            if not isinstance(name, str) or name not in SAMPLERS:
                raise UserError(f"sampler.name={name} is not known; choose one of {', '.join(SAMPLERS)}.")
        if len(set(names)) != len(names):
            raise UserError(f"sampler.name={names} names a sampler twice.")
        return names

    @classmethod
    def with_options(cls, values: Mapping[str, Any]) -> dict[str, Any]:
        """The group's values with those that a sampler has for itself gathered under `options`.

        One that only samplers of other names have is among them: `points` says whose it is not.
        """
        names, given = values.get("name"), values.get("options") or {}
        listed = names if isinstance(names, list | tuple) else [names]
        known = [SAMPLERS[name] for name in listed if isinstance(name, str) and name in SAMPLERS]
        own = {option for rule in SAMPLERS.values() for option in rule.options} - {item.name for item in fields(cls)}
        own |= {option for rule in known for option in rule.options}
        mine = {name: value for name, value in values.items() if name in own}
        rest = {name: value for name, value in values.items() if name not in own}
        # What is no mapping is for the schema to refuse.
        return {**rest, "options": {**mine, **given} if isinstance(given, Mapping) else given}

    def points(self, schedule: NoiseSchedule, prefix: str = "sampler") -> list[GridPoint]:
        """All points, sampler by sampler. Raises `UserError` naming the first value that is wrong."""
        names = self.names
        owned = {option for name in names for option in SAMPLERS[name].options}
        for option, value in self.options.items():
            if len(names) > 1 and option not in owned:
                raise UserError(f"sampler.{option}={value} is no option of any sampler in sampler.name={names}.")
        found = []
        for name in names:
            # Of several samplers an option goes to those that have it.
            own = {
                key: value for key, value in self.options.items() if len(names) == 1 or key in SAMPLERS[name].options
            }
            scaling = {"eps_scale": self.eps_scale, "eps_slope": self.eps_slope}
            scaling = {key: value for key, value in scaling.items() if key not in SAMPLERS[name].options}
            found += grid_points(
                schedule,
                steps=self.steps,
                etas=self.eta,
                tau=self.tau,
                clip_denoised=self.clip_denoised,
                prefix=prefix,
                sampler=name,
                options={**scaling, **own},
                nfe=self.nfe,
            )
        return found
