"""The machine a figure was measured on, and the matrix-product speed that nothing on it can exceed.

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
    """GFLOP/s of matrix products in "float32" and "bfloat16"."""
    return {str(dtype).removeprefix("torch."): matmul_ceiling(dtype, device, size=size) for dtype in DTYPES}


DTYPES = (torch.float32, torch.bfloat16)


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
    for dtype, speed in ceilings(device).items():
        print(f"product of two 4096x4096 matrices, {dtype:<8} {speed:10,.0f} GFLOP/s on {device}")


if __name__ == "__main__":
    main()
