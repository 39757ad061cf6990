"""Data that are no images: points, tables, series, and the space they live in."""

from __future__ import annotations

import wave
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ddim.data import ImageDataModule, Pixels, Standardised
from ddim.data.build import load_data
from ddim.data.signals import read_ts
from ddim.data.space import space_from
from ddim.errors import UserError

SIZES = {"batch_size": 2, "eval_batch_size": 50, "num_workers": 0, "seed": 0}


@pytest.fixture
def load(tmp_path: Path) -> Callable[..., ImageDataModule]:
    def make(stated: Any = None, **settings: Any) -> ImageDataModule:
        return load_data(settings, stage="fit", cache_dir=tmp_path, stated=stated, origin="run", **SIZES)

    return make


def all_of(data: ImageDataModule, split: str) -> torch.Tensor:
    return torch.cat(list(data.images(split, 1000)))


@pytest.mark.parametrize("shape", [(7,), (3, 10)])
def test_standardising_and_back(shape):
    stored = (50 + 20 * torch.randn(200, *shape, generator=torch.Generator().manual_seed(0))).float()
    space = Standardised.learnt("vectors" if len(shape) == 1 else "series", stored)
    x = space.to_model(stored)
    over = (0,) if len(shape) == 1 else (0, 2)
    assert torch.allclose(x.mean(over), torch.zeros(shape[0]), atol=1e-5)
    assert torch.allclose(x.std(over, correction=0), torch.ones(shape[0]), atol=1e-5)
    assert torch.allclose(space.to_stored(x), stored, atol=1e-4) and space.to_stored(x).dtype == torch.float32
    assert space_from(space.stated(), "run") == space
    assert torch.allclose(space.errors(x, x + 2), torch.full((200,), 4.0, dtype=torch.float64), atol=1e-5)
    told = space.told(stored)
    assert told.dtype == torch.float64 and torch.allclose(told.float(), x.flatten(1), atol=1e-5)
    assert space.empty().shape == (0, *shape)


def test_a_constant_column_keeps_its_unit():
    stored = torch.tensor([[1.0, 0.1], [2.0, 0.1], [3.0, 0.1]])
    space = Standardised.learnt("vectors", stored)
    assert space.scale[1] == 1 and space.to_model(stored)[:, 1].abs().max() < 1e-6


def test_errors_of_pixels_are_on_0_to_1():
    space = Pixels((1, 2, 2))
    black, white = torch.zeros(1, 1, 2, 2, dtype=torch.uint8), torch.full((1, 1, 2, 2), 255, dtype=torch.uint8)
    assert space.errors(space.to_model(black), space.to_model(white)).item() == 1
    assert (space.told(white) - space.told(black)).square().mean().item() == 1
    assert space.stated() is None and space.empty().dtype == torch.uint8


@pytest.mark.parametrize(
    "damage",
    [{"scale": [0.0, 1.0]}, {"scale": [1.0]}, {"mean": ["x", 0]}, {"kind": "images"}, {"mean": [float("nan"), 0]}],
)
def test_a_damaged_standardisation_is_refused(damage):
    stated = {"kind": "vectors", "shape": [2], "mean": [0.0, 0.0], "scale": [1.0, 1.0]}
    with pytest.raises(UserError, match=r"run"):
        space_from({**stated, **damage}, "run")


@pytest.mark.parametrize("shape", ["mixture", "moons", "circles", "swiss_roll"])
def test_points_are_those_of_their_settings(load, shape):
    data = load(name="points2d", shape=shape, num_train=300, num_test=100)
    train, test = all_of(data, "train"), all_of(data, "test")
    assert (train.shape, test.shape, train.dtype) == ((300, 2), (100, 2), torch.float32)
    assert not set(map(tuple, train.tolist())) & set(map(tuple, test.tolist()))
    again = load(name="points2d", shape=shape, num_train=300, num_test=100)
    assert again.provenance("train") == data.provenance("train") != data.provenance("test")
    assert (data.log_density is not None) == (shape == "mixture")
    batch = next(iter(data.train_dataloader()))
    assert batch["image"].shape == (2, 2) and batch["image"].dtype == torch.float32
    assert train.abs().max() < 3


def test_a_checkpoint_decides_the_standardisation(load):
    learnt = load(name="points2d", num_train=300, num_test=100).space.stated()
    other = {**learnt, "mean": [5.0, 5.0]}
    assert load(other, name="points2d", num_train=500, num_test=100).space.stated() == other
    with pytest.raises(UserError, match=r"vectors of 13, the checkpoint was trained on 2"):
        load(other, name="tabular", data="wine")


def test_tables_of_scikit_learn_and_of_ones_own(load, tmp_path):
    wine = load(name="tabular", data="wine")
    assert wine.space.shape == (13,) and wine.num_images("train") + wine.num_images("test") == 178
    two = load(name="tabular", data="wine", columns=["hue", "alcohol"])
    names = wine.provenance("train")["columns"]
    assert torch.equal(all_of(two, "test"), all_of(wine, "test")[:, [names.index("hue"), names.index("alcohol")]])
    rows = np.random.default_rng(0).normal(size=(40, 3)).astype(np.float32)
    np.save(tmp_path / "rows.npy", rows)
    text = "\n".join(["a, b,c", *(",".join(map(str, row)) for row in rows)])
    (tmp_path / "rows.csv").write_text(text)
    array, table = (
        load(name="tabular", file=str(tmp_path / "rows.npy")),
        load(name="tabular", file=str(tmp_path / "rows.csv")),
    )
    assert torch.equal(all_of(array, "train"), all_of(table, "train")) and table.provenance("test")["columns"] == [
        "a",
        "b",
        "c",
    ]
    assert {tuple(row) for split in ("train", "test") for row in all_of(array, split).tolist()} == set(
        map(tuple, rows.tolist())
    )


def write_wav(path: Path, samples: np.ndarray) -> None:
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1 if samples.ndim == 1 else samples.shape[1])
        file.setsampwidth(2)
        file.setframerate(8000)
        file.writeframes(samples.astype("<i2").tobytes())


def test_series_from_arrays_and_recordings(load, tmp_path):
    series = np.random.default_rng(0).normal(size=(30, 2, 16)).astype(np.float32)
    np.save(tmp_path / "series.npy", series)
    data = load(name="signals", root=str(tmp_path / "series.npy"), length=12)
    assert data.space.shape == (2, 12) and data.space.kind == "series"
    folder = tmp_path / "wav"
    folder.mkdir()
    write_wav(folder / "b.wav", np.arange(100))
    write_wav(folder / "a.wav", np.full(50, -32768))
    recorded = load(name="signals", root=str(folder), length=8)
    assert recorded.num_images("train") + recorded.num_images("test") == 100 // 8 + 50 // 8
    values = torch.cat([all_of(recorded, split) for split in ("train", "test")])
    assert values.min() == -1 and values.shape[1:] == (1, 8) and 0 < values.max() < 1


def test_the_days_are_those_of_the_package(load, tmp_path, monkeypatch):
    days = tmp_path / "aeon" / "datasets" / "data" / "ItalyPowerDemand"
    days.mkdir(parents=True)
    (tmp_path / "aeon" / "__init__.py").write_text("raise ImportError('only the data are read')")
    for part, count in (("TRAIN", 6), ("TEST", 9)):
        lines = "\n".join(f"{number},1.5,2,-1e-1:1" for number in range(count))
        (days / f"ItalyPowerDemand_{part}.ts").write_text(f"#about\n@problemName days\n@data\n{lines}\n")
    assert read_ts(days / "ItalyPowerDemand_TEST.ts").shape == (9, 4)
    monkeypatch.syspath_prepend(tmp_path)
    assert load(name="signals").space.shape == (1, 4)


BAD_FILES = {
    "text.csv": ("a,b\n1,2\n3,red\n", r"text.csv has 'red' in line 3, column b"),
    "nan.csv": ("a,b\n1,2\nnan,4\n", r"'nan' in line 3, column a"),
    "large.csv": ("a,b\n1,2\n1e300,4\n", r"'1e300' in line 3"),
    "ragged.csv": ("a,b\n1,2\n3\n", r"1 cells in line 3 and 2 column names"),
    "short.csv": ("a,b\n1,2\n", r"1 rows, of which 0 are left for the train split"),
    "empty.csv": ("", r"has no column"),
    "array.npy": (b"not an array", r"is not a .npy file of numbers"),
    "names.npy": (np.array([["x", "y"]] * 9), r"one array of numbers of shape \(N, D\), it holds <U1 \(9, 2\)"),
    "cube.npy": (np.zeros((9, 2, 3)), r"it holds float64 \(9, 2, 3\)"),
    "holes.npy": (np.where(np.eye(9, 2) > 0, np.nan, 0), r"no finite number in row 0"),
    "table.xlsx": ("", r"is not a .csv or .npy file"),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_files_that_are_no_table(load, tmp_path, name):
    content, sentence = BAD_FILES[name]
    path = tmp_path / name
    if isinstance(content, np.ndarray):
        np.save(path, content)
    else:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=sentence):
        load(name="tabular", file=str(path))


BAD_SETTINGS: dict[str, tuple[dict[str, Any], str]] = {
    "shape": ({"name": "points2d", "shape": "spiral"}, r"dataset.shape=spiral is not one of: mixture, moons"),
    "noise": ({"name": "points2d", "noise": 2}, r"dataset.noise=2 must be a number from 0 to 1"),
    "deviation": ({"name": "points2d", "deviation": 0}, r"dataset.deviation=0 must be a number from 0.001 to 1"),
    "modes": ({"name": "points2d", "modes": 0}, r"dataset.modes=0 must be a whole number of at least 1"),
    "weights": ({"name": "points2d", "weights": [1, 2]}, r"dataset.weights=\[1.0, 2.0\] must be 8 positive numbers"),
    "negative": ({"name": "points2d", "modes": 2, "weights": [1, -2]}, r"must be 2 positive numbers"),
    "words": ({"name": "points2d", "weights": "even"}, r"dataset.weights=even must be a list of numbers"),
    "mirror": ({"name": "points2d", "random_flip": True}, r"dataset.random_flip is not a setting of this dataset"),
    "column": ({"name": "tabular", "columns": ["age"]}, r"breast_cancer has no column age; it has mean radius"),
    "twice": ({"name": "tabular", "columns": ["a", "a"]}, r"names one twice"),
    "missing": ({"name": "tabular", "file": "nowhere.csv"}, r"dataset.file=.*nowhere.csv does not exist"),
    "folder": ({"name": "signals", "root": "."}, r"has no .wav files"),
    "length": ({"name": "signals", "length": 1}, r"dataset.length=1 must be a whole number of at least 2, or null"),
}


@pytest.mark.parametrize("case", BAD_SETTINGS)
def test_settings_that_are_refused(load, case, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    settings, sentence = BAD_SETTINGS[case]
    with pytest.raises(UserError, match=sentence):
        load(**settings)


def test_recordings_that_cannot_be_used(load, tmp_path):
    (tmp_path / "noise.wav").write_bytes(b"RIFFxxxx")
    with pytest.raises(UserError, match=r"dataset.length is not set"):
        load(name="signals", root=str(tmp_path))
    with pytest.raises(UserError, match=r"noise.wav cannot be read"):
        load(name="signals", root=str(tmp_path), length=4)
    write_wav(tmp_path / "noise.wav", np.arange(3))
    with pytest.raises(UserError, match=r"dataset.length=4 is more than the 3 values"):
        load(name="signals", root=str(tmp_path), length=4)
