"""What can be uploaded: paths, bytes, files and iterators, read in pieces off the event loop."""

from __future__ import annotations

import asyncio
import inspect
import io
import os
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final, NamedTuple, Protocol, TypeAlias

from aiofinetune._local_files import HOP, opened
from aiofinetune.errors import FineTuneError, LocalFileError, RequestInvalid


class SupportsRead(Protocol):
    """A file, or any object with the same `read`, which may be a coroutine, like that of an ``UploadFile``."""

    def read(self, size: int, /) -> bytes | Awaitable[bytes]:
        """Return the next bytes, at most `size`, or b"" at the end."""
        ...


Source: TypeAlias = str | os.PathLike[str] | bytes | SupportsRead | AsyncIterable[bytes]
"""What can be uploaded: a path, bytes, an object that is read like a file in binary mode, or an iterator of pieces."""


class Content(NamedTuple):
    """The bytes of a source, in pieces.

    Args:
        name: The name of the file; None if it has none.
        size: The length in bytes; None if it is unknown.
        read: Returns the next piece, or b"" at the end.
        rewind: Goes back to the first piece, or to so many bytes after its start; None if that is not possible.
        file: The file behind it, at the first piece, to be read in a thread; None if it can be read only once.
    """

    name: str | None
    size: int | None
    read: Callable[[], Awaitable[bytes]]
    rewind: Callable[[int], Awaitable[object]] | None
    file: SupportsRead | None = None


@asynccontextmanager
async def opened_source(source: Source) -> AsyncIterator[Content]:
    """Open a source for an upload, and close it if it was opened here.

    Raises:
        LocalFileError: The file at a path cannot be opened.
        RequestInvalid: The source cannot be read as bytes, or its position is at its end.
    """
    match source:
        case bytes():
            yield await _content_of_file(io.BytesIO(source), None)
        case str() | os.PathLike():
            path = Path(os.fsdecode(source))
            await _check_path(str(path))
            async with opened(path, "rb") as file:
                yield await _content_of_file(file, path.name)
        # An async file is iterable too, but its iterator yields lines, which may be short; it is read instead.
        case AsyncIterable() if not inspect.iscoroutinefunction(getattr(source, "read", None)):
            yield Content(None, None, _reader_of(aiter(source)), None)
        case _ if callable(getattr(source, "read", None)):
            yield await _content_of_readable(source)
        case _:
            raise RequestInvalid("file", f"{_EXPECTED}, got {type(source).__name__}")


_EXPECTED: Final = "expected a path, bytes, a file opened in binary mode ('rb') or an async iterator of bytes"


_MAX_PATH: Final = 4096
"""The maximum length of a path in characters: no common system opens a longer one."""


async def _check_path(path: str) -> None:
    """Refuse a text that is the data itself. The operating system's error would show all of it.

    Raises:
        RequestInvalid: The text looks like data, and there is no such file.
    """
    is_odd = len(path) > _MAX_PATH or "\n" in path or path.lstrip()[:1] in ("{", "[")
    if is_odd and not await asyncio.to_thread(os.path.exists, path):
        start = repr(path[:40]) + ("…" if len(path) > 40 else "")
        raise RequestInvalid("file", f"{start} looks like data, not a path; pass data as bytes, such as text.encode()")


async def _content_of_readable(source: Any) -> Content:  # Any: all that is known is that it has a `read`
    """Return the content of a readable object, after checking that it returns bytes, directly or when awaited."""
    try:
        # Reading no bytes shows both, and does not move the position.
        nothing = source.read(0)
        is_async = inspect.isawaitable(nothing)
        if inspect.isawaitable(nothing):
            nothing = await nothing
    except TypeError as error:
        raise RequestInvalid("file", f"{_EXPECTED}; read() of this {type(source).__name__} fails: {error}") from error
    except Exception as error:
        raise LocalFileError(f"the file cannot be read: {error}") from error
    if not isinstance(nothing, bytes | bytearray | memoryview):
        raise RequestInvalid(
            "file", f"{_EXPECTED}, got {type(source).__name__}, whose read() returns {type(nothing).__name__}"
        )
    name = getattr(source, "filename" if is_async else "name", None)
    name = Path(name).name if isinstance(name, str) else None
    return await (_content_of_async_file if is_async else _content_of_file)(source, name)


async def _content_of_async_file(file: Any, name: str | None) -> Content:  # Any: its `read` is a coroutine, see above
    try:
        first = await file.read(HOP)
    except Exception as error:
        raise LocalFileError(f"the file cannot be read: {error}") from error
    if not first and getattr(file, "size", None):
        # For example an UploadFile that the request's handler has already read.
        raise RequestInvalid("file", _AT_END)
    pieces = [first]

    async def read() -> bytes:
        piece: bytes = pieces.pop() if pieces else await file.read(HOP)
        return piece

    return Content(name, None, read, None)


async def _content_of_file(file: Any, name: str | None) -> Content:  # Any: only `read` is sure to be there
    reading: asyncio.Future[bytes | None] | None = None

    async def read() -> bytes:
        nonlocal reading
        reading = asyncio.get_running_loop().run_in_executor(None, file.read, HOP)
        # If the attempt is cancelled, nothing awaits its last read. Retrieve the exception, so that asyncio does not
        # log that it was never retrieved.
        reading.add_done_callback(lambda read: read.cancelled() or read.exception())
        # Shielded, so that `rewind` can wait for a read whose attempt was cancelled.
        piece = await asyncio.shield(reading)
        if piece is None:
            raise LocalFileError("the file is in non-blocking mode; pass an async iterator of its bytes")
        return piece

    try:
        start, size = await asyncio.to_thread(_extent, file)
    except FineTuneError:
        raise
    except Exception as error:
        raise LocalFileError(f"the file cannot be read: {error}") from error
    if start is None:
        return Content(name, None, read, None)

    async def rewind(offset: int) -> None:
        if reading is not None:
            # A thread that still reads for a cancelled attempt would move the position during the next one.
            await asyncio.wait([reading])
        await asyncio.to_thread(file.seek, start + offset)

    return Content(name, size, read, rewind, file)


_AT_END: Final = "its position is at the end, so nothing would be sent; call seek(0) first"


def _extent(file: Any) -> tuple[int | None, int | None]:
    """Return a file's position, or None if it is not seekable, and the number of bytes after it, or None if unknown.

    Raises:
        RequestInvalid: The position is at the end of the file, for example because it was just written or read.
    """
    is_seekable = getattr(file, "seekable", lambda: hasattr(file, "seek") and hasattr(file, "tell"))
    if not is_seekable():
        return None, None
    start = file.tell()
    try:
        # `tell` is needed because `mmap.seek` returns None before Python 3.13.
        file.seek(0, os.SEEK_END)
        size = file.tell() - start
    except OSError:
        # Some files in /proc cannot seek to their end.
        return start, None
    file.seek(start)
    if size <= 0 and file.read(1):
        # Other files in /proc report 0 bytes, but are not empty.
        file.seek(start)
        return start, None
    if size < 0 or (start > 0 and size == 0):
        raise RequestInvalid("file", _AT_END)
    return start, size


def _reader_of(pieces: AsyncIterator[bytes]) -> Callable[[], Awaitable[bytes]]:
    async def read() -> bytes:
        # An empty piece is not the end.
        async for piece in pieces:
            if piece:
                return piece
        return b""

    return read


async def section_of(content: Content, offset: int, size: int) -> Content:
    """Return one part of a content that can be rewound, at its first piece."""
    assert content.rewind is not None  # noqa: S101  # only such a content is sent in parts
    await content.rewind(offset)
    left = size

    async def read() -> bytes:
        nonlocal left
        piece = (await content.read())[:left] if left else b""
        left -= len(piece)
        return piece

    return Content(None, size, read, None)
