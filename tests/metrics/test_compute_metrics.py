"""The metrics on features with known distributions: closed forms, invariances, what is absent when."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch_fidelity.metric_fid import fid_features_to_statistics
from torch_fidelity.metric_kid import kid_features_to_metric
from torch_fidelity.metric_prc import prc_features_to_metric

from ddim.metrics import Features, ReferenceStatistics, RunningMoments, compute, compute_metrics, frechet_distance


def gaussian(count, mean, covariance, seed=0, exact=True):
    """float32 rows; with `exact` their own mean and covariance are the given ones, not only their distribution's."""
    rows = np.random.default_rng(seed).standard_normal((count, len(mean)))
    if exact:
        rows -= rows.mean(axis=0)
        rows = rows @ np.linalg.inv(np.linalg.cholesky(np.cov(rows, rowvar=False))).T
    rows = rows @ np.linalg.cholesky(np.asarray(covariance)).T + np.asarray(mean)
    return torch.from_numpy(rows).float()


def reference(features, keep=True):
    moments = RunningMoments(features.shape[1])
    moments.update(features)
    return ReferenceStatistics(
        moments.mean, moments.covariance(), len(features), features if keep else None, {}, "digest"
    )


def distance(a, b):
    return compute_metrics(Features(a), reference(b), ["frechet_distance"])["frechet_distance"]


def test_gaussians_with_commuting_covariances():
    """|mu_1 - mu_2|^2 + sum (sd_1 - sd_2)^2."""
    sd_1, sd_2 = np.array([1.0, 2.0, 0.5, 3.0]), np.array([2.0, 0.1, 0.5, 1.0])
    mu_1, mu_2 = np.array([0.0, 1.0, -1.0, 5.0]), np.array([1.0, 1.0, 2.0, 4.0])
    expected = ((mu_1 - mu_2) ** 2).sum() + ((sd_1 - sd_2) ** 2).sum()
    a, b = gaussian(500, mu_1, np.diag(sd_1**2), 1), gaussian(700, mu_2, np.diag(sd_2**2), 2)
    assert distance(a, b) == pytest.approx(expected, rel=1e-5)


def test_gaussians_with_other_covariances():
    """In two dimensions tr (AB)^(1/2) = (tr AB + 2 det(AB)^(1/2))^(1/2)."""
    a, b = np.array([[2.0, 0.7], [0.7, 1.0]]), np.array([[1.0, -0.6], [-0.6, 3.0]])
    trace_root = np.sqrt(np.trace(a @ b) + 2 * np.sqrt(np.linalg.det(a @ b)))
    expected = 4 + np.trace(a) + np.trace(b) - 2 * trace_root
    found = distance(gaussian(50, [0, 0], a, 1), gaussian(60, [2, 0], b, 2))
    assert found == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(("count", "others"), [(30, 40), (2, 100), (100, 2)])
def test_fewer_images_than_dimensions(count, others):
    """Both covariances are singular: half of the eigenvalues that are zero come out negative."""
    generator = torch.Generator().manual_seed(0)
    a, b = torch.rand(count, 128, generator=generator), torch.rand(others, 128, generator=generator)
    # The trace of the root is the sum of the singular values of the product of the centred rows.
    rows = [(x.double() - x.double().mean(0)) / (len(x) - 1) ** 0.5 for x in (a, b)]
    shift = (a.double().mean(0) - b.double().mean(0)).square().sum()
    root = torch.linalg.svdvals(rows[0] @ rows[1].T).sum()
    expected = shift + rows[0].square().sum() + rows[1].square().sum() - 2 * root
    assert distance(a, b) == pytest.approx(expected.item(), rel=1e-6)


def test_sampled_gaussians_approach_the_closed_form():
    identity = np.eye(3)
    a, b = (gaussian(40_000, [m] * 3, s**2 * identity, m, exact=False) for m, s in ((0, 1.0), (1, 2.0)))
    assert distance(a, b) == pytest.approx(6, rel=0.03)


def test_a_set_is_at_distance_zero_from_itself():
    features = torch.randn(200, 32, generator=torch.Generator().manual_seed(0))
    values = compute_metrics(Features(features), reference(features))
    assert values["frechet_distance"] == pytest.approx(0, abs=1e-3)
    assert values["precision"] == values["recall"] == 1


def test_kid_of_two_halves_is_zero_and_of_shifted_ones_is_not(monkeypatch):
    monkeypatch.setattr(compute, "KID_SUBSETS", 5)
    rows = torch.randn(2000, 16, generator=torch.Generator().manual_seed(0))
    same = compute_metrics(Features(rows[:1000]), reference(rows[1000:]), ["kid"])
    moved = compute_metrics(Features(rows[:1000] + 0.3), reference(rows[1000:]), ["kid"])
    assert abs(same["kid_mean"]) < 0.01 < 0.1 < moved["kid_mean"]


def test_kid_is_decided_by_the_seed(monkeypatch):
    monkeypatch.setattr(compute, "KID_SUBSETS", 5)
    rows = torch.randn(1300, 4, generator=torch.Generator().manual_seed(0))
    first, again, other = (
        compute_metrics(Features(rows), reference(rows[:1100]), ["kid"], seed=seed)["kid_mean"] for seed in (0, 0, 1)
    )
    assert first == again != other


def test_kid_takes_subsets_of_a_thousand_or_all(monkeypatch):
    monkeypatch.setattr(compute, "KID_SUBSETS", 5)
    rows = torch.randn(1200, 4, generator=torch.Generator().manual_seed(0))
    for count, size in ((1100, 1000), (300, 300)):
        expected = kid_features_to_metric(
            rows[:count], rows, kid_subset_size=size, kid_subsets=5, rng_seed=5, verbose=False
        )
        against = reference(rows)
        first = compute_metrics(Features(2 * rows[:count]), against, ["kid"], seed=5)
        found = compute_metrics(Features(rows[:count]), against, ["kid"], seed=5)  # with what the first one kept
        assert first["kid_mean"] != found["kid_mean"]
        assert found["kid_mean"] == expected["kernel_inception_distance_mean"]
        assert found["kid_std"] == expected["kernel_inception_distance_std"]


def test_what_kid_keeps_of_a_reference_serves_its_own_subsets_only(monkeypatch):
    """Another seed or another number of generated images draws other subsets of the reference."""
    monkeypatch.setattr(compute, "KID_SUBSETS", 3)
    monkeypatch.setattr(compute, "KID_SUBSET_SIZE", 50)
    rows = torch.randn(400, 4, generator=torch.Generator().manual_seed(0))
    against = reference(rows[:200])
    for count, seed in ((300, 0), (300, 1), (400, 0), (250, 1), (300, 0)):
        generated = 2 * rows[-count:]
        expected = kid_features_to_metric(
            generated, rows[:200], kid_subset_size=50, kid_subsets=3, rng_seed=seed, verbose=False
        )
        found = compute_metrics(Features(generated), against, ["kid"], seed=seed)
        assert found["kid_mean"] == expected["kernel_inception_distance_mean"], (count, seed)


def test_precision_is_of_the_generated_and_recall_of_the_real():
    """Generated images on one of two real clusters are all realistic and cover half."""
    cluster = torch.randn(300, 8, generator=torch.Generator().manual_seed(0))
    real = torch.cat([cluster[:100], cluster[100:200] + 100])
    values = compute_metrics(Features(cluster[200:]), reference(real), ["precision_recall"])
    assert values["precision"] > 0.8 and 0.3 < values["recall"] < 0.51


def test_precision_and_recall_in_blocks_equal_those_at_once():
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(2100, 8, generator=generator), 1.2 * torch.randn(1500, 8, generator=generator)
    expected = prc_features_to_metric(a, b, verbose=False)
    found = compute_metrics(Features(a), reference(b), ["precision_recall"])
    assert found["precision"] == pytest.approx(expected["precision"], abs=1e-3)
    assert found["recall"] == pytest.approx(expected["recall"], abs=1e-3)


def test_distances_for_precision_and_recall_are_in_full_float32(monkeypatch):
    seen, cdist = [], torch.cdist

    def look(*args):
        seen.append((torch.backends.cuda.matmul.fp32_precision, torch.backends.mkldnn.matmul.fp32_precision))
        return cdist(*args)

    monkeypatch.setattr(torch, "cdist", look)
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")
        compute_metrics(Features(torch.randn(9, 3)), reference(torch.randn(9, 3)), ["precision_recall"])
    finally:
        torch.set_float32_matmul_precision(before)
    assert seen == 3 * [("ieee", "ieee")]  # within each set and between them


def test_inception_score_of_certain_and_evenly_spread_classes():
    """K classes, each certain and equally frequent in every split, score K; no certainty at all scores 1."""
    certain = 50 * torch.nn.functional.one_hot(torch.arange(4000) % 4).float()
    rows = torch.randn(4000, 2)
    names = ["inception_score"]
    sure = compute_metrics(Features(rows, certain), reference(rows), names)
    assert sure["inception_score_mean"] == pytest.approx(4, rel=0.01)
    flat = compute_metrics(Features(rows, torch.zeros(4000, 4)), reference(rows), names)
    assert flat["inception_score_mean"] == pytest.approx(1)


@pytest.mark.parametrize(
    ("count", "expected"),
    [
        (1, set()),
        (2, {"frechet_distance", "kid_mean", "kid_std"}),
        (3, {"frechet_distance", "kid_mean", "kid_std"}),
        (4, {"frechet_distance", "kid_mean", "kid_std", "precision", "recall"}),
        (9, {"frechet_distance", "kid_mean", "kid_std", "precision", "recall"}),
        (
            10,
            {
                "frechet_distance",
                "kid_mean",
                "kid_std",
                "precision",
                "recall",
                "inception_score_mean",
                "inception_score_std",
            },
        ),
    ],
)
def test_what_few_images_cannot_tell_is_absent(count, expected):
    rows = torch.randn(50, 3)
    values = compute_metrics(Features(rows[:count], rows[:count]), reference(rows))
    assert set(values) == expected
    assert all(np.isfinite(value) for value in values.values())


def test_without_reference_features_and_logits_only_the_frechet_distance_remains():
    rows = torch.randn(50, 3)
    assert set(compute_metrics(Features(rows), reference(rows, keep=False))) == {"frechet_distance"}
    assert set(compute_metrics(Features(rows), reference(rows), ["kid"])) == {"kid_mean", "kid_std"}


@pytest.mark.parametrize(
    ("dim", "metrics", "message"),
    [(3, ["fid"], "unknown metric 'fid'; known are frechet_distance"), (4, ["kid"], "4 dimensions, the reference has")],
)
def test_bad_arguments_are_named(dim, metrics, message):
    with pytest.raises(ValueError, match=message):
        compute_metrics(Features(torch.randn(5, dim)), reference(torch.randn(50, 3)), metrics)


@settings(deadline=None, max_examples=50)
@given(
    sizes=st.lists(st.integers(0, 9), min_size=1, max_size=6).filter(lambda sizes: sum(sizes) > 1),
    offset=st.floats(-1000, 1000),
)
def test_streamed_moments_equal_those_at_once(sizes, offset):
    rows = torch.randn(sum(sizes), 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) + offset
    moments = RunningMoments(3)
    for part in rows.split(sizes):
        moments.update(part)
    assert moments.count == len(rows)
    np.testing.assert_allclose(moments.mean, rows.numpy().mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(moments.covariance(), np.cov(rows.numpy(), rowvar=False), rtol=1e-9, atol=1e-11)


def test_moments_equal_torch_fidelitys():
    rows = gaussian(100, [1, 2, 3], np.diag([1, 4, 9]))
    moments, expected = RunningMoments(3), fid_features_to_statistics(rows.double())
    moments.update(rows)
    np.testing.assert_allclose(moments.mean, expected["mu"])
    np.testing.assert_allclose(moments.covariance(), expected["sigma"])


def test_moments_refuse_too_few_and_misshapen_rows():
    moments = RunningMoments(3)
    moments.update(torch.ones(1, 3))
    with pytest.raises(ValueError, match="at least 2 rows, got 1"):
        moments.covariance()
    with pytest.raises(ValueError, match=r"\(N, 3\), got \(2, 4\)"):
        moments.update(torch.ones(2, 4))


def test_frechet_distance_of_singular_covariances():
    """All mass on two different lines: the product of the covariances is singular, the formula still holds."""
    a, b = np.diag([4.0, 0.0, 0.0]), np.diag([1.0, 0.0, 0.0])
    assert frechet_distance(np.zeros(3), a, np.zeros(3), b) == pytest.approx(1)
