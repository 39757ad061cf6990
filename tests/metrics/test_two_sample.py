"""Energy distance, sliced Wasserstein and the classifier test against what is known of Gaussians."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.stats import wasserstein_distance

from ddim.metrics import VALUE_METRICS, Features, ReferenceStatistics, compute_metrics, measure_metrics
from ddim.metrics.blocks import block_of
from ddim.metrics.two_sample import (
    classifier_two_sample,
    energy_distance,
    energy_jackknife,
    mean_distance_within,
    sliced_jackknife,
    sliced_wasserstein,
)


def normal(count: int, dim: int, seed: int, mean: float = 0.0, scale: float = 1.0) -> torch.Tensor:
    return mean + scale * torch.from_numpy(np.random.default_rng(seed).standard_normal((count, dim)))


def reference_of(features: torch.Tensor, **more) -> ReferenceStatistics:
    dim = features.shape[1]
    return ReferenceStatistics(np.zeros(dim), np.eye(dim), len(features), features.float(), {}, "x", **more)


def quadruple_loop(x: torch.Tensor, y: torch.Tensor) -> float:
    """The definition, over all pairs of different samples."""
    between = np.mean([(a - b).norm().item() for a in x for b in y])
    inside = [
        np.mean([(a - b).norm().item() for i, a in enumerate(z) for j, b in enumerate(z) if i != j]) for z in (x, y)
    ]
    return 2 * between - sum(inside)


def test_energy_distance_is_its_definition():
    x, y = normal(13, 3, 0), normal(17, 3, 1, 0.5)
    assert energy_distance(x, y, mean_distance_within(y)) == pytest.approx(quadruple_loop(x, y), rel=1e-9)


def test_energy_distance_of_gaussians_on_the_line():
    """E|N(m, s^2)| in closed form: folded normal distributions."""

    def folded(mean: float, sd: float) -> float:
        return sd * math.sqrt(2 / math.pi) * math.exp(-(mean**2) / (2 * sd**2)) + mean * math.erf(
            mean / (sd * math.sqrt(2))
        )

    exact = 2 * folded(0.7, math.sqrt(1 + 0.25)) - folded(0, math.sqrt(2)) - folded(0, math.sqrt(0.5))
    x, y = normal(6000, 1, 0), normal(6000, 1, 1, 0.7, 0.5)
    assert energy_distance(x, y, mean_distance_within(y)) == pytest.approx(exact, abs=0.03)


def test_energy_distance_is_unbiased_at_zero():
    values = [
        energy_distance(normal(20, 2, seed), other, mean_distance_within(other))
        for seed in range(200)
        for other in [normal(25, 2, 1000 + seed)]
    ]
    assert abs(np.mean(values)) < 3 * np.std(values) / math.sqrt(len(values))
    assert min(values) < 0, "a biased one would never be negative"


def test_leaving_a_block_out_is_measuring_the_others():
    x, y = normal(43, 2, 0), normal(30, 2, 1, 0.3)
    within = mean_distance_within(y)
    found = energy_jackknife(x, y, within)
    assert found.value == energy_distance(x, y, within)
    belongs = torch.from_numpy(block_of(np.arange(43)))
    for block, value in enumerate(found.leave_one_out):
        assert value == pytest.approx(energy_distance(x[belongs != block], y, within), rel=1e-9)
    sliced = sliced_jackknife(x, y)
    assert sliced.leave_one_out[3] == pytest.approx(sliced_wasserstein(x[belongs != 3], y), rel=1e-12)


@pytest.mark.parametrize("dim", [1, 2, 5])
def test_sliced_wasserstein_of_a_shift_and_a_scale(dim):
    x = normal(2000, dim, 0)
    assert sliced_wasserstein(x, x) == 0
    shifted = sliced_wasserstein(x, x + 2.0)
    assert shifted == pytest.approx(2.0, rel=0.15 if dim > 1 else 1e-9), "(|m|^2 / D)^(1/2), over directions drawn once"
    assert sliced_wasserstein(x, 3 * x) == pytest.approx(2.0, rel=0.05)


def test_sliced_wasserstein_of_sets_of_any_sizes():
    """Twice every sample is the same distribution; on the line the first power is scipy's."""
    x, y = normal(12, 2, 0), normal(7, 2, 1)
    assert sliced_wasserstein(x, y) == pytest.approx(sliced_wasserstein(x.repeat(2, 1), y.repeat(3, 1)), rel=1e-12)
    apart = sliced_wasserstein(torch.zeros(3, 1), torch.tensor([[1.0], [1.0]]))
    assert apart == pytest.approx(wasserstein_distance([0, 0, 0], [1, 1])) == 1


def test_the_classifier_says_half_of_alike_and_one_of_apart():
    x, y = normal(600, 2, 0), normal(900, 2, 1)
    assert classifier_two_sample(x, y) == pytest.approx(0.5, abs=0.05)
    assert classifier_two_sample(x, y + 8) == 1
    # The best that anybody can do is Phi(|m| / 2).
    best = 0.5 * (1 + math.erf(1 / math.sqrt(2)))
    assert classifier_two_sample(x, y + math.sqrt(2)) == pytest.approx(best, abs=0.04)
    assert classifier_two_sample(x, y) == classifier_two_sample(x, y)


def test_the_columns_and_their_deviations():
    x, y = normal(60, 2, 0).float(), normal(80, 2, 1).float()
    reference = reference_of(y, log_density=lambda features: -features.double().square().sum(dim=1))
    found = measure_metrics(Features(x), reference, VALUE_METRICS)
    assert found.values["log_density"] == pytest.approx(-x.double().square().sum(dim=1).mean().item())
    assert set(found.values) == {
        *("energy_distance", "energy_distance_sd", "sliced_wasserstein", "sliced_wasserstein_sd"),
        *("c2st", "log_density", "log_density_sd"),
    }
    # Of a mean the jackknife gives the ordinary standard error, but for what blocks are to samples.
    ordinary = x.double().square().sum(dim=1).std().item() / math.sqrt(60)
    assert found.values["log_density_sd"] == pytest.approx(ordinary, rel=0.6)
    plain = compute_metrics(Features(x), reference, VALUE_METRICS)
    assert plain == {name: found.values[name] for name in plain} and "c2st" in plain
    assert "log_density" not in compute_metrics(Features(x), reference_of(y), VALUE_METRICS)
    assert compute_metrics(Features(x[:1]), reference, ["energy_distance"]) == {}
