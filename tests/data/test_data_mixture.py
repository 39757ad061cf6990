"""The mixture of Gaussians, whose density and denoiser are known exactly."""

from __future__ import annotations

import math

import pytest
import torch

from ddim.data.mixture import GaussianMixture
from ddim.diffusion import NoiseSchedule, NoiseSource, sample

UNEVEN = GaussianMixture.ring(3, 0.2, [1.0, 2.0, 5.0])


def test_the_density_integrates_to_one():
    line = torch.linspace(-5, 5, 401, dtype=torch.float64)
    plane = torch.cartesian_prod(line, line)
    for mixture in (UNEVEN, UNEVEN.noised(0.7), UNEVEN.standardised(torch.tensor([0.3, -0.2]), 0.8)):
        assert mixture.log_density(plane).exp().sum().item() * (10 / 400) ** 2 == pytest.approx(1, abs=1e-3)


def test_the_density_is_that_of_the_samples():
    samples = UNEVEN.sample(20_000, seed=0)
    shares = torch.bincount(UNEVEN.mode_of(samples), minlength=3) / len(samples)
    assert torch.allclose(shares, torch.tensor([0.125, 0.25, 0.625]), atol=0.01)
    # Of modes that are far apart, the entropy is that of the weights and of one Gaussian.
    weights = UNEVEN.weights
    entropy = -(weights * weights.log()).sum().item() + math.log(2 * math.pi * math.e * 0.2**2)
    assert UNEVEN.log_density(samples).mean().item() == pytest.approx(-entropy, abs=0.02)
    assert torch.equal(samples, UNEVEN.sample(20_000, seed=0)) and not torch.equal(samples, UNEVEN.sample(20_000, 1))


@pytest.mark.parametrize("alpha_bar", [0.999, 0.5, 0.01])
def test_eps_is_the_gradient_of_the_log_density(alpha_bar):
    x = torch.randn(50, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64).requires_grad_()
    (gradient,) = torch.autograd.grad(UNEVEN.noised(alpha_bar).log_density(x).sum(), x)
    expected = -math.sqrt(1 - alpha_bar) * gradient
    assert torch.allclose(UNEVEN.eps(x.detach(), alpha_bar), expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_ddim_with_the_exact_eps_gives_the_modes_their_weights(eta):
    """No training error is left: what remains is the sampler's, and that of 4,000 samples."""
    schedule, numbers = NoiseSchedule.linear(), torch.arange(4000)

    def denoiser(x, t):
        return UNEVEN.eps(x, schedule.alpha_bar[int(t[0])].item())

    noise = NoiseSource(0)
    x_T = noise.initial(numbers, (2,)).double()
    samples = sample(denoiser, x_T, schedule, torch.arange(0, 1000, 10), eta=eta, noise=noise.bind(numbers))
    shares = torch.bincount(UNEVEN.mode_of(samples), minlength=3) / len(samples)
    assert torch.allclose(shares, torch.tensor([0.125, 0.25, 0.625]), atol=0.025)
    spread = (samples - UNEVEN.means[UNEVEN.mode_of(samples)]).std(dim=0)
    # The smaller variance of eta = 1 is exact for a single point: modes come out a little too narrow.
    assert torch.allclose(spread, torch.full((2,), 0.2, dtype=spread.dtype), atol=0.02 if eta == 0 else 0.03)
