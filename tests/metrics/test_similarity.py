"""Distances between images from the same latents: against their definitions, pixel by pixel and pair by pair."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ddim.metrics.similarity import (
    distances,
    feature_distance,
    feature_spread,
    pixel_error,
    pixel_spread,
    ssim_window,
    structural_similarity,
)


def random_images(count: int, channels: int, side: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, channels, side, side), dtype=torch.uint8, generator=generator)


def ssim_by_loops(a: np.ndarray, b: np.ndarray) -> float:
    """Wang et al. (2004), equation 13, pixel by pixel; (C, H, W) with edges continued by reflection."""
    side, sigma = ssim_window(*a.shape[1:])
    half = side // 2
    line = np.exp(-((np.arange(side) - half) ** 2) / (2 * sigma**2))
    window = np.outer(line, line) / line.sum() ** 2
    c1, c2 = 0.01**2, 0.03**2
    values = []
    for x, y in zip(a / 255, b / 255, strict=True):
        x, y = (np.pad(image, half, mode="reflect") for image in (x, y))
        for row in range(x.shape[0] - 2 * half):
            for column in range(x.shape[1] - 2 * half):
                u, v = (image[row : row + side, column : column + side] for image in (x, y))
                mu, nu = (window * u).sum(), (window * v).sum()
                uu, vv, uv = ((window * product).sum() for product in (u * u, v * v, u * v))
                upper = (2 * mu * nu + c1) * (2 * (uv - mu * nu) + c2)
                values.append(upper / ((mu**2 + nu**2 + c1) * (uu - mu**2 + vv - nu**2 + c2)))
    return float(np.mean(values))


@pytest.mark.parametrize(("side", "window"), [(256, 11), (32, 11), (11, 11), (10, 9), (8, 7), (4, 3), (2, 1)])
def test_the_window_fits_and_keeps_its_shape(side, window):
    found, sigma = ssim_window(side, 300)
    assert found == window <= side and sigma / found == pytest.approx(1.5 / 11)


@pytest.mark.parametrize(("channels", "side"), [(1, 8), (3, 16)])
def test_ssim_is_that_of_its_definition(channels, side):
    images, others = random_images(3, channels, side), random_images(3, channels, side, 1)
    others = (images.double() * 0.7 + others.double() * 0.3).round().to(torch.uint8)
    expected = np.mean([ssim_by_loops(a, b) for a, b in zip(images.numpy(), others.numpy(), strict=True)])
    assert structural_similarity(images, others) == pytest.approx(expected, rel=1e-9)
    assert structural_similarity(images, images) == pytest.approx(1.0)


@settings(deadline=None, max_examples=20)
@given(count=st.integers(2, 9), seed=st.integers(0, 1000))
def test_spreads_are_means_over_all_pairs(count, seed):
    images = random_images(count, 3, 4, seed)
    pairs = [(i, j) for i in range(count) for j in range(count) if i != j]
    errors = [pixel_error(images[i : i + 1], images[j : j + 1]) for i, j in pairs]
    assert pixel_spread(images) == pytest.approx(np.mean(errors), rel=1e-9)
    rows = images.flatten(1).float()
    distances = [feature_distance(rows[i : i + 1], rows[j : j + 1]) for i, j in pairs]
    assert feature_spread(rows) == pytest.approx(np.mean(distances), rel=1e-9)


def test_more_images_than_a_block():
    images = random_images(1203, 1, 4)
    assert pixel_error(images, images.flip(0)) == pytest.approx(
        ((images.double() - images.flip(0).double()) / 255).square().mean().item()
    )
    rows = images.flatten(1).double()
    assert feature_spread(rows) == pytest.approx(torch.nn.functional.pdist(rows).mean().item())
    assert pixel_spread(images) == pytest.approx(2 * (rows / 255).var(dim=0).mean().item())
    shifted = images.roll(1, 0)
    singly = [structural_similarity(images[i : i + 1], shifted[i : i + 1]) for i in range(1203)]
    assert structural_similarity(images, shifted) == pytest.approx(np.mean(singly))


def test_samples_that_are_all_alike_have_no_scale():
    same = random_images(1, 1, 8).expand(3, -1, -1, -1), torch.ones(3, 4)
    found = distances(same, same)
    assert found["feature_distance_relative"] is None
    assert (found["mse"], found["mse_between_samples"], found["feature_distance"]) == (0, 0, 0)


def test_one_sample_has_no_spread():
    for spread, sample in ((pixel_spread, random_images(1, 1, 4)), (feature_spread, torch.zeros(1, 3))):
        with pytest.raises(ValueError, match="at least two of them, got 1"):
            spread(sample)
