"""What a service may send in an event stream, and what the reader makes of it."""

from __future__ import annotations

import asyncio
import contextlib
import json
from asyncio import StreamWriter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiofinetune import APIError, FineTuneError, ProtocolViolation, RequestInvalid, StreamInterrupted
from aiofinetune._jobs.stream import in_place_of_events, read_event
from aiofinetune._sse import MAX_EVENT_BYTES
from tests.servers.rawserver import (
    KEY,
    STREAM_HEAD,
    Received,
    answering,
    chunk,
    event,
    reply,
    session_for,
    talking_to,
    targets,
)
from tests.session.calls import ONCE
from tests.session.streams import DONE, messages

pytestmark = pytest.mark.fastforward


async def test_request() -> None:
    """A stream asks for events as they happen, uncompressed, of the job whose id is encoded."""
    seen: list[Received] = []
    async with talking_to(answering(STREAM_HEAD + chunk(DONE) + chunk(b""), seen=seen)) as session:  # noqa: SIM117
        async with session.stream_fine_tune_events("ft/1") as events:
            assert [each async for each in events] == []
    assert targets(seen) == ["GET /v1/fine-tunes/ft%2F1/events?stream=true"]
    assert seen[0].headers["accept"] == "text/event-stream"
    assert seen[0].headers["accept-encoding"] == "identity"


def test_wrong_id() -> None:
    """What can be no id is refused where it is given."""
    with pytest.raises(RequestInvalid):
        session_for("http://127.0.0.1:1/v1").stream_fine_tune_events("..")


async def test_reference_stream(samples: Path) -> None:
    """The reference's own stream is its five events, and ends by itself though the connection stays open."""
    raw = STREAM_HEAD + chunk((samples / "fine_tune_events.sse").read_bytes())
    said, failure = await messages(raw, closes=False)
    assert failure is None
    assert len(said) == 5
    assert said[-1] == "Job succeeded."


@pytest.mark.parametrize("tail", [b"", chunk(b""), chunk(event("late")), chunk(b"data: {broken\n\n")])
async def test_done_is_the_end(tail: bytes) -> None:
    """Nothing after the mark of the end is looked at."""
    assert await messages(STREAM_HEAD + chunk(event("a") + DONE + event("b")) + tail) == (["a"], None)


@pytest.mark.parametrize("last", [b"data: [DONE]", b"data: [DONE]\n", b"data:[DONE]\r\n"])
async def test_done_without_its_empty_line(last: bytes) -> None:
    """The mark of the end counts even if the body ends with it, before the line that would end its event."""
    assert await messages(STREAM_HEAD + chunk(event("a") + last) + chunk(b"")) == (["a"], None)


@pytest.mark.parametrize("head", [STREAM_HEAD, b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n"])
async def test_early_end(head: bytes) -> None:
    """A stream that ends before it said so is interrupted, after all that it did say."""
    body = event("a") + event("b")
    raw = head + (chunk(body) + chunk(b"") if head is STREAM_HEAD else body)
    said, failure = await messages(raw)
    assert said == ["a", "b"]
    assert isinstance(failure, StreamInterrupted)


async def test_cut_event() -> None:
    """An event that the end cuts off is not told, whole as it may look."""
    said, failure = await messages(STREAM_HEAD + chunk(event("a") + event("b").rstrip()) + chunk(b""))
    assert said == ["a"]
    assert isinstance(failure, StreamInterrupted)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (
            b'{"error": {"message": "out of memory", "type": "server_error"}}',
            r"^200: out of memory \(type server_error\)$",
        ),
        (b'{"error": "out of memory"}', "^200: out of memory$"),
    ],
)
async def test_error_in_the_stream(data: bytes, words: str) -> None:
    """An error in place of an event is the service's error, after the events before it."""
    said, failure = await messages(STREAM_HEAD + chunk(event("a") + event("b") + b"data: " + data + b"\n\n" + DONE))
    assert said == ["a", "b"]
    assert type(failure) is APIError
    with pytest.raises(APIError, match=words):
        raise failure


ERRORS = {
    "named, a message": (b'event: error\ndata: {"message": "no memory", "created_at": 1}\n\n', "200: no memory"),
    "named, text": (b"event: error\ndata: no memory\ndata: at all\n\n", "200: no memory\nat all"),
    "named, a string": (b'event: Error\ndata: "no memory"\n\n', '200: "no memory"'),
    "named, nothing": (b"event: error\ndata:\n\n", "200: no message"),
    "named, a detail": (b'data: {"detail": "no memory"}\nevent: error\n\n', "200: no memory"),
    "named, an event of a job": (
        b'event: error\ndata: {"object": "fine-tune-event", "message": "no memory"}\n\n',
        "200: no memory",
    ),
    "an object": (b'data: {"object": "error", "message": "no memory", "code": 507}\n\n', "200: no memory (code 507)"),
    "an object with a time": (
        b'data: {"object": "error", "created_at": 1614807352, "message": "no memory"}\n\n',
        "200: no memory",
    ),
    "a type": (
        b'data: {"type": "error", "created_at": 1614807352, "message": "no memory"}\n\n',
        "200: no memory (type error)",
    ),
    "a type and an error": (
        b'data: {"type": "error", "error": {"type": "overloaded_error", "message": "no memory"}}\n\n',
        "200: no memory (type overloaded_error)",
    ),
    "an error and a message": (
        b'data: {"error": {"message": "no memory", "code": "c"}, "message": "", "created_at": 1614807352}\n\n',
        "200: no memory (code c)",
    ),
    "an error that is a text, and a message": (b'data: {"error": "no memory", "message": null}\n\n', "200: no memory"),
    "an empty error": (b'data: {"error": {}}\n\n', "200: no message"),
    "a code and msg": (b'data: {"code": 507, "msg": "no memory"}\n\n', "200: no memory (code 507)"),
    "a code and a message": (b'data: {"code": 507, "message": "no memory"}\n\n', "200: no memory (code 507)"),
    "a detail": (b'data: {"detail": [{"loc": ["path"], "msg": "no memory"}]}\n\n', "200: path: no memory"),
    "a code and a status": (b'data: {"status": "error", "message": "no memory"}\n\n', "200: no memory"),
    "no success": (b'data: {"success": false, "message": "no memory"}\n\n', "200: no memory"),
    "a type of its own": (
        b'data: {"type": "server_error", "message": "no memory"}\n\n',
        "200: no memory (type server_error)",
    ),
    "named, of its own": (b'event: stream_error\ndata: {"message": "no memory"}\n\n', "200: no memory"),
    "named, in lines of CR": (b'event: error\rdata: {"message":\rdata: "no memory"}\r\r', "200: no memory"),
    "no field": (b'{"error": {"message": "no memory"}}\n\n', "200: no memory"),
    "several errors": (b'data: {"errors": [{"title": "no memory"}]}\n\n', "200: no memory"),
}
SAID = b'data: {"object": "fine-tune-event", "created_at": 1614807352, "level": "info", "message": "%b"}\n\n'
"""An event as the reference's service sent it."""


@pytest.mark.parametrize("before", [b"", SAID % b"a" + SAID % b"b"], ids=["first", "after events"])
@pytest.mark.parametrize("after", [b"", SAID % b"c" + DONE], ids=["last", "before the end"])
@pytest.mark.parametrize("case", ERRORS)
async def test_every_shape_of_an_error(case: str, before: bytes, after: bytes) -> None:
    """An error in a stream, in whatever shape, is raised in the service's words, and is never given as an event."""
    error, words = ERRORS[case]
    said, failure = await messages(STREAM_HEAD + chunk(before + error + after))
    assert said == (["a", "b"] if before else [])
    assert (type(failure), str(failure)) == (APIError, words)


@pytest.mark.parametrize(
    "error",
    [
        b'data: {"error": {"message": "no memory"}}\n',
        b'data: {"error": {"message": "no memory"}}',
        b'event: error\ndata: {"message": "no memory"}\n',
        b"event: error\r\ndata: no memory\r\n",
        b'{"error": {"message": "no memory"}}',
        b'{"error": {"message": "no memory"}}\n',
    ],
)
async def test_an_error_at_the_end(error: bytes) -> None:
    """An error is raised though the stream ends before the empty line that would end its event."""
    said, failure = await messages(STREAM_HEAD + chunk(SAID % b"a" + error) + chunk(b""))
    assert said == ["a"]
    assert (type(failure), str(failure)) == (APIError, "200: no memory")


async def test_nothing_after_an_error() -> None:
    """A stream that raised an error is over, whatever had come behind the error."""
    raw = STREAM_HEAD + chunk(SAID % b"a" + b'data: {"error": "no memory"}\n\n' + SAID % b"b" + DONE)
    async with talking_to(answering(raw)) as session, session.stream_fine_tune_events("ft-1") as events:
        assert (await anext(events)).message == "a"
        with pytest.raises(APIError, match="no memory"):
            await anext(events)
        with pytest.raises(FineTuneError, match="not open"):
            await anext(events)


async def test_an_error_hides_the_key() -> None:
    """A named error that echoes the key does not show it."""
    _, failure = await messages(STREAM_HEAD + chunk(b"event: error\ndata: the key %b is spent\n\n" % KEY.encode()))
    assert str(failure) == "200: the key ... is spent"


@pytest.mark.parametrize(
    "fields",
    [
        {"object": "fine-tune-event", "level": "error", "error": {"message": "x"}},
        {"object": "fine_tuning.job.event", "type": "message", "data": {}},
        {"level": "error", "code": None, "error": None},
        {"created_at": 5, "type": "message", "error": ""},
        {"created_at": 5, "code": 7},
        {"type": "metrics"},
        {},
    ],
)
async def test_events_that_look_odd(fields: dict[str, object]) -> None:
    """An object with a message is an event of a job, unless it says that it is an error or a ping."""
    raw = b"data: " + json.dumps({**fields, "message": "a"}).encode() + b"\n\n"
    assert await messages(STREAM_HEAD + chunk(raw * 3 + DONE)) == (["a", "a", "a"], None)


PINGS = [
    b'data: {"type": "ping"}\n\n',
    b'data: {"type": "ping", "created_at": 1614807352, "message": "still here"}\n\n',
    b'data: {"object": "heartbeat", "message": ""}\n\n',
    b'data: {"event": "keep-alive", "id": 7}\n\n',
    b'data: {"ping": "2021-03-03T21:35:52Z"}\n\n',
    b'data: {"timestamp": 1614807352}\n\n',
    b"data: {}\n\n",
    b"data: null\n\n",
    b"data: ping\n\n",
    b"data:\n\n",
    b"event: ping\n\n",
    b"event: ping\ndata\n\n",
    b'event: ping\ndata: {"time": 5}\n\n',
    b"event: heartbeat\ndata: 2021-03-03 21:35:52\n\n",
    b"event: connected\ndata: welcome\n\n",
    b'data: {"type": "connected", "id": "ft-1"}\n\n',
    b'event: status\ndata: {"status": "running"}\n\n',
    b": ping\n\n",
    b"id: 7\nretry: 1000\n\n",
]


async def test_pings_are_passed_over() -> None:
    """What only keeps a stream open is skipped, in whatever shape and between any two events."""
    for ping in PINGS:
        raw = STREAM_HEAD + chunk(ping + SAID % b"a" + ping + SAID % b"b" + event("c") + ping + DONE)
        assert await messages(raw) == (["a", "b", "c"], None), ping


async def test_pings_are_not_counted() -> None:
    """After a reconnect, pings at other places than before change nothing."""
    lost = STREAM_HEAD + chunk(b"".join([PINGS[0], SAID % b"a", PINGS[6], SAID % b"b"])) + chunk(b"")
    whole = (
        STREAM_HEAD + chunk(b"".join([SAID % b"a", PINGS[12], PINGS[0], SAID % b"b", SAID % b"c", DONE])) + chunk(b"")
    )
    async with talking_to(answering(lost, whole)) as session, session.stream_fine_tune_events("ft-1") as events:
        assert [each.message async for each in events] == ["a", "b", "c"]


async def test_named_events() -> None:
    """A name other than that of an error or a ping changes nothing about an event of a job."""
    raw = b"".join(b"event: %b\n" % name + SAID % name for name in (b"message", b"fine-tune-event", b"update"))
    said = ["message", "fine-tune-event", "update"]
    assert await messages(STREAM_HEAD + chunk(raw + b"event: done\n" + DONE)) == (said, None)


PAGE = b"<!DOCTYPE html><title>Sign in</title>"
LISTED = {"object": "list", "data": [{"object": "fine-tune-event", "message": "a"}]}
IN_PLACE = {
    "a page": (reply(body=PAGE, content_type="text/html; charset=utf-8"), ProtocolViolation, "page.*<!DOCTYPE"),
    "a page of no type": (reply(body=b"\r\n " + PAGE), ProtocolViolation, "page.*<!DOCTYPE"),
    "a page as a stream": (STREAM_HEAD + chunk(PAGE) + chunk(b""), ProtocolViolation, "page.*<!DOCTYPE"),
    "an empty page": (reply(content_type="text/html"), ProtocolViolation, "not an event stream, but an empty page"),
    "a page of text": (reply(body=b"upstream error", content_type="text/plain"), ProtocolViolation, "page.*upstream"),
    "a page of text, of no type": (reply(body=b"Error 7: no"), ProtocolViolation, "page that starts with 'Error 7"),
    "errors": (reply(body=[{"error": {"message": "no memory"}}]), APIError, "^200: no memory$"),
    "a list": (reply(body=LISTED, content_type="application/json"), ProtocolViolation, "does not stream events"),
    "a bare list": (reply(body=LISTED["data"]), ProtocolViolation, "does not stream events"),
    "a list as a stream": (STREAM_HEAD + chunk(b"\xef\xbb\xbf{") + chunk(b"}"), ProtocolViolation, "does not stream"),
    "lines of JSON": (
        reply(body=b'{"message": "a"}\n{"message": "b"}\n', content_type="application/x-ndjson"),
        ProtocolViolation,
        "does not stream events",
    ),
    "an error": (
        reply(body={"error": {"message": "no memory"}}, content_type="application/json"),
        APIError,
        "^200: no memory$",
    ),
    "an error in two pieces": (
        STREAM_HEAD + chunk(b'{"code": 507,') + chunk(b'"msg": "no memory"}') + chunk(b""),
        APIError,
        r"^200: no memory \(code 507\)$",
    ),
}


@pytest.mark.parametrize("case", IN_PLACE)
async def test_what_is_no_stream(case: str) -> None:
    """A page or JSON in place of a stream is an error that says what came, and it is requested only once."""
    raw, kind, words = IN_PLACE[case]
    seen: list[Received] = []
    async with talking_to(answering(raw, seen=seen)) as session:
        with pytest.raises(kind, match=words):
            async with session.stream_fine_tune_events("ft-1") as events:
                await anext(events)
    assert len(seen) == 1


async def test_json_without_an_end() -> None:
    """JSON in place of a stream is an error within seconds, though it does not end."""

    async def handler(request: Received, writer: StreamWriter) -> None:
        writer.write(STREAM_HEAD + chunk(b'{"data": [') + chunk(b" "))
        await request.gone()

    async with talking_to(handler) as session, asyncio.timeout(60):
        with pytest.raises(ProtocolViolation, match="does not stream events"):
            async with session.stream_fine_tune_events("ft-1") as events:
                await anext(events)


@pytest.mark.parametrize(
    "start", [b"", b"\xef\xbb\xbf\r\n\r\n", b": hello\n", b"id: 7\n", b"retry: 10\r\n", b"event:message\n"]
)
@pytest.mark.parametrize("kind", ["", "text/html", "application/json", "text/plain", "application/octet-stream"])
async def test_a_stream_under_another_type(kind: str, start: bytes) -> None:
    """An event stream is read whatever Content-Type it has, or if it has none, and whatever field is the first."""
    body = start + SAID % b"a" + SAID % b"b" + DONE

    async def handler(_request: Received, writer: StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\n" + (f"content-type: {kind}\r\n".encode() if kind else b"") + b"\r\n")
        for byte in body[:12]:
            writer.write(bytes([byte]))
            await writer.drain()
            await asyncio.sleep(0)
        writer.write(body[12:])
        writer.close()

    async with talking_to(handler, retry=ONCE) as session, session.stream_fine_tune_events("ft-1") as events:
        assert [each.message async for each in events] == ["a", "b"]


async def test_cancelled_before_a_page_says_what_it_is() -> None:
    """A stream that is cancelled as it is entered frees its connection."""
    came, gone = asyncio.Event(), asyncio.Event()

    async def handler(request: Received, writer: StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/html\r\n\r\n")
        came.set()
        await request.gone()
        gone.set()

    async with talking_to(handler) as session:
        entering = asyncio.ensure_future(session.stream_fine_tune_events("ft-1").__aenter__())
        await came.wait()
        await asyncio.sleep(1)
        entering.cancel()
        with pytest.raises(asyncio.CancelledError):
            await entering
        await gone.wait()


async def test_a_long_event_and_long_comments() -> None:
    """An event of megabytes is given; comments of any length before, in and after it do not count."""
    long = b":" + b" " * (MAX_EVENT_BYTES // 2)
    said = b'{"message":\n%b\ndata: "%b"}' % (long, b"x" * (MAX_EVENT_BYTES - 1000))
    raw = STREAM_HEAD + b"".join(map(chunk, [long * 3, b"\n", b"data: ", said, b"\n\n", long, b"\n", DONE]))
    (given,), failure = await messages(raw)
    assert (len(given), failure) == (MAX_EVENT_BYTES - 1000, None)


@pytest.mark.parametrize(
    "data",
    [b"{broken", b"[]", b"7", b'{"message": 7}', b'{"level": "info"}', b'{"type": "message"}', b"[done]", b"\xff"],
)
async def test_no_event(data: bytes) -> None:
    """What is no event of a job is a violation, after the events before it."""
    said, failure = await messages(STREAM_HEAD + chunk(event("a") + b"data: " + data + b"\n\n"))
    assert said == ["a"]
    assert isinstance(failure, ProtocolViolation)


FIELDS = st.sampled_from(
    ["error", "message", "object", "type", "status", "code", "detail", "msg", "created_at", "level", "ping", "success"]
)
SCALARS = st.none() | st.booleans() | st.integers(-1, 2**70) | st.text(max_size=5) | st.sampled_from(["error", "ping"])
OBJECTS = st.dictionaries(FIELDS, SCALARS | st.dictionaries(FIELDS, SCALARS, max_size=2), max_size=4)


@given(
    st.binary(max_size=20) | (OBJECTS | st.lists(OBJECTS)).map(lambda value: json.dumps(value).encode()),
    st.sampled_from([b"", b"error", b"ping", b"update"]) | st.binary(max_size=5),
)
def test_any_event(data: bytes, name: bytes) -> None:
    """Whatever a stream carries is an event, a ping, or an error of ours."""
    with contextlib.suppress(FineTuneError):
        event = read_event(data, name)
        assert event is None or isinstance(event.message, str)
    assert str(in_place_of_events(data))


async def test_endless_event() -> None:
    """An event that never ends is a violation, after the events before it, be it in one piece with them."""
    said, failure = await messages(STREAM_HEAD + chunk(event("a") + b"data: " + b"x" * 2 * MAX_EVENT_BYTES))
    assert isinstance(failure, ProtocolViolation)
    assert said == ["a"]


async def test_event_by_event() -> None:
    """Each event is returned when it arrives, not when the next one does."""
    told = asyncio.Event()

    async def handler(_request: Received, writer: StreamWriter) -> None:
        writer.write(STREAM_HEAD)
        for number in range(3):
            told.clear()
            writer.write(chunk(b": ping\n\n") + chunk(event(str(number))))
            await told.wait()
        writer.write(chunk(DONE))
        await asyncio.Event().wait()

    async with talking_to(handler) as session, session.stream_fine_tune_events("ft-1") as events:
        said = []
        async for each in events:
            said.append(each.message)
            told.set()
    assert said == ["0", "1", "2"]


async def test_bytewise() -> None:
    """A stream that comes byte by byte is the same stream."""
    whole = b"".join(map(event, ["ä", "b"])) + DONE

    async def handler(_request: Received, writer: StreamWriter) -> None:
        writer.write(STREAM_HEAD)
        for byte in whole:
            writer.write(chunk(bytes([byte])))
            await writer.drain()
            await asyncio.sleep(0)

    async with talking_to(handler) as session, session.stream_fine_tune_events("ft-1") as events:
        assert [each.message async for each in events] == ["ä", "b"]
