"""A search for tau on a teacher's trajectory: Chen et al. 2024, "On the trajectory regularity of ODE-based diffusion
sampling".

x~ = x / sqrt(alpha_bar) and sigma = sqrt(1 - alpha_bar) / sqrt(alpha_bar) turn DDIM into Euler steps,
x~_next = x~ + (sigma_next - sigma) eps. A jump from point i of the teacher straight to sigma_j ends beside its point
j; the distance is the jump's error.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ddim.diffusion.samplers.base import Denoiser, StepState
from ddim.diffusion.samplers.generalized import sample
from ddim.diffusion.schedule import NoiseSchedule
from ddim.diffusion.search.paths import SearchedTau, candidate_timesteps, cheapest_paths
from ddim.diffusion.tau import explicit_timesteps

WEIGHTINGS = ("contraction", "none")
PAPER_COEFFICIENT = 1.15


@dataclass(frozen=True, eq=False)
class TeacherTrajectory:
    """What DDIM did on M candidate timesteps, reduced to inner products.

    All of the teacher's points, and all of the jumps from them, are combinations of x_T and its M values of eps; so
    the inner products of these M + 1 vectors are all that distances need, however large x is.

    Attributes:
        timesteps: the M candidates, noisiest first.
        sigmas: float64 (M + 1,), falling; the last one is 0, the clean data.
        signals: float64 (M + 1,), sqrt(alpha_bar); the last one is 1.
        products: float64 (N, M + 1, M + 1), inner products of (x_T, eps_1, ..., eps_M) of each latent over the number
            of elements of one x.
        mean_products: float64 (M + 1, M + 1), the same of the vectors' means over the latents.
    """

    timesteps: tuple[int, ...]
    sigmas: Tensor
    signals: Tensor
    products: Tensor
    mean_products: Tensor

    @property
    def calls(self) -> int:
        """Network calls that were spent, one per latent and candidate."""
        return len(self.products) * len(self.timesteps)

    def points(self) -> Tensor:
        """float64 (M + 1, M + 1): row p is the teacher's x~ at its p-th level, as coefficients of the vectors."""
        size = len(self.sigmas)
        steps = self.sigmas.diff().expand(size, size - 1).tril(-1)
        return torch.cat([torch.full((size, 1), 1 / float(self.signals[0]), dtype=torch.float64), steps], dim=1)

    def spread(self) -> Tensor:
        """float64 (M + 1,): standard deviation of x~ over the latents, root mean square over its elements."""
        points = self.points()
        around_mean = self.products.mean(dim=0) - self.mean_products
        return ((points @ around_mean) * points).sum(dim=1).clamp(min=0).sqrt()


def teacher_trajectory(
    denoiser: Denoiser,
    x_T: Tensor,
    schedule: NoiseSchedule,
    candidates: Sequence[int] | Tensor,
    *,
    batch_size: int = 64,
) -> TeacherTrajectory:
    """Sample x_T (N, ...) by DDIM on the increasing `candidates`, and keep what `jump_costs` needs.

    The denoiser is called M times for each batch of at most `batch_size` latents; eps of one batch is what is in
    memory at a time. Whether gradients are recorded is the caller's choice; nothing here needs them.

    Raises ValueError as `sample` does, and for no latents.
    """
    tau = explicit_timesteps(schedule.num_timesteps, candidates).tolist()
    if len(x_T) == 0:
        raise ValueError("x_T must hold at least one latent")
    products, total = [], torch.zeros(())
    for latents in x_T.split(batch_size):
        vectors = [latents]

        def keep(state: StepState, vectors: list[Tensor] = vectors) -> None:
            vectors.append(state.eps)

        sample(denoiser, latents, schedule, tau, on_step=keep)
        # Sums of thousands of squares, whose small differences are the errors that are looked for.
        stacked = torch.stack([v.detach().flatten(1).cpu().double() for v in vectors], dim=1)
        products.append(stacked @ stacked.mT / stacked.shape[2])
        total = total + stacked.sum(dim=0)
    mean = total / len(x_T)
    alpha_bar = torch.cat([schedule.alpha_bar[tau].flip(0), torch.ones(1, dtype=torch.float64)])
    return TeacherTrajectory(
        tuple(reversed(tau)),
        ((1 - alpha_bar) / alpha_bar).sqrt(),
        alpha_bar.sqrt(),
        torch.cat(products),
        mean @ mean.mT / mean.shape[1],
    )


def jump_costs(teacher: TeacherTrajectory, *, weighting: str = "contraction", order: int = 1) -> Tensor:
    """float64 (M + 2, M + 2), as `cheapest_paths` takes it: mean over latents of the root mean square error of a jump.

    The last row and column are the clean data. A start at candidate j takes x_T for x there, as `sample` does, and
    costs the distance to the teacher's point j, which came from x_T at the noisiest candidate.

    weighting: "contraction" multiplies the error of a jump to level j by spread_end / spread_j, the factor by which
        the flow shrinks the distance between trajectories from there on (exact for Gaussian data): the price is the
        jump's share of the error of x_0, and prices can be added. "none" leaves the error at level j as it is, as the
        paper does before its coefficient of 1.15; a start elsewhere than at the noisiest candidate is then infinite,
        because an error at sigma = 25 that the flow forgets would be taken for one of the images.
    order: 1 takes the jump of DDIM. 2 takes eps as the mean of those of both ends, whose error grows like that of the
        second-order solvers, with the third power of the jump; the jump to the clean data stays DDIM's.

    Raises ValueError for another weighting or order, and for "contraction" with a single latent.
    """
    if weighting not in WEIGHTINGS:
        raise ValueError(f"weighting must be one of {', '.join(WEIGHTINGS)}, got {weighting!r}")
    if order not in (1, 2):
        raise ValueError(f"order must be 1 or 2, got {order!r}")
    if weighting == "contraction" and len(teacher.products) < 2:
        raise ValueError("x_T must hold at least two latents for weighting='contraction'")
    levels = len(teacher.sigmas)
    points, sigmas = teacher.points(), teacher.sigmas
    vectors = torch.eye(levels, dtype=torch.float64)
    costs = torch.full((levels + 1, levels + 1), torch.inf, dtype=torch.float64)
    costs[0, 1:-1] = _mean_norm(vectors[0] / teacher.signals[:-1, None] - points[:-1], teacher.products)
    if weighting == "none":
        costs[0, 2:] = torch.inf
    for i in range(levels - 1):
        eps = vectors[i + 1].repeat(levels - 1 - i, 1)
        if order == 2:
            eps[:-1] = (eps[:-1] + vectors[i + 2 :]) / 2
        arrived = points[i] + (sigmas[i + 1 :] - sigmas[i]).unsqueeze(1) * eps
        costs[i + 1, i + 2 :] = _mean_norm(arrived - points[i + 1 :], teacher.products)
    if weighting == "contraction":
        spread = teacher.spread()
        costs[:, 1:] *= spread[-1] / spread
    return costs


def gits(
    denoiser: Denoiser,
    x_T: Tensor,
    schedule: NoiseSchedule,
    wanted: Sequence[int],
    *,
    candidates: Sequence[int] | Tensor | None = None,
    weighting: str = "contraction",
    order: int = 1,
    batch_size: int = 64,
) -> tuple[SearchedTau, ...]:
    """The timesteps for each S in `wanted`, from N M network calls: 16,384 for 256 latents and 64 candidates.

    candidates: increasing timesteps, `candidate_timesteps(schedule)` if None. weighting "none" is the paper's search,
    with its coefficient; see `jump_costs`. Deterministic given x_T; batch_size changes nothing but memory.

    Raises ValueError as `teacher_trajectory`, `jump_costs` and `cheapest_paths` do.
    """
    tau = candidate_timesteps(schedule) if candidates is None else candidates
    teacher = teacher_trajectory(denoiser, x_T, schedule, tau, batch_size=batch_size)
    costs = jump_costs(teacher, weighting=weighting, order=order)
    coefficient = PAPER_COEFFICIENT if weighting == "none" else 1.0
    return cheapest_paths(costs, teacher.timesteps, wanted, coefficient=coefficient)


def _mean_norm(vectors: Tensor, products: Tensor) -> Tensor:
    """(J,): the mean over latents of the norms of J combinations (J, K), by their inner products (N, K, K)."""
    squares = ((vectors @ products) * vectors).sum(dim=2)
    return squares.clamp(min=0).sqrt().mean(dim=0)
