"""Model cards: what they say, what they leave out, and that the hub's own library reads them."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from ddim.errors import UserError
from ddim.findings.card import Card
from ddim.findings.files import write_results
from ddim.findings.rows import Floor, GridResult

SCHEDULE = {"name": "linear", "num_timesteps": 1000, "beta_start": 1e-4, "beta_end": 0.02}
DIGITS = {"name": "digits", "channels": 1, "resolution": 8, "root": "/home/somebody/data"}


def row(**changes) -> GridResult:
    values = {
        **{"dataset": "digits", "checkpoint": "runs/one/checkpoints/last.ckpt", "weights": "ema", "sampler": "ddim"},
        **{"eta": 0.0, "variance": "eta", "tau": "linear", "steps": 10, "nfe": 10, "num_samples": 5000, "seed": 0},
        **{"features": "digits-cnn", "frechet_distance": 1.6234, "frechet_distance_sd": 0.13, "seconds": 4.0},
        **{"images_per_second": 1250.0, "reference": "abc", "reference_images": 1437, "reference_split": "train"},
    }
    return GridResult(**(values | changes))


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A training run: half of its images at 100, half at 300 images per second."""
    directory = tmp_path / "runs" / "one"
    config = {
        "dataset": {**DIGITS, "random_flip": True},
        "optimizer": {"name": "adam", "lr": 2e-4, "warmup_steps": 5000},
        "callbacks": {"ema": {"decay": 0.9999}},
    }
    (directory / "csv" / "version_0").mkdir(parents=True)
    (directory / "config.yaml").write_text(yaml.safe_dump(config))
    lines = ["step,train/images_per_second", "0,", "9,100", "19,300"]
    (directory / "csv" / "version_0" / "metrics.csv").write_text("\n".join(lines) + "\n")
    return directory


def card(run: Path | None = None, **changes) -> Card:
    values = {
        **{"origin": "runs/one/checkpoints/last.ckpt", "weights": "ema", "parameters": 701345},
        **{"dataset": DIGITS, "schedule": SCHEDULE, "steps": 2000, "images": 256000, "run": run},
    }
    return Card(**(values | changes))


def test_everything_that_is_known_is_said_once(run, tmp_path):
    write_results(tmp_path / "grid", [row(), row(eta=1.0, frechet_distance=4.0)], Floor(360, {"frechet_distance": 1.1}))
    text = card(run, licence="cc-by-4.0", machine="two CPU cores", evaluation=tmp_path / "grid", use=["draw()"]).text()
    for said in (
        "701,345 parameters",
        "```python\ndraw()\n```",
        "Data: digits, 1x8x8, mirrored at random",
        "2,000 optimizer steps, 256,000 images seen",
        "adam, learning rate 0.0002 after 5,000 steps",
        "exponential moving average with decay 0.9999",
        "linear (num_timesteps 1000, beta_start 0.0001, beta_end 0.02)",
        # 128,000 images at 100 a second and as many at 300: 1,707 s.
        "two CPU cores, about 0.47 hours",
        "| 0 | 10 | 10 | 1.62 ± 0.13 |",
        "| 1 | 10 | 10 | 4.00 ± 0.13 |",
        "5,000 samples against the features of 1,437 real images; τ linear, seed 0.",
        "360 real held-out images have 1.100.",
        "## Licence\n\ncc-by-4.0",
    ):
        assert text.count(said) == 1, (said, text)
    assert "somebody" not in text and str(tmp_path) not in text, "no paths of a machine"


def test_a_short_training_of_photographs_says_its_own_rate_average_and_beginning(run):
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["optimizer"] |= {"warmup_images": 10000, "schedule": "cosine"}
    config["callbacks"]["ema"]["halflife_images"] = 50000
    config |= {"objective": {"predicts": "v", "times": "lognormal"}, "checkpoint": "/home/somebody/earlier"}
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    text = card(run, dataset={"name": "image_folder", "label": "birds", "channels": 3, "resolution": 32}).text()
    for said in (
        "# DDIM of birds",
        "Data: birds, 3x32x32",
        "adam, learning rate 0.0002 after 10,000 images of warm-up, then cosine",
        "exponential moving average with a half-life of 50,000 images",
        "Objective: predicts v, lognormal times",
        "Begun from: the weights of earlier,",
    ):
        assert text.count(said) == 1, (said, text)
    assert "5,000 steps" not in text and "decay" not in text and "somebody" not in text and "image_folder" not in text


@pytest.mark.parametrize(
    ("origin", "called"),
    [
        ("/home/somebody/outputs/train/tuesday/checkpoints/last.ckpt", "tuesday"),
        ("google/ddpm-cifar10-32@267b167", "google/ddpm-cifar10-32@267b167"),
        ("pretrained/cifar10-jpeg", "cifar10-jpeg"),
    ],
)
def test_what_it_was_begun_from_has_its_name_and_no_place(run, origin, called):
    config = yaml.safe_load((run / "config.yaml").read_text()) | {"checkpoint": origin}
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    assert f"Begun from: the weights of {called}, whose" in card(run).text()


def test_the_hub_reads_its_front_matter(run):
    hub = pytest.importorskip("huggingface_hub")
    data = hub.ModelCard(card(run, licence="mit").text()).data
    assert (data.license, data.library_name, data.pipeline_tag) == (
        "mit",
        "diffusers",
        "unconditional-image-generation",
    )
    assert "digits" in data.tags
    assert hub.ModelCard(card(run).text()).data.license is None


def test_what_nobody_states_is_left_out():
    text = card(dataset=None, schedule=None, steps=None, images=None, weights="unstated", origin="a/b@main").text()
    assert not {"Length", "Optimizer", "Machine", "Results", "None,"} & set(text.replace(":", " ").split())
    assert "averaged or not, the checkpoint does not say" in text and "images that its checkpoint does not name" in text
    assert "Machine: 3 hours" in card(hours=3).text().replace("3.0", "3")


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"licence": "My Licence"}, r"^--license 'My Licence' is no name .* such as mit"),
        ({"hours": 0}, r"^--hours 0 must be a positive number"),
        ({"hours": float("nan")}, r"^--hours nan must be a positive number"),
    ],
)
def test_what_cannot_be_said_is_one_sentence(changes, sentence):
    with pytest.raises(UserError, match=sentence):
        card(**changes)


@pytest.mark.parametrize(
    ("rows", "sentence"),
    [
        (
            [row(checkpoint="runs/two/checkpoints/last.ckpt")],
            r"grid measured the ema weights of runs/two/.*, not the ema",
        ),
        (
            [row(checkpoint="runs/one/checkpoints/best.ckpt")],
            r"grid measured the ema weights of runs/one/checkpoints/best",
        ),
        ([row(weights="raw")], r"grid measured the raw weights of .*, not the ema weights"),
        ([], "grid measured nothing yet"),
    ],
)
def test_results_of_other_weights_are_refused(tmp_path, rows, sentence):
    write_results(tmp_path / "grid", rows)
    with pytest.raises(UserError, match=sentence):
        card(evaluation=tmp_path / "grid").text()
    with pytest.raises(UserError, match="name the directory of an evaluation"):
        card(evaluation=tmp_path / "nowhere").text()


def test_a_run_that_was_moved_as_a_whole_is_the_same(tmp_path):
    write_results(tmp_path / "grid", [row(checkpoint="/old/place/one/checkpoints/last.ckpt")])
    assert "| 0 | 10 | 10 |" in card(evaluation=tmp_path / "grid").text()
