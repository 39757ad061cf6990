"""The evaluation grid under guidance: which points there are, and what they cost."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from ddim.diffusion.grid import GridPoint, SamplerConfig, network_calls, no_noise
from ddim.diffusion.guidance.settings import GuidanceConfig, Setting
from ddim.diffusion.guidance.table import GUIDANCE, NONE
from ddim.diffusion.samplers.table import SAMPLERS
from ddim.diffusion.schedule import NoiseSchedule
from ddim.errors import UserError


def guided(point: GridPoint, setting: Setting, schedule: NoiseSchedule) -> GridPoint:
    """The point under a guidance, `GuidanceConfig.settings` of it, with the network calls that this makes."""
    changed = replace(point, options=tuple(sorted((*point.options, *setting), key=lambda option: option[0])))
    return replace(changed, nfe=all_calls(changed, schedule))


def all_calls(point: GridPoint, schedule: NoiseSchedule) -> int:
    """How often networks run for a sample of the point, those that guide it included.

    Raises `UserError` where the sampler refuses its options.
    """
    plain = network_calls(point.sampler, schedule, point.timesteps, point.eta, point.own_options)
    name, options = point.guidance
    if name == NONE:
        return plain
    rule, calls = SAMPLERS[point.sampler], GUIDANCE[name].calls(schedule, **options)
    if rule.version is not None:
        # Where a sampler of a user's own asks is not known without images of the right kind.
        return plain * max(map(calls, point.timesteps))
    made = 0

    def counted(x: Tensor, t: Tensor) -> Tensor:
        nonlocal made
        made += calls(int(t[0]))
        return torch.zeros_like(x)

    rule.run(
        *(counted, torch.zeros(1, 1), schedule, point.timesteps),
        **{"eta": point.eta, "variance": point.variance, "noise": no_noise, **point.own_options},
    )
    return made


@dataclass
class GuidedSampler(SamplerConfig):
    """A grid all of whose points are under guidance, those of the first scale first."""

    guidance: GuidanceConfig = field(default_factory=GuidanceConfig)

    @classmethod
    def of(cls, sampler: SamplerConfig, guidance: GuidanceConfig) -> GuidedSampler:
        return cls(**vars(sampler), guidance=guidance)

    def points(self, schedule: NoiseSchedule, prefix: str = "sampler") -> list[GridPoint]:
        """All points, scale by scale. Raises `UserError` naming the first value that is wrong."""
        settings, points = self.guidance.settings(), super().points(schedule, prefix)
        if self.guidance.name != NONE and self.nfe is not None:
            raise UserError(
                f"{prefix}.nfe={self.nfe} is not possible with guidance={self.guidance.name}, which makes further "
                f"calls; give {prefix}.steps."
            )
        return [guided(point, setting, schedule) if setting else point for setting in settings for point in points]
