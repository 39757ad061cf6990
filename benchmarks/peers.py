"""The programs we are compared with, set up as their documentation does: diffusers and denoising-diffusion-pytorch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from ddim.denoisers import UNet
from ddim.denoisers.formats.naming import file_name
from ddim.diffusion import NoiseSchedule
from ddim.export import scheduler_config, unet_config


def diffusers_unet(ours: UNet) -> nn.Module:
    """diffusers' UNet2DModel of the same architecture with the same weights: the same function (N, C, H, W), t -> eps.

    Its result is a `UNet2DOutput`, whose `sample` is eps.
    """
    from diffusers import UNet2DModel

    config = {key: value for key, value in unet_config(ours).items() if not key.startswith("_")}
    theirs = UNet2DModel.from_config(config)
    levels = len(ours.config["channel_mult"])
    state = {file_name("diffusers", name, levels): value.contiguous() for name, value in ours.state_dict().items()}
    theirs.load_state_dict(state)
    return theirs.train(ours.training)


def diffusers_scheduler(schedule: NoiseSchedule) -> Any:
    """diffusers' DDIMScheduler with the same alpha_bar; `DDIMPipeline(unet, scheduler)` samples with it."""
    from diffusers import DDIMScheduler

    description = {"name": schedule.name, **schedule.params}
    config = {key: value for key, value in scheduler_config(description).items() if not key.startswith("_")}
    return DDIMScheduler.from_config(config)


def diffusion_pytorch(ours: UNet) -> nn.Module:
    """denoising-diffusion-pytorch's GaussianDiffusion and Unet of the same widths: images in [0, 1] to their loss.

    Not the same network: convolutions of 7x7 at the ends, RMSNorm, linear attention at all levels but the lowest,
    which has full attention with four heads, downsampling by space-to-depth, scale and shift by the time embedding.
    Everything not in our configuration is its default. Its `sample(batch_size)` draws images.
    """
    from denoising_diffusion_pytorch import GaussianDiffusion, Unet

    config = ours.config
    unet = Unet(
        config["base_channels"],
        dim_mults=tuple(config["channel_mult"]),
        channels=config["in_channels"],
        dropout=config["dropout"],
    )
    return GaussianDiffusion(unet, image_size=config["resolution"], objective="pred_noise", beta_schedule="linear")


def parameters(network: nn.Module) -> int:
    return sum(weight.numel() for weight in network.parameters())


class _BytesMoved(TorchDispatchMode):
    """Adds up what every operator reads and writes; views move nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, operator: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = operator(*args, **(kwargs or {}))
        if not operator.is_view and "empty" not in operator.__name__:
            tensors = [leaf for leaf in tree_leaves((args, result)) if isinstance(leaf, Tensor)]
            self.total += sum(tensor.numel() * tensor.element_size() for tensor in tensors)
        return result


def forward_bytes(network: nn.Module, image: tuple[int, int, int], dtype: torch.dtype = torch.bfloat16) -> float:
    """Bytes that the operators of the network read and write per image of shape (C, H, W), weights apart, without
    fusing any of them and as if no cache held anything."""

    def moved(images: int) -> int:
        with torch.inference_mode(), torch.autocast("cpu", dtype=dtype), _BytesMoved() as counter:
            network(torch.zeros(images, *image), torch.zeros(images, dtype=torch.long))
        return counter.total

    return float(moved(2) - moved(1))


def forward_flops(network: Callable[[Tensor, Tensor], Any], image: tuple[int, int, int]) -> float:
    """Operations (a multiplication and an addition are two) of the network per image of shape (C, H, W).

    What torch counts: convolutions, matrix products and attention.
    """
    counter = FlopCounterMode(display=False)
    device = next(network.parameters()).device if isinstance(network, nn.Module) else None
    with torch.no_grad(), counter:
        network(torch.zeros(1, *image, device=device), torch.zeros(1, dtype=torch.long, device=device))
    return float(counter.get_total_flops())
