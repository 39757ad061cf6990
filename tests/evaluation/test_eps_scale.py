"""`sampler.eps_scale` and `sampler.eps_slope`: a network of less noise, with every sampler, and nothing by default."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from ddim.data import Pixels
from ddim.diffusion import SAMPLERS, NoiseSchedule, NoiseSource, Sampler, sample
from ddim.diffusion.grid import SamplerConfig, grid_points
from ddim.errors import UserError
from ddim.evaluation.settings import evaluation_schema, plan
from ddim.evaluation.subject import Sampling
from ddim.findings.labels import point_key
from ddim.findings.rows import cells_of
from ddim.training.module import DenoisingModule

SCHEDULE = NoiseSchedule.linear(1000)


class Linear(nn.Module):
    """eps = scale x, so that a scale of eps is another network of the same kind."""

    def __init__(self, scale: float = 0.3) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(scale))
        self.asked: list[int] = []

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        self.asked.append(int(t[0]))
        return self.scale * x


@pytest.fixture
def subject(subject_of):
    def make(scale: float = 0.3):
        module = DenoisingModule(Linear(scale), SCHEDULE, optimizer={}).eval()
        return subject_of(module, Sampling(NoiseSource(0), Pixels((1, 4, 4)), 8))

    return make


def point_of(sampler: str = "ddim", steps: int = 8, **options: float):
    (point,) = grid_points(SCHEDULE, steps=steps, etas=0.0, tau="linear", sampler=sampler, options=options)
    return point


@pytest.mark.parametrize("sampler", list(SAMPLERS))
class TestEverySampler:
    def test_its_network_has_less_noise(self, subject, sampler):
        x_T = torch.randn(4, 1, 4, 4, generator=torch.Generator().manual_seed(1))
        noise = NoiseSource(2).bind(torch.arange(4))
        scaled = subject(0.3).decode(point_of(sampler, eps_scale=1.25), x_T, noise=noise)
        smaller = subject(0.24).decode(point_of(sampler), x_T, noise=noise)
        assert torch.allclose(scaled, smaller, rtol=1e-4, atol=1e-5)
        assert not torch.allclose(scaled, subject(0.3).decode(point_of(sampler), x_T, noise=noise), rtol=1e-2)

    def test_a_scale_of_one_is_the_same_point_to_the_last_bit(self, subject, sampler):
        plain, one = point_of(sampler), point_of(sampler, eps_scale=1.0, eps_slope=0.0)
        assert one == plain and one.options == () and point_key(one) == point_key(plain)
        denoiser = Linear()
        assert one.scaled(denoiser) is denoiser
        numbers = torch.arange(4)
        assert torch.equal(subject().draw(plain, numbers), subject().draw(one, numbers))
        assert subject().depends_on(one) == subject().depends_on(plain)
        assert "eps_scale" not in str(subject().depends_on(one))


@pytest.mark.parametrize("sampler", [name for name, rule in SAMPLERS.items() if rule.inverse is not None])
def test_the_way_up_is_that_of_the_same_network(subject, sampler):
    x_0 = torch.rand(4, 1, 4, 4, generator=torch.Generator().manual_seed(1)) * 2 - 1
    scaled = subject(0.3).encode(point_of(sampler, eps_scale=1.25), x_0)
    assert torch.allclose(scaled, subject(0.24).encode(point_of(sampler), x_0), rtol=1e-4, atol=1e-5)


def test_the_slope_counts_steps_from_the_last_one():
    point, x = point_of(steps=5, eps_scale=1.1, eps_slope=0.02), torch.ones(2, 1, 1, 1)
    for n, t in enumerate(point.timesteps):
        eps = point.scaled(lambda x, t: x)(x, torch.full((2,), t))
        assert torch.allclose(eps, x / (1.1 + 0.02 * n))


def test_a_scaled_point_is_another_point_with_columns_of_its_own(subject):
    points = SamplerConfig(steps=5, eta=0.0, name=["ddim", "ipndm"], eps_scale=1.01, eps_slope=0.001).points(SCHEDULE)
    assert [point.options for point in points] == [(("eps_scale", 1.01), ("eps_slope", 0.001))] * 2
    assert point_key(points[0]) == "ddim/eps_scale1.01/eps_slope0.001/eta0.000/linear/steps0005"
    assert subject().depends_on(points[0]) != subject().depends_on(point_of(steps=5))
    row = type("Row", (), {**subject().columns(points[0]), "other_metrics": None})()
    vars(row).update(subject().columns(points[0]))
    assert {"eps_scale": 1.01, "eps_slope": 0.001}.items() <= cells_of(row).items()


def test_options_of_the_rule_stay_beside_it(subject):
    (point,) = SamplerConfig(steps=5, eta=0.0, name="deis", options={"order": 2}, eps_scale=1.25).points(SCHEDULE)
    assert dict(point.options) == {"order": 2, "eps_scale": 1.25} and point.own_options == {"order": 2}
    x_T = torch.randn(2, 1, 4, 4)
    expected = subject(0.24).decode(point_of("deis", steps=5, order=2), x_T)
    assert torch.allclose(subject(0.3).decode(point, x_T), expected, rtol=1e-4, atol=1e-5)


def test_a_sampler_with_an_option_of_that_name_keeps_it(monkeypatch):
    seen: list[float] = []

    def own(denoiser, x_T, schedule, timesteps, *, eps_scale=3.0):
        seen.append(eps_scale)
        return sample(denoiser, x_T, schedule, timesteps)

    monkeypatch.setitem(SAMPLERS, "own", Sampler(own, options={"eps_scale": 3.0}, version="1"))
    values = SamplerConfig.with_options({"name": "own", "steps": 4, "eta": 0.0, "eps_scale": 2.0, "eps_slope": 0.0})
    (point,) = SamplerConfig(**values).points(SCHEDULE)
    assert point.options == (("eps_scale", 2.0),) and point.own_options == {"eps_scale": 2.0}
    denoiser = Linear()
    assert point.scaled(denoiser) is denoiser
    (point,) = SamplerConfig(**(values | {"options": {"eps_scale": 3.0}})).points(SCHEDULE)
    assert point.options == ()


def test_the_bound_is_that_of_the_network_itself():
    config = evaluation_schema()(parts=["likelihood"])
    config.check()
    points = plan(SamplerConfig(steps=[5], eps_scale=1.1, eps_slope=0.1), config, SCHEDULE)["likelihood"]
    assert points and all(point.options == () for point in points)


@pytest.mark.parametrize("value", [0.0, -1.0, math.nan, math.inf])
def test_scales_that_are_none(value):
    with pytest.raises(UserError, match=rf"sampler\.eps_scale={value}, sampler\.eps_slope=0\.0 cannot be used"):
        SamplerConfig(steps=5, eta=0.0, eps_scale=value).points(SCHEDULE)


@pytest.mark.parametrize("value", [-0.1, math.nan, math.inf])
def test_slopes_that_are_none(value):
    with pytest.raises(UserError, match=rf"sampler\.eps_slope={value} cannot be used"):
        SamplerConfig(steps=5, eta=0.0, eps_slope=value).points(SCHEDULE)
