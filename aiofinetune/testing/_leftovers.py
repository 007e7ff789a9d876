"""The folders that servers of tests leave in memory when their processes are killed."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import time
from pathlib import Path
from typing import Final

PREFIX: Final = "aiofinetune-testing-"
"""What the names of the folders begin with."""

_MIN_AGE: Final = 60.0
"""Seconds since a folder was made, or changed, for which it stays: its server may not have locked it yet, or may be
removing it."""


def remove_leftovers(parent: str) -> None:
    """Remove the folders of this user's servers that were killed.

    A server locks its folder while it runs (`aiofinetune.local._store.folder`), and the system unlocks it when the
    process ends, however it ends. What cannot be removed stays.

    Args:
        parent: Where the folders are. It must not be on another machine, whose locks some systems do not share.
    """
    for folder in Path(parent).glob(f"{PREFIX}*"):
        with contextlib.suppress(OSError):
            _remove_unless_used(folder)


def _remove_unless_used(folder: Path) -> None:
    opened = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        status = os.fstat(opened)
        if status.st_uid == os.getuid() and time.time() - status.st_mtime > _MIN_AGE:
            fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder)
    finally:
        os.close(opened)
