"""Lines and grids between latents: slerp's properties, the ends, the numbers, and what is drawn."""

from __future__ import annotations

import csv
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ddim.data import Pixels
from ddim.denoisers import UNet
from ddim.diffusion import NoiseSchedule, NoiseSource, slerp
from ddim.diffusion.grid import grid_points
from ddim.evaluation.studies.interpolation import (
    Interpolation,
    grid_latents,
    line_latents,
    measure_jumps,
    measure_norms,
)
from ddim.evaluation.subject import Sampling
from ddim.findings.telling import Strip
from ddim.training.module import DenoisingModule

SCHEDULE = NoiseSchedule.linear(1000)
SHAPE = (1, 8, 8)
POINT = grid_points(SCHEDULE, steps=4, etas=0.0, tau="linear")[0]


def denoising_module() -> DenoisingModule:
    torch.manual_seed(0)
    unet = UNet(
        in_channels=1,
        resolution=8,
        base_channels=8,
        channel_mult=(1, 2),
        num_res_blocks=1,
        attention_resolutions=(4,),
        dropout=0.5,
        norm_groups=4,
    )
    with torch.no_grad():
        for parameter in unet.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=parameter[0].numel() ** -0.5)
    return DenoisingModule(unet, SCHEDULE, optimizer={})


def sampling(batch_size: int = 50) -> Sampling:
    return Sampling(NoiseSource(3), Pixels(SHAPE), batch_size)


@pytest.fixture
def run(ask) -> Callable[..., Any]:
    """Run a study in a directory, on one of two processes: what it said, and who heard it."""

    def run(directory, *, batch_size: int = 50, points=(POINT,), rank: int = 0):
        study = Interpolation(points, lines=3, points_per_line=5, corners=4)
        trainer = {"rank": rank, "world_size": 2}
        return ask(study, denoising_module(), sampling(batch_size), directory, {"dataset": "some"}, **trainer)

    return run


def pair(dim: int, seed: int, length: float = 1.0) -> tuple[torch.Tensor, torch.Tensor]:
    a, b = torch.randn(2, 1, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return a / a.norm(), length * b / b.norm()


class TestLines:
    @settings(deadline=None, max_examples=50)
    @given(dim=st.integers(2, 300), seed=st.integers(0, 10_000), count=st.integers(3, 12))
    def test_equal_norms_are_kept_and_the_angle_grows_evenly(self, dim, seed, count):
        line = line_latents(*pair(dim, seed), count)[0]
        assert line.norm(dim=1) == pytest.approx(torch.ones(count), abs=1e-9)
        angles = (line[1:] * line[:-1]).sum(dim=1).clamp(-1, 1).acos()
        assert angles == pytest.approx(angles[0].expand(count - 1), rel=1e-4, abs=1e-6)

    @pytest.mark.parametrize("length", [0.5, 1.0, 3.0])
    def test_at_a_right_angle_the_norm_goes_from_one_end_to_the_other(self, length):
        first, last = torch.tensor([[1.0, 0.0]]).double(), torch.tensor([[0.0, length]]).double()
        norms = line_latents(first, last, 7)[0].norm(dim=1)
        turn = torch.linspace(0, math.pi / 2, 7, dtype=torch.float64)
        assert norms == pytest.approx((turn.cos().square() + length**2 * turn.sin().square()).sqrt(), abs=1e-9)
        assert measure_norms(line_latents(first, last, 7)[0])["norm_excess"] < 1e-12

    def test_a_straight_line_would_lose_norm_where_slerp_does_not(self):
        first, last = torch.randn(2, 20, 3072, generator=torch.Generator().manual_seed(0))
        norms = line_latents(first, last, 11).norm(dim=2)
        assert ((first + last) / 2).norm(dim=1).max() < 0.75 * norms.min()
        assert max(measure_norms(line)["norm_excess"] for line in line_latents(first, last, 11)) < 1e-3

    def test_ends_are_the_latents_themselves_and_pairs_do_not_mix(self):
        first, last = torch.randn(2, 6, *SHAPE, generator=torch.Generator().manual_seed(1))
        lines = line_latents(first, last, 5)
        assert lines.shape == (6, 5, *SHAPE) and lines.dtype == torch.float32
        assert torch.equal(lines[:, 0], first) and torch.equal(lines[:, -1], last)
        assert torch.equal(lines[2:3], line_latents(first[2:3], last[2:3], 5))


class TestGrid:
    def test_every_node_is_slerp_down_the_edges_and_then_across(self):
        corners = torch.randn(4, 1, *SHAPE, generator=torch.Generator().manual_seed(2))
        grid = grid_latents(corners[:, 0], 4)
        assert grid.shape == (4, 4, *SHAPE)
        for i in range(4):
            for j in range(4):
                left, right = slerp(corners[0], corners[2], i / 3), slerp(corners[1], corners[3], i / 3)
                assert torch.allclose(grid[i, j], slerp(left, right, j / 3)[0], atol=1e-6)

    def test_corners_are_the_four_latents(self):
        corners = torch.randn(4, *SHAPE, generator=torch.Generator().manual_seed(2))
        grid = grid_latents(corners, 3)
        for corner, (i, j) in zip(corners, [(0, 0), (0, -1), (-1, 0), (-1, -1)], strict=True):
            assert torch.equal(grid[i, j], corner)


class TestNumbers:
    def test_norms_and_angle(self):
        line = torch.tensor([[3.0, 0.0], [1.0, 0.0], [0.0, 6.0], [0.0, 4.0]])
        found = measure_norms(line)
        assert found == pytest.approx(
            {"angle": 90, "norm_first": 3, "norm_last": 4, "norm_min": 1, "norm_max": 6, "norm_excess": 2 / 4}
        )

    def test_an_even_straight_way(self):
        line = torch.tensor([0, 51, 102, 153, 204, 255], dtype=torch.uint8).reshape(6, 1, 1, 1).expand(6, 3, 2, 2)
        found = measure_jumps(Pixels(SHAPE).told(line))
        assert found == pytest.approx(
            {"mse_ends": 1, "mse_mean_jump": 1 / 25, "mse_largest_jump": 1 / 25, "largest_jump_share": 1 / 25}
        )

    def test_one_jump(self):
        line = torch.tensor([0, 0, 0, 51, 51], dtype=torch.uint8).reshape(5, 1, 1, 1)
        assert measure_jumps(Pixels(SHAPE).told(line)) == pytest.approx(
            {"mse_ends": 0.04, "mse_mean_jump": 0.01, "mse_largest_jump": 0.04, "largest_jump_share": 1}
        )

    def test_equal_ends_have_no_share(self):
        line = torch.tensor([7, 9, 7], dtype=torch.uint8).reshape(3, 1, 1, 1)
        assert measure_jumps(Pixels(SHAPE).told(line))["largest_jump_share"] is None


class TestStudy:
    def test_ends_and_corners_are_the_samples_themselves(self, tmp_path, run, subject_of):
        lines, grid = run(tmp_path).pictures(Strip)
        samples = subject_of(denoising_module(), sampling()).draw(POINT, torch.arange(10)).int()
        assert [label for label, _ in lines.rows] == ["0 – 1", "2 – 3", "4 – 5"]
        assert list(lines.columns) == ["0.00", "0.25", "0.50", "0.75", "1.00"]
        assert len(grid.columns) == len(grid.rows) == 4
        ends = torch.stack([end for _, images in lines.rows for end in (images[0], images[-1])]).int()
        corners = torch.stack([grid.rows[i][1][j] for i, j in [(0, 0), (0, -1), (-1, 0), (-1, -1)]]).int()
        # Another number of images in a batch may round a convolution differently.
        assert (torch.cat([ends, corners]) - samples).abs().max() <= 1
        assert len(samples.flatten(1).unique(dim=0)) == 10

    def test_nothing_depends_on_the_batch_size_or_the_process(self, tmp_path, run):
        pictures, rows = [], []
        for number, (batch_size, rank) in enumerate([(50, 0), (1, 0), (7, 1)]):
            directory = tmp_path / str(number)
            directory.mkdir()
            asked = run(directory, batch_size=batch_size, rank=rank)
            pictures += asked.pictures(Strip)
            rows.append(asked.rows)
            assert bool(list(directory.iterdir())) == (rank == 0)
        for first, second in zip(pictures[:2], pictures[2:], strict=True):
            for (_, whole), (_, single) in zip(first.rows, second.rows, strict=True):
                assert (whole.int() - single.int()).abs().max() <= 1
        for other in rows[1:]:
            for mine, theirs in zip(rows[0], other, strict=True):
                assert {key: value for key, value in mine.items() if "mse" not in key and "share" not in key} == {
                    key: value for key, value in theirs.items() if "mse" not in key and "share" not in key
                }
                assert mine["mse_ends"] == pytest.approx(theirs["mse_ends"], rel=0.02)

    def test_files_and_rows(self, tmp_path, run):
        run(tmp_path)
        names = {"interpolation.csv", "interpolation.json", "interpolation-lines.png", "interpolation-corners.png"}
        assert {path.name for path in tmp_path.iterdir()} == names
        rows = list(csv.DictReader((tmp_path / "interpolation.csv").open()))
        assert [(row["first_sample"], row["last_sample"]) for row in rows] == [("0", "1"), ("2", "3"), ("4", "5")]
        x_T = NoiseSource(3).initial(torch.arange(6), SHAPE).flatten(1).norm(dim=1).tolist()
        for number, row in enumerate(rows):
            ends = [float(row["norm_first"]), float(row["norm_last"])]
            assert ends == pytest.approx(x_T[2 * number : 2 * number + 2], rel=1e-5)
            assert row["eta"] == "0.0" and row["steps"] == "4"

    def test_two_spacings_have_pictures_of_their_own(self, tmp_path, run):
        run(tmp_path, points=[grid_points(SCHEDULE, steps=3, etas=0.0, tau=tau)[0] for tau in ("linear", "quadratic")])
        assert {path.name for path in tmp_path.glob("*.png")} == {
            f"interpolation-{what}-{tau}.png" for what in ("lines", "corners") for tau in ("linear", "quadratic")
        }
        rows = list(csv.DictReader((tmp_path / "interpolation.csv").open()))
        assert [row["tau"] for row in rows] == ["linear"] * 3 + ["quadratic"] * 3
