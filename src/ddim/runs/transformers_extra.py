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
        UserError: the package is not installed, there is no such model, or it is not what `read` takes it for.
    """
    if importlib.util.find_spec("transformers") is None:
        raise UserError(f"denoiser.encoder={name} needs the package transformers: pip install -e '.[text]'")
    import transformers

    said = transformers.utils.logging
    said.disable_progress_bar()
    before = said.get_verbosity()
    # What is wrong is one sentence, and not a table above it.
    said.set_verbosity_error()
    try:
        return read(transformers)
    except UserError:
        raise
    # Which errors a folder can cause is known to neither of the packages that read it.
    except Exception as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise UserError(
            f"denoiser.encoder={name} cannot be read: give the folder or the hub's name of a text model with its "
            f"tokenizer and safetensors ({reason})."
        ) from error
    finally:
        said.set_verbosity(before)
