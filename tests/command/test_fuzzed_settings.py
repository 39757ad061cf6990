"""Whatever is typed: a checked configuration, or one sentence, from us or from Hydra. No work is started."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from hydra.errors import HydraException
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ddim.command.arguments import evaluation_arguments, training_arguments
from ddim.command.config import evaluation_config, training_config
from ddim.data import build_datamodule
from ddim.data.build import DATASET_DEFAULTS
from ddim.diffusion.schedule import build_schedule
from ddim.errors import UserError
from ddim.runs.overrides import GROUPS
from ddim.training.trainer import build_trainer

CONF = str(Path(__file__).resolve().parents[2] / "conf")
SCRIPTS = {
    "train": (training_arguments, training_config, ["trainer.accelerator=cpu"]),
    "evaluate": (
        evaluation_arguments,
        lambda cfg: evaluation_config(cfg).config,
        ["dataset=digits", "denoiser=unet_digits", "schedule=linear"],
    ),
}
BOUNDED: dict[str, Any] = {
    "deadline": None,
    "derandomize": True,
    "database": None,
    "suppress_health_check": list(HealthCheck),
}
# A composition takes a tenth of a second: what is found is reported as it is found, not reduced.
BOUNDED["phases"] = [Phase.generate]


@pytest.fixture(scope="module", autouse=True)
def hydra() -> Iterator[None]:
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    with initialize_config_dir(CONF, version_base="1.3"):
        yield
    logging.getLogger("pytorch_lightning").setLevel(logging.NOTSET)


def leaves(config: Mapping[Any, Any], prefix: str = "") -> Iterator[str]:
    for key, value in config.items():
        yield f"{prefix}{key}"
        if isinstance(value, dict):
            yield from leaves(value, f"{prefix}{key}.")


@pytest.fixture(scope="module")
def keys(hydra) -> dict[str, list[str]]:
    """Every key of the two configurations, and some that only other data sets have."""
    found = {}
    for name, (_, _, base) in SCRIPTS.items():
        container = OmegaConf.to_container(compose(name, overrides=base))
        assert isinstance(container, dict)
        found[name] = [key for key in leaves(container) if key not in GROUPS]
        found[name] += [
            "dataset.root",
            "dataset.on_bad_image",
            "dataset.test_fraction",
            "trainer.strategy",
            "none_such",
        ]
    return found


SCALARS = st.one_of(
    st.integers(),
    st.integers(10**18, 10**30),
    st.just("9" * 500),
    st.floats(),
    st.sampled_from(
        ["null", "true", "text", "''", "nan", "-inf", "1e400", "???", "_", "x" * 300, "'~nobody/x'", "a/b"]
    ),
    st.sampled_from(["'${seed}'", "'${none_such}'", "'${oc.env:NO_SUCH_VARIABLE}'", "'../../x'", "'\\x00'", "é中"]),
    st.text(max_size=12).map(lambda text: "'" + text.replace("\\", "").replace("'", "") + "'"),
).map(str)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3).map(lambda items: f"[{','.join(items)}]"),
        st.dictionaries(st.sampled_from(["a", "name", "_target_", "0"]), inner, max_size=2).map(
            lambda items: "{" + ",".join(f"{key}:{value}" for key, value in items.items()) + "}"
        ),
    ),
    max_leaves=4,
)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("script", SCRIPTS)
@settings(max_examples=100, **BOUNDED)
@given(data=st.data())
def test_any_value_of_any_setting(script, keys, tmp_path_factory, data):
    rewrite, check, base = SCRIPTS[script]
    names = st.tuples(st.sampled_from(["", "", "+", "++"]), st.sampled_from(keys[script]), VALUES)
    overrides = [f"{sign}{key}={value}" for sign, key, value in data.draw(st.lists(names, min_size=1, max_size=2))]
    try:
        config = check(compose(script, overrides=[*base, *rewrite(overrides)]))
        dataset = {key: value for key, value in config.dataset.items() if key not in DATASET_DEFAULTS}
        sizes = {"batch_size": 1, "eval_batch_size": 1, "num_workers": 0}
        build_datamodule(dataset, **sizes, seed=config.seed, cache_dir=Path(config.cache_dir))
        build_schedule(config.schedule)
        build_trainer({**config.trainer, "accelerator": "cpu"}, tmp_path_factory.getbasetemp())
    except UserError as error:
        assert "\n" not in str(error)
    except (HydraException, OmegaConfBaseException):
        pass  # Hydra's own sentences, without a traceback as well


PIECES = st.one_of(
    st.text(max_size=8),
    st.sampled_from(
        [*GROUPS, "sampler.steps", "resume", "checkpoint", "=", ",", "[", "]", "{", "}", "'", "${", "+", "~"]
    ),
    st.sampled_from(["-m", "--", "latest", "null", ".", "@", "..", "1e9", "\\", "\x00", "\udc80", "(", "range(1,3)"]),
)


@pytest.mark.parametrize("rewrite", [training_arguments, evaluation_arguments])
@settings(max_examples=250, **BOUNDED)
@given(arguments=st.lists(st.lists(PIECES, max_size=6).map("".join), max_size=4))
def test_any_command_line_is_rewritten_or_refused(rewrite, arguments, tmp_path_factory, monkeypatch):
    monkeypatch.chdir(tmp_path_factory.getbasetemp())
    try:
        assert all(isinstance(argument, str) for argument in rewrite(arguments))
    except UserError as error:
        assert "\n" not in str(error)


@pytest.mark.parametrize(
    "value", ["{}", "1,2", "[1,2]", "~", "''", "' '", "x" * 300, "'~nobody/x'", "'\\x00'", "1.5", "'a\nb'"]
)
def test_anything_to_resume_from(value, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    try:
        training_arguments([f"resume={value}"])
    except UserError as error:
        assert str(error)
