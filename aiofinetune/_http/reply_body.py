"""The body of a reply, read in pieces: decompressed, watched, and in bounded memory."""

from __future__ import annotations

import asyncio
import codecs
import math
import zlib
from collections.abc import Awaitable, Callable, Mapping
from types import TracebackType
from typing import Final

import aiohttp

from aiofinetune._http.compression import ENCODINGS, encoding_of, new_decompressor
from aiofinetune._http.failures import LOST, in_our_words
from aiofinetune.dialects._requests import Reply, Request
from aiofinetune.errors import (
    ConfigurationError,
    ConnectionLost,
    FineTuneError,
    ProtocolViolation,
)

_DECOMPRESSED_AT_ONCE: Final = 64 << 10


_LOOK_INTERVAL: Final = 0.5
"""Seconds between two looks at whether a reply that is waited for can still come."""

MAX_REPLY_BYTES: Final = 256 << 20
"""The longest JSON reply that is read: a list of some 250,000 jobs."""


MAX_ERROR_BYTES: Final = 64 << 10
"""What is read of an error's body; a proxy's HTML page may be longer, and its start says enough."""


class Incoming:
    """A reply whose body comes in pieces.

    Args:
        request: What it answers.
        response: The reply, its body unread.
        stall: How long, in seconds, a read may wait; None if the caller sees to that.
    """

    __slots__ = (
        "_decompressor",
        "_encoding",
        "_loop",
        "_request",
        "_response",
        "_watch",
    )

    def __init__(self, request: Request, response: aiohttp.ClientResponse, stall: float | None) -> None:
        self._request = request
        self._response = response
        self._loop = asyncio.get_running_loop()
        self._watch = _Watch(math.inf if stall is None else stall, response.close, self._is_lost)
        self._encoding = encoding_of(response.headers)
        self._decompressor: zlib._Decompress | None = None

    @property
    def name(self) -> str:
        """What to call it in an error."""
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
        """Give the next bytes of the body; none at its end.

        Args:
            most: How many at most. By default as many as there are: a bounded number, which may have to be copied
                together.

        Raises:
            TransportError: The body was cut, or stalled.
            ProtocolViolation: It is not compressed as its headers say.
        """
        if asyncio.get_running_loop() is not self._loop:
            raise ConfigurationError(f"{self._request.name}: the reply belongs to another event loop; read it there")
        try:
            if self._encoding == "identity":
                with self._watch:
                    return await self._read_raw(most)
            return await self._read_decompressed()
        except zlib.error as error:
            raise ProtocolViolation(f"{self._request.name}: the body cannot be decompressed: {error}") from error
        except FineTuneError:
            raise
        except Exception as error:
            name = self._request.name
            if isinstance(error, RuntimeError):
                # aiohttp's, for a wait that it does not begin.
                if not self._is_lost():
                    raise FineTuneError(
                        f"{name}: another task reads it already; read it in one task at a time"
                    ) from error
                raise ConnectionLost(f"{name}: {LOST}") from error
            raise in_our_words(error, name) from error

    async def read_reply(self, pieces: list[bytes] | None = None) -> Reply:
        """Give the whole reply; of an error's body, which may be any page, only the start.

        Args:
            pieces: Gets the pieces of the body as they come.

        Raises:
            TransportError: The body was cut.
            ProtocolViolation: It is larger than any reply should be.
        """
        is_error = self.status >= 300
        if is_error and self._encoding not in ENCODINGS:
            return Reply(self.status, self.headers, b"")
        most = MAX_ERROR_BYTES if is_error else MAX_REPLY_BYTES
        body = await collect(self.read, most, pieces)
        if len(body) > most and not is_error:
            raise ProtocolViolation(f"{self._request.name}: the reply is longer than {most} bytes")
        # JSON has no byte order mark, but a reader may pass it over (RFC 8259, section 8.1).
        return Reply(self.status, self.headers, body.removeprefix(codecs.BOM_UTF8))

    def close(self) -> None:
        """Free the connection: for the next request if the body was read whole, else for good."""
        if not self._loop.is_closed():
            if _running_loop() is self._loop:
                self._free()
            else:
                self._loop.call_soon_threadsafe(self._free)

    def _free(self) -> None:
        self._watch.end()
        self._response.close()

    def _is_lost(self) -> bool:
        """Whether nothing more can come of a body that has not ended."""
        connection = self._response.connection
        return connection is None or connection.closed

    def _read_raw(self, most: int | None = None) -> Awaitable[bytes]:
        content = self._response.content
        return content.readany() if most is None else content.read(most)

    async def _read_decompressed(self) -> bytes:
        # What one read gives is bounded, so that a small body which stands for a huge one cannot fill the memory.
        while True:
            raw = b"" if self._decompressor is None else self._decompressor.unconsumed_tail
            if raw:
                # Others on the loop have their turn meanwhile, however much a few bytes stand for.
                await asyncio.sleep(0)
            else:
                with self._watch:
                    raw = await self._read_raw()
            if self._decompressor is None:
                if not raw:
                    return b""
                self._decompressor = new_decompressor(self._encoding, raw)
            decompressor = self._decompressor
            piece = decompressor.decompress(raw, _DECOMPRESSED_AT_ONCE)
            if piece:
                return piece
            if decompressor.unused_data:
                raise ProtocolViolation(f"{self._request.name}: more follows the end of the compressed body")
            if not raw:
                if not decompressor.eof:
                    raise ConnectionLost(f"{self._request.name}: the compressed body ended early")
                return b""


def _running_loop() -> asyncio.AbstractEventLoop | None:
    """The event loop that runs; None where a coroutine is only torn down."""
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


class _Watch:
    """Gives up a wait that lasts too long or waits for nothing, with one timer for all waits that follow one another.

    A timer for each would be a tenth of what a stream costs whose events come singly. Each wait is a context; one that
    was given up, and failed for it, leaves it with a TimeoutError or a ConnectionResetError.

    Args:
        seconds: How long one may last.
        give_up: What then makes it fail.
        is_lost: Whether it waits for nothing. aiohttp's C parser closes the connection at a chunk that it cannot read,
            and leaves whoever reads the body waiting (seen in 3.14.5; its Python parser raises).
    """

    __slots__ = (
        "_failure",
        "_give_up",
        "_is_lost",
        "_loop",
        "_seconds",
        "_since",
        "_timer",
    )

    def __init__(self, seconds: float, give_up: Callable[[], object], is_lost: Callable[[], bool]) -> None:
        self._seconds = seconds
        self._give_up = give_up
        self._is_lost = is_lost
        self._loop = asyncio.get_running_loop()
        self._since: float | None = None
        self._failure: OSError | None = None
        self._timer: asyncio.TimerHandle | None = None

    def __enter__(self) -> None:
        self._since = self._loop.time()
        if self._timer is None:
            self._timer = self._loop.call_later(min(self._seconds, _LOOK_INTERVAL), self._look)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._since = None
        if self._failure is not None and isinstance(error, Exception):
            raise self._failure from None

    def end(self) -> None:
        """Give up no further wait."""
        if self._timer is not None:
            self._timer.cancel()

    def _look(self) -> None:
        self._timer = None
        if self._since is None:
            return
        left = self._since + self._seconds - self._loop.time()
        if self._is_lost():
            self._failure = ConnectionResetError(LOST)
        elif left <= 0:
            self._failure = TimeoutError()
        else:
            self._timer = self._loop.call_later(min(left, _LOOK_INTERVAL), self._look)
            return
        self._since = None
        self._give_up()


async def collect(read: Callable[[], Awaitable[bytes]], most: int, pieces: list[bytes] | None = None) -> bytes:
    """Give all that `read` gives, or, of more than `most` bytes, some more than `most`; in `pieces` as they come."""
    if pieces is None:
        pieces = []
    size = 0
    while size <= most and (piece := await read()):
        pieces.append(piece)
        size += len(piece)
    return b"".join(pieces)
