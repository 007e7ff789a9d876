"""Build the body of an upload: a multipart form around a file that is read in pieces."""

from __future__ import annotations

import secrets
from collections.abc import Awaitable, Callable, Mapping
from typing import Final, TypeAlias, TypeVar

from aiofinetune._http.caller import Caller
from aiofinetune._http.upload_source import Content
from aiofinetune._local_files import PIECE
from aiofinetune.dialects._requests import Endpoint, Reply
from aiofinetune.errors import FineTuneError, LocalFileError, TransportError
from aiofinetune.models import File

T = TypeVar("T")

_ENCODED: Final = {code: f"%{code:02X}" for code in (*range(0x20), ord('"'), 0x7F)}


def multipart(purpose: str, filename: str, boundary: str) -> tuple[bytes, bytes]:
    """Return the bytes before and after a file's content in a form with the fields `purpose` and `file` (RFC 7578).

    Args:
        purpose: The purpose of the file.
        filename: The name at the service. Quotes and line breaks in it are percent-encoded, as in browsers
            (https://html.spec.whatwg.org/multipage/form-control-infrastructure.html#multipart-form-data), and so are
            other control characters, which no header may hold (RFC 9110, 5.5).
        boundary: A random text that does not occur in the file.
    """
    escaped = filename.translate(_ENCODED)
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


def fields_form(fields: Mapping[str, str], boundary: str) -> bytes:
    """Return a form that has only fields (RFC 7578).

    Args:
        fields: The text of each field. Names are plain words.
        boundary: A random text that occurs in none of them.
    """
    parts = (
        f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{text}\r\n'
        for name, text in fields.items()
    )
    return f"{''.join(parts)}--{boundary}--\r\n".encode(errors="replace")


Progress: TypeAlias = Callable[[int, int | None], object]
"""Called on the event loop with the number of bytes sent so far and the total, or None if the total is unknown."""


def progress_from(offset: int, size: int, progress: Progress | None) -> Progress | None:
    """Return the progress of one part of a file, which counts the bytes before it and those of the whole file."""
    return None if progress is None else lambda sent, _size: progress(offset + sent, size)


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
    return await send_form(caller, caller.endpoints.upload_file, form, boundary)


async def send_form(caller: Caller, endpoint: Endpoint[T], form: Form, boundary: str, *ids: str) -> T:
    """Send a form once, and return the decoded reply.

    Raises:
        LocalFileError: The file cannot be read, or changed during the upload.
    """
    headers = {"Content-Type": f"multipart/form-data; boundary={boundary}"}
    if form.size is not None:
        headers["Content-Length"] = str(form.size)
    request = caller.build(endpoint, *ids, headers=headers)
    return await caller.decode(endpoint, await sent(form, caller.fetch(request, form)))


async def sent(form: Form, sending: Awaitable[Reply]) -> Reply:
    """Wait for the reply to an upload, unless reading the file fails.

    Raises:
        LocalFileError: The file cannot be read, or changed during the upload.
    """
    try:
        reply = await sending
    except TransportError:
        if form.failure is None:
            raise
    else:
        # The service may reply early, without waiting for the rest of a body that failed.
        if form.failure is None:
            return reply
    if isinstance(form.failure, FineTuneError):
        raise form.failure
    words = f"the source of the upload, or the progress callback, raised {form.failure!r}"
    raise LocalFileError(words) from form.failure
