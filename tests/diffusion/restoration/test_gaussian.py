"""The closed forms of a Gaussian prior against direct ones, and what a measurement is."""

from __future__ import annotations

import math

import pytest
import torch

from ddim.diffusion import NoiseSchedule, predict_x0
from ddim.diffusion.restoration.gaussian import GaussianPrior
from ddim.diffusion.restoration.measurement import Measurement, model_sigma
from ddim.diffusion.restoration.operators.averaging import SuperResolution
from ddim.diffusion.restoration.operators.dense import Denoising
from ddim.diffusion.restoration.operators.inpainting import Inpainting, mask_of

SHAPE = (1, 4, 4)
SCHEDULE = NoiseSchedule.linear(50)
GENERATOR = torch.Generator().manual_seed(1)
ROOT = torch.randn(16, 16, dtype=torch.float64, generator=GENERATOR) / 4
PRIOR = GaussianPrior(torch.linspace(-1, 1, 16), ROOT @ ROOT.T, SHAPE)


def random(*shape):
    return torch.randn(*shape, dtype=torch.float64, generator=GENERATOR)


@pytest.mark.parametrize("t", [0, 20, 49])
def test_the_denoiser_is_the_conditional_expectation(t):
    x = random(3, *SHAPE)
    level = float(SCHEDULE.alpha_bar[t])
    times = torch.full((3,), t)
    x_0 = predict_x0(x, PRIOR.denoiser(SCHEDULE)(x, times), times, SCHEDULE)
    # x_t is itself a measurement of x_0 / sqrt(alpha_bar) with noise.
    gain = (
        math.sqrt(level)
        * PRIOR.covariance
        @ torch.linalg.inv(level * PRIOR.covariance + (1 - level) * torch.eye(16, dtype=torch.float64))
    )
    expected = PRIOR.mean + (x.flatten(1) - math.sqrt(level) * PRIOR.mean) @ gain.T
    torch.testing.assert_close(x_0.flatten(1), expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("sigma", [0.0, 0.3])
@pytest.mark.parametrize("operator", [SuperResolution(SHAPE, 2), Inpainting(SHAPE, mask_of("half", 4, 4))])
def test_the_posterior_is_the_conditional_of_the_joint_distribution(operator, sigma):
    measurement = Measurement.of(operator, random(5, *SHAPE), sigma, random(5, operator.measured))
    means, covariance = PRIOR.posterior(measurement)
    matrix = operator.A(torch.eye(16, dtype=torch.float64).reshape(16, *SHAPE)).T
    # Precisions add: an independent way to the same, which needs noise.
    noise = max(sigma, 1e-5)
    precision = torch.linalg.inv(PRIOR.covariance) + matrix.T @ matrix / noise**2
    expected = torch.linalg.inv(precision)
    pulled = torch.linalg.solve(PRIOR.covariance, PRIOR.mean) + measurement.y @ matrix / noise**2
    torch.testing.assert_close(covariance, expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(means.flatten(1), pulled @ expected, rtol=0, atol=1e-5)
    if not sigma:
        assert measurement.error(means).abs().max() < 1e-9


def test_a_prior_is_fitted_to_images_of_lower_rank():
    images = random(7, *SHAPE)
    prior = GaussianPrior.fitted(images, SHAPE)
    torch.testing.assert_close(prior.mean, images.flatten(1).mean(dim=0))
    torch.testing.assert_close(prior.covariance, torch.cov(images.flatten(1).T))
    measurement = Measurement.of(SuperResolution(SHAPE, 2), images[:2], 0.0)
    means, covariance = prior.posterior(measurement)
    assert measurement.error(means).abs().max() < 1e-8 and torch.linalg.eigvalsh(covariance).min() > -1e-10


def test_noise_that_is_stated_on_zero_to_one_is_doubled():
    assert model_sigma(0.05) == 0.1
    images = torch.zeros(2000, *SHAPE, dtype=torch.float64)
    measurement = Measurement.of(Denoising(SHAPE), images, model_sigma(0.05), random(2000, 16))
    on_zero_to_one = (measurement.y + 1) / 2
    assert on_zero_to_one.std().item() == pytest.approx(0.05, rel=0.02)


def test_a_measurement_is_neither_rounded_nor_clipped():
    measurement = Measurement.of(Denoising(SHAPE), torch.ones(50, *SHAPE), 1.0, random(50, 16))
    assert measurement.y.max() > 1 and measurement.y.unique().numel() == 800


def test_the_projection_is_the_nearest_image_that_explains_the_measurement():
    operator = SuperResolution(SHAPE, 2)
    x, measurement = random(3, *SHAPE), Measurement.of(operator, random(3, *SHAPE), 0.0)
    projected = measurement.projected(x)
    assert measurement.error(projected).abs().max() < 1e-12
    torch.testing.assert_close(projected, x + operator.A_dagger(measurement.y - operator.A(x)), rtol=0, atol=1e-12)
    picked = measurement.of_samples(torch.tensor([2, 2, 0]))
    assert len(picked) == 3 and torch.equal(picked.y[1], measurement.y[2])


@pytest.mark.parametrize("value", [-0.1, math.nan, math.inf, True, "much"])
def test_noise_must_be_a_number_that_is_not_negative(value):
    with pytest.raises(ValueError, match=r"sigma_y must be a finite number >= 0, stated on \[0, 1\]"):
        model_sigma(value)


def test_measurements_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"y must have shape \(N, 16\)"):
        Measurement(Denoising(SHAPE), torch.zeros(2, 15))
    with pytest.raises(ValueError, match="sigma must be"):
        Measurement(Denoising(SHAPE), torch.zeros(2, 16), -1.0)
    with pytest.raises(ValueError, match="needs noise"):
        Measurement.of(Denoising(SHAPE), torch.zeros(2, *SHAPE), 0.1)
