"""Every wrong `dataset.*` setting ends in one sentence that names it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from ddim.data import DATASETS, ImageDataModule
from ddim.errors import UserError

Make = Callable[..., ImageDataModule]
FOLDER = {"name": "image_folder", "root": "somewhere"}


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({}, ["dataset.name=None", "digits, cifar10, celeba, image_folder"]),
        ({"name": "mnist"}, ["dataset.name=mnist", "digits, cifar10, celeba, image_folder"]),
        ({"name": 3}, ["dataset.name=3"]),
        ({"name": "image_folder"}, ["dataset.root is not set", "dataset.root=DIR"]),
        (FOLDER | {"root": " "}, ["dataset.root"]),
        (FOLDER | {"root": 7}, ["dataset.root"]),
        (FOLDER | {"channels": 2}, ["dataset.channels=2", "1, 3"]),
        (FOLDER | {"channels": "3"}, ["dataset.channels=3"]),
        (FOLDER | {"channels": True}, ["dataset.channels=True"]),
        (FOLDER | {"resolution": 0}, ["dataset.resolution=0", "at least 1"]),
        (FOLDER | {"resolution": 32.5}, ["dataset.resolution=32.5"]),
        (FOLDER | {"resolution": "32x32"}, ["dataset.resolution=32x32"]),
        (FOLDER | {"resolution": None}, ["dataset.resolution=None"]),
        (FOLDER | {"test_fraction": 0}, ["dataset.test_fraction=0", "between 0 and 1"]),
        (FOLDER | {"test_fraction": 1.0}, ["dataset.test_fraction=1.0"]),
        (FOLDER | {"test_fraction": float("nan")}, ["dataset.test_fraction=nan"]),
        (FOLDER | {"test_fraction": "half"}, ["dataset.test_fraction=half"]),
        (FOLDER | {"resize": "area"}, ["dataset.resize=area", "bilinear", "lanczos"]),
        (FOLDER | {"background": "grey"}, ["dataset.background=grey", "white, black"]),
        (FOLDER | {"allow_upscale": "yes"}, ["dataset.allow_upscale=yes", "true or false"]),
        (FOLDER | {"random_flip": 1}, ["dataset.random_flip=1", "true or false"]),
        (FOLDER | {"in_memory": "maybe"}, ["dataset.in_memory=maybe", "auto"]),
        (FOLDER | {"on_bad_image": "ignore"}, ["dataset.on_bad_image=ignore", "error, skip"]),
        (FOLDER | {"label": 5}, ["dataset.label=5"]),
        (FOLDER | {"download": True}, ["dataset.download", "on_bad_image"]),
        (FOLDER | {"resoluton": 32, "chanels": 3}, ["dataset.chanels, dataset.resoluton", "resolution"]),
        ({"name": "digits", "resolution": 16}, ["dataset.resolution=16", "8"]),
        ({"name": "digits", "channels": 3}, ["dataset.channels=3", "1"]),
        ({"name": "digits", "in_memory": False}, ["dataset.in_memory=False"]),
        ({"name": "digits", "root": "x"}, ["dataset.root"]),
        ({"name": "cifar10", "resolution": 64}, ["dataset.resolution=64", "32"]),
        ({"name": "cifar10", "download": "no"}, ["dataset.download=no"]),
        ({"name": "celeba", "background": "white"}, ["dataset.background"]),
        ({"name": "celeba", "resolution": -1}, ["dataset.resolution=-1"]),
    ],
)
def test_wrong_settings(config: dict[str, Any], words: list[str], make_datamodule: Make) -> None:
    with pytest.raises(UserError) as caught:
        make_datamodule(config)
    assert all(word in str(caught.value) for word in words), caught.value
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "arguments",
    [{"batch_size": 0}, {"batch_size": 2.5}, {"eval_batch_size": -1}, {"num_workers": -1}, {"batch_size": True}],
)
def test_wrong_loader_arguments(arguments: dict[str, Any], make_datamodule: Make) -> None:
    key, value = next(iter(arguments.items()))
    with pytest.raises(UserError, match=f"{key}={value} "):
        make_datamodule({"name": "digits"}, **arguments)


def empty(root: Path) -> None:
    root.mkdir()


def a_file(root: Path) -> None:
    root.write_text("")


def only_text(root: Path) -> None:
    root.mkdir()
    (root / "notes.txt").write_text("")


def empty_test_folder(root: Path) -> None:
    for name in ("train", "test"):
        (root / name).mkdir(parents=True)
    (root / "train" / "a.png").write_text("")


def one_image(root: Path) -> None:
    root.mkdir()
    (root / "a.png").write_text("")


@pytest.mark.parametrize(
    ("prepare", "words"),
    [
        (lambda root: None, ["dataset.root=", "does not exist"]),
        (a_file, ["dataset.root=", "is a file"]),
        (empty, ["no images in", "dataset.root", ".png"]),
        (only_text, ["no images in", "dataset.root"]),
        (empty_test_folder, ["no images in", "test"]),
        (one_image, ["1 image(s)", "dataset.test_fraction=0.1"]),
    ],
)
def test_wrong_roots(prepare: Callable[[Path], None], words: list[str], tmp_path: Path, make_datamodule: Make) -> None:
    root = tmp_path / "root"
    prepare(root)
    with pytest.raises(UserError) as caught:
        make_datamodule({"name": "image_folder", "root": str(root)}).prepare_data()
    assert all(word in str(caught.value) for word in [*words, str(root)]), caught.value


def test_image_smaller_than_asked(image_tree: Callable[..., Path], make_datamodule: Make) -> None:
    root = image_tree({"train": 4, "test": 1}, size=(20, 8))
    config = {"name": "image_folder", "root": str(root), "resolution": 16}
    with pytest.raises(UserError, match=r"000\.png .*20x8.*dataset\.resolution=16.*dataset\.allow_upscale=true"):
        make_datamodule(config).setup()
    enlarged = make_datamodule(config | {"allow_upscale": True})
    enlarged.setup()
    assert next(enlarged.images("test", 1)).shape == (1, 3, 16, 16)


def test_home_is_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make_datamodule: Make) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(UserError, match=str(tmp_path / "pictures")):
        make_datamodule({"name": "image_folder", "root": "~/pictures"}).prepare_data()


def test_a_composed_config_is_taken_as_it_is(make_datamodule: Make) -> None:
    config = OmegaConf.create({"name": "digits", "channels": 1, "resolution": 8, "in_memory": "auto", "label": None})
    assert make_datamodule(config).name == "digits"


anything = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5), st.lists(st.integers()))
keys = st.sampled_from(
    [
        "root",
        "channels",
        "resolution",
        "download",
        "resize",
        "background",
        "test_fraction",
        "label",
        "in_memory",
        "random_flip",
        "x",
    ]
)


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(name=st.sampled_from(list(DATASETS)), overrides=st.dictionaries(keys, anything, max_size=4))
def test_any_setting_is_accepted_or_refused_with_a_sentence(
    name: str, overrides: dict[str, Any], make_datamodule: Make
) -> None:
    try:
        make_datamodule({"name": name, **overrides})
    except UserError as error:
        assert "dataset." in str(error)
