"""Noise-prediction networks eps_theta(x_t, t). They know nothing of the diffusion they serve."""

from __future__ import annotations

from ddim.denoisers.build import DENOISERS, build_denoiser
from ddim.denoisers.mlp import ResidualMLP
from ddim.denoisers.unet import UNet
from ddim.denoisers.unet1d import UNet1d

__all__ = ["DENOISERS", "ResidualMLP", "UNet", "UNet1d", "build_denoiser"]
