"""Weights of predictions in an exponential integrator: Lagrange polynomials integrated exactly, in Python floats.

A step of length h adds the integral of r exp(-r (h - u)) p(u) over [0, h], where p goes through the predictions. With
u = h tau the integral of tau^m is the moment m of z = r h, and the weight of a prediction is the sum of its Lagrange
polynomial's coefficients times these moments. Nothing is approximated.
"""

from __future__ import annotations

import math
from collections.abc import Sequence


def exponential_moments(count: int, z: float) -> list[float]:
    """The integrals of z exp(-z (1 - tau)) tau^m over [0, 1] for m < count; z != 0, negative when noise is added.

    They are m! z phi_(m+1)(-z) of the phi functions of exponential integrators. Each is 1 - (m / z) times the one
    before, which cancels for small |z|; there they are summed as a series.
    """
    moments = [-math.expm1(-z)]
    for m in range(1, count):
        moments.append(1 - m / z * moments[-1] if abs(z) > 2 else _series(m, z))
    return moments


def polynomial_moments(count: int) -> list[float]:
    """The integrals of tau^m over [0, 1] for m < count."""
    return [1 / (m + 1) for m in range(count)]


def exponential_weights(times: Sequence[float], start: float, stop: float, rate: float = 1.0) -> list[float]:
    """The weight of the value at each of the distinct times in the integral of rate exp(-rate (stop - u)) p(u) du.

    It runs from start to stop, another time, with p the polynomial through the values.
    """
    h = stop - start
    return lagrange_weights([(time - start) / h for time in times], exponential_moments(len(times), rate * h))


def lagrange_weights(nodes: Sequence[float], moments: Sequence[float]) -> list[float]:
    """The weight of the value at each node, a place in units of the step, for distinct nodes and as many moments."""
    weights = []
    for j, node in enumerate(nodes):
        coefficients = [1.0]
        for k, other in enumerate(nodes):
            if k != j:
                shifted, scaled = [0.0, *coefficients], [other * c for c in coefficients] + [0.0]
                coefficients = [(a - b) / (node - other) for a, b in zip(shifted, scaled, strict=True)]
        weights.append(math.fsum(c * m for c, m in zip(coefficients, moments, strict=True)))
    return weights


def _series(m: int, z: float) -> float:
    # sum_k (-1)^k z^(k+1) m! / (m+k+1)!, whose terms fall at least as fast as 2^k / k!.
    term, terms = z / (m + 1), []
    for k in range(40):
        terms.append(term)
        term *= -z / (m + k + 2)
    return math.fsum(terms)
