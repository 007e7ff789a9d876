"""Send one request, read one reply, and translate failures into this package's own errors.

No other module of the client sends anything with aiohttp. This module neither knows the API nor retries.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
from collections.abc import AsyncIterator, Callable, Mapping
from types import MappingProxyType
from typing import Any, Final

import aiohttp
import attrs
from aiohttp.abc import AbstractResolver, AbstractStreamWriter
from yarl import URL

from aiofinetune import _observe
from aiofinetune._http.deadlines import Deadline, Deadlines
from aiofinetune._http.network_errors import cause_of, in_our_words, of_borrowed
from aiofinetune._http.proxies import proxy_for
from aiofinetune._http.reply_body import Incoming, arrived, reply_of
from aiofinetune._http.waits import LOOK_INTERVAL, Waits
from aiofinetune._secret import Secret
from aiofinetune._value import Value
from aiofinetune.dialects._requests import Reply, Request, redirected
from aiofinetune.errors import (
    ConfigurationError,
    ConnectFailed,
    ConnectionLost,
    FineTuneError,
    ProtocolViolation,
)
from aiofinetune.retry import is_number

MAX_CALLS: Final = 100
"""The maximum number of plain calls at the same time; further calls wait. Event streams do not count."""


_MAX_REDIRECTS: Final = 5


SMALL_BUFFER: Final = 16 << 10
"""The number of bytes of an event stream that aiohttp buffers before it stops reading. With its larger default, aiohttp
checks after each small chunk whether to resume reading, which is a quarter of the cost of a stream of small chunks."""


_KEPT: Final = 8 << 20
"""The number of bytes of a block that the C library is to keep: as many as a download holds. With half of that, it
gives what a download frees back to the kernel."""


_MAX_HEADER_BYTES: Final = 64 << 10
"""The maximum length of a header line. aiohttp's default of 8,190 is too short for the cookies and policies that some
proxies send."""


_NO_STATUS_LINE: Final = r"Bad status line:\n  Expected HTTP/[^\n]*\n\n  b'[^\n]*\n    \^"
"""aiohttp's message for a reply that is not HTTP from its first byte. After any other message a status line may have
been read before the error: aiohttp parses a whole packet at once, and does not pass on the status line."""


@attrs.frozen(eq=False, repr=False)
class Timeout(Value):
    """How long to wait, in seconds.

    Args:
        connect: For a connection: name look-up, TCP and TLS.
        reply: For a plain call, from its start to the last byte of its reply. For an upload, from when its last bytes
            were passed to the operating system, which may buffer a few hundred KB.
        stall: For a download, until the next byte arrives. For an upload, until the next 256 KB are accepted.
        stream: For an event stream, until the next byte arrives. Jobs may be silent for a long time.

    Raises:
        ConfigurationError: A value is out of range.
    """

    connect: float = 10.0
    reply: float = 60.0
    stall: float = 60.0
    stream: float = 300.0

    def __attrs_post_init__(self) -> None:
        """Check the ranges."""
        for name, seconds in attrs.asdict(self).items():
            # Written as "not >" so that NaN is refused too.
            if not is_number(seconds) or not seconds > 0:
                raise ConfigurationError(f"{name}: expected more than 0 seconds, got {seconds!r}")


class Heard:
    """The part of a reply that has been received, which is all the evidence there is if a create's reply breaks off."""

    __slots__ = ("headers", "is_garbled", "pieces", "status")

    def __init__(self) -> None:
        self.status: int | None = None
        """The status; None until the status line is read."""
        self.headers: Mapping[str, str] = MappingProxyType({})
        self.pieces: list[bytes] = []
        """The bytes of the body."""
        self.is_garbled = False
        """Whether the reply is not HTTP, but may have begun with a status line that aiohttp does not report."""

    @property
    def is_accepted(self) -> bool:
        """Whether the status line says, or may have said, that the service accepted the request (2xx)."""
        return self.is_garbled or (self.status is not None and 200 <= self.status < 300)

    def fail(self, error: BaseException | None) -> None:
        """Record what `error`, which ended the reply, shows about its head, unless the head is known."""
        if self.status is not None:
            return
        match error:
            case aiohttp.ServerDisconnectedError(message=aiohttp.http.RawResponseMessage(code=status)):
                self.status = status
            case aiohttp.ClientHttpProxyError():
                # The proxy's reply, before any connection to the service. The next case would match it too.
                pass
            case aiohttp.ClientResponseError(message=message):
                self.is_garbled = re.match(_NO_STATUS_LINE, message) is None

    def begin(self, status: int, headers: Mapping[str, str]) -> None:
        """Record the head of the reply."""
        self.status = status
        self.headers = headers


class Transport:
    """Sends requests on one aiohttp session, borrowed or its own.

    Args:
        base_url: The URL of the API. Its proxy, if the environment names one, is looked up once, here.
        headers: The headers of every request.
        timeout: How long to wait.
        http: A session to use, which is never closed here; by default one is made at the first request.
        resolver: Looks up names; by default aiohttp's own.
        adds_content_type: Whether a body without a content type gets one.

    Raises:
        ConfigurationError: The environment names a proxy that aiohttp cannot use, such as a SOCKS proxy.
    """

    def __init__(
        self,
        base_url: str,
        headers: Mapping[str, str],
        timeout: Timeout,
        http: aiohttp.ClientSession | None,
        *,
        resolver: AbstractResolver | None = None,
        adds_content_type: bool = True,
    ) -> None:
        # The C library keeps freed memory for blocks up to the size of the largest one ever freed. Without this line it
        # gets each buffer that asyncio reads into from the kernel, and gives it back: a fifth of the CPU of 1,000
        # streams, and a tenth of that of a create.
        bytes(_KEPT)
        self.timeout = timeout
        self._http = http
        self._owns_http = http is None
        self._fresh_http: aiohttp.ClientSession | None = None
        self._closed = False
        # The loop of a borrowed session is not public. It must be known before anything is sent: on another loop the
        # request may be sent, and only the wait for its reply fails.
        self._loop: asyncio.AbstractEventLoop | None = getattr(http, "_loop", None)
        self._process = os.getpid()
        self._slots = asyncio.Semaphore(MAX_CALLS)
        self._deadlines = Deadlines()
        self._waits = Waits(min(LOOK_INTERVAL, timeout.stall, timeout.stream))
        self._proxy = proxy_for(base_url)
        # aiohttp takes the headers of a session as they are, and handles each that a call passes. But it sends those of
        # a session to a proxy too, with the key as Proxy-Authorization.
        is_shared = http is None and self._proxy is None
        self._shared_headers = dict(headers) if is_shared else {}
        self._headers = {} if is_shared else dict(headers)
        # A proxy has a name of its own to look up, and looks up the others itself.
        self._resolver = None if self._proxy else resolver
        settings = _settings(timeout)
        # A session made here has the settings itself, and aiohttp handles each that a call passes.
        self._options: dict[str, Any] = settings if http is not None else {}  # Any: as aiohttp has them
        if self._proxy is not None:
            self._options["proxy"] = self._proxy
        if not adds_content_type:
            self._options["skip_auto_headers"] = ("Content-Type",)

    def authorize(self, token: Secret) -> None:
        """Send this access token with every request from now on."""
        self._headers["Authorization"] = Secret(f"Bearer {token}")

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
        take: Callable[[bytes], object] | None = None,
    ) -> Reply:
        """Send a request; return its complete reply, whatever its status.

        Args:
            request: The request.
            upload: The body in pieces, in place of ``request.body``.
            heard: Is filled with the received part of the reply, even if this fails or is cancelled.
            fresh: Whether to send the request on a new connection. This has no effect on a borrowed session.
            take: Called with each piece of the body of a successful reply, which then is not in the reply.

        Raises:
            TransportError: No complete reply was received.
            ProtocolViolation: The reply is not HTTP, or longer than any reply should be.
        """
        await self._slots.acquire()
        try:
            with Deadline(self._deadlines, self.timeout.reply) as deadline:
                data = _body(request) if upload is None else _Timed(upload, deadline, self.timeout)
                response = await self._send(request, data, fresh=fresh)
                # An upload cannot follow a redirect: its body may have been read already.
                if 300 <= response.status < 400 and upload is None:
                    response = await self._redirected(request, response)
                if heard is not None:
                    heard.begin(response.status, response.headers)
                if take is None and (body := arrived(response)) is not None:
                    # To read it as one that comes in pieces would be a fiftieth of a create.
                    response.close()
                    if heard is not None:
                        heard.pieces.append(body)
                    return reply_of(response, body)
                return await self._read(Incoming(request, response, None, self._waits), heard, take)
        except FineTuneError as failure:
            if heard is not None:
                heard.fail(failure.__cause__)
            raise
        except TimeoutError as error:
            raise in_our_words(error, request.name) from error
        finally:
            self._slots.release()

    async def _read(self, incoming: Incoming, heard: Heard | None, take: Callable[[bytes], object] | None) -> Reply:
        with contextlib.closing(incoming):
            if take is not None and incoming.status < 300:
                await incoming.read_pieces(take)
                return Reply(incoming.status, incoming.headers, b"")
            return await incoming.read_reply(None if heard is None else heard.pieces)

    async def open(self, request: Request, stall: float, buffer: int | None = None) -> Incoming:
        """Send a request; return its reply with the body unread. The caller must close it.

        Args:
            request: The request.
            stall: How long to wait for the next byte, in seconds.
            buffer: The number of bytes that may be buffered; by default aiohttp's own limit.

        Raises:
            TransportError: No reply was received.
            ProtocolViolation: The reply is not HTTP.
        """
        try:
            with Deadline(self._deadlines, stall):
                response = await self._send(request, _body(request), buffer)
                if 300 <= response.status < 400:
                    response = await self._redirected(request, response, buffer)
        except FineTuneError:
            raise
        except TimeoutError as error:
            raise in_our_words(error, request.name) from error
        return Incoming(request, response, stall, self._waits)

    async def read_reply(self, incoming: Incoming) -> Reply:
        """Read the rest of a reply that `open` returned, in the time that a plain call may take.

        Raises:
            TransportError: The reply is not complete.
            ProtocolViolation: The reply is longer than any reply should be.
        """
        try:
            with Deadline(self._deadlines, self.timeout.reply):
                return await incoming.read_reply()
        except TimeoutError as error:
            raise in_our_words(error, incoming.name) from error

    def check_place(self) -> None:
        """Bind the session to the running event loop at the first call; refuse another loop or a forked process.

        Raises:
            ConfigurationError: The session belongs to another loop or process.
        """
        if self._process != os.getpid():
            raise ConfigurationError("the session was created in another process; create a new one after a fork")
        loop = asyncio.get_running_loop()
        if self._loop is None:
            self._loop = loop
        if self._loop is not loop:
            raise ConfigurationError(
                "the session belongs to another event loop (that of its first call, or of the aiohttp session that was"
                " passed in); create a session in each event loop, that is, in each thread and in each asyncio.run()"
            )

    async def aclose(self) -> None:
        """Close the connections, and the aiohttp session unless it is borrowed.

        Raises:
            ConfigurationError: The connections belong to another event loop, which is still open.
        """
        own = [http for http in (self._http if self._owns_http else None, self._fresh_http) if http is not None]
        if own and self._process == os.getpid():
            # If the loop is closed, closing the session only marks it as closed. A forked process must not touch its
            # parent's sockets.
            if self._loop is not None and not self._loop.is_closed():
                self.check_place()
            for http in own:
                await http.close()
            self._deadlines.close()
            self._waits.close()
        self._closed = True

    async def _redirected(
        self, request: Request, response: aiohttp.ClientResponse, buffer: int | None = None
    ) -> aiohttp.ClientResponse:
        """Follow the redirects that may be followed; return the last reply with its body unread."""
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
        """Send a request; return its reply with the body unread.

        Raises:
            FineTuneError: Any failure. A borrowed session may raise anything, because it runs its owner's middlewares
                and traces, both before and after the request is sent.
        """
        if self._closed or (self._http is not None and self._http.closed):
            raise FineTuneError("the session is closed; create a new one")
        if self._http is None:
            self._http = self._new_http()
        http = self._http
        if fresh and self._owns_http:
            if self._fresh_http is None:
                self._fresh_http = self._new_http(force_close=True)
            http = self._fresh_http
        # Any: as aiohttp has them
        options: dict[str, Any] = self._options if buffer is None else {**self._options, "read_bufsize": buffer}
        try:
            response = await http.request(
                request.method,
                # The URL is already encoded, and must be sent as it was checked: yarl would normalise it.
                URL(request.url, encoded=True),
                data=data,
                headers={**self._headers, **request.headers} if self._headers else request.headers,
                allow_redirects=False,
                middlewares=_SEND_ONCE if self._owns_http and request.method != "POST" else None,
                **options,
            )
        except Exception as error:
            _note(request, None)
            if self._owns_http and isinstance(error, FineTuneError):
                # `_send_once` raised it, so it is already translated. From a borrowed session it is its owner's error.
                raise
            if data is None:
                raise in_our_words(error, request.name) from cause_of(error)
            raise _in_our_words_if_sent(error, request.name, data) from cause_of(error)
        if _observe.has_watched:
            _note(request, response)
        return response

    def _new_http(self, *, force_close: bool = False) -> aiohttp.ClientSession:
        # No limit on connections: `_slots` limits plain calls, and event streams are not limited.
        connector = aiohttp.TCPConnector(limit=0, force_close=force_close, resolver=self._resolver)
        return aiohttp.ClientSession(
            connector=connector,
            cookie_jar=aiohttp.DummyCookieJar(),
            headers=self._shared_headers,
            **_settings(self.timeout),
        )


def _settings(timeout: Timeout) -> dict[str, Any]:  # Any: as aiohttp has them
    """Return how aiohttp sends a request and reads its reply, as arguments of a session or of one request."""
    return {
        # Total times are measured here: aiohttp's `total` would end an event stream.
        "timeout": aiohttp.ClientTimeout(total=None, connect=timeout.connect),
        # Decompressed by `Incoming`, which limits how much one read returns.
        "auto_decompress": False,
        "raise_for_status": False,
        "max_line_size": _MAX_HEADER_BYTES,
        "max_field_size": _MAX_HEADER_BYTES,
    }


def _note(request: Request, response: aiohttp.ClientResponse | None) -> None:
    """Note what the current call asked for, and the head of the reply, if there is one."""
    if (call := _observe.current()) is None:
        return
    # The URL that was asked for: one that a service redirects to may hold anything.
    call.url = call.url or request.url.partition("?")[0]
    if response is not None:
        call.status = response.status
        call.request_id = response.headers.get("x-request-id")


def _body(request: Request) -> _Body | None:
    return None if request.body is None else _Body(request.body)


class _Body(aiohttp.BytesPayload):
    """A request's body that records whether it was sent, because a request without its body has no effect."""

    was_sent = False
    may_be_sent = False
    """Whether the body was sent, or was read by other code, which may have sent a copy of it."""

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
    """An upload's body that extends the deadline for each piece: if the next one is needed, the last one was sent."""

    def __init__(self, pieces: AsyncIterator[bytes | memoryview], deadline: Deadline, timeout: Timeout) -> None:
        self._pieces = pieces
        self._deadline = deadline
        self._timeout = timeout
        self.was_sent = self.may_be_sent = False

    def __aiter__(self) -> _Timed:
        return self

    async def __anext__(self) -> bytes | memoryview:
        self.was_sent = self.may_be_sent = True
        self._deadline.put_off(self._timeout.stall)
        try:
            return await anext(self._pieces)
        except StopAsyncIteration:
            self._deadline.put_off(self._timeout.reply)
            raise


async def _send_once(request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType) -> aiohttp.ClientResponse:
    """Keep aiohttp from resending a request, as it does once unless it is a POST: `Retry` decides how often."""
    try:
        return await handler(request)
    except aiohttp.ClientConnectorError:
        raise
    except (aiohttp.ClientOSError, aiohttp.ServerDisconnectedError) as error:
        raise in_our_words(error, f"{request.method} {request.url}") from cause_of(error)


_SEND_ONCE: Final = (_send_once,)


def _in_our_words_if_sent(error: Exception, name: str, body: _Body | _Timed) -> FineTuneError:
    """Return the error for a request with a body, which may have had its effect if the body was sent."""
    failure = in_our_words(error, name)
    match failure:
        case ConnectFailed() if body.was_sent:
            # The failed connection was another one, made by code of the session that runs after the request.
            return ConnectionLost(f"{name}: the request was sent, but then failed: {failure}")
        case ConfigurationError() if body.may_be_sent:
            return ConnectionLost(f"{name}: the request may have been sent: {of_borrowed(error)}")
        case _:
            return failure
