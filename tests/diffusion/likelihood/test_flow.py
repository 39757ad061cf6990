"""The flow's likelihood against Gaussian data, whose bits are known, and the traps of the published codes."""

from __future__ import annotations

import math

import pytest
import torch

from ddim.diffusion import NoiseSchedule, NoiseSource, encode
from ddim.diffusion.likelihood.flow import eps_between, flow_likelihood
from ddim.diffusion.likelihood.quantized import dequantize, log_probability
from ddim.diffusion.tau import half_log_snr

LINEAR = NoiseSchedule.linear()
STD = 0.2


def noise_of(count: int, seed: int = 1):
    return NoiseSource(seed).bind(torch.arange(count), "validation")


def gaussian_levels(count: int, size: int = 8, std: float = STD, levels: int = 256) -> torch.Tensor:
    normal = NoiseSource(5).initial(torch.arange(count), (size,)).double()
    return ((std * normal).clamp(-1, 1).add(1) * (levels - 1) / 2).round() * 2 / (levels - 1) - 1


def exact_bits(x: torch.Tensor, std: float = STD, levels: int = 256) -> torch.Tensor:
    return -log_probability(x, torch.zeros_like(x), std, levels).mean(dim=1) / math.log(2)


@pytest.fixture(scope="module")
def correlated():
    """(denoiser, covariance): eps of N(0, covariance) for x (N, 6), exact at real-valued t as at integers."""
    factor = 0.2 * torch.randn(6, 6, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    covariance = factor @ factor.T + 0.01 * torch.eye(6, dtype=torch.float64)
    values, vectors = torch.linalg.eigh(covariance)

    def denoiser(x, t):
        alpha_bar = LINEAR.alpha_bar[t].unsqueeze(1)
        along = x.double() @ vectors
        return (((1 - alpha_bar).sqrt() * along / (alpha_bar * values + 1 - alpha_bar)) @ vectors.T).to(x.dtype)

    return denoiser, covariance


@pytest.mark.parametrize("dequantization", ["uniform", "truncated_normal"])
@pytest.mark.parametrize(("std", "levels"), [(0.2, 256), (0.4, 64)])
def test_bits_of_gaussian_levels_are_within_a_hundredth_of_the_exact_ones(
    std, levels, dequantization, gaussian_denoiser
):
    x = gaussian_levels(64, std=std, levels=levels)
    found = flow_likelihood(
        gaussian_denoiser(LINEAR, std=std), x, LINEAR, noise_of(64), levels=levels, dequantization=dequantization
    )
    exact = float(exact_bits(x, std, levels).mean())
    assert found.bits.dtype == torch.float64
    assert found.bits.shape == (64,)
    assert float(found.bits.mean()) == pytest.approx(exact, rel=0.01)
    assert 20 < found.calls < 400


def test_density_of_correlated_data_is_the_closed_form(correlated):
    denoiser, covariance = correlated
    normal = torch.distributions.MultivariateNormal(torch.zeros(6, dtype=torch.float64), covariance)
    x = NoiseSource(8).initial(torch.arange(20), (6,)).double() @ torch.linalg.cholesky(covariance).T
    found = flow_likelihood(denoiser, x, LINEAR, noise_of(20), levels=None, divergence="exact")
    expected = -normal.log_prob(x) / (6 * math.log(2))
    # What is left is the noise of timestep 0, and that the prior of timestep 999 is N(0, 1).
    torch.testing.assert_close(found.bits, expected, rtol=0, atol=0.01)


def test_one_probe_is_unbiased_and_exact_where_the_jacobian_is_diagonal(correlated, gaussian_denoiser):
    denoiser, _ = correlated
    x = torch.full((400, 6), 0.1, dtype=torch.float64)
    exact = flow_likelihood(denoiser, x[:1], LINEAR, noise_of(1), levels=None, divergence="exact").bits
    probed = flow_likelihood(denoiser, x, LINEAR, noise_of(400), levels=None).bits
    spread = float(probed.std())
    assert spread > 0.01
    assert abs(float(probed.mean() - exact)) < 3 * spread / 20
    diagonal = gaussian_denoiser(LINEAR, std=STD)
    bits = [
        flow_likelihood(diagonal, x[:3], LINEAR, noise_of(3), levels=None, divergence=divergence).bits
        for divergence in ("hutchinson", "exact")
    ]
    torch.testing.assert_close(bits[0], bits[1], rtol=0, atol=1e-6)


def test_the_probe_does_not_change_along_the_way(correlated):
    seen = []

    def noise(step, like):
        seen.append(step)
        return NoiseSource(1).bind(torch.arange(len(like)), "validation")(step, like)

    flow_likelihood(correlated[0], torch.zeros(2, 6, dtype=torch.float64), LINEAR, noise, levels=None)
    assert seen == [0, 1]


def test_the_flow_ends_where_encoding_does(gaussian_denoiser):
    x = 0.2 * NoiseSource(4).initial(torch.arange(5), (3,)).double()
    denoiser = gaussian_denoiser(LINEAR, std=STD)
    found = flow_likelihood(denoiser, x, LINEAR, noise_of(5), levels=None)
    encoded = encode(denoiser, x, LINEAR, range(1000))
    torch.testing.assert_close(found.x_T, encoded, rtol=0, atol=0.03)


def test_fractional_timesteps_take_half_the_calls_and_agree(gaussian_denoiser):
    levels = half_log_snr(LINEAR.alpha_bar)
    calls = []

    def continuous(x, t):
        calls.append(len(x))
        below = t.floor().long().clamp(max=998)
        level = torch.lerp(levels[below], levels[below + 1], (t - below).double())
        alpha_bar = torch.sigmoid(2 * level).unsqueeze(1)
        return (1 - alpha_bar).sqrt() * x / (alpha_bar * STD**2 + 1 - alpha_bar)

    x = gaussian_levels(16)
    fractional = flow_likelihood(continuous, x, LINEAR, noise_of(16), between="fractional")
    mixed = flow_likelihood(gaussian_denoiser(LINEAR, std=STD), x, LINEAR, noise_of(16))
    assert fractional.calls == len(calls)
    assert set(calls) == {16}
    assert float(fractional.bits.mean()) == pytest.approx(float(mixed.bits.mean()), abs=2e-3)


def test_interpolation_is_the_denoiser_itself_at_every_timestep(gaussian_denoiser):
    denoiser = gaussian_denoiser(LINEAR, std=STD)
    eps_at = eps_between(denoiser, LINEAR, "interpolated")
    x = torch.linspace(-2, 2, 5, dtype=torch.float64).unsqueeze(1)
    levels = half_log_snr(LINEAR.alpha_bar).tolist()
    for t in (0, 1, 500, 998, 999):
        expected = denoiser(x, torch.full((5,), t))
        torch.testing.assert_close(eps_at(x, levels[t]), expected, rtol=1e-9, atol=1e-12)
    middle = eps_at(x, (levels[0] + levels[1]) / 2)
    torch.testing.assert_close(middle, (denoiser(x, torch.tensor([0] * 5)) + denoiser(x, torch.tensor([1] * 5))) / 2)


def test_dequantised_values_stay_in_their_bins_and_fill_them():
    x = torch.cat([gaussian_levels(50, 200, 0.15), torch.tensor([[-1.0, 1.0] * 100])])
    normal = NoiseSource(2).initial(torch.arange(51), (200,))
    signal, sigma = math.sqrt(LINEAR.alpha_bar_at(0)), math.sqrt(1 - LINEAR.alpha_bar_at(0))
    uniform, log_q = dequantize(x, normal, LINEAR, "uniform", 256)
    offset = (uniform / signal - x) * 127.5
    assert float(offset.abs().max()) <= 0.5
    assert float(offset.var()) == pytest.approx(1 / 12, rel=0.05)
    # The offset that is easily forgotten: bins are 2/255 wide, so bits are those of the density and log2(127.5).
    torch.testing.assert_close(log_q, torch.full((51,), -200 * math.log(signal / 127.5), dtype=torch.float64))
    truncated, log_q = dequantize(x, normal, LINEAR, "truncated_normal", 256)
    inner = (truncated / signal - x)[:50] * 127.5
    assert float(inner.abs().max()) <= 0.5
    assert float(inner.var()) < 1 / 12
    ends = (truncated - signal * x)[50] / sigma
    assert float(ends[::2].min()) < -1.5
    assert float(ends[1::2].max()) > 1.5
    mass = 0.5 * (1 + math.erf(signal / 255 / sigma / math.sqrt(2)))
    expected = torch.distributions.Normal(0.0, 1.0).log_prob(ends).sum() - 200 * math.log(sigma * mass)
    assert float(log_q[50]) == pytest.approx(float(expected), rel=1e-9)


def test_open_ends_make_a_black_area_cheap(gaussian_denoiser):
    x = torch.full((8, 5), -1.0, dtype=torch.float64)
    black = gaussian_denoiser(LINEAR, mean=-1.0, std=0.0)
    bits = {
        kind: float(flow_likelihood(black, x, LINEAR, noise_of(8), dequantization=kind).bits.mean())
        for kind in ("uniform", "truncated_normal")
    }
    inside = 0.5 * (1 + math.erf((1 / 255) / 0.01 / math.sqrt(2)))
    assert bits["truncated_normal"] == pytest.approx(-math.log2(inside), abs=0.02)
    assert bits["uniform"] == pytest.approx(-math.log2(2 * inside - 1), abs=0.05)


def test_without_dequantisation_levels_are_refused_no_number_is_made_of_them(gaussian_denoiser):
    denoiser = gaussian_denoiser(LINEAR, std=STD)
    x = gaussian_levels(4)
    with pytest.raises(ValueError, match="x_0 must hold the 256 evenly spaced values"):
        flow_likelihood(denoiser, x + 0.001, LINEAR, noise_of(4))
    # Bits of the density differ by the width of the bins, and would be negative for narrow data.
    density = flow_likelihood(denoiser, x, LINEAR, noise_of(4), levels=None).bits.mean()
    mass = flow_likelihood(denoiser, x, LINEAR, noise_of(4)).bits.mean()
    assert float(mass - density) == pytest.approx(math.log2(127.5), abs=0.05)


def test_an_image_does_not_depend_on_its_batch_beyond_the_tolerance(gaussian_denoiser):
    denoiser, x, source = gaussian_denoiser(LINEAR, std=STD), gaussian_levels(12), NoiseSource(1)

    def bits(rows):
        return flow_likelihood(denoiser, x[rows], LINEAR, source.bind(rows, "validation")).bits

    whole = bits(torch.arange(12))
    torch.testing.assert_close(bits(torch.tensor([3, 7])), whole[[3, 7]], rtol=0, atol=1e-3)


def test_float32_images_in_inference_mode(gaussian_denoiser):
    layer = torch.nn.Conv2d(1, 1, 3, padding=1)
    x = gaussian_levels(2, 16).reshape(2, 1, 4, 4).float()
    with torch.inference_mode():
        found = flow_likelihood(lambda x, t: layer(x).tanh(), x.clone(), LINEAR, noise_of(2))
    assert bool(found.bits.isfinite().all())
    assert found.x_T.shape == x.shape
    assert all(parameter.grad is None for parameter in layer.parameters())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dequantization": "none"}, "dequantization must be one of uniform, truncated_normal, got 'none'"),
        ({"divergence": "trace"}, "divergence must be one of hutchinson, exact, got 'trace'"),
        ({"between": "nearest"}, "between must be one of interpolated, fractional, got 'nearest'"),
        ({"tolerance": 0.0}, "tolerance must be > 0"),
        ({"denoiser": lambda x, t: x[:, :1]}, r"denoiser must return shape \(2, 3\)"),
        ({"denoiser": lambda x, t: x * math.nan}, "denoiser must return finite numbers, and did not at lambda=4.6"),
        ({"schedule": NoiseSchedule.linear(1)}, "at least 2 timesteps"),
        ({"x_0": torch.zeros(2, 3, dtype=torch.long)}, "x_0 must be a floating point tensor"),
    ],
)
def test_mistakes_are_named(options, message):
    arguments = {"denoiser": lambda x, t: x, "x_0": -torch.ones(2, 3), "schedule": LINEAR, "noise": noise_of(2)}
    with pytest.raises(ValueError, match=message):
        flow_likelihood(**{**arguments, **options})
