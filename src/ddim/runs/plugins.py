"""Loads what a user has written to extend this package, as the environment variable DDIM_PLUGINS names it.

A comma-separated list of Python files or modules; importing them registers things (`ddim.extending`). The variable is
the user's own, as PYTHONPATH is: no configuration, checkpoint or run directory can name code to load. Every process
inherits it, so the jobs of a sweep and the processes of a run know what the first one knows.

Light on purpose: without plugins nothing is imported.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import sys
from pathlib import Path

from ddim.errors import UserError

VARIABLE = "DDIM_PLUGINS"
_loaded: set[str] = set()


def load_plugins() -> None:
    """Import every plugin that is not imported yet.

    Raises:
        UserError: one of them is not there or fails; the sentence says where.
    """
    for name in filter(None, (part.strip() for part in os.environ.get(VARIABLE, "").split(","))):
        if name not in _loaded:
            _load(name)
            _loaded.add(name)


def _load(name: str) -> None:
    try:
        if not name.endswith(".py"):
            importlib.import_module(name)
            return
        path = Path(name).expanduser().resolve()
        if not path.is_file():
            raise UserError(f"{VARIABLE}={name} is not a file.")
        # Two files of one name must not be taken for each other, nor for an installed module.
        module_name = f"ddim_plugin_{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
        spec = importlib.util.spec_from_file_location(module_name, path)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[module_name] = module
        spec.loader.exec_module(module)
    except UserError:
        raise
    except Exception as error:
        if os.environ.get("HYDRA_FULL_ERROR") == "1":
            raise
        raise UserError(
            f"{VARIABLE}={name} cannot be loaded: {type(error).__name__}: {error}; HYDRA_FULL_ERROR=1 shows where."
        ) from error
