"""The body of an upload: a multipart form around a file that is read in pieces."""

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
    """What goes before and after a file's bytes to make a form of `purpose` and `file` (RFC 7578).

    Args:
        purpose: What the file is for.
        filename: The name that the service will know it by; quotes and line breaks in it are percent-encoded, as
            browsers do (https://html.spec.whatwg.org/multipage/form-control-infrastructure.html#multipart-form-data).
        boundary: A line that the file does not hold; random.
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
    """A file, or anything that is read like one; its `read` may be a coroutine, as of an ``UploadFile``."""

    def read(self, size: int, /) -> bytes | Awaitable[bytes]:
        """Give the next bytes, at most `size`; none at the end."""
        ...


Source: TypeAlias = str | os.PathLike[str] | bytes | SupportsRead | AsyncIterable[bytes]
"""What can be uploaded: a file's path, its bytes, what is read like a file in binary mode, or an iterator of pieces."""


Progress: TypeAlias = Callable[[int, int | None], object]
"""Called on the event loop with the bytes moved so far, and their total where it is known."""


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
        first = await file.read(HOP)
    except Exception as error:
        raise LocalFileError(f"the file cannot be read: {error}") from error
    if not first and getattr(file, "size", None):
        # As of an UploadFile that its handler has read already.
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


async def send_file(caller: Caller, content: Content, purpose: str, filename: str, progress: Progress | None) -> File:
    """Upload a file once.

    Raises:
        LocalFileError: The file cannot be read, or changed while it was sent.
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
        if form.failure is None:
            return await caller.decode(dialect.UPLOAD_FILE, reply)
    if isinstance(form.failure, FineTuneError):
        raise form.failure
    raise LocalFileError(f"the upload stopped on this side: {form.failure!r}") from form.failure
