"""The temporary folders of a worker. Each is locked, so that those that a killed worker left are found and removed."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

ATTEMPT: Final = "aiofinetune-attempt-"
MODELS: Final = "aiofinetune-models-"
"""How the names begin of the folders of attempts, and of the models that are kept between them."""


@contextlib.contextmanager
def temporary_folder(prefix: str) -> Iterator[Path]:
    """Return a context manager of a new folder, which is removed at the end, and by `remove_abandoned` if not.

    Args:
        prefix: How its name begins: `ATTEMPT` or `MODELS`.
    """
    with contextlib.ExitStack() as stack:
        # Until it is locked, another process may take the new folder for an abandoned one, and remove it.
        while True:
            folder = Path(tempfile.mkdtemp(prefix=prefix))
            with contextlib.suppress(BlockingIOError, FileNotFoundError):
                stack.enter_context(_locked(folder))
                if folder.exists():
                    break
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        yield folder


def remove_abandoned() -> None:
    """Remove the folders of this user whose workers were killed."""
    parent = Path(tempfile.gettempdir())
    for folder in (*parent.glob(f"{ATTEMPT}*"), *parent.glob(f"{MODELS}*")):
        with contextlib.suppress(OSError):
            if folder.is_symlink() or folder.stat().st_uid != os.getuid():
                continue
            with _locked(folder):
                shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Lock a folder for as long as this process lives.

    Raises:
        BlockingIOError: Another process has locked it.
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(descriptor)
