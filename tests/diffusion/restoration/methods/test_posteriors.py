"""What methods make of a Gaussian prior against its posterior in closed form: they are told the exact eps.

Errors are relative: of the mean to the posterior's root mean square deviation, of the covariance in Frobenius norm.
"""

from __future__ import annotations

import math
from functools import cache
from itertools import pairwise

import pytest
import torch
from sklearn.datasets import load_digits

from ddim.diffusion import SAMPLERS, NoiseSchedule, NoiseSource, select_timesteps
from ddim.diffusion.process import eps_from_x0, predict_x0
from ddim.diffusion.restoration.gaussian import GaussianPrior
from ddim.diffusion.restoration.measurement import Measurement, model_sigma
from ddim.diffusion.restoration.methods.table import DENOISER, METHODS, SAMPLER
from ddim.diffusion.restoration.methods.wrappers import pigdm
from ddim.diffusion.restoration.operators.averaging import SuperResolution
from ddim.diffusion.restoration.operators.blur import Deblurring, kernel_of
from ddim.diffusion.restoration.operators.hadamard import CompressedSensing
from ddim.diffusion.restoration.operators.inpainting import Inpainting, mask_of

SHAPE = (1, 8, 8)
SCHEDULE = NoiseSchedule.linear(1000)
SMALL = (1, 4, 4)
MASK, SMALL_MASK = (Inpainting(shape, mask_of("random", *shape[1:])) for shape in (SHAPE, SMALL))
BLOCKS = SuperResolution(SMALL, 2)
NOISE = NoiseSource(5)


def normal(count, size, step=0):
    return NOISE.normal("validation", torch.arange(count), step, (size,)).double()


@cache
def digits():
    """Fitted to the digits; the rest keeps the pixels that are always empty from having no spread at all."""
    images = torch.from_numpy(load_digits().images).double()[:, None] / 8 - 1
    fitted = GaussianPrior.fitted(images, SHAPE)
    return GaussianPrior(fitted.mean, fitted.covariance + 1e-4 * torch.eye(64), SHAPE)


def unit():
    return GaussianPrior(torch.linspace(-1, 1, 16), torch.eye(16), SMALL)


def independent():
    return GaussianPrior(torch.linspace(-1, 1, 16), torch.diag(torch.linspace(0.05, 1, 16)), SMALL)


def measured(prior, operator, sigma, count):
    """Measurements of samples of the prior."""
    root = torch.linalg.cholesky(prior.covariance)
    x_0 = (prior.mean + normal(count, operator.size) @ root.T).reshape(count, *operator.shape)
    return Measurement.of(operator, x_0, sigma, normal(count, operator.measured, 1))


def run(name, prior, measurement, steps, x_T, noise, sampler="ddim", eta=0.0, **options):
    method, tau, denoiser = METHODS[name], select_timesteps(1000, steps, "trailing"), prior.denoiser(SCHEDULE)
    if method.kind == SAMPLER:
        return method.function(denoiser, x_T, SCHEDULE, tau, measurement, noise=noise, **options)
    assert method.kind == DENOISER
    guided = method.function(denoiser, measurement, SCHEDULE, **options)
    eta = eta if SAMPLERS[sampler].takes("eta") else 0.0
    return SAMPLERS[sampler].run(guided, x_T, SCHEDULE, tau, eta=eta, noise=noise)


def restored(name, prior, measurement, steps, **options):
    """One sample for each measurement."""
    numbers = torch.arange(len(measurement))
    x_T = NOISE.initial(numbers, prior.shape).double()
    return run(name, prior, measurement, steps, x_T, NOISE.bind(numbers), **options)


def errors(name, prior, operator, sigma, steps, **options):
    """Of mean and covariance. With the exact eps of a Gaussian, x_0 is affine in y, x_T and the noise of each step.

    So its mean is what comes of no noise at all, and its covariance the sum of what each unit of noise adds: exact
    numbers, of no samples. The mean's error is taken over 50 measurements.
    """
    measurement, drawn = measured(prior, operator, sigma, 50), []
    means, covariance = prior.posterior(measurement)

    def none(step, like):
        drawn.append(step)
        return torch.zeros_like(like)

    found = run(name, prior, measurement, steps, torch.zeros(50, *prior.shape).double(), none, **options)
    size = operator.size * (1 + len(drawn))
    units = torch.eye(size, dtype=torch.float64).reshape(size, 1 + len(drawn), *prior.shape)
    repeated = measurement.of_samples(torch.zeros(len(units), dtype=torch.long))
    spread = run(
        name, prior, repeated, steps, units[:, 0], lambda step, like: units[:, 1 + drawn.index(step)], **options
    )
    spread = (spread - found[0]).flatten(1)
    gap = (found - means).square().sum() / 50 / covariance.trace()
    return gap.sqrt().item(), ((spread.T @ spread - covariance).norm() / covariance.norm()).item()


@pytest.mark.parametrize(
    "name, sigma_y, options",
    [
        ("ddrm", 0.0, {}),
        ("ddrm", 0.1, {}),
        ("ddnm", 0.0, {}),
        ("ddnm_plus", 0.1, {}),
        ("repaint", 0.0, {"jump_length": 2, "jump_samples": 2}),
        ("pigdm", 0.0, {"eta": 1.0}),
        ("pigdm", 0.1, {"eta": 1.0}),
    ],
)
def test_on_the_digits_prior_errors_fall_with_the_steps(name, sigma_y, options):
    found = [errors(name, digits(), MASK, model_sigma(sigma_y), steps, **options) for steps in (4, 8, 12)]
    for before, after in pairwise(found):
        assert after[0] < before[0] and after[1] < before[1]
    assert found[-1][0] < 0.75 and found[-1][1] < 0.5


def test_dps_comes_close_on_the_digits_prior():
    """Its steps are no affine function, so that this one is of samples."""
    prior, found = digits(), []
    measurement = measured(prior, MASK, 0.0, 1).of_samples(torch.zeros(400, dtype=torch.long))
    means, covariance = prior.posterior(measurement)
    for steps in (5, 20, 80):
        samples = restored("dps", prior, measurement, steps).flatten(1)
        found.append(((samples.mean(dim=0) - means[0].flatten()).norm() / covariance.trace().sqrt()).item())
    assert found[0] > found[1] > found[2] and found[2] < 0.35


@pytest.mark.parametrize("name", ["ddrm", "ddnm", "diffpir", "pigdm", "repaint"])
def test_pixels_that_say_nothing_of_each_other_are_restored_exactly(name):
    """What is known is kept and what is not stays the prior's: with enough steps the posterior of such a prior.

    Where fresh noise is a share of all the noise it must be none, see the collapse below.
    """
    own = {"ddrm": {"noise_share": 0.0}, "ddnm": {"noise_share": 0.0}, "repaint": {"jump_samples": 1}}
    found = [errors(name, independent(), SMALL_MASK, 0.0, steps, **own.get(name, {})) for steps in (5, 20, 50)]
    for before, after in pairwise(found):
        assert after[1] < 0.7 * before[1]
    assert found[-1][0] < 0.01 and found[-1][1] < 0.16


@pytest.mark.parametrize("sigma", [0.0, 0.4])
@pytest.mark.parametrize(
    "operator", [SMALL_MASK, BLOCKS, Deblurring(SMALL, kernel_of("gaussian", 1), 0.1), CompressedSensing(SMALL)]
)
def test_pigdm_is_the_conditional_score_of_unit_variance(operator, sigma):
    prior, t = unit(), torch.tensor([5, 300, 999])
    measurement = measured(prior, operator, sigma, 3)
    x, denoiser = normal(3, 16, 2).reshape(3, *SMALL), prior.denoiser(SCHEDULE)
    expected = []
    for place, x_0 in enumerate(predict_x0(x, denoiser(x, t), t, SCHEDULE)):
        # x_0 given x_t is normal with variance 1 - alpha_bar, and y is a measurement of it.
        variance = (1 - SCHEDULE.alpha_bar[t[place]]) * torch.eye(16)
        posterior = GaussianPrior(x_0.flatten(), variance, SMALL).posterior(
            measurement.of_samples(torch.tensor([place]))
        )
        expected.append(posterior[0][0])
    eps = eps_from_x0(x, torch.stack(expected), t, SCHEDULE)
    torch.testing.assert_close(pigdm(denoiser, measurement, SCHEDULE)(x, t), eps, rtol=0, atol=1e-6)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_sampler_runs_what_is_a_denoiser(sampler):
    """The score of `pigdm` is that of the posterior here, and every sampler comes to it."""
    mean, covariance = errors("pigdm", unit(), BLOCKS, model_sigma(0.1), 40, sampler=sampler)
    assert mean < 0.02 and covariance < 0.1
    prior = independent()
    measurement = measured(prior, BLOCKS, 0.0, 4)
    samples = restored("diffpir", prior, measurement, 40, sampler=sampler)
    assert measurement.error(samples).abs().max() < 1e-6


def test_the_mean_of_draws_has_half_the_error_of_one():
    """A sample of the posterior is twice as far from the truth, in squares, as the posterior mean."""
    prior = unit()
    truths = (prior.mean + normal(500, 16)).reshape(500, *SMALL)
    measurement = Measurement.of(SMALL_MASK, truths, 0.0)
    means, _ = prior.posterior(measurement)
    samples = restored("pigdm", prior, measurement, 100, eta=1.0)
    ratio = (samples - truths).square().mean() / (means - truths).square().mean()
    assert ratio.item() == pytest.approx(2.0, rel=0.06)


@pytest.mark.parametrize("name", ["ddrm", "ddnm"])
def test_a_share_of_the_noise_is_not_the_eta_of_ddim(name):
    """Of independent pixels the variance follows a recursion, and with ever more steps falls towards half the prior's.

    With DDIM's eta of the same value it comes to the prior's.
    """
    share, variance, steps = 0.85, 0.5, 100
    prior = GaussianPrior(torch.zeros(16), variance * torch.eye(16), SMALL)
    measurement = measured(prior, SMALL_MASK, 0.0, 2000)
    levels = [1 / math.sqrt(a) for a in SCHEDULE.alpha_bar[select_timesteps(1000, steps, "trailing")].tolist()]
    levels = [math.sqrt(level**2 - 1) for level in reversed(levels)] + [0.0]
    # Both begin at the standard normal x_T, ddrm in the scaled coordinates at the level itself.
    spread = levels[0] ** 2 if name == "ddrm" else 1 + levels[0] ** 2
    for here, there in pairwise(levels):
        kept = variance / (variance + here**2)
        spread = (kept + math.sqrt(1 - share**2) * there * (1 - kept) / here) ** 2 * spread + (share * there) ** 2
    unknown = ~SMALL_MASK.known.flatten()
    found = restored(name, prior, measurement, steps, noise_share=share).flatten(1)[:, unknown].var().item()
    assert found == pytest.approx(spread, rel=0.04) and found < 0.85 * variance
    ddim = restored("diffpir", prior, measurement, steps, eta=share).flatten(1)[:, unknown].var().item()
    assert ddim > 0.9 * variance
