"""The client's sockets: sends one request, reads one reply, and says in our own words what went wrong.

Nothing else of the client calls aiohttp. Nothing here knows the API or tries twice.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
from collections.abc import AsyncIterator, Mapping
from types import MappingProxyType
from typing import Final

import aiohttp
import attrs
from aiohttp.abc import AbstractStreamWriter
from yarl import URL

from aiofinetune._http.failures import cause_of, in_our_words, of_borrowed
from aiofinetune._http.proxies import proxy_for
from aiofinetune._http.reply_body import Incoming
from aiofinetune.dialects._requests import Reply, Request, redirected
from aiofinetune.errors import (
    ConfigurationError,
    ConnectFailed,
    ConnectionLost,
    FineTuneError,
    ProtocolViolation,
)

MAX_CALLS: Final = 100
"""Plain calls under way at once; further ones wait their turn. Event streams do not count."""


_MAX_REDIRECTS: Final = 5


SMALL_BUFFER: Final = 16 << 10
"""Bytes that aiohttp holds of an event stream before it stops reading. By its default it holds so many that it looks,
at each small chunk which is taken, whether to go on: a quarter of what a stream of small chunks costs."""


_MAX_HEADER_BYTES: Final = 64 << 10
"""Of a line of a reply's head. aiohttp's 8,190 are less than the cookies and policies that some proxies send."""


_NO_STATUS_LINE: Final = re.compile(r"Bad status line:\n  Expected HTTP/[^\n]*\n\n  b'[^\n]*\n    \^")
"""How aiohttp says of a reply that its first byte is no HTTP. Whatever else it says of one, a status line may have been
read before: bytes that came in one packet with it are parsed together, and it is not handed on."""


@attrs.frozen
class Timeout:
    """How long to wait, in seconds.

    Args:
        connect: For a connection: name look-up, TCP and TLS.
        reply: For a plain call, from its start to its reply's last byte; for an upload, from when its last bytes were
            handed to the system, which may hold some hundred KB of them.
        stall: For a download: while no byte comes. For an upload: while the next 256 KB are not taken.
        stream: For an event stream: while no byte comes. Jobs may be silent for long.

    Raises:
        ConfigurationError: A figure makes no sense.
    """

    connect: float = 10.0
    reply: float = 60.0
    stall: float = 60.0
    stream: float = 300.0

    def __attrs_post_init__(self) -> None:
        """Check that the figures make sense."""
        for name, seconds in attrs.asdict(self).items():
            if not seconds > 0:
                raise ConfigurationError(f"{name}: expected seconds, more than 0, got {seconds!r}")


@attrs.define
class Heard:
    """What has come of a reply so far: where a create's reply breaks off, all that there is to go by."""

    status: int | None = None
    """The status; None until the status line was read."""
    headers: Mapping[str, str] = attrs.field(default=MappingProxyType({}), repr=False)
    pieces: list[bytes] = attrs.field(factory=list, repr=False)
    """The bytes of the body, which may echo the key."""
    is_garbled: bool = False
    """Whether it began with a status line, or may have, and aiohttp does not say which: what follows is not HTTP."""

    @property
    def is_accepted(self) -> bool:
        """Whether its status line says, or may have said, that the service did what it was asked (2xx)."""
        return self.is_garbled or (self.status is not None and 200 <= self.status < 300)

    def fail(self, error: BaseException | None) -> None:
        """Note what `error`, by which the reply broke off, shows of its head, if that is not known."""
        if self.status is not None:
            return
        match error:
            case aiohttp.ServerDisconnectedError(message=aiohttp.http.RawResponseMessage(code=status)):
                self.status = status
            case aiohttp.ClientHttpProxyError():
                pass
            case aiohttp.ClientResponseError(message=message):
                self.is_garbled = _NO_STATUS_LINE.match(message) is None

    def begin(self, status: int, headers: Mapping[str, str]) -> None:
        """Note the head of the reply."""
        self.status = status
        self.headers = headers


class Transport:
    """Sends requests on one aiohttp session, borrowed or its own.

    Args:
        base_url: Of the API; what proxy the environment names for it is looked up here, once.
        headers: For every request.
        timeout: How long to wait.
        http: A session to use and to leave open; by default one is made at the first request.

    Raises:
        ConfigurationError: The environment names a proxy that aiohttp cannot use, such as one of SOCKS.
    """

    def __init__(
        self, base_url: str, headers: Mapping[str, str], timeout: Timeout, http: aiohttp.ClientSession | None
    ) -> None:
        self.timeout = timeout
        self._headers = headers
        self._http = http
        self._owns_http = http is None
        self._fresh_http: aiohttp.ClientSession | None = None
        self._closed = False
        # The loop that a borrowed session was made in is not public. It must be known before a request is sent: on
        # another loop the bytes may leave, and only the wait for the reply fails.
        self._loop: asyncio.AbstractEventLoop | None = getattr(http, "_loop", None)
        self._process = os.getpid()
        self._slots = asyncio.Semaphore(MAX_CALLS)
        self._proxy = proxy_for(base_url)
        # Time is kept here: aiohttp's total would end a stream, and costs more than one timeout around the call.
        self._client_timeout = aiohttp.ClientTimeout(total=None, connect=timeout.connect)

    @property
    def owns_http(self) -> bool:
        """Whether the aiohttp session was made here."""
        return self._owns_http

    async def fetch(
        self,
        request: Request,
        upload: AsyncIterator[bytes | memoryview] | None = None,
        heard: Heard | None = None,
        *,
        fresh: bool = False,
    ) -> Reply:
        """Send a request; give its whole reply, whatever its status.

        Args:
            request: What to send.
            upload: The request's body in pieces, in place of ``request.body``.
            heard: Holds what came of the reply, also where this fails or is cancelled.
            fresh: Whether to send it on a connection of its own; on a session that was handed in it has no effect.

        Raises:
            TransportError: No whole reply came.
            ProtocolViolation: What came is not HTTP, or is larger than any reply should be.
        """
        async with self._slots:
            try:
                async with asyncio.timeout(self.timeout.reply) as deadline:
                    data = _body(request) if upload is None else _Timed(upload, deadline, self.timeout)
                    response = await self._send(request, data, fresh=fresh)
                    if 300 <= response.status < 400 and upload is None:
                        response = await self._redirected(request, response)
                    with contextlib.closing(Incoming(request, response, stall=None)) as incoming:
                        if heard is None:
                            return await incoming.read_reply()
                        heard.begin(response.status, response.headers)
                        return await incoming.read_reply(heard.pieces)
            except FineTuneError as failure:
                if heard is not None:
                    heard.fail(failure.__cause__)
                raise
            except TimeoutError as error:
                raise in_our_words(error, request.name) from error

    async def open(self, request: Request, stall: float, buffer: int | None = None) -> Incoming:
        """Send a request; give its reply with the body unread. The caller closes it.

        Args:
            request: What to send.
            stall: How long, in seconds, no byte may come.
            buffer: Bytes that may wait to be read; by default as many as aiohttp likes.

        Raises:
            TransportError: No reply came.
            ProtocolViolation: What came is not HTTP.
        """
        try:
            async with asyncio.timeout(stall):
                response = await self._send(request, _body(request), buffer)
                if 300 <= response.status < 400:
                    response = await self._redirected(request, response, buffer)
        except FineTuneError:
            raise
        except TimeoutError as error:
            raise in_our_words(error, request.name) from error
        return Incoming(request, response, stall)

    async def read_reply(self, incoming: Incoming) -> Reply:
        """Read the whole of what was opened, in the time that a plain call has.

        Raises:
            TransportError: It did not come whole.
            ProtocolViolation: It is larger than any reply should be.
        """
        try:
            async with asyncio.timeout(self.timeout.reply):
                return await incoming.read_reply()
        except TimeoutError as error:
            raise in_our_words(error, incoming.name) from error

    def check_place(self) -> None:
        """Bind to the event loop that runs, at the first call; refuse any other loop, and a forked process.

        Raises:
            ConfigurationError: The connections belong elsewhere.
        """
        if self._process != os.getpid():
            raise ConfigurationError("the session was made in another process; make a new one after a fork")
        loop = asyncio.get_running_loop()
        if self._loop is None:
            self._loop = loop
        if self._loop is not loop:
            raise ConfigurationError(
                "the session belongs to another event loop, that of its first call or of the aiohttp session that it"
                " was given; make one in each loop: in each thread, and in each asyncio.run()"
            )

    async def aclose(self) -> None:
        """Close the connections, and the aiohttp session if it was made here.

        Raises:
            ConfigurationError: They belong to another event loop, which is not closed.
        """
        own = [http for http in (self._http if self._owns_http else None, self._fresh_http) if http is not None]
        if own and self._process == os.getpid():
            # With its loop closed there are only marks left to set. A forked process leaves its parent's sockets alone.
            if self._loop is not None and not self._loop.is_closed():
                self.check_place()
            for http in own:
                await http.close()
        self._closed = True

    async def _redirected(
        self, request: Request, response: aiohttp.ClientResponse, buffer: int | None = None
    ) -> aiohttp.ClientResponse:
        """Follow a reply's redirects, as far as they are to be followed; give the last reply with its body unread."""
        followed = 0
        while (target := redirected(request, Reply(response.status, response.headers, b""))) is not None:
            response.close()
            if followed == _MAX_REDIRECTS:
                raise ProtocolViolation(f"{request.name}: more than {_MAX_REDIRECTS} redirects")
            followed += 1
            request = target
            response = await self._send(request, _body(request), buffer)
        return response

    async def _send(
        self, request: Request, data: _Body | _Timed | None, buffer: int | None = None, *, fresh: bool = False
    ) -> aiohttp.ClientResponse:
        """Send a request; give its reply with the body unread.

        Raises:
            FineTuneError: Whatever went wrong, in our words: with a borrowed session that may be anything, for it runs
                middlewares, traces and more of its owner's code, before the request is sent and after.
        """
        if self._closed or (self._http is not None and self._http.closed):
            raise FineTuneError("the session is closed; make a new one")
        if self._http is None:
            self._http = self._new_http()
        http = self._http
        if fresh and self._owns_http:
            if self._fresh_http is None:
                self._fresh_http = self._new_http(force_close=True)
            http = self._fresh_http
        try:
            return await http.request(
                request.method,
                URL(request.url, encoded=True),
                data=data,
                # Never the session's own: aiohttp sends those to a proxy as well, the key as Proxy-Authorization.
                headers={**self._headers, **request.headers},
                proxy=self._proxy,
                read_bufsize=buffer,
                allow_redirects=False,
                auto_decompress=False,
                raise_for_status=False,
                timeout=self._client_timeout,
                max_line_size=_MAX_HEADER_BYTES,
                max_field_size=_MAX_HEADER_BYTES,
                middlewares=_SEND_ONCE if self._owns_http and request.method != "POST" else None,
            )
        except Exception as error:
            if self._owns_http and isinstance(error, FineTuneError):
                raise
            if data is None:
                raise in_our_words(error, request.name) from cause_of(error)
            raise _in_our_words_if_sent(error, request.name, data) from cause_of(error)

    def _new_http(self, *, force_close: bool = False) -> aiohttp.ClientSession:
        # Streams are unlimited, and plain calls are counted by `_slots`: hence no limit of connections.
        connector = aiohttp.TCPConnector(limit=0, force_close=force_close)
        return aiohttp.ClientSession(connector=connector, cookie_jar=aiohttp.DummyCookieJar())


def _body(request: Request) -> _Body | None:
    return None if request.body is None else _Body(request.body)


class _Body(aiohttp.BytesPayload):
    """A request's body that knows how far it came: a request without its body has no effect."""

    was_sent = False
    may_be_sent = False
    """Whether it was sent, or read by code that may have sent a body of its own in its place."""

    def decode(self, encoding: str = "utf-8", errors: str = "strict") -> str:
        self.may_be_sent = True
        return super().decode(encoding, errors)

    async def as_bytes(self, encoding: str = "utf-8", errors: str = "strict") -> bytes:
        self.may_be_sent = True
        return await super().as_bytes(encoding, errors)

    async def write(self, writer: AbstractStreamWriter) -> None:
        self.was_sent = self.may_be_sent = True
        await super().write(writer)

    async def write_with_length(self, writer: AbstractStreamWriter, content_length: int | None) -> None:
        self.was_sent = self.may_be_sent = True
        await super().write_with_length(writer, content_length)


class _Timed:
    """An upload's body that puts off the deadline whenever a piece of it is asked for, since the last one moved."""

    def __init__(self, pieces: AsyncIterator[bytes | memoryview], deadline: asyncio.Timeout, timeout: Timeout) -> None:
        self._pieces = pieces
        self._deadline = deadline
        self._timeout = timeout
        self.was_sent = self.may_be_sent = False

    def __aiter__(self) -> _Timed:
        return self

    async def __anext__(self) -> bytes | memoryview:
        self.was_sent = self.may_be_sent = True
        self._put_off(self._timeout.stall)
        try:
            return await anext(self._pieces)
        except StopAsyncIteration:
            self._put_off(self._timeout.reply)
            raise

    def _put_off(self, seconds: float) -> None:
        # A RuntimeError: the exchange is over (an early reply), and the rest of the body goes nowhere.
        with contextlib.suppress(RuntimeError):
            self._deadline.reschedule(asyncio.get_running_loop().time() + seconds)


async def _send_once(request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType) -> aiohttp.ClientResponse:
    """Keep aiohttp from sending a request again, as it does once for all but a POST: how often is decided above."""
    try:
        return await handler(request)
    except aiohttp.ClientConnectorError:
        raise
    except (aiohttp.ClientOSError, aiohttp.ServerDisconnectedError) as error:
        raise in_our_words(error, f"{request.method} {request.url}") from error


_SEND_ONCE: Final = (_send_once,)


def _in_our_words_if_sent(error: Exception, name: str, body: _Body | _Timed) -> FineTuneError:
    """The same for a request with a body, which may have had its effect where that was sent."""
    failure = in_our_words(error, name)
    match failure:
        case ConnectFailed() if body.was_sent:
            # Of something else that was connected to, by code which runs after the request.
            return ConnectionLost(f"{name}: sent, but then: {failure}")
        case ConfigurationError() if body.may_be_sent:
            return ConnectionLost(f"{name}: it may have been sent; {of_borrowed(error)}")
        case _:
            return failure
