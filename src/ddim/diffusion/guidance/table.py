"""The guidances by name, one line per kind, and whatever else is registered."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ddim.diffusion.guidance.autoguidance import autoguidance
from ddim.diffusion.guidance.base import EVERYWHERE, Conditional
from ddim.diffusion.guidance.classifier_free import classifier_free
from ddim.diffusion.guidance.plain import plain
from ddim.diffusion.samplers.base import Denoiser
from ddim.diffusion.schedule import NoiseSchedule

NONE = "none"


@dataclass(frozen=True)
class Guidance:
    """A rule that makes a denoiser of a conditional network.

    Attributes:
        function: (model: Conditional, **options) -> (x (N, ...), t (N,)) -> eps of x's shape, of that batch.
        options: its own options with their defaults.
        needs_guide: whether it takes a second network, `guidance.checkpoint`.
        version: changes when the rule does; None for those of this package.
    """

    function: Callable[..., Denoiser]
    options: Mapping[str, Any] = field(default_factory=dict)
    needs_guide: bool = False
    version: str | None = None

    def bind(self, model: Conditional, **options: Any) -> Denoiser:
        """The denoiser of the samples whose conditions `model` has.

        Raises ValueError for an option that the rule does not have or refuses, or a network that it cannot guide.
        """
        for name in options:
            if name not in self.options:
                raise ValueError(f"option {name!r} is not known; its own are {', '.join(self.options) or 'none'}")
        return self.function(model, **{**self.options, **options})

    def check(self, **options: Any) -> None:
        """Raises ValueError as `bind` does, for options that no network could be guided with."""
        schedule = NoiseSchedule.linear(10)
        self.calls(schedule, **options)

    def calls(self, schedule: NoiseSchedule, **options: Any) -> Callable[[int], int]:
        """Timestep -> how often a network answers there for one sample; a batch of both halves counts twice.

        Raises ValueError as `bind` does.
        """
        counted = [0]

        def network(x: Tensor, t: Tensor, condition: Tensor | None) -> Tensor:
            counted[0] += len(x)
            return torch.zeros_like(x)

        label, null = torch.zeros(1, dtype=torch.long), torch.tensor(0)
        model = Conditional(network, label, null, schedule)
        denoiser = self.bind(Conditional(network, label, null, schedule, guide=model), **options)
        known: dict[int, int] = {}

        def calls(timestep: int) -> int:
            if timestep not in known:
                counted[0] = 0
                denoiser(torch.zeros(1, 1), torch.tensor([timestep]))
                known[timestep] = counted[0]
            return known[timestep]

        return calls


_OPTIONS = {"scale": 2.0, "interval": EVERYWHERE}
GUIDANCE = {
    NONE: Guidance(plain),
    "classifier_free": Guidance(classifier_free, _OPTIONS),
    "autoguidance": Guidance(autoguidance, _OPTIONS, needs_guide=True),
}
