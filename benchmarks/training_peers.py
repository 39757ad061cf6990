"""The training loops that ours is compared with. Each does less around the network than ours: no average of the
weights (denoising-diffusion-pytorch's own every tenth step), no logging, no loader, one batch that lies there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from benchmarks.peers import diffusers_scheduler, diffusers_unet, diffusion_pytorch
from ddim.denoisers import UNet
from ddim.diffusion import NoiseSchedule

Step = Callable[[], object]

FLOAT32 = "diffusers UNet2DModel, plain loop, float32"
BFLOAT16 = "diffusers UNet2DModel, plain loop, bf16 autocast"
BEST = "the same, channels last and fused Adam"
OTHER = "denoising-diffusion-pytorch, float32"
OTHER_BFLOAT16 = "denoising-diffusion-pytorch, bf16 autocast"
IN_BFLOAT16 = (BFLOAT16, BEST, OTHER_BFLOAT16)


def build(
    names: list[str], ours: UNet, schedule: NoiseSchedule, settings: Mapping[str, Any], batch: int, device: str
) -> dict[str, Step]:
    """Training steps of these peers, for networks like ours; settings: lr and betas of Adam."""

    def plain(*, bfloat16: bool, best: bool = False) -> Step:
        return diffusers_step(ours, schedule, settings, batch, device, bfloat16=bfloat16, best=best)

    known: dict[str, Callable[[], Step]] = {
        FLOAT32: lambda: plain(bfloat16=False),
        BFLOAT16: lambda: plain(bfloat16=True),
        BEST: lambda: plain(bfloat16=True, best=True),
        OTHER: lambda: diffusion_pytorch_step(ours, settings, batch, device, bfloat16=False),
        OTHER_BFLOAT16: lambda: diffusion_pytorch_step(ours, settings, batch, device, bfloat16=True),
    }
    return {name: known[name]() for name in names}


def diffusers_step(
    ours: UNet,
    schedule: NoiseSchedule,
    settings: Mapping[str, Any],
    batch: int,
    device: str,
    *,
    bfloat16: bool,
    best: bool,
) -> Step:
    """The loop of a first training script: noise, timesteps, the scheduler's `add_noise`, mean squared error, Adam.

    The architecture, dropout included, is ours. best: channels-last memory and torch's fused Adam.
    """
    network = diffusers_unet(ours).train().to(device)
    layout = torch.channels_last if best else torch.contiguous_format
    network = network.to(memory_format=layout)
    scheduler = diffusers_scheduler(schedule)
    optimizer = torch.optim.Adam(
        network.parameters(), lr=settings["lr"], betas=tuple(settings["betas"]), fused=best or None
    )
    x_0 = _images(ours, batch, device).mul(2).sub(1).to(memory_format=layout)

    def step() -> None:
        noise = torch.randn_like(x_0)
        t = torch.randint(schedule.num_timesteps, (batch,), device=device)
        noisy = scheduler.add_noise(x_0, noise, t)
        with torch.autocast(torch.device(device).type, dtype=torch.bfloat16, enabled=bfloat16):
            loss = F.mse_loss(network(noisy, t).sample.float(), noise)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def diffusion_pytorch_step(ours: UNet, settings: Mapping[str, Any], batch: int, device: str, *, bfloat16: bool) -> Step:
    """What `denoising_diffusion_pytorch.Trainer.train` does in a step, without its loader."""
    from ema_pytorch import EMA

    network = diffusion_pytorch(ours).train().to(device)
    optimizer = torch.optim.Adam(network.parameters(), lr=settings["lr"], betas=tuple(settings["betas"]))
    ema = EMA(network, beta=0.995, update_every=10)
    images = _images(ours, batch, device)

    def step() -> None:
        with torch.autocast(torch.device(device).type, dtype=torch.bfloat16, enabled=bfloat16):
            loss = network(images)
        loss.item()
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        ema.update()

    return step


def _images(ours: UNet, batch: int, device: str) -> torch.Tensor:
    side = ours.config["resolution"]
    return torch.rand(batch, ours.config["in_channels"], side, side, device=device)
