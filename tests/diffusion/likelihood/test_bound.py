"""The variational bound against closed forms and a slow direct computation."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from torch.distributions import Normal, kl_divergence

from ddim.diffusion import NoiseSchedule, NoiseSource, predict_x0, q_sample, select_timesteps
from ddim.diffusion.likelihood.bound import bound_terms, join_terms, step_divergence, variational_bound
from ddim.diffusion.likelihood.quantized import log_probability
from ddim.diffusion.samplers.generalized import eta_coefficients, sigma_hat_coefficients

LINEAR = NoiseSchedule.linear()
SMALL = NoiseSchedule.linear(50, 1e-3, 0.3)
STD = 0.2


def levels_of(x: torch.Tensor) -> torch.Tensor:
    return ((x.clamp(-1, 1) + 1) * 127.5).round() / 127.5 - 1


def gaussian_levels(count: int, size: int = 8, std: float = STD) -> torch.Tensor:
    normal = NoiseSource(5).initial(torch.arange(count), (size,)).double()
    return levels_of(std * normal)


def exact_bits(x: torch.Tensor, std: float = STD) -> torch.Tensor:
    """Bits per dimension (N,) of levels that are rounded normal values."""
    return -log_probability(x, torch.zeros_like(x), std, 256).mean(dim=1) / math.log(2)


def terms_of(denoiser, x, schedule, timesteps, **options):
    return bound_terms(
        denoiser, x, schedule, timesteps, NoiseSource(1).bind(torch.arange(len(x)), "validation"), **options
    )


def test_level_probabilities_sum_to_one_and_keep_their_tails():
    levels = (torch.arange(256, dtype=torch.float64) / 127.5 - 1).unsqueeze(1)
    for mean, std in [(0.0, 0.3), (0.9, 0.01), (-1.5, 0.1), (0.1, 1e-3), (0.0, 5.0)]:
        logs = log_probability(levels, torch.full_like(levels, mean), std, 256)
        assert float(logs.exp().sum()) == pytest.approx(1, abs=1e-12)
        assert bool(logs.isfinite().all())
    # 40 standard deviations away, on both sides alike.
    far = log_probability(levels[[48, 207]], torch.zeros(2, 1), 0.0155, 256)
    assert float(far[0]) == pytest.approx(float(far[1]), rel=1e-9)
    assert -900 < float(far[0]) < -700
    density = log_probability(levels, torch.full_like(levels, 0.3), 0.2, None)
    torch.testing.assert_close(density, Normal(0.3, 0.2).log_prob(levels).double(), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("num_steps", [1, 3, 10])
@pytest.mark.parametrize(("eta", "variance"), [(1.0, "eta"), (0.3, "eta"), (1.0, "sigma_hat")])
def test_it_equals_a_slow_direct_computation(num_steps, eta, variance):
    """Every q(x_s | x_t, x_0) and p(x_s | x_t) as distributions, in float64, one image after the other."""
    tau = select_timesteps(50, num_steps, "trailing").tolist()
    x = gaussian_levels(3, 5)

    def denoiser(x_t, t):
        return torch.tanh(x_t + t.unsqueeze(1) / 50)

    noise = NoiseSource(1).bind(torch.arange(3), "validation")
    bound = variational_bound(terms_of(denoiser, x, SMALL, range(50)), tau, eta, variance=variance)
    expected = torch.zeros(3, num_steps + 1, dtype=torch.float64)
    for column, (t, s) in enumerate(zip(tau, [-1, *tau[:-1]], strict=True)):
        times = torch.full((3,), t)
        x_t = q_sample(x, times, noise(t, x), SMALL)
        predicted = predict_x0(x_t, denoiser(x_t, times), times, SMALL)
        a_t, a_s = SMALL.alpha_bar_at(t), SMALL.alpha_bar_at(s)
        if s == -1:
            expected[:, column] = -log_probability(x, predicted, math.sqrt(1 - a_t), 256).mean(dim=1)
            continue
        direction, sigma = eta_coefficients(a_t, a_s, eta)
        sigma_p = sigma if variance == "eta" else sigma_hat_coefficients(a_t, a_s)[1]

        def mean(x_0, x_t=x_t, a_t=a_t, a_s=a_s, direction=direction):
            return math.sqrt(a_s) * x_0 + direction * (x_t - math.sqrt(a_t) * x_0) / math.sqrt(1 - a_t)

        divergence = kl_divergence(Normal(mean(x), sigma), Normal(mean(predicted), sigma_p))
        expected[:, column] = divergence.mean(dim=1)
    last = SMALL.alpha_bar_at(tau[-1])
    prior = kl_divergence(Normal(math.sqrt(last) * x, math.sqrt(1 - last)), Normal(0.0, 1.0)).mean(dim=1)
    torch.testing.assert_close(bound.steps, expected[:, :-1] / math.log(2), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(bound.prior, prior / math.log(2), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(bound.total, bound.prior + bound.steps.sum(dim=1))
    assert bound.timesteps == tuple(tau)


def test_a_step_of_eta_one_costs_half_the_gain_of_signal_to_noise():
    alpha_bar, previous = LINEAR.alpha_bar[1:], LINEAR.alpha_bar[:-1]
    gain = previous / (1 - previous) - alpha_bar / (1 - alpha_bar)
    error = torch.linspace(1e-4, 2, 999, dtype=torch.float64)
    torch.testing.assert_close(
        step_divergence(error, alpha_bar, previous, 1.0, "eta"), 0.5 * gain * error, rtol=1e-6, atol=0
    )


def test_the_bound_lies_above_the_exact_bits_and_all_steps_come_close(gaussian_denoiser):
    x = gaussian_levels(1000)
    terms = terms_of(gaussian_denoiser(LINEAR, std=STD), x, LINEAR, range(1000))
    exact = float(exact_bits(x).mean())
    bits = {
        (variance, steps): float(variational_bound(terms, tau, variance=variance).total.mean())
        for steps in (10, 50, 200, 1000)
        for tau in [select_timesteps(1000, steps, "linear")]
        for variance in ("eta", "sigma_hat")
    }
    for variance in ("eta", "sigma_hat"):
        for more, fewer in pairwise((10, 50, 200, 1000)):
            assert bits[variance, more] > bits[variance, fewer] > exact
    # The larger variance is nearly the true one for data that are wide against the noise, the smaller one for a point.
    assert bits["sigma_hat", 1000] < 1.01 * exact
    assert 1.05 * exact < bits["eta", 1000] < 1.15 * exact


def test_a_wrong_model_has_a_larger_bound(gaussian_denoiser):
    x = gaussian_levels(64)
    tau = select_timesteps(1000, 100, "linear")
    bits = [
        float(variational_bound(terms_of(gaussian_denoiser(LINEAR, std=std), x, LINEAR, tau), tau).total.mean())
        for std in (0.1, STD, 0.4)
    ]
    assert bits[1] < min(bits[0], bits[2])


def test_a_black_area_costs_no_more_than_the_open_end(gaussian_denoiser):
    """The end bin is open: half of the decoder's normal, and the whole bin, are counted for it."""
    x = torch.full((4, 6), -1.0)
    terms = terms_of(gaussian_denoiser(LINEAR, mean=-1.0, std=0.0), x, LINEAR, [0])
    inside = 0.5 * (1 + math.erf((1 / 255) / math.sqrt(1e-4) / math.sqrt(2)))
    torch.testing.assert_close(
        terms.decoder, torch.full((4, 1), -math.log(inside), dtype=torch.float64), rtol=1e-3, atol=0
    )


def test_continuous_data_get_the_bits_of_a_density(gaussian_denoiser):
    x = 0.01 * NoiseSource(2).initial(torch.arange(500), (4,)).double()
    tau = range(1000)
    total = variational_bound(terms_of(gaussian_denoiser(LINEAR, std=0.01), x, LINEAR, tau, levels=None), tau).total
    entropy = math.log2(0.01 * math.sqrt(2 * math.pi * math.e))
    assert entropy < 0
    assert float(total.mean()) == pytest.approx(entropy, abs=0.25)
    assert float(total.mean()) > entropy - 0.02


def test_eps_error_is_the_simple_loss():
    x = gaussian_levels(3, 5)
    noise = NoiseSource(1).bind(torch.arange(3), "validation")
    terms = terms_of(lambda x_t, t: torch.zeros_like(x_t), x, LINEAR, [0, 500, 999])
    expected = torch.stack([noise(t, x).square().mean(dim=1) for t in (0, 500, 999)], dim=1)
    torch.testing.assert_close(terms.eps_error, expected, rtol=1e-6, atol=1e-9)


def test_clipping_bounds_the_error_at_high_noise():
    x = gaussian_levels(3, 5)
    options = {"schedule": LINEAR, "timesteps": [999]}
    raw = terms_of(lambda x_t, t: torch.zeros_like(x_t), x, **options)
    clipped = terms_of(lambda x_t, t: torch.zeros_like(x_t), x, clip_denoised=True, **options)
    assert bool((clipped.error < 4).all())
    assert bool((raw.error > 1000).all())


def test_terms_do_not_depend_on_the_batch_and_call_the_network_once_per_timestep(gaussian_denoiser):
    x, calls, exact = gaussian_levels(6).float(), [], gaussian_denoiser(LINEAR, std=STD)

    def denoiser(x_t, t):
        calls.append(int(t[0]))
        return exact(x_t, t)

    tau, source = [3, 40, 800], NoiseSource(1)

    def run(rows):
        return bound_terms(denoiser, x[rows], LINEAR, tau, source.bind(rows, "validation"))

    whole, parts = run(torch.arange(6)), join_terms([run(torch.arange(4)), run(torch.tensor([4, 5]))])
    assert calls[:3] == tau
    for name in ("error", "decoder", "prior"):
        torch.testing.assert_close(getattr(parts, name), getattr(whole, name), rtol=1e-12, atol=1e-15)
    assert whole.error.dtype == torch.float64


def test_a_decoder_of_the_right_width_is_cheaper(gaussian_denoiser):
    x, tau = gaussian_levels(64), [100]
    denoiser = gaussian_denoiser(LINEAR, std=STD)
    default = terms_of(denoiser, x, LINEAR, tau)
    fitted = terms_of(denoiser, x, LINEAR, tau, decoder_std=default.error.mean(dim=0).sqrt())
    assert float(fitted.decoder.mean()) < float(default.decoder.mean()) - 0.1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x_0": torch.full((2, 3), 0.001)}, "x_0 must hold the 256 evenly spaced values from -1 to 1"),
        ({"x_0": torch.full((2, 3), 1 + 2 / 255)}, "x_0 must hold the 256"),
        ({"levels": 1}, "levels must be an integer >= 2, got 1"),
        ({"timesteps": [5, 5]}, "increase strictly"),
        ({"decoder_std": [0.1]}, "decoder_std must be 2 numbers > 0"),
        ({"decoder_std": [0.1, 0.0]}, "decoder_std must be 2 numbers > 0"),
    ],
)
def test_bad_terms_are_refused(change, message):
    arguments = {"x_0": torch.full((2, 3), -1.0), "timesteps": [0, 9], **change}
    with pytest.raises(ValueError, match=message):
        bound_terms(
            lambda x, t: x, schedule=LINEAR, noise=NoiseSource(0).bind(torch.arange(2), "validation"), **arguments
        )


def test_bad_bounds_are_refused():
    terms = terms_of(lambda x, t: x, torch.full((2, 3), -1.0), LINEAR, [0, 9])
    with pytest.raises(ValueError, match="terms, which lack 5"):
        variational_bound(terms, [0, 5])
    for options in ({"eta": 0.0}, {"eta": 1.1}, {"eta": 0.5, "variance": "sigma_hat"}):
        with pytest.raises(ValueError, match="eta must be in"):
            variational_bound(terms, [0, 9], **options)
    with pytest.raises(ValueError, match="variance must be one of eta, sigma_hat, got 'sigma_hat_official'"):
        variational_bound(terms, [0, 9], variance="sigma_hat_official")
    with pytest.raises(ValueError, match="same timesteps"):
        join_terms([terms, terms_of(lambda x, t: x, torch.full((2, 3), -1.0), LINEAR, [0, 8])])
    with pytest.raises(ValueError, match="at least one"):
        join_terms([])
