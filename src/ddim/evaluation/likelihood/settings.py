"""What is asked about likelihood: `evaluation.likelihood`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from ddim.diffusion.likelihood.quantized import DEQUANTIZATIONS
from ddim.errors import UserError, at_least, some_of


@dataclass
class LikelihoodConfig:
    """Bits per dimension of test images, nats of anything else: a bound for the random samplers, the flow of the
    deterministic one.

    Attributes:
        num_images: of the test split, evenly spread over it; null takes all.
        bound: whether the bound is computed, along each τ of `sampler` and along all timesteps.
        flow: whether the flow is followed.
        eta (as sampler.eta, without 0 and sigma_hat_official): which of DDIM's family the bound is of.
        dequantization (truncated_normal, uniform; or a list): of the flow, for images; other data have no levels.
        tolerance: of the flow's solver, relative and absolute.
    """

    num_images: int | None = 100
    bound: bool = True
    flow: bool = True
    eta: Any = field(default_factory=lambda: [1.0, "sigma_hat"])
    dequantization: Any = "truncated_normal"
    tolerance: float = 1e-4

    def check(self, key: str) -> None:
        if self.num_images is not None:
            at_least(f"{key}.num_images", self.num_images, 1)
        if not self.bound and not self.flow:
            raise UserError(f"{key}.bound=false with {key}.flow=false leaves nothing to compute; take one of them.")
        self.dequantization = some_of(f"{key}.dequantization", self.dequantization, DEQUANTIZATIONS)
        if not 0 < self.tolerance < 1:
            raise UserError(f"{key}.tolerance={self.tolerance} must be a number between 0 and 1, for example 1e-4.")
