"""Open and write local files without blocking the event loop."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import secrets
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import IO, BinaryIO, Final

from aiofinetune._threads import in_thread
from aiofinetune.errors import LocalFileError

PIECE: Final = 256 << 10
"""The number of bytes of a download that are read at once, and of an upload that are sent at once: as many as aiohttp
reads from a socket, so that nothing is copied."""

HOP: Final = 1 << 20
"""The number of bytes that are read or written in one call in a thread. With a quarter of that, an upload takes half as
much CPU time again."""


_WRITTEN_AT_ONCE: Final = 8 << 20
"""The number of bytes of a download that are written in one call in a thread. With half of that, a download takes a
twentieth more CPU time."""


@asynccontextmanager
async def opened(path: Path, mode: str, named: Path | None = None) -> AsyncIterator[BinaryIO]:
    """Open a file in binary `mode`, and close it on exit, both in a thread.

    Args:
        path: The file.
        mode: The mode.
        named: The path to show in an error; by default `path`.

    Raises:
        LocalFileError: The file cannot be opened, or what is left to write cannot be written.
    """
    files: list[IO[bytes]] = []
    try:
        # The thread opens the file even if this is cancelled. The result is kept in a list, so that it is closed below.
        await _in_thread(named or path, lambda: files.append(_open(path, mode)))
        yield files[0]  # type: ignore[misc]  # BinaryIO is the type of such files
    except BaseException:
        for file in files:
            # What could not be written fails again when the file is closed, which must not replace the first error.
            with contextlib.suppress(OSError):
                await in_thread(None, file.close)
        raise
    await _in_thread(named or path, files[0].close)


def _target(path: Path) -> Path:
    """Return the file that a path leads to, if it may be replaced: a device or a pipe may not."""
    try:
        # Links are followed, so that the file is replaced and not the link.
        target = path.resolve()
        check_regular(target)
    except (OSError, ValueError, RuntimeError) as error:
        raise LocalFileError(f"{path}: {getattr(error, 'strerror', None) or error}") from error
    return target


def check_regular(path: Path) -> None:
    """Refuse a pipe or a device. Opening a pipe without another end blocks its thread forever, even if cancelled.

    Raises:
        OSError: The path is not a regular file.
    """
    if path.exists() and not path.is_file():
        raise OSError(errno.EINVAL, "is not a regular file")


def no_file(path: str) -> LocalFileError:
    """Return the error that says why a path is no regular file."""
    return LocalFileError(f"{path}: {'is not a regular file' if Path(path).exists() else 'there is no such file'}")


def _open(path: Path, mode: str) -> IO[bytes]:
    check_regular(path)
    return path.open(mode)


async def _in_thread(path: Path, function: Callable[..., object], *arguments: object) -> None:
    try:
        await in_thread(None, lambda: function(*arguments))
    except (OSError, ValueError) as error:
        raise LocalFileError(f"{path}: {getattr(error, 'strerror', error)}") from error


def _replace(partial: Path, path: Path) -> None:
    """Rename a complete file to its final name, with the permissions of the file that it replaces."""
    if path.exists():
        shutil.copymode(path, partial)
    partial.replace(path)


def _flush_to_disk(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())


async def save(path: Path, read: Callable[[], Awaitable[bytes]]) -> None:
    """Write the pieces that `read` returns to a file that appears under its name only once it is complete.

    Args:
        path: The file. An existing file is replaced.
        read: Returns the next piece, or b"" at the end.

    Raises:
        LocalFileError: The file cannot be written.
    """
    path = await asyncio.to_thread(_target, path)
    # In the same folder, because a rename is atomic only within one file system.
    partial = path.parent / f".{secrets.token_hex(8)}.part"
    try:
        async with opened(partial, "xb", named=path) as file:
            pieces: list[bytes] = []
            size = 0
            while piece := await read():
                pieces.append(piece)
                size += len(piece)
                if size >= _WRITTEN_AT_ONCE:
                    await _in_thread(path, file.writelines, pieces)
                    pieces = []
                    size = 0
            await _in_thread(path, file.writelines, pieces)
            # Before the rename: after a power failure, the name must not stand for an empty file.
            await _in_thread(path, _flush_to_disk, file)
        await _in_thread(path, _replace, partial, path)
    except BaseException:
        with contextlib.suppress(OSError, ValueError):
            await in_thread(None, lambda: partial.unlink(missing_ok=True))
        raise
