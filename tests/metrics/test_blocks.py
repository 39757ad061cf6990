"""Blocks of samples by their number: balanced, blind to periods, and moments that no batching changes."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ddim.metrics import BlockMoments, RunningMoments, block_of
from ddim.metrics.blocks import block_sizes


def normal(count, dim, seed=0):
    return torch.randn(count, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("blocks", [2, 3, 10, 16])
def test_every_run_of_samples_has_one_in_each_block(blocks):
    found = block_of(np.arange(50 * blocks), blocks).reshape(50, blocks)
    assert (np.sort(found, axis=1) == np.arange(blocks)).all()


@settings(deadline=None, max_examples=50)
@given(count=st.integers(0, 300), blocks=st.integers(2, 12), seed=st.integers(0, 1000))
def test_a_block_is_decided_by_the_number_alone(count, blocks, seed):
    whole = block_of(np.arange(count), blocks)
    order = np.random.default_rng(seed).permutation(count)
    assert (block_of(order, blocks) == whole[order]).all()
    sizes = block_sizes(count, blocks)
    assert (sizes == np.bincount(whole, minlength=blocks)).all()
    assert sizes.max() - sizes.min() <= 1


@pytest.mark.parametrize("period", [2, 5, 10, 11, 20, 100, 110, 1000])
def test_labels_that_are_periodic_in_the_number_are_in_all_blocks(period):
    """Blocks of one label each would take a deviation between labels for one between samples."""
    numbers = np.arange(20_000)
    counts = np.zeros((period, 10))
    np.add.at(counts, (numbers % period, block_of(numbers)), 1)
    # As a fair draw of blocks would scatter them; (i + i // 10) mod 10, say, is periodic with 100 and fails.
    expected = len(numbers) / period / 10
    assert np.abs(counts - expected).max() < 5 * np.sqrt(expected) + 1
    chi_square = ((counts - expected) ** 2 / expected).sum() / (period * 9)
    assert chi_square < 3


def test_fewer_than_two_blocks_are_refused():
    for make in (lambda: block_of(np.arange(3), 1), lambda: BlockMoments(4, 1)):
        with pytest.raises(ValueError, match="blocks=1 must be at least 2"):
            make()


@settings(deadline=None, max_examples=40)
@given(data=st.data(), blocks=st.integers(2, 5), count=st.integers(12, 60))
def test_moments_of_blocks_do_not_depend_on_batches_order_or_processes(data, blocks, count):
    rows, order = normal(count, 3) + 100, torch.from_numpy(np.random.default_rng(count).permutation(count))
    cuts = sorted(data.draw(st.lists(st.integers(0, count), max_size=6)))
    processes = [BlockMoments(3, blocks) for _ in range(3)]
    for part in np.split(order.numpy(), cuts):
        processes[data.draw(st.integers(0, 2))].update(rows[part], torch.from_numpy(part))
    whole = BlockMoments(3, blocks)
    for process in data.draw(st.permutations(processes)):
        whole.merge(pickle.loads(pickle.dumps(process)))
    assert len(whole) == count
    belongs = block_of(np.arange(count), blocks)
    for number, moments in enumerate(whole.moments):
        mine = rows.numpy()[belongs == number]
        assert len(moments) == len(mine)
        np.testing.assert_allclose(moments.mean, mine.mean(axis=0), rtol=1e-12)
        np.testing.assert_allclose(moments.scatter, np.cov(mine.T, ddof=0) * len(mine), rtol=1e-9, atol=1e-10)
    for number, moments in enumerate(whole.leave_one_out()):
        others = rows.numpy()[belongs != number]
        assert len(moments) == len(others)
        np.testing.assert_allclose(moments.mean, others.mean(axis=0), rtol=1e-12)
        np.testing.assert_allclose(moments.covariance(), np.cov(others.T), rtol=1e-9, atol=1e-10)
    np.testing.assert_allclose(whole.total().covariance(), np.cov(rows.numpy().T), rtol=1e-9, atol=1e-10)


def test_memory_does_not_depend_on_the_number_of_samples():
    sizes = []
    for count in (5_000, 50_000):
        blocks = BlockMoments(20)
        for numbers in torch.arange(count).split(999):
            blocks.update(normal(len(numbers), 20), numbers)
        assert len(blocks) == count
        sizes.append(len(pickle.dumps(blocks)))
    assert max(sizes) < 10 * 20 * 20 * 8 + 2048 * (20 + 1) * 8 + 20_000


def test_memory_that_a_caller_uses_again_changes_nothing():
    blocks, rows = BlockMoments(2), normal(30, 2)
    buffer = rows.clone()
    blocks.update(buffer, torch.arange(30))
    buffer.zero_()
    expected = RunningMoments(2)
    expected.update(rows)
    np.testing.assert_allclose(blocks.total().mean, expected.mean, rtol=1e-12)


@pytest.mark.parametrize(("shape", "numbers"), [((5, 3), 5), ((5, 2), 4), ((5,), 5)])
def test_rows_that_do_not_fit_are_refused(shape, numbers):
    with pytest.raises(ValueError, match=r"expected features of shape \(N, 2\) and N numbers"):
        BlockMoments(2).update(torch.zeros(shape), torch.arange(numbers))


def test_other_blocks_do_not_join():
    with pytest.raises(ValueError, match="5 blocks of 2 dimensions cannot join 10 of 2 dimensions"):
        BlockMoments(2).merge(BlockMoments(2, 5))
