"""The network of a subject where likelihoods are asked of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from ddim.diffusion import Denoiser, Noise
from ddim.diffusion.likelihood.flow import FlowLikelihood, flow_likelihood
from ddim.errors import UserError
from ddim.evaluation.subject import Subject


def watched(subject: Subject, called: Callable[[int], None] = lambda images: None) -> Denoiser:
    """The network, asking before each call whether the process is to leave: one batch may take an hour.

    called: is told of how many samples each call is.
    """

    def denoiser(x: Tensor, t: Tensor) -> Tensor:
        subject.check_signals()
        called(len(x))
        return subject.denoiser(x, t)

    return denoiser


def flow_of(subject: Subject, x_0: Tensor, noise: Noise, **asked: Any) -> FlowLikelihood:
    """The likelihood of x_0 (N, ...) by the flow; noise and what is asked as in `flow_likelihood`.

    Raises UserError where the network gives no numbers or the flow cannot be followed.
    """
    try:
        return flow_likelihood(watched(subject), x_0, subject.schedule, noise, **asked)
    except ValueError as error:
        raise UserError(f"evaluation.likelihood.flow=true is not possible with this network: {error}.") from error
