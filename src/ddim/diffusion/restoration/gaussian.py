"""A Gaussian prior: its exact denoiser, and what a measurement leaves of it in closed form.

The oracle of every method here, and as a prior fitted to images the best that a linear restoration can do.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ddim.diffusion.restoration.measurement import Measurement
from ddim.diffusion.samplers.base import Denoiser
from ddim.diffusion.schedule import NoiseSchedule

# Eigenvalues below this share of the largest count as 0.
RANK = 1e-10


class GaussianPrior:
    """x_0 ~ N(mean, covariance), flattened: mean (n,), covariance (n, n) positive semidefinite; kept in float64."""

    def __init__(self, mean: Tensor, covariance: Tensor, shape: Sequence[int]) -> None:
        self.mean = mean.to(torch.float64)
        self.covariance = covariance.to(torch.float64)
        self.shape = tuple(shape)
        values, self._vectors = torch.linalg.eigh(self.covariance)
        self._values = values.clamp(min=0)

    @classmethod
    def fitted(cls, images: Tensor, shape: Sequence[int]) -> GaussianPrior:
        """With mean and covariance of images (N, *shape) in model space, N >= 2."""
        flat = images.to(torch.float64).flatten(1)
        return cls(flat.mean(dim=0), torch.cov(flat.T).reshape(flat.shape[1], -1), shape)

    def denoiser(self, schedule: NoiseSchedule) -> Denoiser:
        """E[eps | x_t] = sqrt(1 - alpha_bar) (alpha_bar Sigma + (1 - alpha_bar) I)^-1 (x_t - sqrt(alpha_bar) mu)."""

        def eps(x: Tensor, t: Tensor) -> Tensor:
            level = schedule.alpha_bar_at(t).reshape(-1, 1).to(x)
            centred = x.flatten(1) - level.sqrt() * self.mean.to(x)
            vectors = self._vectors.to(x)
            scale = (1 - level).sqrt() / (level * self._values.to(x) + 1 - level)
            return ((centred @ vectors * scale) @ vectors.T).reshape(x.shape)

        return eps

    def posterior(self, measurement: Measurement) -> tuple[Tensor, Tensor]:
        """Means (N, *shape) and the one covariance (n, n) of x_0 given y = A x_0 + sigma n, both float64.

        With the gain G = Sigma A^T (A Sigma A^T + sigma^2 I)^+ they are mu + G (y - A mu) and Sigma - G A Sigma.
        """
        operator = measurement.operator
        size = len(self.mean)
        matrix = operator.A(torch.eye(size, dtype=torch.float64).reshape(size, *self.shape)).T
        crossed = self.covariance @ matrix.T
        inner = matrix @ crossed + measurement.sigma**2 * torch.eye(len(matrix), dtype=torch.float64)
        gain = crossed @ torch.linalg.pinv(inner, rtol=RANK, hermitian=True)
        gaps = measurement.y.cpu().to(torch.float64) - matrix @ self.mean
        means = self.mean + gaps @ gain.T
        return means.reshape(-1, *self.shape), self.covariance - gain @ crossed.T
