"""Losses against their definitions."""

from __future__ import annotations

import math

import pytest
import torch

from ddim.diffusion import (
    PREDICTIONS,
    TIMES,
    WEIGHTINGS,
    NoiseSchedule,
    as_eps,
    denoising_loss,
    loss_weights,
    predict_x0,
    q_sample,
    simple_loss,
    v_from_eps,
)

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


class TestPredictions:
    """eps, x_0 and v of one model are the same model."""

    @staticmethod
    def networks(denoiser, schedule=LINEAR):
        """The networks that say in other words what an eps-denoiser says."""

        def x0(x, t):
            return predict_x0(x, denoiser(x, t), t, schedule)

        return {"eps": denoiser, "x0": x0, "v": lambda x, t: v_from_eps(x0(x, t), denoiser(x, t), t, schedule)}

    @pytest.mark.parametrize("predicts", PREDICTIONS)
    def test_the_best_networks_of_gaussian_data_are_one_denoiser(self, gaussian_denoiser, predicts):
        # E[v | x_t] of data N(m, s^2) directly, not by the translation under test.
        mean, std = 0.3, 0.5
        t = torch.arange(0, 1000, 37)
        x = torch.randn(len(t), 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        alpha_bar = LINEAR.alpha_bar[t].reshape(-1, 1)
        variance = alpha_bar * std**2 + 1 - alpha_bar
        centred = (x - alpha_bar.sqrt() * mean) / variance
        best = {
            "eps": (1 - alpha_bar).sqrt() * centred,
            "x0": mean + alpha_bar.sqrt() * std**2 * centred,
            "v": (alpha_bar * (1 - alpha_bar)).sqrt() * (1 - std**2) * centred - (1 - alpha_bar).sqrt() * mean,
        }[predicts]
        eps = as_eps(lambda x, t: best, predicts, LINEAR)(x, t)
        torch.testing.assert_close(eps, gaussian_denoiser(LINEAR, mean, std)(x, t), rtol=1e-9, atol=1e-9)

    def test_a_v_network_that_says_nothing_is_the_prior(self):
        # As t -> T the data vanish: eps is x_t, and x_0 is nothing.
        x, t = torch.randn(4, 6, dtype=torch.float64), torch.tensor([999, 999, 998, 990])
        eps = as_eps(lambda x, t: torch.zeros_like(x), "v", LINEAR)(x, t)
        torch.testing.assert_close(eps, x, rtol=1e-4, atol=0)
        signal = LINEAR.alpha_bar[t].sqrt().reshape(-1, 1)
        torch.testing.assert_close(predict_x0(x, eps, t, LINEAR), signal * x, rtol=1e-9, atol=0)

    @pytest.mark.parametrize("weighting", ["snr_truncated", "min_snr"])
    def test_a_weighting_by_snr_is_the_same_loss_whatever_is_predicted(self, batch, weighting):
        x_0, t, noise = batch
        networks = self.networks(lambda x, t: 0.7 * x)
        losses = [
            denoising_loss(network, x_0, t, noise, LINEAR, predicts=predicts, weighting=weighting)
            for predicts, network in networks.items()
        ]
        torch.testing.assert_close(losses[1], losses[0], rtol=1e-7, atol=0)
        torch.testing.assert_close(losses[2], losses[0], rtol=1e-7, atol=0)

    def test_min_snr_has_the_published_form_for_each(self):
        # Hang et al. 2023: min(SNR, 5) on x_0; divided by SNR for eps and by SNR + 1 for v.
        t = torch.arange(0, 1000, 10)
        snr = LINEAR.alpha_bar[t] / (1 - LINEAR.alpha_bar[t])
        clipped = snr.clamp(max=5)
        for predicts, expected in (("x0", clipped), ("eps", clipped / snr), ("v", clipped / (snr + 1))):
            torch.testing.assert_close(loss_weights(t, LINEAR, "min_snr", predicts), expected)

    def test_simple_is_the_plain_error_of_what_is_predicted(self, batch):
        x_0, t, noise = batch
        targets = {"eps": noise, "x0": x_0, "v": v_from_eps(x_0, noise, t, LINEAR)}
        for predicts, target in targets.items():
            loss = denoising_loss(lambda x, t, y=target: y + 0.5, x_0, t, noise, LINEAR, predicts=predicts)
            torch.testing.assert_close(loss, torch.full((6,), 0.25, dtype=torch.float64))

    def test_an_eps_network_is_left_alone(self):
        def network(x, t):
            return x

        assert as_eps(network, "eps", LINEAR) is network

    def test_further_arguments_reach_the_network(self):
        seen = []
        denoiser = as_eps(lambda x, t, *more, **named: seen.append((more, named)) or x, "v", LINEAR)
        denoiser(torch.zeros(2, 3), torch.tensor([1, 2]), "label", scale=2)
        assert seen == [(("label",), {"scale": 2})]

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
    def test_eps_is_in_the_precision_of_x(self, dtype):
        eps = as_eps(lambda x, t: x.bfloat16(), "v", LINEAR)(torch.ones(2, 3, dtype=dtype), torch.tensor([1, 2]))
        assert eps.dtype == torch.promote_types(dtype, torch.float32)

    def test_others_are_refused(self, batch):
        with pytest.raises(ValueError, match="predicts must be one of eps, x0, v, got 'score'"):
            as_eps(lambda x, t: x, "score", LINEAR)
        x_0, t, noise = batch
        with pytest.raises(ValueError, match="predicts must be one of eps, x0, v, got 'score'"):
            denoising_loss(lambda x, t: x, x_0, t, noise, LINEAR, predicts="score")


class TestTrainingTimes:
    def test_uniform_is_uniform(self):
        torch.manual_seed(0)
        counts = torch.bincount(TIMES["uniform"](100_000, NoiseSchedule.linear(10, beta_end=0.3)), minlength=10)
        assert len(counts) == 10 and (counts / 10_000 - 1).abs().max() < 0.05

    @pytest.mark.parametrize(("mean", "std"), [(-1.2, 1.2), (0.5, 0.4)])
    def test_ln_sigma_is_the_normal_distribution_cut_to_the_schedule(self, mean, std):
        torch.manual_seed(0)
        t = TIMES["lognormal"](200_000, LINEAR, mean=mean, std=std)
        log_sigma = (0.5 * ((1 - LINEAR.alpha_bar) / LINEAR.alpha_bar).log())[t]
        law, low, high = torch.distributions.Normal(mean, std), math.log(0.01), math.log(157.4)
        ends = law.cdf(torch.tensor([low, high]))
        for place in torch.linspace(mean - 1.5 * std, mean + 1.5 * std, 9):
            expected = (law.cdf(place) - ends[0]) / (ends[1] - ends[0])
            assert (log_sigma <= place).double().mean().item() == pytest.approx(float(expected), abs=0.03)

    def test_the_ends_collect_nothing_from_beyond(self):
        torch.manual_seed(0)
        counts = torch.bincount(TIMES["lognormal"](100_000, LINEAR, mean=-6.0, std=2.0), minlength=1000)
        # The first timestep stands for half its distance to the second, about ln(1.7) / 2 of ln sigma.
        assert 0 < counts[0] < 2.5 * counts[1] and counts.argmax() < 3

    def test_they_come_from_the_global_generator(self):
        for times in TIMES.values():
            torch.manual_seed(3)
            first = times(50, LINEAR)
            torch.manual_seed(3)
            assert torch.equal(times(50, LINEAR), first) and first.dtype == torch.int64
            assert not torch.equal(times(50, LINEAR), first)

    @pytest.mark.parametrize("std", [0.0, -1.0, float("nan")])
    def test_a_spread_that_is_none_is_refused(self, std):
        with pytest.raises(ValueError, match="std must be > 0"):
            TIMES["lognormal"](5, LINEAR, std=std)
        assert TIMES["lognormal"](5, NoiseSchedule.linear(1), std=1.0).tolist() == [0] * 5
