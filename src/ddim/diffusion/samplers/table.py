"""The samplers by name, one line per family or setting of one, and whatever else is registered."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from ddim.diffusion.samplers.base import Denoiser
from ddim.diffusion.samplers.encoding import encode
from ddim.diffusion.samplers.exponential import encode_exponential, exponential
from ddim.diffusion.samplers.generalized import sample
from ddim.diffusion.samplers.ipndm import encode_ipndm, ipndm
from ddim.diffusion.samplers.restart import restart, restart_plan
from ddim.diffusion.samplers.single_step import (
    dpm2,
    dpm3,
    dpm_calls,
    encode_dpm2,
    encode_dpm3,
    encode_heun,
    heun,
    heun_calls,
)
from ddim.diffusion.samplers.stochastic import stochastic
from ddim.diffusion.samplers.unipc import encode_unipc, unipc
from ddim.diffusion.schedule import NoiseSchedule

OPTIONS = ("eta", "variance", "clip_denoised", "noise", "on_step")


@dataclass(frozen=True)
class Sampler:
    """A rule that goes from x_T to x_0.

    Attributes:
        function: (denoiser, x_T, schedule, timesteps, **options) -> x_0 of x_T's shape, with those of OPTIONS that it
            has parameters for, whose meaning is said at `ddim.diffusion.sample`, and with its own.
        nfe: number of timesteps -> how often the denoiser is called. Where more than the number decides, further
            parameters of it are given by name: `schedule`, `timesteps`, and the rule's own options.
        options: its own options with their defaults, which may differ from the function's.
        inverse: (denoiser, x_0, schedule, timesteps, **options) -> x_T, the same rule run upwards, with as many calls
            and those of its own options that it has parameters for; None where there is none.
        version: changes when the rule does; None for those of this package.
    """

    function: Callable[..., Tensor]
    nfe: Callable[..., int] = lambda steps: steps
    options: Mapping[str, Any] = field(default_factory=dict)
    inverse: Callable[..., Tensor] | None = None
    version: str | None = None

    def takes(self, option: str) -> bool:
        """Whether the rule has this option, one of OPTIONS or its own."""
        return option in inspect.signature(self.function).parameters

    def calls(self, schedule: NoiseSchedule, timesteps: Sequence[int] | Tensor, **options: Any) -> int:
        """How often the denoiser is called along these timesteps, with the defaults for options that are not given."""
        known = {"schedule": schedule, "timesteps": timesteps, **self.options, **options}
        return self.nfe(len(timesteps), **_of_parameters(self.nfe, known, skip=1))

    def run(
        self,
        denoiser: Denoiser,
        x_T: Tensor,
        schedule: NoiseSchedule,
        timesteps: Sequence[int] | Tensor,
        **options: Any,
    ) -> Tensor:
        """x_0 (N, ...) of x_T (N, ...); of OPTIONS those are dropped that the rule does not have.

        Raises ValueError for any other option that it does not have, for another shape, or another number of calls
        than `nfe` says.
        """
        given = self._given(options)
        if self.function is sample:
            return sample(denoiser, x_T, schedule, timesteps, **given)
        return self._counted(self.function, denoiser, x_T, schedule, timesteps, given)

    def encode(
        self,
        denoiser: Denoiser,
        x_0: Tensor,
        schedule: NoiseSchedule,
        timesteps: Sequence[int] | Tensor,
        **options: Any,
    ) -> Tensor:
        """x_T (N, ...) of x_0 (N, ...) by `inverse`; ValueError where there is none, and as `run` does."""
        if self.inverse is None:
            raise ValueError("this sampler cannot be run from the data to x_T")
        given = _of_parameters(self.inverse, self._given(options))
        return self._counted(self.inverse, denoiser, x_0, schedule, timesteps, given)

    def _given(self, options: Mapping[str, Any]) -> dict[str, Any]:
        for name in options:
            if name not in OPTIONS and not self.takes(name):
                raise ValueError(f"option {name!r} is not known to this sampler; its own are {_listed(self.options)}")
        return {name: value for name, value in {**self.options, **options}.items() if self.takes(name)}

    def _counted(
        self,
        function: Callable[..., Tensor],
        denoiser: Denoiser,
        x: Tensor,
        schedule: NoiseSchedule,
        timesteps: Sequence[int] | Tensor,
        given: Mapping[str, Any],
    ) -> Tensor:
        calls = 0

        def counted(x: Tensor, t: Tensor) -> Tensor:
            nonlocal calls
            calls += 1
            return denoiser(x, t)

        result = function(counted, x, schedule, timesteps, **given)
        promised = self.calls(schedule, timesteps, **given)
        if calls != promised:
            raise ValueError(f"it called the denoiser {calls} times where its nfe says {promised}")
        if result.shape != x.shape:
            raise ValueError(f"it returned shape {tuple(result.shape)} for latents of shape {tuple(x.shape)}")
        return result


def _of_parameters(function: Callable[..., Any], values: Mapping[str, Any], skip: int = 0) -> dict[str, Any]:
    parameters = list(inspect.signature(function).parameters.values())[skip:]
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return dict(values)
    return {parameter.name: values[parameter.name] for parameter in parameters if parameter.name in values}


def _listed(names: Mapping[str, Any] | Sequence[str]) -> str:
    return ", ".join(names) or "none"


def _solver(name: str) -> Sampler:
    """The sampler that `restart` is to run: one that can stop at a timestep."""
    able = [known for known, sampler in SAMPLERS.items() if sampler.takes("end")]
    if name not in able:
        raise ValueError(f"solver must be one of {_listed(able)}, got {name!r}")
    return SAMPLERS[name]


@functools.wraps(restart)
def _restart(
    denoiser: Denoiser,
    x_T: Tensor,
    schedule: NoiseSchedule,
    timesteps: Sequence[int] | Tensor,
    *,
    solver: str = "heun",
    **options: Any,
) -> Tensor:
    return restart(denoiser, x_T, schedule, timesteps, solver=_solver(solver).run, **options)


def _restart_calls(
    steps: int, *, schedule: NoiseSchedule, timesteps: Sequence[int] | Tensor, solver: str = "heun", **options: Any
) -> int:
    plan = restart_plan(schedule, timesteps, **_of_parameters(restart_plan, options))
    return sum(_solver(solver).calls(schedule, segment.timesteps, end=segment.end) for segment in plan)


def _dpm_sampler(function: Callable[..., Tensor], order: int, inverse: Callable[..., Tensor]) -> Sampler:
    def calls(steps: int, *, schedule: NoiseSchedule, timesteps: Sequence[int] | Tensor, end: int = -1) -> int:
        return dpm_calls(order, schedule, timesteps, end)

    return Sampler(function, calls, inverse=inverse)


_RESTART_OPTIONS = {"solver": "heun", "t_min": 0.06, "t_max": 0.3, "restarts": 2, "restart_steps": 3}

SAMPLERS = {
    "ddim": Sampler(sample, options={"eta_schedule": "constant"}, inverse=encode),
    "deis": Sampler(exponential, options={"order": 3, "interpolates": "eps"}, inverse=encode_exponential),
    "dpmpp": Sampler(exponential, options={"order": 2, "interpolates": "x0"}, inverse=encode_exponential),
    "lms": Sampler(exponential, options={"order": 4, "interpolates": "eps"}, inverse=encode_exponential),
    "ipndm": Sampler(ipndm, options={"order": 4}, inverse=encode_ipndm),
    "unipc": Sampler(unipc, options={"order": 3, "variant": "bh2", "corrector": True}, inverse=encode_unipc),
    "heun": Sampler(heun, heun_calls, inverse=encode_heun),
    "dpm2": _dpm_sampler(dpm2, 2, encode_dpm2),
    "dpm3": _dpm_sampler(dpm3, 3, encode_dpm3),
    "sde": Sampler(stochastic, options={"order": 2, "eta_schedule": "constant"}),
    "restart": Sampler(_restart, _restart_calls, options=_RESTART_OPTIONS),
}
