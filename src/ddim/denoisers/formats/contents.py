"""What a file of pretrained weights holds, whichever format it has: `Pretrained`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ddim.denoisers.formats.weights import check_fit, network_of
from ddim.denoisers.unet import UNet
from ddim.diffusion import NoiseSchedule, as_eps
from ddim.diffusion.schedule import build_schedule
from ddim.errors import UserError

WEIGHTS = ("ema", "raw")
UNSTATED = "unstated"


class EpsDenoiser(nn.Module):
    """A network that predicts something else, as (x, t) -> eps; see `ddim.diffusion.as_eps`."""

    def __init__(self, network: nn.Module, predicts: str, schedule: NoiseSchedule) -> None:
        super().__init__()
        self.network = network
        self._eps = as_eps(network, predicts, schedule)

    @property
    def config(self) -> Any:
        """The network's own."""
        return self.network.config

    @property
    def sample_shape(self) -> Any:
        """The network's own."""
        return self.network.sample_shape

    def forward(self, x: Tensor, t: Tensor, *arguments: Any) -> Tensor:
        return self._eps(x, t, *arguments)


@dataclass(frozen=True)
class Pretrained:
    """A denoiser as it was found, and what is known about its training.

    `origin` is what messages and results call it: a path, or `owner/name@<commit>` of the hub. `format` is "ddim"
    (ours), "official", "official-training" or "diffusers". `denoiser` is a configuration that `build_denoiser` takes.
    `schedule` ({"name": ..., parameters}) and `dataset` are None where the file does not state them. `states` maps
    "ema", "raw" or "unstated" (the file holds one set of weights and does not say which) to a state dict in the names
    of our network. `condition` says what the conditions of a conditional network mean, such as {"classes": [names]};
    None where the file does not say. `space` says how data that are no images were standardised. `predicts` is what the
    network says, one of PREDICTIONS. `statistics` are files beside it that hold reference statistics of what it was
    trained on. `steps` and `images` are what the weights have seen in training, optimizer steps and images with their
    repetitions, where the file says so.
    """

    origin: str
    format: str
    denoiser: dict[str, Any]
    schedule: dict[str, Any] | None
    dataset: dict[str, Any] | None
    states: Mapping[str, Mapping[str, Tensor]] = field(repr=False)
    condition: dict[str, Any] | None = None
    space: dict[str, Any] | None = None
    predicts: str = "eps"
    statistics: tuple[Path, ...] = ()
    steps: int | None = None
    images: int | None = None

    def select(self, weights: str = "ema", key: str = "weights") -> str:
        """The key of `states` to use where "ema" or "raw" weights are asked for.

        The only weights of a file that does not say what they are count as what was published, "ema". `key` is what
        messages call the setting.

        Raises:
            ValueError: `weights` is neither "ema" nor "raw".
            UserError: the file has no such weights. Raw weights are never taken for EMA weights.
        """
        if weights not in WEIGHTS:
            raise ValueError(f"weights must be one of {', '.join(WEIGHTS)}, got {weights!r}")
        if weights in self.states:
            return weights
        if weights == "ema" and UNSTATED in self.states:
            return UNSTATED
        # Raw weights in place of EMA cost a factor of four in FID; that must never happen silently.
        if weights == "ema":
            raise UserError(f"{self.origin} holds no EMA weights; take the raw ones ({key}=raw)")
        if UNSTATED in self.states:
            raise UserError(
                f"{self.origin} holds one set of weights and does not say that they are raw; "
                f"take them as published ({key}=ema)"
            )
        raise UserError(f"{self.origin} holds no raw weights; take the EMA weights ({key}=ema)")

    def build(
        self,
        weights: str = "ema",
        device: str | torch.device = "cpu",
        denoiser: Mapping[str, Any] | None = None,
    ) -> nn.Module:
        """The network, (x, t) -> what it `predicts`, in float32 and eval mode; may share memory with `states`.

        Args:
            weights: "ema" or "raw".
            device: where it goes.
            denoiser: a configuration to use instead of the file's own, for what its weights do not decide.

        Raises:
            ValueError: `weights` is neither "ema" nor "raw".
            UserError: there are no such weights, or they do not fit the configuration.
        """
        state = self.states[self.select(weights)]
        whose = "it describes" if denoiser in (None, self.denoiser) else "that was asked for"
        network = network_of(self.denoiser if denoiser is None else denoiser, state, self.origin, whose)
        check_fit(network, state, self.format, self.origin, whose)
        if isinstance(network, UNet):
            network.load_state_dict({name: value.to(torch.float32) for name, value in state.items()}, assign=True)
        else:
            network.load_state_dict(state)
        return network.to(device).eval()

    def denoiser_of(self, network: nn.Module) -> nn.Module:
        """(x, t) -> eps of the network, whatever it predicts, on the schedule that is stated or else DDPM's."""
        if self.predicts == "eps":
            return network
        return EpsDenoiser(network, self.predicts, build_schedule(self.schedule or {"name": "linear"}))
