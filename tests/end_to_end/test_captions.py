"""Photographs in class folders: trained with captions, resumed, evaluated, and drawn by their words."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hydra import compose, initialize_config_dir
from PIL import Image

from ddim.command.arguments import training_arguments
from ddim.command.config import training_config
from ddim.denoisers.pretrained import open_pretrained
from ddim.draw import main

CAPTIONS = ("dataset.captions=classes", "denoiser=text_unet")
SMALL = (
    *("denoiser.base_channels=8", "denoiser.channel_mult=[1,2]", "denoiser.norm_groups=4", "denoiser.text_width=8"),
    *("dataset=image_folder", "dataset.resolution=8", "callbacks=minimal", "logger=none", "loader.batch_size=4"),
    *("trainer.accelerator=cpu", "recipe=digits", "callbacks.checkpoint.every_n_steps=1"),
)


def photographs(root: Path, *classes: str) -> str:
    generator = np.random.default_rng(0)
    for split in ("train", "test"):
        for name in classes:
            (root / split / name).mkdir(parents=True)
            for number in range(3):
                pixels = generator.integers(0, 256, (9, 8, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / split / name / f"{number}.png")
    return f"dataset.root={root}"


def test_a_photograph_is_drawn_by_the_name_of_its_class(run_script, workplace, monkeypatch, capsys):
    root = photographs(workplace / "images", "horse", "old_airplane")
    trained = ("train.py", *CAPTIONS, *SMALL, root, "hydra.run.dir=run")
    done = run_script(*trained, "trainer.max_steps=2")
    assert done.status == 0, done.errors
    again = run_script("train.py", "resume=run", "trainer.max_steps=3")
    assert again.status == 0, again.errors
    opened = open_pretrained(workplace / "run")
    assert (opened.denoiser["num_words"], opened.denoiser["caption_length"]) == (7, 6) and opened.steps == 3
    monkeypatch.chdir(workplace)
    assert main(["a photograph of an old airplane", "run", "--steps=2", "--weights=raw"]) == 0
    assert (workplace / "a-photograph-of-an-old-airplane.png").is_file()
    with pytest.raises(SystemExit):
        main(["a dog", "run", "--steps=2", "--weights=raw"])
    assert 'The word "dog" is not known; known are: a, airplane, an, horse, of' in capsys.readouterr().err


def test_without_captions_there_is_nothing_to_read(run_script, workplace):
    root = photographs(workplace / "images", "horse", "old_airplane")
    done = run_script("train.py", "denoiser=text_unet", *SMALL, root, "trainer.max_steps=1")
    assert done.status == 2
    assert (
        "denoiser.num_words=null takes the captions of the data set, and dataset image_folder has none" in done.errors
    )


def test_the_recipe_of_the_digits_composes_and_predicts_v():
    config = training_config(composed("dataset=captioned_digits"))
    assert (config.objective.predicts, config.optimizer.schedule) == ("v", "cosine")


def composed(*arguments: str):
    with initialize_config_dir(str(Path(__file__).resolve().parents[2] / "conf"), version_base="1.3"):
        return compose("train", overrides=training_arguments(arguments))


def test_an_encoder_that_is_not_there_is_refused_before_any_work(run_script, workplace):
    done = run_script("train.py", "dataset=captioned_digits", "denoiser.encoder=no/such/folder", "logger=none")
    assert done.status == 2
    assert "denoiser.encoder=no/such/folder" in done.errors and "Traceback" not in done.errors
