"""Writing files so that a name always holds a whole file, whatever kills the process; what a full disk is told as."""

from __future__ import annotations

import errno
import logging
import os
import secrets
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from ddim.errors import UserError

if TYPE_CHECKING:
    from PIL import Image


# Without the file's own name: Lightning reads version numbers from whatever is called `*ckpt_*` in a run directory.
UNFINISHED = ".unfinished-"
DISK_ERRORS = frozenset(
    getattr(errno, name)
    for name in ("ENOSPC", "EDQUOT", "EFBIG", "EROFS", "EIO", "EACCES", "EPERM")
    if hasattr(errno, name)
)


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A stream whose content becomes the file `path` at the end of the block: written beside it, synced, renamed.

    When the block or the disk fails, `path` is what it was before and nothing is left beside it. Killed in between, an
    unfinished file stays, which `remove_unfinished` takes away.

    Raises:
        OSError: naming `path`.
    """
    temporary = path.with_name(f"{UNFINISHED}{secrets.token_hex(4)}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "xb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, path)
    except OSError as error:
        # write() does not know its file, and nobody is helped by the name of a temporary one.
        if error.filename not in (None, str(temporary)):
            raise
        raise OSError(error.errno, error.strerror or str(error), str(path)) from error
    finally:
        temporary.unlink(missing_ok=True)


def write_atomically(*files: tuple[Path, bytes]) -> None:
    """Write files so that each is at any time whole, old or new: all temporaries first, then the renames."""
    with ExitStack() as renames:
        # The stack renames when all are on the disk, and the last one opened first.
        for path, content in reversed(files):
            stream = renames.enter_context(replacing(path))
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())


def save_picture(picture: Image.Image, path: Path, **options: Any) -> None:
    """`picture.save`, in the format that the name's ending says, whole or not at all."""
    with replacing(path) as stream:
        picture.save(stream, path.suffix[1:].upper(), **options)


def remove_unfinished(directory: Path) -> list[Path]:
    """Delete what killed processes left unfinished under `directory`. Returns what was deleted."""
    found = sorted(directory.rglob(f"{UNFINISHED}*"))
    for path in found:
        path.unlink(missing_ok=True)
    return found


@contextmanager
def disk_errors_as_sentence(directory: Path, how_to_go_on: Callable[[], str]) -> Iterator[None]:
    """Turn a full or read-only disk into a `UserError` that also says how to go on."""
    try:
        with _full_log_files():
            yield
    except OSError as error:
        if not _disk_error(error):
            raise
        where = error.filename or f"a file of {directory}"
        raise UserError(
            f"{where} cannot be written ({error.strerror}); the files that were there are whole. "
            f"Make room or give write permission, then {how_to_go_on()}."
        ) from error


@contextmanager
def _full_log_files() -> Iterator[None]:
    """Log files that cannot grow lose lines which the terminal shows; logging would print a traceback for each."""
    handle = logging.StreamHandler.handleError

    def tolerate(handler: logging.StreamHandler, record: logging.LogRecord) -> None:  # type: ignore[type-arg]
        error = sys.exc_info()[1]
        if not (isinstance(handler, logging.FileHandler) and _disk_error(error)):
            handle(handler, record)

    logging.StreamHandler.handleError = tolerate  # type: ignore[method-assign,assignment]
    try:
        yield
    finally:
        logging.StreamHandler.handleError = handle  # type: ignore[method-assign]


def _disk_error(error: BaseException | None) -> bool:
    return isinstance(error, OSError) and error.errno in DISK_ERRORS
