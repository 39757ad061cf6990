"""Models of the Hugging Face hub: fetches the few files of a diffusers UNet into a cache that then works offline, and
uploads a directory."""

from __future__ import annotations

import importlib.util
import os
import re
from pathlib import Path

from ddim.denoisers.formats.torch_file import reason_of
from ddim.errors import UserError
from ddim.runs.layout import STATISTICS_FILE

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(@[\w./-]+)?", re.ASCII)
# A mistyped file is not looked up on the hub.
FILE_SUFFIXES = (".ckpt", ".pt", ".pth", ".bin", ".safetensors", ".json")
FOLDERS = ("", "unet/", "unet_ema/")
DESCRIPTIONS = [
    *("model_index.json", "scheduler_config.json", "scheduler/scheduler_config.json"),
    STATISTICS_FILE.format("*"),
]
CONFIGS = [f"{folder}config.json" for folder in FOLDERS]
SAFETENSORS = [f"{folder}diffusion_pytorch_model.safetensors*" for folder in FOLDERS]
PICKLED = [f"{folder}diffusion_pytorch_model.bin*" for folder in FOLDERS]


def is_hub_id(source: str) -> bool:
    """Whether `source` has the form of a hub model: `owner/name`, or `owner/name@revision`."""
    return HUB_ID.fullmatch(source) is not None and ".." not in source and not source.endswith(FILE_SUFFIXES)


def fetch(source: str, cache_dir: Path | None = None) -> tuple[Path, str]:
    """The directory of a hub model, downloaded unless it is there already, and its name `owner/name@<commit>`.

    Args:
        source: what :func:`is_hub_id` accepts.
        cache_dir: where downloads go (its folder `hub`); None for the hub library's own place.

    Raises:
        UserError: huggingface_hub is not installed, or there is no such model, or no access to it.
    """
    missing = f"{source} is no file or folder here"
    try:
        import huggingface_hub
        from huggingface_hub.errors import (
            GatedRepoError,
            LocalEntryNotFoundError,
            RepositoryNotFoundError,
            RevisionNotFoundError,
        )
    except ImportError as error:
        raise UserError(
            f"{missing}, and reading it from the Hugging Face hub needs: pip install -e '.[hub]' "
            "(a local diffusers directory works without)"
        ) from error
    name, _, revision = source.partition("@")

    def snapshot(weights: list[str]) -> Path:
        folder = huggingface_hub.snapshot_download(
            name,
            revision=revision or None,
            cache_dir=None if cache_dir is None else Path(os.path.expanduser(cache_dir)) / "hub",
            allow_patterns=[*DESCRIPTIONS, *CONFIGS, *weights],
        )
        return Path(folder)

    try:
        folder = snapshot(SAFETENSORS)
        if not any(folder.glob("**/diffusion_pytorch_model.safetensors*")):
            folder = snapshot(PICKLED)
    except GatedRepoError as error:
        raise UserError(
            f"the hub model {name} needs its owner's permission; ask for it on its page and log in with `hf auth login`"
        ) from error
    except RepositoryNotFoundError as error:
        raise UserError(f"{missing}, and the Hugging Face hub has no public model {name}; check the name") from error
    except RevisionNotFoundError as error:
        raise UserError(f"the hub model {name} has no revision {revision}; leave out @{revision}") from error
    except LocalEntryNotFoundError as error:
        raise UserError(
            f"{missing}, and the Hugging Face hub cannot be reached and its cache does not hold it; connect to the "
            "network once, or give a local diffusers directory"
        ) from error
    except Exception as error:  # interrupted connections come as exceptions of several libraries
        raise UserError(
            f"the hub model {name} could not be downloaded ({reason_of(error)}); try again later"
        ) from error
    return folder, f"{name}@{folder.name}"


def check_hub_name(name: str) -> None:
    """Raises UserError where `name` is not `owner/name`, or huggingface_hub is not installed."""
    if not is_hub_id(name) or "@" in name:
        raise UserError(f"--push-to-hub {name} is not the name of a model on the hub; give OWNER/NAME")
    if importlib.util.find_spec("huggingface_hub") is None:
        raise UserError(f"--push-to-hub {name} needs the package huggingface_hub: pip install -e '.[hub]'")


def push(directory: Path, name: str, *, private: bool = False) -> str:
    """Upload the files of `directory` as the model `name`, which is made if there is none; returns its address.

    Raises:
        UserError: nobody is logged in, it belongs to others, or the hub cannot be reached; `directory` stays.
    """
    import huggingface_hub

    hub = huggingface_hub.HfApi()
    try:
        address = hub.create_repo(name, private=private, exist_ok=True)
        hub.upload_folder(folder_path=directory, repo_id=name, commit_message="Exported by ddim")
    except Exception as error:  # refusals and interrupted connections come as exceptions of several libraries
        status = getattr(getattr(error, "response", None), "status_code", None)
        refused = status in (401, 403) or isinstance(error, huggingface_hub.errors.LocalTokenNotFoundError)
        advice = "log in with `hf auth login` as somebody who may write there" if refused else "try again later"
        raise UserError(
            f"{directory} is written, but could not be uploaded as {name} ({reason_of(error)}); {advice}, "
            f"`hf upload {name} {directory}` is enough then"
        ) from error
    return str(address)
