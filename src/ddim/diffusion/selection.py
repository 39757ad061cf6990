"""Which timesteps a point of the grid is sampled at, and the largest S that keeps to a number of network calls."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ddim.diffusion.samplers.table import SAMPLERS
from ddim.diffusion.schedule import NoiseSchedule
from ddim.diffusion.search.paths import candidate_timesteps
from ddim.diffusion.tau import SPACINGS, explicit_timesteps, select_timesteps
from ddim.errors import UserError

# Spacings that are found with the trained network (`ddim.evaluation.searching`).
SEARCHED = ("gits", "elbo")
NAMES = ", ".join((*SPACINGS, *SEARCHED))
# How many timesteps a search chooses among, at most: every one is a network call for each of its latents or images.
CANDIDATES = 64
# With one timestep there is no jump between two to search for.
FEWEST_SEARCHED = 2


def search_candidates(schedule: NoiseSchedule) -> tuple[int, ...]:
    """The increasing timesteps that a search chooses among."""
    if schedule.num_timesteps < FEWEST_SEARCHED:
        return (0,)
    return tuple(candidate_timesteps(schedule, min(CANDIDATES, schedule.num_timesteps)).tolist())


def selections(schedule: NoiseSchedule, steps: Any, tau: Any, prefix: str) -> list[tuple[int, str, tuple[int, ...]]]:
    """(S, spacing's name, timesteps) of each spacing with each S; `UserError` naming the first value that is wrong.

    Those of a searched spacing stand in for what the search will find: as many, spaced linearly.
    """
    if isinstance(tau, Sequence) and not isinstance(tau, str) and tau and all(isinstance(name, str) for name in tau):
        return [selection for name in tau for selection in selections(schedule, steps, name, prefix)]
    if not isinstance(tau, str | Sequence):
        raise UserError(f"{prefix}.tau={tau} must be one of {NAMES} or a list of timesteps.")
    if not isinstance(tau, str):
        try:
            chosen = explicit_timesteps(schedule.num_timesteps, list(tau))
        except (ValueError, TypeError) as error:
            raise UserError(f"{prefix}.tau={tau} is not usable: {error}") from error
        return [(len(chosen), "explicit", tuple(chosen.tolist()))]
    if tau not in (*SPACINGS, *SEARCHED):
        raise UserError(f"{prefix}.tau={tau} is not known; choose one of {NAMES} or a list of timesteps.")
    found = []
    for count in as_list(steps, f"{prefix}.steps"):
        if isinstance(count, bool) or not isinstance(count, int) or not 1 <= count <= schedule.num_timesteps:
            raise UserError(
                f"{prefix}.steps={count} must be a whole number from 1 to {schedule.num_timesteps}, "
                "the timesteps of the schedule."
            )
        if tau in SEARCHED:
            _check_searched(schedule, count, tau, prefix)
        spacing = "linear" if tau in SEARCHED else tau
        chosen = select_timesteps(schedule.num_timesteps, count, spacing, schedule=schedule)
        found.append((count, tau, tuple(chosen.tolist())))
    return found


def _check_searched(schedule: NoiseSchedule, count: int, tau: str, prefix: str) -> None:
    most = len(search_candidates(schedule))
    if not FEWEST_SEARCHED <= count <= most:
        raise UserError(
            f"{prefix}.steps={count} is not possible with {prefix}.tau={tau}, which finds from {FEWEST_SEARCHED} to "
            f"{most} timesteps; take as many, or one of {', '.join(SPACINGS)}."
        )


def within(
    schedule: NoiseSchedule, nfe: Any, tau: Any, sampler: str, options: Mapping[str, Any], prefix: str
) -> list[tuple[int, str, tuple[int, ...], int]]:
    """For each limit of network calls the largest S that keeps to it, with its timesteps.

    Limits that lead to the same S are one point, at the lowest of them.

    options: the rule's own. Raises `UserError` naming the first value that is wrong.
    """
    found: dict[tuple[str, tuple[int, ...]], tuple[int, str, tuple[int, ...], int]] = {}
    spacings = as_list(tau, f"{prefix}.tau")
    limits = as_list(nfe, f"{prefix}.nfe")
    if any(limits.count(limit) > 1 for limit in limits):
        raise UserError(f"{prefix}.nfe={nfe} names a number of network calls twice.")
    if not all(isinstance(name, str) for name in spacings):
        raise UserError(f"{prefix}.nfe={nfe} chooses S, and {prefix}.tau={tau} does as well; take a spacing's name.")
    for spacing in spacings:
        for limit in limits:
            if isinstance(limit, bool) or not isinstance(limit, int) or limit < 1:
                raise UserError(f"{prefix}.nfe={limit} must be a whole number of at least 1.")
            counts: Sequence[int] = range(1, schedule.num_timesteps + 1)
            if spacing in SEARCHED:
                if limit < FEWEST_SEARCHED:
                    raise UserError(
                        f"{prefix}.nfe={limit} is not possible with {prefix}.tau={spacing}, which finds at least "
                        f"{FEWEST_SEARCHED} timesteps; take more, or one of {', '.join(SPACINGS)}."
                    )
                counts = range(FEWEST_SEARCHED, len(search_candidates(schedule)) + 1)

            def of(steps: int, spacing: str = spacing) -> tuple[int, ...]:
                ((_, _, timesteps),) = selections(schedule, steps, spacing, prefix)
                return timesteps

            steps, timesteps = largest(schedule, limit, sampler, options, counts, of, prefix)
            known = found.setdefault((spacing, timesteps), (steps, spacing, timesteps, limit))
            found[spacing, timesteps] = min(known, (steps, spacing, timesteps, limit), key=lambda one: one[-1])
    return list(found.values())


def largest(
    schedule: NoiseSchedule,
    limit: int,
    sampler: str,
    options: Mapping[str, Any],
    counts: Sequence[int],
    timesteps_of: Callable[[int], tuple[int, ...]],
    prefix: str,
) -> tuple[int, tuple[int, ...]]:
    """The largest S of the increasing `counts` whose timesteps cost at most `limit` network calls, and these.

    Raises `UserError` where there is none.
    """
    rule, possible, refused = SAMPLERS[sampler], list[int](), ""
    # The quadratic rule repeats timesteps, less than half of them.
    for steps in reversed([count for count in counts if count <= 2 * limit]):
        timesteps = timesteps_of(steps)
        if len(timesteps) > limit:
            continue
        try:
            calls = rule.calls(schedule, timesteps, **options)
        except (ValueError, TypeError) as error:
            # So few timesteps that the rule cannot run at all, or options with which it never does.
            refused = str(error)
            continue
        if calls <= limit:
            return steps, timesteps
        possible.append(calls)
    if refused and not possible:
        raise UserError(f"{prefix}.nfe={limit} is not possible with sampler.name={sampler}: {refused}.")
    fewest = f"; its fewest are {min(possible)}" if possible else ""
    raise UserError(f"{prefix}.nfe={limit} network calls are too few for sampler.name={sampler}{fewest}.")


def as_list(value: Any, key: str) -> list[Any]:
    """The values of a key that takes one or a list of them; `UserError` for a list without any."""
    values = list(value) if isinstance(value, Sequence) and not isinstance(value, str) else [value]
    if not values:
        raise UserError(f"{key}=[] is empty; give at least one value.")
    return values
