"""Guidance of a network that is known in closed form: a mixture of Gaussians, one for each class."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from ddim.diffusion import GUIDANCE, SAMPLERS, Conditional, NoiseSchedule, select_timesteps
from ddim.diffusion.grid import SamplerConfig
from ddim.diffusion.guidance.settings import GuidanceConfig
from ddim.diffusion.guided_grid import GuidedSampler
from ddim.errors import UserError

SCHEDULE = NoiseSchedule.linear(1000)
MEANS = torch.tensor([[2.0, 0.0], [-1.0, 1.0], [0.0, -2.0]], dtype=torch.float64)
VARIANCE = 0.3
NULL = torch.tensor(len(MEANS))


class Mixture:
    """eps = -sqrt(1 - alpha_bar) grad log p(x_t | class) of N(mean of the class, VARIANCE I), and of their mixture."""

    def __init__(self, shift: float = 0.0) -> None:
        self.means = MEANS + shift
        self.samples = 0

    def __call__(self, x: Tensor, t: Tensor, condition: Tensor | None) -> Tensor:
        self.samples += len(x)
        alpha_bar = SCHEDULE.alpha_bar_at(t)[:, None].to(x.dtype)
        total = alpha_bar * VARIANCE + 1 - alpha_bar
        away = x[:, None] - alpha_bar.sqrt()[:, None] * self.means  # (N, K, 2)
        every = (1 - alpha_bar).sqrt()[:, None] * away / total[:, None]
        weights = (-0.5 * away.square().sum(-1) / total).softmax(dim=1)
        mixed = (weights[..., None] * every).sum(1)
        if condition is None:
            return mixed
        null = condition == NULL
        own = every[torch.arange(len(x)), torch.where(null, torch.zeros_like(condition), condition)]
        return torch.where(null[:, None], mixed, own)


def model_of(labels: Any, shift: float | None = 0.0) -> tuple[Conditional, Mixture]:
    """The mixture with these labels, and a guide whose means are shifted."""
    network, condition = Mixture(), torch.tensor(labels)
    guide = None if shift is None else Conditional(Mixture(shift), condition, NULL, SCHEDULE)
    return Conditional(network, condition, NULL, SCHEDULE, guide), network


def states(count: int = 6) -> tuple[Tensor, Tensor, list[int]]:
    generator = torch.Generator().manual_seed(0)
    labels = [number % 3 for number in range(count)]
    return torch.randn(count, 2, generator=generator, dtype=torch.float64), torch.arange(count) * 150, labels


def sigma(t: int) -> float:
    alpha_bar = SCHEDULE.alpha_bar_at(t)
    return math.sqrt((1 - alpha_bar) / alpha_bar)


def test_the_scale_goes_from_unconditional_to_conditional_and_beyond():
    x, t, labels = states()
    model, network = model_of(labels)
    own, mixed = network(x, t, torch.tensor(labels)), network(x, t, None)
    assert (own - mixed).abs().max() > 0.1
    for scale, expected, samples in [
        (0, mixed, 6),
        (1.0, own, 6),
        (0.5, (own + mixed) / 2, 12),
        (3, 3 * own - 2 * mixed, 12),
    ]:
        network.samples = 0
        found = GUIDANCE["classifier_free"].bind(model, scale=scale)(x, t)
        assert (found - expected).abs().max() < 1e-12 and network.samples == samples
    assert torch.equal(GUIDANCE["none"].bind(model)(x, t), own)


def test_outside_of_its_interval_it_is_conditional():
    x, t, labels = states()
    model, network = model_of(labels)
    own, mixed = network(x, t, torch.tensor(labels)), network(x, t, None)
    low, high = sigma(300), sigma(600)
    guided = GUIDANCE["classifier_free"].bind(model, scale=2.0, interval=(low, high))
    inside = torch.tensor([False, False, True, True, True, False])
    expected = torch.where(inside[:, None], 2 * own - mixed, own)
    assert (guided(x, t) - expected).abs().max() < 1e-12
    for number, where in enumerate(inside.tolist()):  # a batch of one timestep, as samplers have it
        network.samples = 0
        whole = GUIDANCE["classifier_free"].bind(model_of(labels)[0], scale=2.0, interval=(low, high))
        at = torch.full((6,), int(t[number]))
        assert (whole(x, at)[number] - expected[number]).abs().max() < 1e-12
        model, network = model_of(labels)
        GUIDANCE["classifier_free"].bind(model, scale=2.0, interval=(low, high))(x, at)
        assert network.samples == (12 if where else 6)


def test_autoguidance_goes_away_from_the_guide():
    x, t, labels = states()
    model, network = model_of(labels, shift=0.7)
    own, worse = network(x, t, torch.tensor(labels)), model.guide(x, t)
    for scale, expected in [(0, worse), (1, own), (2.5, 2.5 * own - 1.5 * worse)]:
        assert (GUIDANCE["autoguidance"].bind(model, scale=scale)(x, t) - expected).abs().max() < 1e-12
    itself, _ = model_of(labels, shift=0.0)
    assert (GUIDANCE["autoguidance"].bind(itself, scale=7.0)(x, t) - own).abs().max() < 1e-12
    free = Conditional(network, None, None, SCHEDULE, Conditional(Mixture(0.7), None, None, SCHEDULE))
    found = GUIDANCE["autoguidance"].bind(free, scale=2.0)(x, t)
    assert (found - 2 * network(x, t, None) + Mixture(0.7)(x, t, None)).abs().max() < 1e-12


@pytest.mark.parametrize("name", SAMPLERS)
def test_every_sampler_runs_under_guidance_and_no_sample_depends_on_its_batch(name):
    labels, timesteps = [0, 1, 2, 0, 1, 2], select_timesteps(1000, 20, "logsnr", schedule=SCHEDULE)
    x_T = torch.randn(6, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)

    def noise_of(numbers: list[int]):
        def noise(step: int, like: Tensor) -> Tensor:
            every = torch.randn(6, 2, generator=torch.Generator().manual_seed(step), dtype=torch.float64)
            return every[numbers].to(like)

        return noise

    def drawn(numbers: list[int]) -> Tensor:
        model, _ = model_of([labels[number] for number in numbers])
        denoiser = GUIDANCE["classifier_free"].bind(model, scale=2.0, interval=(0.1, 5.0))
        rule = SAMPLERS[name]
        return rule.run(denoiser, x_T[numbers], SCHEDULE, timesteps, noise=noise_of(numbers))

    together = drawn([0, 1, 2, 3, 4, 5])
    apart = torch.cat([drawn([0, 1]), drawn([2]), drawn([3, 4, 5])])
    assert torch.isfinite(together).all() and (together - apart).abs().max() < 1e-9
    # They are near the mean of their own class.
    nearest = (together[:, None] - MEANS).norm(dim=-1).argmin(dim=1)
    assert nearest.tolist() == labels


def points_of(sampler: dict[str, Any] | None = None, **guidance: Any):
    made = SamplerConfig(**{"steps": [10], "eta": 0.0, **(sampler or {})})
    return GuidedSampler.of(made, GuidanceConfig(**guidance)).points(SCHEDULE)


def test_the_scale_is_an_axis_of_the_grid_and_calls_are_counted():
    points = points_of({"steps": [5, 10]}, name="classifier_free", scale=[0, 1, 2.0])
    assert [(dict(point.options)["guidance_scale"], point.steps, point.nfe) for point in points] == [
        *((0.0, 5, 5), (0.0, 10, 10), (1.0, 5, 5), (1.0, 10, 10), (2.0, 5, 10), (2.0, 10, 20)),
    ]
    assert points[-1].guidance == ("classifier_free", {"scale": 2.0}) and points[-1].own_options == {}
    (plain,) = points_of()
    assert plain.options == () and plain.guidance == ("none", {}) and plain.nfe == 10
    assert plain == SamplerConfig(steps=[10], eta=0.0).points(SCHEDULE)[0]
    (labelled,) = points_of(labels=[3, "cat"])
    assert labelled.options == (("guidance_labels", (3, "cat")),) and labelled.nfe == 10


@pytest.mark.parametrize("sampler", [{}, {"name": "heun"}, {"name": "dpm3"}, {"name": "restart"}, {"name": "deis"}])
def test_calls_of_an_interval_are_those_that_are_made(sampler):
    (point,) = points_of(sampler, name="classifier_free", scale=3.0, interval=[0.5, 4.0])
    model, network = model_of([1])
    name, options = point.guidance
    denoiser = GUIDANCE[name].bind(model, **options)
    x_T = torch.ones(1, 2, dtype=torch.float64)
    SAMPLERS[point.sampler].run(
        denoiser, x_T, SCHEDULE, point.timesteps, noise=lambda step, like: torch.zeros_like(like), **point.own_options
    )
    (plain,) = points_of(sampler)
    assert network.samples == point.nfe and plain.nfe < point.nfe < 2 * plain.nfe


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"name": "other"}, "guidance.name=other is not known; choose one of none, classifier_free, autoguidance"),
        ({"scale": 2.0}, "guidance.scale=2.0 is no option of guidance=none; it has none"),
        ({"name": "classifier_free", "scale": -1}, "guidance.scale=-1.* cannot be used: scale must be a finite number"),
        ({"name": "classifier_free", "scale": float("nan")}, "guidance.scale=nan.* scale must be a finite number >= 0"),
        ({"name": "classifier_free", "scale": float("inf")}, "guidance.scale=inf.* scale must be a finite number >= 0"),
        ({"name": "classifier_free", "scale": "big"}, "guidance.scale=big.* scale must be a finite number >= 0"),
        ({"name": "classifier_free", "scale": True}, "guidance.scale=True.* scale must be a finite number >= 0"),
        ({"name": "classifier_free", "scale": []}, "guidance.scale=.* must be different numbers, at least one"),
        ({"name": "classifier_free", "scale": [2, 2]}, "guidance.scale=.* must be different numbers, at least one"),
        ({"name": "classifier_free", "interval": [1.0]}, "interval must be two noise levels sigma, 0 <= low <= high"),
        ({"name": "classifier_free", "interval": [2.0, 1.0]}, "interval must be two noise levels sigma"),
        ({"name": "classifier_free", "interval": [float("nan"), 1.0]}, "interval must be two noise levels sigma"),
        ({"name": "classifier_free", "interval": 3}, "guidance.interval=3 must be two noise levels"),
        (
            {"name": "classifier_free", "options": {"gain": 1}},
            "guidance.gain=1 is no option of guidance=classifier_free",
        ),
        ({"name": "classifier_free", "labels": []}, r"guidance.labels=\[\] is empty"),
        ({"name": "classifier_free", "checkpoint": "x"}, "guidance.checkpoint=x is of no use with guidance=classifier"),
        ({"name": "autoguidance"}, "guidance=autoguidance needs guidance.checkpoint=PATH"),
    ],
)
def test_bad_settings_are_refused_by_name(given, message):
    with pytest.raises(UserError, match=message):
        points_of(**given)


def test_calls_are_not_both_limited_and_multiplied():
    with pytest.raises(UserError, match=r"sampler\.nfe=20 is not possible with guidance=classifier_free"):
        points_of({"nfe": 20}, name="classifier_free")


@pytest.mark.parametrize(
    ("name", "model", "message"),
    [
        ("classifier_free", Conditional(Mixture(), None, None, SCHEDULE), "the network is unconditional"),
        ("classifier_free", Conditional(Mixture(), torch.tensor([1]), None, SCHEDULE), "no condition that stands for"),
        ("autoguidance", Conditional(Mixture(), torch.tensor([1]), NULL, SCHEDULE), "no second network"),
    ],
)
def test_networks_that_cannot_be_guided(name, model, message):
    with pytest.raises(ValueError, match=message):
        GUIDANCE[name].bind(model)
    with pytest.raises(ValueError, match="option 'gain' is not known"):
        GUIDANCE[name].bind(model, gain=1.0)
