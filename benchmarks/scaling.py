"""What a second process costs on this machine: `python -m benchmarks.scaling`.

Prints how long a new process takes until it can work, what a gradient all-reduce and a gather of features take (gloo,
two processes of one thread on the CPU), and a training step by one process, by two that exchange nothing, and by two
that exchange gradients. On two shared cores this measures overhead, not speed-up.
"""

from __future__ import annotations

import argparse
import os
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from ddim.denoisers import UNet
from ddim.diffusion import NoiseSchedule, simple_loss

# Gradients of the digits network, of unet_small and of the CIFAR-10 network.
PARAMETERS = (701_345, 2_499_603, 35_746_307)
# digits-cnn features of 1,000 samples; Inception features of 10,000.
FEATURES = ((1_000, 64), (10_000, 2_048))
DIGITS: dict[str, Any] = {
    "resolution": 8,
    "in_channels": 1,
    "base_channels": 32,
    "channel_mult": [1, 2],
    "num_res_blocks": 1,
    "attention_resolutions": [4],
    "dropout": 0.0,
    "norm_groups": 16,
}


def median_ms(run: Callable[[], object], repeats: int, before: int = 2) -> float:
    """Median wall time of `run` in milliseconds, after `before` runs that are not counted."""
    times = []
    for number in range(repeats + before):
        began = time.perf_counter()
        run()
        if number >= before:
            times.append(1000 * (time.perf_counter() - began))
    return statistics.median(times)


def train_ms(network: torch.nn.Module, batch_size: int, repeats: int, exchange: bool) -> float:
    """One optimizer step on random images."""
    schedule, optimizer = NoiseSchedule.linear(), torch.optim.Adam(network.parameters(), lr=1e-4)
    x_0 = torch.rand(batch_size, 1, 8, 8) * 2 - 1

    def step() -> None:
        alone = isinstance(network, DistributedDataParallel) and not exchange
        with network.no_sync() if alone else nullcontext():  # type: ignore[operator]
            t = torch.randint(schedule.num_timesteps, (batch_size,))
            simple_loss(network, x_0, t, torch.randn_like(x_0), schedule).mean().backward()
        optimizer.step()
        optimizer.zero_grad()

    return median_ms(step, repeats)


def work(rank: int, port: int, batch_size: int, repeats: int) -> None:
    """One of two processes; the first one prints."""
    torch.set_num_threads(1)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    dist.init_process_group("gloo", rank=rank, world_size=2)

    def say(text: str) -> None:
        if rank == 0:
            print(text, flush=True)

    for count in PARAMETERS:
        gradient = torch.zeros(count)
        ms = median_ms(lambda gradient=gradient: dist.all_reduce(gradient), repeats)  # type: ignore[misc]
        # 2 (n - 1) / n x 4 bytes, n = 2.
        say(f"all-reduce of {count:>10,} parameters  {4e-6 * count:7.1f} MB {ms:9.1f} ms {4e-6 * count / ms:7.2f} GB/s")
    for rows, dim in FEATURES:
        features = torch.zeros(rows // 2, dim)
        everyone: list[Any] = [None, None]
        ms = median_ms(lambda e=everyone, f=features: dist.all_gather_object(e, f), repeats)  # type: ignore[misc]
        say(f"gather of {rows:>7,} x {dim:>5,} features   {4e-6 * rows * dim:7.1f} MB {ms:9.1f} ms")
    network = DistributedDataParallel(UNet(**DIGITS))
    for exchange in (False, True):
        dist.barrier()
        ms = train_ms(network, batch_size, repeats, exchange)
        how = "with all-reduce" if exchange else "no exchange"
        say(f"step of 2 x {batch_size} images, {how:<16} {ms:15.1f} ms {2000 * batch_size / ms:7.0f} images/s")
    dist.destroy_process_group()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--batch-size", type=int, default=64, help="images of 1x8x8 per process (default: 64)")
    parser.add_argument("--repeats", type=int, default=15, help="timed runs of each (default: 15)")
    options = parser.parse_args()
    torch.set_num_threads(1)
    load = os.getloadavg()[0]
    print(f"{os.cpu_count()} cores, load {load:.1f} before, torch {torch.__version__}, gloo, 1 thread per process")
    for what in ("pass", "import torch", "import ddim.command.evaluate"):
        start = [sys.executable, "-c", what]
        ms = median_ms(lambda start=start: subprocess.run(start, check=True), 3, before=1)  # type: ignore[misc]
        print(f"python -c {what!r:<30} {ms:26.0f} ms", flush=True)
    network = UNet(**DIGITS)
    print(f"digits network: {sum(p.numel() for p in network.parameters()):,} parameters")
    ms = train_ms(network, options.batch_size, options.repeats, exchange=False)
    print(
        f"step of 1 x {options.batch_size} images {'':<18} {ms:15.1f} ms {1000 * options.batch_size / ms:7.0f} images/s"
    )
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    torch.multiprocessing.spawn(work, (port, options.batch_size, options.repeats), nprocs=2)
    print(f"load {os.getloadavg()[0]:.1f} after")


if __name__ == "__main__":
    main()
