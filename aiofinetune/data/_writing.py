"""Write JSON Lines to a file that appears under its name only once it is complete, and never over the input."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from os import PathLike, fspath
from pathlib import Path
from typing import BinaryIO

from aiofinetune.data._catalog import CHECKS
from aiofinetune.data._json_rows import dumps
from aiofinetune.errors import DatasetError, LocalFileError


@contextmanager
def created(path: str | PathLike[str], inputs: Iterable[str | PathLike[str]], *, overwrite: bool) -> Iterator[BinaryIO]:
    """Return a context manager of a new file. If the block fails, nothing is left of it.

    Args:
        path: The file.
        inputs: The files that are read meanwhile.
        overwrite: Whether another file of that name may be replaced.

    Raises:
        LocalFileError: The file is one of the inputs, exists, or cannot be written.
    """
    target = Path(fspath(path))
    partial = target.parent / f".{secrets.token_hex(8)}.part"
    try:
        check_target(target, inputs, overwrite=overwrite)
        with ExitStack() as cleanup:
            file = cleanup.enter_context(partial.open("xb"))
            cleanup.callback(partial.unlink, missing_ok=True)
            yield file
            file.flush()
            os.fsync(file.fileno())
            check_target(target, inputs, overwrite=overwrite)
            partial.replace(target)
    except OSError as error:
        raise LocalFileError(f"{target}: {error.strerror or error}") from error


def check_target(path: str | PathLike[str], inputs: Iterable[str | PathLike[str]], *, overwrite: bool) -> None:
    """Check that a file may be written; see `created`.

    Raises:
        LocalFileError: The file is one of the inputs, or exists and may not be replaced.
    """
    target = Path(fspath(path))
    if not target.exists():
        return
    if any(are_one_file(target, it) for it in inputs):
        raise LocalFileError(f"{target}: is the input; give another file to write")
    if not overwrite:
        raise LocalFileError(f"{target}: exists; give another file, or pass overwrite=True")
    if not target.is_file():
        raise LocalFileError(f"{target}: is not a regular file")


def are_one_file(first: str | PathLike[str], second: str | PathLike[str]) -> bool:
    """Return whether two paths name one file, also by a link, and also if the file does not exist yet."""
    if os.path.realpath(first) == os.path.realpath(second):
        return True
    try:
        return Path(first).samefile(second)
    except OSError:  # One does not exist, so the other is another.
        return False


def json_line(path: str | PathLike[str], line: int, fields: Mapping[str, object]) -> bytes:
    """Return a row as a line.

    Args:
        path: The file that the row is from.
        line: Its line there.
        fields: The row.

    Raises:
        DatasetError: A text in it holds half of a surrogate pair.
    """
    try:
        return dumps(fields) + b"\n"
    except UnicodeEncodeError as error:
        raise DatasetError(fspath(path), line, f"{CHECKS['lone-surrogate'].says} Mend it first") from error
