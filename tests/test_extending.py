"""What a user registers is known by name everywhere; what is wrong with it is one sentence."""

from __future__ import annotations

import math

import pytest
import torch

from ddim.data import Pixels, build_datamodule
from ddim.diffusion import SAMPLERS, NoiseSchedule, NoiseSource, sample, select_timesteps
from ddim.diffusion.grid import SamplerConfig
from ddim.errors import UserError
from ddim.evaluation.restoration.settings import RestorationConfig, operators_of
from ddim.evaluation.settings import evaluation_schema, plan
from ddim.evaluation.subject import Sampling, Subject
from ddim.extending import (
    register_dataset,
    register_features,
    register_metric,
    register_operator,
    register_sampler,
    register_schedule,
)
from ddim.findings.files import read_results, write_results
from ddim.findings.rows import GridResult
from ddim.metrics import FEATURES

pytestmark = pytest.mark.usefixtures("forgotten")
SCHEDULE = NoiseSchedule.linear(1000)


@pytest.mark.parametrize(
    "register",
    [
        lambda: register_sampler("ddim")(sample),
        lambda: register_sampler("no name")(sample),
        lambda: register_schedule("linear")(lambda num_timesteps=2: None),
        lambda: register_schedule("mine")(lambda num_timesteps: None),
        lambda: register_metric("kid")(len),
        lambda: register_features("pixels")(len),
        lambda: register_operator("inpainting")(lambda x: x),
        lambda: register_operator("mine")(lambda x, factor: x),
        lambda: register_dataset("digits", channels=1, resolution=8)(lambda split: None),
        lambda: register_dataset("mine", channels=1, resolution=8)(lambda split, width: None),
    ],
)
def test_names_that_are_taken_and_parameters_without_a_default(register):
    with pytest.raises(UserError):
        register()


def point_of(**settings):
    return SamplerConfig(steps=4, **{"eta": 0.0, "name": "mine"} | settings).points(SCHEDULE)[0]


class TestSampler:
    def halve(self, denoiser, x_T, schedule, timesteps):
        for t in reversed(timesteps.tolist()):
            denoiser(x_T, torch.full((len(x_T),), t))
        return x_T / 2

    @pytest.mark.parametrize(
        "settings", [{"eta": 0.5}, {"eta": "sigma_hat"}, {"clip_denoised": True}, {"name": "unknown"}]
    )
    def test_what_it_cannot_do_is_refused_before_it_runs(self, settings):
        register_sampler("mine")(self.halve)
        assert point_of().nfe == 4
        with pytest.raises(UserError, match=r"sampler\.name="):
            point_of(**settings)

    @pytest.mark.parametrize("part", ["reconstruction", "trajectory"])
    def test_parts_that_need_more_of_it(self, part):
        register_sampler("mine")(self.halve)
        with pytest.raises(UserError, match=part):
            plan(SamplerConfig(eta=0.0, name="mine"), evaluation_schema()(parts=[part]), SCHEDULE)

    def test_it_is_given_what_it_takes(self):
        seen = {}

        def mine(denoiser, x_T, schedule, timesteps, eta=0.0, *, noise=None):
            seen.update(eta=eta, noise=noise)
            return sample(denoiser, x_T, schedule, timesteps, eta, noise=noise)

        register_sampler("mine")(mine)
        options = {"eta": 0.5, "variance": "eta", "clip_denoised": False, "noise": lambda step, like: like * 0}
        x_T = torch.randn(2, 3)
        tau = select_timesteps(1000, 4)
        x_0 = SAMPLERS["mine"].run(lambda x, t: x, x_T, SCHEDULE, tau, on_step=None, **options)
        assert seen == {"eta": 0.5, "noise": options["noise"]}
        assert torch.equal(x_0, sample(lambda x, t: x, x_T, SCHEDULE, tau, 0.5, noise=options["noise"]))

    @pytest.mark.parametrize("wrong", ["nfe", "shape"])
    def test_what_it_says_of_itself_is_checked(self, wrong):
        register_sampler("mine", nfe=lambda steps: steps + (wrong == "nfe"))(
            lambda d, x, s, tau: self.halve(d, x, s, tau)[: 1 if wrong == "shape" else None]
        )
        with pytest.raises(ValueError, match="4 times where its nfe says 5" if wrong == "nfe" else "shape"):
            SAMPLERS["mine"].run(lambda x, t: x, torch.randn(2, 3), SCHEDULE, select_timesteps(1000, 4))

    def test_finished_points_know_its_version(self):
        register_sampler("mine")(self.halve)
        subject = Subject(lambda x, t: x, SCHEDULE, Sampling(NoiseSource(0), Pixels((1, 8, 8)), 4))
        own, ddim = (subject.depends_on(point) for point in (point_of(), point_of(name="ddim")))
        assert own["sampler"] == "mine" and own["sampler_version"] == SAMPLERS["mine"].version
        # What was finished before there were others is still known.
        assert ddim["sampler"] == "ddim" and "sampler" not in ddim["point"] and "sampler_version" not in ddim


def test_a_schedule_is_checked_and_says_its_parameters():
    register_schedule("mine")(lambda num_timesteps=10, power=2.0: torch.linspace(0.9, 0.1, num_timesteps) ** power)
    schedule = NoiseSchedule.from_name("mine", power=3.0)
    assert schedule.params == {"num_timesteps": 10, "power": 3.0} and schedule.num_timesteps == 10
    assert NoiseSchedule.from_name(schedule.name, **schedule.params) == schedule
    with pytest.raises(ValueError, match="no parameter 'beta'"):
        NoiseSchedule.from_name("mine", beta=1)
    register_schedule("rising")(lambda num_timesteps=10: torch.linspace(0.1, 0.9, num_timesteps))
    with pytest.raises(ValueError, match="strictly"):
        NoiseSchedule.from_name("rising")
    register_features("mine")(lambda channels, resolution: None)
    assert "mine" in FEATURES


def test_an_operator_of_ones_own_has_all_that_methods_need():
    register_operator("columns")(lambda x: x.mean(dim=2))
    settings = RestorationConfig(operator="columns", method=["ddrm", "pigdm"])
    settings.check("restoration")
    assert settings.pairs() == [("columns", "ddrm"), ("columns", "pigdm")]
    operator = operators_of(settings, (1, 4, 6))["columns"]
    x = torch.randn(3, 1, 4, 6)
    torch.testing.assert_close(operator.A(x), x.mean(dim=2).flatten(1))
    # The smallest x that explains y repeats each mean.
    torch.testing.assert_close(operator.A_dagger(operator.A(x)), x.mean(dim=2, keepdim=True).expand_as(x))
    # The same name with another function is another measurement.
    assert operator.identity["operator"] == "columns" and len(operator.identity["matrix_sha256"]) == 16
    with pytest.raises(UserError, match=r"restoration\.operator=rows is not known; choose one of .*columns"):
        RestorationConfig(operator="rows").check("restoration")


def test_an_operator_that_is_not_linear_is_refused():
    register_operator("bent")(lambda x: x.square())
    settings = RestorationConfig(operator="bent")
    settings.check("restoration")
    with pytest.raises(UserError, match=r"restoration\.operator=bent cannot be used: bent is not linear"):
        operators_of(settings, (1, 4, 4))


def projections(x):
    return torch.cat([x.mean(dim=2), x.mean(dim=3)], dim=-1)


@pytest.mark.parametrize(
    ("function", "shape", "words"),
    [
        (projections, (30,), "broken of float32 samples (30, 30) raises IndexError: Dimension out of range"),
        (lambda x: x.flatten(1) @ torch.ones(16, 2).double(), (1, 4, 4), "raises RuntimeError: "),
        (lambda x: torch.nn.functional.conv2d(x, torch.ones(1, 3, 2, 2)), (1, 4, 4), "raises RuntimeError: "),
        (lambda x: x.nothing(), (1, 4, 4), "raises AttributeError: "),
        (
            lambda x: x.flatten(1).sum(dim=1),
            (1, 4, 4),
            "must be a tensor of real floating-point numbers (16, ...), got",
        ),
        (lambda x: x.sum(dim=0, keepdim=True), (1, 4, 4), "got torch.float32 (1, 1, 4, 4)"),
        (lambda x: x[:, :, :0], (1, 4, 4), "got torch.float32 (16, 1, 0, 4)"),
        (lambda x: None, (1, 4, 4), "got NoneType"),
        (lambda x: x.numpy(), (1, 4, 4), "got ndarray"),
        (lambda x: torch.fft.fft2(x), (1, 4, 4), "got torch.complex64"),
        (lambda x: x.long(), (1, 4, 4), "got torch.int64"),
        (lambda x: x / 0, (1, 4, 4), "must be finite, and is not"),
        (lambda x: x.flatten(1) @ x.flatten(1).T, (1, 4, 4), "as much of each sample, whatever their number"),
        (lambda x: 0 * x, (1, 4, 4), "not all of them 0"),
    ],
)
def test_an_operator_that_gives_something_else_is_one_sentence(function, shape, words):
    register_operator("broken")(function)
    with pytest.raises(UserError) as refused:
        operators_of(RestorationConfig(operator=["broken"]), shape)
    told = str(refused.value)
    assert told.startswith("restoration.operator=broken cannot be used: ") and words in told
    assert "\n" not in told and told.endswith(".") and not told.endswith("..")


class TestDataset:
    def build(self, tmp_path, **settings):
        config = {"name": "mine", "channels": 1, "resolution": 4, **settings}
        return build_datamodule(
            config, batch_size=2, eval_batch_size=2, num_workers=0, seed=0, cache_dir=tmp_path / "cache"
        )

    def test_its_settings_are_typed(self, tmp_path):
        register_dataset("mine", channels=1, resolution=4)(
            lambda split, count=6, scale=1.0: torch.full((count, 1, 4, 4), int(scale), dtype=torch.uint8)
        )
        datamodule = self.build(tmp_path, count=8, scale=3)
        assert datamodule.num_images("train") == 8
        assert next(datamodule.images("test", 8)).unique().tolist() == [3]
        assert datamodule.provenance("train")["settings"] == {"count": 8, "scale": 3.0}
        for wrong in ({"count": "many"}, {"count": 1.5}, {"depth": 1}, {"resolution": 8}):
            with pytest.raises(UserError, match=f"dataset.{next(iter(wrong))}"):
                self.build(tmp_path, **wrong)

    @pytest.mark.parametrize("images", [torch.zeros(6, 1, 4, 4), torch.zeros(6, 4, 4, dtype=torch.uint8)])
    def test_images_of_another_kind_are_refused(self, tmp_path, images):
        register_dataset("mine", channels=1, resolution=4)(lambda split: images)
        with pytest.raises(UserError, match="must give uint8 images of shape"):
            self.build(tmp_path).num_images("train")


def test_a_metric_of_ones_own_is_a_column(tmp_path):
    base = {"dataset": "d", "checkpoint": "c", "weights": "ema", "sampler": "ddim", "eta": 0, "variance": "eta"}
    base |= {"tau": "linear", "steps": 5, "nfe": 5, "num_samples": 9, "seed": 0, "features": "pixels"}
    base |= {"frechet_distance": 1.0, "seconds": 1.0, "images_per_second": 9.0}
    rows = [GridResult(**base, other_metrics=(("coverage", 0.5),)), GridResult(**base | {"steps": 10})]
    write_results(tmp_path, rows)
    header, first, second = (tmp_path / "results.csv").read_text().splitlines()
    assert header.endswith(",coverage") and first.endswith(",0.5") and second.endswith(",")
    assert read_results(tmp_path).rows == rows
    assert math.isclose(dict(read_results(tmp_path).rows[0].other_metrics)["coverage"], 0.5)
