"""Read the body of a reply in pieces, decompress it, and detect a stall, in bounded memory."""

from __future__ import annotations

import asyncio
import codecs
import math
import zlib
from collections.abc import Awaitable, Callable, Mapping
from typing import Final

import aiohttp

from aiofinetune._http.compression import ENCODINGS, encoding_of, new_decompressor
from aiofinetune._http.network_errors import LOST, cause_of, in_our_words
from aiofinetune._http.waits import Waits
from aiofinetune.dialects._requests import Reply, Request
from aiofinetune.errors import (
    ConfigurationError,
    ConnectionLost,
    FineTuneError,
    ProtocolViolation,
)

_DECOMPRESSED_AT_ONCE: Final = 64 << 10
"""The maximum number of bytes that one read returns from a compressed body."""


MAX_REPLY_BYTES: Final = 256 << 20
"""The longest JSON reply that is read, enough for a list of about 250,000 jobs."""


MAX_ERROR_BYTES: Final = 64 << 10
"""The number of bytes that are read of an error's body. The page of a proxy may be longer, but its start is enough."""


class Incoming:
    """A reply whose body is read in pieces.

    Args:
        request: The request.
        response: The reply, with its body unread.
        stall: How long a read may wait, in seconds; None if the caller sets a timeout of its own.
        waits: The session's waits for bytes.
    """

    __slots__ = (
        "_connection",
        "_decompressor",
        "_encoding",
        "_failure",
        "_is_watched",
        "_loop",
        "_request",
        "_response",
        "_since",
        "_stall",
        "_waits",
    )

    def __init__(self, request: Request, response: aiohttp.ClientResponse, stall: float | None, waits: Waits) -> None:
        self._request = request
        self._response = response
        self._connection = None if response.connection is None else response.connection.transport
        self._loop = asyncio.get_running_loop()
        self._stall = math.inf if stall is None else stall
        self._waits = waits
        self._is_watched = False
        """Whether `waits` looks at this reply."""
        self._since: float | None = None
        """When the read that is under way began, by the event loop's clock."""
        self._failure: OSError | None = None
        """Why a read was ended."""
        self._encoding = encoding_of(response.headers)
        self._decompressor: zlib._Decompress | None = None

    @property
    def name(self) -> str:
        """The name of the request, for an error message."""
        return self._request.name

    @property
    def status(self) -> int:
        """The HTTP status."""
        return self._response.status

    @property
    def headers(self) -> Mapping[str, str]:
        """The headers, looked up in any case."""
        return self._response.headers

    async def read(self, most: int | None = None) -> bytes:
        """Return the next bytes of the body, or b"" at its end.

        Args:
            most: The maximum number of bytes, for a body that is not compressed. By default all bytes that have
                arrived. Their number is bounded, but joining them may copy them.

        Raises:
            TransportError: The body was cut off, or stalled.
            ProtocolViolation: The body is not compressed in the way that its headers say.
        """
        if asyncio.get_running_loop() is not self._loop:
            raise ConfigurationError(f"{self.name}: the reply belongs to another event loop; read it there")
        if self._since is not None:
            raise FineTuneError(f"{self.name}: another task is already reading it; read it in one task at a time")
        self._since = self._loop.time()
        if not self._is_watched:
            self._is_watched = True
            self._waits.add(self)
        try:
            if self._encoding != "identity":
                return await self._read_decompressed()
            content = self._response.content
            return await (content.readany() if most is None else content.read(most))
        except FineTuneError:
            raise
        except Exception as error:  # noqa: BLE001  # all errors are raised, in our words
            raise self._in_our_words(self._failure or error) from cause_of(self._failure or error)
        finally:
            self._since = None

    def _in_our_words(self, error: Exception) -> FineTuneError:
        if isinstance(error, zlib.error):
            return ProtocolViolation(f"{self.name}: the body cannot be decompressed: {error}")
        if isinstance(error, RuntimeError) and self._is_lost():
            # aiohttp raises it instead of waiting, if the connection is gone.
            return ConnectionLost(f"{self.name}: {LOST}")
        return in_our_words(error, self.name)

    def look(self, now: float) -> bool:
        """End the read that is under way if it has lasted too long, or if its connection is closed.

        aiohttp's C parser closes the connection at a chunk that it cannot parse, but does not wake up the reader of the
        body (seen in 3.14.5; its Python parser raises).

        Args:
            now: The time, by the event loop's clock.

        Returns:
            Whether a read still is under way.
        """
        if self._since is not None:
            if self._is_lost():
                self._failure = ConnectionResetError(LOST)
            elif now - self._since >= self._stall:
                self._failure = TimeoutError()
            else:
                return True
            # The read fails.
            self._response.close()
        self._is_watched = False
        return False

    async def read_reply(self, pieces: list[bytes] | None = None) -> Reply:
        """Return the complete reply, but only the start of an error's body.

        Args:
            pieces: A list to which the pieces of the body are added as they arrive.

        Raises:
            TransportError: The body was cut off.
            ProtocolViolation: The body is longer than any reply should be.
        """
        is_error = self.status >= 300
        if is_error and self._encoding not in ENCODINGS:
            # The status says enough; failing to decompress the page would hide it.
            return Reply(self.status, self.headers, b"")
        most = MAX_ERROR_BYTES if is_error else MAX_REPLY_BYTES
        body = await collect(self.read, most, pieces)
        if len(body) > most and not is_error:
            raise ProtocolViolation(f"{self.name}: the reply is longer than {most} bytes")
        return reply_of(self._response, body)

    async def read_pieces(self, take: Callable[[bytes], object]) -> None:
        """Read the body to its end, and call `take` with each piece.

        Raises:
            TransportError: The body was cut off.
            ProtocolViolation: The body is longer than any reply should be.
        """
        size = 0
        while piece := await self.read():
            size += len(piece)
            if size > MAX_REPLY_BYTES:
                raise ProtocolViolation(f"{self.name}: the reply is longer than {MAX_REPLY_BYTES} bytes")
            take(piece)

    def close(self) -> None:
        """Release the connection: it is reused if the whole body was read, and closed otherwise."""
        # A coroutine that is garbage-collected may run this in another thread, or after its loop was closed.
        if not self._loop.is_closed():
            if _running_loop() is self._loop:
                self._free()
            else:
                self._loop.call_soon_threadsafe(self._free)

    def _free(self) -> None:
        self._waits.discard(self)
        self._response.close()

    def _is_lost(self) -> bool:
        """Return whether the connection of an unfinished body is closed, so that no more can arrive."""
        # aiohttp may reuse the connection after the end of the body, which may still have to be read.
        return (self._connection is None or self._connection.is_closing()) and not self._response.content.is_eof()

    async def _read_decompressed(self) -> bytes:
        # One read returns a bounded number of bytes, so that a small body that expands to a huge one does not fill the
        # memory.
        while True:
            raw = b"" if self._decompressor is None else self._decompressor.unconsumed_tail
            if raw:
                # No I/O is needed to go on, so let other tasks run: a few bytes may expand to a great many.
                await asyncio.sleep(0)
            else:
                raw = await self._response.content.readany()
            if self._decompressor is None:
                if not raw:
                    return b""
                self._decompressor = new_decompressor(self._encoding, raw)
            decompressor = self._decompressor
            piece = decompressor.decompress(raw, _DECOMPRESSED_AT_ONCE)
            if piece:
                return piece
            if decompressor.unused_data:
                raise ProtocolViolation(f"{self.name}: there is data after the end of the compressed body")
            if not raw:
                if not decompressor.eof:
                    raise ConnectionLost(f"{self.name}: the compressed body ended early")
                return b""


def _running_loop() -> asyncio.AbstractEventLoop | None:
    """Return the running event loop; None if there is none, as when a coroutine is garbage-collected."""
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


def arrived(response: aiohttp.ClientResponse) -> bytes | None:
    """Return the complete body of a reply if it has arrived, as a short one mostly has with its head; else None."""
    content = response.content
    if not content.is_eof() or content.exception() is not None or response.headers.get("Content-Encoding"):
        return None
    return content.read_nowait()


def reply_of(response: aiohttp.ClientResponse, body: bytes) -> Reply:
    """Return a complete reply."""
    # JSON has no byte order mark, but a parser may ignore one (RFC 8259, section 8.1).
    return Reply(response.status, response.headers, body.removeprefix(codecs.BOM_UTF8))


async def collect(read: Callable[[], Awaitable[bytes]], most: int, pieces: list[bytes] | None = None) -> bytes:
    """Read until the end, or until there are more than `most` bytes; return what was read.

    Args:
        read: Returns the next piece, or b"" at the end.
        most: The number of bytes after which to stop. A longer result tells the caller that there were more.
        pieces: A list to which the pieces are added as they arrive, for when reading fails.
    """
    if pieces is None:
        pieces = []
    size = 0
    while size <= most and (piece := await read()):
        pieces.append(piece)
        size += len(piece)
    return b"".join(pieces)
