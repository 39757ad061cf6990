"""What the operations of a training step belong to."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

# The longest pattern that the name of an operation contains decides.
PARTS = (
    ("convolutions, forward", ("mkldnn_convolution", "cudnn_convolution", "thnn_conv")),
    ("convolutions, backward", ("convolution_backward",)),
    ("optimizer", ("adam", "Optimizer")),
    ("average of the weights", ("lerp",)),
    ("gradient norm and clipping", ("vector_norm", "foreach_norm")),
    ("attention and linear layers", ("::mm", "addmm", "bmm", "softmax", "attention")),
    ("normalisation, forward", ("native_group_norm", "group_norm")),
    ("normalisation, backward", ("native_group_norm_backward", "_GroupNormBackward")),
    ("SiLU", ("silu",)),
    ("random numbers", ("random_", "bernoulli", "randn", "randint", "normal_", "::ge")),
    ("casts and copies", ("copy_", "_to_copy", "::cat", "clone")),
)
REST = "all other"


def shares(events: Iterable[Any], key: str) -> list[tuple[str, float]]:
    """(part, its share of all operations' own time from 0 to 1), largest first; `key` names the attribute of that."""
    totals: dict[str, float] = {}
    for event in events:
        part = _part(event.key)
        totals[part] = totals.get(part, 0.0) + getattr(event, key)
    everything = sum(totals.values())
    return sorted(((part, total / everything) for part, total in totals.items()), key=lambda item: -item[1])


def _part(name: str) -> str:
    matches = [(len(pattern), part) for part, patterns in PARTS for pattern in patterns if pattern in name]
    return max(matches)[1] if matches else REST
