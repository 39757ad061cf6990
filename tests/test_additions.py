"""One of each kind of addition, from the files of docs/extending.md: its keys, columns, and place in what is found."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import nn

from ddim.command.arguments import evaluation_arguments
from ddim.denoisers import UNet, build_denoiser
from ddim.denoisers.build import VERSIONS, check_shape, new_denoiser
from ddim.denoisers.formats.own import describe
from ddim.denoisers.pretrained import load_denoiser, open_pretrained
from ddim.diffusion import WEIGHTINGS, NoiseSchedule, loss_weights
from ddim.errors import UserError
from ddim.evaluation.kept.checked_file import read_checked
from ddim.evaluation.settings import STUDIES, evaluation_schema
from ddim.evaluation.study import Study
from ddim.export import export
from ddim.extending import Part, register_denoiser, register_study, register_weighting
from ddim.findings.parts import PARTS
from ddim.runs.hashes import source_version
from ddim.tracking.keys import EVALUATE, find
from ddim.tracking.offline_runs import OfflineRun, offline_files, read_offline_run

REPOSITORY = Path(__file__).resolve().parents[1]
FILES = re.findall(
    r"^```python\n(# (\w+\.py)\n.*?)^```",
    (REPOSITORY / "docs" / "extending.md").read_text(encoding="utf-8"),
    flags=re.MULTILINE | re.DOTALL,
)
TRAINED = (
    *("dataset=stripes", "dataset.width=3", "denoiser=plain", "denoiser.width=8", "schedule=power", "schedule.power=3"),
    *("loss.weighting=p2", "trainer.max_steps=2", "trainer.val_check_interval=1", "trainer.log_every_n_steps=1"),
    *("callbacks.evaluation.enabled=false", "callbacks.sample_grid.steps=2", "logger=csv", "hydra.run.dir=run"),
)
EVALUATED = (
    *("checkpoint=run", "sampler=trapezoid", "sampler.weight=0.25", "sampler.steps=2,3", "hydra.run.dir=evaluation"),
    *("evaluation.parts=grid,brightness", "evaluation.brightness.num_images=10", "evaluation.num_samples=20"),
    *("guidance=bright", "guidance.strength=0.2"),
    *("evaluation.features=edges", "evaluation.metrics=frechet_distance,coverage", "evaluation.loss_images=70"),
    "logger.mode=offline",
)


GUIDED = [["guidance", "bright"], ["guidance_strength", 0.2]]


@dataclass
class Done:
    """What is left of a training, its resumption, an evaluation and the same with another option of the sampler."""

    folder: Path
    said: str
    rows: list[dict[str, str]]
    finished: set[str]

    def table(self, name: str) -> list[dict[str, str]]:
        return list(csv.DictReader((self.folder / "evaluation" / name).open()))


@pytest.fixture(scope="module")
def done(made_once: Callable[..., Path], run_fork: Callable[..., Any]) -> Done:
    def work(folder: Path) -> None:
        for text, name in FILES:
            (folder / name).write_text(text)
        plugins = {"DDIM_PLUGINS": ",".join(name for _, name in FILES)}

        def script(*command: str) -> str:
            ran = run_fork(folder, plugins, *command)
            assert ran.status == 0, ran.output
            return ran.output

        script("train.py", *TRAINED)
        script("train.py", "resume=run", "trainer.max_steps=3")
        (folder / "said").write_text(script("evaluate.py", *EVALUATED))
        shutil.copy(folder / "evaluation" / "results.csv", folder / "first_results.csv")
        finished = "\n".join(path.name for path in (folder / "evaluation" / "finished").iterdir())
        (folder / "first_finished").write_text(finished)
        script("evaluate.py", "resume=evaluation", "sampler.weight=0.75")

    folder = made_once("additions", work)
    rows = list(csv.DictReader((folder / "first_results.csv").open()))
    finished = set((folder / "first_finished").read_text().splitlines())
    return Done(folder, (folder / "said").read_text(), rows, finished)


def test_the_page_has_one_of_each_kind():
    kinds = {kind for text, _ in FILES for kind in re.findall(r"@register_(\w+)", text)}
    assert kinds == {
        "dataset",
        "denoiser",
        "sampler",
        "guidance",
        "operator",
        "schedule",
        "weighting",
        "metric",
        "features",
        "study",
    }


def test_keys_are_those_of_the_parameters(done):
    trained = yaml.safe_load((done.folder / "run" / "config.yaml").read_text())
    assert trained["dataset"]["name"] == "stripes" and trained["dataset"]["width"] == 3
    assert trained["schedule"] == {"name": "power", "num_timesteps": 1000, "power": 3}
    assert trained["loss"] == {"weighting": "p2"}
    evaluated = yaml.safe_load((done.folder / "evaluation" / "config.yaml").read_text())
    assert evaluated["sampler"]["weight"] == 0.75 and evaluated["evaluation"]["brightness"] == {"num_images": 10}
    last = torch.load(done.folder / "run" / "checkpoints" / "last.ckpt", weights_only=True)
    stated = last["ddim"]["config"]["denoiser"]
    assert stated == {"name": "plain", "channels": 1, "resolution": 8, "width": 8, "depth": 3}
    assert last["global_step"] == 3 and "denoiser.blocks.2.weight" in last["state_dict"]


def test_results_have_the_columns(done):
    assert [(row["sampler"], row["steps"], row["nfe"]) for row in done.rows] == [
        ("trapezoid", "2", "3"),
        ("trapezoid", "3", "5"),
    ]
    for row in done.rows:
        assert (row["dataset"], row["features"], row["weight"]) == ("stripes", "edges", "0.25")
        assert (row["guidance"], row["guidance_strength"]) == ("bright", "0.2")
        assert row["schedule"] == "power(num_timesteps=1000, power=3)"
        assert 0 <= float(row["coverage"]) <= 1 and float(row["frechet_distance"]) > 0
    assert {(row["weight"], row["steps"]) for row in done.table("results.csv")} == {("0.75", "2"), ("0.75", "3")}


def test_another_option_is_another_point(done):
    now = {path.name for path in (done.folder / "evaluation" / "finished").iterdir()}
    assert len(done.finished) == 2 and done.finished < now and len(now) == 4
    for name in now:
        depends_on = read_checked(done.folder / "evaluation" / "finished" / name)[1]["depends_on"]
        assert depends_on["point"]["options"] == [*GUIDED, ["weight", 0.25 if name in done.finished else 0.75]]
        # What the names stand for, besides their settings.
        assert {"sampler_version", "guidance_version", "denoiser_version", "alpha_bar"} <= set(depends_on)


def test_files_and_terminal_have_the_rows_of_the_study(done):
    rows = done.table("brightness.csv")
    document = json.loads((done.folder / "evaluation" / "brightness.json").read_text())
    assert [int(row["steps"]) for row in rows] == [row["steps"] for row in document["rows"]] == [2, 3]
    for row, stored in zip(rows, document["rows"], strict=True):
        assert row["weight"] == "0.75" and stored["options"] == [*GUIDED, ["weight", 0.75]]
        assert float(row["mean"]) == stored["mean"] and 0 < stored["mean"] < 1
        assert stored["real"] == pytest.approx(0.5, abs=0.1)
    assert "mean pixel" in done.said and "Table     evaluation/brightness.csv" in done.said.replace(
        f"{done.folder}/", ""
    )
    assert "coverage" in done.said


def test_the_page_shows_the_study_and_the_column(done):
    page = (done.folder / "evaluation" / "report.html").read_text(encoding="utf-8")
    (heading, section) = re.search(r"<h2[^>]*>\s*(Brightness)\s*</h2>(.*?)(?=<h2|\Z)", page, re.DOTALL).groups()
    assert heading and "beside that of as many held-out images" in section
    assert f"{float(done.table('brightness.csv')[0]['mean']):.3g}" in section
    assert '"brightness-mean-0"' in page and "coverage" in page


def test_wandb_has_the_keys_of_the_study(done):
    path, _ = offline_files(
        done.folder / "evaluation", (done.folder / "evaluation" / "wandb_run_id").read_text().strip()
    )
    run: OfflineRun = read_offline_run(path)
    (curve,) = [key for key in run.metrics if key.startswith("brightness/mean/")]
    assert "trapezoid" in curve and run.metrics[curve].step_metric == "steps"
    assert [steps for steps, _ in run.curve(curve)] == [2, 3]
    assert run.series("brightness/results")
    numbers = {key: value for key, value in run.summary.items() if key.startswith("brightness/mean/") and key != curve}
    assert len(numbers) == 2 and all(0 < value < 1 for value in numbers.values())


def test_the_page_of_a_finished_evaluation_needs_the_file(done, monkeypatch):
    """`python -m ddim.report` knows what DDIM_PLUGINS names."""
    folder, out = done.folder, done.folder / "again.html"
    for plugins, there in (("brightness.py", True), ("", False)):
        environment = {**os.environ, "DDIM_PLUGINS": plugins}
        command = [sys.executable, "-m", "ddim.report", str(folder / "evaluation"), f"--output={out}"]
        subprocess.run(command, env=environment, cwd=folder, timeout=120, check=True, capture_output=True)
        assert ("beside that of as many held-out images" in out.read_text(encoding="utf-8")) == there


class Shift(nn.Module):
    """Has, besides a weight, a counter and a buffer that no state dict holds."""

    def __init__(self, channels, resolution, scale=2.0):
        super().__init__()
        self.config = {"channels": channels, "resolution": resolution, "scale": scale}
        self.weight = nn.Parameter(torch.zeros(channels))
        self.register_buffer("calls", torch.tensor(0))
        self.register_buffer("ladder", torch.linspace(1, scale, channels), persistent=False)

    @property
    def sample_shape(self):
        return self.config["channels"], self.config["resolution"], self.config["resolution"]

    def forward(self, x, t):
        return x + (self.weight * self.ladder)[:, None, None]


CONFIG = {"name": "shift", "channels": 3, "resolution": 8, "scale": 4.0}


@pytest.fixture
def shift(forgotten, tmp_path) -> Path:
    """A checkpoint of a registered network that has neither the UNet's keys nor its kinds of tensors."""
    register_denoiser("shift")(Shift)
    network = build_denoiser(CONFIG)
    network.weight.data += torch.tensor([1.0, 2.0, 3.0])
    network.calls += 7
    state = {f"denoiser.{name}": value for name, value in network.state_dict().items()}
    torch.save({"ddim": describe({"denoiser": CONFIG}), "state_dict": state}, tmp_path / "a.ckpt")
    return tmp_path / "a.ckpt"


class TestDenoiser:
    def test_a_checkpoint_gives_the_same_function(self, shift):
        network = load_denoiser(shift, weights="raw")
        assert network.calls == 7 and network.calls.dtype == torch.int64 and network.config["scale"] == 4.0
        x = torch.randn(2, 3, 8, 8)
        expected = x + torch.tensor([1.0, 2 * 2.5, 3 * 4.0])[:, None, None]
        torch.testing.assert_close(network(x, torch.tensor([0, 1])), expected)

    def test_weights_of_another_network_are_refused(self, shift):
        with pytest.raises(UserError, match=r"do not fit the denoiser.*weight has shape \(3,\) instead of \(1,\)$"):
            open_pretrained(shift).build("raw", denoiser={**CONFIG, "channels": 1})
        with pytest.raises(UserError, match=r"unknown denoiser keys width; known keys: channels, resolution, scale$"):
            open_pretrained(shift).build("raw", denoiser={**CONFIG, "width": 1})

    def test_it_has_no_counterpart_in_diffusers(self, shift, tmp_path):
        with pytest.raises(UserError, match=r"^the denoiser shift of .*a\.ckpt has no counterpart in diffusers"):
            export(open_pretrained(shift), tmp_path / "exported", "raw")
        assert not (tmp_path / "exported").exists()

    @pytest.mark.parametrize("shape", [(3, 8, 16), (1, 8, 8), (2,)])
    def test_another_shape_is_one_sentence(self, forgotten, shape):
        register_denoiser("shift")(Shift)
        new_denoiser(CONFIG, (3, 8, 8), "stripes")
        sentence = rf"^denoiser takes samples of 3x8x8, dataset stripes has {'x'.join(map(str, shape))}; they must be"
        with pytest.raises(UserError, match=sentence):
            new_denoiser(CONFIG, shape, "stripes")

    def test_the_unet_says_which_key(self):
        unet = UNet(in_channels=1, resolution=8, base_channels=8, channel_mult=(1,), num_res_blocks=1, norm_groups=4)
        assert unet.sample_shape == (1, 8, 8)
        check_shape(unet, (1, 8, 8), "stripes")
        for shape, key in (((3, 8, 8), "in_channels=1"), ((1, 16, 16), "resolution=8")):
            with pytest.raises(UserError, match=rf"^denoiser\.{key} does not fit dataset stripes with dataset\."):
                check_shape(unet, shape, "stripes")
        with pytest.raises(UserError, match=r"^denoiser takes samples of 1x8x8, dataset stripes has 2;"):
            check_shape(unet, (2,), "stripes")

    def test_it_has_to_describe_itself(self, forgotten):
        class Silent(nn.Module):
            def __init__(self):
                super().__init__()

        register_denoiser("silent")(Silent)
        with pytest.raises(UserError, match=r"Silent has no config and no sample_shape$"):
            new_denoiser({"name": "silent"}, (1, 8, 8), "stripes")

        class Forgetful(Shift):
            def __init__(self, channels, resolution, depth=1):
                super().__init__(channels, resolution)

        register_denoiser("shallow")(Forgetful)
        with pytest.raises(UserError, match=r"Forgetful\.config does not say its depth$"):
            new_denoiser({"name": "shallow", "channels": 3, "resolution": 8}, (3, 8, 8), "stripes")

    def test_its_version_is_that_of_its_code(self, forgotten):
        register_denoiser("shift")(Shift)
        assert {"shift": source_version(Shift)} == VERSIONS and "unet" not in VERSIONS
        bodies = ("return x", "return 2 * x")
        typed = []
        for body in bodies:
            names: dict[str, Any] = {"nn": nn}
            exec(f"class Typed(nn.Module):\n    def forward(self, x, t):\n        {body}", names)
            typed.append(source_version(names["Typed"]))
        assert typed[0] != typed[1]

    @pytest.mark.parametrize("size", [10**6, 10**9])
    def test_more_than_memory_holds_is_refused(self, forgotten, size):
        class Wide(Shift):
            def __init__(self, channels, resolution, width=1):
                super().__init__(channels, resolution)
                self.config |= {"width": width}
                self.wide = nn.Linear(width, 10**6)

        register_denoiser("wide")(Wide)
        with pytest.raises(
            UserError, match=r"^denoiser cannot be built: its .* parameters need .* GB.* make it smaller$"
        ):
            new_denoiser({"name": "wide", "channels": 3, "resolution": 8, "width": size}, (3, 8, 8), "stripes")


def test_a_weighting_is_one_line_more(forgotten):
    register_weighting("square")(lambda snr: snr.float() ** 2)
    t, schedule = torch.tensor([0, 500, 999]), NoiseSchedule.linear()
    snr = schedule.alpha_bar[t] / (1 - schedule.alpha_bar[t])
    found = loss_weights(t, schedule, "square")
    assert found.dtype == torch.float64
    torch.testing.assert_close(found, snr**2, rtol=1e-5, atol=0)


@pytest.mark.parametrize(
    ("function", "sentence"),
    [
        (lambda snr: 1.0, "must give a finite number"),
        (lambda snr: snr.mean(), "must give a finite number"),
        (lambda snr: -snr, "must give a finite number"),
        (lambda snr: snr / 0, "must give a finite number"),
        (lambda snr, gamma: snr, "gamma of <lambda> needs a default"),
    ],
)
def test_a_weighting_that_weighs_nothing_is_refused(forgotten, function, sentence):
    with pytest.raises(UserError, match=sentence):
        register_weighting("mine")(function)
    assert "mine" not in WEIGHTINGS


def part_of(name: str = "mine", **more: Any) -> Part:
    return Part(name=name, title="Mine", caption="", about="", columns={"S": ("steps", None)}, **more)


class Whole(Study):
    """All that a study needs, and nothing found."""

    @dataclass
    class Settings:
        depth: int = 2

        def check(self, key):
            if self.depth < 1:
                raise UserError(f"{key}.depth={self.depth} is wrong.")

    @classmethod
    def grid(cls, settings, sampler, schedule):
        return sampler.points(schedule)

    @classmethod
    def of(cls, settings, points, material):
        return cls()

    def plan(self):
        return "nothing"

    def run(self, subject, kept, say, progress):
        say.end()


class TestStudy:
    def test_its_settings_are_keys_beside_any_option_of_the_group(self, forgotten, workplace):
        register_study(part=part_of())(type("Mine", (Whole,), {}))
        settings = evaluation_schema()(parts=["grid", "mine"])
        settings.check()
        assert settings.mine.depth == 2
        settings.mine.depth = 0
        with pytest.raises(UserError, match=r"^evaluation\.mine\.depth=0 is wrong"):
            settings.check()
        given = ["evaluation.parts=grid,mine", "evaluation.mine.depth=3", "evaluation.consistency.shown=4"]
        assert evaluation_arguments(given) == [
            "evaluation.parts=[grid,mine]",
            "++evaluation.mine.depth=3",
            "evaluation.consistency.shown=4",
        ]

    def test_wandb_knows_its_keys(self, forgotten):
        assert find("mine/error/eta0_000", EVALUATE) is None
        register_study(part_of(keys=[("mine/error/<sampler>", "curve", "error")]))(type("Mine", (Whole,), {}))
        entry = find("mine/error/eta0_000", EVALUATE)
        assert entry is not None and entry.axis == "steps"

    @pytest.mark.parametrize("name", ["grid", "results", "consistency", "metrics", "all", "paper", "no name"])
    def test_names_that_are_taken(self, forgotten, name):
        with pytest.raises(UserError, match="name"):
            register_study(part_of(name))(type("Mine", (Whole,), {}))

    @pytest.mark.parametrize(
        ("study", "sentence"),
        [
            (int, "must be a class that derives ddim.extending.Study"),
            (type("Half", (Study,), {"grid": None, "Settings": Whole.Settings}), "needs of, plan, run"),
            (type("Bare", (Whole,), {"Settings": None}), "needs Settings, a dataclass with check"),
            (type("Bare", (Whole,), {"Settings": type("Settings", (), {})}), "needs Settings, a dataclass with check"),
        ],
    )
    def test_what_is_no_study_is_refused(self, forgotten, study, sentence):
        with pytest.raises(UserError, match=sentence):
            register_study(part_of())(study)
        assert "mine" not in STUDIES and "mine" not in PARTS
