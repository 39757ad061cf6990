"""What others got wrong, and what each method promises of a single step or of its end."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from torch import nn

from ddim.diffusion import SAMPLERS, NoiseSchedule, NoiseSource, select_timesteps
from ddim.diffusion.restoration.measurement import Measurement
from ddim.diffusion.restoration.methods.spectral import ddnm, ddnm_plus, ddrm
from ddim.diffusion.restoration.methods.start import sdedit, sdedit_timesteps
from ddim.diffusion.restoration.methods.stepwise import dps, ilvr, repaint, repaint_calls, repaint_plan
from ddim.diffusion.restoration.methods.table import DENOISER, METHODS, SAMPLER
from ddim.diffusion.restoration.methods.wrappers import diffpir, pigdm
from ddim.diffusion.restoration.operators.averaging import SuperResolution
from ddim.diffusion.restoration.operators.dense import Denoising, Dense
from ddim.diffusion.restoration.operators.inpainting import Inpainting, mask_of

SHAPE = (1, 4, 4)
SCHEDULE = NoiseSchedule.linear(100)
TAU = select_timesteps(100, 6, "trailing")
MASK, BLOCKS = Inpainting(SHAPE, mask_of("random", 4, 4)), SuperResolution(SHAPE, 2)
NOISE = NoiseSource(3)
WEIGHTS = torch.randn(16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) / 8


def network(x, t):
    """Not linear, and different at every pixel."""
    return torch.tanh(x.flatten(1) @ WEIGHTS.to(x) + t[:, None].to(x) / 100).reshape(x.shape)


def normal(count, *shape, step=0):
    return NOISE.normal("validation", torch.arange(count), step, shape).double()


def silent(step, like):
    return torch.zeros_like(like)


def restored(name, measurement, numbers, sampler="ddim", **options):
    method = METHODS[name]
    x_T, noise = NOISE.initial(numbers, SHAPE).double(), NOISE.bind(numbers)
    if method.kind == SAMPLER:
        return method.function(network, x_T, SCHEDULE, TAU, measurement, noise=noise, **options)
    if method.kind == DENOISER:
        return SAMPLERS[sampler].run(method.function(network, measurement, SCHEDULE, **options), x_T, SCHEDULE, TAU)
    started = method.function(x_T, SCHEDULE, TAU, measurement, **options)
    return SAMPLERS[sampler].run(network, started, SCHEDULE, sdedit_timesteps(SCHEDULE, TAU, **options))


def operator_for(name):
    return BLOCKS if "superresolution" in METHODS[name].operators else MASK


@pytest.mark.parametrize("name", METHODS)
def test_a_sample_does_not_depend_on_its_batch(name):
    """The reference code of DPS takes one norm over the batch."""
    operator = operator_for(name)
    measurement = Measurement.of(operator, normal(4, *SHAPE), 0.0)
    together = restored(name, measurement, torch.arange(4))
    for number in range(4):
        place = torch.tensor([number])
        alone = restored(name, measurement.of_samples(place), place)
        torch.testing.assert_close(together[number : number + 1], alone, rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", ["ddrm", "ddnm", "ddnm_plus", "diffpir", "repaint"])
def test_without_noise_the_result_explains_the_measurement(name):
    measurement = Measurement.of(MASK, normal(3, *SHAPE), 0.0)
    assert measurement.error(restored(name, measurement, torch.arange(3))).abs().max() < 1e-10


@pytest.mark.parametrize("name", METHODS)
def test_options_are_those_of_the_function(name):
    measurement = Measurement.of(operator_for(name), normal(1, *SHAPE), 0.0)
    method = METHODS[name]
    given = restored(name, measurement, torch.arange(1), **method.options)
    torch.testing.assert_close(given, restored(name, measurement, torch.arange(1)), rtol=0, atol=0)
    for option, value in method.options.items():
        other = value + 2 if isinstance(value, int) else value / 2
        changed = restored(name, _noisy(measurement, method), torch.arange(1), **{option: other})
        same = restored(name, _noisy(measurement, method), torch.arange(1))
        # Jumps of RePaint have no room in so few steps.
        assert not torch.equal(changed, same) or name == "repaint"


def _noisy(measurement, method):
    return Measurement(measurement.operator, measurement.y, 0.5) if method.noisy else measurement


def test_ddnm_keeps_the_predicted_eps_and_diffpir_reads_it_again():
    """Two algorithms that agree on x_0 and on nothing else, written out for their first step."""
    measurement, x = Measurement.of(MASK, normal(2, *SHAPE), 0.0), normal(2, *SHAPE, step=1)
    tau = TAU[-2:]
    level, below = (float(SCHEDULE.alpha_bar[t]) for t in (tau[1], tau[0]))
    eps = network(x, torch.full((2,), int(tau[1])))
    x_0 = (x - math.sqrt(1 - level) * eps) / math.sqrt(level)
    projected = torch.where(MASK.known, MASK.A_dagger(measurement.y), x_0)
    again = (x - math.sqrt(level) * projected) / math.sqrt(1 - level)
    for kept, run in (
        (eps, lambda denoiser: ddnm(denoiser, x, SCHEDULE, tau, measurement, noise=silent, noise_share=0.0)),
        (again, lambda denoiser: SAMPLERS["ddim"].run(diffpir(denoiser, measurement, SCHEDULE), x, SCHEDULE, tau)),
    ):
        seen = []
        run(lambda x, t, seen=seen: seen.append(x) or network(x, t))
        expected = math.sqrt(below) * projected + math.sqrt(1 - below) * kept
        torch.testing.assert_close(seen[1], expected, rtol=0, atol=1e-10)


def test_ddnm_plus_without_noise_is_ddnm_and_ddnm_refuses_noise():
    measurement = Measurement.of(BLOCKS, normal(2, *SHAPE), 0.0)
    assert torch.equal(
        restored("ddnm", measurement, torch.arange(2)), restored("ddnm_plus", measurement, torch.arange(2))
    )
    noisy = Measurement(BLOCKS, measurement.y, 0.1)
    for function in (ddnm, repaint, ilvr):
        with pytest.raises(ValueError, match="without noise; with noise take"):
            function(network, normal(2, *SHAPE), SCHEDULE, TAU, noisy, noise=silent)
    assert METHODS["ddnm"].refuses("inpainting", 0.1) == "is for measurements without noise; with noise take ddnm_plus"
    assert METHODS["repaint"].refuses("denoising", 0.0) == "is for inpainting alone"
    assert METHODS["ddrm"].refuses("inpainting", 0.1) is None


@pytest.mark.parametrize("function", [ddrm, ddnm_plus])
def test_ddrm_and_ddnm_plus_hold_a_noisy_component_at_its_own_noise(function):
    """Above the level of y's noise the state is y with what noise is missing; the network has no say in it."""
    sigma, y = 0.5, normal(2000, 16)
    measurement = Measurement(Denoising(SHAPE), 0 * y + 0.7, sigma)
    seen = []

    def recorded(x, t):
        seen.append(x / float(SCHEDULE.alpha_bar[t[0]]) ** 0.5)
        return network(x, t)

    numbers = torch.arange(2000)
    function(recorded, NOISE.initial(numbers, SHAPE).double(), SCHEDULE, TAU, measurement, noise=NOISE.bind(numbers))
    for timestep, x in zip(reversed(TAU[:-1].tolist()), seen[1:], strict=True):
        level = 1 / float(SCHEDULE.alpha_bar[timestep]) - 1
        if level > sigma**2:
            assert x.mean().item() == pytest.approx(0.7, abs=0.02 * (1 + level))
            # y has its own noise already: what is added makes the rest of the level.
            assert x.var().item() == pytest.approx(level - sigma**2, rel=0.03)


@pytest.mark.parametrize("function", [ddrm, ddnm_plus])
def test_a_component_that_was_cut_hears_nothing_of_the_noise_in_y(function):
    """In the official code singular values that were set to 0 bring measurement noise in (second line of DDRM)."""
    matrix = torch.diag(torch.tensor([1.0, 0.5, 1e-5, 1e-5] * 4, dtype=torch.float64))
    operator = Dense(SHAPE, matrix)
    cut = operator.singular_values == 0
    assert cut.sum() == 8
    y = operator.A(normal(2, *SHAPE))
    found = []
    for place in (0.0, 100.0):
        other = y + place * operator.from_measured_spectrum(cut.double().expand(2, 16))
        x_T = normal(2, *SHAPE, step=2)
        measurement = Measurement(operator, other, 0.3)
        found.append(function(network, x_T, SCHEDULE, TAU, measurement, noise=NOISE.bind(torch.arange(2))))
    torch.testing.assert_close(*found, rtol=0, atol=1e-9)
    assert found[0].isfinite().all()


def test_dps_takes_a_step_of_ddpm_and_then_the_gradient_of_the_norm():
    measurement, x = Measurement.of(MASK, normal(2, *SHAPE), 0.0), normal(2, *SHAPE, step=1)
    t, level = int(TAU[0]), float(SCHEDULE.alpha_bar[TAU[0]])
    free = dps(network, x, SCHEDULE, TAU[:1], measurement, noise=silent, step_size=0.0)
    torch.testing.assert_close(free, SAMPLERS["ddim"].run(network, x, SCHEDULE, TAU[:1], eta=1.0))
    found = dps(network, x, SCHEDULE, TAU[:1], measurement, noise=silent, step_size=0.3)
    for place in range(2):
        # Finite differences of one sample's own norm.
        def norm(x, place=place):
            x_0 = (x - math.sqrt(1 - level) * network(x, torch.tensor([t]))) / math.sqrt(level)
            return (MASK.A(x_0) - measurement.y[place]).norm()

        units = torch.eye(16, dtype=torch.float64).reshape(16, 1, *SHAPE) * 1e-5
        here = x[place : place + 1]
        gradient = torch.stack([(norm(here + unit) - norm(here - unit)) / 2e-5 for unit in units]).reshape(SHAPE)
        torch.testing.assert_close(found[place], free[place] - 0.3 * gradient, rtol=0, atol=1e-7)


def test_repaint_goes_the_published_way():
    plan = repaint_plan(250, 10, 10)
    assert len(plan) - 1 == 4570 and repaint_calls(250) == 2410
    assert plan[0] == 249 and plan[-1] == -1 and {abs(a - b) for a, b in pairwise(plan)} == {1}
    assert repaint_plan(4, 10, 10) == [3, 2, 1, 0, -1] and repaint_calls(20) == 110
    assert repaint_plan(5, 2, 2) == [4, 3, 2, 3, 4, 3, 2, 1, 0, 1, 2, 1, 0, -1]
    calls = []
    repaint(
        lambda x, t: calls.append(int(t[0])) or network(x, t),
        normal(1, *SHAPE),
        SCHEDULE,
        TAU,
        Measurement.of(MASK, normal(1, *SHAPE), 0.0),
        noise=NOISE.bind(torch.arange(1)),
        jump_length=2,
        jump_samples=3,
    )
    assert len(calls) == METHODS["repaint"].calls(6, jump_length=2, jump_samples=3) and calls[0] == int(TAU[-1])
    for wrong in ({"jump_length": 0}, {"jump_samples": 0}):
        with pytest.raises(ValueError, match="must be an integer >= 1"):
            repaint_plan(4, **{"jump_length": 1, "jump_samples": 1} | wrong)


def test_ilvr_holds_the_coarse_part_at_the_noise_of_the_state():
    measurement, seen = Measurement.of(BLOCKS, normal(2, *SHAPE), 0.0), []
    ilvr(
        lambda x, t: seen.append(x) or network(x, t),
        normal(2, *SHAPE, step=1),
        SCHEDULE,
        TAU,
        measurement,
        noise=silent,
        until=0.4,
    )
    for timestep, x in zip(reversed(TAU[:-1].tolist()), seen[1:], strict=True):
        coarse = math.sqrt(float(SCHEDULE.alpha_bar[timestep])) * measurement.y
        held = (BLOCKS.A(x) - coarse).abs().max() < 1e-10
        assert held == (timestep >= 40)


def test_sdedit_starts_between_the_measurement_and_noise():
    measurement, x_T = Measurement.of(BLOCKS, normal(2, *SHAPE), 0.0), normal(2, *SHAPE, step=1)
    kept = sdedit_timesteps(SCHEDULE, TAU, 0.5)
    assert kept.tolist() == [t for t in TAU.tolist() if t <= 50]
    level = float(SCHEDULE.alpha_bar[kept[-1]])
    guide = BLOCKS.A_dagger(measurement.y)
    started = sdedit(x_T, SCHEDULE, TAU, measurement)
    torch.testing.assert_close(started, math.sqrt(level) * guide + math.sqrt(1 - level) * x_T)
    assert sdedit_timesteps(SCHEDULE, TAU, 0.0).tolist() == TAU[:1].tolist()
    with pytest.raises(ValueError, match="start must be in"):
        sdedit_timesteps(SCHEDULE, TAU, 2.0)


def test_gradients_are_recorded_inside_inference_mode():
    """An evaluation samples in inference mode, with a network whose weights want gradients."""
    torch.manual_seed(0)
    layer = nn.Conv2d(1, 1, 3, padding=1)
    with torch.inference_mode():
        x_T, y = torch.randn(2, *SHAPE), MASK.A(torch.randn(2, *SHAPE))
        measurement = Measurement(MASK, y, 0.1)
        guided = pigdm(lambda x, t: layer(x), measurement, SCHEDULE)(x_T, torch.full((2,), 50))
        found = dps(lambda x, t: layer(x), x_T, SCHEDULE, TAU, measurement, noise=NOISE.bind(torch.arange(2)))
    assert guided.dtype == found.dtype == torch.float32 and layer.weight.grad is None
    assert found.isfinite().all() and not torch.allclose(guided, layer(x_T.clone()))


@pytest.mark.parametrize(
    "function, wrong, words",
    [
        (ddrm, {"noise_share": 1.5}, "noise_share must be in"),
        (ddrm, {"measured_share": -1}, "measured_share must be in"),
        (ddnm, {"noise_share": "much"}, "noise_share must be in"),
        (dps, {"step_size": -1.0}, "step_size must be a finite number >= 0"),
        (ilvr, {"until": 2.0}, "until must be in"),
    ],
)
def test_options_out_of_range_are_refused(function, wrong, words):
    measurement = Measurement.of(MASK, normal(1, *SHAPE), 0.0)
    with pytest.raises(ValueError, match=words):
        function(network, normal(1, *SHAPE), SCHEDULE, TAU, measurement, noise=silent, **wrong)
    with pytest.raises(ValueError, match="trust must be"):
        diffpir(network, measurement, SCHEDULE, trust=0.0)
