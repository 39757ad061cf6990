"""Where bfloat16 is faster than float32, which `trainer.precision=auto` knows: `python -m benchmarks.precision`.

A forward pass, and a forward and backward pass, of networks of several widths on images of several sizes, in float32
and under bfloat16 autocast by turns; the ratios of the medians are float32 over bfloat16. `auto` says what the default
would be on this machine. Where bfloat16 would take minutes, nothing is measured, and only `auto` is said.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence

import torch

from benchmarks.machine import describe, without_bfloat16
from benchmarks.timing import BUDGET, alternate, table
from ddim.denoisers import UNet
from ddim.training.precision import AUTO, with_precision

# Base channels, multipliers, side of the images, batch.
NETWORKS = (
    (32, (1, 2), 8, 128),
    (64, (1, 2), 8, 128),
    (128, (1, 2), 8, 128),
    (32, (1, 2, 2), 32, 32),
    (64, (1, 2, 2), 32, 32),
    (128, (1, 2, 2), 32, 16),
)


def network_of(base: int, multipliers: Sequence[int], side: int) -> UNet:
    torch.manual_seed(0)
    return UNet(
        resolution=side,
        base_channels=base,
        channel_mult=multipliers,
        num_res_blocks=1,
        attention_resolutions=[side // 2],
        dropout=0.0,
        norm_groups=16,
    ).to(memory_format=torch.channels_last)


def passes(network: UNet, batch: int, device: torch.device) -> dict[str, Callable[[], object]]:
    """What is timed, by name: "sampling float32", "training bfloat16", ..."""
    side = network.config["resolution"]
    x = torch.randn(batch, 3, side, side, device=device).to(memory_format=torch.channels_last)
    t = torch.full((batch,), 500, device=device)

    def one(training: bool, low: bool) -> Callable[[], object]:
        def block() -> None:
            with torch.set_grad_enabled(training), torch.autocast(device.type, dtype=torch.bfloat16, enabled=low):
                loss = network(x, t).square().mean()
            if training:
                loss.backward()

        return block

    return {
        f"{'training' if training else 'sampling'} {'bfloat16' if low else 'float32'}": one(training, low)
        for training in (False, True)
        for low in (False, True)
    }


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.precision", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="counted passes of each kind (default: 5)")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"], help="default: cpu")
    parser.add_argument("--tiny", action="store_true", help="the smallest network alone: does it run?")
    options = parser.parse_args()
    device = torch.device(options.device)
    print(describe(device))
    unmeasured = without_bfloat16(device)
    networks = NETWORKS[:1] if options.tiny else NETWORKS
    rows = []
    for base, multipliers, side, batch in networks:
        network = network_of(base, multipliers, side).to(device)
        ratios = ["-", "-"]
        if not unmeasured:
            budget = BUDGET / len(networks)
            blocks = alternate(passes(network, batch, device), options.rounds, device=device, budget=budget)
            ratios = [
                f"{blocks.speedup(f'{kind} bfloat16', over=f'{kind} float32').median:.2f}"
                for kind in ("sampling", "training")
            ]
        chosen = with_precision({"accelerator": options.device, "precision": AUTO}, network.config)["precision"]
        rows.append([f"{base}, {multipliers}, {side}x{side}", *ratios, chosen])
    print(table(["network (base channels, multipliers, image)", "sampling", "training", "auto"], rows))


if __name__ == "__main__":
    main()
