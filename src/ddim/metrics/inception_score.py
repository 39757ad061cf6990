"""The Inception score over all samples, and without each block of them."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ddim.metrics.blocks import BLOCKS, block_of
from ddim.metrics.uncertainty import Jackknife


def inception_jackknife(logits: Tensor, blocks: int = BLOCKS) -> Jackknife:
    """exp(mean_x KL(p(y|x) || p(y))) (Salimans et al., 2016) from sums over blocks.

    logits: (N, K), of samples 0 ... N - 1. All of them are one split; with more splits each mean p(y) is of fewer
    samples, so that the score is a little lower.

    Raises ValueError as `Jackknife` does.
    """
    belongs = torch.from_numpy(block_of(np.arange(len(logits)), blocks))
    log_p = logits.detach().cpu().double().log_softmax(dim=1)
    p = log_p.exp()
    sizes = torch.bincount(belongs, minlength=blocks).double()
    sums = torch.zeros(blocks, p.shape[1], dtype=torch.float64).index_add(0, belongs, p)
    negentropies = torch.zeros(blocks, dtype=torch.float64).index_add(0, belongs, (p * log_p).sum(dim=1))

    def score(count: Tensor, total: Tensor, negentropy: Tensor) -> float:
        marginal = total / count
        return (negentropy / count - torch.special.xlogy(marginal, marginal).sum()).exp().item()

    whole = (sizes.sum(), sums.sum(dim=0), negentropies.sum())
    left = tuple(
        score(*(a - part for a, part in zip(whole, parts, strict=True)))
        for parts in zip(sizes, sums, negentropies, strict=True)
    )
    return Jackknife(score(*whole), left, len(logits))
