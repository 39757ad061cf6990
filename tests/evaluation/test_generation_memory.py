"""What sampling keeps: nothing of the steps behind it, and of features only moments where no metric needs more."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ddim.data import Pixels
from ddim.diffusion import NoiseSchedule, NoiseSource
from ddim.diffusion.grid import grid_points
from ddim.evaluation.build import sampling_batch
from ddim.evaluation.kept.partial import Partial
from ddim.evaluation.sampling import generate
from ddim.evaluation.subject import Sampling
from ddim.metrics import BlockMoments, FeatureExtractor, Features
from ddim.training.module import DenoisingModule
from ddim.training.trainer import build_trainer

SHAPE = (1, 8, 8)
SCHEDULE = NoiseSchedule.linear()


class Alive:
    """Counts how many of the tensors it was told of are still there: at most how many at any time."""

    def __init__(self) -> None:
        self.references: list[weakref.ref] = []
        self.most = 0

    def add(self, tensor: Tensor) -> None:
        self.references = [reference for reference in self.references if reference() is not None]
        self.references.append(weakref.ref(tensor))
        self.most = max(self.most, len(self.references))


class Denoiser(nn.Module):
    def __init__(self, alive: Alive) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(0.5))
        self.alive = alive

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        eps = self.scale * x
        self.alive.add(x)
        self.alive.add(eps)
        return eps


class PixelValues(FeatureExtractor):
    def __init__(self, alive: Alive) -> None:
        super().__init__("pixels", 64, {})
        self.alive = alive

    def extract(self, images: Tensor) -> Features:
        features = images.flatten(1).float() / 255
        self.alive.add(features)
        return Features(features, features[:, :3].clone())


@pytest.fixture
def generated(subject_of) -> Callable[..., Any]:
    """The generation, and how many network tensors and feature tensors were alive at most."""

    def make(num_samples=40, steps=3, *, rank=0, world_size=1, batch_size=8, eta=1.0, **more):
        tensors, features = Alive(), Alive()
        module = DenoisingModule(Denoiser(tensors), SCHEDULE, optimizer={}).eval()
        (point,) = grid_points(SCHEDULE, steps=steps, etas=eta, tau="linear")
        sampling = Sampling(NoiseSource(0), Pixels(SHAPE), batch_size)
        subject = subject_of(module, sampling, rank=rank, world_size=world_size)
        extractor = PixelValues(features)
        generation = generate(subject, extractor, point, num_samples=num_samples, keep_images=5, **more)
        return generation, tensors.most, features.most

    return make


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_states_of_earlier_steps_are_not_kept(generated, eta):
    few, many = (generated(8, steps, eta=eta)[1] for steps in (5, 50))
    assert few == many <= 6


def test_features_are_not_kept_where_their_moments_are_enough(generated):
    few, many = (generated(number, keep_features=False)[2] for number in (40, 400))
    assert few == many <= 3
    # Otherwise this would say nothing.
    assert generated(400)[2] == 50


@pytest.mark.parametrize("batch_size", [1, 7, 64])
def test_moments_are_those_of_the_features(generated, batch_size):
    kept, _, _ = generated()
    generation, _, _ = generated(batch_size=batch_size, keep_features=False)
    assert generation.measured is generation.moments and kept.measured is kept.features
    assert len(generation.features) == 0 and torch.equal(generation.first_images, kept.first_images)
    same(generation.moments, kept.features)


def same(blocks: BlockMoments, features: Features) -> None:
    moments = blocks.total()
    rows = features.features.double().numpy()
    assert len(moments) == len(rows)
    np.testing.assert_allclose(moments.mean, rows.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(moments.covariance(), np.cov(rows, rowvar=False), rtol=1e-9, atol=1e-14)


def test_processes_put_their_moments_together(generated, monkeypatch):
    sent = []

    def note(everyone, mine):
        sent.append(mine)
        everyone[:] = [mine] * len(everyone)

    monkeypatch.setattr(torch.distributed, "all_gather_object", note)
    for rank in range(3):
        with pytest.raises(RuntimeError, match="samples were made where the first 40 were asked for"):
            generated(rank=rank, world_size=3, keep_features=False)

    def gather(everyone, mine):
        everyone[:] = sent

    monkeypatch.setattr(torch.distributed, "all_gather_object", gather)
    generation, _, _ = generated(rank=1, world_size=3, keep_features=False)
    same(generation.moments, generated()[0].features)


def test_what_an_earlier_attempt_left_enters_the_moments_once(generated, tmp_path):
    partial = Partial(tmp_path / "partial", every_seconds=0)
    generated(24, partial=partial)
    generation, _, _ = generated(40, partial=partial, keep_features=False)
    same(generation.moments, generated()[0].features)
    again, _, _ = generated(40, partial=partial)
    assert len(again.features) == 40  # files hold features, whatever is asked for later


@pytest.mark.parametrize(
    ("given", "resolution", "expected"),
    [(None, 8, 512), (None, 32, 32), (None, 64, 8), (None, 256, 1), (None, 2, 4096), (7, 256, 7)],
)
def test_how_many_images_a_cpu_samples_at_once(given, resolution, expected):
    assert sampling_batch(given, (3, resolution, resolution), torch.device("cpu")) == expected


def test_a_gpu_samples_more_at_once(tmp_path, monkeypatch):
    """Also where nobody named it: the device is the one that the Trainer finds."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    trainer = build_trainer({"accelerator": "auto"}, tmp_path)
    assert sampling_batch(None, (3, 32, 32), trainer.strategy.root_device) == 1024
