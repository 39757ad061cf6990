"""What every process has, on all of them; an error of one ends all."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, Protocol, TypeVar

from ddim.errors import SharedError, UserError

T = TypeVar("T")


class Together(Protocol):
    """What knows how many processes work at the same thing."""

    @property
    def world_size(self) -> int: ...


def failing_together(gathering: Callable[..., T]) -> Callable[..., T]:
    """For a function of (subject, ...) that works alone and at its end gathers once from all processes.

    A `UserError` of one process takes the place of what it would have given, and all raise it: none waits in vain.
    """

    @wraps(gathering)
    def together(subject: Together, *args: Any, **kwargs: Any) -> T:
        try:
            return gathering(subject, *args, **kwargs)
        except SharedError:
            raise
        except UserError as error:
            if subject.world_size == 1:
                raise
            gather_objects(error, subject.world_size)
            raise

    return together


def gather_objects(mine: Any, world_size: int) -> list[Any]:
    """What every process gives, by rank, on all. Raises `SharedError` where one of them gives a `UserError`."""
    everyone: list[Any] = [mine]
    if world_size > 1:
        import torch.distributed

        everyone = [None] * world_size
        torch.distributed.all_gather_object(everyone, mine)
    for given in everyone:
        if isinstance(given, UserError):
            raise SharedError(str(given)) from given
    return everyone


def from_first(value: T, world_size: int) -> T:
    """On every process the first one's value. All must call it."""
    return gather_objects(value, world_size)[0]
