"""What a network is trained to predict, at which timesteps, and how the errors are weighted.

A network predicts the noise eps, the data x_0 or the velocity v = sqrt(alpha_bar) eps - sqrt(1 - alpha_bar) x_0
(Salimans and Ho 2022). The three are one model up to a linear translation at the given x_t; `as_eps` makes each the
denoiser `(x, t) -> eps` that samplers take.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ddim.diffusion.process import eps_from_v, eps_from_x0, q_sample, v_from_eps
from ddim.diffusion.samplers.base import Denoiser
from ddim.diffusion.schedule import NoiseSchedule
from ddim.errors import UserError


@dataclass(frozen=True)
class Prediction:
    """One thing that a network can predict.

    Attributes:
        target: (x_0, noise, t, schedule) -> what it should have predicted, of x_0's shape.
        to_eps: (x_t, prediction, t, schedule) -> the noise that it means.
        eps_error: SNR (N,) -> the squared error of eps that a squared error of 1 of the prediction means.
    """

    target: Callable[[Tensor, Tensor, Tensor, NoiseSchedule], Tensor]
    to_eps: Callable[[Tensor, Tensor, Tensor, NoiseSchedule], Tensor]
    eps_error: Callable[[Tensor], Tensor]


# One line per kind. At a given x_t, x_0's error is eps' error divided by -sqrt(SNR), v's is eps' by sqrt(alpha_bar).
PREDICTIONS: dict[str, Prediction] = {
    "eps": Prediction(lambda x_0, noise, t, schedule: noise, lambda x_t, eps, t, schedule: eps, torch.ones_like),
    "x0": Prediction(lambda x_0, noise, t, schedule: x_0, eps_from_x0, lambda snr: snr),
    "v": Prediction(v_from_eps, eps_from_v, lambda snr: snr / (1 + snr)),
}


def as_eps(network: Callable[..., Tensor], predicts: str, schedule: NoiseSchedule) -> Callable[..., Tensor]:
    """(x, t) -> eps of a network that predicts `predicts`, one of PREDICTIONS, trained on `schedule`.

    The network itself where that is eps. Other arguments, such as a condition, are handed on to the network; eps is in
    x's dtype, or float32 if that is less precise.

    Raises ValueError for another prediction.
    """
    if _prediction(predicts) is PREDICTIONS["eps"]:
        return network
    to_eps = PREDICTIONS[predicts].to_eps

    def denoiser(x: Tensor, t: Tensor, *arguments: Any, **named: Any) -> Tensor:
        predicted = network(x, t, *arguments, **named)
        return to_eps(x, predicted.to(torch.promote_types(x.dtype, torch.float32)), t, schedule)

    return denoiser


def _prediction(name: str) -> Prediction:
    if name not in PREDICTIONS:
        raise ValueError(f"predicts must be one of {', '.join(PREDICTIONS)}, got {name!r}")
    return PREDICTIONS[name]


def simple(snr: Tensor) -> Tensor:
    """1: DDPM eq. 14."""
    return torch.ones_like(snr)


def snr_truncated(snr: Tensor) -> Tensor:
    """max(1, 1/SNR), that is max(SNR, 1) on the squared error of x_0 (Salimans and Ho 2022, section 4)."""
    return (1 / snr).clamp(min=1.0)


def min_snr(snr: Tensor, gamma: float = 5.0) -> Tensor:
    """min(1, gamma/SNR), that is min(SNR, gamma) on the squared error of x_0 (Hang et al. 2023); gamma > 0."""
    if not gamma > 0:
        raise ValueError(f"gamma must be > 0, got {gamma!r}")
    return (gamma / snr).clamp(max=1.0)


# (SNR, float64 (N,), **its own parameters) -> the factors on the squared error of eps (N,). One line per weighting.
WEIGHTINGS: dict[str, Callable[..., Tensor]] = {
    "simple": simple,
    "snr_truncated": snr_truncated,
    "min_snr": min_snr,
}


def check_weighting(name: str, function: Callable[..., Any]) -> None:
    """Raises `UserError` where a weighting of somebody's own gives other than one number of at least 0 per ratio."""
    ratios = torch.logspace(-6, 6, 13, dtype=torch.float64)
    weights = function(ratios)
    right = isinstance(weights, Tensor) and weights.shape == ratios.shape
    if not right or not bool((torch.isfinite(weights) & (weights >= 0)).all()):
        raise UserError(f"the weighting {name} must give a finite number of at least 0 for each ratio (N,).")


def loss_weights(
    t: Tensor, schedule: NoiseSchedule, weighting: str = "simple", predicts: str = "eps", **parameters: Any
) -> Tensor:
    """float64 (N,): the factor on the squared error of the prediction at timesteps t (N,).

    weighting: one of WEIGHTINGS, whose function says what it is on the squared error of eps, from
        SNR = alpha_bar / (1 - alpha_bar). It is the same loss whatever is predicted: "min_snr" is min(SNR, gamma) on
        x_0, min(SNR, gamma) / SNR on eps and min(SNR, gamma) / (SNR + 1) on v. Only "simple" is 1 on the error of
        whatever is predicted, as the field has it: on v that is SNR + 1 on x_0 (Salimans and Ho 2022).
    predicts: one of PREDICTIONS.
    parameters: the weighting's own, such as gamma of "min_snr".

    Raises ValueError for another weighting or prediction, a parameter that the weighting does not have or refuses, or
    factors of another shape.
    """
    if weighting not in WEIGHTINGS:
        raise ValueError(f"weighting must be one of {', '.join(WEIGHTINGS)}, got {weighting!r}")
    known = list(inspect.signature(WEIGHTINGS[weighting]).parameters)[1:]
    for name in parameters:
        if name not in known:
            raise ValueError(f"weighting {weighting} has no parameter {name}; its own are {', '.join(known) or 'none'}")
    alpha_bar = schedule.alpha_bar_at(t)
    snr = alpha_bar / (1 - alpha_bar)
    weights = WEIGHTINGS[weighting](snr, **parameters)
    if weights.shape != t.shape:
        raise ValueError(
            f"weighting {weighting} must give one factor for each timestep, shape {tuple(t.shape)}, "
            f"got {tuple(weights.shape)}"
        )
    if _prediction(predicts) is PREDICTIONS["eps"] or weighting == "simple":
        return weights.to(alpha_bar.dtype)
    return weights.to(alpha_bar.dtype) * PREDICTIONS[predicts].eps_error(snr)


def denoising_loss(
    network: Denoiser,
    x_0: Tensor,
    t: Tensor,
    noise: Tensor,
    schedule: NoiseSchedule,
    *,
    predicts: str = "eps",
    weighting: str = "simple",
    **parameters: Any,
) -> Tensor:
    """Per-sample weighted mean squared error (N,) of what the network predicts at x_t.

    x_0 and noise: floating point (N, ...); t: LongTensor (N,) in [0, T - 1]; predicts: one of PREDICTIONS; weighting,
    parameters: see `loss_weights`. The error is formed in at least float32 whatever the network returns.

    Raises ValueError for mismatched shapes, an unknown prediction or an unknown weighting.
    """
    weights = loss_weights(t, schedule, weighting, predicts, **parameters)
    x_t = q_sample(x_0, t, noise, schedule)
    predicted = network(x_t, t)
    if predicted.shape != x_t.shape:
        raise ValueError(f"denoiser must return shape {tuple(x_t.shape)}, got {tuple(predicted.shape)}")
    target = PREDICTIONS[predicts].target(x_0, noise, t, schedule)
    error = (predicted.to(x_t.dtype) - target).square().unsqueeze(-1).flatten(1).mean(dim=1)
    return weights.to(error.dtype).to(error.device) * error


def simple_loss(
    denoiser: Denoiser,
    x_0: Tensor,
    t: Tensor,
    noise: Tensor,
    schedule: NoiseSchedule,
    *,
    weighting: str = "simple",
    **parameters: Any,
) -> Tensor:
    """`denoising_loss` of a denoiser `(x, t) -> eps`: DDPM eq. 14 by default."""
    return denoising_loss(denoiser, x_0, t, noise, schedule, weighting=weighting, **parameters)


def uniform_times(count: int, schedule: NoiseSchedule) -> Tensor:
    """Every timestep alike (DDPM, algorithm 1)."""
    return torch.randint(schedule.num_timesteps, (count,))


def lognormal_times(count: int, schedule: NoiseSchedule, mean: float = -1.2, std: float = 1.2) -> Tensor:
    """ln sigma ~ N(mean, std^2) for sigma = sqrt((1 - alpha_bar) / alpha_bar) (Karras et al. 2022, table 1).

    The distribution is cut to the levels that the schedule has, so that none of its ends collects what lies beyond;
    each timestep stands for the levels nearer to it, in ln sigma, than to its neighbours.

    Raises ValueError unless std is above 0.
    """
    if not std > 0:
        raise ValueError(f"std must be > 0, got {std!r}")
    log_sigma = 0.5 * ((1 - schedule.alpha_bar) / schedule.alpha_bar).log()
    middles = (log_sigma[1:] + log_sigma[:-1]) / 2
    cumulated = torch.special.ndtr((torch.cat([log_sigma[:1], middles, log_sigma[-1:]]) - mean) / std)
    below, above = cumulated[0], cumulated[-1]
    within = below + torch.rand(count, dtype=torch.float64) * (above - below)
    return torch.searchsorted(cumulated[1:-1].contiguous(), within, right=True)


# (count, schedule, **its own parameters) -> timesteps (count,) on the CPU, from torch's global generator.
TIMES: dict[str, Callable[..., Tensor]] = {"uniform": uniform_times, "lognormal": lognormal_times}
