"""tau found by dynamic programming: the cheapest path from x_T to the data when every jump has a price.

`ddim.diffusion.search.gits` and `ddim.diffusion.search.elbo` say what a jump costs. Prices are a float64 matrix
(M + 2, M + 2) over nodes in the order in which a sampler visits them: node 0 is x_T, node i in 1..M is the i-th
noisiest candidate timestep, node M + 1 is the clean data. Entry [i, j] is the price of going from i to j > i, all
others are infinite. The edge from node 0 is the price of letting the sampler start at a candidate, which takes no
network call; each candidate on a path is one call.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ddim.diffusion.schedule import NoiseSchedule
from ddim.diffusion.tau import select_timesteps


@dataclass(frozen=True)
class SearchedTau:
    """One result of a search.

    Attributes:
        timesteps: strictly increasing, as many as were wanted.
        cost: the price of the path; comparable within one search alone.
    """

    timesteps: tuple[int, ...]
    cost: float


def candidate_timesteps(schedule: NoiseSchedule, count: int = 64) -> Tensor:
    """An increasing LongTensor of at most `count` timesteps, among them 0 and T - 1, that serves both ends.

    Half of them are spaced like "trailing", half like "logsnr"; those that both name count once.

    Raises ValueError unless 2 <= count <= T.
    """
    total = schedule.num_timesteps
    if not 2 <= count <= total:
        raise ValueError(f"count must be in [2, {total}], got {count!r}")
    even = select_timesteps(total, count // 2, "trailing")
    levels = select_timesteps(total, count - count // 2, "logsnr", schedule=schedule)
    return torch.cat([even, levels, torch.zeros(1, dtype=torch.long)]).unique()


def cheapest_paths(
    costs: Tensor, candidates: Sequence[int] | Tensor, wanted: Sequence[int], *, coefficient: float = 1.0
) -> tuple[SearchedTau, ...]:
    """For each S in `wanted` the path of exactly S candidates whose price is least, in the order of `wanted`.

    costs: float64 (M + 2, M + 2) as the module says. candidates: the M timesteps, increasing.
    coefficient: the m-th edge of a path counts coefficient^m, m = 0, 1, ..., S; above 1 it makes late errors dearer.
    Every S up to the largest is solved by the way: V_k[i] = min over j of costs[i, j] + coefficient V_(k-1)[j], in
    O(M^2 S). Of paths of the same price the one that is noisier at the first difference is taken.

    Raises ValueError for costs of another shape, an S outside [1, M], or where no path of S candidates is finite.
    """
    noisiest_first = sorted((int(t) for t in candidates), reverse=True)
    nodes = len(noisiest_first) + 2
    if tuple(costs.shape) != (nodes, nodes):
        raise ValueError(f"costs must have shape {(nodes, nodes)} for {nodes - 2} candidates, got {tuple(costs.shape)}")
    for steps in wanted:
        if isinstance(steps, bool) or not 1 <= steps <= nodes - 2:
            raise ValueError(f"wanted must be numbers of steps in [1, {nodes - 2}], got {steps!r}")
    forward = costs.to("cpu", torch.float64).masked_fill(torch.ones(nodes, nodes).tril().bool(), math.inf)
    value = torch.full((nodes,), math.inf, dtype=torch.float64)
    value[-1] = 0.0
    values, choices = [value], []
    for _ in range(max(wanted, default=0) + 1):
        totals = forward + coefficient * values[-1]
        # The first of equal minima, whatever a reduction on this machine would choose.
        least = totals.amin(dim=1)
        choices.append((totals <= least.unsqueeze(1)).to(torch.uint8).argmax(dim=1))
        values.append(least)
    return tuple(_path(values, choices, noisiest_first, steps) for steps in wanted)


def _path(values: list[Tensor], choices: list[Tensor], noisiest_first: list[int], steps: int) -> SearchedTau:
    cost = float(values[steps + 1][0])
    if not math.isfinite(cost):
        raise ValueError(f"costs leave no path of {steps} steps")
    node, visited = 0, []
    for edges_left in range(steps + 1, 1, -1):
        node = int(choices[edges_left - 1][node])
        visited.append(noisiest_first[node - 1])
    return SearchedTau(tuple(reversed(visited)), cost)
