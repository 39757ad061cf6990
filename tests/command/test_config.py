"""A composed configuration becomes typed values or one sentence."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import pytest
import pytorch_lightning as pl
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf

from ddim.command.config import PRECISIONS, EvaluateConfig, evaluate_schema, evaluation_config, training_config
from ddim.diffusion import SAMPLERS, VARIANCES, WEIGHTINGS, NoiseSchedule
from ddim.diffusion.grid import SamplerConfig
from ddim.diffusion.schedule import build_schedule
from ddim.errors import UserError
from ddim.evaluation.settings import STUDIES, GeneralSettings
from ddim.tracking.loggers import LOGGERS
from ddim.training import settings as training_settings
from ddim.training.settings import OPTIMIZERS, OptimizerConfig, TrainConfig, sample_grid_point, training_grid

CONF = Path(__file__).resolve().parents[2] / "conf"


@pytest.fixture(scope="module")
def composed() -> dict[str, DictConfig]:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return {
            "train": compose("train"),
            "evaluate": compose("evaluate", overrides=["dataset=digits", "denoiser=unet_digits", "schedule=linear"]),
        }


@pytest.fixture
def training(composed):
    def make(**changes) -> TrainConfig:
        return training_config(_changed(composed["train"], changes))

    return make


@pytest.fixture
def evaluation(composed):
    def make(**changes) -> EvaluateConfig:
        return evaluation_config(_changed(composed["evaluate"], changes)).config

    return make


def _changed(cfg: DictConfig, changes) -> DictConfig:
    """`seed=1` or `optimizer__lr=0.1`, without the command line in between."""
    cfg = OmegaConf.create(OmegaConf.to_container(cfg, resolve=False))
    for key, value in changes.items():
        OmegaConf.update(cfg, key.replace("__", "."), value, force_add=True)
    return cfg


def test_the_default_is_typed(training, evaluation):
    config = training()
    assert type(config) is TrainConfig and type(config.optimizer) is OptimizerConfig
    assert type(config.loader.batch_size) is int and type(config.optimizer.lr) is float
    assert config.dataset["name"] == "digits" and isinstance(config.dataset, dict)
    part = evaluation().evaluation
    assert isinstance(part, GeneralSettings) and type(part).__name__ == "EvaluationConfig"
    for name, study in STUDIES.items():
        if fields(study.Settings):
            assert type(getattr(part, name)) is study.Settings


def test_every_study_that_has_settings_finds_them_in_the_schema():
    """Also one that is added while the program runs; the schema is made when it is asked for."""
    (part,) = [item.type for item in fields(evaluate_schema()) if item.name == "evaluation"]
    stated = {item.name for item in fields(part)}
    general = {item.name for item in fields(GeneralSettings)}
    own = {name for name, study in STUDIES.items() if fields(study.Settings) and not study.group}
    assert stated - general == own
    groups = {study.group: study.Settings for study in STUDIES.values() if study.group}
    assert {item.name: item.type for item in fields(evaluate_schema()) if item.name in groups} == groups


def test_every_key_of_the_schemas_is_in_the_files(composed):
    """Otherwise a default lives in two places, one of them out of sight; group keys without a file are absent."""

    def keys(schema, cfg, prefix=""):
        for key, value in schema.items():
            if isinstance(value, dict) and value:
                yield from keys(value, cfg.get(key) or {}, f"{prefix}{key}.")
            elif key not in cfg:
                yield prefix + key

    for schema, name in ((TrainConfig, "train"), (evaluate_schema(), "evaluate")):
        structured = OmegaConf.to_container(OmegaConf.structured(schema))
        # A sampler's own options stand in its file by themselves; here they are only gathered.
        assert structured["sampler"].pop("options") == {}
        assert structured.get("guidance", {"options": {}}).pop("options") == {}
        assert list(keys(structured, composed[name])) == []


@pytest.mark.parametrize("path", sorted((CONF / "sampler").glob("*.yaml")), ids=lambda path: path.stem)
def test_the_sampler_files_say_nothing_that_their_sampler_has_not(path):
    values = OmegaConf.to_container(OmegaConf.load(path))
    assert isinstance(values, dict)
    own = SAMPLERS[values["name"]].options
    assert set(values) - set(own) == {item.name for item in fields(SamplerConfig)} - {"options"}


@pytest.mark.parametrize("value", [{"name": {}}, {"name": []}, {"options": 5}, {"options": "text"}])
def test_a_sampler_of_no_possible_kind_is_one_sentence(training, evaluation, value):
    for make in (training, evaluation):
        with pytest.raises(UserError, match=r"^sampler[.=]"):
            make(**{f"sampler__{key}": given for key, given in value.items()})


def test_numbers_typed_as_text_are_numbers(training):
    config = training(seed="7", optimizer__lr="1e-3", loader__batch_size="16")
    assert (config.seed, config.optimizer.lr, config.loader.batch_size) == (7, 1e-3, 16)


@pytest.mark.parametrize("seed", [0, 2**63 - 1])
def test_the_ends_of_the_seeds(training, seed):
    assert training(seed=seed).seed == seed


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("seed", 2**63),
        ("seed", -1),
        ("seed", None),
        ("seed", "text"),
        ("tags", ["x" * 65]),
        ("tags", "nightly"),
        ("loader__batch_size", 0),
        ("loader__batch_size", None),
        ("loss__weighting", "l2"),
        ("optimizer__lr", float("inf")),
        ("optimizer__lr", float("nan")),
        ("optimizer__lr", 0),
        ("optimizer__weight_decay", float("nan")),
        ("optimizer__betas", [0.9, 0.99, 0.999]),
        ("optimizer__betas", [0.9, 1.0]),
        ("optimizer__betas", [-0.1, 0.9]),
        ("optimizer__betas", 0.9),
        ("optimizer__momentum", 0.9),
        ("callbacks__ema__decay", 1.0),
        ("callbacks__ema__decay", float("nan")),
        ("callbacks__ema__update_every_n_steps", 0),
        ("callbacks__sample_grid__every_n_validations", 0),
        ("callbacks__sample_grid__steps", 1001),
        ("callbacks__sample_grid__eta", [0.0, 1.0]),
        ("callbacks__evaluation__batch_size", 0),
        ("callbacks__evaluation__eta", 1.5),
        ("callbacks__evaluation__metrics", ["fid"]),
        ("callbacks__none_such", {"enabled": True}),
        ("sampler__steps", []),
        ("sampler__clip_denoised", "perhaps"),
        ("schedule__num_timesteps", 5),
        ("schedule__beta_end", 2.0),
        ("trainer__precision", "8-bit"),
        ("trainer__none_such", 1),
        ("trainer__logger", False),
        ("trainer__default_root_dir", "elsewhere"),
        ("trainer__enable_checkpointing", False),
        ("logger__name", "mlflow"),
        ("logger__offline", "maybe"),
    ],
)
def test_training_names_what_is_wrong(training, key, value):
    with pytest.raises(UserError) as error:
        training(**{key: value})
    sentence, name = str(error.value), key.replace("__", ".")
    # A schedule too short for the grid is named by the grid.
    expected = "sampler.steps" if name == "schedule.num_timesteps" else name
    parts = expected.split(".") if expected.startswith("schedule") else [expected]
    assert all(part in sentence for part in parts), sentence
    assert "\n" not in sentence


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("evaluation__num_samples", 1),
        ("evaluation__weights", "averaged"),
        ("evaluation__features", "vgg"),
        ("evaluation__metrics", ["fid"]),
        ("evaluation__reference", "nowhere.npz"),
        ("evaluation__reference_split", "val"),
        ("evaluation__floor", "perhaps"),
        ("evaluation__none_such", 1),
        ("sampler__steps", 0),
        ("sampler__eta", "0.5 "),
        ("sampler__tau", "cubic"),
        ("trainer__none_such", 1),
        ("tags", [""]),
        ("seed", -1),
    ],
)
def test_evaluation_names_what_is_wrong(evaluation, key, value):
    with pytest.raises(UserError) as error:
        evaluation(**{key: value})
    assert key.replace("__", ".") in str(error.value) and "\n" not in str(error.value)


def test_a_value_that_must_be_given_is_asked_for(training):
    with pytest.raises(UserError, match=r"dataset\.root has no value"):
        training(dataset__root="???")


def test_parts_that_are_off_are_not_checked_against_the_schedule(training):
    """A schedule of ten timesteps cannot hold the 20 steps of the sample grid, unless there is none."""
    small = {"schedule__num_timesteps": 10, "schedule__beta_end": 0.5, "sampler__steps": 5}
    with pytest.raises(UserError, match=r"callbacks\.sample_grid\.steps=20"):
        training(**small)
    off = {"callbacks__sample_grid__enabled": False, "callbacks__evaluation__enabled": False}
    assert training(**small, **off).schedule["num_timesteps"] == 10


def test_the_training_grids_take_spacing_and_clipping_from_the_sampler(training):
    config = training(
        sampler__tau="quadratic",
        sampler__clip_denoised=True,
        callbacks__sample_grid__steps=7,
        callbacks__sample_grid__eta="sigma_hat",
        callbacks__evaluation__steps=[5, 6],
        callbacks__evaluation__eta=[0.0, 1.0],
    )
    schedule = build_schedule(config.schedule)
    picture = sample_grid_point(config, schedule)
    assert (picture.steps, picture.variance, picture.tau, picture.clip_denoised) == (7, "sigma_hat", "quadratic", True)
    points = training_grid(config, schedule)
    assert [(point.eta, point.steps) for point in points] == [(0.0, 5), (0.0, 6), (1.0, 5), (1.0, 6)]
    assert all(point.tau == "quadratic" and point.clip_denoised for point in points)


@pytest.mark.parametrize("path", sorted((CONF / "schedule").glob("*.yaml")), ids=lambda path: path.stem)
def test_the_schedule_files_build_what_they_say(path):
    values = OmegaConf.to_container(OmegaConf.load(path))
    built = build_schedule(values)
    expected = getattr(NoiseSchedule, path.stem)(**{key: value for key, value in values.items() if key != "name"})
    assert built.name == path.stem and built.alpha_bar.equal(expected.alpha_bar)


@pytest.mark.parametrize(
    "schedule", [{}, {"name": None}, {"name": "linear", "s": 1}, {"name": "linear", "beta_end": 9}]
)
def test_a_schedule_that_cannot_be_built_is_one_sentence(schedule):
    with pytest.raises(UserError, match=r"^schedule=.*cannot be built"):
        build_schedule(schedule)


def test_the_names_agree_with_the_rooms_that_mean_them():
    assert set(training_settings.WEIGHTINGS) == set(WEIGHTINGS)
    assert "eta" in VARIANCES
    assert {path.stem for path in (CONF / "logger").glob("*.yaml")} == set(LOGGERS)
    assert {path.stem for path in (CONF / "optimizer").glob("*.yaml")} == set(OPTIMIZERS)


@pytest.mark.parametrize("precision", [name for name in PRECISIONS if name != "auto"])
def test_the_precisions_are_lightnings(training, precision):
    assert training(trainer__precision=precision).trainer["precision"] == precision
    trainer = pl.Trainer(accelerator="cpu", precision=precision, logger=False, enable_checkpointing=False)
    assert trainer.precision in (precision, "bf16-mixed")  # on a CPU 16-mixed becomes bf16-mixed
