"""The variational bound of the discrete model, for every sub-sequence tau at once.

    -log p(x_0) <= KL(q(x_T | x_0) || N(0, 1)) + sum of KL(q(x_s | x_t, x_0) || p(x_s | x_t)) - log p(x_0 | x_t)

over the steps t to s of tau, the last of which goes to the data (DDPM eq. 5, DDIM eq. 11). Each term depends on the
x_t of one timestep alone, so one pass over the timesteps, `bound_terms`, holds what the bound of every tau is a sum of
(Watson et al. 2021).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ddim.diffusion.likelihood.quantized import check_levels, double, log_probability
from ddim.diffusion.process import q_sample
from ddim.diffusion.samplers.base import Denoiser, Noise, evaluate
from ddim.diffusion.schedule import NoiseSchedule
from ddim.diffusion.tau import explicit_timesteps

BOUND_VARIANCES = ("eta", "sigma_hat")


@dataclass(frozen=True, eq=False)
class BoundTerms:
    """What bounds are made of: float64 (N, M) on the CPU, per image and timestep, in nats per dimension.

    Attributes:
        schedule: gives the levels of noise.
        timesteps: the M timesteps, increasing.
        error: mean squared error of the x_0 that the denoiser sees in one x_t.
        decoder: -log p(x_0 | x_t), the last step when it starts at t.
        prior: KL(q(x_t | x_0) || N(0, 1)), the start when it is at t.
    """

    schedule: NoiseSchedule
    timesteps: tuple[int, ...]
    error: Tensor
    decoder: Tensor
    prior: Tensor

    @property
    def eps_error(self) -> Tensor:
        """float64 (N, M): mean squared error of eps, unless x_0 was clipped; L_simple by timestep."""
        alpha_bar = self.schedule.alpha_bar[list(self.timesteps)]
        return self.error * alpha_bar / (1 - alpha_bar)


@dataclass(frozen=True, eq=False)
class Bound:
    """The variational bound of N images along one tau, in bits per dimension.

    Attributes:
        timesteps: tau, increasing (S,).
        prior: float64 (N,).
        steps: float64 (N, S); column 0 is the decoder, column i the step from tau_i to tau_(i-1), counted from 0.
    """

    timesteps: tuple[int, ...]
    prior: Tensor
    steps: Tensor

    @property
    def total(self) -> Tensor:
        """float64 (N,): bits per dimension of each image; their spread gives the error bar of the mean."""
        return self.prior + self.steps.sum(dim=1)


def bound_terms(
    denoiser: Denoiser,
    x_0: Tensor,
    schedule: NoiseSchedule,
    timesteps: Sequence[int] | Tensor,
    noise: Noise,
    *,
    levels: int | None = 256,
    decoder_std: Sequence[float] | Tensor | None = None,
    clip_denoised: bool = False,
) -> BoundTerms:
    """The terms of x_0 (N, ...), a batch of images or of anything else, at M timesteps by M calls of the denoiser.

    noise: (t, like) -> standard normal of like's shape, one draw for each timestep: `NoiseSource.bind(indices,
        "validation")`. A timestep's noise is then the same in every tau, so that taus can be compared.
    levels: x_0 holds this many evenly spaced values from -1 to 1, and the decoder is a Gaussian of which each has its
        bin, the end bins open (DDPM eq. 13). None: x_0 is continuous, and bits are those of a density.
    decoder_std: M numbers > 0; by default sqrt(1 - alpha_bar_t), the larger DDPM variance of a step to the data
        (beta_1 at t = 0). The posterior variance of that step is 0, and gives no decoder.
    clip_denoised: clip the predicted x_0 to [-1, 1], of which the step's mean is then made.

    Raises ValueError for data without those levels, timesteps that do not increase inside [0, T - 1], or a
    decoder_std of another length or sign.
    """
    tau = explicit_timesteps(schedule.num_timesteps, timesteps).tolist()
    if levels is not None:
        check_levels(x_0, levels)
    alpha_bar = schedule.alpha_bar[tau]
    std = (1 - alpha_bar).sqrt() if decoder_std is None else torch.as_tensor(decoder_std, dtype=torch.float64)
    if tuple(std.shape) != (len(tau),) or not bool((std > 0).all()):
        raise ValueError(f"decoder_std must be {len(tau)} numbers > 0, one for each timestep, got {decoder_std!r}")
    clean = double(x_0)
    error, decoder = [], []
    for t, level, width in zip(tau, alpha_bar.tolist(), std.tolist(), strict=True):
        x_t = q_sample(x_0, torch.full((len(x_0),), t, device=x_0.device), noise(t, x_0), schedule)
        eps = double(evaluate(denoiser, x_t, t, x_0.dtype))
        predicted = (double(x_t) - math.sqrt(1 - level) * eps) / math.sqrt(level)
        predicted = predicted.clamp(-1, 1) if clip_denoised else predicted
        error.append(_mean(predicted.sub(clean).square()))
        decoder.append(-_mean(log_probability(x_0, predicted, width, levels)))
    power = _mean(clean.square()).unsqueeze(1)
    prior = 0.5 * (alpha_bar * power - alpha_bar - torch.log1p(-alpha_bar))
    return BoundTerms(schedule, tuple(tau), torch.stack(error, dim=1), torch.stack(decoder, dim=1), prior)


def join_terms(parts: Sequence[BoundTerms]) -> BoundTerms:
    """The terms of all images of all parts, in their order. Raises ValueError where timesteps or schedules differ."""
    if not parts:
        raise ValueError("parts must hold at least one batch's terms")
    first = parts[0]
    for part in parts:
        if part.timesteps != first.timesteps or part.schedule != first.schedule:
            raise ValueError("parts must have the same timesteps and schedule")
    error, decoder, prior = (torch.cat([getattr(p, name) for p in parts]) for name in ("error", "decoder", "prior"))
    return BoundTerms(first.schedule, first.timesteps, error, decoder, prior)


def variational_bound(
    terms: BoundTerms, timesteps: Sequence[int] | Tensor, eta: float = 1.0, *, variance: str = "eta"
) -> Bound:
    """The bound along tau of the model that `sample` draws from with these `timesteps`, `eta` and `variance`.

    timesteps: increasing, a subset of those of `terms`. eta: in (0, 1]; at 0 the steps have no variance and the
    bound is infinite. variance: "eta", or "sigma_hat", the larger variance around the mean of eta = 1. The last step
    has the decoder of `terms` whatever the variance.

    Raises ValueError for timesteps that are not among those of `terms`, another eta or variance.
    """
    tau = explicit_timesteps(terms.schedule.num_timesteps, timesteps).tolist()
    missing = sorted(set(tau) - set(terms.timesteps))
    if missing:
        raise ValueError(f"timesteps must be among those of terms, which lack {missing[0]}")
    columns = [terms.timesteps.index(t) for t in tau]
    alpha_bar = terms.schedule.alpha_bar[tau]
    jumps = step_divergence(terms.error[:, columns[1:]], alpha_bar[1:], alpha_bar[:-1], eta, variance)
    steps = torch.cat([terms.decoder[:, columns[:1]], jumps], dim=1)
    return Bound(tuple(tau), terms.prior[:, columns[-1]] / math.log(2), steps / math.log(2))


def step_divergence(error: Tensor, alpha_bar: Tensor, alpha_bar_prev: Tensor, eta: float, variance: str) -> Tensor:
    """KL(q(x_prev | x, x_0) || p(x_prev | x)) in nats per dimension, for float64 tensors that broadcast together.

    Both are Gaussian: q has the mean of DDIM eq. 7 and sigma(eta), p has x_0 replaced by the prediction, whose mean
    squared error is `error`, and the variance that was asked for. With eta = 1 it is
    error (SNR_prev - SNR) / 2. 0 < alpha_bar < alpha_bar_prev < 1; eta, variance and errors as in `variational_bound`.
    """
    if variance not in BOUND_VARIANCES:
        raise ValueError(f"variance must be one of {', '.join(BOUND_VARIANCES)}, got {variance!r}")
    if not 0 < eta <= 1 or (variance == "sigma_hat" and eta != 1):
        raise ValueError(f"eta must be in (0, 1], and 1 with variance='sigma_hat', got {eta!r}")
    larger = 1 - alpha_bar / alpha_bar_prev
    of_q = eta**2 * (1 - alpha_bar_prev) / (1 - alpha_bar) * larger
    # How far x_prev moves with x_0: directly, and against it through the eps that x and x_0 leave.
    direction = (1 - alpha_bar_prev - of_q).clamp(min=0).sqrt()
    weight = alpha_bar_prev.sqrt() - direction * (alpha_bar / (1 - alpha_bar)).sqrt()
    of_p = larger if variance == "sigma_hat" else of_q
    ratio = of_q / of_p
    return 0.5 * (weight.square() * error / of_p + ratio - 1 - ratio.log())


def _mean(values: Tensor) -> Tensor:
    return values.unsqueeze(-1).flatten(1).mean(dim=1).cpu()
