"""Local files, read and written off the event loop and in constant memory."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import inspect
import io
import os
import secrets
import shutil
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import IO, Any, BinaryIO, Final, Protocol, TypeAlias

import attrs

from aiofinetune._threads import in_thread
from aiofinetune.errors import FineTuneError, LocalFileError, RequestInvalid


class SupportsRead(Protocol):
    """A file, or anything that is read like one; its `read` may be a coroutine, as of an ``UploadFile``."""

    def read(self, size: int, /) -> bytes | Awaitable[bytes]:
        """Give the next bytes, at most `size`; none at the end."""
        ...


Source: TypeAlias = str | os.PathLike[str] | bytes | SupportsRead | AsyncIterable[bytes]
"""What can be uploaded: a file's path, its bytes, what is read like a file in binary mode, or an iterator of pieces."""

Progress: TypeAlias = Callable[[int, int | None], object]
"""Called on the event loop with the bytes moved so far, and their total where it is known."""

PIECE: Final = 256 << 10
"""Bytes of a download that are taken at once, and of an upload that are given at once: as many as aiohttp takes from a
socket, so that none are copied."""

_HOP: Final = 1 << 20
"""Bytes that are read or written in one hop to a thread. With a quarter of it an upload takes half as much again of
the CPU."""


@attrs.frozen
class Content:
    """The bytes of a source, in pieces.

    Args:
        name: The file's own name, where it has one.
        size: Its length in bytes, where that is known.
        read: Gives the next piece; none at the end.
        rewind: Starts again from the first piece; None where that cannot be done.
    """

    name: str | None
    size: int | None
    read: Callable[[], Awaitable[bytes]]
    rewind: Callable[[], Awaitable[object]] | None


@asynccontextmanager
async def opened_source(source: Source) -> AsyncIterator[Content]:
    """Open what is to be uploaded, and close it if it was opened here.

    Raises:
        LocalFileError: The file at a path cannot be opened.
        RequestInvalid: The source is of no kind that can be read as bytes, or stands at its end.
    """
    match source:
        case bytes():
            yield await _content_of_file(io.BytesIO(source), None)
        case str() | os.PathLike():
            path = Path(os.fsdecode(source))
            await _check_path(str(path))
            async with opened(path, "rb") as file:
                yield await _content_of_file(file, path.name)
        case AsyncIterable() if not inspect.iscoroutinefunction(getattr(source, "read", None)):
            yield Content(None, None, _reader_of(aiter(source)), None)
        case _ if callable(getattr(source, "read", None)):
            yield await _content_of_readable(source)
        case _:
            raise RequestInvalid("file", f"{_EXPECTED}, got {type(source).__name__}")


_EXPECTED: Final = "expected a path, bytes, a file opened in binary mode ('rb') or an async iterator of bytes"
_MAX_PATH: Final = 4096
"""Characters; no system opens a longer path."""


async def _check_path(path: str) -> None:
    """Refuse text that is the data itself; an error of the system would show all of it.

    Raises:
        RequestInvalid: It is.
    """
    is_odd = len(path) > _MAX_PATH or "\n" in path or path.lstrip()[:1] in ("{", "[")
    if is_odd and not await asyncio.to_thread(os.path.exists, path):
        start = repr(path[:40]) + ("…" if len(path) > 40 else "")
        raise RequestInvalid("file", f"{start} looks like data, and is no path; pass data as bytes: text.encode()")


async def _content_of_readable(source: Any) -> Content:  # Any: all that is known is that it has a `read`
    """Look at what can be read: whether it gives bytes, and at once or to be awaited."""
    try:
        nothing = source.read(0)
        is_async = inspect.isawaitable(nothing)
        if inspect.isawaitable(nothing):
            nothing = await nothing
    except TypeError as error:
        raise RequestInvalid("file", f"{_EXPECTED}; read() of this {type(source).__name__} fails: {error}") from error
    except Exception as error:
        raise LocalFileError(f"the file cannot be read: {error}") from error
    if not isinstance(nothing, bytes | bytearray | memoryview):
        raise RequestInvalid("file", f"{_EXPECTED}, got {type(source).__name__}, which gives {type(nothing).__name__}")
    name = getattr(source, "filename" if is_async else "name", None)
    name = Path(name).name if isinstance(name, str) else None
    return await (_content_of_async_file if is_async else _content_of_file)(source, name)


async def _content_of_async_file(file: Any, name: str | None) -> Content:  # Any: its `read` is a coroutine, see above
    try:
        first = await file.read(_HOP)
    except Exception as error:
        raise LocalFileError(f"the file cannot be read: {error}") from error
    if not first and getattr(file, "size", None):
        # As of an UploadFile that its handler has read already.
        raise RequestInvalid("file", _AT_END)
    pieces = [first]

    async def read() -> bytes:
        piece: bytes = pieces.pop() if pieces else await file.read(_HOP)
        return piece

    return Content(name, None, read, None)


async def _content_of_file(file: Any, name: str | None) -> Content:  # Any: only `read` is sure to be there
    reading: asyncio.Future[bytes | None] | None = None

    async def read() -> bytes:
        nonlocal reading
        reading = asyncio.get_running_loop().run_in_executor(None, file.read, _HOP)
        # Of a try that was given up, nobody asks what became of its last read.
        reading.add_done_callback(lambda read: read.cancelled() or read.exception())
        piece = await asyncio.shield(reading)
        if piece is None:
            raise LocalFileError("the file is in non-blocking mode; give an async iterator of its bytes")
        return piece

    try:
        start, size = await asyncio.to_thread(_extent, file)
    except FineTuneError:
        raise
    except Exception as error:
        raise LocalFileError(f"the file cannot be read: {error}") from error
    if start is None:
        return Content(name, None, read, None)

    async def rewind() -> None:
        if reading is not None:
            # A thread that still reads for a try that was given up would move the file under the next.
            await asyncio.wait([reading])
        await asyncio.to_thread(file.seek, start)

    return Content(name, size, read, rewind)


_AT_END: Final = "stands at its end, so that nothing would be sent; call seek(0) before"


def _extent(file: Any) -> tuple[int | None, int | None]:
    """Where a file stands, and how many bytes follow; None for what it does not know, or cannot go back to.

    Raises:
        RequestInvalid: It stands at its end, as after it was written or read.
    """
    is_seekable = getattr(file, "seekable", lambda: hasattr(file, "seek") and hasattr(file, "tell"))
    if not is_seekable():
        return None, None
    start = file.tell()
    try:
        # By `tell`, for the `seek` of an mmap gives nothing before Python 3.13.
        file.seek(0, os.SEEK_END)
        size = file.tell() - start
    except OSError:
        # Of /proc: it knows no end.
        return start, None
    file.seek(start)
    if size <= 0 and file.read(1):
        # Likewise: it says 0 bytes, and holds some.
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


class Form:
    """The body of an upload: what goes before a file's bytes, the bytes, and what goes after.

    An async iterator rather than a generator: one that is dropped half read needs no clean-up.

    Args:
        content: The file.
        frame: What goes before and after it.
        progress: Is told of each piece.
    """

    def __init__(self, content: Content, frame: tuple[bytes, bytes], progress: Progress | None) -> None:
        self._content = content
        self._head, self._tail = frame
        self._progress = progress
        self._rest = memoryview(b"")
        self._sent = 0
        self.failure: Exception | None = None
        """What went wrong here, as against on the network."""

    @property
    def size(self) -> int | None:
        """The length of the whole body in bytes, where that is known."""
        return None if self._content.size is None else len(self._head) + self._content.size + len(self._tail)

    def __aiter__(self) -> Form:
        return self

    async def __anext__(self) -> bytes | memoryview:
        try:
            return await self._next()
        except StopAsyncIteration:
            raise
        except Exception as error:
            # aiohttp reports it as a broken connection.
            self.failure = error
            raise

    async def _next(self) -> bytes | memoryview:
        if self._head:
            head, self._head = self._head, b""
            return head
        if not self._rest:
            piece = await self._content.read()
            if not isinstance(piece, bytes | bytearray | memoryview):
                raise LocalFileError(f"the source gave {type(piece).__name__}, not bytes")
            self._rest = memoryview(piece).cast("B")
        if self._rest:
            # However large a piece is: each that is taken shows that the upload moves.
            part, self._rest = self._rest[:PIECE], self._rest[PIECE:]
            self._sent += len(part)
            if self._content.size is not None and self._sent > self._content.size:
                raise LocalFileError(
                    f"the file changed while it was sent: it is longer than {self._content.size} bytes"
                )
            if self._progress is not None:
                self._progress(self._sent, self._content.size)
            return part
        if self._content.size not in (None, self._sent):
            raise LocalFileError(f"the file changed while it was sent: {self._sent} bytes, not {self._content.size}")
        if self._tail:
            tail, self._tail = self._tail, b""
            return tail
        raise StopAsyncIteration


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
            bytearray(_HOP)
            pieces: list[bytes] = []
            size = 0
            while piece := await read():
                pieces.append(piece)
                size += len(piece)
                if size >= _HOP:
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
