"""Statistics that say what they are of: there and back, and every claim checked."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ddim.errors import UserError
from ddim.metrics import RunningMoments, compute_metrics, load_published_statistics, reference_statistics
from ddim.metrics.features import PixelFeatures
from ddim.metrics.published import MAX_ABOUT_BYTES, read_about, statistics_file

DATA = {
    "dataset": "twelve",
    "split": "train",
    "count": 12,
    "channels": 1,
    "resolution": 2,
    "decoder": {"resize": "box"},
}
SETTINGS = {"name": "image_folder", "root": "/home/somebody", "download": True, "in_memory": True, "features": "auto"}
BOUNDED = {"deadline": None, "derandomize": True, "database": None, "suppress_health_check": list(HealthCheck)}


@pytest.fixture(scope="module")
def extractor():
    return PixelFeatures(1, 2)


@pytest.fixture(scope="module")
def computed(extractor, tmp_path_factory):
    images = torch.randint(0, 256, (12, 1, 2, 2), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    return reference_statistics(extractor, lambda: [images], DATA, tmp_path_factory.mktemp("cache"))


def test_there_and_back(computed, extractor, tmp_path):
    path = tmp_path / "reference-pixels.npz"
    path.write_bytes(statistics_file(computed, SETTINGS))
    assert statistics_file(computed, SETTINGS) == path.read_bytes() and b"somebody" not in path.read_bytes()
    about = read_about(path)
    assert about.dataset == {"name": "image_folder", "features": "pixels"} and about.data == DATA
    found = load_published_statistics(path, 4, extractor.provenance)
    assert np.array_equal(found.mu, computed.mu) and np.array_equal(found.sigma, computed.sigma)
    assert found.num_images == 12 and found.features is None and found.digest != computed.digest
    # How files became features is known, so numbers may stand side by side.
    assert found.preprocessing == computed.preprocessing is not None
    moments = RunningMoments(4)
    moments.update(torch.rand(20, 4, generator=torch.Generator().manual_seed(1)))
    assert compute_metrics(moments, found, ["frechet_distance"]) == compute_metrics(
        moments, computed, ["frechet_distance"]
    )


def test_statistics_of_other_features_are_refused(computed, extractor, tmp_path):
    path = tmp_path / "reference-pixels.npz"
    path.write_bytes(statistics_file(computed, SETTINGS))
    with pytest.raises(UserError, match=r"reference-pixels\.npz are of pixels features as another version"):
        load_published_statistics(path, 4, {**extractor.provenance, "weights_sha256": "other"})


def test_only_what_says_what_it_is_of_is_published(computed, tmp_path):
    np.savez(tmp_path / "foreign.npz", mu=np.zeros(4), sigma=np.eye(4))
    assert read_about(tmp_path / "foreign.npz") is None
    with pytest.raises(ValueError, match="what they are of"):
        statistics_file(load_published_statistics(tmp_path / "foreign.npz", 4), SETTINGS)


@pytest.mark.parametrize(
    "change",
    [
        {"data": {**DATA, "count": -1}},
        {"data": {**DATA, "resolution": 2**40}},
        {"data": {**DATA, "channels": True}},
        {"data": {**DATA, "dataset": "two\nlines"}},
        {"data": {key: value for key, value in DATA.items() if key != "split"}},
        {"data": "text"},
        {"dataset": {"name": ["digits"]}},
        {"extractor": {}},
    ],
)
def test_impossible_claims_are_one_sentence(computed, tmp_path, change):
    about = {"data": DATA, "extractor": computed.provenance["extractor"], "dataset": {"name": "image_folder"}} | change
    path = tmp_path / "reference.npz"
    np.savez(path, mu=computed.mu, sigma=computed.sigma, about=np.frombuffer(json.dumps(about).encode(), np.uint8))
    for read in (read_about, lambda file: load_published_statistics(file, 4)):
        with pytest.raises(UserError, match="do not say what they are of") as error:
            read(path)
        assert "reference.npz" in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    "about", [np.zeros(MAX_ABOUT_BYTES + 1, np.uint8), np.zeros((2, 2), np.uint8), np.array("{}"), np.array([{}])]
)
def test_a_description_that_is_none_is_one_sentence(tmp_path, about):
    np.savez(tmp_path / "reference.npz", mu=np.zeros(4), sigma=np.eye(4), about=about)
    with pytest.raises(UserError, match="do not say what they are of"):
        read_about(tmp_path / "reference.npz")


@pytest.mark.filterwarnings("ignore")
@settings(max_examples=100, **BOUNDED)
@given(data=st.data())
def test_damaged_files_are_one_sentence(damage, computed, tmp_path_factory, data):
    path = tmp_path_factory.mktemp("damaged", numbered=True) / "reference.npz"
    path.write_bytes(data.draw(damage(statistics_file(computed, SETTINGS))))
    for read in (read_about, lambda file: load_published_statistics(file, 4)):
        try:
            read(path)
        except UserError as error:
            assert "reference.npz" in str(error) and "\n" not in str(error)
