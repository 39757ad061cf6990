"""What is known of images: y = A x_0 + noise, in the space the network works in."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from torch import Tensor

from ddim.diffusion.restoration.operators.base import Operator, divided


@dataclass(frozen=True)
class Measurement:
    """y (N, m) of N samples, y = A x_0 + sigma n with n standard normal and x_0 in [-1, 1].

    Attributes:
        sigma: of the noise in the model's space: twice what it is on [0, 1], see `model_sigma`.
    """

    operator: Operator
    y: Tensor
    sigma: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.sigma < math.inf:
            raise ValueError(f"sigma must be a finite number >= 0, got {self.sigma!r}")
        if self.y.ndim != 2 or self.y.shape[1] != self.operator.measured:
            raise ValueError(f"y must have shape (N, {self.operator.measured}), got {tuple(self.y.shape)}")

    @classmethod
    def of(cls, operator: Operator, x_0: Tensor, sigma: float, noise: Tensor | None = None) -> Measurement:
        """Of images x_0 (N, *shape) in model space; noise: standard normal (N, m), needed where sigma > 0.

        The measurement stays a float: it is neither rounded to pixel values nor clipped.
        """
        y = operator.A(x_0)
        if sigma > 0:
            if noise is None:
                raise ValueError(f"a measurement with sigma={sigma} needs noise")
            y = y + sigma * noise.to(y)
        return cls(operator, y, sigma)

    def __len__(self) -> int:
        return len(self.y)

    def of_samples(self, places: Tensor) -> Measurement:
        """That of the samples at these places (K,), of which one may come several times."""
        return replace(self, y=self.y[places.to(self.y.device)])

    def to(self, like: Tensor) -> Measurement:
        """In the dtype and on the device of `like`."""
        return replace(self, y=self.y.to(like))

    def projected(self, x_0: Tensor, weights: Tensor | float = 1.0) -> Tensor:
        """x_0 + V weights V^T A^+ (y - A x_0): with weights 1 the nearest x that explains y, the projection of x_0.

        weights: of the components of the spectrum, (n,) or a number.
        """
        operator = self.operator
        values = operator.values_like(x_0)
        gap = divided(operator.measured_spectrum(self.y.to(x_0)), values) - operator.to_spectrum(x_0)
        return x_0 + operator.from_spectrum((values > 0) * weights * gap)

    def error(self, x_0: Tensor) -> Tensor:
        """A x_0 - y, (N, m)."""
        return self.operator.A(x_0) - self.y.to(x_0)


def model_sigma(sigma_y: float) -> float:
    """Noise that is stated on [0, 1] as it is on [-1, 1], which is twice as wide. ValueError unless 0 <= it < inf."""
    if isinstance(sigma_y, bool) or not isinstance(sigma_y, (int, float)) or not 0 <= sigma_y < math.inf:
        raise ValueError(f"sigma_y must be a finite number >= 0, stated on [0, 1], got {sigma_y!r}")
    return 2.0 * sigma_y
