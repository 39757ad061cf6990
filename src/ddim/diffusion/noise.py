"""Standard normal noise addressed by (seed, stream, sample index, step) instead of drawn in some order.

Philox4x32-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3") turns a counter into random words
without any state, so a sample's noise does not depend on the batch, process or device it is computed in.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

STREAMS = ("initial", "step", "training", "validation")
_WORD = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_KEY_INCREMENTS = (0x9E3779B9, 0xBB67AE85)
_MAX_INDEX = 2**56


def philox4x32(
    counter: tuple[Tensor, Tensor, Tensor, Tensor], key: tuple[int, int], rounds: int = 10
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Four random 32-bit words per counter, held in int64 tensors of the counters' common broadcast shape.

    counter: int64 tensors of values in [0, 2^32) that broadcast together. key: two ints in [0, 2^32).
    """
    c0, c1, c2, c3 = counter
    shape = torch.broadcast_shapes(c0.shape, c1.shape, c2.shape, c3.shape)
    k0, k1 = key
    for _ in range(rounds):
        # A 64-bit product wraps to negative values; its high word is right again once masked, and c1 and c3, which
        # are only xored before the next mask, need none.
        p0, p1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c2 = _high_word_xor(p1, c1, k0, shape), _high_word_xor(p0, c3, k1, shape)
        c1, c3 = p1, p0
        k0, k1 = (k0 + _KEY_INCREMENTS[0]) & _WORD, (k1 + _KEY_INCREMENTS[1]) & _WORD
    w0, w1, w2, w3 = (word.expand(shape) for word in (c0, c1 & _WORD, c2, c3 & _WORD))
    return w0, w1, w2, w3


def _high_word_xor(product: Tensor, other: Tensor, key: int, shape: torch.Size) -> Tensor:
    high = product >> 32
    if high.shape != shape:
        # In the first rounds most of the counter is constant along one dimension; leaving it unexpanded saves work.
        return (high ^ other ^ key) & _WORD
    return high.bitwise_xor_(other).bitwise_xor_(key).bitwise_and_(_WORD)


def _stream_number(stream: str) -> int:
    if stream not in STREAMS:
        raise ValueError(f"stream must be one of {', '.join(STREAMS)}, got {stream!r}")
    return STREAMS.index(stream)


def _check_indices(indices: Tensor) -> None:
    if indices.ndim != 1 or indices.is_floating_point() or indices.dtype == torch.bool:
        raise ValueError(f"indices must be an integer tensor (N,), got {indices.dtype} {tuple(indices.shape)}")
    # Looking at values on an accelerator would stall it in every step.
    if indices.device.type == "cpu" and len(indices):
        low, high = int(indices.min()), int(indices.max())
        if low < 0 or high >= _MAX_INDEX:
            raise ValueError(f"indices must be in [0, 2^56), got values from {low} to {high}")


class NoiseSource:
    """Noise of one seed in [0, 2^64).

    Each of STREAMS is a domain of its own: "initial" is x_T, "step" the noise of the sampler's steps, "training" and
    "validation" are free for those uses. No two of (stream, index, step) share a counter, and `integers` shares none
    with the normals.

    Raises ValueError for a seed, index or step out of range and for an unknown stream.
    """

    def __init__(self, seed: int) -> None:
        if not isinstance(seed, int) or isinstance(seed, bool) or not 0 <= seed < 2**64:
            raise ValueError(f"seed must be an integer in [0, 2^64), got {seed!r}")
        self.seed = seed

    def initial(self, indices: Tensor, shape: Sequence[int], device: torch.device | str = "cpu") -> Tensor:
        """x_T float32 (N, *shape) of the samples `indices`, an integer tensor (N,) in [0, 2^56)."""
        return self.normal("initial", indices, 0, shape, device)

    def step(
        self,
        indices: Tensor,
        step: int,
        shape: Sequence[int],
        device: torch.device | str = "cpu",
        stream: str = "step",
    ) -> Tensor:
        """Noise float32 (N, *shape) for `step` in [0, 2^32) of the samples `indices`, an integer tensor (N,)."""
        return self.normal(stream, indices, step, shape, device)

    def bind(self, indices: Tensor, stream: str = "step") -> Callable[[int, Tensor], Tensor]:
        """(step, like) -> noise of like's shape, dtype and device for these samples: the `noise` of `sample`.

        It raises ValueError when `like` does not hold len(indices) samples.
        """
        _check_indices(indices)
        bound = indices

        def draw(step: int, like: Tensor) -> Tensor:
            nonlocal bound
            if len(like) != len(indices):
                raise ValueError(f"indices must name one sample each of a batch of {len(like)}, got {len(indices)}")
            bound = bound.to(like.device)
            return self.normal(stream, bound, step, like.shape[1:], like.device).to(like.dtype)

        return draw

    def normal(
        self, stream: str, indices: Tensor, step: int, shape: Sequence[int], device: torch.device | str = "cpu"
    ) -> Tensor:
        """Standard normal float32 (N, *shape).

        Box-Muller runs in float64 and is rounded once, which hides the last-digit differences between the logarithms
        and sines of different devices.
        """
        device = torch.device(device)
        size = math.prod(shape)
        blocks = -(-size // 4)
        compute = torch.device("cpu") if device.type == "mps" else device
        words = self._words(2 * _stream_number(stream), indices, step, blocks, compute)
        out = torch.empty((len(indices), 4, blocks), dtype=torch.float32, device=compute)
        for pair in (0, 2):
            radius = words[pair].to(torch.float64).add_(0.5).mul_(2.0**-32).log_().mul_(-2.0).sqrt_()
            angle = words[pair + 1].to(torch.float64).add_(0.5).mul_(2.0**-31 * math.pi)
            out[:, pair] = angle.cos().mul_(radius)
            out[:, pair + 1] = angle.sin_().mul_(radius)
        return out.flatten(1)[:, :size].reshape(len(indices), *shape).to(device)

    def integers(
        self, stream: str, indices: Tensor, step: int, high: int, device: torch.device | str = "cpu"
    ) -> Tensor:
        """LongTensor (N,) uniform over [0, high), high in [1, 2^31): the random timesteps of a training batch."""
        if not 1 <= high < 2**31:
            raise ValueError(f"high must be in [1, 2^31), got {high!r}")
        words = self._words(2 * _stream_number(stream) + 1, indices, step, 1, torch.device(device))
        return (words[0][:, 0] * high) >> 32

    def _words(
        self, domain: int, indices: Tensor, step: int, blocks: int, device: torch.device
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Four random words, each int64 (N, blocks); counter = (block, step, low index, domain and high index)."""
        _check_indices(indices)
        if not isinstance(step, int) or not 0 <= step <= _WORD:
            raise ValueError(f"step must be an integer in [0, 2^32), got {step!r}")
        index = indices.to(device, torch.long).unsqueeze(1)
        block = torch.arange(blocks, device=device).unsqueeze(0)
        counter = (block, torch.full_like(index, step), index & _WORD, ((index >> 32) & 0xFFFFFF) | (domain << 24))
        return philox4x32(counter, (self.seed & _WORD, self.seed >> 32))


def slerp(a: Tensor, b: Tensor, weight: float | Tensor) -> Tensor:
    """Spherical interpolation per sample, a at weight 0 and b at weight 1 (DDIM appendix D.5).

    a, b: floating point, same shape (N, ...). weight: a number, or a tensor (N,). Where two samples are so nearly
    parallel or opposite that the sine of their angle is no divisor, or one is zero, the interpolation is linear.

    Raises ValueError for mismatched shapes.
    """
    if a.shape != b.shape or a.ndim == 0:
        raise ValueError(f"a and b must have the same shape (N, ...), got {tuple(a.shape)} and {tuple(b.shape)}")
    dtype = torch.float32 if a.device.type == "mps" else torch.float64
    weights = torch.as_tensor(weight, dtype=dtype)
    if weights.ndim > 1 or (weights.ndim == 1 and len(weights) != len(a)):
        raise ValueError(f"weight must be a number or have shape ({len(a)},), got shape {tuple(weights.shape)}")
    flat_a, flat_b = (x.unsqueeze(-1).flatten(1).to(dtype) for x in (a, b))
    norms = flat_a.norm(dim=1) * flat_b.norm(dim=1)
    cosine = ((flat_a * flat_b).sum(dim=1) / norms).clamp(-1, 1)
    angle = cosine.acos()
    weights = weights.to(a.device).expand(len(a))
    linear = ~(angle.sin() > 1e-6)
    safe = torch.where(linear, torch.ones_like(angle), angle)
    weight_a = torch.where(linear, 1 - weights, ((1 - weights) * safe).sin() / safe.sin())
    weight_b = torch.where(linear, weights, (weights * safe).sin() / safe.sin())
    return (weight_a.unsqueeze(1) * flat_a + weight_b.unsqueeze(1) * flat_b).reshape(a.shape).to(a.dtype)
