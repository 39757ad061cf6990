"""Paths as users type them."""

from __future__ import annotations

import os
from pathlib import Path

from ddim.errors import UserError


def usable_path(given: str | os.PathLike[str], key: str) -> Path:
    """`given` with ~ expanded; whether anything is there is not asked.

    `key` is what messages call the setting.

    Raises:
        UserError: nobody could look there: the name is too long, or a folder on the way is closed to us.
    """
    path = Path(os.path.expanduser(given))
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        pass
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        shown = str(given) if len(str(given)) <= 200 else f"{str(given)[:200]}..."
        raise UserError(f"{key}={shown!r} cannot be opened ({reason}); give a path that can be read") from error
    return path
