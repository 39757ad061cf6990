"""Methods that go down in the coordinates of the operator's singular vectors: DDRM, DDNM and DDNM+.

Their share of fresh noise is not the eta of DDIM. It is a share of all the noise at the level that is stepped to,
whatever the length of the step, so that with more and more steps ever more noise is exchanged; see docs/restoration.md.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from ddim.diffusion.restoration.measurement import Measurement
from ddim.diffusion.restoration.operators.base import divided
from ddim.diffusion.samplers.base import Denoiser, Noise, initial_state
from ddim.diffusion.samplers.levels import downwards, predict
from ddim.diffusion.samplers.options import check_number
from ddim.diffusion.schedule import NoiseSchedule


def ddrm(
    denoiser: Denoiser,
    x_T: Tensor,
    schedule: NoiseSchedule,
    timesteps: Sequence[int] | Tensor,
    measurement: Measurement,
    *,
    noise: Noise,
    noise_share: float = 0.85,
    measured_share: float = 1.0,
) -> Tensor:
    """x_0 (N, ...) by denoising diffusion restoration (Kawar et al. 2022, eq. 7 and 8).

    With X = x_t / sqrt(alpha_bar) at the level sigma = sqrt(1/alpha_bar - 1), and all in the spectrum, a component of
    singular value s goes to the next level sigma' by

        s = 0:                 X' = X_0 + sqrt(1 - share^2) sigma' eps + share sigma' z
        sigma' <  sigma_y / s: X' = X_0 + sqrt(1 - share^2) sigma' (Y - X_0) s / sigma_y + share sigma' z
        sigma' >= sigma_y / s: X' = (1 - b) X_0 + b Y + sqrt(sigma'^2 - b^2 sigma_y^2 / s^2) z

    where Y = U^T y / s. It starts at Y + sqrt(sigma_T^2 - sigma_y^2/s^2) z where that is a number, else at sigma_T z,
    with z of x_T. A component of s = 0 has nothing of y, also where there is noise: in the official code those whose
    singular value was set to 0 take the second line, which hands them the noise of y.

    noise: as in `sample`, z of each step, in the space of x. noise_share: `share`, the paper's eta.
    measured_share: `b`, the paper's eta_b.

    Raises ValueError for a share outside [0, 1].
    """
    check_number("noise_share", noise_share, 0.0, 1.0)
    check_number("measured_share", measured_share, 0.0, 1.0)
    operator, path = measurement.operator, downwards(schedule, timesteps)
    x = initial_state("x_T", x_T)
    values, target, levels = _known(measurement, x)
    seen = values > 0
    first, z = path[0].ratio, operator.to_spectrum(x)
    spread = (first**2 - levels.square()).clamp(min=0).sqrt()
    bar = torch.where(seen & (levels < first), target + spread * z, first * z)
    for number, (here, there) in enumerate(pairwise(path)):
        x_0 = predict(denoiser, here.signal * operator.from_spectrum(bar), here, x_T.dtype).x_0
        clean = operator.to_spectrum(x_0)
        z = torch.zeros_like(bar) if there.is_clean else operator.to_spectrum(noise(number, x).to(x))
        kept, fresh = math.sqrt(1 - noise_share**2) * there.ratio, noise_share * there.ratio * z
        unseen = clean + kept * (bar - clean) / here.ratio + fresh
        below = clean + kept * divided(target - clean, levels) + fresh
        left = (there.ratio**2 - (measured_share * levels).square()).clamp(min=0).sqrt()
        above = torch.lerp(clean, target, measured_share) + left * z
        bar = torch.where(seen, torch.where(levels > there.ratio, below, above), unseen)
    return operator.from_spectrum(bar)


def ddnm(
    denoiser: Denoiser,
    x_T: Tensor,
    schedule: NoiseSchedule,
    timesteps: Sequence[int] | Tensor,
    measurement: Measurement,
    *,
    noise: Noise,
    noise_share: float = 0.85,
) -> Tensor:
    """x_0 (N, ...) by the denoising diffusion null-space model (Wang et al. 2023, eq. 13), for sigma_y = 0.

    Each predicted x_0 is projected to x_0' = x_0 + A^+ (y - A x_0); then x' = sqrt(alpha_bar') x_0' +
    sqrt(1 - alpha_bar') (sqrt(1 - share^2) eps + share z) with eps as it was predicted, not read again from x_0'.
    (With eps read again it is another algorithm: `diffpir` without noise.)

    noise, noise_share: as in `ddrm`; the paper's eta.

    Raises ValueError for a measurement with noise, and a share outside [0, 1].
    """
    if measurement.sigma > 0:
        raise ValueError("ddnm is for measurements without noise; with noise take ddnm_plus")
    return _null_space(denoiser, x_T, schedule, timesteps, measurement, noise, noise_share)


def ddnm_plus(
    denoiser: Denoiser,
    x_T: Tensor,
    schedule: NoiseSchedule,
    timesteps: Sequence[int] | Tensor,
    measurement: Measurement,
    *,
    noise: Noise,
    noise_share: float = 0.85,
) -> Tensor:
    """DDNM for measurements with noise (Wang et al. 2023, section 3.3), for each singular value on its own.

    The correction of a component is scaled by l = min(1, sigma' s / sigma_y), with sigma' = sqrt(1/alpha_bar' - 1), and
    its noise is z of variance (1 - alpha_bar') - alpha_bar' l^2 sigma_y^2 / s^2, so that both together are as much as
    the level has. Components of s = 0 go as in `ddnm`; without noise it is `ddnm`.

    noise, noise_share: as in `ddrm`.
    """
    return _null_space(denoiser, x_T, schedule, timesteps, measurement, noise, noise_share)


def _null_space(
    denoiser: Denoiser,
    x_T: Tensor,
    schedule: NoiseSchedule,
    timesteps: Sequence[int] | Tensor,
    measurement: Measurement,
    noise: Noise,
    noise_share: float,
) -> Tensor:
    check_number("noise_share", noise_share, 0.0, 1.0)
    operator, path = measurement.operator, downwards(schedule, timesteps)
    x = initial_state("x_T", x_T)
    values, _, levels = _known(measurement, x)
    for number, (here, there) in enumerate(pairwise(path)):
        prediction = predict(denoiser, x, here, x_T.dtype)
        # 1 where there is no noise, also at the last step.
        weights = torch.where(levels > 0, there.ratio / levels.clamp(min=1e-30), torch.ones_like(levels)).clamp(max=1)
        x_0 = measurement.projected(prediction.x_0, weights)
        if there.is_clean:
            return x_0
        z = noise(number, x).to(x)
        added = there.sigma * (math.sqrt(1 - noise_share**2) * prediction.eps + noise_share * z)
        if measurement.sigma > 0:
            brought = torch.where(values > 0, there.signal * weights * levels, torch.zeros_like(levels))
            left = (there.sigma**2 - brought.square()).clamp(min=0).sqrt()
            mixed = torch.where(values > 0, left * operator.to_spectrum(z), operator.to_spectrum(added))
            added = operator.from_spectrum(mixed)
        x = there.signal * x_0 + added
    return x


def _known(measurement: Measurement, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Singular values (n,), U^T y / s (N, n), and the level of its noise sigma_y / s (n,), infinite where s is 0."""
    operator = measurement.operator
    values = operator.values_like(x)
    target = divided(operator.measured_spectrum(measurement.y.to(x)), values)
    levels = torch.where(values > 0, divided(torch.full_like(values, measurement.sigma), values), math.inf)
    return values, target, levels
