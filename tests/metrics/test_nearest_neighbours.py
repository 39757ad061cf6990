"""Nearest neighbours against brute force in float64, in blocks, far from the origin, within one set."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ddim.metrics import nearest_neighbours


def rows(count, dim=40, seed=0):
    return torch.randn(count, dim, generator=torch.Generator().manual_seed(seed))


def brute_force(a, b, k, exclude_self=False):
    distances = np.sqrt(((a.double().numpy()[:, None] - b.double().numpy()[None]) ** 2).sum(axis=2))
    if exclude_self:
        np.fill_diagonal(distances, np.inf)
    order = np.argsort(distances, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(distances, order, axis=1), order


def assert_same(found, expected):
    distances, indices = found
    assert distances.dtype == torch.float32 and indices.dtype == torch.int64
    assert np.array_equal(indices.numpy(), expected[1])
    np.testing.assert_allclose(distances.numpy(), expected[0], rtol=1e-6, atol=0)


@pytest.mark.parametrize("dim", [1, 3, 40, 300])
@pytest.mark.parametrize("k", [1, 4, 90])
def test_equals_brute_force(dim, k):
    a, b = rows(70, dim, 1), rows(90, dim, 2)
    assert_same(nearest_neighbours(a, b, k), brute_force(a, b, k))


@pytest.mark.parametrize("block", [1, 7, 64, 70, 1000])
@pytest.mark.parametrize("exclude_self", [False, True])
def test_block_size_changes_nothing(block, exclude_self):
    a = rows(70)
    found = nearest_neighbours(a, a, 5, block, exclude_self=exclude_self)
    assert_same(found, brute_force(a, a, 5, exclude_self))
    assert (found[1][:, 0] == torch.arange(70)).all() == (not exclude_self)


@settings(deadline=None, max_examples=50)
@given(
    count=st.integers(2, 30),
    k=st.integers(1, 29),
    block=st.integers(1, 31),
    seed=st.integers(0, 1000),
    own=st.booleans(),
)
def test_small_sets_of_whole_numbers_with_ties(count, k, block, seed, own):
    """Equally near rows come in their order, as far as there are no more of them than k and the spare candidates."""
    a = torch.randint(0, 5, (count, 6), generator=torch.Generator().manual_seed(seed)).float()
    k = min(k, count - 1)
    distances, indices = nearest_neighbours(a, a, k, block, exclude_self=own)
    expected = brute_force(a, a, k, own)
    np.testing.assert_allclose(distances.numpy(), expected[0], rtol=1e-6)
    again = torch.linalg.vector_norm(a[:, None] - a[indices], dim=2)
    torch.testing.assert_close(again, distances)
    assert all(len(set(row.tolist())) == k for row in indices)
    if own:
        assert (indices != torch.arange(count)[:, None]).all()
    equal = distances[:, 1:] == distances[:, :-1]
    assert (indices.diff(dim=1)[equal] > 0).all()


def test_duplicates_are_at_distance_zero_also_far_from_the_origin():
    """There a matrix product alone cannot tell near rows apart."""
    b = rows(500, 256) * 0.01 + 1000
    a = b[torch.arange(0, 500, 3)]
    distances, indices = nearest_neighbours(a, b)
    assert (distances == 0).all() and indices[:, 0].tolist() == list(range(0, 500, 3))
    assert_same(nearest_neighbours(a, b, 3), brute_force(a, b, 3))
    assert (torch.cdist(a, b).argmin(dim=1) != indices[:, 0]).double().mean() > 0.5


def test_near_rows_of_clusters_that_are_far_apart_are_told_apart():
    """No choice of origin helps here: the spare candidates do."""
    centres = 1000 * rows(25, 64).repeat_interleave(4, dim=0)
    b = centres + 0.05 * rows(100, 64, 1)
    a = b + 0.002 * rows(100, 64, 2)
    assert_same(nearest_neighbours(a, b, 2), brute_force(a, b, 2))
    assert (torch.cdist(a - b.mean(dim=0), b - b.mean(dim=0)).argmin(dim=1) != torch.arange(100)).sum() > 20


def test_within_a_set_a_duplicate_is_a_neighbour_and_the_row_itself_is_not():
    a = rows(20)
    a = torch.cat([a, a[:1]])
    distances, indices = nearest_neighbours(a, a, exclude_self=True)
    assert distances[0] == distances[20] == 0 and indices[0] == 20 and indices[20] == 0
    assert (distances[1:20] > 0).all()


def test_no_rows_have_no_neighbours():
    distances, indices = nearest_neighbours(rows(0), rows(5), 2)
    assert distances.shape == indices.shape == (0, 2)


def test_reduced_precision_of_the_caller_changes_nothing(monkeypatch):
    a, b = rows(50).requires_grad_(), rows(60, seed=1)
    expected = nearest_neighbours(a, b, 3)
    seen, cdist = [], torch.cdist

    def look(*args):
        seen.append((torch.backends.cuda.matmul.fp32_precision, torch.backends.mkldnn.matmul.fp32_precision))
        return cdist(*args)

    monkeypatch.setattr(torch, "cdist", look)
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = nearest_neighbours(a, b.double(), 3)
    finally:
        torch.set_float32_matmul_precision(before)
    assert seen == [("ieee", "ieee")]
    assert all(torch.equal(x, y) for x, y in zip(found, expected, strict=True))
    assert not found[0].requires_grad


@pytest.mark.parametrize(
    ("a", "b", "arguments", "message"),
    [
        ((5, 3), (5, 4), {}, r"must have one D, got \(5, 3\) and \(5, 4\)"),
        ((5,), (5, 4), {}, r"got \(5,\)"),
        ((5, 3), (6, 3), {"k": 7}, "k=7 must be between 1 and the 6 rows"),
        ((5, 3), (6, 3), {"k": 0}, "k=0 must be between"),
        ((5, 3), (0, 3), {}, "the 0 rows"),
        ((5, 3), (6, 3), {"exclude_self": True}, "one set given twice, got 5 and 6 rows"),
        ((6, 3), (6, 3), {"exclude_self": True, "k": 6}, "k=6 must be between 1 and the 5 rows"),
        ((5, 3), (6, 3), {"rows": 0}, "rows=0 must be at least 1"),
    ],
)
def test_bad_arguments_are_named(a, b, arguments, message):
    with pytest.raises(ValueError, match=message):
        nearest_neighbours(torch.zeros(a), torch.zeros(b), **arguments)
