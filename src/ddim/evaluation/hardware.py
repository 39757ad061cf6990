"""What a machine is called, beside a time that was measured on it."""

from __future__ import annotations

import platform
from pathlib import Path

import torch


def device_name(device: torch.device, processes: int = 1) -> str:
    """The hardware that a time was measured on."""
    return _one_device(device) + (f" x {processes}" if processes > 1 else "")


def _one_device(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type != "cpu":
        return device.type
    threads = torch.get_num_threads()
    return f"{_processor()}, {threads} thread{'s' if threads > 1 else ''}"


def _processor() -> str:
    """`platform.processor` is empty or just "x86_64" on Linux, where the kernel knows the name."""
    try:
        lines = Path("/proc/cpuinfo").read_text(errors="replace").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine() or "cpu"
