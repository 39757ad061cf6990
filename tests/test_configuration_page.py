"""docs/configuration.md says what the schemas and the files of conf/ say."""

from __future__ import annotations

import dataclasses
import re
import runpy
from pathlib import Path
from types import SimpleNamespace

import pytest
from omegaconf import OmegaConf

from ddim.command.config import evaluate_schema
from ddim.training.settings import TrainConfig

REPOSITORY = Path(__file__).resolve().parents[1]
configuration_page = SimpleNamespace(**runpy.run_path(str(REPOSITORY / "tools" / "configuration_page.py")))
PAGE = (REPOSITORY / "docs" / "configuration.md").read_text(encoding="utf-8")


def rows(page: str) -> dict[str, list[str]]:
    """{key or option: the other cells of its row}."""
    lines = [re.split(r"(?<!\\) \| ", line.strip("| ")) for line in page.splitlines() if line.startswith("| `")]
    return {cells[0].strip("`"): cells[1:] for cells in lines}


def test_the_page_is_what_the_schemas_give():
    assert configuration_page.page() == PAGE, "run `python -m tools.configuration_page`"


@pytest.mark.parametrize("schema", [TrainConfig, evaluate_schema()])
def test_every_key_of_the_schemas_has_a_meaning(schema):
    def leaves(values, prefix=""):
        for key, value in values.items():
            if isinstance(value, dict) and value:
                yield from leaves(value, f"{prefix}{key}.")
            else:
                yield prefix + key

    found = rows(PAGE)
    plain = {"dataset", "denoiser", "schedule", "trainer"}
    for key in leaves(OmegaConf.to_container(OmegaConf.structured(schema))):
        if key not in plain:
            assert len(found[key][-1].rstrip(".")) > 3, key


def test_every_option_and_every_key_of_conf():
    found = rows(PAGE)
    for path in (REPOSITORY / "conf").glob("*/*.yaml"):
        assert found[f"{path.parent.name}={path.stem}"][0], path
        if path.parent.name in ("dataset", "denoiser", "trainer"):
            content = OmegaConf.load(path)
            assert all(f"{path.parent.name}.{key}" in found for key in content if key not in ("defaults", "name")), path


def test_types_defaults_and_names():
    found = rows(PAGE)
    assert found["loader.batch_size"][:2] == ["whole number", "`128`"]
    assert found["optimizer.lr"][:2] == ["number", "`0.002`"], "what the command composes, recipe included"
    assert found["dataset.root"][:2] == [
        "folder",
        "`null` (celeba, cifar10, signals); required (image_folder, lsun_bedroom, lsun_church)",
    ]
    assert "min_snr" in found["loss.weighting"][2]
    assert found["sampler.tau"][1] == "`${dataset.tau}`" and "???" not in PAGE


def test_a_key_without_a_meaning_is_noticed():
    @dataclasses.dataclass
    class Undocumented:
        """Nothing is said of the second.

        Attributes:
            first: said.
        """

        first: int = 1
        second: int = 2

    with pytest.raises(KeyError, match="second"):
        configuration_page._schema_rows(Undocumented, {"first": 1, "second": 2}, "")
