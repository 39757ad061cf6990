"""`evaluate.py guidance=...` of a network with classes: the grid, its columns and pictures, and what is refused."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from ddim.command.guiding import _guide
from ddim.denoisers import UNet
from ddim.denoisers.formats.own import describe
from ddim.denoisers.pretrained import open_pretrained
from ddim.denoisers.text_unet import TextUNet
from ddim.errors import UserError

QUICK = (
    *("sampler.steps=2", "sampler.eta=0", "evaluation.num_samples=40", "evaluation.loss_images=50", "logger=none"),
    *("evaluation.weights=raw", "evaluation.floor=false", "evaluation.metrics=frechet_distance"),
)


def checkpoint(path: Path, seed: int = 0, schedule: int = 1000, **config: Any) -> str:
    """A file of an untrained network whose answers depend on everything."""
    torch.manual_seed(seed)
    unet = UNet(**{"in_channels": 1, "resolution": 8, "base_channels": 8, "channel_mult": (1, 2), **config},
                num_res_blocks=1, attention_resolutions=(), dropout=0.0, norm_groups=4)  # fmt: skip
    with torch.no_grad():
        for parameter in unet.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=0.5 * parameter[0].numel() ** -0.5)
    about: dict[str, Any] = {
        "dataset": {"name": "digits", "channels": 1, "resolution": 8, "features": "digits-cnn", "tau": "linear"},
        "denoiser": {"name": "unet", **unet.config},
        "schedule": {"name": "linear", "num_timesteps": schedule, "beta_start": 1e-4, "beta_end": 0.02},
    }
    if unet.conditional:
        about["condition"] = {"classes": [*"0123456789"]}
    state = {f"denoiser.{name}": value for name, value in unet.state_dict().items()}
    torch.save({"ddim": describe(about), "state_dict": state}, path)
    return str(path)


def test_scales_are_an_axis_with_accuracy_and_a_row_of_images_for_each_class(run_script, workplace):
    source = checkpoint(workplace / "net.ckpt", num_classes=10)
    guided = ("guidance=classifier_free", "guidance.scale=0,1,3", f"checkpoint={source}", "hydra.run.dir=found")
    done = run_script("evaluate.py", *QUICK, *guided)
    assert done.status == 0, done.errors
    rows = list(csv.DictReader((workplace / "found" / "results.csv").open()))
    assert [(row["guidance"], row["guidance_scale"], row["nfe"]) for row in rows] == [
        *(("classifier_free", "0.0", "2"), ("classifier_free", "1.0", "2"), ("classifier_free", "3.0", "4")),
    ]
    for row, stored in zip(rows, json.loads((workplace / "found" / "results.json").read_text())["rows"], strict=True):
        assert 0 <= float(row["label_accuracy"]) <= 1 and float(row["label_accuracy_sd"]) >= 0
        distances = dict(stored["class_distances"])
        assert list(distances) == [*"0123456789"]
        assert sum(distances.values()) / 10 == pytest.approx(float(row["class_distance"]))
    assert len({row["frechet_distance"] for row in rows}) == 3
    names = {path.name for path in (workplace / "found").glob("*.png")}
    assert {"samples.png", "distance.png", "tradeoff.png"} <= names
    assert {f"classes-classifier_free-scale{scale}-eta0.000-linear.png" for scale in (0, 1, 3)} <= names
    assert "label accuracy" in done.output and "scale 3" in done.output
    # A batch of another size has the same samples; a chosen label is another sample.
    again = run_script("evaluate.py", *QUICK, *guided[:3], "hydra.run.dir=again", "evaluation.batch_size=7")
    assert again.status == 0, again.errors
    others = list(csv.DictReader((workplace / "again" / "results.csv").open()))
    for row, other in zip(rows, others, strict=True):
        assert float(other["frechet_distance"]) == pytest.approx(float(row["frechet_distance"]), rel=1e-4)


def test_chosen_labels_by_name_and_without_guidance(run_script, workplace):
    source = checkpoint(workplace / "net.ckpt", num_classes=10)
    done = run_script("evaluate.py", *QUICK, f"checkpoint={source}", "guidance.labels=[3,8]", "hydra.run.dir=found")
    assert done.status == 0, done.errors
    (row,) = json.loads((workplace / "found" / "results.json").read_text())["rows"]
    assert [name for name, _ in row["class_distances"]] == ["3", "8"]
    assert row["options"] == [["guidance_labels", [3, 8]]]


def test_autoguidance_by_itself_is_the_network_and_another_is_not(run_script, workplace):
    source = checkpoint(workplace / "net.ckpt")
    worse = checkpoint(workplace / "worse.ckpt", seed=1)
    distances = {}
    for name, guide in (("plain", None), ("itself", source), ("worse", worse)):
        given = [] if guide is None else ["guidance=autoguidance", f"guidance.checkpoint={guide}", "guidance.scale=3"]
        done = run_script("evaluate.py", *QUICK, f"checkpoint={source}", *given, f"hydra.run.dir={name}")
        assert done.status == 0, done.errors
        (row,) = csv.DictReader((workplace / name / "results.csv").open())
        distances[name] = float(row["frechet_distance"])
        assert row["nfe"] == ("2" if guide is None else "4")
    assert distances["itself"] == pytest.approx(distances["plain"], rel=1e-4)
    assert abs(distances["worse"] - distances["plain"]) > 1e-3


@pytest.mark.parametrize(
    ("network", "overrides", "sentence"),
    [
        ({}, ["guidance=classifier_free"], "guidance=classifier_free is not possible with checkpoint="),
        ({}, ["guidance.labels=[1]"], "guidance.labels=[1] needs a network with classes; leave it out."),
        ({"num_classes": 10}, ["guidance.labels=[12]"], "guidance.labels=12 is no class; there are 0 to 9"),
        ({"num_classes": 10}, ["guidance.labels=[cat]"], "guidance.labels=cat is no class; there are 0 to 9"),
        ({"num_classes": 10}, ["guidance.scale=2"], "guidance.scale=2 is no option of guidance=none; it has none."),
        (
            {"num_classes": 10},
            ["guidance=classifier_free", "guidance.scale=-1"],
            "guidance.scale=-1, guidance.interval=[0.0, inf] cannot be used: scale must be a finite number >= 0,",
        ),
        ({"num_classes": 10}, ["guidance=classifier_free", "guidance.scale=nan"], "got nan."),
        ({"num_classes": 7}, [], "denoiser.num_classes=7 does not fit dataset digits with 10 classes; take 10."),
        (
            {"num_classes": 10, "null_class": False},
            ["guidance=classifier_free"],
            "the network has no condition that stands for none.",
        ),
        (
            {"num_classes": 10, "null_class": False},
            ["evaluation=reconstruction"],
            "evaluation=reconstruction asks the network whatever an image is of",
        ),
        (
            {"num_classes": 10},
            ["evaluation=reconstruction", "guidance=classifier_free"],
            "evaluation=reconstruction is about real images, which are not guided",
        ),
        ({}, ["evaluation=captions"], "evaluation=captions draws what captions ask for, and "),
        (
            {"num_classes": 10},
            ["evaluation=captions"],
            "evaluation=captions reads pairs of digits, which dataset digits",
        ),
        ({}, ["guidance=autoguidance"], "guidance=autoguidance needs guidance.checkpoint=PATH"),
        ({}, ["guidance=autoguidance", "guidance.checkpoint=nowhere"], "guidance.checkpoint=nowhere: "),
        (
            {},
            ["guidance=autoguidance", "guidance.checkpoint=large.ckpt"],
            "guidance.checkpoint=large.ckpt is a network for samples of 1x16x16, ",
        ),
        (
            {},
            ["guidance=autoguidance", "guidance.checkpoint=short.ckpt"],
            "guidance.checkpoint=short.ckpt was trained with another schedule than ",
        ),
        (
            {},
            ["guidance=autoguidance", "guidance.checkpoint=classes.ckpt"],
            "guidance.checkpoint=classes.ckpt has 10 classes, ",
        ),
    ],
)
def test_what_cannot_be_guided_is_one_sentence(network, overrides, sentence, run_script, workplace):
    source = checkpoint(workplace / "net.ckpt", **network)
    checkpoint(workplace / "large.ckpt", resolution=16)
    checkpoint(workplace / "short.ckpt", schedule=500)
    checkpoint(workplace / "classes.ckpt", num_classes=10)
    done = run_script("evaluate.py", *QUICK, f"checkpoint={source}", *overrides)
    assert done.status == 2, done.errors
    said = done.errors.strip().splitlines()[-1]
    assert sentence in said


def reader(path: Path, words: list[str], length: int = 3) -> str:
    """A file of an untrained network that reads captions of these words."""
    network = TextUNet(num_words=len(words), caption_length=length, text_width=8, text_depth=1, resolution=8,
                       base_channels=8, attention_resolutions=(4,), norm_groups=4)  # fmt: skip
    about = {
        "dataset": {"name": "captioned_digits"},
        "denoiser": {"name": "text_unet", **network.config},
        "schedule": {"name": "linear", "num_timesteps": 20, "beta_start": 1e-3, "beta_end": 0.2},
        "condition": {"words": words, "caption_length": length},
    }
    state = {f"denoiser.{name}": value for name, value in network.state_dict().items()}
    torch.save({"ddim": describe(about), "state_dict": state}, path)
    return str(path)


def test_a_guide_reads_the_words_of_the_network_that_it_guides(tmp_path):
    opened = open_pretrained(reader(tmp_path / "net.ckpt", ["a", "b"]))

    def guide(source: str) -> Any:
        parts = {"guidance": SimpleNamespace(checkpoint=source), "evaluation": SimpleNamespace(weights="raw")}
        return _guide(SimpleNamespace(cache_dir=str(tmp_path), **parts), opened, opened.build("raw"))

    assert isinstance(guide(reader(tmp_path / "same.ckpt", ["a", "b"]))[0], TextUNet)
    for words, length in ((["b", "a"], 3), (["a", "b", "c"], 3), (["a", "b"], 4)):
        with pytest.raises(
            UserError, match=r"^guidance.checkpoint=.*other.ckpt was trained with other classes or capt"
        ):
            guide(reader(tmp_path / "other.ckpt", words, length))
