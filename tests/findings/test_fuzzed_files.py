"""Whatever the bytes of a file are: its contents or one sentence. Checkpoints are tried in tests/denoisers."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ddim.errors import UserError
from ddim.findings.files import read_results, write_results
from ddim.findings.rows import Floor, GridResult
from ddim.metrics import load_published_statistics, reference_statistics
from ddim.metrics.features import PixelFeatures
from ddim.runs.overrides import read_overrides

BOUNDED = {"deadline": None, "derandomize": True, "database": None, "suppress_health_check": list(HealthCheck)}
DIM = 4


@st.composite
def damage(draw, original: bytes) -> bytes:
    """Bits flipped, pieces cut out, an end missing."""
    content = bytearray(original)
    for _ in range(draw(st.integers(0, 4))):
        content[draw(st.integers(0, len(content) - 1))] ^= draw(st.integers(1, 255))
    start, length = draw(st.integers(0, len(content))), draw(st.sampled_from([0, 0, 1, 7, 100]))
    del content[start : start + length]
    return bytes(content[: draw(st.sampled_from([len(content), len(content), len(content) // 2, 3]))])


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.just(10**400),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> dict[str, bytes]:
    row = GridResult(
        **{"dataset": "digits", "checkpoint": "a.ckpt", "weights": "ema", "sampler": "ddim", "variance": "eta"},
        **{"eta": 0.0, "tau": "linear", "steps": 10, "nfe": 10, "num_samples": 100, "seed": 0, "features": "pixels"},
        **{"frechet_distance": 1.5, "seconds": 2.0, "images_per_second": 50.0, "timesteps": (0, 1)},
    )
    folder = tmp_path_factory.mktemp("results")
    write_results(folder, [row, row], Floor(100, {"frechet_distance": 0.5}, "pixels", "r"), {"seed": 0})
    return {name: (folder / name).read_bytes() for name in ("results.csv", "results.json")}


def read_or_sentence(folder: Path) -> None:
    try:
        read_results(folder)
    except UserError as error:
        assert "results." in str(error)


@pytest.mark.parametrize("name", ["results.csv", "results.json"])
@settings(max_examples=150, **BOUNDED)
@given(data=st.data())
def test_damaged_results(results, tmp_path_factory, name, data):
    folder = tmp_path_factory.mktemp("damaged", numbered=True)
    (folder / name).write_bytes(data.draw(damage(results[name])))
    read_or_sentence(folder)


@settings(max_examples=150, **BOUNDED)
@given(data=st.data())
def test_results_of_other_values(results, tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("other", numbered=True)
    document = json.loads(results["results.json"])
    where = data.draw(st.sampled_from([document, document["rows"][0], document["floor"]]))
    where[data.draw(st.sampled_from(sorted(where)))] = data.draw(JSON)
    (folder / "results.json").write_text(json.dumps(document))
    read_or_sentence(folder)


@pytest.mark.parametrize("text", ["[" * 100_000, '{"rows": ' + "9" * 5000 + "}", '{"rows": [{}]}', "null", "[]", ""])
def test_hostile_json(tmp_path, text):
    (tmp_path / "results.json").write_text(text)
    with pytest.raises(UserError, match=r"results\.json"):
        read_results(tmp_path)


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
def test_damaged_statistics(statistics, tmp_path_factory, kind, data):
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
def test_damaged_cache_entries_are_computed_anew(tmp_path_factory, data):
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


@settings(max_examples=150, **BOUNDED)
@given(data=st.data())
def test_damaged_command_lines(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("run", numbered=True)
    intact = yaml.safe_dump(["seed=1", "sampler.steps=[1,2]", "~logger", "dataset.label='it is'"]).encode()
    content = data.draw(damage(intact) | st.binary(max_size=60) | st.text(max_size=60).map(lambda text: text.encode()))
    (folder / "overrides.yaml").write_bytes(content)
    try:
        assert all(isinstance(override, str) for override in read_overrides(folder))
    except UserError as error:
        assert "overrides.yaml" in str(error)
