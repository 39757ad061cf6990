"""What `trainer.precision=auto` means on this machine, for this network."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch

AUTO = "auto"
FULL = "32-true"
MIXED = "bf16-mixed"
# Side of the feature maps of the first level times their channels. Below it a CPU spends its time between the matrix
# products, and bfloat16 is slower: measured over widths 32 to 128 and sides 8 to 32, see docs/performance.md.
LEAST_WORK_ON_CPU = 768


def with_precision(trainer: Mapping[str, Any], denoiser: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of the Trainer with `precision: auto` replaced by what is fastest without moving results.

    It is bf16-mixed where the device multiplies bfloat16 natively and, on a CPU, the network is wide enough to gain;
    else 32-true. The choice is a function of the machine's kind and the network alone, never of a measurement: the
    same command gives the same arithmetic every time. Weights, the sampler's state and features stay float32.

    Args:
        trainer: `precision` absent is `auto`; `accelerator` as Lightning takes it.
        denoiser: with `resolution` and `base_channels`; what has none of these keys counts as small.
    """
    precision = trainer.get("precision", AUTO)
    if precision != AUTO:
        return dict(trainer)
    device = _device_type(str(trainer.get("accelerator", "auto")))
    fast = {"cuda": _cuda_has_bfloat16, "cpu": _cpu_has_bfloat16}.get(device)
    sizes = [denoiser.get(key) for key in ("resolution", "base_channels")]
    # What is no number is refused by name where the network is built.
    work = math.prod(size if isinstance(size, int) else 0 for size in sizes)
    patch = denoiser.get("patch", 1)
    work //= patch if isinstance(patch, int) and patch > 0 else 1
    pays = fast is not None and fast() and (device != "cpu" or work >= LEAST_WORK_ON_CPU)
    return {**trainer, "precision": MIXED if pays else FULL}


def _device_type(accelerator: str) -> str:
    if accelerator in ("gpu", "auto") and torch.cuda.is_available():
        return "cuda"
    if accelerator in ("mps", "gpu", "auto") and torch.backends.mps.is_available():
        return "mps"
    return "cpu" if accelerator == "auto" else accelerator


def _cuda_has_bfloat16() -> bool:
    return torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)


def _cpu_has_bfloat16() -> bool:
    capabilities = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return any(capabilities.get(name, False) for name in ("avx512_bf16", "amx_bf16"))
