"""The samplers by name: `sample`, which is "ddim" for every η, and whatever else is registered."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from ddim.diffusion.samplers.base import Denoiser
from ddim.diffusion.samplers.encoding import encode
from ddim.diffusion.samplers.generalized import sample
from ddim.diffusion.schedule import NoiseSchedule

OPTIONS = ("eta", "variance", "clip_denoised", "noise", "on_step")


@dataclass(frozen=True)
class Sampler:
    """A rule that goes from x_T to x_0.

    Attributes:
        function: (denoiser, x_T, schedule, timesteps, **options) -> x_0 of x_T's shape, with those of OPTIONS that it
            has parameters for, what they mean is said at `ddim.diffusion.sample`, and with options of its own.
        nfe: number of timesteps -> how often the denoiser is called; given those of the rule's own options that it has
            parameters for.
        options: the rule's own options with their defaults; each is a key `sampler.NAME`.
        inverse: (denoiser, x_0, schedule, timesteps, **own options) -> the x_T that the rule takes back to about x_0;
            None where there is none.
        version: changes when the rule does; None for those of this package.
    """

    function: Callable[..., Tensor]
    nfe: Callable[..., int] = lambda steps: steps
    options: Mapping[str, Any] = field(default_factory=dict)
    inverse: Callable[..., Tensor] | None = None
    version: str | None = None

    def takes(self, option: str) -> bool:
        """Whether the rule has this option, one of OPTIONS or of its own."""
        return option in inspect.signature(self.function).parameters

    def calls(self, steps: int, options: Mapping[str, Any]) -> int:
        """How often the denoiser is called for so many timesteps with these of the rule's own options."""
        parameters = inspect.signature(self.nfe).parameters
        given = {**self.options, **options}
        return self.nfe(steps, **{name: value for name, value in given.items() if name in parameters})

    def run(
        self, denoiser: Denoiser, x_T: Tensor, schedule: NoiseSchedule, timesteps: Tensor, **options: Any
    ) -> Tensor:
        """x_0 (N, ...) of x_T (N, ...). Raises ValueError for another shape, or another number of calls than `nfe`."""
        given = {name: value for name, value in options.items() if self.takes(name)}
        if self.function is sample:
            return sample(denoiser, x_T, schedule, timesteps, **given)
        calls = 0

        def counted(x: Tensor, t: Tensor) -> Tensor:
            nonlocal calls
            calls += 1
            return denoiser(x, t)

        x_0 = self.function(counted, x_T, schedule, timesteps, **given)
        stated = self.calls(len(timesteps), {name: options[name] for name in self.options if name in options})
        if calls != stated:
            raise ValueError(f"it called the denoiser {calls} times where its nfe says {stated}")
        if x_0.shape != x_T.shape:
            raise ValueError(f"it returned shape {tuple(x_0.shape)} for latents of shape {tuple(x_T.shape)}")
        return x_0


SAMPLERS = {"ddim": Sampler(sample, inverse=encode)}
