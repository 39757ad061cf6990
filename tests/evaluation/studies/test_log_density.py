"""Likelihood of data that are no images: nats in the data's own units, against Gaussians in closed form."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
from pytorch_lightning.utilities.exceptions import SIGTERMException
from torch import Tensor, nn

from ddim.data import Pixels, Standardised
from ddim.diffusion import NoiseSchedule, NoiseSource
from ddim.diffusion.grid import SamplerConfig
from ddim.errors import UserError
from ddim.evaluation.likelihood.maps import density_map
from ddim.evaluation.likelihood.units import Nats
from ddim.evaluation.studies.likelihood import Likelihood, LikelihoodConfig
from ddim.evaluation.subject import Sampling, Subject
from ddim.findings.labels import point_key
from ddim.findings.parts.likelihood import PART
from ddim.findings.telling import Densities
from ddim.tracking.keys import EVALUATE, find, wandb_key
from ddim.training.module import DenoisingModule

SCHEDULE = NoiseSchedule.linear()
NOISE = NoiseSource(7)
MIXING = torch.tensor([[3.0, 0.0], [-20.0, 40.0]], dtype=torch.float64)
CENTRE = torch.tensor([5.0, -100.0], dtype=torch.float64)
TRUTH = torch.distributions.MultivariateNormal(CENTRE, MIXING @ MIXING.T)
PLANE = Standardised((2,), "vectors", (5.0, -100.0), (3.0, math.sqrt(2000.0)))


class ExactDenoiser(nn.Module):
    """E[ε | x_t] for z ~ N(0, covariance) in the model's space, in float64."""

    def __init__(self, covariance: Tensor) -> None:
        super().__init__()
        self.values, self.vectors = torch.linalg.eigh(covariance)
        self.dtype_of = nn.Parameter(torch.zeros(1, dtype=torch.float64))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        level = SCHEDULE.alpha_bar[t].unsqueeze(1)
        scaled = (1 - level).sqrt() * (x.double().flatten(1) @ self.vectors) / (level * self.values + 1 - level)
        return (scaled @ self.vectors.T).reshape(x.shape)


def covariance_of(space: Standardised, mixing: Tensor) -> Tensor:
    scales = torch.tensor(space.scale, dtype=torch.float64).repeat_interleave(math.prod(space.shape[1:]))
    return (mixing @ mixing.T) / scales / scales[:, None]


def samples(count: int) -> Tensor:
    return (CENTRE + NoiseSource(3).initial(torch.arange(count), (2,)).double() @ MIXING.T).float()


def study_of(stored: Tensor, space=PLANE, exact=TRUTH.log_prob, **more) -> Likelihood:
    points = Likelihood.grid(LikelihoodConfig(), SamplerConfig(steps=[10]), SCHEDULE)
    more = {"points": points, "numbers": list(range(len(stored))), "dequantizations": ["truncated_normal"], **more}
    unit = Nats(space, exact)
    return Likelihood(images=lambda size: iter(stored.split(size)), unit=unit, source={"data": "gauss"}, **more)


@pytest.fixture(scope="module")
def run(ask):
    def run(directory, study, space=PLANE, mixing=MIXING, *, batch_size=50, loggers=(), **more):
        module = DenoisingModule(ExactDenoiser(covariance_of(space, mixing)), SCHEDULE, optimizer={}).eval()
        identity = {"dataset": "gauss", "weights": "ema", "seed": 7}
        return ask(study, module, Sampling(NOISE, space, batch_size), directory, identity, loggers=loggers, **more)

    return run


@pytest.fixture(scope="module")
def found(run, tmp_path_factory):
    summary: dict[str, float] = {}
    logger = SimpleNamespace(log_metrics=lambda values, step: summary.update(values))
    stored = samples(60)
    study = study_of(stored, plane=lambda: stored)
    return run(tmp_path_factory.mktemp("density"), study, loggers=[logger]), summary, stored


def test_the_flow_finds_the_exact_density_in_the_units_of_the_data(found):
    asked, _, stored = found
    *bounds, flow = asked.rows
    exact = TRUTH.log_prob(stored.double())
    assert (flow["kind"], flow["dequantization"], flow["steps"], flow["num_images"]) == ("flow", None, None, 60)
    # What is left is the noise of timestep 0, and that the latents of timestep 999 are N(0, 1).
    assert flow["log_density"] == pytest.approx(exact.mean().item(), abs=0.01)
    assert flow["exact"] == pytest.approx(exact.mean().item(), abs=1e-5)
    assert flow["difference"] == pytest.approx(flow["log_density"] - flow["exact"], abs=1e-9)
    assert flow["difference_rms"] < 0.01 and flow["correlation"] > 0.9999
    assert flow["standard_error"] == pytest.approx(exact.std().item() / math.sqrt(60), rel=0.01)
    assert "bits_per_dimension" not in flow and "unit" not in flow
    assert [row["steps"] for row in bounds] == [10, 1000, 10, 1000]
    for row in bounds:
        # A bound, of which each timestep has one draw of noise.
        assert row["difference"] < 3 * row["difference_standard_error"]
        assert row["nfe"] < 1000 or row["difference"] > -1, "and of all timesteps not far below"


class TestTheMap:
    def mapped(self, denoiser, **more):
        return density_map(
            Subject(denoiser, SCHEDULE, Sampling(NOISE, PLANE, 5000), **more), Nats(PLANE), samples(9), 1e-3
        )

    def test_a_network_that_gives_no_numbers_there_is_one_sentence(self):
        with pytest.raises(
            UserError, match=r"evaluation\.likelihood\.flow=true is not possible with this network: .*finite"
        ):
            self.mapped(lambda x, t: x * math.nan)

    def test_a_process_that_is_asked_to_leave_does_so(self):
        asked = []

        def leave():
            raise SIGTERMException

        with pytest.raises(SIGTERMException):
            self.mapped(lambda x, t: asked.append(x), check_signals=leave)
        assert not asked


def test_a_series_has_the_scale_of_its_channel_at_each_time(tmp_path, run):
    space = Standardised((2, 3), "series", (0.0, 0.0), (10.0, 0.2))
    # Its trace is estimated, exactly where the Jacobian is diagonal.
    mixing = torch.diag(torch.tensor([10.0, 5, 10, 0.2, 0.1, 0.2], dtype=torch.float64))
    truth = torch.distributions.MultivariateNormal(torch.zeros(6, dtype=torch.float64), mixing @ mixing.T)
    stored = truth.sample((20,)).reshape(-1, 2, 3).float()
    study = study_of(stored, space, None, points=[])
    (flow,) = run(tmp_path, study, space, mixing).rows
    assert flow["log_density"] == pytest.approx(truth.log_prob(stored.double().flatten(1)).mean().item(), abs=0.03)
    assert "exact" not in flow and "correlation" not in flow


@pytest.mark.parametrize(
    "space", [PLANE, Standardised((2, 3), "series", (1.0, 2.0), (10.0, 0.2)), Pixels((1, 2, 2))], ids=str
)
def test_the_volume_is_the_determinant(space):
    x = torch.zeros(1, *space.shape, dtype=torch.float64)
    if isinstance(space, Pixels):
        # Rounded pixels have no derivative; from -1 to 1 they go 255 steps.
        jacobian = torch.eye(4, dtype=torch.float64) * 255 / 2
    else:
        scale = torch.tensor(space.scale, dtype=torch.float64).view(-1, *[1] * (len(space.shape) - 1))
        jacobian = torch.diag((torch.ones(space.shape) * scale).flatten().double())
        torch.testing.assert_close(
            space.to_stored(x + 1).double() - space.to_stored(x).double(),
            (torch.ones(1, *space.shape) * scale).double(),
        )
    assert space.log_volume == pytest.approx(torch.linalg.slogdet(jacobian).logabsdet.item())


@pytest.mark.parametrize(("batch_size", "world_size"), [(3, 1), (50, 2)])
def test_samples_meet_their_own_exact_density_whoever_computed_them(
    tmp_path, run, run_on_ranks, batch_size, world_size
):
    stored = samples(7)

    def on(rank: int):
        (tmp_path / str(rank)).mkdir()
        study = study_of(stored, points=[], tolerance=1e-6)
        return run(tmp_path / str(rank), study, batch_size=batch_size, rank=rank, world_size=world_size)

    for asked in run_on_ranks(world_size, on):
        (row,) = asked.rows
        assert row["difference_rms"] < 0.01 and row["correlation"] > 0.9999


def test_what_is_told(found):
    asked, summary, stored = found
    words = asked.words()
    assert "Likelihood of 60 test samples: log-density in nats per sample" in words and "minus exact" in words
    assert "bits per dimension" not in words and "dequantization" not in words
    keys = {f"likelihood/{name}/{which}" for name in ("log_density", "difference") for which in places(asked)}
    assert set(summary) == keys
    assert {find(wandb_key(key), EVALUATE, ["summary"]).name for key in summary} == {
        f"likelihood/{name}/{which}"
        for name in ("log_density", "difference")
        for which in ("<sampler>/<tau>/<steps>", "flow")
    }
    assert all(key.startswith("likelihood/log_density/") for row in asked.rows for key in PART.curves(row))
    (picture,) = asked.pictures(Densities)
    (_, learnt), (_, exact) = picture.panels
    low, high, bottom, top = picture.square
    assert low < stored[:, 0].min() < stored[:, 0].max() < high
    assert bottom < stored[:, 1].min() < stored[:, 1].max() < top and high - low == pytest.approx(top - bottom)
    # Rows of a map go from low to high of the second axis.
    places_ = torch.linspace(low, high, 2 * 64 + 1)[1::2], torch.linspace(bottom, top, 2 * 64 + 1)[1::2]
    assert exact[40, 10] == pytest.approx(
        TRUTH.log_prob(torch.stack([places_[0][10], places_[1][40]]).double()).item(), rel=1e-4
    )
    near = exact > exact.max() - 4
    assert (learnt - exact)[near].abs().max() < 0.05
    assert [path.name for path in asked.paths] == ["likelihood-density.png"]


def places(asked) -> set[str]:
    return {point_key(row) for row in asked.rows if row["kind"] == "bound"} | {"flow"}
