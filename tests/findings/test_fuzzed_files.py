"""Whatever the bytes of a result file are: its rows or one sentence."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ddim.errors import UserError
from ddim.findings.files import read_results, write_results
from ddim.findings.rows import Floor, GridResult

BOUNDED = {"deadline": None, "derandomize": True, "database": None, "suppress_health_check": list(HealthCheck)}

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
def test_damaged_results(damage, results, tmp_path_factory, name, data):
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
