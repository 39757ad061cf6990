"""Points of the plane: scikit-learn's moons, circles and swiss roll, and a mixture of Gaussians with a known density.

They are made, not read, so there are as many as anybody asks for; both splits are functions of the settings.
"""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ddim.data.mixture import GaussianMixture
from ddim.data.options import Options
from ddim.data.splits import ArraySplit
from ddim.errors import UserError

MIXTURE = "mixture"
SHAPES = (MIXTURE, "moons", "circles", "swiss_roll")
# The plane of the roll is that of its spiral; its numbers are brought to the size of the others.
ROLL_SCALE = 10.0


class Points2d:
    """`num_train` and `num_test` points of one shape, float32 (N, 2)."""

    kind = "vectors"

    def __init__(self, options: Options, cache_dir: Path) -> None:
        self.shape = options.choice("shape", MIXTURE, SHAPES)
        self.counts = {
            "train": options.integer("num_train", 8000, minimum=2),
            "test": options.integer("num_test", 2000, minimum=2),
        }
        self.noise = options.number("noise", 0.05, low=0.0, high=1.0)
        modes = options.integer("modes", 8)
        deviation = options.number("deviation", 0.1, low=1e-3, high=1.0)
        weights = options.numbers("weights", None)
        if weights is not None and (len(weights) != modes or min(weights, default=0.0) <= 0):
            raise UserError(
                f"dataset.weights={weights} must be {modes} positive numbers, one for each of dataset.modes"
            )
        self.mixture = GaussianMixture.ring(modes, deviation, weights) if self.shape == MIXTURE else None

    def prepare(self) -> None:
        """Nothing to do: the points are computed."""

    def open(self, split: str) -> ArraySplit:
        return ArraySplit(self._points[split])

    def details(self) -> dict[str, Any]:
        return {"split_rule": "two seeds", "points": self.shape}

    @cached_property
    def log_density(self) -> Any:
        """That of the mixture; None of the others, which have none in closed form."""
        return None if self.mixture is None else self.mixture.log_density

    @cached_property
    def _points(self) -> dict[str, Tensor]:
        return {split: self._draw(count, seed) for seed, (split, count) in enumerate(self.counts.items())}

    def _draw(self, count: int, seed: int) -> Tensor:
        if self.mixture is not None:
            return self.mixture.sample(count, seed).to(torch.float32)
        from sklearn import datasets

        if self.shape == "swiss_roll":
            points = datasets.make_swiss_roll(count, noise=self.noise * ROLL_SCALE, random_state=seed)[0]
            points = points[:, [0, 2]] / ROLL_SCALE
        else:
            make = {"moons": datasets.make_moons, "circles": datasets.make_circles}[self.shape]
            points = make(count, noise=self.noise, random_state=seed)[0]
        return torch.from_numpy(np.ascontiguousarray(points, dtype=np.float32))
