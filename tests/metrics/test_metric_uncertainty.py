"""Deviations of the metrics: against what is left computed directly, closed forms, and many repetitions."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_digits
from torch_fidelity.metric_isc import isc_features_to_metric

from ddim.metrics import (
    BlockMoments,
    Features,
    Measured,
    Metric,
    ReferenceStatistics,
    RunningMoments,
    block_of,
    build_extractor,
    compute,
    compute_metrics,
    difference,
    distance_jackknife,
    frechet_distance,
    measure_metrics,
    reference_bias,
    reference_statistics,
)
from ddim.metrics.features import PixelFeatures
from ddim.metrics.inception_score import inception_jackknife
from ddim.metrics.kid import kernel_jackknife, off_diagonal_sum
from ddim.metrics.manifold import neighbour_radii, precision_recall, precision_recall_jackknife

COLUMNS = ("frechet_distance", "kid_mean", "precision", "recall", "inception_score_mean")


@pytest.fixture(autouse=True)
def few_subsets(monkeypatch):
    monkeypatch.setattr(compute, "KID_SUBSETS", 3)


def normal(count, dim, seed=0, scale=1.0):
    return scale * torch.randn(count, dim, generator=torch.Generator().manual_seed(seed))


def reference_of(features):
    moments = RunningMoments(features.shape[1])
    moments.update(features)
    return ReferenceStatistics(moments.mean, moments.covariance(), len(features), features, {}, "digest")


def without(rows, block, blocks=10):
    return rows[torch.from_numpy(block_of(np.arange(len(rows)), blocks) != block)]


class Gaussian:
    """A reference that is known exactly, samples of another one, and their true distance."""

    def __init__(self, dim, shift, scale):
        rng = np.random.default_rng(dim)
        deviations = np.exp(-np.linspace(0, 2, dim))
        rotation, _ = np.linalg.qr(rng.standard_normal((dim, dim)))
        sigma = (rotation * deviations**2) @ rotation.T
        self.reference = ReferenceStatistics(np.zeros(dim), sigma, None, None, {}, "digest")
        self.factor, self.mu = rotation * deviations * scale, shift * rotation @ deviations
        self.truth = ((shift**2 + (scale - 1) ** 2) * deviations**2).sum()

    def samples(self, noise):
        return torch.from_numpy(noise @ self.factor.T + self.mu)

    def measure(self, noise):
        return distance_jackknife(BlockMoments.of(self.samples(noise)), self.reference)


def noises(count, dim, repetitions):
    rng = np.random.default_rng(count)
    return (rng.standard_normal((count, dim)) for _ in range(repetitions))


@pytest.mark.parametrize("count", [50, 103])
def test_distances_without_blocks_are_those_of_the_other_samples(count):
    rows, reference = normal(count, 6, 1, 1.3), reference_of(normal(80, 6, 2))
    found = measure_metrics(Features(rows), reference, ["frechet_distance"])
    assert found.values["frechet_distance"] == compute_metrics(Features(rows), reference)["frechet_distance"]
    jackknife = found.jackknives["frechet_distance"]
    assert jackknife.value == found.values["frechet_distance"] and jackknife.num_samples == count
    for block, value in enumerate(jackknife.leave_one_out):
        expected = compute_metrics(Features(without(rows, block)), reference)["frechet_distance"]
        assert value == pytest.approx(expected, rel=1e-10)
    assert found.values["frechet_distance_sd"] == jackknife.sd
    assert found.values["frechet_distance_unbiased"] == jackknife.unbiased


def test_the_distance_of_a_stream_is_that_of_its_features():
    rows, reference = normal(333, 8, 1), reference_of(normal(80, 8, 2))
    stream, other = BlockMoments(8), BlockMoments(8)
    for numbers in torch.arange(333).split(50):
        (stream if numbers[0] % 100 else other).update(rows[numbers], numbers)
    stream.merge(other)
    expected = measure_metrics(Features(rows), reference, ["frechet_distance"])
    found = measure_metrics(stream, reference)
    assert found.values == pytest.approx(expected.values, rel=1e-9)
    assert compute_metrics(stream, reference) == {"frechet_distance": found.values["frechet_distance"]}


@pytest.mark.parametrize(("shift", "scale", "paired"), [(0.3, 1.2, 0.35), (0.5, 0.8, 0.35)])
@pytest.mark.parametrize("count", [500, 1000, 4000])
def test_gaussians_are_measured_without_bias_and_with_honest_bars(shift, scale, paired, count):
    """The plain distance is too large, which 150 sets of 500 tell beyond doubt."""
    gaussian, repetitions = Gaussian(16, shift, scale), 150 if count < 4000 else 60
    near = Gaussian(16, shift, scale + 0.02)
    found, differences = [], []
    for noise in noises(count, 16, repetitions):
        found.append(gaussian.measure(noise))
        differences.append(difference([near.measure(noise)], [found[-1]]))
    unbiased, plain = (np.array([getattr(one, name) for one in found]) for name in ("unbiased", "value"))
    bars, spread = np.array([one.sd for one in found]), unbiased.std(ddof=1)
    error = spread / np.sqrt(repetitions)
    assert abs(unbiased.mean() - gaussian.truth) < 3.5 * error
    assert count > 500 or plain.mean() - gaussian.truth > 3.5 * error
    assert bars.mean() == pytest.approx(spread, rel=0.25)
    assert bars.mean() == pytest.approx(plain.std(ddof=1), rel=0.25)
    assert 0.85 < (abs(unbiased - gaussian.truth) < 2 * bars).mean() < 0.99
    # Common noise: the difference is known several times better than either of its sides.
    values, sds = (np.array([getattr(one, name) for one in differences]) for name in ("value", "sd"))
    assert abs(values.mean() - (near.truth - gaussian.truth)) < 3.5 * values.std(ddof=1) / np.sqrt(repetitions)
    assert sds.mean() == pytest.approx(values.std(ddof=1), rel=0.25)
    assert sds.mean() < paired * bars.mean()


def test_bars_of_a_perfect_sampler_are_a_half_too_large_at_most():
    """The distance vanishes to first order: what is left is of second order, which leaving out blocks overstates."""
    gaussian = Gaussian(32, 0.0, 1.0)
    found = [gaussian.measure(noise) for noise in noises(1000, 32, 100)]
    unbiased = np.array([one.unbiased for one in found])
    spread = unbiased.std(ddof=1)
    assert abs(unbiased.mean()) < 3.5 * spread / 10 + 1e-3 * found[0].value
    assert min(one.value for one in found) > 4 * spread
    assert 1.1 < np.mean([one.sd for one in found]) / spread < 1.8


@pytest.fixture(scope="module")
def digits():
    """Features of the shipped network: of the test images by the project's rule of thumb, and of the others."""
    images = torch.from_numpy((load_digits().images * 255 / 16).round().astype(np.uint8))[:, None]
    extractor = build_extractor("digits-cnn", channels=1, resolution=8, weights_dir="unused")
    features = extractor(images).features
    held_out = torch.from_numpy(np.random.default_rng(0).permutation(len(images)) < 360)
    return features[held_out], reference_of(features[~held_out])


def test_any_number_of_real_digits_gives_one_distance(digits):
    """Drawn with replacement from 360 images, whose own distance to the 1,437 others is then the truth."""
    population, reference = digits
    rows = population.double().numpy()
    truth = frechet_distance(rows.mean(axis=0), np.cov(rows.T, ddof=0), reference.mu, reference.sigma)
    rng, means = np.random.default_rng(0), {}
    for count in (300, 500, 1000, 4000):
        found = []
        for _ in range(30):
            drawn = torch.from_numpy(rng.integers(0, 360, count))
            found.append(distance_jackknife(BlockMoments.of(population[drawn]), reference))
        unbiased, bars = (np.array([getattr(one, name) for one in found]) for name in ("unbiased", "sd"))
        assert abs(unbiased.mean() - truth) < 0.25 * bars.mean() + 4 * unbiased.std() / np.sqrt(30)
        assert (abs(unbiased - truth) < 2 * bars).mean() > 0.8
        assert 0.75 < bars.mean() / unbiased.std(ddof=1) < 1.8
        means[count] = np.mean([one.value for one in found]), bars.mean()
    assert means[300][0] - truth > 2 * means[300][1]


@pytest.mark.parametrize(("count", "others", "rows"), [(40, 30, 7), (43, 51, 1000), (12, 9, 5)])
def test_kid_over_all_pairs_and_without_blocks(count, others, rows):
    x, y = normal(count, 5, 1, 1.2), normal(others, 5, 2)

    def direct(x, y):
        def kernel(a, b):
            return (a.double() @ b.double().T / 5 + 1) ** 3

        def off(a):
            return (kernel(a, a).sum() - kernel(a, a).trace()) / (len(a) * (len(a) - 1))

        return (off(x) + off(y) - 2 * kernel(x, y).mean()).item()

    found = kernel_jackknife(x, y, off_diagonal_sum(y, rows=rows), rows=rows)
    assert found.value == pytest.approx(direct(x, y), rel=1e-5, abs=1e-6)
    expected = [direct(without(x, block), y) for block in range(10)]
    assert found.leave_one_out == pytest.approx(expected, rel=1e-5, abs=1e-6)


def test_kid_over_all_pairs_is_what_its_subsets_are_of():
    """Subsets as large as both sets are the sets."""
    x, reference = normal(200, 8, 1, 1.2), reference_of(normal(200, 8, 2))
    found = measure_metrics(Features(x), reference, ["kid"])
    assert found.jackknives["kid_mean"].value == pytest.approx(found.values["kid_mean"], rel=1e-4)


def test_what_kid_needs_of_a_reference_is_kept_in_the_cache(tmp_path, monkeypatch):
    images = torch.randint(0, 256, (60, 1, 4, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    make = lambda: reference_statistics(PixelFeatures(1, 4), lambda: images.split(7), {}, tmp_path)  # noqa: E731
    first = make().kernel_sum()
    assert first == pytest.approx(off_diagonal_sum(make().features), rel=1e-12)
    monkeypatch.setattr("ddim.metrics.cache.off_diagonal_sum", None)
    assert make().kernel_sum() == first
    with pytest.raises(ValueError, match="needs the features of the reference"):
        ReferenceStatistics(np.zeros(2), np.eye(2), 5, None, {}, "digest").kernel_sum()


@pytest.mark.parametrize("kept", [1000, 700])
def test_what_a_perfect_sampler_has_is_known_of_the_reference_alone(kept):
    deviations = np.exp(-np.linspace(0, 2, 32))
    truths, found = [], []
    for seed in range(20):
        rows = torch.from_numpy(np.random.default_rng(seed).standard_normal((1000, 32)) * deviations)
        moments = RunningMoments(32)
        moments.update(rows)
        reference = ReferenceStatistics(moments.mean, moments.covariance(), 1000, rows[:kept], {}, "digest")
        truths.append(frechet_distance(np.zeros(32), np.diag(deviations**2), reference.mu, reference.sigma))
        found.append(reference_bias(reference))
    assert np.mean(found) == pytest.approx(np.mean(truths), rel=0.1)
    with pytest.raises(ValueError, match="needs its features"):
        reference_bias(Gaussian(3, 0, 1).reference)


def test_the_bias_of_a_reference_does_not_depend_on_images_in_order_of_their_classes():
    """Sorted, every run of samples is of one class, and all blocks have the same share of it."""
    classes = torch.arange(5).repeat_interleave(80)
    rows = normal(400, 4) * 0.1 + 3 * torch.nn.functional.one_hot(classes, 5)[:, :4]
    mixed = rows[torch.randperm(400, generator=torch.Generator().manual_seed(0))]
    assert reference_bias(reference_of(rows)) == pytest.approx(reference_bias(reference_of(mixed)), rel=0.5)


@settings(deadline=None, max_examples=60)
@given(data=st.data(), rows=st.integers(1, 40), blocks=st.integers(2, 5))
def test_precision_and_recall_without_blocks(data, rows, blocks):
    """Small integers, whose distances are exact however they are computed: many are equal, many rows are."""
    sizes = data.draw(st.tuples(st.integers(10, 40), st.integers(4, 40)))
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 2**31)))
    side = data.draw(st.integers(1, 9))
    x, y = (torch.randint(0, side + 1, (size, 2), generator=generator).float() for size in sizes)
    radii = neighbour_radii(y, 3)
    found = precision_recall_jackknife(x, y, radii, 3, blocks=blocks, rows=rows)
    assert tuple(one.value for one in found) == precision_recall(x, y, radii, 3)
    expected = [precision_recall(without(x, block, blocks), y, radii, 3) for block in range(blocks)]
    assert list(zip(*(one.leave_one_out for one in found), strict=True)) == expected


def test_precision_and_recall_are_those_of_the_table():
    x, reference = normal(1300, 16, 1), reference_of(normal(1100, 16, 2))
    found = measure_metrics(Features(x), reference, ["precision_recall"]).values
    plain = compute_metrics(Features(x), reference, ["precision_recall"])
    assert {name: found[name] for name in plain} == plain and 0 < plain["recall"] < 1


def test_inception_score_and_without_blocks():
    logits = normal(57, 12, 3, 2.0)
    found = inception_jackknife(logits)

    def direct(rows):
        return isc_features_to_metric(rows, splits=1)["inception_score_mean"]

    assert found.value == pytest.approx(direct(logits), rel=1e-12)
    expected = [direct(without(logits, block)) for block in range(10)]
    assert found.leave_one_out == pytest.approx(expected, rel=1e-12)
    # A class that nobody has: 0 log 0.
    assert inception_jackknife(torch.tensor([[0.0, -2000.0]] * 20)).value == pytest.approx(1)


def test_bars_of_the_other_metrics_are_what_repetitions_show():
    """Recall's are too large, which its docstring says."""
    reference, weights = reference_of(normal(700, 8, 1)), normal(8, 10, 2)
    found = []
    for seed in range(80):
        rows = normal(600, 8, 100 + seed, 0.9) + 0.1
        found.append(measure_metrics(Features(rows, rows @ weights), reference, seed=seed).values)
    for column, highest in zip(COLUMNS, (1.3, 1.3, 1.3, 2.0, 1.3), strict=True):
        bar, spread = np.mean([one[f"{column}_sd"] for one in found]), np.std([one[column] for one in found], ddof=1)
        assert 0.75 < bar / spread < highest, column


def test_deviations_are_asked_for():
    rows, reference = normal(60, 8, 1), reference_of(normal(70, 8, 2))
    generated = Features(rows, rows)
    plain = compute_metrics(generated, reference)
    found = measure_metrics(generated, reference)
    assert {key: found.values[key] for key in plain} == plain
    assert found.values.keys() - plain.keys() == {f"{name}_sd" for name in COLUMNS} | {"frechet_distance_unbiased"}
    assert found.jackknives.keys() == set(COLUMNS)
    assert measure_metrics(generated, reference, uncertainty=False).values == plain


@pytest.mark.parametrize("count", [1, 2, 4, 9, 10, 11])
def test_what_cannot_have_a_deviation_has_none(count):
    rows, reference = normal(count, 3, 1), reference_of(normal(30, 3, 2))
    plain, found = (function(Features(rows, rows), reference) for function in (compute_metrics, measure_metrics))
    assert {key: found.values[key] for key in plain} == plain
    assert found.jackknives.keys() == (set(COLUMNS) if count >= 10 else set())
    moments = RunningMoments(3)
    moments.update(rows)
    assert not measure_metrics(moments, reference).jackknives


def test_a_metric_of_ones_own_may_say_how_sure_it_is(monkeypatch):
    own = Metric(lambda generated, reference: Measured(1.5, 0.25, "by hand"), "1")
    monkeypatch.setitem(compute.MEASURES, "own", own)
    rows = normal(20, 3)
    assert compute_metrics(Features(rows), reference_of(rows), ["own"]) == {"own": 1.5, "own_sd": 0.25}


@pytest.mark.parametrize(
    "make",
    [
        lambda: precision_recall_jackknife(normal(5, 2), normal(9, 2), torch.ones(9), 3, blocks=2),
        lambda: kernel_jackknife(normal(2, 2), normal(9, 2), 1.0, blocks=2),
    ],
)
def test_sets_that_a_block_less_makes_too_small_are_refused(make):
    with pytest.raises(ValueError, match="without a block there must be"):
        make()
