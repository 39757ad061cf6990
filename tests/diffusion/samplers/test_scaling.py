"""Epsilon scaling."""

from __future__ import annotations

import pytest
import torch

from ddim.diffusion import NoiseSchedule, sample
from ddim.diffusion.samplers.scaling import scale_eps
from ddim.diffusion.samplers.single_step import dpm2


def test_eps_is_divided_by_the_constant_and_the_slope():
    def denoiser(x, t):
        return 2 * x

    x, t = torch.ones(3, 2, 2), torch.tensor([0, 10, 500])
    assert torch.equal(scale_eps(denoiser)(x, t), denoiser(x, t))
    torch.testing.assert_close(scale_eps(denoiser, 1.25)(x, t), 1.6 * x)
    by_timestep = scale_eps(denoiser, 1.0, 0.01)(x, t)
    torch.testing.assert_close(by_timestep[:, 0, 0], 2 / torch.tensor([1.0, 1.1, 6.0]))
    by_step = scale_eps(denoiser, 1.0, 0.5, timesteps=[0, 10, 400, 500])(x, t)
    torch.testing.assert_close(by_step[:, 0, 0], 2 / torch.tensor([1.0, 1.5, 2.5]))
    # A level inside a step counts as the step that it is in.
    between = scale_eps(denoiser, 1.0, 0.5, timesteps=[0, 10, 400])(x, torch.tensor([5, 11, 399]))
    torch.testing.assert_close(between[:, 0, 0], 2 / torch.tensor([1.5, 2.0, 2.0]))


@pytest.mark.parametrize("function", [sample, dpm2])
def test_a_sampler_takes_it_like_any_denoiser(function):
    schedule, x_T = NoiseSchedule.linear(), torch.ones(2, 3, dtype=torch.float64)
    scaled = scale_eps(lambda x, t: torch.sin(x), 1.1)
    expected = function(lambda x, t: torch.sin(x) / 1.1, x_T, schedule, [0, 400, 900])
    torch.testing.assert_close(function(scaled, x_T, schedule, [0, 400, 900]), expected, rtol=1e-12, atol=0)


def test_the_dtype_is_the_denoisers():
    scaled = scale_eps(lambda x, t: x.bfloat16(), 1.01, 1e-3)
    assert scaled(torch.ones(2, 3), torch.tensor([1, 999])).dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"constant": 0}, "^eps_scale constant must be above 0, got 0$"),
        ({"constant": -1.0}, "^eps_scale constant must be a finite number >= 0, got -1.0$"),
        ({"constant": float("nan")}, "^eps_scale constant must be a finite number >= 0, got nan$"),
        ({"slope": "steep"}, "^eps_scale slope must be a finite number >= 0, got 'steep'$"),
        ({"slope": -0.1}, "^eps_scale slope must be a finite number >= 0, got -0.1$"),
        ({"timesteps": [3, 1]}, "^timesteps must increase strictly, got 1 after 3$"),
    ],
)
def test_wrong_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        scale_eps(lambda x, t: x, **arguments)
