"""Which condition a sample has, as a function of its number, so that no sample depends on its batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

# Sample numbers (N,) -> their conditions (N, ...), int64, on the CPU.
ConditionOf = Callable[[Tensor], Tensor]


def in_turn(classes: int | Sequence[int]) -> ConditionOf:
    """Sample i is of class i mod K, or of the (i mod n)-th of n chosen classes, which may name one several times.

    Any K, or n, samples in a row are then of all of them alike.

    Raises ValueError where there is no class to choose.
    """
    chosen = torch.arange(classes) if isinstance(classes, int) else torch.tensor(classes, dtype=torch.long)
    if not len(chosen):
        raise ValueError("there must be at least one class")
    return lambda numbers: chosen[numbers.cpu() % len(chosen)]
