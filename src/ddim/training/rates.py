"""How the learning rate goes: a linear warm-up, then a schedule over the steps that are left."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from ddim.errors import UserError


def constant(step: int, warmup: int, steps: int | None) -> float:
    """1."""
    return 1.0


def cosine(step: int, warmup: int, steps: int | None) -> float:
    """(1 + cos(pi p)) / 2 for p = the share of the steps after the warm-up that are done: 0 at the end of training."""
    assert steps is not None
    return 0.5 * (1 + math.cos(math.pi * min(1.0, max(0, step - warmup) / max(1, steps - warmup))))


def inverse_sqrt(step: int, warmup: int, steps: int | None) -> float:
    """sqrt(warmup / step) after the warm-up, so that the length of training need not be known."""
    return math.sqrt(warmup / max(step, warmup))


# (step, from 0, warm-up steps, all steps or None) -> factor on the learning rate.
RATES: dict[str, Callable[[int, int, int | None], float]] = {
    "constant": constant,
    "cosine": cosine,
    "inverse_sqrt": inverse_sqrt,
}
# Those that need to know the length of training.
LIMITED = ("cosine",)


def check_length(schedule: str, trainer: Mapping[str, Any]) -> None:
    """Refuse (`UserError`) a rate that falls to the end of training where the Trainer's arguments give it none."""
    ends = any((trainer.get(key) or -1) > 0 for key in ("max_steps", "max_epochs"))
    if schedule in LIMITED and not ends:
        raise UserError(
            f"optimizer.schedule={schedule} needs to know the length of training; give trainer.max_steps=N."
        )


def learning_rate(optimizer: Mapping[str, Any], steps: int | None) -> Callable[[int], float]:
    """The factor on `lr` at each optimizer step, from 0.

    Args:
        optimizer: its `warmup_steps` and, absent for "constant", `schedule`, one of RATES.
        steps: of the whole training; None where it has no end.

    Raises:
        UserError: the schedule needs an end and there is none.
    """
    warmup = max(1, optimizer["warmup_steps"])
    name = optimizer.get("schedule", "constant")
    if name in LIMITED and steps is None:
        raise UserError(f"optimizer.schedule={name} needs to know the length of training; give trainer.max_steps=N.")
    rate = RATES[name]
    return lambda step: min(1.0, (step + 1) / warmup) * rate(step, warmup, steps)
