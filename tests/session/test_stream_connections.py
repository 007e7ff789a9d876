"""How a stream begins and ends: entered and left, refused, stalled, connected again; many at once."""

from __future__ import annotations

import asyncio
import contextlib
import json
import resource
from asyncio import StreamWriter

import pytest

from aiofinetune import (
    APIError,
    AuthenticationFailed,
    ConnectionLost,
    FineTuneError,
    NotFound,
    QuotaExceeded,
    RateLimited,
    ReplyTimeout,
    Retry,
    ServerError,
    StreamInterrupted,
    Timeout,
)
from tests.servers.rawserver import (
    JOB,
    KEY,
    STREAM_HEAD,
    Received,
    answering,
    chunk,
    event,
    knowing_file,
    reply,
    talking_to,
)
from tests.session.calls import ONCE
from tests.session.streams import DONE, messages
from tests.support.limits import limited

pytestmark = pytest.mark.fastforward


async def test_lost_connection() -> None:
    """A stream whose connection breaks is interrupted by that, after all that was whole."""
    said, failure = await messages(STREAM_HEAD + chunk(event("a")) + b"ff\r\ndata")
    assert said == ["a"]
    assert isinstance(failure, StreamInterrupted)
    assert isinstance(failure.__cause__, ConnectionLost)


async def test_outside_its_context() -> None:
    """A stream is read inside `async with`, and says so to those who read it before or after."""
    raw = STREAM_HEAD + chunk(event("a") + event("b"))
    async with talking_to(answering(raw)) as session:
        events = session.stream_fine_tune_events("ft-1")
        with pytest.raises(FineTuneError, match="async with"):
            await anext(events)
        async with events:
            assert (await anext(events)).message == "a"
            assert (await anext(events)).message == "b"
        with pytest.raises(FineTuneError, match="async with"):
            await anext(events)


async def test_left_with_events_unread() -> None:
    """What was not read inside the context cannot be read outside, though it had come."""
    async with talking_to(answering(STREAM_HEAD + chunk(event("a") + event("b")))) as session:
        async with session.stream_fine_tune_events("ft-1") as events:
            await anext(events)
        with pytest.raises(FineTuneError, match="async with"):
            await anext(events)


async def test_read_past_the_end() -> None:
    """A stream that has ended stays ended."""
    async with talking_to(answering(STREAM_HEAD + chunk(event("a") + DONE))) as session:
        async with session.stream_fine_tune_events("ft-1") as events:
            assert len([each async for each in events]) == 1
            assert [each async for each in events] == []
        assert [each async for each in events] == []


@pytest.mark.parametrize("how", ["left", "raised", "done", "cancelled"])
async def test_connection_is_freed(how: str) -> None:
    """However a stream is left, its connection is closed."""
    gone = asyncio.Event()

    async def handler(request: Received, writer: StreamWriter) -> None:
        writer.write(STREAM_HEAD + chunk(event("a") + (DONE if how == "done" else b"")))
        await request.gone()
        gone.set()

    async with talking_to(handler) as session:
        with contextlib.suppress(ZeroDivisionError, TimeoutError):
            async with asyncio.timeout(None) as deadline:
                async with session.stream_fine_tune_events("ft-1") as events:
                    async for _ in events:
                        if how == "raised":
                            raise ZeroDivisionError
                        if how == "left":
                            break
                        if how == "cancelled":
                            deadline.reschedule(0)
        await gone.wait()


@pytest.mark.parametrize(("status", "kind"), [(401, AuthenticationFailed), (404, NotFound), (500, ServerError)])
async def test_refused(status: int, kind: type[APIError]) -> None:
    """A stream that is refused is the service's error, on entering."""
    async with talking_to(answering(reply(status, {"error": {"message": "no"}})), retry=ONCE) as session:
        with pytest.raises(kind, match="no"):
            async with session.stream_fine_tune_events("ft-1"):
                raise AssertionError


@pytest.mark.parametrize("room", [200, 2000])
async def test_refused_with_the_key(room: int) -> None:
    """A refusal that echoes the key just where its text is cut shows no part of it."""
    body = b"x" * (room - len(KEY) + 1) + KEY.encode() + b" more"
    body = body if room == 200 else json.dumps({"error": {"message": body.decode()}}).encode()
    async with talking_to(answering(reply(403, body)), retry=ONCE) as session:
        with pytest.raises(APIError) as caught:
            async with session.stream_fine_tune_events("ft-1"):
                pass
    assert KEY[:6] not in str(caught.value)


async def test_redirected_stream() -> None:
    """A stream follows its service to another path."""
    seen: list[Received] = []
    answers = answering(reply(307, Location="/v2/events"), reply(body=DONE), seen=seen)
    async with talking_to(answers) as session, session.stream_fine_tune_events("ft-1") as events:
        assert [event async for event in events] == []
    assert seen[1].target == "/v2/events"


async def test_refused_for_now() -> None:
    """A stream that is refused for now is asked for again, and a 429 slows the whole session down."""
    seen: list[Received] = []
    good = STREAM_HEAD + chunk(event("a") + DONE) + chunk(b"")
    async with talking_to(answering(reply(503), reply(429), good, seen=seen)) as session:
        async with session.stream_fine_tune_events("ft-1") as events:
            assert [each.message async for each in events] == ["a"]
        assert session.times_throttled == 1
    assert len(seen) == 3


@pytest.mark.parametrize(
    ("message", "kind"), [("slow down", RateLimited), ("You exceeded your current quota", QuotaExceeded)]
)
async def test_refused_for_a_day(message: str, kind: type[RateLimited]) -> None:
    """A 429 that is not to be waited for is the stream's own, and holds up no other call."""
    refusal = reply(429, {"error": {"message": message}}, retry_after="86400")
    async with talking_to(answering(refusal, reply(body={"data": []}))) as session:
        with pytest.raises(RateLimited) as caught:
            await session.stream_fine_tune_events("ft-1").__aenter__()
        assert type(caught.value) is kind
        before = asyncio.get_running_loop().time()
        await session.list_models()
        assert asyncio.get_running_loop().time() - before < 1000
        assert session.times_throttled == 0


@pytest.mark.parametrize("before", [b"", STREAM_HEAD, STREAM_HEAD + chunk(event("a"))])
async def test_stall(before: bytes) -> None:
    """A stream from which nothing comes for the time set is given up."""

    async def handler(request: Received, writer: StreamWriter) -> None:
        writer.write(before)
        await request.gone()

    async with talking_to(handler, retry=ONCE) as session:
        with pytest.raises((ReplyTimeout, StreamInterrupted)) as caught:  # either of these lines may fail
            async with session.stream_fine_tune_events("ft-1") as events:
                async for _ in events:
                    pass
        assert isinstance(caught.value.__cause__ if before else caught.value, ReplyTimeout)


@pytest.mark.parametrize("is_stream", [True, False])
async def test_error_that_drips(is_stream: bool) -> None:
    """An error's body has the time of a plain reply, however long the body that was asked for may take."""

    async def handler(request: Received, writer: StreamWriter) -> None:
        writer.write(b"HTTP/1.1 404 Not Found\r\ncontent-length: 100\r\n\r\nx")
        await request.gone()

    timeout = Timeout(reply=60, stall=6000, stream=6000)
    async with talking_to(knowing_file(1, handler), retry=ONCE, timeout=timeout) as session, asyncio.timeout(600):
        with pytest.raises(ReplyTimeout):
            if is_stream:
                async with session.stream_fine_tune_events("ft-1"):
                    pass
            else:
                await session.download_file("file-1")


async def test_cancelled_while_it_connects_again() -> None:
    """A reader that is cancelled while a stream reconnects may continue reading, as after any other read."""
    asked, goes_on = asyncio.Event(), asyncio.Event()
    seen: list[Received] = []

    async def handler(request: Received, writer: StreamWriter) -> None:
        seen.append(request)
        if len(seen) == 1:
            writer.write(STREAM_HEAD + chunk(event("a")))
            writer.close()
            return
        asked.set()
        await goes_on.wait()
        writer.write(STREAM_HEAD + chunk(event("a") + event("b") + DONE) + chunk(b""))

    async with talking_to(handler) as session, session.stream_fine_tune_events("ft-1") as events:
        assert (await anext(events)).message == "a"
        reading = asyncio.ensure_future(anext(events))
        await asked.wait()
        reading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reading
        goes_on.set()
        assert [each.message async for each in events] == ["b"]


async def test_polling_uses_up_no_tries() -> None:
    """Polling a stream that waits to reconnect does not count as a failure of the stream."""
    seen: list[Received] = []
    slow = Retry(attempts=2, base=1e6, cap=1e6, deadline=1e7)

    async def handler(request: Received, writer: StreamWriter) -> None:
        seen.append(request)
        writer.write(STREAM_HEAD + chunk(event("a")))
        writer.close()

    async with talking_to(handler, retry=slow) as session, session.stream_fine_tune_events("ft-1") as events:
        assert (await anext(events)).message == "a"
        for _ in range(5):
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(100):
                    await anext(events)
    assert len(seen) == 1


async def test_given_up_for_good() -> None:
    """A stream that was given up asks for nothing any more, however often it is read."""
    seen: list[Received] = []

    async def handler(request: Received, writer: StreamWriter) -> None:
        seen.append(request)
        writer.write(STREAM_HEAD + chunk(event("a")) if len(seen) == 1 else b"")
        writer.close()

    async with talking_to(handler, retry=Retry(attempts=2, base=0)) as session:  # noqa: SIM117
        async with session.stream_fine_tune_events("ft-1") as events:
            assert (await anext(events)).message == "a"
            with pytest.raises(StreamInterrupted):
                await anext(events)
            asked = len(seen)
            with pytest.raises(FineTuneError, match="not open"):
                await anext(events)
    assert len(seen) == asked


async def test_stream_outlives_other_timeouts() -> None:
    """A stream may take longer than any plain call, as long as something comes: a comment will do."""

    async def handler(_request: Received, writer: StreamWriter) -> None:
        writer.write(STREAM_HEAD)
        for _ in range(10):
            writer.write(chunk(b": ping\n\n"))
            await writer.drain()
            await asyncio.sleep(200)
        writer.write(chunk(DONE))

    async with talking_to(handler, retry=ONCE) as session:  # noqa: SIM117
        async with session.stream_fine_tune_events("ft-1") as events:
            assert [each async for each in events] == []


async def test_thousand_streams() -> None:
    """A thousand open streams keep no other call from its turn, and each tells its own job's events."""
    goes_on = asyncio.Event()

    async def handler(request: Received, writer: StreamWriter) -> None:
        if "/events" not in request.target:
            writer.write(reply(body=JOB))
            return
        writer.write(STREAM_HEAD + chunk(event(request.target.split("/")[3])))
        await goes_on.wait()
        writer.write(chunk(DONE) + chunk(b""))

    # Debugging asyncio costs more here than all else.
    asyncio.get_running_loop().set_debug(False)
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with limited(resource.RLIMIT_NOFILE, most):
        async with talking_to(handler) as session:

            async def follow(number: int) -> bool:
                async with session.stream_fine_tune_events(f"ft-{number}") as events:
                    first = await anext(events)
                    open_streams.append(number)
                    if len(open_streams) == 1000:
                        all_open.set()
                    assert [each async for each in events] == []
                return first.message == f"ft-{number}"

            open_streams: list[int] = []
            all_open = asyncio.Event()
            async with asyncio.TaskGroup() as group:
                following = [group.create_task(follow(number)) for number in range(1000)]
                await all_open.wait()
                assert (await session.retrieve_fine_tune("ft-1")).id == "ft-1"
                goes_on.set()
    assert all(task.result() for task in following)
