"""Measured numbers with their standard deviation: the block jackknife, paired differences, repetitions with seeds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from statistics import fmean, stdev
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ddim.metrics.blocks import BLOCKS, block_sizes

# Standard deviations of a difference up to which two points cannot be told apart, see `compare`.
MULTIPLE = 2.0


@dataclass(frozen=True)
class Measured:
    """A number, its standard deviation (at least 0), and over what that was taken, in words."""

    value: float
    sd: float
    how: str


@dataclass(frozen=True)
class Jackknife:
    """A number measured on samples 0 ... N - 1, and on all of them but one block, for each of B >= 2 blocks.

    Blocks are those of `ddim.metrics.blocks.block_of`. These B + 2 numbers are all that has to be kept of a finished
    point, whatever was measured: deviation, bias and paired differences follow. `dataclasses.asdict` of it is JSON-able
    and `Jackknife(**stored)` is the inverse.

    Raises ValueError for fewer than 2 blocks, and for fewer samples than blocks.
    """

    value: float
    leave_one_out: tuple[float, ...]
    num_samples: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "leave_one_out", tuple(self.leave_one_out))
        if not 2 <= len(self.leave_one_out) <= self.num_samples:
            raise ValueError(
                f"{self.num_samples} samples in {len(self.leave_one_out)} blocks: at least 2 blocks, and none empty"
            )

    @property
    def unbiased(self) -> float:
        """The value without its bias of order 1/N: B v - (B - 1) mean_j v_-j.

        A bias c/N is c B / ((B - 1) N) where a block is left out, and cancels; what remains is of order 1/N^2. For
        blocks of m_j samples that are not all equal: B v - sum_j (1 - m_j / N) v_-j (Busing, Meijer and van der Leeden,
        1999, which is also what `sd` follows).
        """
        kept, left = 1 - self._shares, np.asarray(self.leave_one_out)
        return float(len(left) * self.value - (kept * left).sum())

    @property
    def sd(self) -> float:
        """Standard deviation of the value over other draws of the samples; of `unbiased` as well, to first order.

        Its square is (B - 1)/B sum_j (v_-j - mean v_-j)^2 for equal blocks. It has itself a relative error of
        (2 (B - 1))^(-1/2), and 2 sd are a level of 92 % with 10 blocks (Student's t). Reference and network are taken
        as given: another training or other real images move a distance by more than other samples do. Near its zero a
        distance has no first order, and this is too large, by half as much again.
        """
        inverse, left = 1 / self._shares, np.asarray(self.leave_one_out)
        pseudo_values = inverse * self.value - (inverse - 1) * left
        return math.sqrt(((pseudo_values - self.unbiased) ** 2 / (inverse - 1)).mean())

    def measured(self, unbiased: bool = False) -> Measured:
        """The value, or the one without bias, with its standard deviation."""
        how = f"jackknife over {len(self.leave_one_out)} blocks"
        return Measured(self.unbiased if unbiased else self.value, self.sd, how)

    @property
    def _shares(self) -> NDArray[np.float64]:
        return block_sizes(self.num_samples, len(self.leave_one_out)) / self.num_samples


def difference(first: Sequence[Jackknife], second: Sequence[Jackknife], unbiased: bool = True) -> Measured:
    """first - second, paired: two points, each measured with the same seeds, one `Jackknife` per seed (at least one).

    Where sample i of both starts from the same noise, what both have in common cancels block by block, and the
    deviation is smaller than that of either. Points with noise of their own may be given as well: it is then what two
    independent ones have. Over K seeds: the mean, with (sum_k sd_k^2)^(1/2) / K.

    unbiased: each point without its bias of order 1/N, which is not the same for all; right for the Frechet distance.
    Metrics without such a bias (KID, precision) or with one of another form (recall) are compared by their values.

    Raises ValueError where numbers of seeds, samples or blocks differ.
    """
    pairs = [_paired(a, b).measured(unbiased) for a, b in zip(first, second, strict=True)]
    sd = math.sqrt(sum(pair.sd**2 for pair in pairs)) / len(pairs)
    return Measured(fmean(pair.value for pair in pairs), sd, f"paired {pairs[0].how}")


def _paired(first: Jackknife, second: Jackknife) -> Jackknife:
    sizes = {(point.num_samples, len(point.leave_one_out)) for point in (first, second)}
    if len(sizes) > 1:
        told = " and ".join(f"{samples} samples in {blocks} blocks" for samples, blocks in sorted(sizes))
        raise ValueError(f"only points of the same samples can be paired, not {told}")
    left = zip(first.leave_one_out, second.leave_one_out, strict=True)
    return Jackknife(first.value - second.value, tuple(a - b for a, b in left), first.num_samples)


@dataclass(frozen=True)
class Comparison:
    """Points against the best of them.

    best: its index. differences: of each point to the best, paired; the best one's is 0 +- 0. as_good: which cannot be
    told apart from the best, itself included.
    """

    best: int
    differences: tuple[Measured, ...]
    as_good: tuple[bool, ...]


def compare(
    points: Sequence[Sequence[Jackknife]],
    better: Literal["min", "max"] = "min",
    unbiased: bool = True,
    multiple: float = MULTIPLE,
) -> Comparison:
    """Which points are the best, and which cannot be told apart from it: |difference| <= multiple * its deviation.

    points: at least one; each a `Jackknife` per seed, as in `difference`, which also says what `unbiased` does.

    With 10 blocks and one seed, 2 deviations are a level of 92 % for one pair that was chosen beforehand. The best of P
    points is chosen after looking, and has had luck: of points that are equally good, an honest table at 2 deviations
    calls at least one worse in 7 % of cases for P = 2, 38 % for 5, 67 % for 9 and 98 % for 25. `multiple` of
    `simultaneous_multiple(P)` keeps that at 5 %; or other seeds decide between the best few.

    Raises ValueError without points or where they cannot be paired.
    """
    values = [fmean(one.measured(unbiased).value for one in point) for point in points]
    sign = {"min": 1, "max": -1}[better]
    # A number that is not one is never the best, unless all are.
    best = min(range(len(values)), key=lambda i: (math.isnan(values[i]), sign * values[i]))
    differences = tuple(difference(point, points[best], unbiased) for point in points)
    as_good = tuple(abs(found.value) <= multiple * found.sd for found in differences)
    return Comparison(best, differences, tuple(i == best or good for i, good in enumerate(as_good)))


@cache
def simultaneous_multiple(points: int, blocks: int = BLOCKS, level: float = 0.95) -> float:
    """The `multiple` at which `compare` marks all of that many equally good points, with probability `level`.

    By simulation, to about 2 %: Student's statistic of each point's difference to the best of all, blocks normal, what
    points have in common cancelled. For K seeds of B blocks, pass K (B - 1) + 1 blocks.

    Raises ValueError for fewer than 2 points or blocks, and a level outside of (0, 1).
    """
    if points < 2 or blocks < 2 or not 0 < level < 1:
        raise ValueError(f"{points} points and {blocks} blocks must be at least 2, level={level} between 0 and 1")
    rng, largest = np.random.default_rng(0), []
    for _ in range(10):
        values = rng.standard_normal((1000, points, blocks))
        best = values.mean(axis=2).argmin(axis=1)[:, None, None]
        differences = values - np.take_along_axis(values, best, axis=1)
        deviations = differences.std(axis=2, ddof=1) / math.sqrt(blocks)
        # The best one's own difference is 0 +- 0.
        largest.append((differences.mean(axis=2) / np.where(deviations > 0, deviations, 1)).max(axis=1))
    return float(np.quantile(np.concatenate(largest), level))


def over_seeds(values: Sequence[float]) -> Measured:
    """Mean and standard deviation (K - 1 in the denominator) of a number over K >= 2 independent seeds.

    The deviation is that of one seed; the mean's own is K^(-1/2) times it. The minimum is no estimate of anything: of 3
    seeds it lies 0.85 deviations below the mean.

    Raises ValueError for fewer than two.
    """
    if len(values) < 2:
        raise ValueError(f"a deviation over seeds needs at least 2 of them, got {len(values)}")
    return Measured(fmean(values), stdev(values), f"standard deviation over {len(values)} seeds")
