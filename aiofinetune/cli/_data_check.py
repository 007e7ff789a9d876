"""Look into data files before anything is sent."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

from aiofinetune.cli._data import progress_bar
from aiofinetune.data import Report, Rules, check_file
from aiofinetune.errors import LocalFileError


@contextlib.contextmanager
def looking_into(rules: Rules) -> Iterator[Callable[[str], Report]]:
    """Return a context manager of a function that checks a data file, in a thread that ends with the block.

    The function raises `LocalFileError` if the file cannot be read.
    """
    is_over = threading.Event()

    def look(file: str) -> Report:
        with progress_bar(Path(file)) as show:

            def progress(done: int, size: int) -> None:
                if is_over.is_set():
                    raise LocalFileError(f"{file}: the check was interrupted")
                show(done, size)

            return check_file(file, rules=rules, progress=progress)

    try:
        yield look
    finally:
        is_over.set()
