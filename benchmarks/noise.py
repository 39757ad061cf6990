"""What addressed noise costs beside the network it feeds: `python -m benchmarks.noise`.

Prints the median time of `NoiseSource.step` and of one evaluation of the CIFAR-10 network (channels last, and bfloat16
autocast where the machine multiplies in it: the fastest way to run it, so the hardest comparison) for the same batch,
and their ratio.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch

from benchmarks.machine import without_bfloat16
from ddim.denoisers import UNet
from ddim.diffusion import NoiseSource


def median_ms(run: Callable[[], object], device: torch.device, repeats: int) -> float:
    """Median wall time of `run` in milliseconds, after two runs that are not counted."""
    times = []
    for i in range(repeats + 2):
        start = time.perf_counter()
        run()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        if i >= 2:
            times.append(1000 * (time.perf_counter() - start))
    return statistics.median(times)


def main() -> None:
    parser = argparse.ArgumentParser(description="Time NoiseSource.step against one step of the CIFAR-10 network.")
    parser.add_argument("--batch-size", type=int, default=32, help="images of 3x32x32 per call (default: 32)")
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default: cpu)")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="CPU threads (default: torch's)")
    parser.add_argument("--repeats", type=int, default=5, help="timed calls of the network (default: 5)")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    device = torch.device(options.device)

    source, indices = NoiseSource(0), torch.arange(options.batch_size)
    noise_ms = median_ms(lambda: source.step(indices, 1, (3, 32, 32), device), device, 10 * options.repeats)

    network = UNet().eval().to(device).to(memory_format=torch.channels_last)
    x = source.initial(indices, (3, 32, 32), device).to(memory_format=torch.channels_last)
    t = torch.full((options.batch_size,), 500, device=device)
    bfloat16 = not without_bfloat16(device)
    with torch.inference_mode(), torch.autocast(device.type, dtype=torch.bfloat16, enabled=bfloat16):
        network_ms = median_ms(lambda: network(x, t), device, options.repeats)

    print(f"batch {options.batch_size} on {device}, {options.threads} CPU threads, torch {torch.__version__}")
    print(f"noise    {noise_ms:10.3f} ms")
    print(f"network  {network_ms:10.3f} ms")
    print(f"ratio    {100 * noise_ms / network_ms:10.3f} %")


if __name__ == "__main__":
    main()
