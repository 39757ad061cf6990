"""Noise-prediction networks eps_theta(x_t, t). They know nothing of the diffusion they serve."""

from __future__ import annotations

from ddim.denoisers.build import DENOISERS, build_denoiser
from ddim.denoisers.unet import UNet

__all__ = ["DENOISERS", "UNet", "build_denoiser"]
