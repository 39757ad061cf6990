"""Every option of every config group composes, and every dataset and denoiser takes a training step."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

from ddim.command.arguments import evaluation_arguments, training_arguments
from ddim.command.config import evaluation_config, training_config

REPOSITORY = Path(__file__).resolve().parents[2]
CONF = REPOSITORY / "conf"
TRAINING_GROUPS = (
    "callbacks",
    "dataset",
    "debug",
    "denoiser",
    "experiment",
    "hparams_search",
    "logger",
    "objective",
    "optimizer",
    "recipe",
    "sampler",
    "schedule",
    "trainer",
)
EVALUATION_GROUPS = ("evaluation", "guidance", "restoration", "sampler", "logger", "trainer", "schedule", "table")


def options(group: str) -> list[str]:
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))


def composed(name: str, *arguments: str):
    rewritten = training_arguments(arguments) if name == "train" else evaluation_arguments(arguments)
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose(name, overrides=rewritten)


def test_every_group_is_covered():
    groups = {*TRAINING_GROUPS, *EVALUATION_GROUPS, "hydra"}  # launchers are tested where sweeps are
    assert {path.name for path in CONF.iterdir() if path.is_dir()} == groups


@pytest.mark.parametrize("choice", [f"{group}={name}" for group in TRAINING_GROUPS for name in options(group)])
def test_training_presets_compose_and_check(choice):
    needs_root = ("dataset=image_folder", "dataset=lsun_bedroom", "dataset=lsun_church")
    extra = ["dataset.root=somewhere"] if choice in needs_root else []
    training_config(composed("train", choice, *extra))


@pytest.mark.parametrize("choice", [f"{group}={name}" for group in EVALUATION_GROUPS for name in options(group)])
def test_evaluation_presets_compose_and_check(choice):
    checkpoint = ["dataset=digits", "denoiser=unet_digits"] + ([] if "schedule" in choice else ["schedule=linear"])
    checkpoint += ["guidance.checkpoint=worse.ckpt"] * (choice == "guidance=autoguidance")
    evaluation_config(composed("evaluate", choice, *checkpoint))


def test_the_paper_presets_carry_the_papers_values():
    for name, parameters in (("cifar10", [1, 2, 2, 2]), ("celeba", [1, 2, 2, 2, 4])):
        for arguments in ([f"experiment=ddpm_{name}"], [f"dataset={name}"]):
            config = training_config(composed("train", *arguments))
            assert config.dataset["name"] == name and config.denoiser["channel_mult"] == parameters
            assert (config.loader.batch_size, config.trainer["max_steps"]) == (128, 800_000)
            assert (config.optimizer.name, config.optimizer.lr, config.optimizer.warmup_steps) == ("adam", 2e-4, 5000)
            assert (config.callbacks.ema.decay, config.trainer["gradient_clip_val"]) == (0.9999, 1.0)
            assert config.denoiser["dropout"] == 0.1 and config.dataset["random_flip"]
    assert training_config(composed("train", "dataset=cifar10")).sampler.tau == "quadratic"
    assert training_config(composed("train", "dataset=celeba")).sampler.tau == "linear"


@pytest.mark.parametrize("denoiser", options("denoiser"))
def test_every_denoiser_takes_a_training_step(run_script, workplace, denoiser):
    """At the smallest resolution its levels and attention allow; the full-size ones are the tests of the network."""
    resolution = 32 if denoiser.startswith("unet_lsun") else 16
    data = (
        *("dataset=image_folder", f"dataset.root={_images(workplace / 'images')}"),
        *(f"dataset.resolution={resolution}", "callbacks=minimal"),
    )
    if denoiser in ("unet_1d", "unet_signals"):
        data = ("dataset=signals", f"dataset.root={_series(workplace / 'series.npy')}", "callbacks=minimal")
    if denoiser in ("unet_digits_class", "unet_captioned_digits"):
        data = (f"dataset={'digits' if denoiser == 'unet_digits_class' else 'captioned_digits'}", "callbacks=minimal")
    if denoiser in ("unet_cifar10_class", "text_unet"):
        _in_classes(workplace / "images", 10)
    if denoiser == "text_unet":
        data = (*data, "dataset.captions=classes")
    outcome = run_script(
        "train.py",
        *data,
        f"denoiser={denoiser}",
        "trainer.fast_dev_run=true",
        "trainer.accelerator=cpu",
        "loader.batch_size=2",
        "logger=none",
    )
    assert outcome.status == 0, outcome.errors


def _in_classes(folder: Path, count: int) -> None:
    """The first image of each split in one folder of its own for each class."""
    for split in ("train", "test"):
        image = (folder / split / "0.png").read_bytes()
        shutil.rmtree(folder / split)
        for number in range(count):
            (folder / split / f"class{number}").mkdir(parents=True)
            (folder / split / f"class{number}" / "0.png").write_bytes(image)


def _series(path: Path) -> Path:
    import numpy as np

    np.save(path, np.random.default_rng(0).normal(size=(12, 8)))
    return path


def _images(folder: Path) -> Path:
    import numpy as np
    from PIL import Image

    generator = np.random.default_rng(0)
    for split, count in (("train", 4), ("test", 3)):
        (folder / split).mkdir(parents=True)
        for number in range(count):
            pixels = generator.integers(0, 256, (40, 36, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / split / f"{number}.png")
    return folder
