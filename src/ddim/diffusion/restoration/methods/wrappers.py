"""Methods that make another denoiser `(x, t) -> eps` of a denoiser and a measurement, so that any sampler runs them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ddim.diffusion.process import eps_from_x0, predict_x0
from ddim.diffusion.restoration.measurement import Measurement
from ddim.diffusion.samplers.base import Denoiser
from ddim.diffusion.samplers.options import check_number
from ddim.diffusion.schedule import NoiseSchedule


def diffpir(denoiser: Denoiser, measurement: Measurement, schedule: NoiseSchedule, *, trust: float = 7.0) -> Denoiser:
    """Plug and play (Zhu et al. 2023): x_0 is replaced by argmin |y - A x|^2 + rho |x - x_0|^2, eps read again from it.

    rho = trust sigma_y^2 / sigma^2 with sigma^2 = 1/alpha_bar - 1; `trust` is the paper's lambda, how much of the
    network's answer is kept. In the spectrum the minimum is (s U^T y + rho X_0) / (s^2 + rho). Without noise rho is 0
    and x_0 is projected to what explains y: DDNM with its eps read again.

    The paper mixes its zeta of fresh noise into each step; here the sampler does, with its own eta.

    Raises ValueError for trust <= 0.
    """
    check_number("trust", trust, 1e-12)
    operator = measurement.operator

    def eps(x: Tensor, t: Tensor) -> Tensor:
        x_0 = predict_x0(x, denoiser(x, t), t, schedule)
        values, spectrum = operator.values_like(x_0), operator.to_spectrum(x_0)
        ratio = _snr(t, schedule, x_0)
        rho = trust * measurement.sigma**2 * ratio
        seen = values > 0
        pulled = values * operator.measured_spectrum(measurement.y.to(x_0)) + rho * spectrum
        solved = pulled / torch.where(seen, values.square() + rho, torch.ones_like(rho))
        restored = operator.from_spectrum(torch.where(seen, solved, spectrum))
        return eps_from_x0(x, restored, t, schedule)

    return eps


def pigdm(denoiser: Denoiser, measurement: Measurement, schedule: NoiseSchedule) -> Denoiser:
    """Pseudo-inverse guidance (Song et al. 2023): eps' = eps - sqrt(1 - alpha_bar) g, g the gradient of log p(y | x_t)

        g = (d x_0 / d x_t)^T A^T (r^2 A A^T + sigma_y^2 I)^-1 (y - A x_0),  r^2 = 1 - alpha_bar,

    as if x_0 given x_t were normal around its prediction with variance r^2: right for data N(mu, I), whatever mu. One
    backward pass through the network goes with each call. In the spectrum the inverse is s / (r^2 s^2 + sigma_y^2).

    This is what the formula says, as a score.
    """
    operator = measurement.operator

    def eps(x: Tensor, t: Tensor) -> Tensor:
        def pulled(x_0: Tensor) -> Tensor:
            values = operator.values_like(x_0)
            spectrum = operator.measured_spectrum(measurement.y.to(x_0)) - values * operator.to_spectrum(x_0)
            variance = 1 / (1 + _snr(t, schedule, x_0))  # 1 - alpha_bar
            divisor = variance * values.square() + measurement.sigma**2
            seen = values > 0
            return operator.from_spectrum(
                torch.where(seen, values * spectrum / torch.where(seen, divisor, 1.0), torch.zeros_like(spectrum))
            )

        predicted, _, gradient = with_gradient(
            denoiser, x, t, schedule, lambda x_0: (x_0 * pulled(x_0.detach())).flatten(1).sum(dim=1)
        )
        sigma = (1 / (1 + _snr(t, schedule, gradient))).sqrt()
        return predicted - sigma.reshape(-1, *[1] * (x.ndim - 1)) * gradient

    return eps


def with_gradient(
    denoiser: Denoiser, x: Tensor, t: Tensor, schedule: NoiseSchedule, of: Callable[[Tensor], Tensor]
) -> tuple[Tensor, Tensor, Tensor]:
    """eps, x_0, and the gradient by x of `of(x_0)` (N,), each sample's its own: all (N, ...), in at least float32.

    Gradients are recorded in here alone, also under `torch.no_grad` or `torch.inference_mode`.
    """
    with torch.inference_mode(False), torch.enable_grad():
        # Copies made here are ordinary tensors, even if x and t are of inference mode.
        x, t = x.clone().requires_grad_(), t.clone()
        eps = denoiser(x, t)
        x_0 = predict_x0(x, eps, t, schedule)
        (gradient,) = torch.autograd.grad(of(x_0).sum(), x)
    return eps.detach().to(x_0.dtype), x_0.detach(), gradient.to(x_0.dtype)


def _snr(t: Tensor, schedule: NoiseSchedule, like: Tensor) -> Tensor:
    """alpha_bar / (1 - alpha_bar), (N, 1), in like's dtype and on its device."""
    level = schedule.alpha_bar_at(t).reshape(-1, 1)
    return (level / (1 - level)).to(like)
