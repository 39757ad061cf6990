"""A search for tau on the variational bound: Watson et al. 2021, "Learning to efficiently sample from diffusion
probabilistic models".

What it finds is the best tau for bits per dimension of the stochastic model. The paper found no better FID.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ddim.diffusion.likelihood.bound import BoundTerms, step_divergence
from ddim.diffusion.search.paths import SearchedTau, cheapest_paths


def bound_costs(terms: BoundTerms, eta: float = 1.0, *, variance: str = "eta") -> Tensor:
    """float64 (M + 2, M + 2), as `cheapest_paths` takes it: bits per dimension that each jump adds, mean over images.

    From x_T the prior term, to the data the decoder. The price of a path is the mean of `variational_bound` along it.
    Arguments and errors as there.
    """
    alpha_bar = terms.schedule.alpha_bar[list(terms.timesteps)].flip(0)
    error, decoder, prior = (values.mean(dim=0).flip(0) for values in (terms.error, terms.decoder, terms.prior))
    nodes = len(alpha_bar) + 2
    costs = torch.full((nodes, nodes), torch.inf, dtype=torch.float64)
    costs[0, 1:-1] = prior
    costs[1:-1, -1] = decoder
    above, below = torch.triu_indices(nodes - 2, nodes - 2, offset=1)
    jumps = step_divergence(error[above], alpha_bar[above], alpha_bar[below], eta, variance)
    costs[above + 1, below + 1] = jumps
    return costs / math.log(2)


def elbo(
    terms: BoundTerms, wanted: Sequence[int], eta: float = 1.0, *, variance: str = "eta"
) -> tuple[SearchedTau, ...]:
    """The timesteps for each S in `wanted` of least bound, which is `SearchedTau.cost` in bits per dimension.

    It calls no network: `terms` of 256 images at 64 timesteps are 16,384 calls, for any number of wanted S. Only the
    timesteps of `terms` can be chosen.

    Raises ValueError as `variational_bound` and `cheapest_paths` do.
    """
    return cheapest_paths(bound_costs(terms, eta, variance=variance), terms.timesteps, wanted)
