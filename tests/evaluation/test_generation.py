"""Samples are exactly those that were asked for, in their order, whoever has made which of them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import ddim.evaluation.sampling as sampling_module
from ddim.data import Pixels
from ddim.diffusion import NoiseSchedule, NoiseSource
from ddim.diffusion.grid import grid_points
from ddim.evaluation.kept.partial import Samples
from ddim.evaluation.sampling import _gather, generate
from ddim.evaluation.subject import Sampling, Subject
from ddim.metrics import Features, build_extractor
from ddim.training.module import DenoisingModule

SHAPE = (1, 8, 8)
SCHEDULE = NoiseSchedule.linear(1000)


class TestGenerate:
    POINT = grid_points(SCHEDULE, steps=3, etas=0.5, tau="linear")[0]

    @pytest.fixture
    def subject(self, small_unet, subject_of):
        """`subject(batch_size)`, on one of several processes."""

        def make(batch_size: int, rank: int = 0, world_size: int = 1) -> Subject:
            sampling = Sampling(NoiseSource(0), Pixels(SHAPE), batch_size)
            module = DenoisingModule(small_unet(), SCHEDULE, optimizer={})
            return subject_of(module, sampling, rank=rank, world_size=world_size)

        return make

    def generate(self, subject: Subject, num_samples: int, keep: int = 5):
        extractor = build_extractor("pixels", channels=1, resolution=8, weights_dir=Path())
        seen: list[int] = []
        generation = generate(
            subject, extractor, self.POINT, num_samples=num_samples, keep_images=keep, advance=seen.append
        )
        return generation, seen

    def expected(self, subject: Subject, num_samples: int):
        images = subject.draw(self.POINT, torch.arange(num_samples))
        return images, images.flatten(1).float() / 255

    @pytest.mark.parametrize("batch_size", [1, 7, 64])
    def test_exactly_the_samples_in_their_order_for_any_batch_size(self, subject, batch_size):
        generation, seen = self.generate(subject(batch_size), 20)
        images, features = self.expected(subject(20), 20)
        assert len(generation.features) == 20 and sum(seen) == 20
        # One pixel value, 1/255, may move where convolutions of another batch size round differently.
        assert (generation.features.features - features).abs().max() <= 1.01 / 255
        assert (generation.features.features - features).abs().mean() < 1e-4
        assert len(generation.first_images) == 5
        assert (generation.first_images.int() - images[:5].int()).abs().max() <= 1
        assert generation.seconds > 0

    @pytest.mark.parametrize(("num_samples", "world_size"), [(20, 2), (10, 3), (7, 4), (2, 4), (5, 5)])
    def test_ranks_together_hold_each_sample_once_and_in_order(self, subject, monkeypatch, num_samples, world_size):
        """Each rank in turn in this process; what it would send is kept, then gathered as every rank would."""
        local: list = []
        monkeypatch.setattr(sampling_module, "_gather", lambda *arguments: local.append(arguments[:4]))
        for rank in range(world_size):
            self.generate(subject(3, rank, world_size), num_samples, keep=4)
        monkeypatch.undo()

        def all_gather_object(everyone, mine):
            everyone[:] = local

        monkeypatch.setattr(torch.distributed, "all_gather_object", all_gather_object)
        generation = _gather(*local[0], num_samples, world_size)
        images, features = self.expected(subject(num_samples), num_samples)
        assert len(generation.features) == num_samples
        assert (generation.features.features - features).abs().max() <= 1.01 / 255
        assert len(generation.first_images) == min(4, num_samples)
        assert (generation.first_images.int() - images[:4].int()).abs().max() <= 1
        assert generation.seconds == max(seconds for *_, seconds, _ in local)

    @settings(deadline=None, max_examples=60)
    @given(data=st.data(), total=st.integers(1, 40), world_size=st.integers(1, 9), keep=st.integers(0, 40))
    def test_gathering_restores_features_logits_and_images(self, data, total, world_size, keep):
        """Whoever has made which of the samples, in whatever order."""
        owner = data.draw(st.lists(st.integers(0, world_size - 1), min_size=total, max_size=total))
        order = data.draw(st.permutations(range(total)))

        def part(rank: int):
            numbers = torch.tensor([i for i in order if owner[i] == rank], dtype=torch.long)
            column = numbers.float()[:, None]
            pictures = numbers[numbers < keep].reshape(-1, 1, 1, 1)
            return Samples(numbers, Features(column, -column), pictures) if len(numbers) else None

        everyone = [(part(rank), None, float(rank), 100.0 if rank == 0 else 0.0) for rank in range(world_size)]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(
                torch.distributed, "all_gather_object", lambda out, mine: out.__setitem__(slice(None), everyone)
            )
            generation = _gather(*everyone[0], total, world_size)
        assert generation.features.features.flatten().tolist() == list(range(total))
        assert generation.features.logits.flatten().tolist() == [-number for number in range(total)]
        assert generation.first_images.flatten().tolist() == list(range(min(keep, total)))
        assert generation.seconds == 100 + world_size - 1, "the slowest of this attempt, and the earlier ones"

    @pytest.mark.parametrize("numbers", [[0, 1], [0, 1, 1, 2], [0, 1, 3]])
    def test_not_exactly_the_samples_asked_for_is_an_error(self, numbers):
        column = torch.tensor(numbers).float()[:, None]
        samples = Samples(torch.tensor(numbers), Features(column), torch.zeros(0, 1, 1, 1))
        with pytest.raises(RuntimeError, match="where the first 3 were asked for"):
            _gather(samples, None, 1.0, 0.0, 3, 1)
