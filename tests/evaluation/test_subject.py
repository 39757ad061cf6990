"""What is sampled of a network: which point, which noise, which arithmetic, and nothing that is kept."""

from __future__ import annotations

from pathlib import Path

import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from ddim.data import Pixels
from ddim.denoisers.pretrained import open_pretrained
from ddim.diffusion import NoiseSchedule, NoiseSource
from ddim.diffusion.grid import grid_points
from ddim.diffusion.schedule import build_schedule
from ddim.evaluation.subject import Sampling, Subject
from ddim.training.module import DenoisingModule

SCHEDULE = NoiseSchedule.linear(1000)


def module_of(denoiser: nn.Module) -> DenoisingModule:
    return DenoisingModule(denoiser, SCHEDULE, optimizer={})


def sampling(batch_size: int = 12, seed: int = 0) -> Sampling:
    return Sampling(NoiseSource(seed), Pixels((1, 8, 8)), batch_size)


def trainer_in(precision: str) -> pl.Trainer:
    return pl.Trainer(accelerator="cpu", precision=precision, logger=False, enable_checkpointing=False)


class Recorder(nn.Module):
    """A denoiser that remembers what it was asked."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(0.3))
        self.asked: list[Tensor] = []

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        self.asked.append(x)
        return self.scale * x


class TestDraw:
    def points(self):
        return grid_points(SCHEDULE, steps=3, etas=[0.0, 0.5, "sigma_hat", "sigma_hat_official"], tau="linear")

    def test_images_do_not_depend_on_the_split_into_batches(self, small_unet, subject_of):
        subject = subject_of(module_of(small_unet()), sampling(seed=3))
        for point in self.points():
            whole = subject.draw(point, torch.arange(12))
            assert whole.dtype == torch.uint8 and whole.shape == (12, 1, 8, 8)
            order = torch.tensor([11, 0, 5, 4, 3, 10, 9, 1, 2, 8, 7, 6])
            for size in (1, 5):
                parts = [subject.draw(point, part) for part in order.split(size)]
                difference = torch.cat(parts).int() - whole[order].int()
                # Convolutions of other batch sizes round differently: a pixel on the edge of two values may move.
                assert difference.abs().max() <= 1 and (difference != 0).float().mean() < 0.01

    def test_another_seed_gives_other_images(self, small_unet, subject_of):
        module, point = module_of(small_unet()), self.points()[0]
        first, second = (subject_of(module, sampling(seed=seed)).draw(point, torch.arange(4)) for seed in (0, 1))
        assert not torch.equal(first, second)

    def test_values_are_clamped_and_rounded_not_cut_off(self, subject_of):
        """One step with eps = 0 gives x_T / sqrt(abar): known values at the end."""

        class Zero(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.unused = nn.Parameter(torch.zeros(()))

            def forward(self, x: Tensor, t: Tensor) -> Tensor:
                return torch.zeros_like(x)

        (point,) = grid_points(SCHEDULE, steps=1, etas=0.0, tau=[300])
        images = subject_of(module_of(Zero()), sampling()).draw(point, torch.arange(8))
        x_0 = NoiseSource(0).initial(torch.arange(8), (1, 8, 8)).double() / SCHEDULE.alpha_bar[300].sqrt()
        expected = ((x_0.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
        assert torch.equal(images, expected)
        assert not torch.equal(images, ((x_0.clamp(-1, 1) + 1) * 127.5).to(torch.uint8))
        assert images.min() == 0 and images.max() == 255

    def test_the_point_decides_the_sampler(self, small_unet, subject_of):
        subject = subject_of(module_of(small_unet()), sampling())
        points = [
            *self.points(),
            *grid_points(SCHEDULE, steps=3, etas=0.0, tau="linear", clip_denoised=True),
            *grid_points(SCHEDULE, steps=4, etas=0.0, tau="linear"),
            *grid_points(SCHEDULE, steps=3, etas=0.0, tau="quadratic"),
        ]
        images = [subject.draw(point, torch.arange(4)) for point in points]
        assert len({image.numpy().tobytes() for image in images}) == len(points)

    def test_no_gradients_are_kept(self, subject_of):
        denoiser = Recorder()
        subject_of(module_of(denoiser), sampling()).draw(self.points()[0], torch.arange(2))
        assert len(denoiser.asked) == 3 and denoiser.scale.grad is None


def test_training_mode_comes_back(small_unet, subject_of):
    module = module_of(small_unet()).train()
    with subject_of(module, sampling()).arithmetic():
        assert not module.training and torch.is_inference_mode_enabled()
    assert module.training and not torch.is_inference_mode_enabled()


def test_32_true_is_ieee_float32_whatever_the_backends_are_set_to(small_unet):
    module = DenoisingModule(small_unet(), SCHEDULE, optimizer={})
    convolutions, seen = torch.backends.cudnn.conv, []
    before, convolutions.fp32_precision = convolutions.fp32_precision, "tf32"
    try:
        for chosen in ("32-true", "bf16-mixed"):
            with Subject.of(trainer_in(chosen), module, sampling()).arithmetic():
                seen.append(convolutions.fp32_precision)
            assert convolutions.fp32_precision == "tf32"
    finally:
        convolutions.fp32_precision = before
    assert seen == ["ieee", "tf32"]


def test_bfloat16_hardly_changes_what_latents_become(digits_run):
    """docs/performance.md states the tolerance: half a grey level of 255 on average, 99 % of the pixels within 5."""
    pretrained = open_pretrained(str(digits_run), Path())
    module = DenoisingModule(pretrained.build("ema").eval(), build_schedule(pretrained.schedule), optimizer={})
    subjects = [Subject.of(trainer_in(chosen), module, sampling(100)) for chosen in ("32-true", "bf16-mixed")]
    for point in grid_points(module.schedule, steps=[10, 20], etas=[0, 1], tau="linear"):
        exact, rounded = (subject.draw(point, torch.arange(100)) for subject in subjects)
        assert not torch.equal(exact, rounded)
        difference = (exact.int() - rounded.int()).abs().float()
        assert difference.mean() < 0.5
        assert difference.flatten().quantile(0.99) <= 5
