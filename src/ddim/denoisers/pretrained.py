"""Denoisers from files: a run directory or a checkpoint of this project.

Files are data: they are read with ``weights_only=True``, their checksums are verified, and whatever is not a
checkpoint is refused in one sentence without executing anything that it holds.
"""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.serialization import get_unsafe_globals_in_checkpoint

from ddim.denoisers.unet import UNet, build_denoiser
from ddim.errors import UserError

WEIGHTS = ("ema", "raw")
FORMAT = 1
LAST_CHECKPOINT = Path("checkpoints", "last.ckpt")
PREFIX = "denoiser."


def find_checkpoint(source: str | Path) -> Path:
    """The checkpoint file that ``source`` means: a file itself, or of a run directory its ``checkpoints/last.ckpt``.

    Raises:
        UserError: there is no such file or directory, or the directory holds no last checkpoint.
    """
    path = Path(source).expanduser()
    if path.is_file():
        return path
    if not path.is_dir():
        raise UserError(f"checkpoint {path} does not exist; give a run directory or a .ckpt file")
    checkpoint = path / LAST_CHECKPOINT
    if not checkpoint.is_file():
        raise UserError(
            f"directory {path} holds no {LAST_CHECKPOINT}; give a run directory that has saved a checkpoint, "
            "or a .ckpt file"
        )
    return checkpoint


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read a checkpoint file of this project into memory, on the CPU, without executing anything in it.

    Returns:
        The Lightning checkpoint: ``["ddim"]["config"]`` describes dataset, denoiser and schedule, ``["state_dict"]``
        and (with EMA) ``["current_model_state"]`` hold the weights.

    Raises:
        UserError: the file is missing, empty, truncated, damaged, of another kind or version, or holds objects other
            than tensors and plain values.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise UserError(f"checkpoint {path} does not exist or is not a file; give a .ckpt file")
    try:
        if path.stat().st_size == 0:
            raise UserError(f"checkpoint {path} is empty; give one that was saved completely")
        with path.open("rb"):
            pass
    except OSError as error:
        raise UserError(f"checkpoint {path} cannot be opened ({error.strerror}); give a readable file") from error
    _check_archive(path)
    checkpoint = _load_archive(path)

    header = checkpoint.get("ddim") if isinstance(checkpoint, dict) else None
    if not isinstance(header, Mapping) or "format" not in header:
        raise UserError(
            f'{path} is not a checkpoint of this project (it has no "ddim" entry); give one of its .ckpt files'
        )
    if header["format"] != FORMAT:
        raise UserError(
            f"checkpoint {path} has format {header['format']!r}, this version reads format {FORMAT}; "
            "use the version that wrote it"
        )
    config = header.get("config")
    if not isinstance(config, Mapping) or not isinstance(config.get("denoiser"), Mapping):
        raise UserError(f"checkpoint {path} does not describe its denoiser; give one saved by train.py")
    return checkpoint


def available_weights(checkpoint: Mapping[str, Any]) -> tuple[str, ...]:
    """Which weights a checkpoint of ours holds: ("ema", "raw") if trained with EMA, else ("raw",)."""
    return WEIGHTS if "current_model_state" in checkpoint else ("raw",)


def denoiser_from_checkpoint(
    checkpoint: Mapping[str, Any],
    weights: str = "ema",
    device: str | torch.device = "cpu",
    *,
    origin: str | Path = "the checkpoint",
) -> UNet:
    """The float32 denoiser, in eval mode, of a checkpoint that :func:`read_checkpoint` returned.

    ``origin`` names the file in messages. The denoiser may share memory with the checkpoint.

    Raises:
        ValueError: ``weights`` is neither "ema" nor "raw".
        UserError: the checkpoint has no such weights, or they do not fit the architecture it describes.
    """
    if weights not in WEIGHTS:
        raise ValueError(f"weights must be one of {', '.join(WEIGHTS)}, got {weights!r}")
    available = available_weights(checkpoint)
    if weights not in available:
        # Raw weights in place of EMA cost a factor of four in FID; that must never happen silently.
        raise UserError(f"{origin} holds no EMA weights (trained without); take the raw ones: evaluation.weights=raw")
    # The EMA callback saves its average under the ordinary name and moves the raw weights aside.
    key = "current_model_state" if weights == "raw" and "ema" in available else "state_dict"
    state = _denoiser_state(checkpoint.get(key), origin)
    try:
        with torch.device("meta"):
            denoiser = build_denoiser(checkpoint["ddim"]["config"]["denoiser"])
    except (ValueError, TypeError) as error:
        raise UserError(f"{origin} describes a denoiser that cannot be built: {error}") from error
    _check_fit(denoiser, state, origin)
    denoiser.load_state_dict(state, assign=True)
    return denoiser.to(device).eval()


def load_denoiser(source: str | Path, weights: str = "ema", device: str | torch.device = "cpu") -> UNet:
    """Load a trained denoiser.

    Args:
        source: a run directory (its last checkpoint is taken) or a checkpoint file of this project.
        weights: "ema" for the exponential moving average, "raw" for the weights the optimizer holds.
        device: where the denoiser goes.

    Returns:
        The float32 denoiser in eval mode.

    Raises:
        ValueError: ``weights`` is neither "ema" nor "raw".
        UserError: there is no such file, it is not an intact checkpoint of this project, or it has no such weights.
    """
    path = find_checkpoint(source)
    return denoiser_from_checkpoint(read_checkpoint(path), weights, device, origin=path)


def _check_archive(path: Path) -> None:
    # torch.load does not verify checksums: without this, a flipped bit would silently become a wrong weight.
    try:
        if not zipfile.is_zipfile(path):
            raise UserError(f"{path} is not a checkpoint, or only the beginning of one; give a complete .ckpt file")
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
    except UserError:
        raise
    except Exception as error:  # damaged bytes can break a parser in any way
        raise UserError(f"checkpoint {path} is damaged ({error}); give an intact copy") from error
    if damaged is not None:
        raise UserError(f"checkpoint {path} is damaged (wrong checksum of {damaged!r}); give an intact copy")


def _load_archive(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # foreign bytes can break a parser in any way
        raise UserError(
            f"{path} is not a checkpoint of this project: it cannot be read as tensors and plain values"
            f"{_refused_objects(path)}, and nothing else is accepted; give one of this project's .ckpt files"
        ) from error


def _refused_objects(path: Path) -> str:
    try:
        names = get_unsafe_globals_in_checkpoint(str(path))
    except Exception:  # only decorates the message of a file already known to be unreadable
        return ""
    return f" (it asks for {', '.join(sorted(names)[:3])})" if names else ""


def _denoiser_state(state_dict: Any, origin: str | Path) -> dict[str, Tensor]:
    if not isinstance(state_dict, Mapping):
        raise UserError(f"{origin} holds no weights; give a checkpoint saved by train.py")
    state = {
        name.removeprefix(PREFIX): value.to(torch.float32)
        for name, value in state_dict.items()
        if isinstance(name, str) and name.startswith(PREFIX) and isinstance(value, Tensor)
    }
    if not state:
        raise UserError(f"{origin} holds no denoiser weights; give a checkpoint saved by train.py")
    return state


def _check_fit(denoiser: UNet, state: Mapping[str, Tensor], origin: str | Path) -> None:
    expected = {name: tuple(value.shape) for name, value in denoiser.state_dict().items()}
    found = {name: tuple(value.shape) for name, value in state.items()}
    problems = [f"{name} is missing" for name in expected if name not in found]
    problems += [f"{name} is not expected" for name in found if name not in expected]
    problems += [
        f"{name} has shape {found[name]} instead of {shape}"
        for name, shape in expected.items()
        if name in found and found[name] != shape
    ]
    if problems:
        more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise UserError(
            f"the weights in {origin} do not fit the denoiser it describes: {', '.join(problems[:3])}{more}"
        )
