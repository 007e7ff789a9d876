"""Build the body of an upload: a multipart form around a file that is read in pieces."""

from __future__ import annotations

import asyncio
import inspect
import io
import os
import secrets
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final, Protocol, TypeAlias

import attrs

from aiofinetune._http.caller import Caller
from aiofinetune._local_files import HOP, PIECE, opened
from aiofinetune.dialects import _fine_tunes as dialect
from aiofinetune.dialects._requests import build
from aiofinetune.errors import FineTuneError, LocalFileError, RequestInvalid, TransportError
from aiofinetune.models import File


def multipart(purpose: str, filename: str, boundary: str) -> tuple[bytes, bytes]:
    """Return the bytes before and after a file's content in a form with the fields `purpose` and `file` (RFC 7578).

    Args:
        purpose: The purpose of the file.
        filename: The name at the service. Quotes and line breaks in it are percent-encoded, as in browsers
            (https://html.spec.whatwg.org/multipage/form-control-infrastructure.html#multipart-form-data).
        boundary: A random text that does not occur in the file.
    """
    escaped = filename.replace('"', "%22").replace("\r", "%0D").replace("\n", "%0A")
    head = (
        f"--{boundary}\r\n"
        'Content-Disposition: form-data; name="purpose"\r\n'
        "\r\n"
        f"{purpose}\r\n"
        f"--{boundary}\r\n"
        f'Content-Disposition: form-data; name="file"; filename="{escaped}"\r\n'
        "Content-Type: application/octet-stream\r\n"
        "\r\n"
    )
    return head.encode(errors="replace"), f"\r\n--{boundary}--\r\n".encode()


class SupportsRead(Protocol):
    """A file, or any object with the same `read`, which may be a coroutine, like that of an ``UploadFile``."""

    def read(self, size: int, /) -> bytes | Awaitable[bytes]:
        """Return the next bytes, at most `size`, or b"" at the end."""
        ...


Source: TypeAlias = str | os.PathLike[str] | bytes | SupportsRead | AsyncIterable[bytes]
"""What can be uploaded: a path, bytes, an object that is read like a file in binary mode, or an iterator of pieces."""


Progress: TypeAlias = Callable[[int, int | None], object]
"""Called on the event loop with the number of bytes sent so far and the total, or None if the total is unknown."""


@attrs.frozen
class Content:
    """The bytes of a source, in pieces.

    Args:
        name: The name of the file; None if it has none.
        size: The length in bytes; None if it is unknown.
        read: Returns the next piece, or b"" at the end.
        rewind: Goes back to the first piece; None if that is not possible.
    """

    name: str | None
    size: int | None
    read: Callable[[], Awaitable[bytes]]
    rewind: Callable[[], Awaitable[object]] | None


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

    async def rewind() -> None:
        if reading is not None:
            # A thread that still reads for a cancelled attempt would move the position during the next one.
            await asyncio.wait([reading])
        await asyncio.to_thread(file.seek, start)

    return Content(name, size, read, rewind)


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


class Form:
    """The body of an upload: the head of the form, the file's bytes and the tail.

    This is an async iterator and not a generator, because an iterator that is dropped half read needs no clean-up.

    Args:
        content: The file.
        frame: The head and the tail.
        progress: Called after each piece.
    """

    def __init__(self, content: Content, frame: tuple[bytes, bytes], progress: Progress | None) -> None:
        self._content = content
        self._head, self._tail = frame
        self._progress = progress
        self._rest = memoryview(b"")
        self._sent = 0
        self.failure: Exception | None = None
        """What failed in reading the file or in `progress`, not on the network."""

    @property
    def size(self) -> int | None:
        """The length of the whole body in bytes; None if it is unknown."""
        return None if self._content.size is None else len(self._head) + self._content.size + len(self._tail)

    def __aiter__(self) -> Form:
        return self

    async def __anext__(self) -> bytes | memoryview:
        try:
            return await self._next()
        except StopAsyncIteration:
            raise
        except Exception as error:
            # Kept, because aiohttp reports it as a broken connection.
            self.failure = error
            raise

    async def _next(self) -> bytes | memoryview:
        if self._head:
            head, self._head = self._head, b""
            return head
        if not self._rest:
            piece = await self._content.read()
            if not isinstance(piece, bytes | bytearray | memoryview):
                raise LocalFileError(f"the source returned {type(piece).__name__}, not bytes")
            self._rest = memoryview(piece).cast("B")
        if self._rest:
            # A large piece is split, because each part that aiohttp takes extends the deadline.
            part, self._rest = self._rest[:PIECE], self._rest[PIECE:]
            self._sent += len(part)
            if self._content.size is not None and self._sent > self._content.size:
                raise LocalFileError(
                    f"the file changed during the upload: it is longer than {self._content.size} bytes"
                )
            if self._progress is not None:
                self._progress(self._sent, self._content.size)
            return part
        if self._content.size not in (None, self._sent):
            raise LocalFileError(f"the file changed during the upload: {self._sent} bytes, not {self._content.size}")
        if self._tail:
            tail, self._tail = self._tail, b""
            return tail
        raise StopAsyncIteration


async def send_file(caller: Caller, content: Content, purpose: str, filename: str, progress: Progress | None) -> File:
    """Upload a file once.

    Raises:
        LocalFileError: The file cannot be read, or changed during the upload.
    """
    boundary = secrets.token_hex(16)
    form = Form(content, multipart(purpose, filename, boundary), progress)
    headers = {"Content-Type": f"multipart/form-data; boundary={boundary}"}
    if form.size is not None:
        headers["Content-Length"] = str(form.size)
    request = build(dialect.UPLOAD_FILE, caller.base_url, headers=headers)
    try:
        reply = await caller.fetch(request, form)
    except TransportError:
        if form.failure is None:
            raise
    else:
        # The service may reply early, without waiting for the rest of a body that failed.
        if form.failure is None:
            return await caller.decode(dialect.UPLOAD_FILE, reply)
    if isinstance(form.failure, FineTuneError):
        raise form.failure
    words = f"the source of the upload, or the progress callback, raised {form.failure!r}"
    raise LocalFileError(words) from form.failure
