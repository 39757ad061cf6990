"""The integrals behind the solvers' weights, against many more digits."""

from __future__ import annotations

import math

import mpmath
import pytest

from ddim.diffusion.samplers.weights import (
    exponential_moments,
    exponential_weights,
    lagrange_weights,
    polynomial_moments,
)


def moment(m: int, z: float) -> float:
    with mpmath.workdps(60):
        z = mpmath.mpf(z)
        value = -mpmath.expm1(-z)
        for k in range(1, m + 1):
            value = 1 - k / z * value
        return float(value)


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("size", [1e-12, 1e-6, 1e-3, 0.1, 0.5, 1.0, 1.9999, 2.0001, 5.0, 30.0])
def test_trap_7_moments_keep_their_digits_at_every_length(size, sign):
    z = sign * size
    for m, found in enumerate(exponential_moments(5, z)):
        assert found == pytest.approx(moment(m, z), rel=2e-14), m


def test_moments_are_the_integrals():
    for m, found in enumerate(exponential_moments(4, 0.7)):
        exact = mpmath.quad(lambda u, m=m: 0.7 * mpmath.exp(-0.7 * (1 - u)) * u**m, [0, 1])
        assert found == pytest.approx(float(exact), rel=1e-14)


def test_trap_1_weights_of_uneven_steps_integrate_a_square():
    # Steps of 1, 2, 3: a misplaced parenthesis in a well-spread variable-step method gives 3.83 for this third.
    weights = lagrange_weights([0.0, -2.0, -5.0], polynomial_moments(3))
    assert sum(w * u**2 for w, u in zip(weights, (0, -2, -5), strict=True)) == pytest.approx(1 / 3, rel=1e-13)


def test_weights_of_equal_steps_are_those_of_adams_and_bashforth():
    nodes = [0.0, -1.0, -2.0, -3.0]
    expected = [55 / 24, -59 / 24, 37 / 24, -9 / 24]
    assert lagrange_weights(nodes, polynomial_moments(4)) == pytest.approx(expected, rel=1e-13)


@pytest.mark.parametrize("rate", [1.0, 1.3, 2.0])
@pytest.mark.parametrize("stop", [0.9, -0.4])
def test_weights_integrate_a_polynomial_through_any_times(rate, stop):
    times = [0.2, -0.1, 1.3, 0.7]
    weights = exponential_weights(times, 0.2, stop, rate)
    for degree in range(4):
        exact = mpmath.quad(lambda u, d=degree: rate * mpmath.exp(-rate * (stop - u)) * u**d, [0.2, stop])
        assert math.fsum(w * t**degree for w, t in zip(weights, times, strict=True)) == pytest.approx(
            float(exact), abs=1e-13
        )
