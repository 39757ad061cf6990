"""diffusers' schedulers as independent oracles of the solvers, in float64.

Their noise levels are float32 and some states are cast to it, so the levels are handed over in float64 and the name
`torch.float32` means float64 in their modules. Each test says where the definitions part.
"""

from __future__ import annotations

import inspect
import math
import sys
import warnings
from itertools import pairwise

import pytest
import torch

from ddim.diffusion import NoiseSchedule
from ddim.diffusion.samplers.exponential import exponential
from ddim.diffusion.samplers.ipndm import ipndm
from ddim.diffusion.samplers.single_step import dpm2, heun
from ddim.diffusion.samplers.stochastic import stochastic
from ddim.diffusion.samplers.unipc import unipc

diffusers = pytest.importorskip("diffusers")
pytestmark = pytest.mark.filterwarnings("ignore:__array_:DeprecationWarning")

LINEAR = NoiseSchedule.linear()
UNEVEN = [0, 7, 30, 90, 200, 290, 450, 600, 780, 950]
LONG = [*range(5, 1000, 50)]


class InFloat64:
    """torch, whose float32 is float64."""

    float32 = torch.float64

    def __getattr__(self, name):
        return getattr(torch, name)


@pytest.fixture
def scheduler_of(monkeypatch):
    def make(name, timesteps, schedule=LINEAR, **options):
        cls = getattr(diffusers, name)
        linear = {"beta_schedule": "linear"} if "beta_schedule" in inspect.signature(cls).parameters else {}
        scheduler = cls(num_train_timesteps=schedule.num_timesteps, **linear, **options)
        monkeypatch.setattr(sys.modules[inspect.getmodule(cls).__name__], "torch", InFloat64())
        given = sorted(timesteps, reverse=True)
        takes_list = "timesteps" in inspect.signature(cls.set_timesteps).parameters
        scheduler.set_timesteps(**({"timesteps": given} if takes_list else {"num_inference_steps": len(given)}))
        ratios = ((1 - schedule.alpha_bar) / schedule.alpha_bar).sqrt()[given]
        scheduler.sigmas = torch.cat([ratios, torch.zeros(1, dtype=torch.float64)])
        scheduler.timesteps = torch.tensor(given)
        scheduler.num_inference_steps = len(given)
        return scheduler

    return make


def denoiser(x, t):
    return torch.tanh(0.8 * x + (t.reshape(-1, 1) / 300).sin())


def latents():
    return torch.randn(4, 6, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


def run(scheduler, **options):
    """The states of a variance-preserving scheduler, the first one included."""
    states = [latents()]
    for number, t in enumerate(scheduler.timesteps):
        eps = denoiser(states[-1], t.expand(4))
        extra = {name: value(number) for name, value in options.items()}
        states.append(scheduler.step(eps, t, states[-1], **extra).prev_sample)
    return states


def ours(function, timesteps, **options):
    states = [latents()]
    function(denoiser, latents(), LINEAR, timesteps, on_step=lambda s: states.append(s.x), **options)
    return states


def same(found, expected):
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("tau", [[999], UNEVEN, LONG])
def test_dpmpp_of_order_2_is_the_heun_kind(tau, scheduler_of):
    scheduler = scheduler_of(
        "DPMSolverMultistepScheduler", tau, solver_order=2, solver_type="heun", final_sigmas_type="zero"
    )
    same(ours(exponential, tau, order=2, interpolates="x0"), run(scheduler))


@pytest.mark.parametrize("tau", [UNEVEN, LONG])
def test_dpmpp_2m_as_published_is_unip_of_order_2(tau, scheduler_of):
    # "midpoint" has (1 - exp(-h)) / 2 for the exact weight of the slope: B(h) / 2 of bh2.
    scheduler = scheduler_of("DPMSolverMultistepScheduler", tau, solver_order=2, final_sigmas_type="zero")
    theirs = run(scheduler)
    same(ours(unipc, tau, order=2, variant="bh2", corrector=False), theirs)
    exact = ours(exponential, tau, order=2, interpolates="x0")
    assert not torch.allclose(exact[3], theirs[3], rtol=1e-4)


def test_dpmpp_3m_as_published_has_half_of_the_curvature(scheduler_of):
    # Its D2 is a divided difference, half of the second derivative that the weight next to it is for.
    scheduler = scheduler_of(
        "DPMSolverMultistepScheduler", LONG, solver_order=3, solver_type="heun", final_sigmas_type="zero"
    )
    states, predictions = [latents()], []
    for number, t in enumerate(scheduler.timesteps[:4]):
        states.append(scheduler.step(denoiser(states[-1], t.expand(4)), t, states[-1]).prev_sample)
        predictions.append(scheduler.model_outputs[-1])
        if number == 2:
            levels = [-math.log(s) for s in scheduler.sigmas[:4]]
            alpha = 1 / math.sqrt(1 + float(scheduler.sigmas[3]) ** 2)
    mine = ours(exponential, LONG, order=3, interpolates="x0")
    same(mine[:3], states[:3])
    (d0, d1, d2), (l0, l1, l2, end) = predictions[2::-1], [levels[i] for i in (2, 1, 0, 3)]
    h = end - l0
    curvature = ((d0 - d1) / (l0 - l1) - (d1 - d2) / (l1 - l2)) / (l0 - l2) * h * h
    missing = alpha * (0.5 - 1 / h - math.expm1(-h) / h**2) * curvature
    torch.testing.assert_close(mine[3] - states[3], missing, rtol=1e-8, atol=1e-12)


def test_dpmpp_3m_as_published_has_second_order_and_ours_third(schedule_at, stretch, scheduler_of, gaussian_denoiser):
    errors = {"ours": [], "theirs": []}
    for steps in (160, 320):
        schedule = schedule_at(stretch(steps))
        exact_eps = gaussian_denoiser(schedule, std=0.5)
        variance = schedule.alpha_bar * 0.25 + 1 - schedule.alpha_bar
        exact = float((variance[0] / variance[-1]).sqrt())
        x = torch.ones(1, 1, dtype=torch.float64)
        options = {"order": 3, "interpolates": "x0", "end": 0}
        errors["ours"].append(abs(exponential(exact_eps, x, schedule, range(1, steps + 1), **options).item() - exact))
        scheduler = scheduler_of(
            "DPMSolverMultistepScheduler",
            range(steps + 1),
            schedule,
            solver_order=3,
            solver_type="heun",
            final_sigmas_type="zero",
        )
        for t in scheduler.timesteps[:-1]:
            x = scheduler.step(exact_eps(x, t.reshape(1)), t, x).prev_sample
        errors["theirs"].append(abs(x.item() - exact))
    orders = {name: math.log2(before / after) for name, (before, after) in errors.items()}
    assert orders == {"ours": pytest.approx(3, abs=0.2), "theirs": pytest.approx(2, abs=0.2)}


@pytest.mark.parametrize("tau", [[999], [0, 500], UNEVEN, LONG])
@pytest.mark.parametrize("variant", ["bh1", "bh2"])
@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("corrector", [True, False])
def test_unipc_is_the_same(tau, variant, order, corrector, scheduler_of):
    scheduler = scheduler_of(
        "UniPCMultistepScheduler",
        tau,
        solver_order=order,
        solver_type=variant,
        final_sigmas_type="zero",
        disable_corrector=[] if corrector else list(range(1000)),
    )
    theirs = run(scheduler)[-1]
    mine = ours(unipc, tau, order=order, variant=variant, corrector=corrector)
    # What it hands out is not corrected yet; the state that its last step started from is.
    torch.testing.assert_close(mine[-2], scheduler.last_sample, rtol=1e-9, atol=1e-9)
    if variant == "bh2":
        torch.testing.assert_close(mine[-1], theirs, rtol=1e-9, atol=1e-9)
    else:
        # B(h) = h is infinite in the step to the clean data, and 0 times it is not a number there.
        assert theirs.isnan().all()
        assert mine[-1].isfinite().all()


@pytest.mark.filterwarnings("ignore:divide by zero:RuntimeWarning", "ignore:invalid value:RuntimeWarning")
def test_deis_is_the_same_at_order_1_and_another_method_above(scheduler_of):
    # Its polynomial goes through eps in log rho, ours in rho; its last step divides by zero, so it is left out.
    scheduler = scheduler_of("DEISMultistepScheduler", LONG, solver_order=1)
    same(ours(exponential, LONG, order=1)[:-1], run(scheduler)[:-1])
    scheduler = scheduler_of("DEISMultistepScheduler", LONG, solver_order=2)
    theirs = run(scheduler)
    same(ours(exponential, LONG, order=2)[:2], theirs[:2])
    rho = scheduler.sigmas[:3].tolist()
    first, second = (denoiser(x, t.expand(4)) for x, t in zip(theirs[:2], scheduler.timesteps[:2], strict=True))
    # d (x / signal) = eps d rho, with eps a line in log rho: int (log rho - log rho_1) d rho by parts.
    slope = (second - first) / math.log(rho[1] / rho[0])
    integral = second * (rho[2] - rho[1]) + slope * (rho[2] * math.log(rho[2] / rho[1]) - rho[2] + rho[1])
    scales = [math.sqrt(1 + r * r) for r in rho]
    torch.testing.assert_close((theirs[1] * scales[1] + integral) / scales[2], theirs[2], rtol=1e-9, atol=1e-9)
    assert not torch.allclose(ours(exponential, LONG, order=2)[2], theirs[2], rtol=1e-4)


def scaled_states(scheduler, **options):
    """The states of a scheduler whose x is ours divided by the signal, every second one for Heun."""
    signals = [1 / math.sqrt(1 + s * s) for s in scheduler.sigmas.tolist()]
    x = latents() / signals[0]
    states = [latents()]
    for number, t in enumerate(scheduler.timesteps):
        eps = denoiser(scheduler.scale_model_input(x, t), t.expand(4))
        x = scheduler.step(eps, t, x, **options).prev_sample
        states.append(x * signals[number + 1])
    return states


@pytest.mark.parametrize("tau", [UNEVEN, LONG])
@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_deis_is_the_linear_multistep_scheduler_but_for_the_last_step(tau, order, scheduler_of):
    # The last step goes to the clean data: full order there, DDIM here.
    scheduler = scheduler_of("LMSDiscreteScheduler", tau)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = scaled_states(scheduler, order=order)
    mine = ours(exponential, tau, order=order)
    same(mine[:-1], theirs[:-1])
    assert order == 1 or not torch.allclose(mine[-1], theirs[-1], rtol=1e-9)


@pytest.mark.parametrize("tau", [[999], UNEVEN, LONG])
def test_heun_is_the_same(tau, scheduler_of):
    scheduler = scheduler_of("HeunDiscreteScheduler", tau)
    ratios, times = scheduler.sigmas, scheduler.timesteps
    # Each level but the first appears twice: where Euler led, and where the step ends.
    scheduler.sigmas = torch.cat([ratios[:1], ratios[1:-1].repeat_interleave(2), ratios[-1:]])
    scheduler.timesteps = torch.cat([times[:1], times[1:].repeat_interleave(2)])
    assert len(scheduler.timesteps) == 2 * len(tau) - 1
    x = latents() / (1 / (1 + ratios[0] ** 2).sqrt())
    for t in scheduler.timesteps:
        level = scheduler.sigmas[scheduler.step_index or 0]
        assert level == ratios[times.tolist().index(int(t))]
        x = scheduler.step(denoiser(x / (1 + level**2).sqrt(), t.expand(4)), t, x).prev_sample
    torch.testing.assert_close(ours(heun, tau)[-1], x, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("tau", [[999], UNEVEN, LONG])
def test_ipndm_is_the_same_but_for_the_last_step(tau, scheduler_of):
    # Its network predicts v; the last step goes to the clean data, with mixed eps there and DDIM's here.
    scheduler = scheduler_of("IPNDMScheduler", tau)
    kept = [LINEAR.alpha_bar_at(t) for t in sorted(tau, reverse=True)] + [1.0]
    scheduler.alphas = torch.tensor(kept, dtype=torch.float64).sqrt()
    scheduler.betas = (1 - torch.tensor(kept, dtype=torch.float64)).sqrt()
    states = [latents()]
    for number, t in enumerate(scheduler.timesteps):
        x, (signal, sigma) = states[-1], (scheduler.alphas[number], scheduler.betas[number])
        v = (denoiser(x, t.expand(4)) - sigma * x) / signal
        states.append(scheduler.step(v, t, x).prev_sample)
    mine = ours(ipndm, tau)
    same(mine[:-1], states[:-1])
    assert len(tau) == 1 or not torch.allclose(mine[-1], states[-1], rtol=1e-9)


def test_pndm_has_the_same_weights_after_another_start(scheduler_of):
    # skip_prk_steps: the first step is taken twice, so the predictions that are mixed differ; one that is fed with
    # what ours kept goes on alike.
    scheduler = scheduler_of("PNDMScheduler", LONG, skip_prk_steps=True)
    scheduler.alphas_cumprod = LINEAR.alpha_bar.clone()
    states, eps = [latents()], []

    def recorded(x, t):
        eps.append(denoiser(x, t))
        return eps[-1]

    ipndm(recorded, latents(), LINEAR, LONG, on_step=lambda s: states.append(s.x))
    a, b, c, d = eps[3], eps[2], eps[1], eps[0]
    mixed = (55 * a - 59 * b + 37 * c - 9 * d) / 24
    times = sorted(LONG, reverse=True)
    expected = scheduler._get_prev_sample(states[3], times[3], times[4], mixed)
    torch.testing.assert_close(states[4], expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("tau", [[999], UNEVEN, LONG])
def test_second_order_stochastic_ddim_with_eta_one_is_the_heun_kind_of_sde_dpmpp(tau, scheduler_of):
    z = torch.randn(len(tau), 4, 6, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    scheduler = scheduler_of(
        "DPMSolverMultistepScheduler",
        tau,
        solver_order=2,
        solver_type="heun",
        algorithm_type="sde-dpmsolver++",
        final_sigmas_type="zero",
    )
    theirs = run(scheduler, variance_noise=lambda number: z[number])
    same(ours(stochastic, tau, eta=1.0, noise=lambda number, like: z[number]), theirs)


def test_dpm2_is_the_single_step_scheduler_given_the_inner_timesteps(scheduler_of):
    # That one counts the inner levels as timesteps. Steps 950 -> 600 -> 200 with 780 and 450 inside, then clean data.
    outer = [200, 600, 950]
    inner = {}

    def recorded(x, t):
        inner.setdefault(int(t[0]), None)
        return denoiser(x, t)

    states = [latents()]
    dpm2(recorded, latents(), LINEAR, outer, on_step=lambda s: states.append(s.x))
    visited = list(inner)
    assert len(visited) == 5
    assert visited[0] == 950 and visited[2] == 600 and visited[4] == 200
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scheduler = scheduler_of(
            "DPMSolverSinglestepScheduler",
            visited,
            solver_order=2,
            algorithm_type="dpmsolver",
            final_sigmas_type="sigma_min",
        )
    for number, (outer_t, inner_t) in enumerate(pairwise(visited[:4])):
        if number % 2:
            continue
        scheduler._step_index = number + 1
        x = states[number // 2]
        start = denoiser(x, torch.full((4,), outer_t))
        scheduler._step_index = number
        middle = scheduler.dpm_solver_first_order_update(start, sample=x)
        scheduler._step_index = number + 1
        between = denoiser(middle, torch.full((4,), inner_t))
        reached = scheduler.singlestep_dpm_solver_second_order_update([start, between], sample=x)
        torch.testing.assert_close(states[number // 2 + 1], reached, rtol=1e-9, atol=1e-9)
