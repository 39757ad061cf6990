"""Whatever the bytes of a file of statistics are: its contents, one sentence, or they are computed anew."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ddim.errors import UserError
from ddim.metrics import load_published_statistics, reference_statistics
from ddim.metrics.features import PixelFeatures

BOUNDED = {"deadline": None, "derandomize": True, "database": None, "suppress_health_check": list(HealthCheck)}
DIM = 4


@pytest.fixture(scope="module")
def statistics(tmp_path_factory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("statistics")
    for name, save in (("plain", np.savez), ("compressed", np.savez_compressed)):
        save(folder / f"{name}.npz", mu=np.zeros(DIM), sigma=np.eye(DIM))
    return {name: (folder / f"{name}.npz").read_bytes() for name in ("plain", "compressed")}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["plain", "compressed"])
@settings(max_examples=150, **BOUNDED)
@given(data=st.data())
def test_damaged_statistics(damage, statistics, tmp_path_factory, kind, data):
    path = tmp_path_factory.mktemp("damaged", numbered=True) / "reference.npz"
    path.write_bytes(data.draw(damage(statistics[kind])))
    try:
        found = load_published_statistics(path, DIM)
        assert found.mu.shape == (DIM,) and found.sigma.shape == (DIM, DIM)
    except UserError as error:
        assert "reference.npz" in str(error) and "\n" not in str(error)


@pytest.mark.filterwarnings("ignore")
@settings(max_examples=60, **BOUNDED)
@given(data=st.data())
def test_damaged_cache_entries_are_computed_anew(damage, tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("cache", numbered=True)
    images = torch.arange(5 * 4).reshape(5, 1, 2, 2).to(torch.uint8)
    extractor = PixelFeatures(1, 2)

    def compute():
        return reference_statistics(extractor, lambda: [images], {"dataset": "five"}, folder)

    expected = compute()
    (path,) = folder.glob("*.npz")
    path.write_bytes(data.draw(damage(path.read_bytes())))
    found = compute()
    np.testing.assert_array_equal(found.mu, expected.mu)
    assert found.sigma.shape == expected.sigma.shape and found.num_images == 5
