"""Directories that diffusers wrote: a pipeline (`model_index.json`, `unet/`, `scheduler/`) or a UNet2DModel alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

from ddim.denoisers.formats.contents import UNSTATED, Pretrained
from ddim.denoisers.formats.diffusers_config import (
    EMA_KEYS,
    OUR_WEIGHTS_KEY,
    UNET_CLASS,
    denoiser_config,
    prediction,
    schedule_config,
)
from ddim.denoisers.formats.torch_file import printable, read_torch_file, reason_of
from ddim.denoisers.formats.weights import in_our_names, unet_of
from ddim.errors import UserError
from ddim.runs.layout import STATISTICS_FILE

INDEX = "model_index.json"
CONFIG = "config.json"
SCHEDULER_CONFIGS = (Path("scheduler", "scheduler_config.json"), Path("scheduler_config.json"))
SAFETENSORS = "diffusion_pytorch_model.safetensors"
PICKLED = "diffusion_pytorch_model.bin"
# Where a model may lie inside a directory. The EMA copy is what diffusers' training example saves beside the raw model.
MODEL, EMA_MODEL = Path("unet"), Path("unet_ema")


def is_diffusers(directory: Path) -> bool:
    """Whether a directory has the layout of a diffusers pipeline or model."""
    return any((directory / name).is_file() for name in (INDEX, CONFIG, MODEL / CONFIG, EMA_MODEL / CONFIG))


def from_diffusers(directory: Path, origin: str) -> Pretrained:
    """`Pretrained` from a diffusers pipeline or model directory.

    The weights are "ema" where their configuration holds the settings of diffusers' EMAModel, what our own export noted
    where it made the directory, and otherwise "unstated"; of `unet/` beside `unet_ema/` they are "raw".

    Raises:
        UserError: a file is missing or damaged, or the model is not one that our UNet can represent.
    """
    if (directory / INDEX).is_file():
        _check_pipeline(_read_json(directory / INDEX, origin), origin)
    places = [place for place in (EMA_MODEL, MODEL) if (directory / place / CONFIG).is_file()] or [Path()]
    if not (directory / places[0] / CONFIG).is_file():
        raise UserError(f"{origin} holds neither {MODEL / CONFIG} nor {CONFIG}; give a complete diffusers directory")

    configs: list[dict[str, Any]] = []
    states: dict[str, dict[str, Tensor]] = {}
    for place in places:
        given = _read_json(directory / place / CONFIG, origin)
        # A model beside its EMA copy is the raw one, whatever it says.
        label = "ema" if place == EMA_MODEL else "raw" if len(places) > 1 else _label(given)
        state = _read_weights(directory / place, origin)
        configs.append(denoiser_config(given, origin))
        states[label] = in_our_names(state, unet_of(configs[-1], state, origin), "diffusers", origin)
    if configs[0] != configs[-1]:
        raise UserError(f"{origin} holds two different networks, {EMA_MODEL} and {MODEL}; give one of the two folders")
    schedules = [directory / name for name in SCHEDULER_CONFIGS if (directory / name).is_file()]
    beside = tuple(sorted(directory.glob(STATISTICS_FILE.format("*"))))
    if not schedules:
        return Pretrained(origin, "diffusers", configs[0], None, None, states, statistics=beside)
    given = _read_json(schedules[0], origin)
    schedule = schedule_config(given, origin)
    return Pretrained(
        origin, "diffusers", configs[0], schedule, None, states, predicts=prediction(given), statistics=beside
    )


def _label(given: dict[str, Any]) -> str:
    if given.get(OUR_WEIGHTS_KEY) in ("ema", "raw"):
        return given[OUR_WEIGHTS_KEY]
    return "ema" if any(key in given for key in EMA_KEYS) else UNSTATED


def _check_pipeline(index: dict[str, Any], origin: str) -> None:
    parts = {key: value for key, value in index.items() if not key.startswith("_") and value not in (None, False)}
    extra = [key for key, value in parts.items() if key not in ("unet", "scheduler") and value != [None, None]]
    unet = parts.get("unet")
    if extra or not isinstance(unet, list) or unet[-1:] != [UNET_CLASS]:
        found = f"has also {', '.join(extra)}" if extra else f"has {unet!r} as unet"
        raise UserError(
            f"{origin} is not a pipeline of one {UNET_CLASS} that denoises images: {INDEX} {printable(found)}"
        )


def _read_json(path: Path, origin: str) -> dict[str, Any]:
    try:
        loaded = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(
            f"{path.name} in {origin} cannot be read as JSON ({reason_of(error)}); give an intact copy"
        ) from error
    if not isinstance(loaded, dict):
        raise UserError(f"{path.name} in {origin} is not a JSON object; give an intact copy")
    return loaded


def _read_weights(directory: Path, origin: str) -> dict[str, Tensor]:
    if (directory / SAFETENSORS).is_file():
        try:
            return load_file(directory / SAFETENSORS)
        except Exception as error:  # damaged bytes can break a parser in any way
            raise UserError(
                f"{SAFETENSORS} in {origin} is damaged ({reason_of(error)}); give an intact copy"
            ) from error
    if (directory / PICKLED).is_file():
        loaded = read_torch_file(directory / PICKLED)
        if not isinstance(loaded, dict):
            raise UserError(f"{PICKLED} in {origin} holds no state dict but a {type(loaded).__name__}")
        return loaded
    if any(directory.glob("diffusion_pytorch_model.*.index.json")):
        raise UserError(
            f"the weights in {origin} are split into several files, which is not read here; save them as one with "
            "diffusers' save_pretrained(..., max_shard_size='100GB')"
        )
    raise UserError(f"{origin} holds no weights beside its {CONFIG}: neither {SAFETENSORS} nor {PICKLED}")
