"""Likelihood of Gaussian images, whose bits per dimension are known, and what of it goes where."""

from __future__ import annotations

import csv
import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ddim.data import Pixels
from ddim.diffusion import NoiseSchedule, NoiseSource
from ddim.diffusion.grid import SamplerConfig
from ddim.diffusion.likelihood.bound import bound_terms, variational_bound
from ddim.diffusion.likelihood.flow import flow_likelihood
from ddim.errors import UserError
from ddim.evaluation.kept.finished import Kept
from ddim.evaluation.studies.likelihood import Likelihood, LikelihoodConfig
from ddim.evaluation.subject import Sampling
from ddim.findings.labels import point_key
from ddim.findings.parts.likelihood import PART, of_kind, totals
from ddim.tracking.keys import EVALUATE, find, wandb_key
from ddim.training.module import DenoisingModule

SHAPE = (1, 4, 4)
LONG = NoiseSchedule.linear(1000)
SHORT = NoiseSchedule.linear(40, beta_start=0.0025, beta_end=0.4)
STD = 0.3
NOISE = NoiseSource(7)
IDENTITY = {"dataset": "gauss", "weights": "ema", "seed": 7}
NETWORK = {"weights_sha256": "a"}


class ExactDenoiser(nn.Module):
    """E[ε | x_t] for data from N(0, STD²), in float64. Counts the images of its calls; `broken` is added to ε."""

    def __init__(self, schedule: NoiseSchedule, broken: float = 0.0) -> None:
        super().__init__()
        self.schedule = schedule
        self.broken = broken
        self.dtype_of = nn.Parameter(torch.zeros(1, dtype=torch.float64))
        self.images = 0

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        self.images += len(x)
        level = self.schedule.alpha_bar[t].reshape(-1, 1, 1, 1)
        return (1 - level).sqrt() * x / (level * STD**2 + 1 - level) + self.broken


def pixels(count: int) -> Tensor:
    normal = NoiseSource(5).initial(torch.arange(count), SHAPE).double()
    return ((STD * normal).clamp(-1, 1) + 1).mul(127.5).round().to(torch.uint8)


def exact_bits(images: Tensor) -> float:
    """Of the bins of 256 values under N(0, STD²), the outer ones open."""
    values = images.double() / 127.5 - 1
    lower, upper = (values - 1 / 255) / STD, (values + 1 / 255) / STD
    lower[images == 0], upper[images == 255] = -math.inf, math.inf
    return -(torch.special.ndtr(upper) - torch.special.ndtr(lower)).log2().mean().item()


def expected_bound(schedule: NoiseSchedule) -> float:
    """Along all timesteps with η = 1, where E[x_0 | x_t] errs by the variance that x_t leaves (DDPM equation 5)."""
    level = schedule.alpha_bar
    error = STD**2 * (1 - level) / (level * STD**2 + 1 - level)
    snr = level / (1 - level)
    jumps = (0.5 * error[1:] * (snr[:-1] - snr[1:])).sum()
    prior = 0.5 * (level[-1] * STD**2 - level[-1] - torch.log(1 - level[-1]))
    width = (1 - level[0]).sqrt()
    decoder = 0.5 * math.log(2 * math.pi) + width.log() + 0.5 * error[0] / width**2 - math.log(2 / 255)
    return ((prior + jumps + decoder) / math.log(2)).item()


def points_of(schedule=SHORT, steps=(5, 10), eta=(1.0, "sigma_hat"), **more):
    return Likelihood.grid(LikelihoodConfig(eta=list(eta)), SamplerConfig(steps=list(steps), **more), schedule)


def numbers_of(count: int) -> list[int]:
    """As if every third image of a split had been chosen."""
    return list(range(0, 3 * count, 3))


def study_of(images: Tensor, points=None, **more) -> Likelihood:
    more = {"dequantizations": ["truncated_normal"], "numbers": numbers_of(len(images)), **more}
    points = points_of() if points is None else points
    return Likelihood(points, images=lambda batch_size: iter(images.split(batch_size)), **more)


@pytest.fixture(scope="module")
def run(ask) -> Callable[..., Any]:
    """Run a study in a directory: what it said, and who heard it."""

    def run(directory, study, *, batch_size: int = 50, schedule=SHORT, denoiser=None, **more):
        module = DenoisingModule(denoiser or ExactDenoiser(schedule), schedule, optimizer={}).eval()
        return ask(study, module, Sampling(NOISE, Pixels(SHAPE), batch_size), directory, IDENTITY, **more)

    return run


@pytest.fixture(scope="module")
def found(run, tmp_path_factory):
    summary: dict[str, float] = {}
    logger = SimpleNamespace(log_metrics=lambda values, step: summary.update(values))
    study = study_of(pixels(9), dequantizations=["truncated_normal", "uniform"])
    return run(tmp_path_factory.mktemp("likelihood"), study, loggers=[logger]), summary


class TestBits:
    def test_of_gaussian_images_they_are_the_exact_ones(self, tmp_path, run):
        images = pixels(200)
        study = study_of(images, points_of(LONG, (50,)), dequantizations=["truncated_normal", "uniform"])
        rows = totals(run(tmp_path, study, schedule=LONG, batch_size=100).rows)
        exact = exact_bits(images)
        flows = [row["bits_per_dimension"] for row in rows if row["kind"] == "flow"]
        assert flows == pytest.approx([exact, exact], rel=0.01)
        bounds = {(row["steps"], row["variance"]): row["bits_per_dimension"] for row in rows if row["kind"] == "bound"}
        assert bounds[1000, "eta"] == pytest.approx(expected_bound(LONG), rel=0.01)
        # No code is shorter than the exact one, and few steps make it longer.
        assert exact < bounds[1000, "sigma_hat"] < bounds[50, "sigma_hat"] < bounds[50, "eta"]
        assert exact < bounds[1000, "eta"]

    @pytest.mark.parametrize(("batch_size", "world_size"), [(50, 1), (2, 1), (2, 2), (50, 4)])
    def test_each_image_once_with_the_noise_of_its_number(self, tmp_path, run, run_on_ranks, batch_size, world_size):
        images, points = pixels(7), points_of()

        def on(rank: int):
            (tmp_path / str(rank)).mkdir()
            trainer = {"batch_size": batch_size, "rank": rank, "world_size": world_size}
            return run(tmp_path / str(rank), study_of(images, points, tolerance=1e-7), **trainer)

        x_0 = Pixels(SHAPE).to_model(images)
        noise = NOISE.bind(torch.tensor(numbers_of(7)), "validation")
        denoiser = ExactDenoiser(SHORT)
        terms = bound_terms(denoiser, x_0, SHORT, range(40), noise)
        flow = flow_likelihood(denoiser, x_0, SHORT, noise, dequantization="truncated_normal", tolerance=1e-7)
        for asked in run_on_ranks(world_size, on):
            *rows, last = totals(asked.rows)
            for row, point in zip(rows, points, strict=True):
                bound = variational_bound(terms, point.timesteps, variance=point.variance)
                total = bound.total
                assert row["bits_per_dimension"] == pytest.approx(total.mean().item(), rel=1e-5)
                assert row["standard_error"] == pytest.approx(total.std().item() / math.sqrt(7), rel=1e-4)
                assert row["prior"] == pytest.approx(bound.prior.mean().item(), rel=1e-5)
                assert row["decoder"] == pytest.approx(bound.steps[:, 0].mean().item(), rel=1e-5)
                assert (row["kind"], row["nfe"], row["num_images"], row["split"]) == ("bound", point.steps, 7, "test")
            assert last["bits_per_dimension"] == pytest.approx(flow.bits.mean().item(), abs=1e-4)
            assert last["standard_error"] == pytest.approx(flow.bits.std().item() / math.sqrt(7), rel=1e-3)
            assert (last["kind"], last["eta"], last["steps"], last["timesteps"]) == ("flow", 0.0, None, None)
            assert (last["dequantization"], last["tolerance"], last["num_images"]) == ("truncated_normal", 1e-7, 7)
            # A batch of its own takes steps of its own.
            assert last["nfe"] == flow.calls or world_size > 1 or batch_size < 7

    def test_the_timesteps_add_up_to_the_bound_along_all_of_them(self, found):
        asked, _ = found
        for row in of_kind(asked.rows, "bound"):
            each = [r for r in of_kind(asked.rows, "timestep") if r["variance"] == row["variance"]]
            assert [r["timestep"] for r in each] == list(range(40))
            assert each[0]["step_bits"] == row["decoder"]
            whole = row["prior"] + sum(r["step_bits"] for r in each)
            assert (row["bits_per_dimension"] == pytest.approx(whole, rel=1e-9)) == (row["steps"] == 40)
            assert all(0 < r["eps_error"] < 1.5 for r in each)

    def test_clipping_is_part_of_the_model(self, tmp_path, run):
        denoiser = ExactDenoiser(SHORT, broken=2.0)
        bits = []
        for clip in (False, True):
            study = study_of(pixels(3), points_of(clip_denoised=clip), dequantizations=[])
            bits.append(totals(run(tmp_path, study, denoiser=denoiser).rows)[-1]["bits_per_dimension"])
        assert bits[1] < 0.9 * bits[0]

    def test_one_image_has_no_standard_error(self, tmp_path, run):
        asked = run(tmp_path, study_of(pixels(1)))
        assert {row["standard_error"] for row in totals(asked.rows)} == {None}
        assert "Likelihood of 1 test images" in asked.words()


class TestWhatIsKept:
    def test_nothing_that_is_finished_is_computed_again(self, tmp_path, run):
        more = {"source": {"dataset": "gauss", "fingerprint": "x"}}
        first = run(tmp_path, study_of(pixels(5), **more), kept=Kept(tmp_path, NETWORK))
        denoiser = ExactDenoiser(SHORT)
        again = run(tmp_path, study_of(pixels(5), **more), kept=Kept(tmp_path, NETWORK), denoiser=denoiser)
        assert again.rows == first.rows and denoiser.images == 0
        assert again.rows[0]["preprocessing"]

    def test_what_is_asked_anew_is_computed_and_no_more(self, tmp_path, run):
        more = {"source": {"dataset": "gauss", "fingerprint": "x"}}
        run(tmp_path, study_of(pixels(5), **more), kept=Kept(tmp_path, NETWORK))
        for change, images in (
            ({"dequantizations": ["uniform"]}, 0),
            ({"tolerance": 1e-3}, 0),
            ({"points": points_of(steps=[7])}, 40 * 5),
            ({"numbers": [0, 1, 2, 3, 4]}, 40 * 5),
        ):
            denoiser = ExactDenoiser(SHORT)
            study = study_of(pixels(5), **more, **change)
            run(tmp_path, study, kept=Kept(tmp_path, NETWORK), denoiser=denoiser)
            if "points" in change:
                assert denoiser.images == images, "the flow is known"
            else:
                assert denoiser.images > images and denoiser.images % 5 == 0, "a flow at least"

    def test_without_a_source_nothing_is_recalled(self, tmp_path, run):
        run(tmp_path, study_of(pixels(5)), kept=Kept(tmp_path, NETWORK))
        denoiser = ExactDenoiser(SHORT)
        run(tmp_path, study_of(pixels(5)), kept=Kept(tmp_path, NETWORK), denoiser=denoiser)
        assert denoiser.images > 40 * 5


class TestWhatIsAsked:
    def test_the_points_are_the_steps_and_all_timesteps_of_each_model(self):
        sampler = SamplerConfig(steps=[5, 40], tau=["linear", "quadratic"], eta=0.0, name="heun", options={})
        points = Likelihood.grid(LikelihoodConfig(), sampler, SHORT)
        assert {point.sampler for point in points} == {"ddim"}
        keys = [point_key(point) for point in points]
        model = [
            "eta1.000/linear/steps0005",
            "eta1.000/quadratic/steps0005",
            "eta1.000/quadratic/steps0040",
            "eta1.000/linear/steps0040",
        ]
        assert keys == [*model, *(key.replace("eta1.000", "sigma_hat") for key in model)]
        assert points[3].timesteps == tuple(range(40))
        assert Likelihood.grid(LikelihoodConfig(bound=False), sampler, SHORT) == []

    @pytest.mark.parametrize("eta", [0.0, [1.0, 0.0], "sigma_hat_official"])
    def test_a_model_without_bound_is_refused_by_name(self, eta):
        given = "sigma_hat_official" if eta == "sigma_hat_official" else "0"
        with pytest.raises(UserError, match=rf"evaluation\.likelihood\.eta={given} has no bound.*flow=true"):
            Likelihood.grid(LikelihoodConfig(eta=eta), SamplerConfig(steps=5), SHORT)
        with pytest.raises(ValueError, match="no others have a bound"):
            study_of(pixels(2), SamplerConfig(eta=eta, steps=5).points(SHORT))

    @pytest.mark.parametrize(
        ("change", "sentence"),
        [
            ({"num_images": 0}, r"evaluation\.likelihood\.num_images=0 must be a whole number of at least 1"),
            ({"bound": False, "flow": False}, r"bound=false with evaluation\.likelihood\.flow=false leaves nothing"),
            ({"dequantization": "normal"}, r"dequantization=normal is not known; choose one of uniform, truncated_no"),
            ({"dequantization": []}, r"evaluation\.likelihood\.dequantization=\[\] is empty"),
            ({"tolerance": 0.0}, r"evaluation\.likelihood\.tolerance=0\.0 must be a number between 0 and 1"),
            ({"tolerance": float("nan")}, r"evaluation\.likelihood\.tolerance=nan must be"),
            ({"eta": 2.0}, r"evaluation\.likelihood\.eta=2\.0 must be a number from 0 to 1"),
        ],
    )
    def test_bad_values_are_refused_by_name(self, change, sentence):
        settings = LikelihoodConfig(**change)
        with pytest.raises(UserError, match=sentence):
            settings.check("evaluation.likelihood")
            Likelihood.grid(settings, SamplerConfig(steps=5), SHORT)

    def test_the_images_are_spread_over_the_split(self):
        asked = []
        data = SimpleNamespace(
            name="gauss",
            space=Pixels(SHAPE),
            num_images=lambda split: 50,
            images=lambda *args, **more: asked.append((args, more)) or iter(()),
            provenance=lambda split: {"dataset": "gauss"},
        )
        settings = LikelihoodConfig(num_images=4)
        settings.check("evaluation.likelihood")
        study = Likelihood.of(settings, points_of(), SimpleNamespace(images=data))
        list(study.images(8))
        assert asked == [(("test", 8), {"limit": 4})] and study.numbers == [0, 12, 25, 37]
        assert study.plan() == "likelihood of 4 test images by bound and flow"
        assert Likelihood.of(LikelihoodConfig(num_images=None), [], SimpleNamespace(images=data)).numbers == [
            *range(50)
        ]
        with pytest.raises(UserError, match=r"evaluation\.likelihood\.num_images=51 is more than the 50 images"):
            Likelihood.of(LikelihoodConfig(num_images=51), [], SimpleNamespace(images=data))


class TestWhatGoesWrong:
    def test_a_missing_image_is_noticed(self, tmp_path, run):
        with pytest.raises(RuntimeError, match="5 images were read where 6 were asked for"):
            run(tmp_path, study_of(pixels(5), numbers=numbers_of(6)))

    def test_a_network_that_has_diverged_is_said_to_have(self, tmp_path, run):
        broken = ExactDenoiser(SHORT, broken=math.inf)
        with pytest.raises(UserError, match="training has diverged"):
            run(tmp_path, study_of(pixels(2)), denoiser=broken)
        with pytest.raises(UserError, match=r"evaluation\.likelihood\.flow=true is not possible.*finite numbers"):
            run(tmp_path, study_of(pixels(2), []), denoiser=broken)

    @pytest.mark.parametrize("study", [{"dequantizations": []}, {"points": []}])
    def test_a_process_that_is_asked_to_leave_does_so_within_a_batch(self, tmp_path, run, study):
        denoiser = ExactDenoiser(SHORT)
        trainer = {"received_sigterm": True}
        from pytorch_lightning.utilities.exceptions import SIGTERMException

        with pytest.raises(SIGTERMException):
            run(tmp_path, study_of(pixels(2), **study), denoiser=denoiser, **trainer)
        assert denoiser.images == 0


class TestWhatIsLeft:
    def test_files(self, found):
        asked, _ = found
        rows = list(csv.DictReader((asked.drawn.directory / "likelihood.csv").open()))
        assert [row["kind"] for row in rows].count("timestep") == 80 and len(rows) == 88
        for row, other in zip(rows, asked.rows, strict=True):
            if row["kind"] != "timestep":
                assert float(row["bits_per_dimension"]) == other["bits_per_dimension"]

    def test_the_tables_are_without_single_timesteps(self, found):
        asked, _ = found
        words = asked.words()
        for row in totals(asked.rows):
            steps = "-" if row["steps"] is None else str(row["steps"])
            lines = [line.split() for line in words.splitlines() if line.split()[:1] == [row["kind"]]]
            noise = "sigma_hat" if row["variance"] == "sigma_hat" else f"{row['eta']:g}"
            lines = [line for line in lines if line[1:4] == [noise, steps, str(row["nfe"])]]
            assert any(float(line[4]) == pytest.approx(row["bits_per_dimension"], rel=6e-4) for line in lines)
        assert "Likelihood of 9 test images" in words and "tolerance 0.0001" in words
        assert "With uniform dequantization the flow may lie above the bound" in words
        columns, cells = PART.table(asked.rows)
        assert len(cells) == len(PART.shown_rows(asked.rows)) == 8 and "timesteps" not in columns
        assert not {"timestep", "step_bits"} & set(columns)

    def test_summary_and_curves_have_the_keys_of_the_list(self, found):
        asked, summary = found
        rows = totals(asked.rows)
        expected = {f"likelihood/bound/{point_key(row)}": row["bits_per_dimension"] for row in rows[:6]}
        flows = {f"likelihood/flow/{row['dequantization']}": row["bits_per_dimension"] for row in rows[6:]}
        assert summary == expected | flows and len(flows) == 2
        names = {find(wandb_key(key), EVALUATE, ["summary"]).name for key in summary}
        declared = {name for name, kind, _ in PART.keys if kind == "summary"}
        in_nats = {name for name in declared if name.split("/")[1] in ("log_density", "difference")}
        assert names == declared - in_nats
        curves = {key: value for row in asked.rows for key, value in PART.curves(row).items()}
        assert set(curves) == {"likelihood/bound/eta1.000/linear", "likelihood/bound/sigma_hat/linear"}
        assert {find(wandb_key(key), EVALUATE).name for key in curves} == {"likelihood/bound/<sampler>/<tau>"}

    def test_what_each_timestep_costs_is_a_chart(self, found):
        asked, _ = found
        (chart,) = PART.charts(asked.rows)
        assert [(t, line) for t, _, line in chart.rows] == [(t, m) for m in ("η = 1", "σ̂") for t in range(40)]
        assert PART.charts(of_kind(asked.rows, "flow")) == []
        for line in PART.lines:
            shown = [row for row in asked.rows if row.get(line.x[0]) is not None and row.get(line.column) is not None]
            assert len(shown) == {"bits_per_dimension": 8, "log_density": 0, "step_bits": 80}[line.column]
