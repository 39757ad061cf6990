"""Writes docs/configuration.md from the typed schemas, the data sets' settings and the files of conf/.

    python -m tools.configuration_page

A test fails when the page in the repository is not what this gives.
"""

from __future__ import annotations

import dataclasses
import inspect
import re
import sys
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf

from ddim.command.config import evaluate_schema
from ddim.data.build import SOURCES, LoaderConfig
from ddim.data.options import MEANINGS, Options
from ddim.denoisers import ResidualMLP, UNet, UNet1d
from ddim.denoisers.text_unet import TextUNet
from ddim.diffusion import SAMPLERS, NoiseSchedule
from ddim.diffusion.samplers.etas import ETA_SCHEDULES
from ddim.training.settings import CallbacksConfig, LossConfig, TrainConfig

REPOSITORY = Path(__file__).resolve().parents[1]
CONF, PAGE = REPOSITORY / "conf", REPOSITORY / "docs" / "configuration.md"
INTRODUCTION = """\
# Configuration

<!-- Made by `python -m tools.configuration_page` from the schemas and conf/; change those, not this page. -->

`group=option` chooses a file of `conf/`, `key=value` changes one value of what the files compose:

```text
python train.py dataset=cifar10 optimizer.lr=1e-4        # an option, a value
python evaluate.py sampler.steps=10,20 sampler.eta=0,1   # lists of the grid need no brackets, quotes or -m
python train.py --cfg job --resolve                      # what a command composes, before it is run
```

Later words win: the files of the groups, then `recipe`, `experiment` or `table`, and `debug`, then the command line.
Lists are written `[1,2,2]`, nothing is `null`, and `${dataset.tau}` is the value of that other setting.
A key that does not exist or a value out of range ends in one sentence and exit status 2.

Defaults are those of `python train.py` and `python evaluate.py` without arguments: the digits, their `recipe` included.
"""
# Arguments of the Trainer that conf/ sets; all others may be given as well.
TRAINER = {
    "accelerator": "auto, cpu, gpu, ...: where it runs.",
    "devices": "how many of them, or auto.",
    "strategy": "how several devices share the work; ddp.",
    "precision": "of the arithmetic: auto, 32-true, bf16-mixed, ...; auto is bf16-mixed where the hardware has it and "
    "the network gains, else 32-true; features are always measured in 32-true.",
    "max_steps": "optimizer steps of the training; -1 has no limit.",
    "gradient_clip_val": "largest norm of the gradient; 0 or null does not clip.",
    "accumulate_grad_batches": "batches that make one optimizer step.",
    "val_check_interval": "batches between validations, counted across epochs.",
    "check_val_every_n_epoch": "null: validations are counted in batches alone.",
    "limit_val_batches": "1.0 validates on all held-out images, 10 on ten batches.",
    "num_sanity_val_steps": "validation batches before training.",
    "log_every_n_steps": "steps between logged values.",
}
EXPLAINED = {
    "dataset": "The images. `evaluate.py` takes them from the checkpoint; what is typed goes over it.",
    "denoiser": "The network. Its default goes with the data set; `evaluate.py` takes it from the checkpoint.",
    "schedule": "How much signal is left at each timestep, ᾱ_t. `evaluate.py` takes it from the checkpoint.",
    "sampler": "How samples are drawn. `train.py` uses only `tau` and `clip_denoised`, for its pictures.",
    "objective": "What the network learns to predict, and at which noise levels. `train.py` only.",
    "guidance": "How a network with labels is led to them; docs/guidance.md. `evaluate.py` only.",
    "optimizer": "`train.py` only.",
    "recipe": "What goes with a data set besides its images: batch, learning rate, length, EMA. `train.py` only.",
    "experiment": "Presets of several groups.",
    "debug": "Short runs for finding mistakes, see [debugging](debugging.md). `train.py` only.",
    "hparams_search": "Searches for good settings with Optuna, see [sweeps](sweeps.md). `train.py` only.",
    "evaluation": "The questions that are asked of a trained network, and how. `evaluate.py` only.",
    "restoration": "What is damaged, and how it is restored, `evaluation=restoration` ([page](restoration.md)).",
    "table": "A table of the paper: its grid, and afterwards its numbers beside ours. `evaluate.py` only.",
    "callbacks": "What runs beside training. `train.py` only.",
    "trainer": "Arguments of Lightning's Trainer; any that is not listed may be given as `trainer.NAME=VALUE`.",
    "logger": "With any but `none`, numbers are also in the `csv` folder of the run.",
}
# What samplers have for themselves: type and meaning.
SAMPLER_OPTIONS = {
    "eta_schedule": (
        ", ".join((*ETA_SCHEDULES, "one number per step")),
        "what becomes of `eta` over the steps: the same in all; `eta` between 0.2 and 0.8 of the timesteps and 0 "
        "elsewhere; SA-Solver's τ instead of η, the same in all; or `eta` times a number of each step, noisiest first: "
        '`"sampler.eta_schedule=1 1 0.5 0 0"` for S = 5.',
    ),
    "order": (
        "1 to 4; 1 to 3 (unipc), 1 or 2 (sde)",
        "how many predictions of the network a step uses; 1 is ddim, but for unipc with its corrector.",
    ),
    "interpolates": ("eps, x0, v", "which prediction is extrapolated over a step."),
    "variant": ("bh1, bh2", "B(h) of UniPC: h, or exp(h) - 1."),
    "corrector": ("true, false", "whether each state is corrected with the prediction that is made from it, UniC."),
    "solver": ("name", "the deterministic sampler that goes down between the restarts."),
    "t_min": ("number", "the noise level σ/signal that a restart goes down to; the nearest timestep of τ."),
    "t_max": ("number", "the noise level that it goes up to again."),
    "restarts": ("whole number", "how often."),
    "restart_steps": ("whole number of at least 2", "the levels of a restart, both ends counted."),
}
SIMPLE = {
    **{int: "whole number", float: "number", bool: "true, false", str: "text", type(None): "null"},
    dict[str, Any]: "names with values",
}
Row = tuple[str, str, str, str]


def page() -> str:
    """The whole page."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        train, evaluate = compose("train"), compose("evaluate")
    parts = [INTRODUCTION]
    parts += ["## train.py\n", _table(_schema_rows(TrainConfig, train, "", groups=False))]
    for name, schema in (("loader", LoaderConfig), ("loss", LossConfig)):
        parts += [_about(schema), _table(_schema_rows(schema, train[name], f"{name}."))]
    parts += ["## evaluate.py\n", _table(_schema_rows(evaluate_schema(), evaluate, "", groups=False))]
    parts += ["## Groups\n", " · ".join(f"[`{name}`](#{name})" for name in EXPLAINED) + "\n"]
    for name, about in EXPLAINED.items():
        parts += [f"### {name}\n", f"{about}\n", _options(name), *_keys(name, train, evaluate)]
    return re.sub(r"\n{3,}", "\n\n", "\n".join(parts)).rstrip() + "\n"


def _keys(group: str, train: DictConfig, evaluate: DictConfig) -> Iterator[str]:
    """The tables of a group's keys."""
    if group == "dataset":
        yield _table(_dataset_rows())
    elif group == "denoiser":
        yield _table(_signature_rows(UNet.__init__, UNet.__doc__ or "", train.denoiser, "denoiser."))
        for option, network in (("mlp", ResidualMLP), ("unet_1d", UNet1d), ("unet_captioned_digits", TextUNet)):
            yield f"What `denoiser={option}` has:\n"
            file = OmegaConf.load(CONF / "denoiser" / f"{option}.yaml")
            assert isinstance(file, DictConfig)
            yield _table(_signature_rows(network.__init__, network.__doc__ or "", file, "denoiser."))
    elif group == "schedule":
        yield from _schedules()
    elif group == "trainer":
        arguments = inspect.signature(pl.Trainer.__init__).parameters
        values = {key: train.trainer.get(key, arguments[key].default) for key in TRAINER}
        yield _table([(f"trainer.{key}", "", _value(values[key]), text) for key, text in TRAINER.items()])
    elif group == "callbacks":
        for item in dataclasses.fields(CallbacksConfig):
            yield from _nested(
                _type_of(CallbacksConfig, item.name), train.callbacks[item.name], f"callbacks.{item.name}."
            )
    elif group in ("sampler", "guidance", "evaluation", "restoration", "objective", "optimizer", "logger"):
        trained = group in ("objective", "optimizer")
        schema, cfg = (TrainConfig, train) if trained else (evaluate_schema(), evaluate)
        yield from _nested(_type_of(schema, group), cfg[group], f"{group}.")
        if group == "sampler":
            yield "What single samplers have for themselves; of several, each takes those that it has.\n"
            yield _table(_own_options())


def _own_options() -> list[Row]:
    """The options that samplers have for themselves. Raises KeyError where nothing is said of one."""
    defaults: dict[str, dict[str, list[str]]] = {}
    for name, rule in SAMPLERS.items():
        for option, value in rule.options.items():
            defaults.setdefault(option, {}).setdefault(_value(value), []).append(name)
    return [
        (
            f"sampler.{option}",
            SAMPLER_OPTIONS[option][0],
            ", ".join(f"{value} ({', '.join(names)})" for value, names in values.items()),
            SAMPLER_OPTIONS[option][1],
        )
        for option, values in defaults.items()
    ]


def _nested(schema: type, cfg: DictConfig, prefix: str) -> Iterator[str]:
    """A schema's own keys, then those of the schemas in it."""
    yield _about(schema)
    yield _table(_schema_rows(schema, cfg, prefix))
    for item in dataclasses.fields(schema):
        inner = _type_of(schema, item.name)
        if dataclasses.is_dataclass(inner):
            yield from _nested(inner, cfg[item.name], f"{prefix}{item.name}.")


def _about(schema: type) -> str:
    text = inspect.cleandoc(schema.__doc__ or "").partition("Attributes:")[0].strip()
    return f"{' '.join(text.split())}\n" if text else ""


def _schema_rows(schema: type, cfg: Mapping[str, Any], prefix: str, groups: bool = True) -> list[Row]:
    """One row per key that is a value. Raises KeyError where the schema does not say what a key means."""
    meanings, rows = _meanings(schema.__doc__ or "", _names_around(schema)), []
    raw = OmegaConf.to_container(cfg, resolve=False) if isinstance(cfg, DictConfig) else cfg
    for item in dataclasses.fields(schema):
        kind = _type_of(schema, item.name)
        if dataclasses.is_dataclass(kind) or (not groups and kind == dict[str, Any]):
            continue
        stated, text = meanings[item.name]
        # No file says what is only gathered under one key, such as a sampler's own options.
        value = raw[item.name] if item.name in raw else getattr(schema(), item.name)
        rows.append((f"{prefix}{item.name}", stated or _kind(kind), _value(value), text))
    return rows


def _names_around(schema: type) -> dict[str, Any]:
    """What can be named where a schema, or one that it extends, is written; some are made while the program runs."""
    modules = [sys.modules[kind.__module__] for kind in reversed(schema.__mro__)]
    return {name: value for module in modules for name, value in vars(module).items()}


def _meanings(doc: str, names: Mapping[str, Any]) -> dict[str, tuple[str | None, str]]:
    """{key: (type in parentheses, meaning)} of the `Attributes:` or `Args:` of a docstring."""
    block = re.search(r"^( *)(?:Attributes|Args):\n(.*?)(?=\n\n|\Z)", inspect.cleandoc(doc), re.MULTILINE | re.DOTALL)
    entries = re.split(r"^    (?=\w)", block[2], flags=re.MULTILINE)[1:] if block else []
    found = {}
    for entry in entries:
        head = re.match(r"(\w+)(?: \((.*?)\))?:\s", entry)
        assert head is not None, entry
        text = " ".join(entry[head.end() :].split()).replace("``", "`")
        known = {name: ", ".join(names[name]) for name in re.findall(r"\bof ([A-Z]{3,})\b", text) if name in names}
        for name, values in known.items():
            text = re.sub(rf"\b{name}\b", values, text)
        found[head[1]] = (head[2], text)
    return found


def _type_of(schema: type, name: str) -> Any:
    return typing.get_type_hints(schema)[name]


def _kind(kind: Any) -> str:
    if isinstance(kind, types.UnionType):
        return " or ".join(_kind(part) for part in typing.get_args(kind))
    if typing.get_origin(kind) is list:
        return f"list: {_kind(typing.get_args(kind)[0])}"
    return SIMPLE[kind]


def _value(value: Any) -> str:
    if isinstance(value, str):
        default = re.fullmatch(r"\$\{oc\.(select|env):([\w.]+),(.*)\}", value)
        if default and default[1] == "env":
            return f"`{default[3]}`, or the environment's `{default[2]}`"
        if default:
            value = f"${{{default[2]}}}" if default[3] == "'???'" else default[3]
    return f"`{_plain(value)}`"


def _plain(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, Mapping):
        return ", ".join(f"{key}: {_plain(item)}" for key, item in value.items()) or "{}"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return f"[{', '.join(map(_plain, value))}]"
    return str(value)


def _table(rows: Sequence[Row]) -> str:
    heads = ("key", "type", "default", "meaning")
    # A column that says nothing is left out.
    shown = [n for n in range(len(heads)) if n == 0 or any(row[n] for row in rows)]
    lines = [[heads[n] for n in shown], ["---"] * len(shown)]
    lines += [[f"`{row[0]}`", *(row[n].replace("|", "\\|") for n in shown[1:])] for row in rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _options(group: str) -> str:
    """The files of a group: what each says of itself, and what it sets."""
    lines = ["| option | | sets |\n", "| --- | --- | --- |\n"]
    for path in sorted((CONF / group).glob("*.yaml")):
        text, _, rest = path.read_text().partition("\n")
        if text.startswith("# @package"):
            text = rest.partition("\n")[0]
        about = text.removeprefix("# ") if text.startswith("# ") else ""
        content = _plain_file(path)
        keys = [] if group in ("evaluation", "callbacks", "trainer") and path.stem in ("grid", "default") else content
        sets = [_setting(key, content[key]) for key in keys if key not in ("defaults", "name")]
        lines.append(
            f"| `{group}={path.stem}` | {about} | {' '.join(f'`{item}`' for part in sets for item in part)} |\n"
        )
    if group in ("dataset", "callbacks", "logger"):
        # What these set is in the table of the keys.
        lines = [re.sub(r" \|[^|]*\|$", " |", line.rstrip("\n")) + "\n" for line in lines]
    return "".join(lines)


def _setting(key: str, value: Any) -> list[str]:
    if isinstance(value, dict):
        return [text for name, item in value.items() for text in _setting(f"{key}.{name}", item)]
    return [f"{key}={_value(value).strip('`') if isinstance(value, str) else _plain(value)}"]


def _dataset_rows() -> list[Row]:
    """Every setting of every data set; where their defaults differ, with whose they are."""
    configs = {path.stem: _plain_file(path) for path in sorted((CONF / "dataset").glob("*.yaml"))}
    kinds = {
        **{"name": ", ".join(SOURCES), "label": "text or null", "features": "text", "tau": "as sampler.tau"},
        **{"random_flip": "true, false", "in_memory": "auto, true, false", "table": "two numbers"},
        **{"metrics": "names", "grid_images": "whole number", "captions": "classes or null"},
        **{"predicts": "eps, x0, v", "parts": "names", "likelihood_images": "whole number or null"},
    }
    for config in configs.values():
        options = Options({key: "DIR" if value == "???" else value for key, value in config.items()})
        SOURCES[config["name"]](options, Path("cache"))
        kinds = options.kinds | kinds
    rows = []
    for key, meaning in MEANINGS.items():
        whose: dict[str, list[str]] = {}
        for name, config in configs.items():
            if key in config:
                whose.setdefault("required" if config[key] == "???" else _value(config[key]), []).append(name)
        all_alike = len(whose) == 1 and len(next(iter(whose.values()))) == len(configs)
        default = "; ".join(value if all_alike else f"{value} ({', '.join(names)})" for value, names in whose.items())
        rows.append((f"dataset.{key}", kinds[key], "its own" if key == "name" else default, meaning))
    return rows


def _plain_file(path: Path) -> dict[str, Any]:
    content = OmegaConf.to_container(OmegaConf.load(path))
    assert isinstance(content, dict), path
    return {str(key): value for key, value in content.items()}


def _signature_rows(function: Any, doc: str, cfg: DictConfig, prefix: str) -> list[Row]:
    meanings = _meanings(doc, {})
    hints = {name: parameter for name, parameter in inspect.signature(function).parameters.items() if name in meanings}
    raw = OmegaConf.to_container(cfg, resolve=False)
    assert isinstance(raw, dict)
    kinds = {
        "int": "whole number",
        "float": "number",
        "bool": "true, false",
        "int | None": "whole number or null",
        "str | None": "text or null",
        "Sequence[int]": "list: whole number",
        "Sequence[int] | None": "list: whole number, or null",
    }
    return [
        (
            f"{prefix}{name}",
            kinds[str(parameter.annotation)],
            _value(raw.get(name, parameter.default)),
            meanings[name][1],
        )
        for name, parameter in hints.items()
    ]


def _schedules() -> Iterator[str]:
    for path in sorted((CONF / "schedule").glob("*.yaml")):
        constructor = getattr(NoiseSchedule, path.stem)
        text = " ".join(inspect.cleandoc(constructor.__doc__ or "").split())
        names = ", ".join(f"`schedule.{name}`" for name in inspect.signature(constructor).parameters)
        yield f"* `{path.stem}` ({names}): {text}"
    yield ""


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    print(f"{PAGE.relative_to(REPOSITORY)} written")
