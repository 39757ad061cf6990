"""Addressed noise: Philox's known answers, independence of batch and order, and the normal distribution."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ddim.diffusion import STREAMS, NoiseSource, slerp
from ddim.diffusion.noise import philox4x32

KNOWN_ANSWERS = [
    ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
]


def hex_words(text: str) -> list[int]:
    return [int(word, 16) for word in text.split()]


def reference_philox(counter: list[int], key: list[int]) -> list[int]:
    """Philox4x32-10 in Python's unbounded integers, straight from the paper's figure."""
    mask = 2**32 - 1
    for _ in range(10):
        high_0, low_0 = divmod(counter[0] * 0xD2511F53, 2**32)
        high_1, low_1 = divmod(counter[2] * 0xCD9E8D57, 2**32)
        counter = [high_1 ^ counter[1] ^ key[0], low_1, high_0 ^ counter[3] ^ key[1], low_0]
        key = [(key[0] + 0x9E3779B9) & mask, (key[1] + 0xBB67AE85) & mask]
    return counter


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN_ANSWERS)
def test_philox_gives_the_random123_known_answers(counter, key, expected):
    assert reference_philox(hex_words(counter), hex_words(key)) == hex_words(expected)
    words = philox4x32(tuple(torch.tensor([w]) for w in hex_words(counter)), tuple(hex_words(key)))
    assert [int(w) for w in words] == hex_words(expected)


@given(
    st.lists(st.integers(0, 2**32 - 1), min_size=4, max_size=4),
    st.lists(st.integers(0, 2**32 - 1), min_size=2, max_size=2),
)
@settings(deadline=None, max_examples=100)
def test_philox_equals_unbounded_integers_however_the_counter_broadcasts(counter, key):
    expected = reference_philox(counter, key)
    shapes = [(1, 3), (2, 1), (2, 1), (2, 1)]
    words = philox4x32(tuple(torch.full(s, c) for s, c in zip(shapes, counter, strict=True)), tuple(key))
    for word, value in zip(words, expected, strict=True):
        assert torch.equal(word, torch.full((2, 3), value))


@given(
    seed=st.integers(0, 2**64 - 1),
    stream=st.sampled_from(STREAMS),
    index=st.integers(0, 2**56 - 1),
    step=st.integers(0, 2**32 - 1),
)
@settings(deadline=None, max_examples=50)
def test_each_value_is_box_muller_of_its_own_counter(seed, stream, index, step):
    values = NoiseSource(seed).normal(stream, torch.tensor([index]), step, (2, 5))
    assert values.dtype == torch.float32
    key = [seed % 2**32, seed // 2**32]
    expected = [[], [], [], []]
    for block in range(3):
        domain = 2 * STREAMS.index(stream)
        words = reference_philox([block, step, index % 2**32, index // 2**32 + domain * 2**24], key)
        for pair in (0, 2):
            radius = math.sqrt(-2 * math.log((words[pair] + 0.5) / 2**32))
            angle = 2 * math.pi * (words[pair + 1] + 0.5) / 2**32
            expected[pair].append(radius * math.cos(angle))
            expected[pair + 1].append(radius * math.sin(angle))
    flat = torch.tensor(expected, dtype=torch.float64).flatten()[:10].float()
    torch.testing.assert_close(values.flatten(), flat, rtol=1e-6, atol=1e-7)


@given(data=st.data(), shape=st.lists(st.integers(1, 9), max_size=3).map(tuple))
@settings(deadline=None, max_examples=50)
def test_noise_is_the_same_for_any_split_and_order(data, shape):
    source = NoiseSource(data.draw(st.integers(0, 2**64 - 1)))
    step = data.draw(st.integers(0, 2**32 - 1))
    whole = source.step(torch.arange(11), step, shape)
    order = torch.tensor(data.draw(st.permutations(range(11))))
    cuts = sorted(data.draw(st.lists(st.integers(0, 11), max_size=4)))
    pieces = [source.step(part, step, shape) for part in order.tensor_split(cuts)]
    assert whole.shape == (11, *shape)
    assert torch.equal(torch.cat(pieces), whole[order])


def test_image_batches_split_without_changing_a_bit():
    source = NoiseSource(3)
    whole = source.initial(torch.arange(64), (3, 32, 32))
    assert torch.equal(whole[17:18], source.initial(torch.tensor([17]), (3, 32, 32)))
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    two_threads = source.initial(torch.arange(64), (3, 32, 32))
    torch.set_num_threads(before)
    assert torch.equal(whole, two_threads)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_gpu_starts_from_the_same_noise():
    source = NoiseSource(3)
    indices = torch.arange(64)
    on_gpu = source.initial(indices, (3, 32, 32), "cuda")
    assert on_gpu.device.type == "cuda"
    torch.testing.assert_close(on_gpu.cpu(), source.initial(indices, (3, 32, 32)), rtol=2e-7, atol=1e-9)
    drawn = source.bind(indices)(5, on_gpu)
    torch.testing.assert_close(drawn.cpu(), source.step(indices, 5, (3, 32, 32)), rtol=2e-7, atol=1e-9)
    t = source.integers("training", indices, 2, 1000, "cuda")
    assert torch.equal(t.cpu(), source.integers("training", indices, 2, 1000))


def test_different_addresses_give_uncorrelated_noise():
    size = (40_000,)
    draws = [
        NoiseSource(seed).normal(stream, torch.tensor([index]), step, size)[0]
        for seed in (0, 1, 2**32)
        for stream in STREAMS
        for index in (0, 1, 2**32)
        for step in (0, 1)
    ]
    correlation = torch.corrcoef(torch.stack(draws).double())
    correlation.fill_diagonal_(0)
    assert correlation.abs().max() < 5.5 / math.sqrt(40_000)


def test_noise_is_standard_normal():
    z = NoiseSource(11).initial(torch.arange(100), (10_000,)).double().flatten()
    n = len(z)
    for power, moment in ((1, 0), (2, 1), (3, 0), (4, 3), (6, 15)):
        variance = math.prod(range(1, 2 * power, 2)) - moment**2
        assert abs((z**power).mean() - moment) < 5 * math.sqrt(variance / n)
    ranks = torch.arange(1, n + 1, dtype=torch.float64) / n
    kolmogorov_smirnov = (torch.special.ndtr(z.sort().values) - ranks).abs().max()
    assert kolmogorov_smirnov < 2 / math.sqrt(n)
    assert 4.5 < z.abs().max() < 6.77


def test_initial_and_step_use_their_own_streams():
    source, indices = NoiseSource(5), torch.arange(3)
    assert torch.equal(source.initial(indices, (4,)), source.normal("initial", indices, 0, (4,)))
    assert torch.equal(source.step(indices, 2, (4,)), source.normal("step", indices, 2, (4,)))
    assert torch.equal(source.step(indices, 2, (4,), stream="training"), source.normal("training", indices, 2, (4,)))
    assert not torch.equal(source.initial(indices, (4,)), source.step(indices, 0, (4,)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_bound_noise_follows_the_state(dtype):
    source, indices = NoiseSource(5), torch.tensor([4, 2, 9])
    like = torch.empty(3, 2, 2, dtype=dtype)
    drawn = source.bind(indices)(6, like)
    assert drawn.dtype == dtype
    assert torch.equal(drawn, source.step(indices, 6, (2, 2)).to(dtype))


def test_integers_are_uniform_and_addressed():
    source, indices = NoiseSource(5), torch.arange(100_000)
    t = source.integers("training", indices, 3, 10)
    assert t.dtype == torch.long
    counts = torch.bincount(t, minlength=10).double()
    assert len(counts) == 10
    assert ((counts - 10_000) ** 2 / 10_000).sum() < 35
    assert torch.equal(t[500:600], source.integers("training", indices[500:600], 3, 10))
    # A shared counter would make the first normal's radius a function of t.
    radius = source.step(indices, 3, (4,), stream="training")[:, :2].norm(dim=1)
    assert abs(torch.corrcoef(torch.stack([radius, t.float()]))[0, 1]) < 5 / math.sqrt(100_000)
    assert source.integers("training", indices[:10], 0, 1).tolist() == [0] * 10


@pytest.mark.parametrize("shape", [(0,), (), (1,), (3, 0, 2)])
def test_small_and_empty_shapes(shape):
    assert NoiseSource(0).initial(torch.arange(2), shape).shape == (2, *shape)
    assert NoiseSource(0).initial(torch.arange(0), shape).shape == (0, *shape)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: NoiseSource(-1), r"seed must be an integer in \[0, 2\^64\), got -1"),
        (lambda: NoiseSource(2**64), "seed must be an integer"),
        (lambda: NoiseSource(1.5), "seed.*got 1.5"),
        (lambda: NoiseSource(0).initial(torch.tensor([0, -1]), (2,)), r"indices must be in \[0, 2\^56\).*-1"),
        (lambda: NoiseSource(0).initial(torch.tensor([2**56]), (2,)), r"indices must be in \[0, 2\^56\)"),
        (lambda: NoiseSource(0).initial(torch.ones(2), (2,)), "indices must be an integer tensor.*float32"),
        (lambda: NoiseSource(0).initial(torch.tensor(1), (2,)), "indices must be an integer tensor"),
        (lambda: NoiseSource(0).bind(torch.tensor([-1])), "indices must be in"),
        (lambda: NoiseSource(0).bind(torch.arange(3))(0, torch.ones(2, 2)), "indices must name.*batch of 2, got 3"),
        (lambda: NoiseSource(0).step(torch.arange(2), -1, (2,)), r"step must be an integer in \[0, 2\^32\), got -1"),
        (lambda: NoiseSource(0).step(torch.arange(2), 2**32, (2,)), "step must be an integer"),
        (lambda: NoiseSource(0).step(torch.arange(2), 0, (2,), stream="test"), "stream must be one of initial, step"),
        (lambda: NoiseSource(0).integers("step", torch.arange(2), 0, 0), r"high must be in \[1, 2\^31\), got 0"),
    ],
)
def test_bad_addresses_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@given(seed=st.integers(0, 1000), weight=st.floats(0, 1), n=st.integers(1, 4))
@settings(deadline=None, max_examples=50)
def test_slerp_turns_at_constant_speed_on_the_sphere(seed, weight, n):
    a, b = torch.randn(2, n, 3, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    a, b = (x / x.flatten(1).norm(dim=1).reshape(n, 1, 1) for x in (a, b))
    c = slerp(a, b, weight)
    torch.testing.assert_close(c.flatten(1).norm(dim=1), torch.ones(n, dtype=torch.float64))
    whole, part = ((a * x).sum(dim=(1, 2)).clamp(-1, 1).acos() for x in (b, c))
    torch.testing.assert_close(part, weight * whole, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(slerp(b, a, 1 - weight), c)


def test_slerp_weights_each_sample():
    a, b = torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(0))
    c = slerp(a, b, torch.tensor([0.0, 0.5, 1.0]))
    assert c.dtype == torch.float32
    torch.testing.assert_close(c[0], a[0])
    torch.testing.assert_close(c[1], slerp(a, b, 0.5)[1])
    torch.testing.assert_close(c[2], b[2])


@pytest.mark.parametrize("factor", [1.0, 2.0, 0.0, -1.0])
def test_slerp_is_linear_where_no_angle_is_defined(factor):
    a = torch.tensor([[1.0, 2.0]])
    torch.testing.assert_close(slerp(a, factor * a, 0.25), (0.75 + 0.25 * factor) * a)


@pytest.mark.parametrize(
    ("a", "b", "weight", "message"),
    [
        (torch.ones(2, 3), torch.ones(2, 4), 0.5, r"a and b must have the same shape.*\(2, 3\) and \(2, 4\)"),
        (torch.ones(2, 3), torch.ones(2, 3), torch.ones(3), r"weight must be a number or have shape \(2,\)"),
    ],
)
def test_slerp_refuses_mismatched_shapes(a, b, weight, message):
    with pytest.raises(ValueError, match=message):
        slerp(a, b, weight)
