"""Losses against their definitions."""

from __future__ import annotations

import pytest
import torch

from ddim.diffusion import WEIGHTINGS, NoiseSchedule, loss_weights, predict_x0, q_sample, simple_loss

LINEAR = NoiseSchedule.linear()


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(0)
    x_0, noise = torch.randn(2, 6, 3, 4, generator=generator, dtype=torch.float64)
    return x_0, torch.tensor([0, 10, 200, 400, 700, 999]), noise


def test_simple_loss_is_the_mean_squared_error_of_each_sample(batch):
    x_0, t, noise = batch
    scale = torch.arange(6).reshape(6, 1, 1)
    loss = simple_loss(lambda x, t: noise + scale, x_0, t, noise, LINEAR)
    torch.testing.assert_close(loss, torch.arange(6).double() ** 2)


def test_the_denoiser_sees_x_t_and_t(batch):
    x_0, t, noise = batch

    def denoiser(x, seen):
        assert torch.equal(seen, t)
        torch.testing.assert_close(x, q_sample(x_0, t, noise, LINEAR))
        return x

    simple_loss(denoiser, x_0, t, noise, LINEAR)


def test_relatives_weight_the_error_of_x_0(batch):
    x_0, t, noise = batch
    eps = noise + 0.1
    error_x0 = (predict_x0(q_sample(x_0, t, noise, LINEAR), eps, t, LINEAR) - x_0).square().mean(dim=(1, 2))
    error_eps = (eps - noise).square().mean(dim=(1, 2))
    snr = LINEAR.alpha_bar[t] / (1 - LINEAR.alpha_bar[t])
    expected = {
        "simple": error_eps,
        "snr_truncated": torch.maximum(error_x0, error_eps),
        "min_snr": snr.clamp(max=5.0) * error_x0,
    }
    for weighting in WEIGHTINGS:
        loss = simple_loss(lambda x, t: eps, x_0, t, noise, LINEAR, weighting=weighting)
        torch.testing.assert_close(loss, expected[weighting], rtol=1e-8, atol=0)


def test_exact_denoiser_reaches_the_closed_form_minimum(gaussian_denoiser):
    # Var(eps | x_t) = alpha_bar s^2 / (alpha_bar s^2 + 1 - alpha_bar) for data N(0, s^2).
    generator = torch.Generator().manual_seed(1)
    t = torch.tensor([10, 300, 900])
    x_0 = 0.5 * torch.randn(3, 200_000, generator=generator)
    noise = torch.randn(3, 200_000, generator=generator)
    signal = LINEAR.alpha_bar[t] * 0.25
    expected = (signal / (signal + 1 - LINEAR.alpha_bar[t])).float()
    loss = simple_loss(gaussian_denoiser(LINEAR, std=0.5), x_0, t, noise, LINEAR)
    torch.testing.assert_close(loss, expected, rtol=0.02, atol=0)


def test_low_precision_predictions_are_compared_in_float32():
    x_0, t = torch.zeros(2, 3), torch.tensor([0, 999])
    loss = simple_loss(lambda x, t: torch.zeros_like(x).bfloat16(), x_0, t, torch.full((2, 3), 1.001), LINEAR)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, torch.full((2,), 1.001**2), rtol=1e-6, atol=0)


def test_vectors_of_scalars_are_samples_too():
    x = torch.ones(4)
    loss = simple_loss(lambda x, t: torch.zeros_like(x), x, torch.arange(4), 2 * x, LINEAR)
    torch.testing.assert_close(loss, torch.full((4,), 4.0))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"weighting": "snr"}, "weighting must be one of simple, snr_truncated, min_snr, got 'snr'"),
        ({"weighting": "min_snr", "gamma": 0.0}, "gamma must be > 0, got 0.0"),
        ({"gamma": 1.0}, "weighting simple has no parameter gamma; its own are none"),
        ({"weighting": "min_snr", "k": 1.0}, "weighting min_snr has no parameter k; its own are gamma"),
        ({"noise": torch.ones(2, 1)}, r"noise must have shape \(2, 3\), got \(2, 1\)"),
        ({"denoiser": lambda x, t: x[:, :1]}, r"denoiser must return shape \(2, 3\), got \(2, 1\)"),
    ],
)
def test_bad_arguments_are_refused(changed, message):
    arguments = {
        "denoiser": lambda x, t: x,
        "x_0": torch.ones(2, 3),
        "t": torch.tensor([0, 1]),
        "noise": torch.ones(2, 3),
        "schedule": LINEAR,
    }
    with pytest.raises(ValueError, match=message):
        simple_loss(**(arguments | changed))


def test_weights_are_per_timestep_and_float64():
    t = torch.arange(1000)
    for weighting in WEIGHTINGS:
        weights = loss_weights(t, LINEAR, weighting)
        assert weights.shape == (1000,) and weights.dtype == torch.float64
    assert loss_weights(t, LINEAR, "min_snr").max() == 1
    assert loss_weights(t, LINEAR, "snr_truncated").min() == 1
