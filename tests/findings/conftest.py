"""Rows of a grid that nobody had to sample."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from ddim.findings.rows import Floor, GridResult


@pytest.fixture(scope="session")
def result() -> Callable[..., GridResult]:
    """`result(eta=1.0)`: a row with everything measured, in which some values are others."""

    def make(**changes: object) -> GridResult:
        values: dict[str, object] = {
            "dataset": "digits",
            "checkpoint": "outputs/run/checkpoints/last.ckpt",
            "weights": "ema",
            "sampler": "ddim",
            "eta": 0.0,
            "variance": "eta",
            "tau": "linear",
            "steps": 10,
            "nfe": 10,
            "num_samples": 1000,
            "seed": 0,
            "features": "digits-cnn",
            "frechet_distance": 4.162345,
            "seconds": 12.3456,
            "images_per_second": 81.002,
            "kid_mean": 0.0123456,
            "kid_std": 0.001,
            "precision": 0.9123,
            "recall": 0.8765,
            "clip_denoised": False,
            "compute_precision": "float32",
            "device": "CPU",
            "resize": "none",
            "reference": "3f2a9c01",
            "reference_source": "digits train",
            "reference_images": 1437,
            "timesteps": (0, 100, 200),
        }
        return GridResult(**{**values, **changes})  # type: ignore[arg-type]

    return make


@pytest.fixture(scope="session")
def some_rows(result: Callable[..., GridResult]) -> list[GridResult]:
    """Rows with everything that a file or a table may stumble over."""
    return [
        result(),
        result(eta=0.2, frechet_distance=None, kid_mean=None, clip_denoised=True, timesteps=None, reference=None),
        result(eta=1.0, variance="sigma_hat", dataset='σ̂ "naïve", 数字', checkpoint="dir with space/a,b.ckpt"),
        result(frechet_distance=float("inf"), inception_score_mean=9.46, steps=1000, nfe=688, tau="quadratic"),
    ]


@pytest.fixture(scope="session")
def some_floor() -> Floor:
    return Floor(360, {"frechet_distance": 1.2345678, "kid_mean": 0.0001234, "precision": 0.98, "recall": 0.97})
