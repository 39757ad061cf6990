"""Text encoders that others have trained, read with the package transformers, which is an extra."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any

from ddim.errors import UserError


def from_transformers(name: str, read: Callable[[Any], Any]) -> Any:
    """`read(transformers)`, which reads something of the model called `name`.

    Nothing is executed that a model brings, and weights are read from safetensors alone, by what `read` asks for.

    Raises:
        UserError: the package is not installed, or there is no such model.
    """
    if importlib.util.find_spec("transformers") is None:
        raise UserError(f"denoiser.encoder={name} needs the package transformers: pip install -e '.[text]'")
    import transformers

    transformers.utils.logging.disable_progress_bar()
    try:
        return read(transformers)
    except (OSError, ValueError, KeyError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"denoiser.encoder={name} cannot be read: give the folder or the hub's name of a text model with its "
            f"tokenizer and safetensors ({reason})."
        ) from error
