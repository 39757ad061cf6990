"""Distances whose value is known, through the whole path: uint8 images, features, statistics, metric.

Pixels are features that are linear in the images, so moments of the images are moments of the features.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import hadamard
from scipy.stats import ortho_group

from ddim.metrics import (
    RunningMoments,
    build_extractor,
    compute,
    compute_metrics,
    extract_features,
    frechet_distance,
    reference_statistics,
)

SIDE = 4
DIM = SIDE * SIDE


@pytest.fixture
def measure(tmp_path):
    """(generated, reference) images -> metrics on `features`."""

    def compute_both(generated, real, metrics, features="pixels"):
        extractor = build_extractor(
            features, channels=real.shape[1], resolution=real.shape[-1], weights_dir=tmp_path / "none"
        )
        key = {"count": len(real), "sum": int(real.long().sum()), "first": real[0].tolist()}
        statistics = reference_statistics(extractor, lambda: real.split(50), key, tmp_path)
        return compute_metrics(extract_features(extractor, generated.split(7)), statistics, metrics)

    return compute_both


def images_with_moments(mean, factor, repeats=1):
    """uint8 (N, 1, 4, 4) whose pixels have exactly this mean and the population covariance factor @ factor.T.

    mean: integers (16,); factor: integers (16, 31). The columns of a Hadamard matrix but the first have mean zero,
    variance one and no correlation.
    """
    signs = np.tile(hadamard(32)[:, 1:], (repeats, 1))
    pixels = np.asarray(mean) + signs @ np.asarray(factor).T
    assert pixels.min() >= 0 and pixels.max() <= 255
    return torch.from_numpy(pixels.astype(np.uint8)).reshape(-1, 1, SIDE, SIDE)


def diagonal(deviations):
    return np.eye(DIM, 31, dtype=int) * np.asarray(deviations)[:, None]


@pytest.mark.parametrize("repeats", [1, 5])
def test_gaussians_with_commuting_covariances_from_images(measure, repeats):
    """|mu_1 - mu_2|^2 + sum (sd_1 - sd_2)^2; one deviation is zero in both, one in one."""
    random = np.random.default_rng(0)
    mean_1, mean_2 = random.integers(100, 150, (2, DIM))
    sd_1, sd_2 = random.integers(1, 40, (2, DIM))
    sd_1[0] = sd_2[0] = sd_1[1] = 0
    a, b = images_with_moments(mean_1, diagonal(sd_1), repeats), images_with_moments(mean_2, diagonal(sd_2))
    # Covariances are divided by N - 1.
    unbiased_1, unbiased_2 = (sd * np.sqrt(n / (n - 1)) for sd, n in ((sd_1, 32 * repeats), (sd_2, 32)))
    expected = (((mean_1 - mean_2) ** 2).sum() + ((unbiased_1 - unbiased_2) ** 2).sum()) / 255**2
    assert measure(a, b, ["frechet_distance"])["frechet_distance"] == pytest.approx(expected, rel=1e-5)


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 2**32 - 1))
def test_gaussians_with_any_covariances_from_images(tmp_path_factory, seed):
    """With sigma = A A^T and B B^T, tr (sigma_1 sigma_2)^(1/2) is the sum of the singular values of A^T B."""
    random = np.random.default_rng(seed)
    mean_1, mean_2 = random.integers(124, 132, (2, DIM))
    a, b = random.integers(-4, 5, (2, DIM, 31))
    scale = 32 / 31 / 255**2
    traces = (a**2).sum() + (b**2).sum() - 2 * np.linalg.svd(a.T @ b, compute_uv=False).sum()
    expected = ((mean_1 - mean_2) ** 2).sum() / 255**2 + scale * traces
    extractor = build_extractor("pixels", channels=1, resolution=SIDE, weights_dir="unused")
    real, generated = images_with_moments(mean_2, b), images_with_moments(mean_1, a)
    statistics = reference_statistics(extractor, lambda: real.split(5), {}, tmp_path_factory.mktemp("cache"))
    found = compute_metrics(extract_features(extractor, generated.split(7)), statistics, ["frechet_distance"])
    assert found["frechet_distance"] == pytest.approx(expected, rel=1e-4)


def test_gaussian_images_approach_the_closed_form(measure):
    """Independent pixels of N(m, s^2), rounded: a twelfth of a grey level is added to each variance."""
    generator = torch.Generator().manual_seed(0)
    sets = [
        (mean + sd * torch.randn(8000, 1, SIDE, SIDE, generator=generator)).round().clamp(0, 255).to(torch.uint8)
        for mean, sd in ((110, 20.0), (130, 10.0))
    ]
    expected = DIM * (20**2 + (np.sqrt(20**2 + 1 / 12) - np.sqrt(10**2 + 1 / 12)) ** 2) / 255**2
    assert measure(*sets, ["frechet_distance"])["frechet_distance"] == pytest.approx(expected, rel=0.02)


def random_images(count, channels, resolution, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, channels, resolution, resolution), generator=generator, dtype=torch.uint8)


@pytest.mark.parametrize(("features", "shape"), [("pixels", (1, 8)), ("pixels", (3, 32)), ("digits-cnn", (1, 8))])
@pytest.mark.parametrize("count", [20, 300])
def test_a_set_against_itself(measure, features, shape, count):
    images = random_images(count, *shape)
    values = measure(images, images.flip(0), ["frechet_distance", "precision_recall"], features)
    assert values["frechet_distance"] == pytest.approx(0, abs=1e-3)
    assert values["precision"] == values["recall"] == 1


def test_features_as_many_and_as_large_as_inceptions_against_themselves():
    """Covariances of rank 8 in 2048 dimensions: the roots of the rounding of 2040 zeros do not add up to anything."""
    rows = 0.4 * torch.randn(9, 2048, generator=torch.Generator().manual_seed(0)).abs().numpy()
    assert distance(rows, rows[::-1].copy()) == pytest.approx(0, abs=1e-3)


@pytest.mark.parametrize(("features", "shape"), [("pixels", (3, 8)), ("digits-cnn", (1, 8))])
def test_kid_of_two_halves_is_within_its_error_of_zero_and_of_other_images_is_not(
    measure, monkeypatch, features, shape
):
    monkeypatch.setattr(compute, "KID_SUBSETS", 10)
    images = random_images(4000, *shape)
    other = images // 2 + 100
    same = measure(images[::2], images[1::2], ["kid"], features)
    different = measure(other[::2], images[1::2], ["kid"], features)
    assert abs(same["kid_mean"]) < same["kid_std"]
    assert different["kid_mean"] > 20 * max(different["kid_std"], same["kid_std"])


def test_kid_of_random_halves_is_zero_on_average(measure):
    """Unbiased: over many small halves the mean vanishes, which the biased estimate's would not."""
    values = []
    for seed in range(60):
        images = random_images(60, 1, SIDE, seed)
        values.append(measure(images[:30], images[30:], ["kid"])["kid_mean"])
    error = np.std(values) / np.sqrt(len(values))
    assert abs(np.mean(values)) < 3 * error
    # The biased estimate would be off by 2 (E k(x, x) - E k(x, y)) / 30 = 0.028.
    assert error < 2e-3


def moments(rows):
    found = RunningMoments(rows.shape[1])
    found.update(torch.from_numpy(rows))
    return found.mean, found.covariance()


def distance(a, b):
    return frechet_distance(*moments(a), *moments(b))


@st.composite
def row_sets(draw, dim=5):
    """Two correlated sets of more rows than dimensions, from a seed."""
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    counts = draw(st.tuples(st.integers(2 * dim, 40), st.integers(2 * dim, 40)))
    scale = draw(st.floats(0.01, 100))
    return [
        scale * (random.standard_normal((n, dim)) @ random.standard_normal((dim, dim)) + random.standard_normal(dim))
        for n in counts
    ]


def size(a, b):
    """What rounding of a distance is relative to."""
    return np.trace(np.cov(a.T)) + np.trace(np.cov(b.T)) + ((a.mean(0) - b.mean(0)) ** 2).sum()


@settings(deadline=None, max_examples=50)
@given(sets=row_sets())
def test_frechet_distance_is_symmetric_and_not_negative(sets):
    a, b = sets
    assert distance(a, b) == pytest.approx(distance(b, a), abs=1e-6 * size(a, b))
    assert distance(a, b) > -1e-6 * size(a, b)
    assert distance(a, a) == pytest.approx(0, abs=1e-6 * size(a, a))


@settings(deadline=None, max_examples=50)
@given(sets=row_sets(), shift=st.lists(st.floats(-50, 50), min_size=5, max_size=5))
def test_frechet_distance_sees_a_translation_in_the_means_alone(sets, shift):
    (a, b), v = sets, np.array(shift)
    tolerance = 1e-6 * (size(a, b) + (v**2).sum())
    assert distance(a + v, b + v) == pytest.approx(distance(a, b), abs=tolerance)
    moved = distance(a, b) + (v**2).sum() + 2 * v @ (a.mean(0) - b.mean(0))
    assert distance(a + v, b) == pytest.approx(moved, abs=tolerance)


@settings(deadline=None, max_examples=50)
@given(sets=row_sets(), factor=st.floats(0.01, 100))
def test_frechet_distance_scales_with_the_square_of_the_features(sets, factor):
    a, b = sets
    expected = factor**2 * distance(a, b)
    assert distance(factor * a, factor * b) == pytest.approx(expected, abs=1e-6 * factor**2 * size(a, b))


@settings(deadline=None, max_examples=50)
@given(sets=row_sets(), seed=st.integers(0, 2**32 - 1))
def test_frechet_distance_ignores_rotations_of_both(sets, seed):
    a, b = sets
    q = ortho_group.rvs(5, random_state=seed)
    assert distance(a @ q, b @ q) == pytest.approx(distance(a, b), abs=1e-6 * size(a, b))
