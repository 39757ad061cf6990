"""Denoising diffusion implicit models: train once, sample many ways, measure honestly."""

__version__ = "0.1.0"
