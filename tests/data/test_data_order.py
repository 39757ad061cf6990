"""Training order: permutations, ranks, mirrored images; evaluation order: each image once."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ddim.data.order import EvaluationBatches, Item, TrainingBatches, TrainingOrder

sizes = st.tuples(st.integers(1, 60), st.integers(1, 7), st.integers(1, 4)).filter(lambda s: s[0] >= s[1] * s[2])


def epoch_of(order: TrainingOrder, epoch: int) -> list[list[Item]]:
    first = epoch * order.batches_per_epoch
    return [order.batch(number) for number in range(first, first + order.batches_per_epoch)]


@settings(deadline=None)
@given(size=sizes, seed=st.integers(-5, 2**70), epoch=st.integers(0, 5))
def test_an_epoch_holds_each_image_at_most_once_over_all_ranks(
    size: tuple[int, int, int], seed: int, epoch: int
) -> None:
    num_images, batch_size, world_size = size
    ranks = [TrainingOrder(num_images, batch_size, seed, rank, world_size) for rank in range(world_size)]
    batches = [batch for rank in ranks for batch in epoch_of(rank, epoch)]
    assert all(len(batch) == batch_size for batch in batches)
    indices = [index for batch in batches for index, _ in batch]
    assert len(indices) == len(set(indices)) == num_images // (batch_size * world_size) * batch_size * world_size
    assert set(indices) <= set(range(num_images))


@settings(deadline=None)
@given(seed=st.integers(0, 1000), number=st.integers(0, 50))
def test_ranks_divide_the_global_batch_and_its_mirrored_images(seed: int, number: int) -> None:
    one = TrainingOrder(50, 6, seed, random_flip=True).batch(number)
    ranks = [TrainingOrder(50, 2, seed, rank, 3, random_flip=True).batch(number) for rank in range(3)]
    assert [item for rank in ranks for item in rank] == one


def test_seeds_and_epochs_have_their_own_order() -> None:
    orders = {
        tuple(index for batch in epoch_of(TrainingOrder(30, 5, seed), epoch) for index, _ in batch)
        for seed in range(3)
        for epoch in range(4)
    }
    assert len(orders) == 12


def test_mirroring_is_fair_independent_of_the_order_and_can_be_off() -> None:
    order = TrainingOrder(1000, 1000, 0, random_flip=True)
    epochs = [dict(order.batch(epoch)) for epoch in range(20)]
    share = [sum(epoch.values()) / 1000 for epoch in epochs]
    assert all(0.42 < value < 0.58 for value in share)  # five standard deviations
    per_image = [sum(epoch[index] for epoch in epochs) for index in range(1000)]
    assert min(per_image) < 6 and max(per_image) > 14 and 9.5 < sum(per_image) / 1000 < 10.5
    assert not any(flip for _, flip in TrainingOrder(1000, 1000, 0).batch(0))


def test_the_order_of_a_seed_never_changes() -> None:
    pinned = [(1, False), (8, False), (7, True), (6, True), (2, False)]
    assert TrainingOrder(10, 5, 7, random_flip=True).batch(3) == pinned


@settings(deadline=None)
@given(start=st.integers(0, 40))
def test_batches_begin_where_training_stands_and_run_into_the_next_epoch(start: int) -> None:
    order = TrainingOrder(22, 4, 1)
    batches = TrainingBatches(order, lambda: start)
    assert len(batches) == 5
    assert list(batches) == [order.batch(number) for number in range(start, start + 5)]


def test_position_is_read_when_the_iterator_is_made() -> None:
    position = [3]
    batches = TrainingBatches(TrainingOrder(22, 4, 1), lambda: position[0])
    iterator = iter(batches)
    position[0] = 9
    assert next(iterator) == batches.order.batch(3)


@settings(deadline=None)
@given(num_images=st.integers(0, 50), batch_size=st.integers(1, 9), world_size=st.integers(1, 4))
def test_evaluation_covers_each_image_once_over_all_ranks(num_images: int, batch_size: int, world_size: int) -> None:
    samplers = [EvaluationBatches(range(num_images), batch_size, rank, world_size) for rank in range(world_size)]
    items = [item for sampler in samplers for batch in sampler for item in batch]
    assert sorted(items) == [(index, False) for index in range(num_images)]
    for sampler in samplers:
        batches = list(sampler)
        assert len(batches) == len(sampler)
        assert all(0 < len(batch) <= batch_size for batch in batches)
        indices = [index for batch in batches for index, _ in batch]
        assert indices == sorted(indices)
    assert max(map(len, samplers)) - min(map(len, samplers)) <= 1


@pytest.mark.parametrize(
    "arguments",
    [
        {"num_images": 3, "batch_size": 4},
        {"num_images": 7, "batch_size": 4, "world_size": 2},
        {"num_images": 7, "batch_size": 0},
        {"num_images": 7, "batch_size": 2, "rank": 2, "world_size": 2},
        {"num_images": 7, "batch_size": 2, "rank": -1},
    ],
)
def test_impossible_orders_are_refused(arguments: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        TrainingOrder(**{"seed": 0, **arguments})
