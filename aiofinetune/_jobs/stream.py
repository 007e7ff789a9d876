"""The events of a job as they happen."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from array import array
from collections.abc import Awaitable, Callable, Mapping
from operator import attrgetter
from types import TracebackType
from typing import Final, Self

import attrs

from aiofinetune import retry, structuring
from aiofinetune._http.reply_body import MAX_ERROR_BYTES, Incoming
from aiofinetune._secret import scrubbed, without_secret
from aiofinetune._sse import EventDecoder
from aiofinetune.dialects._error_replies import MAX_WORDS, Words, error_words
from aiofinetune.dialects._requests import Request
from aiofinetune.errors import (
    APIError,
    ConnectionLost,
    FineTuneError,
    ProtocolViolation,
    StreamHistoryChanged,
    StreamInterrupted,
)
from aiofinetune.models import FineTuneEvent
from aiofinetune.retry import Retry

_DONE: Final = b"[DONE]"
_IDENTITY: Final = attrgetter("created_at", "level", "message")
"""What tells an event from others: a hash of it is what is kept of those that were given."""
_AT_ONCE: Final = 100
"""Events that are read together, which costs less than one by one; no more, for where one is odd, those before it are
read once more each."""
_OBJECT: Final = attrs.fields(FineTuneEvent).object.default
_PINGS: Final = frozenset({"ping", "pong", "heartbeat", "keepalive", "keep-alive", "keep_alive"})
_CODES: Final = ("code", "statusCode", "status_code")
_TIMES: Final = frozenset({"created_at", "time", "timestamp", "ts"})
_BLANK: Final = b"\xef\xbb\xbf \t\r\n"
_REST_SECONDS: Final = 5.0
"""How long to wait for the rest of a body that is not an event stream."""
_LASTING: Final = 5.0
"""Seconds after which a connection that told all has done what it could: proxies cut those that are silent for long."""

_log = logging.getLogger("aiofinetune")


class EventStream:
    """A job's events: an async context manager, and within it an async iterator of `FineTuneEvent`.

    ::

        async with session.stream_fine_tune_events(job.id) as events:
            async for event in events:
                print(event.message)

    The service sends the job's history first, then each event as it happens, and ends the stream with ``[DONE]`` when
    the job is over; nothing else ends it. When the connection breaks or falls silent, it is made anew: the service
    tells the history again, and what was given already is skipped, by position, for events have no ids and their
    times are alike. Leaving the context frees the connection, however far the stream was read.
    A read may be cancelled and go on later; but while there is no connection, one that is cancelled sooner than a
    connection takes makes none, however often it is repeated, and counts as no failure.

    Raises, while it is read:
        StreamInterrupted: The connection broke again and again without a new event; the last cause is chained.
        StreamHistoryChanged: After a reconnect the service told another history than before.
        APIError: The service sent an error in place of an event, or refused to go on.
        ProtocolViolation: The service sent something that is not an event of a job, or a page or JSON in place of the
            stream.
    """

    # Here and in what it holds: there may be thousands.
    __slots__ = (
        "_again_at",
        "_api_key",
        "_connect",
        "_connected_at",
        "_decoder",
        "_failing_since",
        "_failures",
        "_given",
        "_has_begun",
        "_has_caught_up",
        "_incoming",
        "_is_done",
        "_is_odd",
        "_names",
        "_new",
        "_policy",
        "_position",
        "_request",
        "_unread",
    )

    def __init__(
        self,
        connect: Callable[[Request], Awaitable[Incoming]],
        request: Request,
        policy: Retry,
        api_key: str,
    ) -> None:
        self._connect = connect
        self._request = request
        self._policy = policy
        self._api_key = api_key
        self._incoming: Incoming | None = None
        self._decoder = EventDecoder()
        # Both with the next one last: a list takes less than a deque, of which each of a thousand streams had two.
        self._unread: list[bytes] = []
        """What was received, and not looked at."""
        self._names: list[bytes] = []
        """The names of these events; empty where none has one."""
        self._is_odd = False
        """Whether one of them may be no event of a job."""
        self._new: list[FineTuneEvent] = []
        """Events that are to be given."""
        self._given = array("q")
        """Hashes of the events that were given: what is left of a long history."""
        self._position = 0
        """Where in the job's history this connection stands."""
        self._has_begun = False
        """Whether this connection has brought anything but white space."""
        self._has_caught_up = False
        """Whether this connection has told all that was given."""
        self._is_done = False
        self._failures = 0
        self._failing_since = 0.0
        self._connected_at = 0.0
        self._again_at: float | None = None
        """When to connect, by the event loop's clock, while there is no connection. Kept here, so that whoever
        was cancelled while waiting for it may go on."""

    async def __aenter__(self) -> Self:
        self._again_at = asyncio.get_running_loop().time()
        try:
            while self._again_at is not None:
                await self._advance()
        except BaseException:
            self._close()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._new.clear()
        self._again_at = None
        self._close()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> FineTuneEvent:
        while not self._new:
            if self._is_done:
                raise StopAsyncIteration
            await self._advance()
        return self._new.pop()

    async def _advance(self) -> None:
        """Connect, if that is due; else take what was received next, and where there is nothing, receive some."""
        try:
            if self._again_at is not None:
                if (seconds := self._again_at - asyncio.get_running_loop().time()) > 0:
                    await asyncio.sleep(seconds)
                self._start(await self._connect(self._request))
                if _may_stream(self._connection().headers):
                    return
                # Something else than a stream is an error as it is entered, rather than at the first event.
            if not self._unread:
                self._has_caught_up = 0 < self._position >= len(self._given)
                chunk = await self._connection().read()
                if not self._has_begun:
                    await self._check_start(chunk)
                self._unread = self._events_of(chunk)
                self._unread.reverse()
            if self._unread and (self._is_odd or self._position < len(self._given) or not self._take_some()):
                self._take_one()
        except FineTuneError as error:
            failure = without_secret(error, self._api_key)
        else:
            return
        self._fail(failure)

    def _connection(self) -> Incoming:
        if self._incoming is None:
            raise FineTuneError("the event stream is not open; read it inside 'async with'")
        return self._incoming

    async def _check_start(self, chunk: bytes) -> None:
        """Raise the error for what a connection brings, if its first bytes show that it is not an event stream."""
        start, incoming = chunk.lstrip(_BLANK), self._connection()
        self._has_begun = bool(start)
        if not _may_begin(start, incoming.headers) or (not chunk and not _may_stream(incoming.headers)):
            raise in_place_of_events(scrubbed(await _rest_of(incoming, chunk), self._api_key))

    def _events_of(self, chunk: bytes) -> list[bytes]:
        """Return the events that the next bytes of the connection complete; none is its end."""
        if chunk:
            events = self._decoder.feed(chunk)
            if self._decoder.names:
                self._names = self._decoder.names[::-1]
            whole = b"\n".join(events)
            # Without these words, an object with a time and a message is an event. By `find`, as in `scrubbed`.
            self._is_odd = bool(self._names) or whole.find(b'"error"') >= 0 or whole.find(b'"type"') >= 0
            shows_key = scrubbed(whole, self._api_key) is not whole
            return [scrubbed(event, self._api_key) for event in events] if shows_key else events
        data = self._decoder.close().strip()
        if data == _DONE:
            return [_DONE]
        with contextlib.suppress(ProtocolViolation):
            # An error is raised though the end cuts it off; any other event may be another one when it is whole.
            read_event(scrubbed(data, self._api_key), *self._decoder.names)
        raise ConnectionLost("the event stream ended before [DONE]")

    def _take_some(self) -> bool:
        """Take several of the events that were received, all of them new; not if one of them is odd."""
        received = self._unread[-_AT_ONCE:]
        if received[0] == _DONE:
            del received[0]
        if not received:
            return False
        try:
            events = structuring.read_replies(received, FineTuneEvent)
        except ProtocolViolation:
            return False
        if [event for event in events if not event.created_at or event.object != _OBJECT]:
            return False
        self._new = events
        for event in reversed(events):
            self._given.append(hash(_IDENTITY(event)))
        self._position = len(self._given)
        self._failures = 0
        del self._unread[-len(received) :]
        return True

    def _take_one(self) -> None:
        """Take one event that was received."""
        data = self._unread.pop()
        name = self._names.pop() if self._names else b""
        if data.strip() == _DONE:
            self._end()
            return
        event = read_event(data, name)
        if event is not None and self._is_new(event):
            self._new.append(event)

    def _is_new(self, event: FineTuneEvent) -> bool:
        """Count an event of this connection; whether it goes beyond the history that was given."""
        fingerprint, position = hash(_IDENTITY(event)), self._position
        self._position += 1
        if position < len(self._given):
            if self._given[position] != fingerprint:
                raise StreamHistoryChanged(
                    f"event {position + 1} differs from the one before the reconnect: {event.message[:200]!r}"
                )
            return False
        self._given.append(fingerprint)
        self._failures = 0
        return True

    def _end(self) -> None:
        if self._position < len(self._given):
            raise StreamHistoryChanged(
                f"the stream ended after {self._position} events, and had {len(self._given)} before the reconnect"
            )
        self._is_done = True
        self._close()

    def _start(self, incoming: Incoming) -> None:
        """Read from a new connection, from the start of the job's history."""
        self._incoming = incoming
        self._decoder = EventDecoder()
        self._has_begun = False
        self._position = 0
        self._connected_at = asyncio.get_running_loop().time()
        self._again_at = None

    def _fail(self, failure: FineTuneError) -> None:
        """Say when to connect again after a failure that this may mend; give up after too many without a new event.

        Raises:
            StreamInterrupted: Given up.
            FineTuneError: The failure itself, where the stream never was open or no new connection mends it.
        """
        now = asyncio.get_running_loop().time()
        was_open = self._connected_at > 0
        self._close()
        self._again_at = None
        if self._has_caught_up and now - self._connected_at > max(self._policy.cap, _LASTING):
            # That is progress too: jobs are silent for longer than a proxy may wait.
            self._failures = 0
        self._has_caught_up = False
        if not retry.may_pass(failure):
            # A new connection does not mend it.
            raise failure
        if self._failures == 0:
            self._failing_since = now
        self._failures += 1
        seconds = retry.delay(self._policy, failure, self._failures, now - self._failing_since, idempotent=True)
        if seconds is not None:
            self._again_at = now + seconds
            _log.info("event stream, failure %d: %s; reconnecting in %.1f s", self._failures, failure, seconds)
        elif was_open:
            raise StreamInterrupted(f"{failure}; the job may still be running") from failure
        else:
            raise failure

    def _close(self) -> None:
        self._unread.clear()
        self._names.clear()
        if self._incoming is not None:
            self._incoming.close()
            self._incoming = None


def read_event(data: bytes, name: bytes = b"") -> FineTuneEvent | None:
    """Read one event of a stream; None for what only keeps the connection open.

    Services send errors and pings in many shapes. An object that says that it is an event of a job is one. Of the
    rest, an error has the name, the type or a field of one, and a ping has the name or the type of one, or no content.

    Args:
        data: Its data.
        name: Its name (the ``event`` field), if it has one.

    Raises:
        APIError: The service sent an error in its place.
        ProtocolViolation: It is not an event of a job.
    """
    kind = name.decode(errors="replace").strip().lower()
    if _names_error(kind):
        raise _error_of(data)
    if kind in _PINGS or data.strip().decode(errors="replace").lower() in _PINGS:
        return None
    try:
        value = structuring.read_json(data) if data else None
        if isinstance(value, dict) and not _says_event(value):
            if _is_error(value):
                raise _error_of(data)
            if _is_ping(value):
                return None
            kind = kind or str(value.get("type") or "").lower()
        return None if value is None else structuring.read_reply(data, FineTuneEvent)
    except ProtocolViolation:
        if kind in ("", "message") or kind.endswith("event"):
            raise
        # Of a kind of its own, which an unknown word must not make an error.
        return None


def in_place_of_events(body: bytes) -> FineTuneError:
    """Return the error for a body that is not an event stream.

    Args:
        body: Its start, without the key.
    """
    start = body.lstrip(_BLANK)
    if start[:1] not in (b"{", b"["):
        what = f"a page that starts with {structuring.excerpt(start)}" if start else "an empty page"
        return ProtocolViolation(
            f"the reply is not an event stream, but {what}; a proxy may have answered, or base_url may be wrong"
        )
    # Whole, or one object on each line.
    for text in (start, start.partition(b"\n")[0]):
        with contextlib.suppress(ProtocolViolation):
            value = structuring.read_json(text)
            if isinstance(value, list) and value:
                value = value[0]
            if isinstance(value, dict) and not _says_event(value) and _is_error(value):
                return _error_of(text)
    return ProtocolViolation(
        "the service does not stream events: it answered with JSON; list_fine_tune_events() returns those so far. The"
        f" reply starts with {structuring.excerpt(start)}"
    )


def _says_event(value: Mapping[str, object]) -> bool:
    """Whether an object says that it is an event of a job."""
    return str(value.get("object", "")).endswith("event")


def _names_error(word: object) -> bool:
    return str(word).lower().endswith(("error", "exception"))


def _is_error(value: Mapping[str, object]) -> bool:
    has_message = value.get("message") is not None
    error = value.get("error")
    if (
        error
        or (error == {} and not has_message)
        or _names_error(value.get("object"))
        or _names_error(value.get("type"))
    ):
        return True
    if has_message and (value.get("created_at") or value.get("level")):
        # An event has a time or a level, and an error has neither.
        return False
    if any(value.get(name) for name in _CODES) or _names_error(value.get("status")) or value.get("success") is False:
        return True
    return not has_message and any(value.get(name) for name in ("detail", "errors", "msg", "title"))


def _is_ping(value: Mapping[str, object]) -> bool:
    has_message = value.get("message") is not None
    said = {str(value.get(name)).lower() for name in ("object", "type", *(() if has_message else ("event", "status")))}
    names = {name.lower() for name in value if value[name] is not None}
    return not said.isdisjoint(_PINGS) or names <= _PINGS | _TIMES


def _error_of(data: bytes) -> APIError:
    words = error_words(data)
    if words is None:
        text = data.strip().decode(errors="replace")
        words = Words(text[:MAX_WORDS] or "no message")
    return APIError(200, *words)


def _type_of(headers: Mapping[str, str]) -> str:
    return headers.get("Content-Type", "").partition(";")[0].strip().lower()


def _may_stream(headers: Mapping[str, str]) -> bool:
    """Whether a body may be an event stream by its type, which some services leave out or get wrong."""
    return not _type_of(headers).endswith(("html", "json", "xml"))


def _may_begin(start: bytes, headers: Mapping[str, str]) -> bool:
    """Whether an event stream may begin like this: with a field, or by its type with anything but a page or JSON."""
    if _type_of(headers) == "text/event-stream":
        return start[:1] not in (b"<", b"{", b"[")
    return any(start.startswith(field[: len(start)]) for field in (b":", b"data", b"event", b"id", b"retry"))


async def _rest_of(incoming: Incoming, start: bytes) -> bytes:
    """Read more of a body that is not an event stream, until it has room for an error's words."""
    with contextlib.suppress(FineTuneError, TimeoutError):
        async with asyncio.timeout(_REST_SECONDS):
            while len(start) < MAX_ERROR_BYTES and (more := await incoming.read()):
                start += more
    return start[:MAX_ERROR_BYTES]
