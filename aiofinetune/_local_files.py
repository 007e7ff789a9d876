"""Local files, opened and written off the event loop."""

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
"""Bytes of a download that are taken at once, and of an upload that are given at once: as many as aiohttp takes from a
socket, so that none are copied."""

HOP: Final = 1 << 20
"""Bytes that are read or written in one hop to a thread. With a quarter of it an upload takes half as much again of
the CPU."""


@asynccontextmanager
async def opened(path: Path, mode: str, named: Path | None = None) -> AsyncIterator[BinaryIO]:
    """Open a file in binary `mode`, and close it, in a thread.

    Raises:
        LocalFileError: It cannot be opened.
    """
    files: list[IO[bytes]] = []
    try:
        # Cancelled or not, the thread opens it: hence the list.
        await _in_thread(named or path, lambda: files.append(_open(path, mode)))
        yield files[0]  # type: ignore[misc]  # it is what BinaryIO stands for
    finally:
        for file in files:
            await in_thread(None, file.close)


def _target(path: Path) -> Path:
    """The file that a path leads to, which may be replaced; a device, or the like, may not."""
    try:
        target = path.resolve()
        check_regular(target)
    except (OSError, ValueError, RuntimeError) as error:
        raise LocalFileError(f"{path}: {getattr(error, 'strerror', None) or error}") from error
    return target


def check_regular(path: Path) -> None:
    """Refuse a pipe or a device: one without another end would hold up whoever opens it for ever, cancelled or not.

    Raises:
        OSError: It is one.
    """
    if path.exists() and not path.is_file():
        raise OSError(errno.EINVAL, "is no regular file")


def _open(path: Path, mode: str) -> IO[bytes]:
    check_regular(path)
    return path.open(mode)


async def _in_thread(path: Path, function: Callable[..., object], *arguments: object) -> None:
    try:
        await in_thread(None, lambda: function(*arguments))
    except (OSError, ValueError) as error:
        raise LocalFileError(f"{path}: {getattr(error, 'strerror', error)}") from error


def _replace(partial: Path, path: Path) -> None:
    """Give a whole file its name, and the permissions of the one that it replaces."""
    if path.exists():
        shutil.copymode(path, partial)
    partial.replace(path)


def _flush_to_disk(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())


async def save(path: Path, read: Callable[[], Awaitable[bytes]]) -> None:
    """Write what `read` gives to a file that appears under its name only when it is whole.

    Args:
        path: Where to. A file that is there already is replaced.
        read: Gives the next piece; none at the end.

    Raises:
        LocalFileError: The file cannot be written.
    """
    path = await asyncio.to_thread(_target, path)
    partial = path.parent / f".{secrets.token_hex(8)}.part"
    try:
        async with opened(partial, "xb", named=path) as file:
            # The C library keeps memory at hand for blocks as large as the largest that was ever freed: without this, a
            # process's first download asks the kernel for each, and takes half as much again of the CPU.
            bytearray(HOP)
            pieces: list[bytes] = []
            size = 0
            while piece := await read():
                pieces.append(piece)
                size += len(piece)
                if size >= HOP:
                    await _in_thread(path, file.writelines, pieces)
                    pieces = []
                    size = 0
            await _in_thread(path, file.writelines, pieces)
            await _in_thread(path, _flush_to_disk, file)
        await _in_thread(path, _replace, partial, path)
    except BaseException:
        with contextlib.suppress(OSError, ValueError):
            await in_thread(None, lambda: partial.unlink(missing_ok=True))
        raise
