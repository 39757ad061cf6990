"""The machine a figure was measured on, and the speeds that nothing on it can exceed.

`python -m benchmarks.machine` prints both.
"""

from __future__ import annotations

import os
import platform
import time
from pathlib import Path

import torch


def describe(device: torch.device | str = "cpu") -> str:
    """One line: processor, cores, threads, load, accelerator, versions."""
    device = torch.device(device)
    parts = [
        f"{_processor()}, {len(os.sched_getaffinity(0))} cores, {torch.get_num_threads()} threads",
        f"load {os.getloadavg()[0]:.1f}",
        f"torch {torch.__version__}, Python {platform.python_version()}",
    ]
    if device.type == "cuda":
        parts.insert(0, f"{torch.cuda.get_device_name(device)} (CUDA {torch.version.cuda})")
    return "; ".join(parts)


# A product of two such matrices says in milliseconds whether the processor has the arithmetic at all: without it, torch
# multiplies at a thousandth of the speed.
PROBE = 256
# Of float32's speed: what is slower than this is computed in a loop, not in the processor's own instructions.
LEAST_SHARE = 0.25
# Seconds that one product may take.
LONGEST_PRODUCT = 2.0


def multiplies(dtype: torch.dtype, device: torch.device | str = "cpu") -> bool:
    """Whether `device` has fast matrix products of `dtype`."""
    exact, speed = (matmul_ceiling(kind, device, size=PROBE, repeats=2) for kind in (torch.float32, dtype))
    return dtype is torch.float32 or speed >= LEAST_SHARE * exact


def without_bfloat16(device: torch.device | str = "cpu") -> bool:
    """Whether measurements in bfloat16 are left out on `device`; says so."""
    if multiplies(torch.bfloat16, device):
        return False
    speed = matmul_ceiling(torch.bfloat16, device, size=PROBE, repeats=1)
    print(f"bfloat16 is left out: {device} multiplies in it at {speed:.2g} GFLOP/s, which would take minutes")
    return True


def matmul_ceiling(
    dtype: torch.dtype, device: torch.device | str = "cpu", *, size: int = 4096, repeats: int = 5
) -> float:
    """GFLOP/s of the fastest of `repeats` products of two size x size matrices."""
    device = torch.device(device)
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    best = float("inf")
    with torch.inference_mode():
        for _ in range(repeats + 1):
            _wait(device)
            began = time.perf_counter()
            torch.mm(a, b)
            _wait(device)
            best = min(best, time.perf_counter() - began)
    return 2 * size**3 / best / 1e9


def ceilings(device: torch.device | str = "cpu", *, size: int = 4096) -> dict[str, float]:
    """GFLOP/s of matrix products in "float32" and, where the device has them, "bfloat16".

    The matrices are size x size, or the largest half, quarter, ... of that whose product ends within two seconds.
    """
    found = {}
    for dtype in DTYPES:
        if multiplies(dtype, device):
            speed, side = 1e9 * matmul_ceiling(dtype, device, size=PROBE, repeats=2), size
            while side > PROBE and 2 * side**3 / speed > LONGEST_PRODUCT:
                side //= 2
            found[str(dtype).removeprefix("torch.")] = matmul_ceiling(dtype, device, size=side)
    return found


DTYPES = (torch.float32, torch.bfloat16)


def copy_bandwidth(device: torch.device | str = "cpu", *, megabytes: int = 256, repeats: int = 5) -> float:
    """GB/s read and written by the fastest of `repeats` copies of so much memory, which fits into no cache."""
    device = torch.device(device)
    source = torch.ones(megabytes * 2**20, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    best = float("inf")
    for _ in range(repeats + 1):
        _wait(device)
        began = time.perf_counter()
        target.copy_(source)
        _wait(device)
        best = min(best, time.perf_counter() - began)
    return 2 * source.numel() / best / 1e9


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        facts = dict(
            (part.strip() for part in line.split(":", 1))
            for line in cpuinfo.read_text().split("\n\n")[0].splitlines()
            if ":" in line
        )
        if "model name" in facts:
            family = f" (family {facts['cpu family']}, model {facts['model']})" if "cpu family" in facts else ""
            return facts["model name"] + family
    return platform.processor() or platform.machine()


def main() -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    print(describe(device))
    without_bfloat16(device)
    for dtype, speed in ceilings(device).items():
        print(f"product of two 4096x4096 matrices, {dtype:<8} {speed:10,.0f} GFLOP/s on {device}")
    print(f"copy of 256 MiB, reading and writing {copy_bandwidth(device):20,.0f} GB/s on {device}")


if __name__ == "__main__":
    main()
