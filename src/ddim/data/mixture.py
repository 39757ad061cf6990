"""A mixture of Gaussians: samples, and what is exactly known of it at every noise level."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class GaussianMixture:
    """Sum over k of w_k N(m_k, s_k^2 I) in D dimensions.

    Attributes:
        weights: (K,), positive, of sum 1.
        means: (K, D). deviations: (K,), positive; all float64.
    """

    weights: Tensor
    means: Tensor
    deviations: Tensor

    @classmethod
    def ring(cls, modes: int, deviation: float, weights: list[float] | None = None) -> GaussianMixture:
        """`modes` of one deviation, evenly on the unit circle; as heavy as each other, or in proportion to weights."""
        angles = 2 * math.pi * torch.arange(modes, dtype=torch.float64) / modes
        heavy = torch.tensor([1.0] * modes if weights is None else weights, dtype=torch.float64)
        return cls(
            heavy / heavy.sum(),
            torch.stack([angles.cos(), angles.sin()], dim=1),
            torch.full((modes,), deviation, dtype=torch.float64),
        )

    def sample(self, count: int, seed: int) -> Tensor:
        """float64 (count, D), a function of the seed alone."""
        generator = np.random.default_rng(seed)
        modes = torch.from_numpy(generator.choice(len(self.weights), count, p=self.weights.numpy()))
        normal = torch.from_numpy(generator.standard_normal((count, self.means.shape[1])))
        return self.means[modes] + self.deviations[modes, None] * normal

    def log_density(self, x: Tensor) -> Tensor:
        """log p(x) in nats, float64 (N,), of x (N, D)."""
        return torch.logsumexp(self._log_terms(x), dim=1)

    def mode_of(self, x: Tensor) -> Tensor:
        """Which mode x (N, D) most probably came from: int64 (N,)."""
        return self._log_terms(x).argmax(dim=1)

    def standardised(self, mean: Tensor, scale: float) -> GaussianMixture:
        """Of (x - mean) / scale; mean (D,), one scale for all dimensions, as modes stay round."""
        return GaussianMixture(self.weights, (self.means - mean) / scale, self.deviations / scale)

    def noised(self, alpha_bar: float) -> GaussianMixture:
        """Of x_t = sqrt(alpha_bar) x_0 + sqrt(1 - alpha_bar) noise; alpha_bar in (0, 1]."""
        deviations = (alpha_bar * self.deviations.square() + 1 - alpha_bar).sqrt()
        return GaussianMixture(self.weights, math.sqrt(alpha_bar) * self.means, deviations)

    def eps(self, x_t: Tensor, alpha_bar: float) -> Tensor:
        """E[noise | x_t] = -sqrt(1 - alpha_bar) grad log p_t(x_t), what a perfect denoiser says: (N, D) like x_t.

        As the posterior mean over the modes of (x_t - m_k) / s_k^2, all of the mixture at that noise level.
        """
        noised = self.noised(alpha_bar)
        shares = noised._log_terms(x_t).softmax(dim=1)
        pull = (x_t.double()[:, None] - noised.means) / noised.deviations[:, None].square()
        return (math.sqrt(1 - alpha_bar) * (shares[..., None] * pull).sum(dim=1)).to(x_t.dtype)

    def _log_terms(self, x: Tensor) -> Tensor:
        """log w_k N(x; m_k, s_k^2 I): float64 (N, K)."""
        scaled = (x.double()[:, None] - self.means) / self.deviations[:, None]
        constant = self.means.shape[1] * (self.deviations.log() + 0.5 * math.log(2 * math.pi))
        return self.weights.log() - constant - 0.5 * scaled.square().sum(dim=2)
