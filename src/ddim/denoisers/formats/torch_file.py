"""Reading what `torch.save` wrote, in either of its two file formats, as data: nothing in a file is ever executed."""

from __future__ import annotations

import re
import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch.serialization import get_unsafe_globals_in_checkpoint

from ddim.errors import UserError

ZIP_MAGIC = b"PK\x03\x04"
ACCEPTED = (
    "a run directory or .ckpt of this project, a checkpoint of the official DDIM or DDPM code in PyTorch "
    "(a state dict or its training list), or the directory of a diffusers UNet2DModel"
)


def read_torch_file(path: Path) -> Any:
    """The tensors and plain values in a file that `torch.save` wrote, on the CPU.

    Zip files are checked against their checksums; the older format, which public checkpoints still have, holds none.

    Raises:
        UserError: the file is missing, empty, truncated, damaged, of another kind, or holds anything else than
            tensors and plain values.
    """
    if not path.is_file():
        raise UserError(f"checkpoint {path} does not exist or is not a file; give {ACCEPTED}")
    try:
        with path.open("rb") as file:
            magic = file.read(len(ZIP_MAGIC))
    except OSError as error:
        raise UserError(f"checkpoint {path} cannot be opened ({error.strerror}); give a readable file") from error
    if not magic:
        raise UserError(f"checkpoint {path} is empty; give one that was saved completely")
    if magic == ZIP_MAGIC:
        _check_archive(path)
    try:
        with warnings.catch_warnings():
            # What torch remarks about unusual files is of no use to somebody who is told what is wrong with them.
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # foreign bytes can break a parser in any way
        raise UserError(
            f"{path} is not a checkpoint, or a damaged one: it cannot be read as tensors and plain values"
            f"{_refused_objects(path, error)}, and nothing else is accepted; give {ACCEPTED}"
        ) from error


def reason_of(error: Exception) -> str:
    """The first line of what a library says of an error, which may run to pages."""
    return printable((str(error).strip() or type(error).__name__).splitlines()[0])


def printable(text: str, limit: int = 300) -> str:
    """Text from a file as a message can show it: short, and without line breaks or control characters."""
    short = text if len(text) <= limit else f"{text[:limit]}..."
    return "".join(character if character.isprintable() else "?" for character in short)


def _check_archive(path: Path) -> None:
    # torch.load does not verify checksums: without this, a flipped bit would silently become a wrong weight.
    try:
        if not zipfile.is_zipfile(path):
            raise UserError(f"{path} is not a checkpoint, or only the beginning of one; give a complete file")
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
    except UserError:
        raise
    except Exception as error:  # damaged bytes can break a parser in any way
        raise UserError(f"checkpoint {path} is damaged ({reason_of(error)}); give an intact copy") from error
    if damaged is not None:
        raise UserError(
            f"checkpoint {path} is damaged (wrong checksum of {printable(repr(damaged))}); give an intact copy"
        )


def _refused_objects(path: Path, error: Exception) -> str:
    try:
        names = get_unsafe_globals_in_checkpoint(str(path))
    except Exception:  # this only decorates a message, and knows zip files only; for others torch names the first
        names = re.findall(r"GLOBAL (\S+)", str(error))
    return f" (it asks for {printable(', '.join(sorted(names)[:3]))})" if names else ""
