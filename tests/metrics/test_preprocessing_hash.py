"""The hash of the preprocessing: equal for images treated alike, another one after any change of treatment."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from ddim.data import build_datamodule, celeba
from ddim.metrics import ReferenceStatistics, build_extractor, reference, reference_statistics


@pytest.fixture
def faces(tmp_path):
    """A folder of aligned-CelebA-sized noise, split by the hash of the names."""
    folder = tmp_path / "faces"
    folder.mkdir()
    for number in range(8):
        pixels = np.random.default_rng(number).integers(0, 256, (218, 178, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:06d}.png")
    return folder


@pytest.fixture
def statistics_of(tmp_path):
    def compute(split="train", features="pixels", **config):
        data = build_datamodule(
            config, batch_size=4, eval_batch_size=4, num_workers=0, seed=0, cache_dir=tmp_path / "cache"
        )
        data.prepare_data()
        extractor = build_extractor(
            features, channels=data.space.shape[0], resolution=data.space.shape[-1], weights_dir=tmp_path / "none"
        )
        return reference_statistics(
            extractor, lambda: data.images(split, batch_size=3), data.provenance(split), tmp_path / "reference"
        )

    return compute


@pytest.fixture
def celeba_statistics(statistics_of, faces):
    return lambda **changes: statistics_of(
        **{"name": "celeba", "root": str(faces), "resolution": 16, "test_fraction": 0.4, **changes}
    )


def test_another_split_has_another_digest_and_the_same_preprocessing(celeba_statistics):
    train, test = celeba_statistics(), celeba_statistics(split="test")
    assert train.digest != test.digest and not np.array_equal(train.mu, test.mu)
    assert train.preprocessing == test.preprocessing
    assert len(train.preprocessing) == 16 and int(train.preprocessing, 16) >= 0


@pytest.mark.parametrize(
    "change", [{"test_fraction": 0.2}, {"label": "my faces"}, {"on_bad_image": "skip"}], ids=lambda change: str(change)
)
def test_other_images_treated_alike_have_the_same_preprocessing(celeba_statistics, faces, change):
    before = celeba_statistics()
    (faces / "000099.png").write_bytes((faces / "000000.png").read_bytes())
    if "on_bad_image" in change:
        (faces / "000098.png").write_bytes(b"no image")
    after = celeba_statistics(**change)
    assert after.digest != before.digest and after.preprocessing == before.preprocessing


@pytest.mark.parametrize("crop", [(19, 39, 159, 179), (25, 45, 153, 173)])
def test_celeba_of_another_crop_has_another_preprocessing(celeba_statistics, monkeypatch, crop):
    official = celeba_statistics()
    monkeypatch.setattr(celeba, "CROP", crop)
    other = celeba_statistics()
    assert other.digest != official.digest and other.preprocessing != official.preprocessing


@pytest.mark.parametrize("change", [{"resize": "bicubic"}, {"resolution": 8}, {"channels": 1}], ids=str)
def test_each_setting_of_the_decoder_counts(celeba_statistics, change):
    assert celeba_statistics(**change).preprocessing != celeba_statistics().preprocessing


def test_a_folder_that_is_not_cropped_has_another_preprocessing_than_celeba(celeba_statistics, statistics_of, faces):
    folder = {"name": "image_folder", "root": str(faces), "resolution": 16}
    plain, black = statistics_of(**folder), statistics_of(**folder, background="black")
    assert len({celeba_statistics().preprocessing, plain.preprocessing, black.preprocessing}) == 3


def test_other_features_and_other_weights_are_another_preprocessing(statistics_of):
    pixels, network = statistics_of(name="digits"), statistics_of(name="digits", features="digits-cnn")
    assert pixels.preprocessing != network.preprocessing
    provenance = {**network.provenance, "extractor": {**network.provenance["extractor"], "weights_sha256": "0"}}
    assert with_provenance(provenance).preprocessing != network.preprocessing


def test_it_is_the_same_when_read_from_the_cache(celeba_statistics, monkeypatch):
    first = celeba_statistics()
    monkeypatch.setattr(reference, "RunningMoments", None)  # nothing can be computed any more
    assert celeba_statistics().preprocessing == first.preprocessing


def with_provenance(provenance):
    return ReferenceStatistics(np.zeros(2), np.eye(2), 2, torch.zeros(2, 2), provenance, "digest")


def of_data(**data):
    return with_provenance({"data": data, "extractor": {"features": "pixels"}, "format": 2}).preprocessing


def test_a_setting_that_is_not_known_counts_as_preprocessing():
    known = {"split": "train", "count": 3, "fingerprint": "a", "resolution": 8}
    assert of_data(**known, gamma=2.2) != of_data(**known) != of_data(**known, gamma=1.0)
    assert of_data(**known, crop=[0, 1]) == of_data(crop=[0, 1], **{**known, "count": 4, "split": "test"})


def test_neither_the_format_of_the_cache_nor_the_number_of_kept_features_counts():
    data, extractor = {"resolution": 8}, {"features": "pixels"}
    found = {
        with_provenance({"data": data, "extractor": extractor, **more}).preprocessing
        for more in ({}, {"format": 1}, {"max_features": 10})
    }
    assert len(found) == 1


@pytest.mark.parametrize("provenance", [{}, {"published": "a.npz", "sha256": "b"}, {"data": {"resolution": 8}}])
def test_it_is_unknown_where_the_provenance_does_not_tell(provenance):
    assert with_provenance(provenance).preprocessing is None


def test_what_every_data_set_says_is_sorted_into_identity_and_treatment(statistics_of, celeba_statistics, faces):
    """A new key in the data room lands here: is it about which images these are, or about how they were made?"""
    decoder = {"resize", "background", "allow_upscale", "crop", "source_size"}
    folder = statistics_of(name="image_folder", root=str(faces), resolution=16)
    for statistics, expected in (
        (statistics_of(name="digits"), set()),
        (folder, decoder),
        (celeba_statistics(), decoder),
    ):
        treatment = statistics.provenance["data"].keys() - reference.IMAGE_IDENTITY
        assert treatment == {"channels", "resolution"} | expected
