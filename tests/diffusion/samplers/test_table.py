"""What holds for every sampler of the table: calls, steps, types, and how a wrong option is refused."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ddim.diffusion import SAMPLERS, NoiseSchedule, Sampler, select_timesteps
from ddim.diffusion.samplers.exponential import exponential
from ddim.diffusion.samplers.generalized import sample

LINEAR = NoiseSchedule.linear()
taus = st.sets(st.integers(0, 999), min_size=1, max_size=12).map(sorted)
SOLVERS = [name for name, sampler in SAMPLERS.items() if sampler.takes("end")]
SETTINGS = [
    *[(name, {}) for name in SAMPLERS],
    *[("deis", {"order": p, "interpolates": f}) for p, f in itertools.product((1, 2, 4), ("eps", "x0", "v"))],
    *[("ipndm", {"order": p}) for p in (1, 2, 3)],
    *[("unipc", {"order": p, "variant": "bh1", "corrector": c}) for p in (1, 2) for c in (True, False)],
    *[("sde", {"order": p, "eta": 0.5}) for p in (1, 2)],
    *[("restart", {"solver": name, "restarts": 3, "restart_steps": 4}) for name in SOLVERS],
    ("restart", {"restarts": 0}),
]


def denoiser(x, t):
    return torch.tanh(0.8 * x + (t.reshape(-1, *[1] * (x.ndim - 1)) / 300).sin())


def grid(name, tau):
    # A restart needs a timestep below t_max, and jumps at once when there is nothing above it.
    return sorted({0, 999, *tau}) if name == "restart" else tau


@pytest.mark.parametrize(("name", "options"), SETTINGS)
@given(tau=taus)
@settings(deadline=None, max_examples=10)
def test_calls_are_counted_as_they_are_made(name, options, tau):
    tau, asked = grid(name, tau), []

    def counted(x, t):
        assert t.dtype == torch.long and t.shape == (2,) and len(set(t.tolist())) == 1
        asked.append(int(t[0]))
        return denoiser(x, t)

    x_T = torch.ones(2, 3, dtype=torch.float64)
    x_0 = SAMPLERS[name].function(counted, x_T, LINEAR, tau, **{**SAMPLERS[name].options, **options})
    assert len(asked) == SAMPLERS[name].calls(LINEAR, tau, **options)
    assert x_0.isfinite().all()
    # Trap 9: the last question is asked at the first timestep, and no step has no length.
    assert asked[0] == tau[-1] and asked[-1] == tau[0]


@pytest.mark.parametrize(("name", "options"), SETTINGS)
@pytest.mark.parametrize("tau", [[0], [0, 30, 70, 400, 900], select_timesteps(1000, 20, "quadratic").tolist()])
def test_traps_4_and_8_s_timesteps_are_s_steps_and_the_last_one_reaches_the_data(name, options, tau):
    states = []
    x_0 = SAMPLERS[name].run(
        denoiser, torch.ones(2, 3, dtype=torch.float64), LINEAR, tau, on_step=states.append, **options
    )
    assert [s.step for s in states] == list(range(len(states)))
    assert name == "restart" or [s.timestep for s in states] == tau[::-1]
    assert states[-1].previous_timestep == -1
    # The data is the last predicted x_0: no remaining noise, and no further call that removes it.
    torch.testing.assert_close(x_0, states[-1].x, rtol=0, atol=0)
    torch.testing.assert_close(x_0, states[-1].x_0, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("steps", [6, 20])
def test_trap_3_the_order_falls_at_the_end_whatever_the_number_of_steps(steps):
    # Elsewhere it depends on the number of steps. Here the step to the data is of order 1, and `unipc` goes down one by
    # one. x_0 predictions that are 1 at one level and 0 at the others: does the step to the first timestep see them?
    tau = select_timesteps(1000, steps).tolist()

    def reached(name, level, **options):
        states = []

        def of_one_level(x, t):
            alpha_bar = LINEAR.alpha_bar[t[0]]
            return (x - alpha_bar.sqrt() * float(t[0] == tau[level])) / (1 - alpha_bar).sqrt()

        SAMPLERS[name].run(
            of_one_level, torch.zeros(1, 1, dtype=torch.float64), LINEAR, tau, on_step=states.append, **options
        )
        before, after = states[-3].x.item(), states[-2].x.item()
        sigma, sigma_before = ((1 - LINEAR.alpha_bar[t]).sqrt().item() for t in tau[:2])
        return abs(after - sigma / sigma_before * before) > 1e-9

    assert [reached("deis", i, order=3, interpolates="x0") for i in (1, 2, 3, 4)] == [True, True, True, False]
    assert [reached("unipc", i, corrector=False) for i in (1, 2, 3, 4)] == [True, True, False, False]


def test_trap_3_unipc_keeps_its_order_on_the_way_to_a_timestep():
    states, tau = [], [300, 500, 700, 900]

    def of_one_level(x, t):
        alpha_bar = LINEAR.alpha_bar[t[0]]
        return (x - alpha_bar.sqrt() * float(t[0] == 700)) / (1 - alpha_bar).sqrt()

    x_T = torch.zeros(1, 1, dtype=torch.float64)
    SAMPLERS["unipc"].run(of_one_level, x_T, LINEAR, tau, corrector=False, end=100, on_step=states.append)
    before, after = (s.x.item() for s in states[-2:])
    sigma, sigma_before = ((1 - LINEAR.alpha_bar[t]).sqrt().item() for t in (100, 300))
    assert abs(after - sigma / sigma_before * before) > 1e-9


@pytest.mark.parametrize(("name", "options"), SETTINGS)
def test_states_have_any_shape_and_at_least_float32(name, options):
    for dtype, expected in ((torch.bfloat16, torch.float32), (torch.float32, torch.float32), (torch.float64,) * 2):
        states, given = [], set()

        def recorded(x, t, given=given):
            given.add(x.dtype)
            return denoiser(x, t)

        x_T = torch.ones(2, 1, 3, 2, dtype=dtype)
        x_0 = SAMPLERS[name].run(recorded, x_T, LINEAR, [0, 60, 400], on_step=states.append, **options)
        assert given == {dtype}
        assert x_0.shape == x_T.shape
        assert {x_0.dtype, *(t.dtype for s in states for t in (s.x, s.x_0, s.eps))} == {expected}
        assert torch.equal(x_T, torch.ones_like(x_T))


@pytest.mark.parametrize("name", SAMPLERS)
def test_own_options_are_parameters_and_their_defaults_work(name):
    sampler = SAMPLERS[name]
    assert all(sampler.takes(option) for option in sampler.options)
    assert sampler.takes("on_step")
    assert sampler.version is None


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("deis", {"order": 0}, r"^order must be an integer in \[1, 4\], got 0$"),
        ("deis", {"order": 5}, r"^order must be an integer in \[1, 4\], got 5$"),
        ("deis", {"order": 2.0}, r"^order must be an integer in \[1, 4\], got 2.0$"),
        ("deis", {"order": True}, r"^order must be an integer in \[1, 4\], got True$"),
        ("dpmpp", {"interpolates": "score"}, "^interpolates must be one of eps, x0, v, got 'score'$"),
        ("ipndm", {"order": 5}, r"^order must be an integer in \[1, 4\], got 5$"),
        ("unipc", {"order": 4}, r"^order must be an integer in \[1, 3\], got 4$"),
        ("unipc", {"variant": "bh3"}, "^variant must be one of bh1, bh2, got 'bh3'$"),
        ("unipc", {"corrector": 1}, "^corrector must be true or false, got 1$"),
        ("sde", {"order": 3}, r"^order must be an integer in \[1, 2\], got 3$"),
        ("heun", {"order": 2}, "^option 'order' is not known to this sampler; its own are none$"),
        ("deis", {"ordr": 2}, "^option 'ordr' is not known to this sampler; its own are order, interpolates$"),
        ("heun", {"end": 5}, "^end must be an integer from -1 to 2, below the timesteps, got 5$"),
        ("heun", {"end": 3}, "^end must be an integer from -1 to 2, below the timesteps, got 3$"),
        ("deis", {"end": -2}, "^end must be an integer from -1 to 2, below the timesteps, got -2$"),
        ("restart", {"solver": "euler"}, "^solver must be one of ddim, deis, dpmpp, .*, got 'euler'$"),
        ("restart", {"solver": "sde"}, "^solver must be one of ddim, deis, dpmpp, .*, got 'sde'$"),
        ("restart", {"restarts": 1.5}, "^restarts must be an integer >= 0, got 1.5$"),
    ],
)
def test_wrong_options_are_refused(name, options, message):
    with pytest.raises(ValueError, match=message):
        SAMPLERS[name].run(denoiser, torch.ones(2, 3), LINEAR, [3, 500], **options)


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"timesteps": []}, "^timesteps must be a list of at least one integer"),
        ({"timesteps": [3, 3]}, "^timesteps must increase strictly"),
        ({"timesteps": [3, 1000]}, r"^timesteps must be in \[0, 999\], got 1000"),
        ({"x_T": torch.ones(2, 3, dtype=torch.uint8)}, "^x_T must be a floating point tensor.*torch.uint8"),
        ({"denoiser": lambda x, t: x[:1]}, r"^denoiser must return shape \(2, 3\), got \(1, 3\)"),
    ],
)
def test_wrong_arguments_are_refused(name, changed, message):
    arguments = {"denoiser": denoiser, "x_T": torch.ones(2, 3), "schedule": LINEAR, "timesteps": [3, 500]}
    with pytest.raises(ValueError, match=message):
        SAMPLERS[name].run(**(arguments | changed))


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("deis", {"order": 3, "interpolates": "eps"}),
        ("dpmpp", {"order": 2, "interpolates": "x0"}),
        ("lms", {"order": 4, "interpolates": "eps"}),
    ],
)
def test_names_that_are_settings_of_the_multistep_core(name, options):
    x_T, tau = torch.linspace(-2, 2, 6, dtype=torch.float64).reshape(2, 3), [0, 30, 70, 200, 400, 900]
    assert torch.equal(
        SAMPLERS[name].run(denoiser, x_T, LINEAR, tau), exponential(denoiser, x_T, LINEAR, tau, **options)
    )
    # An option that is given goes before the name's own default.
    assert torch.equal(
        SAMPLERS[name].run(denoiser, x_T, LINEAR, tau, order=1),
        exponential(denoiser, x_T, LINEAR, tau, **(options | {"order": 1})),
    )


def doubled(denoiser, x_T, schedule, timesteps, *, times=2, on_step=None):
    for _ in timesteps:
        for _ in range(times):
            x_T = denoiser(x_T, torch.zeros(len(x_T), dtype=torch.long))
    return x_T


def test_what_a_user_registers_is_counted_and_given_what_it_takes():
    x_T = torch.ones(2, 3)
    plain = Sampler(doubled, nfe=lambda steps: 2 * steps)
    assert plain.calls(LINEAR, [0, 5, 9]) == 6
    plain.run(denoiser, x_T, LINEAR, [0, 5, 9], eta=0.0, variance="eta", noise=None)
    with pytest.raises(ValueError, match=r"^it called the denoiser 9 times where its nfe says 6$"):
        plain.run(denoiser, x_T, LINEAR, [0, 5, 9], times=3)
    own = Sampler(doubled, nfe=lambda steps, times: times * steps, options={"times": 3})
    assert own.calls(LINEAR, [0, 5]) == 6
    assert own.calls(LINEAR, [0, 5], times=1) == 2
    own.run(denoiser, x_T, LINEAR, [0, 5], times=4)
    # Whatever the first parameter is called, it is the number of timesteps.
    assert Sampler(doubled, nfe=lambda timesteps: 2 * timesteps).calls(LINEAR, [0, 5]) == 4
    everything = Sampler(
        doubled, nfe=lambda steps, **known: len(known["timesteps"]) * known["times"], options={"times": 2}
    )
    assert everything.calls(LINEAR, [0, 5]) == 4
    with pytest.raises(ValueError, match=r"^it returned shape \(1, 3\) for latents of shape \(2, 3\)$"):
        Sampler(lambda d, x, s, t: x[:1], nfe=lambda steps: 0).run(denoiser, x_T, LINEAR, [0])


def test_the_default_is_one_call_a_timestep():
    assert Sampler(sample).calls(LINEAR, [1, 2, 3]) == 3
