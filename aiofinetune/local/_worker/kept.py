"""Open models that a worker keeps from one attempt to the next. Several processes of one worker may share them."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import functools
import os
import shutil
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Final

from aiofinetune._threads import in_thread

MOST_KEPT: Final = 2
"""The number of models that are kept, apart from those that other processes use."""

_LOOK_INTERVAL: Final = 0.2
"""Seconds between looks whether another process has fetched a model."""


class KeptModels:
    """The folders of models, each with a name that tells its content from that of every other.

    A process that uses a folder holds a shared lock on it, and one that fills or removes it an exclusive one. Locks end
    with their process, so what a killed one has begun is begun again.

    Args:
        open_parent: Returns the folder that they are in. It is called when the first model is used.
    """

    def __init__(self, open_parent: Callable[[], Path]) -> None:
        self._open_parent = open_parent

    @contextlib.asynccontextmanager
    async def used(self, name: str, fetch: Callable[[Path], Awaitable[None]]) -> AsyncIterator[Path]:
        """Return a context manager of the folder of a model, which is not removed during the block.

        Args:
            name: The name of the model's folder.
            fetch: Fills the folder; it is called if no process of this worker has done so yet.
        """
        parent = await in_thread(None, self._open_parent)
        folder, partial = parent / name, parent / f"{name}.partial"
        # What these functions do takes no time, and in a thread, a cancellation could leave a lock behind.
        while (lock := _lock(folder, fcntl.LOCK_SH)) is None:
            if (filling := _begin(folder, partial)) is None:
                await asyncio.sleep(_LOOK_INTERVAL)
                continue
            try:
                await fetch(partial)
                await in_thread(None, functools.partial(partial.rename, folder))
            finally:
                os.close(filling)
        try:
            await in_thread(None, functools.partial(_remove_old, folder))
            yield folder
        finally:
            os.close(lock)


def _lock(folder: Path, kind: int) -> int | None:
    """Lock a folder; return the descriptor that holds the lock, or None if it is not there or another one holds it."""
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    with contextlib.suppress(BlockingIOError, FileNotFoundError):
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
        # Before it was locked, another process may have renamed or removed it.
        if folder.stat().st_ino == os.fstat(descriptor).st_ino:
            now = time.time_ns()
            os.utime(descriptor, ns=(now, now))  # The kernel's own time is too coarse to put them in order.
            return descriptor
    os.close(descriptor)
    return None


def _begin(folder: Path, partial: Path) -> int | None:
    """Begin to fill a folder under another name; return its lock, or None if another process does, or has done so."""
    if folder.exists():
        return None
    partial.mkdir(exist_ok=True)
    lock = _lock(partial, fcntl.LOCK_EX)
    if lock is not None and folder.exists():
        partial.rmdir()
        os.close(lock)
        return None
    return lock


def _remove_old(used: Path) -> None:
    """Remove the models that nobody uses, except for the one in use and those that were used last."""
    others = [folder for folder in used.parent.iterdir() if folder != used and folder.suffix != ".partial"]
    others.sort(key=lambda folder: folder.stat().st_mtime, reverse=True)
    for folder in others[MOST_KEPT - 1 :]:
        if (lock := _lock(folder, fcntl.LOCK_EX)) is not None:
            shutil.rmtree(folder, ignore_errors=True)
            os.close(lock)
