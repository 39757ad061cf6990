"""Reference statistics: the cache, its provenance and damage, and published files."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import torch

from ddim.errors import UserError
from ddim.metrics import (
    Features,
    build_extractor,
    compute_metrics,
    extract_features,
    load_published_statistics,
    reference,
    reference_statistics,
)

IMAGES = torch.randint(0, 256, (150, 1, 4, 4), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
PROVENANCE = {"dataset": "noise", "split": "train", "count": 150, "shape": (1, 4, 4)}


@pytest.fixture
def extractor():
    return build_extractor("pixels", channels=1, resolution=4, weights_dir="unused")


class Source:
    """Yields IMAGES in batches and counts how often it was asked."""

    def __init__(self, batch_size=64, count=150):
        self.batch_size, self.count, self.calls = batch_size, count, 0

    def __call__(self):
        self.calls += 1
        return iter(IMAGES[: self.count].split(self.batch_size))


def forbidden():
    raise AssertionError("the images were read although the cache has the statistics")


def same(a, b):
    assert np.array_equal(a.mu, b.mu) and np.array_equal(a.sigma, b.sigma) and torch.equal(a.features, b.features)
    assert torch.equal(a.indices, b.indices) and a.preprocessing == b.preprocessing is not None
    assert (a.num_images, a.provenance, a.digest) == (b.num_images, b.provenance, b.digest)


def test_statistics_are_those_of_all_images(extractor, tmp_path):
    done = []
    found = reference_statistics(extractor, Source(), PROVENANCE, tmp_path, done.append)
    rows = IMAGES.flatten(1).double().numpy() / 255
    np.testing.assert_allclose(found.mu, rows.mean(axis=0), rtol=1e-6)
    np.testing.assert_allclose(found.sigma, np.cov(rows, rowvar=False), rtol=1e-5, atol=1e-7)
    assert found.mu.dtype == found.sigma.dtype == np.float64 and found.features.dtype == torch.float32
    assert found.num_images == 150 and done == [64, 128, 150]
    torch.testing.assert_close(found.features, IMAGES.flatten(1) / 255)
    assert found.indices.dtype == torch.int64 and torch.equal(found.indices, torch.arange(150))
    assert found.provenance["data"]["dataset"] == "noise" and found.provenance["extractor"] == extractor.provenance


@pytest.mark.parametrize("batch_size", [1, 7, 150])
def test_batch_size_changes_nothing(extractor, tmp_path, batch_size):
    first = reference_statistics(extractor, Source(64), PROVENANCE, tmp_path / "a", max_features=40)
    second = reference_statistics(extractor, Source(batch_size), PROVENANCE, tmp_path / "b", max_features=40)
    np.testing.assert_allclose(first.mu, second.mu, rtol=1e-12)
    np.testing.assert_allclose(first.sigma, second.sigma, rtol=1e-9, atol=1e-12)
    assert torch.equal(first.features, second.features)


def test_the_second_call_reads_the_cache_only(extractor, tmp_path):
    first = reference_statistics(extractor, Source(), PROVENANCE, tmp_path)
    same(reference_statistics(extractor, forbidden, PROVENANCE, tmp_path), first)
    assert [path.name for path in tmp_path.iterdir()] == [f"reference-{first.digest}.npz"]


@pytest.mark.parametrize("change", ["data", "extractor", "max_features"])
def test_another_provenance_is_another_entry(extractor, tmp_path, change):
    reference_statistics(extractor, Source(), PROVENANCE, tmp_path)
    source, provenance, limit = Source(), dict(PROVENANCE), 50_000
    if change == "data":
        provenance["split"] = "test"
    elif change == "extractor":
        extractor.provenance["resize"] = "another"
    else:
        limit = 10
    reference_statistics(extractor, source, provenance, tmp_path, max_features=limit)
    assert source.calls == 1 and len(list(tmp_path.iterdir())) == 2


def test_a_file_of_another_provenance_under_the_right_name_is_not_trusted(extractor, tmp_path):
    first = reference_statistics(extractor, Source(), PROVENANCE, tmp_path)
    other = reference_statistics(extractor, Source(count=100), {"count": 100}, tmp_path)
    (tmp_path / f"reference-{other.digest}.npz").replace(tmp_path / f"reference-{first.digest}.npz")
    source = Source()
    same(reference_statistics(extractor, source, PROVENANCE, tmp_path), first)
    assert source.calls == 1


@pytest.mark.parametrize("lacking", ["indices", "features", "mu"])
def test_a_file_that_lacks_an_array_is_computed_anew(extractor, tmp_path, lacking, caplog):
    first = reference_statistics(extractor, Source(), PROVENANCE, tmp_path)
    (path,) = tmp_path.iterdir()
    with np.load(path) as file:
        arrays = {key: file[key] for key in file if key != lacking}
    np.savez(path, **arrays)
    same(reference_statistics(extractor, Source(), PROVENANCE, tmp_path), first)
    assert "computed anew" in caplog.text


@pytest.mark.parametrize("key", ["indices", "features"])
def test_a_file_with_too_few_rows_is_computed_anew(extractor, tmp_path, key):
    first = reference_statistics(extractor, Source(), PROVENANCE, tmp_path)
    (path,) = tmp_path.iterdir()
    with np.load(path) as file:
        arrays = {name: file[name] for name in file}
    np.savez(path, **(arrays | {key: arrays[key][:-1]}))
    same(reference_statistics(extractor, Source(), PROVENANCE, tmp_path), first)


def test_files_of_an_older_format_are_not_read(extractor, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(reference, "FORMAT", reference.FORMAT - 1)
        reference_statistics(extractor, Source(), PROVENANCE, tmp_path)
    source = Source()
    reference_statistics(extractor, source, PROVENANCE, tmp_path)
    assert source.calls == 1


def truncate(content):
    return content[: len(content) // 2]


def flip(content):
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 255]) + content[middle + 1 :]


@pytest.mark.parametrize("damage", [truncate, flip, lambda content: b"", lambda content: b"text"])
def test_a_damaged_cache_file_is_computed_anew(extractor, tmp_path, damage, caplog):
    first = reference_statistics(extractor, Source(), PROVENANCE, tmp_path)
    (path,) = tmp_path.iterdir()
    path.write_bytes(damage(path.read_bytes()))
    source = Source()
    with caplog.at_level(logging.WARNING):
        same(reference_statistics(extractor, source, PROVENANCE, tmp_path), first)
    assert source.calls == 1 and "computed anew" in caplog.text
    same(reference_statistics(extractor, forbidden, PROVENANCE, tmp_path), first)


def test_an_interrupted_computation_leaves_nothing_behind(extractor, tmp_path, monkeypatch):
    def broken():
        yield IMAGES[:10]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        reference_statistics(extractor, broken, PROVENANCE, tmp_path)

    def half_written(path, **arrays):
        path.write_bytes(b"PK")
        raise KeyboardInterrupt

    monkeypatch.setattr(reference.np, "savez", half_written)
    with pytest.raises(KeyboardInterrupt):
        reference_statistics(extractor, Source(), PROVENANCE, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_cache_that_cannot_be_written_costs_a_warning(extractor, tmp_path, caplog):
    (tmp_path / "file").write_text("in the way")
    found = reference_statistics(extractor, Source(), PROVENANCE, tmp_path / "file" / "cache")
    assert found.num_images == 150 and "could not be cached" in caplog.text


def test_features_beyond_the_limit_are_a_uniform_subset(extractor, tmp_path):
    found = reference_statistics(extractor, Source(), PROVENANCE, tmp_path, max_features=40)
    rows = extractor(IMAGES).features
    positions = torch.cdist(found.features, rows).argmin(dim=1)
    assert found.features.shape == (40, 16) and found.num_images == 150
    assert len(set(positions.tolist())) == 40
    assert torch.equal(rows[positions], found.features)
    # The mean position of a uniform subset is 75 +- 6; that of the first forty would be 20.
    assert 55 < positions.double().mean() < 95
    np.testing.assert_allclose(found.mu, rows.double().numpy().mean(axis=0))


@pytest.mark.parametrize("batch_size", [1, 7, 39, 41, 150])
@pytest.mark.parametrize("limit", [2, 40, 149, 150, 151])
def test_indices_tell_which_images_the_kept_features_are_of(extractor, tmp_path, limit, batch_size):
    found = reference_statistics(extractor, Source(batch_size), PROVENANCE, tmp_path, max_features=limit)
    kept = min(limit, 150)
    assert found.indices.shape == (kept,) and len(set(found.indices.tolist())) == kept
    torch.testing.assert_close(found.features, extractor(IMAGES[found.indices]).features, rtol=0, atol=0)
    if limit >= 150:
        assert torch.equal(found.indices, torch.arange(150))
    same(reference_statistics(extractor, forbidden, PROVENANCE, tmp_path, max_features=limit), found)


def test_wrong_counts_and_provenances_are_refused(extractor, tmp_path):
    with pytest.raises(ValueError, match="says 150 images, there were 100"):
        reference_statistics(extractor, Source(count=100), PROVENANCE, tmp_path)
    with pytest.raises(UserError, match="at least 2 images, the data set has 1"):
        reference_statistics(extractor, Source(count=1), {"count": 1}, tmp_path)
    with pytest.raises(ValueError, match="JSON-able"):
        reference_statistics(extractor, Source(), {"path": tmp_path}, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_published_statistics_give_the_same_distance_and_nothing_else(extractor, tmp_path):
    computed = reference_statistics(extractor, Source(), PROVENANCE, tmp_path)
    np.savez(tmp_path / "published.npz", mu=computed.mu, sigma=computed.sigma)
    published = load_published_statistics(tmp_path / "published.npz", dim=16)
    assert published.num_images is None and published.features is None
    assert published.indices is None and published.preprocessing is None
    assert published.provenance["published"] == "published.npz" and len(published.digest) == 16
    generated = extract_features(extractor, [255 - IMAGES[:50]])
    values = compute_metrics(generated, published)
    assert values == {"frechet_distance": compute_metrics(generated, computed)["frechet_distance"]}
    assert values["frechet_distance"] > 0.1


def test_published_float32_statistics_are_accepted(tmp_path):
    np.savez(tmp_path / "p.npz", mu=np.zeros(3, np.float32), sigma=np.eye(3, dtype=np.float32), extra=np.zeros(2))
    published = load_published_statistics(tmp_path / "p.npz", dim=3)
    assert published.sigma.dtype == np.float64
    assert "frechet_distance" in compute_metrics(Features(torch.randn(9, 3)), published)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        (None, "do not exist"),
        ({"mu": np.zeros(3)}, "not an .npz file with arrays mu and sigma"),
        ({"mu": np.zeros(3), "sigma": np.array([{}], dtype=object)}, "not an .npz file with arrays mu and sigma"),
        ({"mu": np.zeros(3), "sigma": np.array("text")}, "not an .npz file with arrays mu and sigma"),
        ({"mu": np.zeros(4), "sigma": np.eye(4)}, r"mu \(4,\) and sigma \(4, 4\), but the features have 3 dim"),
        ({"mu": np.zeros(3), "sigma": np.zeros(3)}, "take statistics of the same features"),
        ({"mu": np.full(3, np.nan), "sigma": np.eye(3)}, "not finite"),
        (b"text", "not an .npz file with arrays mu and sigma"),
        (np.zeros(3), "not an .npz file with arrays mu and sigma"),
    ],
)
def test_bad_published_files_are_one_sentence(tmp_path, arrays, message):
    path = tmp_path / "published.npz"
    if isinstance(arrays, dict):
        np.savez(path, **arrays)
    elif isinstance(arrays, bytes):
        path.write_bytes(arrays)
    elif arrays is not None:
        with path.open("wb") as file:
            np.save(file, arrays)
    with pytest.raises(UserError, match=message) as error:
        load_published_statistics(path, dim=3)
    assert "published.npz" in str(error.value) and "\n" not in str(error.value)
