"""Searched grids: what is asked of the network, once, and which timesteps the points get."""

from __future__ import annotations

import csv
import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ddim.command.config import _check_seed
from ddim.data import Pixels
from ddim.diffusion import SAMPLERS, NoiseSchedule, NoiseSource, Sampler, sample
from ddim.diffusion.grid import grid_points
from ddim.diffusion.likelihood.bound import bound_terms
from ddim.diffusion.search.elbo import elbo
from ddim.diffusion.search.gits import gits
from ddim.errors import UserError
from ddim.evaluation.searching import FOLDER, SEED, Search, any_searched
from ddim.evaluation.subject import Sampling
from ddim.training.module import DenoisingModule

SHAPE = (1, 4, 4)
SCHEDULE = NoiseSchedule.linear(100)
COUNT = 24
PIXELS = torch.randint(0, 256, (300, *SHAPE), dtype=torch.uint8, generator=torch.Generator().manual_seed(5))


class Smooth(nn.Module):
    """eps whose error depends on t, so that searches find other grids than the linear one; counts its calls."""

    def __init__(self, power: float = 1.0) -> None:
        super().__init__()
        self.power = nn.Parameter(torch.tensor(power))
        self.calls = 0

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        self.calls += len(x)
        level = SCHEDULE.alpha_bar.float()[t].reshape(-1, 1, 1, 1)
        return (1 - level).sqrt() * (x - 0.3 * x.tanh() * level**self.power)


class Images:
    """A data set's training images, as far as a search reads them."""

    def __init__(self, fingerprint: str = "a") -> None:
        self.fingerprint = fingerprint

    def num_images(self, split: str) -> int:
        assert split == "train", "test images are what is measured on"
        return len(PIXELS)

    def images(self, split: str, batch_size: int, limit: int | None = None) -> Iterator[Tensor]:
        assert split == "train" and limit is not None
        yield from PIXELS[: len(PIXELS)][[i * len(PIXELS) // limit for i in range(limit)]].split(batch_size)

    def provenance(self, split: str) -> dict[str, Any]:
        assert split == "train"
        return {"fingerprint": self.fingerprint}


def points_of(**given: Any) -> dict[str, Any]:
    settings = {"steps": [3, 5], "etas": 0.0, "tau": ["linear", "gits", "elbo"]} | given
    return {"grid": grid_points(SCHEDULE, **settings)}


@pytest.fixture(autouse=True)
def few(monkeypatch):
    """Latents and images of a search; the real numbers would only take longer."""
    for name in ("LATENTS", "IMAGES"):
        monkeypatch.setattr(f"ddim.evaluation.searching.{name}", COUNT)


@pytest.fixture
def searching(subject_of, tmp_path):
    """Searches in an evaluation of its own: the points it has found, and how often it has called the network."""

    def run(
        points=None, *, network=None, seed=0, batch_size=50, images=None, about=None, shape=SHAPE, **trainer
    ) -> tuple[dict[str, Any], int]:
        network = network or Smooth()
        module = DenoisingModule(network, trainer.pop("schedule", SCHEDULE), optimizer={}).eval()
        subject = subject_of(module, Sampling(NoiseSource(seed), Pixels(shape), batch_size), **trainer)
        search = Search(about or {"weights_sha256": "0"}, images or Images(), tmp_path)
        before = network.calls
        return search.searched(points or points_of(), subject), network.calls - before

    return run


def latents() -> Tensor:
    return NoiseSource(2**63).initial(torch.arange(COUNT), SHAPE)


def expected_gits(wanted: list[int]) -> list[tuple[int, ...]]:
    with torch.no_grad():
        found = gits(Smooth(), latents(), SCHEDULE, wanted)
    return [path.timesteps for path in found]


def expected_elbo(wanted: list[int], eta: float = 1.0, variance: str = "eta") -> list[tuple[int, ...]]:
    from ddim.diffusion.search.paths import candidate_timesteps

    numbers = [i * len(PIXELS) // COUNT for i in range(COUNT)]
    noise = NoiseSource(2**63).bind(torch.tensor(numbers), "validation")
    with torch.no_grad():
        x_0 = PIXELS[numbers] / 127.5 - 1
        terms = bound_terms(Smooth(), x_0, SCHEDULE, candidate_timesteps(SCHEDULE), noise)
    return [path.timesteps for path in elbo(terms, wanted, eta, variance=variance)]


class TestFoundTimesteps:
    def test_points_of_a_searched_tau_get_what_the_search_finds_and_others_stay(self, searching):
        before = points_of()["grid"]
        after = searching()[0]["grid"]
        assert [point.tau for point in after] == ["linear"] * 2 + ["gits"] * 2 + ["elbo"] * 2
        assert after[:2] == before[:2]
        assert [point.timesteps for point in after[2:4]] == expected_gits([3, 5])
        assert [point.timesteps for point in after[4:]] == expected_elbo([3, 5])
        standing_in = {point.timesteps for point in before}
        assert not standing_in & {point.timesteps for point in after[2:]}, "the test needs grids that are not linear"
        assert [(point.steps, point.nfe) for point in after] == [(3, 3), (5, 5)] * 3

    @pytest.mark.parametrize(
        ("eta", "model"),
        [
            (0.5, (0.5, "eta")),
            ("sigma_hat", (1.0, "sigma_hat")),
            ("sigma_hat_official", (1.0, "eta")),
            (0.0, (1.0, "eta")),
        ],
    )
    def test_elbo_takes_the_bound_of_the_point_itself_where_it_has_one(self, searching, eta, model):
        (point,) = searching(points_of(steps=4, etas=eta, tau="elbo"))[0]["grid"]
        assert [point.timesteps] == expected_elbo([4], *model)

    def test_the_noise_is_that_of_no_seed_that_can_be_measured(self):
        with pytest.raises(UserError):
            _check_seed(SEED)

    def test_calls_are_limited_by_those_of_the_found_timesteps(self, searching, monkeypatch):
        """A rule that calls twice per timestep below 20: the stand-ins have other ones than what is found."""

        def calls(steps: int, *, timesteps: tuple[int, ...]) -> int:
            return steps + sum(t < 20 for t in timesteps)

        monkeypatch.setitem(SAMPLERS, "costly", Sampler(sample, calls))
        points = {"grid": grid_points(SCHEDULE, steps=None, etas=0.0, tau="gits", sampler="costly", nfe=[6, 9])}
        after = searching(points)[0]["grid"]
        for point, limit in zip(after, (6, 9), strict=True):
            fitting = [t for t in expected_gits(list(range(2, limit + 1))) if calls(len(t), timesteps=t) <= limit]
            assert point.timesteps == fitting[-1] and point.steps == len(point.timesteps)
            assert point.nfe == calls(point.steps, timesteps=point.timesteps) <= limit
        assert [point.steps for point in after] != [point.steps for point in points["grid"]]

    def test_a_sampler_that_refuses_what_was_found_says_so(self, searching, monkeypatch):
        def calls(steps: int, *, timesteps: tuple[int, ...]) -> int:
            if timesteps != (0, 33, 66):
                raise ValueError("they are not mine")
            return steps

        monkeypatch.setitem(SAMPLERS, "picky", Sampler(sample, calls))
        points = {"grid": grid_points(SCHEDULE, steps=3, etas=0.0, tau="gits", sampler="picky")}
        with pytest.raises(UserError, match=r"sampler\.name=picky cannot be used with 3 timesteps: they are not mine"):
            searching(points)

    def test_a_network_that_gives_no_numbers(self, searching):
        for tau in ("gits", "elbo"):
            with pytest.raises(UserError, match=rf"sampler\.tau={tau} finds nothing with this network"):
                searching(points_of(tau=tau), network=Smooth(float("nan")))

    def test_memory_that_runs_out_halves_the_batch(self, searching):
        class Small(Smooth):
            def forward(self, x: Tensor, t: Tensor) -> Tensor:
                if len(x) > 20:
                    raise torch.OutOfMemoryError("CUDA out of memory.")
                return super().forward(x, t)

        assert searching(network=Small())[0] == searching()[0]

    def test_only_searched_points_need_a_search(self):
        assert any_searched(points_of()) and not any_searched(points_of(tau=["linear", "karras"]))


class TestCost:
    def test_a_search_costs_less_than_a_thousand_images_at_50_steps(self, searching, monkeypatch):
        for name in ("LATENTS", "IMAGES"):
            monkeypatch.setattr(f"ddim.evaluation.searching.{name}", 256)
        for tau in ("gits", "elbo"):
            assert 0 < searching(points_of(tau=tau))[1] < 50_000

    def test_it_is_done_once_whatever_is_asked_of_the_same_network_later(self, searching):
        first, calls = searching()
        assert calls > 0
        assert searching() == (first, 0)
        for given in (
            {"steps": [2, 20], "etas": [0.0, 1.0, "sigma_hat"]},
            {"steps": None, "nfe": 7, "sampler": "ipndm", "options": {"eps_scale": 1.1}},
        ):
            assert searching(points_of(**given), seed=3, batch_size=7)[1] == 0

    def test_what_was_found_is_said_with_its_cost(self, searching, caplog):
        caplog.set_level(logging.INFO)
        found, calls = searching(points_of(tau="gits", steps=4))
        (point,) = found["grid"]
        assert f"sampler.tau=gits took {calls:,} network calls" in caplog.text
        assert f"gits, S=4: {' '.join(map(str, point.timesteps))}" in caplog.text
        caplog.clear()
        searching(points_of(tau="gits", steps=4))
        assert "searched before" in caplog.text and "network calls" not in caplog.text

    @pytest.mark.parametrize("tau", ["gits", "elbo"])
    @pytest.mark.parametrize(
        "other",
        [
            {"about": {"weights_sha256": "1"}},
            {"about": {"weights_sha256": "0", "denoiser": {"width": 2}}},
            {"schedule": NoiseSchedule.cosine(100)},
            {"schedule": NoiseSchedule.linear(100, beta_end=0.03)},
            {"precision": "bf16-mixed"},
        ],
    )
    def test_another_network_schedule_or_arithmetic_is_searched_anew(self, searching, tau, other):
        points = points_of(tau=tau)
        searching(points)
        assert searching(points, **other)[1] > 0

    def test_other_images_matter_to_the_bound_alone(self, searching):
        searching()
        assert searching(points_of(tau="gits"), images=Images("b"))[1] == 0
        assert searching(points_of(tau="elbo"), images=Images("b"))[1] > 0

    def test_clipping_matters_to_the_bound_alone(self, searching):
        searching()
        assert searching(points_of(tau="gits", clip_denoised=True))[1] == 0
        assert searching(points_of(tau="elbo", clip_denoised=True))[1] > 0

    @pytest.mark.parametrize("constant", ["FORMAT", "LATENTS"])
    def test_another_way_to_search_is_another_search(self, searching, monkeypatch, constant):
        searching(points_of(tau="gits"))
        monkeypatch.setattr(f"ddim.evaluation.searching.{constant}", 12)
        assert searching(points_of(tau="gits"))[1] > 0


def edited(change) -> Any:
    def edit(text: str) -> str:
        content = json.loads(text)
        change(content)
        return json.dumps(content)

    return edit


class TestDamage:
    @pytest.mark.parametrize(
        "damage",
        [
            lambda text: text[: len(text) // 2],
            lambda text: "",
            lambda text: "[]",
            lambda text: "[" * 100_000,
            lambda text: '{"asked": {}, "timesteps": {}}',
            edited(lambda content: content["timesteps"].pop("7")),
            edited(lambda content: content["timesteps"].update({"3": [0, 99]})),
            edited(lambda content: content["timesteps"].update({"3": [99, 5, 0]})),
            edited(lambda content: content["timesteps"].update({"3": [0, 5, 100]})),
            edited(lambda content: content["timesteps"].update({"3": None})),
            edited(lambda content: content["timesteps"].update({"three": [0, 5, 99]})),
            edited(lambda content: content["asked"].update({"weights_sha256": "other"})),
        ],
    )
    def test_a_damaged_file_is_searched_anew_and_put_right(self, searching, tmp_path, warnings_only, caplog, damage):
        points = points_of(tau="gits")
        right, _ = searching(points)
        files = sorted((tmp_path / FOLDER).iterdir())
        whole = [path.read_text() for path in files]
        for path in files:
            path.write_text(damage(path.read_text()))
        again, calls = searching(points)
        assert again == right and calls > 0 and "is damaged, its search is done again" in caplog.text
        assert [path.read_text() for path in sorted((tmp_path / FOLDER).iterdir())] == whole

    def test_bytes_that_are_no_text(self, searching, tmp_path):
        right, _ = searching()
        for path in (tmp_path / FOLDER).iterdir():
            path.write_bytes(b"\xff\xfe\x00")
        assert searching()[0] == right

    def test_a_cache_that_takes_nothing_costs_a_warning(self, searching, tmp_path, caplog):
        (tmp_path / FOLDER).write_text("a file where the folder should be")
        assert [point.timesteps for point in searching(points_of(tau="gits"))[0]["grid"]] == expected_gits([3, 5])
        assert "could not be kept" in caplog.text


class TestSeveralProcesses:
    def test_the_first_searches_and_the_others_get_what_it_found(self, searching, run_on_ranks):
        alone, calls = searching(about={"weights_sha256": "alone"})
        networks = [Smooth(), Smooth(2.0)]
        everyone = run_on_ranks(2, lambda rank: searching(network=networks[rank], rank=rank, world_size=2))
        assert everyone == [(alone, calls), (alone, 0)]

    def test_what_is_wrong_on_the_first_is_said_on_all(self, searching, run_on_ranks):
        def run(rank: int) -> str:
            with pytest.raises(UserError) as error:
                searching(network=Smooth(float("nan")), rank=rank, world_size=2)
            return str(error.value)

        first, second = run_on_ranks(2, run)
        assert first == second and "finds nothing" in first


def test_an_evaluation_measures_at_what_was_found_and_searches_once(run_script, trained_run, workplace, cache_dir):
    """From the command line to the rows; a second evaluation of the checkpoint finds the answers in the cache."""
    arguments = (
        f"checkpoint={trained_run}",
        *("sampler=ddim", "sampler.steps=2,3", "sampler.tau=linear,gits,elbo", "sampler.eps_scale=1.01"),
        *("evaluation.num_samples=70", "evaluation.parts=grid,convergence", "evaluation.convergence.num_images=2"),
        *("evaluation.convergence.reference_steps=20", "trainer.accelerator=cpu"),
    )
    for attempt in ("first", "second"):
        outcome = run_script("evaluate.py", *arguments, f"hydra.run.dir=outputs/{attempt}")
        assert outcome.status == 0, outcome.errors or outcome.output
        assert ("searched before" in outcome.output) == (attempt == "second")
    with (workplace / "outputs/second/results.csv").open() as file:
        weights = next(csv.DictReader(file))["weights_hash"]
    answers: dict[str, Any] = {}
    for path in (cache_dir / FOLDER).glob("*.json"):
        content = json.loads(path.read_text())
        asked = content["asked"]
        if asked["weights_sha256"].startswith(weights) and asked.get("variance", "eta") == "eta":
            answers[asked["method"]] = content["timesteps"]
    for table in ("results.csv", "convergence.csv"):
        rows = list(csv.DictReader((workplace / "outputs" / "second" / table).open()))
        assert [(row["tau"], row["steps"]) for row in rows] == [
            (tau, steps) for tau in ("linear", "gits", "elbo") for steps in "23"
        ]
        for row in rows:
            assert row["eps_scale"] == "1.01"
            if row["tau"] != "linear":
                assert row["timesteps"].split() == [str(t) for t in answers[row["tau"]][row["steps"]]]
