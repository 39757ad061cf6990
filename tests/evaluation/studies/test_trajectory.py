"""The predicted x_0 along the way: its errors, which steps are shown, and what is drawn of them."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor, nn

from ddim.data import Pixels, to_uint8
from ddim.diffusion import NoiseSchedule, NoiseSource, sample
from ddim.diffusion.grid import grid_points
from ddim.errors import UserError
from ddim.evaluation.studies import trajectory as module_under_test
from ddim.evaluation.studies.trajectory import FRAMES, Trajectory, evenly, follow
from ddim.evaluation.subject import Sampling, Subject
from ddim.findings.telling import Strip
from ddim.training.module import DenoisingModule

SCHEDULE = NoiseSchedule.linear(1000)
SHAPE = (1, 8, 8)


class Curved(nn.Module):
    """Some smooth function of x and t, the same for every image of a batch."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(0.8))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.scale * torch.sin(2 * x) + (t.float() / 2000).reshape(-1, 1, 1, 1)


class PointMass(nn.Module):
    """The exact eps where every image is `value`: the prediction of x_0 is right from the first step on."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.tensor(value))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        alpha_bar = SCHEDULE.alpha_bar[t].to(x).reshape(-1, 1, 1, 1)
        return (x - alpha_bar.sqrt() * self.value) / (1 - alpha_bar).sqrt()


def module_of(denoiser: nn.Module) -> DenoisingModule:
    return DenoisingModule(denoiser, SCHEDULE, optimizer={})


def point(steps: int = 6, eta: float | str = 0.0):
    return grid_points(SCHEDULE, steps=steps, etas=eta, tau="linear")[0]


def sampling(batch_size: int = 50) -> Sampling:
    return Sampling(NoiseSource(5), Pixels(SHAPE), batch_size)


@pytest.fixture
def subject_with(subject_of) -> Callable[[nn.Module], Subject]:
    """What is evaluated where this is the network."""
    return lambda denoiser: subject_of(module_of(denoiser), sampling())


@pytest.fixture
def run(ask) -> Callable[..., Any]:
    """Run a study in a directory, on one of two processes: what it said, and who heard it."""

    def run(directory: Path, points, *, batch_size: int = 50, rank: int = 0, num_images: int = 5, shown: int = 4):
        study = Trajectory(points, num_images=num_images, shown=shown, frame_milliseconds=60)
        trainer = {"rank": rank, "world_size": 2}
        return ask(study, module_of(Curved()), sampling(batch_size), directory, {"dataset": "some"}, **trainer)

    return run


class TestFollow:
    @pytest.mark.parametrize("eta", [0.0, 0.5, 1.0, "sigma_hat_official"])
    def test_the_last_prediction_is_the_final_image(self, subject_with, eta):
        """The last step goes to alpha_bar = 1, without noise."""
        chosen, indices = point(6, eta), torch.arange(4)
        subject = subject_with(Curved())
        errors, pictures = follow(subject, chosen, indices, [5])
        assert torch.equal(pictures[0], subject.draw(chosen, indices))
        assert errors[-1] == 0 and (errors[:-1] > 0).all()

    def test_the_papers_larger_noise_is_added_on_the_last_step_too(self, subject_with):
        errors, _ = follow(subject_with(Curved()), point(6, "sigma_hat"), torch.arange(4), [0])
        assert errors[-1] > 0

    @pytest.mark.parametrize("eta", [0.0, 1.0])
    def test_errors_and_pictures_against_the_sampler_itself(self, subject_with, eta):
        chosen, indices = point(7, eta), torch.tensor([3, 0, 8])
        module, noise = module_of(Curved()), NoiseSource(5)
        predictions: list[Tensor] = []
        with torch.no_grad():
            x_0 = sample(
                module,
                noise.initial(indices, SHAPE),
                SCHEDULE,
                chosen.timesteps,
                eta,
                noise=noise.bind(indices),
                on_step=lambda state: predictions.append(state.x_0.clone()),
            )
        final = to_uint8(x_0).double() / 255
        expected = [(to_uint8(x).double() / 255 - final).square().mean((1, 2, 3)).sum().item() for x in predictions]
        errors, pictures = follow(subject_with(Curved()), chosen, indices, [0, 2, 6])
        assert errors.tolist() == pytest.approx(expected, rel=1e-9, abs=1e-12)
        assert torch.equal(pictures, torch.stack([to_uint8(predictions[step]) for step in (0, 2, 6)]))

    def test_a_point_mass_is_known_from_the_start(self, subject_with):
        errors, pictures = follow(subject_with(PointMass(0.5)), point(6, 1.0), torch.arange(3), [0, 5])
        assert errors.max() < 1e-4
        assert ((pictures.int() - 191).abs() <= 1).all()

    def test_a_diverged_network_is_one_sentence(self, subject_with):
        subject = subject_with(PointMass(float("nan")))
        with pytest.raises(UserError, match="training has diverged"):
            follow(subject, point(3), torch.arange(2), [0])


class TestEvenly:
    @settings(deadline=None)
    @given(total=st.integers(1, 2000), count=st.integers(2, 150))
    def test_first_and_last_and_nearly_equal_gaps(self, total, count):
        chosen = evenly(total, count)
        assert chosen[0] == 0 and chosen[-1] == total - 1 and len(chosen) == min(total, count)
        gaps = np.diff(chosen)
        assert len(gaps) == 0 or (gaps.min() >= 1 and gaps.max() - gaps.min() <= 1)

    def test_gaps_are_not_all_in_one_place(self):
        assert evenly(50, 6) == [0, 10, 20, 29, 39, 49]


class TestStudy:
    def test_a_row_per_step_and_files_per_eta(self, tmp_path, run, subject_with):
        asked = run(tmp_path, [point(6, 0.0), point(6, 1.0)])
        assert {path.name for path in tmp_path.iterdir()} == {
            "trajectory.csv",
            "trajectory.json",
            *(f"trajectory-eta{eta}.{kind}" for eta in ("0.000", "1.000") for kind in ("png", "gif")),
        }
        assert len(asked.paths) == 4 and all(path.is_file() for path in asked.paths)
        rows = list(csv.DictReader((tmp_path / "trajectory.csv").open()))
        found = [(row["eta"], row["step"], row["timestep"]) for row in rows]
        expected = [str(1000 * i // 6) for i in reversed(range(6))]
        assert found == [(eta, str(step), t) for eta in ("0.0", "1.0") for step, t in enumerate(expected)]
        assert all((float(row["mse_to_final"]) == 0) == (row["step"] == "5") for row in rows)
        strip, _ = asked.pictures(Strip)
        assert [label for label, _ in strip.rows] == [f"sample {number}" for number in range(5)]
        assert list(strip.columns) == [f"t = {expected[step]}" for step in (0, 2, 3, 5)]
        _, pictures = follow(subject_with(Curved()), point(6, 0.0), torch.arange(5), [0, 2, 3, 5])
        for number, (_, images) in enumerate(strip.rows):
            assert torch.equal(torch.stack(images), pictures[:, number])

    def test_numbers_depend_on_neither_batch_size_nor_process(self, tmp_path, run):
        errors = []
        for batch_size, rank in [(50, 0), (2, 0), (1, 1)]:
            directory = tmp_path / f"{batch_size}"
            directory.mkdir()
            asked = run(directory, [point(6, 1.0)], batch_size=batch_size, rank=rank)
            errors.append([row["mse_to_final"] for row in asked.rows])
            assert bool(list(directory.iterdir())) == (rank == 0)
        for other in errors[1:]:
            assert other == pytest.approx(errors[0], rel=1e-6)

    def test_of_many_steps_only_what_is_shown_is_kept(self, tmp_path, run, monkeypatch):
        kept = []
        real = module_under_test.follow

        def watch(subject, point, indices, seen_at):
            kept.extend(seen_at)
            return real(subject, point, indices, seen_at)

        monkeypatch.setattr(module_under_test, "follow", watch)
        run(tmp_path, [point(300)], num_images=2, shown=7)
        assert len(kept) <= FRAMES + 7
        assert len(list(csv.DictReader((tmp_path / "trajectory.csv").open()))) == 300
        with Image.open(tmp_path / "trajectory-eta0.000.gif") as gif:
            assert gif.n_frames == FRAMES

    @pytest.mark.parametrize("steps", [1, 2])
    def test_a_step_or_two(self, tmp_path, run, steps):
        run(tmp_path, [point(steps)], num_images=1)
        with Image.open(tmp_path / "trajectory-eta0.000.gif") as gif:
            assert gif.n_frames == steps


def test_noise_is_not_drawn_from_nowhere(subject_with):
    x_T = NoiseSource(0).initial(torch.arange(2), SHAPE)
    subject = subject_with(Curved())
    assert subject.decode(point(3), x_T).shape == x_T.shape
    with pytest.raises(ValueError, match="needs noise"):
        subject.decode(point(3, 1.0), x_T)
