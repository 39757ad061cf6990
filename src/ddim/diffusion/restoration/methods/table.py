"""The methods of restoration by name: what they are, what they have for themselves, and what they are for."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ddim.diffusion.restoration.methods.spectral import ddnm, ddnm_plus, ddrm
from ddim.diffusion.restoration.methods.start import sdedit
from ddim.diffusion.restoration.methods.stepwise import dps, ilvr, repaint, repaint_calls
from ddim.diffusion.restoration.methods.wrappers import diffpir, pigdm

# What a method changes: the denoiser, and any sampler runs it; the steps, and it is a sampler of its own; the start.
DENOISER, SAMPLER, START = "denoiser", "sampler", "start"


@dataclass(frozen=True)
class Method:
    """A way to restore.

    Attributes:
        kind: DENOISER: function(denoiser, measurement, schedule, **options) -> denoiser. SAMPLER: function(denoiser,
            x_T, schedule, timesteps, measurement, *, noise, **options) -> x_0. START: function(x_T, schedule,
            timesteps, measurement, **options) -> the state from which the sampler goes down `sdedit_timesteps`.
        options: its own, with their defaults.
        noisy: whether it takes measurements with noise.
        instead: which method does, where it does not.
        operators: names of those that it is for; none for all.
        backward: whether each call of the network has a backward pass with it.
        calls: of a SAMPLER, number of timesteps and its options -> how often the network runs.
    """

    kind: str
    function: Callable[..., Any]
    options: Mapping[str, Any] = field(default_factory=dict)
    noisy: bool = True
    instead: str = ""
    operators: Sequence[str] = ()
    backward: bool = False
    calls: Callable[..., int] = lambda steps, **options: steps

    def refuses(self, operator: str, sigma: float) -> str | None:
        """Why it cannot restore what the named operator leaves with noise of this sigma; None where it can."""
        if self.operators and operator not in self.operators:
            return f"is for {' and '.join(self.operators)} alone"
        if sigma > 0 and not self.noisy:
            return f"is for measurements without noise; with noise take {self.instead}"
        return None


METHODS = {
    "ddrm": Method(SAMPLER, ddrm, {"noise_share": 0.85, "measured_share": 1.0}),
    "ddnm": Method(SAMPLER, ddnm, {"noise_share": 0.85}, noisy=False, instead="ddnm_plus"),
    "ddnm_plus": Method(SAMPLER, ddnm_plus, {"noise_share": 0.85}),
    "diffpir": Method(DENOISER, diffpir, {"trust": 7.0}),
    "pigdm": Method(DENOISER, pigdm, backward=True),
    "dps": Method(SAMPLER, dps, {"step_size": 0.5}, backward=True),
    "repaint": Method(
        SAMPLER,
        repaint,
        {"jump_length": 10, "jump_samples": 10},
        noisy=False,
        instead="ddrm or ddnm_plus",
        operators=("inpainting",),
        calls=repaint_calls,
    ),
    "ilvr": Method(
        SAMPLER,
        ilvr,
        {"until": 0.2},
        noisy=False,
        instead="ddrm or ddnm_plus",
        operators=("superresolution",),
    ),
    "sdedit": Method(START, sdedit, {"start": 0.5}),
}
