"""diffusers' schedulers as an independent oracle, set up so that both define the same thing.

Its alpha_bar is float32 and its previous timestep is t - T // S, so alpha_bar is handed over in float64 and only S
that divide T are compared.
"""

from __future__ import annotations

import pytest
import torch

from ddim.diffusion import NoiseSchedule, encode, sample, select_timesteps

diffusers = pytest.importorskip("diffusers")


def scheduler_of(cls, schedule: NoiseSchedule, num_steps: int, **options):
    scheduler = cls(
        num_train_timesteps=schedule.num_timesteps,
        beta_schedule="linear",
        steps_offset=0,
        timestep_spacing="leading",
        clip_sample_range=1.0,
        **options,
    )
    scheduler.alphas_cumprod = schedule.alpha_bar.clone()
    scheduler.set_timesteps(num_steps)
    return scheduler


def grid_of(num_steps: int, schedule: NoiseSchedule, **options) -> list[int]:
    """The timesteps of DPMSolverMultistepScheduler, increasing."""
    scheduler = diffusers.DPMSolverMultistepScheduler(num_train_timesteps=schedule.num_timesteps, **options)
    scheduler.alphas_cumprod = schedule.alpha_bar.clone()
    scheduler.set_timesteps(num_steps)
    return scheduler.timesteps.flip(0).tolist()


def denoiser(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    return torch.tanh(0.8 * x + (t.reshape(-1, 1) / 300).sin())


def latents() -> torch.Tensor:
    return torch.randn(4, 6, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (NoiseSchedule.linear(1000), {"beta_schedule": "linear"}),
        (
            NoiseSchedule.scaled_linear(1000),
            {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012},
        ),
        (NoiseSchedule.cosine(1000), {"beta_schedule": "squaredcos_cap_v2"}),
    ],
)
def test_schedules_agree(ours, theirs):
    scheduler = diffusers.DDIMScheduler(num_train_timesteps=1000, **theirs)
    torch.testing.assert_close(ours.alpha_bar, scheduler.alphas_cumprod.double(), rtol=2e-4, atol=1e-9)


@pytest.mark.parametrize("clip", [False, True])
@pytest.mark.parametrize("eta", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("num_steps", [1, 4, 50, 1000])
def test_sample_equals_ddim_scheduler(num_steps, eta, clip):
    schedule = NoiseSchedule.linear()
    scheduler = scheduler_of(diffusers.DDIMScheduler, schedule, num_steps, set_alpha_to_one=True, clip_sample=clip)
    tau = select_timesteps(1000, num_steps, "linear")
    assert scheduler.timesteps.flip(0).tolist() == tau.tolist()
    z = torch.randn(num_steps, 4, 6, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    x = latents()
    for i, t in enumerate(scheduler.timesteps):
        eps = denoiser(x, t.expand(4))
        step = scheduler.step(eps, int(t), x, eta=eta, use_clipped_model_output=clip, variance_noise=z[i])
        x = step.prev_sample
    ours = sample(denoiser, latents(), schedule, tau, eta, clip_denoised=clip, noise=lambda i, like: z[i])
    torch.testing.assert_close(ours, x, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("num_steps", [4, 50, 1000])
def test_official_sigma_hat_equals_ddpm_scheduler_with_the_large_variance(num_steps):
    schedule = NoiseSchedule.linear()
    scheduler = scheduler_of(
        diffusers.DDPMScheduler, schedule, num_steps, variance_type="fixed_large", clip_sample=True
    )
    x, generator = latents(), torch.Generator().manual_seed(4)
    for t in scheduler.timesteps:
        x = scheduler.step(denoiser(x, t.expand(4)), int(t), x, generator=generator).prev_sample
    generator.manual_seed(4)
    ours = sample(
        denoiser,
        latents(),
        schedule,
        select_timesteps(1000, num_steps, "linear"),
        1.0,
        variance="sigma_hat_official",
        noise=lambda i, like: torch.randn(like.shape, generator=generator, dtype=like.dtype),
    )
    torch.testing.assert_close(ours, x, rtol=1e-9, atol=1e-9)


def test_encode_step_equals_ddim_inverse_scheduler():
    # Its timestep is the level a step arrives at, and eps belongs to the level T // S below.
    schedule = NoiseSchedule.linear()
    scheduler = scheduler_of(diffusers.DDIMInverseScheduler, schedule, 50, set_alpha_to_one=True, clip_sample=False)
    x = latents()
    for t in scheduler.timesteps:
        eps = denoiser(x, torch.full((4,), max(int(t) - 20, 0)))
        x = scheduler.step(eps, int(t), x).prev_sample
    ours = encode(denoiser, latents(), schedule, select_timesteps(1000, 50, "linear"))
    torch.testing.assert_close(ours, x, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("spacing", "option"),
    [("karras", {"use_karras_sigmas": True}), ("logsnr", {"use_lu_lambdas": True})],
)
@pytest.mark.parametrize("schedule", [NoiseSchedule.linear(), NoiseSchedule.scaled_linear()])
@pytest.mark.parametrize("num_steps", [1, 2, 3, 5, 8, 10, 15, 20, 25])
def test_grids_of_noise_levels_agree(num_steps, schedule, spacing, option):
    # Of a cosine schedule it keeps fractional timesteps, and runs down to lambda = -10: another definition.
    ours = select_timesteps(1000, num_steps, spacing, schedule=schedule).tolist()
    assert ours == grid_of(num_steps, schedule, **option)


@pytest.mark.parametrize(("spacing", "option"), [("karras", "use_karras_sigmas"), ("logsnr", "use_lu_lambdas")])
def test_where_theirs_repeat_a_timestep_ours_are_distinct(spacing, option):
    schedule = NoiseSchedule.linear()
    theirs = grid_of(100, schedule, **{option: True})
    ours = select_timesteps(1000, 100, spacing, schedule=schedule).tolist()
    assert len(set(theirs)) < 100
    assert len(set(ours)) == 100
    # Once there is a timestep for every level, they agree again.
    crowded = 30
    assert ours[:5] == [0, 1, 2, 3, 4]
    assert ours[crowded:] == theirs[crowded:]


@pytest.mark.parametrize("num_steps", [1, 2, 3, 5, 8, 16, 20, 50, 70, 100, 1000])
def test_trailing_grids_agree(num_steps):
    theirs = grid_of(num_steps, NoiseSchedule.linear(), timestep_spacing="trailing")
    assert select_timesteps(1000, num_steps, "trailing").tolist() == theirs
