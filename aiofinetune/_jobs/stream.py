"""Follow the events of a job that the service streams as they happen."""

from __future__ import annotations

import asyncio
import contextlib
from array import array
from collections.abc import Awaitable, Callable, Mapping, Sequence
from operator import attrgetter
from types import TracebackType
from typing import Final, Self

import attrs

from aiofinetune import _observe, structuring
from aiofinetune._http.reply_body import MAX_ERROR_BYTES, Incoming
from aiofinetune._jobs.events import EventStream
from aiofinetune._jobs.reconnecting import note_resumed, pause_after
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
)
from aiofinetune.models import FineTuneEvent
from aiofinetune.retry import Retry

_DONE: Final = b"[DONE]"
_IDENTITY: Final = attrgetter("created_at", "level", "message")
"""The identity of an event. Only its hash is kept of an event that was returned."""
_OBJECT: Final = attrs.fields(FineTuneEvent).object.default
_PINGS: Final = frozenset({"ping", "pong", "heartbeat", "keepalive", "keep-alive", "keep_alive"})
_CODES: Final = ("code", "statusCode", "status_code")
_TIMES: Final = frozenset({"created_at", "time", "timestamp", "ts"})
_BLANK: Final = b"\xef\xbb\xbf \t\r\n"
_REST_SECONDS: Final = 5.0
"""The number of seconds to wait for the rest of a body that is not an event stream."""
_LASTING: Final = 5.0
"""A connection that replayed everything and lasted longer than this many seconds resets the count of failures: proxies
close connections that are silent for long."""


class SentEvents(EventStream):
    """The events of a job that the service streams as server-sent events, ending with ``[DONE]``."""

    # This class and the classes that it uses have slots, because a program may hold thousands of streams.
    __slots__ = (
        "_again_at",
        "_connect",
        "_connected_at",
        "_decoder",
        "_failing_since",
        "_failures",
        "_given",
        "_has_begun",
        "_id",
        "_incoming",
        "_is_done",
        "_new",
        "_note_closed",
        "_policy",
        "_position",
        "_request",
        "_secrets",
        "_unread",
    )

    def __init__(
        self,
        connect: Callable[[Request], Awaitable[Incoming]],
        request: Request,
        fine_tune_id: str,
        policy: Retry,
        secrets: Sequence[str],
    ) -> None:
        self._connect = connect
        self._id = fine_tune_id
        self._request = request
        self._policy = policy
        self._secrets = secrets
        self._incoming: Incoming | None = None
        self._decoder: EventDecoder
        # These lists are in reverse order, so that pop() returns the next item. A deque takes more memory than a list,
        # which matters for thousands of streams.
        self._unread: list[tuple[bytes, bytes]] | None = None
        """The data and the names of the events that were received but not decoded yet, if there are any."""
        self._new: list[FineTuneEvent] = []
        """The events to return next."""
        self._given = array("q")
        """The hashes of the events that were returned, which take less memory than the events."""
        self._position = 0
        """The position of this connection in the job's history."""
        self._has_begun = False
        """Whether this connection has received anything except white space."""
        self._is_done = False
        self._failures = 0
        self._failing_since = 0.0
        self._connected_at = 0.0
        self._note_closed: Callable[[], object] | None = None
        """Tells the observer that this stream is closed, if it was told of the opening."""
        self._again_at: float | None = None
        """When to connect, by the event loop's clock; None while there is a connection. It is kept here so that a read
        that was cancelled during the wait can continue it."""

    async def __aenter__(self) -> Self:
        self._again_at = 0.0
        try:
            while self._again_at is not None:
                await self._open()
        except BaseException:
            self._close()
            raise
        if _observe.observer is not None:
            self._note_closed = _observe.observer.stream_opened()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._new.clear()
        self._again_at = None
        self._close()
        if self._note_closed is not None:
            self._note_closed()
            self._note_closed = None

    async def __anext__(self) -> FineTuneEvent:
        while not self._new:
            if self._is_done:
                raise StopAsyncIteration
            if self._again_at is not None:
                await self._open()
                continue
            try:
                if self._unread:
                    self._take_one(*self._unread.pop())
                else:
                    # Here and not in a coroutine of its own, which would stay in memory while a stream waits.
                    chunk = await self._connection().read()
                    if not self._has_begun:
                        await self._check_start(chunk)
                    self._take(chunk)
            except FineTuneError as error:
                failure = without_secret(error, *self._secrets)
            else:
                continue
            # Outside the except block: an error raised inside it would have `error` as its context, which may show the
            # key.
            self._fail(failure)
        return self._new.pop()

    async def _open(self) -> None:
        """Connect, when it is time; schedule a reconnect if that fails."""
        try:
            # On entering the context it is time already.
            if self._again_at and (seconds := self._again_at - asyncio.get_running_loop().time()) > 0:
                await asyncio.sleep(seconds)
            self._start(await self._connect(self._request))
            note_resumed(self._id, self._failures)
            if not _may_stream(self._connection().headers):
                # By its headers this is not a stream, so read on: the error is then raised on entering the context, not
                # at the first event.
                chunk = await self._connection().read()
                await self._check_start(chunk)
                self._take(chunk)
        except FineTuneError as error:
            failure = without_secret(error, *self._secrets)
        else:
            return
        # Outside the except block, as above.
        self._fail(failure)

    def _connection(self) -> Incoming:
        if self._incoming is None:
            raise FineTuneError("the event stream is not open; read it inside 'async with'")
        return self._incoming

    async def _check_start(self, chunk: bytes) -> None:
        """Raise an error if the first bytes of a connection show that it is not an event stream."""
        if chunk.startswith(b"data:"):
            self._has_begun = True
            return
        start, incoming = chunk.lstrip(_BLANK), self._connection()
        self._has_begun = bool(start)
        if not _may_begin(start, incoming.headers) or (not chunk and not _may_stream(incoming.headers)):
            raise in_place_of_events(scrubbed(await _rest_of(incoming, chunk), *self._secrets))

    def _take(self, chunk: bytes) -> None:
        """Decode the next bytes of the connection; keep the events from the first that may not be an event of a job."""
        events, names = self._events_of(chunk), self._decoder.names
        count = 0 if names or self._position < len(self._given) else self._take_plain(events)
        if count < len(events):
            names = names or [b""] * len(events)
            self._unread = list(zip(events, names, strict=True))[count:]
            self._unread.reverse()

    def _events_of(self, chunk: bytes) -> list[bytes]:
        """Return the events that the next bytes of the connection complete; an empty chunk is its end."""
        if chunk:
            events = self._decoder.feed(chunk)
            # All events are searched at once, which is cheaper than one by one.
            whole = b"\n".join(events)
            shows_key = scrubbed(whole, *self._secrets) is not whole
            return [scrubbed(event, *self._secrets) for event in events] if shows_key else events
        data = self._decoder.close().strip()
        if data == _DONE:
            return [_DONE]
        with contextlib.suppress(ProtocolViolation):
            # An error is raised even if it is cut off. Any other event is dropped, because it may not be complete.
            read_event(scrubbed(data, *self._secrets), *self._decoder.names)
        raise ConnectionLost("the event stream ended before [DONE]")

    def _take_plain(self, events: list[bytes]) -> int:
        """Decode events, which are new, up to one that may not be an event of a job; return their number.

        An object with a time and a message is an event if it has neither an error nor a type.
        """
        new, read = self._new, structuring.quick_reader(FineTuneEvent)
        for data in events:
            if data == _DONE:
                break
            try:
                value = structuring.loads(data)
                event = read(value, None)
            except ValueError:
                break
            if not event.created_at or event.object != _OBJECT or "error" in value or "type" in value:
                break
            new.append(event)
            self._given.append(hash(_IDENTITY(event)))
        if new:
            new.reverse()
            self._position = len(self._given)
            self._failures = 0
        return len(new)

    def _take_one(self, data: bytes, name: bytes) -> None:
        """Decode one event."""
        if data.strip() == _DONE:
            self._end()
            return
        event = read_event(data, name)
        if event is not None and self._is_new(event):
            self._new.append(event)

    def _is_new(self, event: FineTuneEvent) -> bool:
        """Count an event of this connection; return whether it is new, not part of the replayed history."""
        fingerprint, position = hash(_IDENTITY(event)), self._position
        self._position += 1
        if position < len(self._given):
            # If the history has changed, it is not known which events are new.
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
                f"the stream ended after {self._position} events; there were {len(self._given)} before the reconnect"
            )
        self._is_done = True
        self._close()

    def _start(self, incoming: Incoming) -> None:
        """Start reading from a new connection, at the start of the job's history."""
        self._incoming = incoming
        self._decoder = EventDecoder()
        self._has_begun = False
        self._position = 0
        self._connected_at = asyncio.get_running_loop().time()
        self._again_at = None

    def _fail(self, failure: FineTuneError) -> None:
        """Schedule a reconnect after a failure, or give up after too many failures without a new event.

        Raises:
            StreamInterrupted: There were too many failures.
            FineTuneError: The failure itself, if the stream was never open or reconnecting cannot help.
        """
        now = asyncio.get_running_loop().time()
        was_open = self._connected_at > 0
        self._close()
        self._again_at = None
        has_caught_up = 0 < self._position >= len(self._given)
        if has_caught_up and now - self._connected_at > max(self._policy.cap, _LASTING):
            # This counts as progress: a job may be silent for longer than a proxy keeps a connection open.
            self._failures = 0
        self._position = 0
        if self._failures == 0:
            self._failing_since = now
        self._failures += 1
        elapsed = now - self._failing_since
        seconds = pause_after(self._id, self._policy, failure, self._failures, elapsed, was_open=was_open)
        self._again_at = now + seconds

    def _close(self) -> None:
        self._unread = None
        if self._incoming is not None:
            self._incoming.close()
            self._incoming = None


def read_event(data: bytes, name: bytes = b"") -> FineTuneEvent | None:
    """Decode one event of a stream; return None if it only keeps the connection open.

    Services send errors and pings in many forms. An object whose ``object`` field says that it is an event is always an
    event. Otherwise, an error has the name, the type or a field of an error, and a ping has the name or the type of a
    ping, or no content.

    Args:
        data: The data of the event.
        name: The name of the event (its ``event`` field), if it has one.

    Raises:
        APIError: The service sent an error in place of an event.
        ProtocolViolation: The data is not an event of a job.
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
        # The event is of a kind that is not known here, which must not end the stream.
        return None


def in_place_of_events(body: bytes) -> FineTuneError:
    """Return the error for a body that is not an event stream.

    Args:
        body: The start of the body, without the key.
    """
    start = body.lstrip(_BLANK)
    if start[:1] not in (b"{", b"["):
        what = f"a page that starts with {structuring.excerpt(start)}" if start else "an empty page"
        return ProtocolViolation(
            f"the reply is not an event stream, but {what}; a proxy may have answered, or base_url may be wrong"
        )
    # The body may be one JSON document, or JSON Lines.
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
    """Return whether an object says that it is an event of a job."""
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
        # Events have a time or a level, and errors have neither.
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
    """Return whether a body may be an event stream, by its content type.

    Some services leave out the type or get it wrong, so only types that rule out a stream count.
    """
    return not _type_of(headers).endswith(("html", "json", "xml"))


def _may_begin(start: bytes, headers: Mapping[str, str]) -> bool:
    """Return whether an event stream may begin with these bytes.

    It begins with a field. If its content type is right, it may begin with anything except a page or JSON.
    """
    if _type_of(headers) == "text/event-stream":
        return start[:1] not in (b"<", b"{", b"[")
    return any(start.startswith(field[: len(start)]) for field in (b":", b"data", b"event", b"id", b"retry"))


async def _rest_of(incoming: Incoming, start: bytes) -> bytes:
    """Read more of a body that is not an event stream, so that it holds the whole message of an error."""
    with contextlib.suppress(FineTuneError, TimeoutError):
        async with asyncio.timeout(_REST_SECONDS):
            while len(start) < MAX_ERROR_BYTES and (more := await incoming.read()):
                start += more
    return start[:MAX_ERROR_BYTES]
