"""The likelihood of the deterministic sampler: its ordinary differential equation carries densities (Song et al. 2021,
"Score-based generative modeling through stochastic differential equations", section 4.3).

In lambda = log(sqrt(alpha_bar) / sqrt(1 - alpha_bar)), DDIM's equation is

    dx / dlambda = (1 - alpha_bar) x - sqrt(1 - alpha_bar) eps(x, lambda),     alpha_bar = 1 / (1 + exp(-2 lambda)),

in which x and its derivative stay near 1 at all levels of noise, as they do in no other common variable. Along a
solution d log p / dlambda = -(trace of the right side's Jacobian).

The denoiser knows integer timesteps, the solver asks for any lambda. Two answers are offered for a lambda between those
of two timesteps. "interpolated" mixes their eps linearly in lambda: continuous, right at each timestep, possible with
every denoiser, for two calls. (The nearer one alone would jump a thousand times, and the solver would shrink its step
at each.) "fractional" passes the interpolated t as a float (N,): one call, for networks that embed t smoothly, such as
`UNet`; what they return there was never trained. Either is a flow of its own whose likelihood is exact: the two differ
by what they are, not by an error.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ddim.diffusion.likelihood.quantized import dequantize
from ddim.diffusion.samplers.base import Denoiser, Noise, initial_state
from ddim.diffusion.schedule import NoiseSchedule
from ddim.diffusion.tau import half_log_snr

BETWEEN = ("interpolated", "fractional")
DIVERGENCES = ("hutchinson", "exact")


@dataclass(frozen=True, eq=False)
class FlowLikelihood:
    """What `flow_likelihood` found.

    Attributes:
        bits: float64 (N,), bits per dimension of each image.
        calls: how often the network ran on each image, backward passes not counted.
        x_T: float64 of x_0's shape, where the flow took the data.
    """

    bits: Tensor
    calls: int
    x_T: Tensor


def flow_likelihood(
    denoiser: Denoiser,
    x_0: Tensor,
    schedule: NoiseSchedule,
    noise: Noise,
    *,
    levels: int | None = 256,
    dequantization: str = "uniform",
    divergence: str = "hutchinson",
    between: str = "interpolated",
    tolerance: float = 1e-4,
) -> FlowLikelihood:
    """Bits per dimension of x_0 (N, ...) under the flow from N(0, 1) at timestep T - 1 to timestep 0.

    The model that is measured ends at timestep 0, with its noise of sqrt(1 - alpha_bar_0); the last step of `sample`,
    to the data, is not part of it.

    noise: (step, like) -> standard normal of like's shape, which must not change between calls with the same step:
        `NoiseSource.bind(indices, "validation")`. Step 0 makes the dequantisation, the signs of step 1 the probe.
    levels, dequantization: x_0 holds `levels` evenly spaced values from -1 to 1, and the result bounds the bits of
        those values from above, on average; see `dequantize`. The bound is tight for smooth densities. levels=None:
        x_0 is continuous, bits are those of its density and may be negative.
    divergence: "hutchinson" estimates the trace by one Rademacher vector for each image, held fixed along the way:
        unbiased for the log likelihood, not per image without spread. "exact" takes one backward pass for each
        element of x, for small data.
    between: "interpolated" or "fractional" eps, see the module.
    tolerance: relative and absolute, of adaptive Runge-Kutta 4(5) (Dormand and Prince) over the whole batch; steps are
        chosen for all images together, so that an image's bits depend on its batch within the tolerance. Below 1e-4
        the solver follows float32 rounding and the kinks at timesteps, for several times the calls.

    Gradients are recorded in here alone, also under `torch.no_grad` or `torch.inference_mode`.

    Raises ValueError for an unknown name, data that `dequantize` refuses, a schedule of one timestep, a denoiser that
    returns no finite numbers, or when the solver finds no step that is small enough.
    """
    if divergence not in DIVERGENCES:
        raise ValueError(f"divergence must be one of {', '.join(DIVERGENCES)}, got {divergence!r}")
    if not tolerance > 0:
        raise ValueError(f"tolerance must be > 0, got {tolerance!r}")
    initial_state("x_0", x_0)
    eps_at = eps_between(denoiser, schedule, between)
    state, log_q = dequantize(x_0, noise(0, x_0), schedule, dequantization, levels)
    probe = torch.where(noise(1, x_0) < 0, -1.0, 1.0).to(x_0.dtype) if divergence == "hutchinson" else None
    x_T, change, evaluations = _flow(eps_at, state, x_0, schedule, probe, tolerance)
    size = math.prod(x_0.shape[1:])
    log_normal = -0.5 * x_T.reshape(len(x_0), -1).square().sum(dim=1) - 0.5 * size * math.log(2 * math.pi)
    bits = -(log_normal + change - log_q.cpu()) / (size * math.log(2))
    return FlowLikelihood(bits, evaluations * (2 if between == "interpolated" else 1), x_T)


def _flow(
    eps_at: Callable[[Tensor, float], Tensor],
    state: Tensor,
    like: Tensor,
    schedule: NoiseSchedule,
    probe: Tensor | None,
    tolerance: float,
) -> tuple[Tensor, Tensor, int]:
    """From `state` at timestep 0: x at T - 1, log p(state) - log p(x at T - 1) (N,), and how often eps was asked for.

    The network is given x in dtype and on device of `like`; the state is float64 on the CPU, where the solver is.
    """
    # Imported here, because this room loads torch alone and nothing else in it integrates.
    from scipy.integrate import solve_ivp

    count, size = len(state), math.prod(state.shape[1:])

    def slope(level: float, flat: Any) -> Any:
        x = torch.as_tensor(flat)[: count * size].reshape(state.shape)
        variance = 1 / (1 + math.exp(2 * level))
        eps, trace = _eps_and_trace(eps_at, x.to(like.device, like.dtype), level, probe)
        velocity = variance * x - math.sqrt(variance) * eps
        change = torch.cat([velocity.flatten(), variance * size - math.sqrt(variance) * trace])
        if not bool(change.isfinite().all()):
            # The solver would look for a step that is small enough for ever.
            raise ValueError(f"denoiser must return finite numbers, and did not at lambda={level:.3f}")
        return change.numpy()

    ends = half_log_snr(schedule.alpha_bar[[0, -1]]).tolist()
    start = torch.cat([state.cpu().flatten(), torch.zeros(count, dtype=torch.float64)]).numpy()
    solution = solve_ivp(slope, ends, start, method="RK45", rtol=tolerance, atol=tolerance)
    if not solution.success:
        raise ValueError(f"the flow could not be followed with tolerance={tolerance:g}: {solution.message}")
    end = torch.as_tensor(solution.y[:, -1].copy())
    return end[: count * size].reshape(state.shape), end[count * size :], solution.nfev


def eps_between(denoiser: Denoiser, schedule: NoiseSchedule, between: str) -> Callable[[Tensor, float], Tensor]:
    """(x, lambda) -> eps of x's shape, for lambda between those of timesteps 0 and T - 1; `between` as the module says.

    Raises ValueError for another `between`, or a schedule of one timestep.
    """
    if between not in BETWEEN:
        raise ValueError(f"between must be one of {', '.join(BETWEEN)}, got {between!r}")
    if schedule.num_timesteps < 2:
        raise ValueError("schedule must have at least 2 timesteps for a flow between them")
    rising = -half_log_snr(schedule.alpha_bar)

    def eps_at(x: Tensor, level: float) -> Tensor:
        above = int(torch.searchsorted(rising, -level).clamp(1, len(rising) - 1))
        near, far = float(rising[above - 1]), float(rising[above])
        weight = min(max((-level - near) / (far - near), 0.0), 1.0)
        if between == "fractional":
            return denoiser(x, torch.full((len(x),), above - 1 + weight, dtype=torch.float32, device=x.device))
        t = torch.tensor([above - 1, above], device=x.device).repeat_interleave(len(x))
        lower, upper = denoiser(torch.cat([x, x]), t).chunk(2)
        return torch.lerp(lower, upper, weight)

    return eps_at


def _eps_and_trace(
    eps_at: Callable[[Tensor, float], Tensor], x: Tensor, level: float, probe: Tensor | None
) -> tuple[Tensor, Tensor]:
    """eps of x's shape and the trace of its Jacobian (N,), float64 on the CPU; exact without a probe."""
    with torch.inference_mode(False), torch.enable_grad():
        # A copy made here is an ordinary tensor, even if x is one of inference mode.
        x = x.clone().requires_grad_()
        eps = eps_at(x, level)
        if eps.shape != x.shape:
            raise ValueError(f"denoiser must return shape {tuple(x.shape)}, got {tuple(eps.shape)}")
        if probe is not None:
            directions = probe.clone().unsqueeze(0)
        else:
            size = math.prod(x.shape[1:])
            directions = torch.eye(size, device=x.device, dtype=x.dtype).reshape(size, 1, *x.shape[1:])
        trace = torch.zeros(len(x), dtype=torch.float64)
        for number, direction in enumerate(directions):
            vector = direction.expand_as(x).to(eps.dtype)
            last = number == len(directions) - 1
            (row,) = torch.autograd.grad(eps, x, vector, retain_graph=not last)
            trace += (row * direction).reshape(len(x), -1).double().sum(dim=1).cpu()
    return eps.detach().double().cpu(), trace
