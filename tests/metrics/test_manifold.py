"""Precision and recall with the reference's radii kept, against torch-fidelity; what is kept in the cache, and when."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch_fidelity.metric_prc import prc_features_to_metric

from ddim.metrics import (
    Features,
    ReferenceStatistics,
    RunningMoments,
    cache,
    compute,
    compute_floor,
    compute_metrics,
    needs_features,
    reference_statistics,
)
from ddim.metrics.features import PixelFeatures
from ddim.metrics.manifold import neighbour_radii, precision_recall

IMAGES = torch.randint(0, 256, (90, 1, 4, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def theirs(generated, reference, *, rows, whole):
    found = prc_features_to_metric(
        generated, reference, prc_neighborhood=3, prc_batch_size=rows, save_cpu_ram=not whole, verbose=False
    )
    return round(found["precision"] * len(generated)), round(found["recall"] * len(reference))


def ours(generated, reference, k=3, **options):
    precision, recall = precision_recall(generated, reference, neighbour_radii(reference, k, **options), k, **options)
    return round(precision * len(generated)), round(recall * len(reference))


def normal(count, dim, seed, scale=1.0):
    return scale * torch.randn(count, dim, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize(("count", "dim"), [(1100, 8), (700, 64), (600, 512)])
def test_counts_equal_torch_fidelitys_on_random_features(count, dim, whole):
    a, b = normal(count, dim, 1), normal(count - 130, dim, 2, 1.1)
    expected = theirs(a, b, rows=400, whole=whole)
    assert ours(a, b, rows=400) == expected
    assert 0 < expected[0] < len(a) and 0 < expected[1] < len(b)


@settings(deadline=None, max_examples=40)
@given(data=st.data(), dim=st.integers(1, 4), rows=st.integers(1, 60))
def test_counts_equal_torch_fidelitys_on_tied_features(data, dim, rows):
    """Small integers, whose distances are exact however they are computed: many are equal, many rows are."""
    sets = [
        torch.tensor(
            data.draw(st.lists(st.lists(st.integers(-3, 3), min_size=dim, max_size=dim), min_size=4, max_size=70))
        )
        for _ in range(2)
    ]
    a, b = (rows_.float() for rows_ in sets)
    assert ours(a, b, rows=rows) == theirs(a, b, rows=100, whole=True)


def test_radii_of_points_on_a_line():
    line = torch.tensor([[0.0], [1.0], [3.0], [7.0], [15.0]])
    for rows in (1, 2, 5):
        assert neighbour_radii(line, 1, rows=rows).tolist() == [1, 1, 2, 4, 8]
        assert neighbour_radii(line, 2, rows=rows).tolist() == [3, 2, 3, 6, 12]
        assert neighbour_radii(line, 4, rows=rows).tolist() == [15, 14, 12, 8, 15]


def test_the_manifold_is_closed_and_each_side_has_its_own():
    """Real balls: radius 2 around 0 and 2, 1 around 10 and 11, with 4 and 9 on their edges. The generated ones have the
    radii 1, 4, 1, 11: 9's and 20's hold 10 and 11."""
    reference, generated = torch.tensor([[0.0], [2.0], [10.0], [11.0]]), torch.tensor([[4.0], [9.0], [5.0], [20.0]])
    assert ours(generated, reference, k=1) == (2, 2)


@pytest.mark.parametrize(("k", "count"), [(0, 5), (5, 5), (3, 2)])
def test_radii_need_as_many_others(k, count):
    with pytest.raises(ValueError, match=f"k={k} must be at least 1 and below the {count} rows"):
        neighbour_radii(torch.zeros(count, 2), k)


@pytest.fixture
def statistics(tmp_path):
    extractor = PixelFeatures(1, 4)

    def build(images=IMAGES, **provenance):
        return reference_statistics(extractor, lambda: images.split(40), {"count": len(images), **provenance}, tmp_path)

    return build


def forbidden(*args, **kwargs):
    raise AssertionError("it is in the cache")


def test_radii_are_measured_once_and_kept_in_the_cache(statistics, monkeypatch):
    features = Features(0.5 + normal(50, 16, 3, 0.35))
    first = compute_metrics(features, statistics(), ["precision_recall"])
    assert 0 < first["precision"] < 1
    monkeypatch.setattr(cache, "neighbour_radii", forbidden)
    again = statistics()
    assert compute_metrics(features, again, ["precision_recall"]) == first
    torch.testing.assert_close(again.radii(3), neighbour_radii(again.features, 3), rtol=0, atol=0)
    with pytest.raises(AssertionError, match="it is in the cache"):
        again.radii(2)


def test_radii_without_a_cache_are_kept_in_memory(monkeypatch):
    rows = normal(30, 4, 0)
    moments = RunningMoments(4)
    moments.update(rows)
    reference = ReferenceStatistics(moments.mean, moments.covariance(), 30, rows, {}, "digest")
    first = reference.radii(3)
    monkeypatch.setattr(cache, "neighbour_radii", forbidden)
    assert reference.radii(3) is first


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes(path.read_bytes()[:-40]),
        lambda path: path.write_bytes(b"text"),
        lambda path: np.savez(path, radii=np.ones(89, np.float32)),
        lambda path: np.savez(path, radii=np.full(90, np.nan, np.float32)),
        lambda path: np.savez(path, others=np.ones(90, np.float32)),
    ],
)
def test_damaged_radii_are_measured_anew(statistics, tmp_path, damage, caplog):
    first = statistics().radii(3)
    (path,) = tmp_path.glob("*-radii3.npz")
    damage(path)
    with caplog.at_level(logging.WARNING):
        assert torch.equal(statistics().radii(3), first)
    assert "computed anew" in caplog.text
    caplog.clear()
    assert torch.equal(statistics().radii(3), first) and not caplog.text


def test_radii_of_earlier_features_are_forgotten(statistics, tmp_path):
    """Not only when a file is damaged: what is beside statistics that are computed anew may be of others."""
    known = statistics()
    np.savez(tmp_path / f"reference-{known.digest}-radii3.npz", radii=np.zeros(90, np.float32))
    known.path.write_bytes(b"damaged")
    assert (statistics().radii(3) > 0).all()


def test_a_floor_is_computed_once_for_each_question(statistics, monkeypatch):
    reference, real = statistics(), statistics(255 - IMAGES[:60], split="test")
    first = compute_floor(real, reference, seed=1)
    assert first == compute_metrics(Features(real.features), reference, seed=1) and len(first) == 5
    fewer = compute_floor(real, reference, ["kid"], seed=1)
    monkeypatch.setattr(compute, "compute_metrics", forbidden)
    assert compute_floor(statistics(255 - IMAGES[:60], split="test"), statistics(), seed=1) == first
    assert compute_floor(real, reference, ["kid"], seed=1) == fewer
    for metrics, seed in ((["kid"], 2), (["frechet_distance"], 1)):
        with pytest.raises(AssertionError, match="it is in the cache"):
            compute_floor(real, reference, metrics, seed=seed)


def test_a_floor_is_of_one_reference(statistics):
    """The same held-out images measured against other training images."""
    real = statistics(255 - IMAGES[:60], split="test")
    floors = [compute_floor(real, statistics(images), ["kid"]) for images in (IMAGES, IMAGES[:70], IMAGES)]
    assert floors[0] == floors[2] != floors[1]


@pytest.mark.parametrize(
    "content", [{"precision": np.ones(3)}, {"precision": np.array(np.nan)}, {"recall": np.array("x")}]
)
def test_a_floor_that_is_no_metrics_is_computed_anew(statistics, tmp_path, content, caplog):
    reference, real = statistics(), statistics(255 - IMAGES[:60], split="test")
    first = compute_floor(real, reference, ["precision_recall"])
    (path,) = tmp_path.glob("*-floor-*.npz")
    np.savez(path, **content)
    assert compute_floor(real, reference, ["precision_recall"]) == first
    assert "computed anew" in caplog.text


def test_moments_are_enough_for_the_frechet_distance(statistics):
    rows, reference = normal(70, 16, 4).sigmoid(), statistics()
    moments = RunningMoments(16)
    for part in rows.split([1, 30, 39]):
        moments.update(part)
    found = compute_metrics(moments, reference)
    expected = compute_metrics(Features(rows), reference, ["frechet_distance"])["frechet_distance"]
    assert found == {"frechet_distance": pytest.approx(expected, rel=1e-12)}


@pytest.mark.parametrize(
    ("metrics", "published", "needed"),
    [
        (["frechet_distance"], False, False),
        (["frechet_distance", "kid"], False, True),
        (["precision_recall"], False, True),
        (["frechet_distance", "inception_score"], True, True),
        (["frechet_distance", "kid", "precision_recall"], True, False),  # neither can be computed without features
    ],
)
def test_which_metrics_need_features(metrics, published, needed):
    reference = ReferenceStatistics(np.zeros(2), np.eye(2), 5, None if published else torch.zeros(5, 2), {}, "digest")
    assert needs_features(metrics, reference) is needed


@settings(deadline=None, max_examples=40)
@given(sizes=st.lists(st.integers(0, 9), min_size=1, max_size=6).filter(lambda sizes: sum(sizes) > 1))
def test_merged_moments_are_those_of_all_rows(sizes):
    rows = normal(sum(sizes), 3, 0).double() + 100
    whole = RunningMoments(3)
    for part in rows.split(sizes):
        moments = RunningMoments(3)
        moments.update(part)
        whole.merge(moments)
    assert len(whole) == len(rows)
    np.testing.assert_allclose(whole.mean, rows.numpy().mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(whole.covariance(), np.cov(rows.numpy(), rowvar=False), rtol=1e-9, atol=1e-11)
    with pytest.raises(ValueError, match="moments of 2 dimensions cannot join those of 3"):
        whole.merge(RunningMoments(2))
