"""Images per second of sampling, ours and the peers', by turns: `python -m benchmarks.sampling`.

Ours is what `evaluate.py` runs for a grid point: `generate` with Lightning's Trainer, addressed noise, rounding to
uint8 and features (averaged pixels, so that no weights are needed). The peers are called as their documentation does;
diffusers also with the best settings anyone would find. All have the CIFAR-10 network, the same weights where it is
the same network, the same S, and eta = 0. `--profile` shows where a pass of the network goes instead.
"""

from __future__ import annotations

import argparse
import logging
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.machine import ceilings, describe, without_bfloat16
from benchmarks.peers import (
    diffusers_scheduler,
    diffusers_unet,
    diffusion_pytorch,
    forward_bytes,
    forward_flops,
    parameters,
)
from benchmarks.timing import alternate, rate_rows, table
from ddim.data import Pixels
from ddim.denoisers import UNet
from ddim.diffusion import NoiseSchedule, NoiseSource
from ddim.diffusion.grid import GridPoint, grid_points
from ddim.evaluation.sampling import generate
from ddim.evaluation.subject import Sampling, Subject
from ddim.metrics.features import PixelFeatures
from ddim.training.module import DenoisingModule
from ddim.training.precision import AUTO, with_precision
from ddim.training.trainer import build_trainer

TINY: dict[str, Any] = {
    "resolution": 16,
    "base_channels": 32,
    "channel_mult": [1, 2],
    "num_res_blocks": 1,
    "attention_resolutions": [8],
}
OURS = "ddim (evaluate.py)"
DEFAULT = "diffusers DDIMPipeline, default (float32)"
BEST = "diffusers, bfloat16 autocast, channels last"
BEST_FLOAT32 = "diffusers, float32, channels last"


class Ours:
    """A module and a trainer as `evaluate.py` has them, for a network with weights of random values."""

    def __init__(self, config: dict[str, Any], accelerator: str, precision: str, batch_size: int) -> None:
        torch.manual_seed(0)
        network = UNet(**config).eval()
        for weight in network.parameters():
            if not weight.any():
                # The layers that start at zero; zeros might be multiplied faster.
                torch.nn.init.normal_(weight, std=0.02)
        self.module = DenoisingModule(network, NoiseSchedule.linear(), optimizer={}, seed=0)
        arguments = with_precision({"accelerator": accelerator, "devices": 1, "precision": precision}, network.config)
        self.trainer = build_trainer(arguments, Path())
        self.device = self.trainer.strategy.root_device
        self.module.to(self.device)
        self.shape = (config.get("in_channels", 3), network.config["resolution"], network.config["resolution"])
        self.extractor = PixelFeatures(self.shape[0], self.shape[1]).to(self.device)
        self.sampling = Sampling(NoiseSource(0), Pixels(self.shape), batch_size)
        self.subject = Subject.of(self.trainer, self.module, self.sampling)

    def point(self, steps: int, eta: float = 0.0) -> GridPoint:
        return grid_points(self.module.schedule, steps=steps, etas=eta, tau="linear")[0]

    def sample(self, num_samples: int, point: GridPoint) -> None:
        generate(self.subject, self.extractor, point, num_samples=num_samples, keep_images=0)

    def outside_the_denoiser(self, num_samples: int, point: GridPoint) -> float:
        """The part of the time, from 0 to 1, that is not spent in the network."""
        denoiser, inside = self.module.denoiser, [0.0]
        forward = denoiser.forward

        def timed(*arguments: Any) -> Any:
            self._wait()
            began = time.perf_counter()
            result = forward(*arguments)
            self._wait()
            inside[0] += time.perf_counter() - began
            return result

        denoiser.forward = timed
        try:
            self._wait()
            began = time.perf_counter()
            self.sample(num_samples, point)
            self._wait()
            return 1 - inside[0] / (time.perf_counter() - began)
        finally:
            denoiser.forward = forward

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def diffusers_pipeline(
    ours: Ours, batch_size: int, steps: int, *, channels_last: bool = False, bfloat16: bool = False
) -> Callable[[], object]:
    """`DDIMPipeline` with our weights; `bfloat16`: under autocast.

    With weights in bfloat16 the pipeline ends in an error: it turns the images into numpy arrays as they are.
    """
    from diffusers import DDIMPipeline

    network = diffusers_unet(ours.module.denoiser).eval().to(ours.device)
    if channels_last:
        network = network.to(memory_format=torch.channels_last)
    pipeline = DDIMPipeline(unet=network, scheduler=diffusers_scheduler(ours.module.schedule))
    pipeline.set_progress_bar_config(disable=True)

    def block() -> object:
        with torch.autocast(ours.device.type, dtype=torch.bfloat16) if bfloat16 else nullcontext():
            return pipeline(batch_size=batch_size, num_inference_steps=steps, eta=0.0, output_type="np")

    return block


def diffusion_pytorch_sampler(ours: Ours, batch_size: int, steps: int) -> tuple[Callable[[], object], int]:
    """denoising-diffusion-pytorch's DDIM sampler with its own network, and that network's parameters."""
    diffusion = diffusion_pytorch(ours.module.denoiser).eval().to(ours.device)
    diffusion.sampling_timesteps, diffusion.is_ddim_sampling = steps, True

    def block() -> object:
        # It always shows a progress bar.
        with SilentErrors():
            return diffusion.sample(batch_size=batch_size)

    return block, parameters(diffusion.model)


class SilentErrors:
    """Standard error goes nowhere for a while."""

    def __enter__(self) -> None:
        self.before, sys.stderr = sys.stderr, Path("/dev/null").open("w")

    def __exit__(self, *details: object) -> None:
        sys.stderr.close()
        sys.stderr = self.before


def show_profile(ours: Ours, batch_size: int) -> None:
    """The operators of one step of a batch, by their own time."""
    point = ours.point(2)
    ours.sample(batch_size, point)
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (ours.device.type == "cuda")
    with profile(activities=activities) as profiler:
        ours.sample(batch_size, point)
    key = f"self_{ours.device.type}_time_total"
    print(profiler.key_averages().table(sort_by=key, row_limit=15, max_name_column_width=40))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sampling", description=__doc__)
    parser.add_argument("--batch-size", type=int, default=16, help="images of a block, sampled at once (default: 16)")
    parser.add_argument("--steps", type=int, default=10, help="S (default: 10)")
    parser.add_argument("--rounds", type=int, default=5, help="counted blocks of each side (default: 5)")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"], help="default: cpu")
    parser.add_argument("--precision", default=AUTO, help=f"ours, as trainer.precision (default: {AUTO})")
    parser.add_argument("--profile", action="store_true", help="the operators of ours instead of a comparison")
    parser.add_argument("--tiny", action="store_true", help="a very small network: does it run?")
    options = parser.parse_args()
    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)

    ours = Ours(TINY if options.tiny else {}, options.device, options.precision, options.batch_size)
    print(describe(ours.device))
    float32_alone = without_bfloat16(ours.device)
    if options.profile:
        show_profile(ours, options.batch_size)
        return
    point = ours.point(options.steps)
    theirs, their_parameters = diffusion_pytorch_sampler(ours, options.batch_size, options.steps)
    best = BEST_FLOAT32 if float32_alone else BEST
    sides: dict[str, Callable[[], object]] = {
        OURS: lambda: ours.sample(options.batch_size, point),
        DEFAULT: diffusers_pipeline(ours, options.batch_size, options.steps),
        best: diffusers_pipeline(
            ours, options.batch_size, options.steps, channels_last=True, bfloat16=not float32_alone
        ),
        f"denoising-diffusion-pytorch ({their_parameters / 1e6:.1f}M parameters)": theirs,
    }
    # The ceiling is measured before and after: a machine's speed drifts.
    before = ceilings(ours.device)
    blocks = alternate(sides, options.rounds, device=ours.device, say=print)
    after = ceilings(ours.device)
    print()
    headings = ["images/s", "min", "median", "max", "x default diffusers"]
    print(table(headings, rate_rows(blocks, options.batch_size, DEFAULT)))
    ratio = blocks.speedup(OURS, over=best)
    print(f"\nours over the best settings of diffusers: {ratio.median:.2f} ({ratio.low:.2f}-{ratio.high:.2f})")

    work = forward_flops(ours.module.denoiser, ours.shape) * options.steps
    reached = blocks.rates(OURS, work * options.batch_size / 1e9)
    arithmetic = list(before)[-1]
    ceiling = max(before[arithmetic], after[arithmetic])
    moved = forward_bytes(ours.module.denoiser.cpu(), ours.shape) / 1e6
    print(f"an image and step: {work / options.steps / 1e9:.2f} GFLOP, {moved:.0f} MB read and written in bfloat16")
    print(f"{ours.trainer.precision}: {reached.median:,.0f} GFLOP/s")
    share = f"{100 * reached.median / ceiling:.0f} % of {ceiling:,.0f} GFLOP/s"
    print(f"of the ceiling, a product of two large matrices in {arithmetic}: {share}")
    ours.module.to(ours.device)
    shares = sorted(ours.outside_the_denoiser(options.batch_size, point) for _ in range(options.rounds))
    print(f"time outside the denoiser: {100 * shares[len(shares) // 2]:.1f} % (median of {len(shares)})")


if __name__ == "__main__":
    main()
