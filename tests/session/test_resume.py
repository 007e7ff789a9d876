"""Event streams and waiting, when connections do not last."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import attrs
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from aiofinetune import (
    APIError,
    ConnectionLost,
    FineTuneCancelled,
    FineTuneFailed,
    FineTuneSession,
    NotFound,
    RateLimited,
    ReplyTimeout,
    Retry,
    ServerError,
    StreamInterrupted,
    Timeout,
    TransportError,
    WaitTimeout,
)
from aiofinetune.errors import QuotaExceeded, StreamHistoryChanged
from tests.servers.faults import FAULTS, answer, status
from tests.servers.faultserver import Exchange, Fault, FaultServer, chunk
from tests.servers.service import DONE, Reply, error_reply, json_reply, sse
from tests.support.checks import QUICK, USUAL, OnRetry, nothing_left_open, session_for

pytestmark = pytest.mark.fastforward

STREAM = "stream_fine_tune_events"
RETRIEVE = "retrieve_fine_tune"

MESSAGES = ("Fine-tune enqueued", "Fine-tune started", "Epoch done", "Epoch done", "Epoch done")
"""Some are equal, and all are of one second: only their position tells them apart."""


def add_job(server: FaultServer, messages: Sequence[str] = MESSAGES, *, end: str | None = "succeeded") -> str:
    """Add a job that has told these messages; `end` is the status that it ended with, if it is over."""
    service = server.service
    job = service.add_job({"training_file": service.add_file("train.jsonl", b"{}")})
    for message in messages:
        service.tell(job, message)
    if end:
        service.finish(job, end)
    return job


def told(server: FaultServer, job: str) -> list[str]:
    return [event["message"] for event in server.service.events[job]]


@asynccontextmanager
async def talking(
    *,
    retry: Retry = QUICK,
    timeout: Timeout = USUAL,  # noqa: ASYNC109  # for the session
) -> AsyncIterator[tuple[FaultServer, FineTuneSession]]:
    """A server and a session with it, which leave nothing open."""
    async with nothing_left_open(), FaultServer() as server:
        async with session_for(server, retry=retry, timeout=timeout) as session:
            yield server, session
        await server.left()


async def read(session: FineTuneSession, job: str, into: list[str] | None = None) -> list[str]:
    """Give the messages of a job's stream; with `into`, what came before it failed too."""
    into = [] if into is None else into
    async with session.stream_fine_tune_events(job) as events:
        async for event in events:
            into.append(event.message)
    return into


def cut_at(position: int, end: str = "reset") -> Fault:
    """Send so many bytes of a stream, then end the connection: by a reset, in good order, or not at all."""

    async def play(exchange: Exchange) -> None:
        await exchange.send(exchange.reply.head(("Connection", "close")) + exchange.reply.body[:position])
        await {"reset": exchange.reset, "close": exchange.close, "hold": exchange.hold}[end]()

    return Fault(play)


def cut_chunked(position: int) -> Fault:
    """Send so many bytes of a stream, and end its body as HTTP wants it: nothing but ``[DONE]`` is missing."""
    return answer(
        lambda exchange: (
            exchange.reply.head(("Transfer-Encoding", "chunked"))
            + (chunk(exchange.reply.body[:position]) if position else b"")
            + chunk(b"")
        )
    )


def telling(body: bytes) -> Fault:
    """Stream this in place of the job's events."""
    return answer(lambda exchange: attrs.evolve(exchange.reply, body=body).raw)


# Cuts


@pytest.mark.parametrize(("end", "every"), [("reset", 1), ("close", 3), ("chunked", 3)])
async def test_a_cut_at_any_byte(end: str, every: int) -> None:
    """Wherever a stream is cut, and however, each event is given once and in order."""
    async with talking() as (server, session):
        job = add_job(server, ("x",))
        for position in range(0, len(b"".join(map(sse, server.service.events[job]))) + len(DONE), every):
            server.fail(STREAM, cut_chunked(position) if end == "chunked" else cut_at(position, end))
            assert await read(session, job) == told(server, job), position


@given(
    messages=st.lists(st.sampled_from(["a", "b", "\u00e9\u2028", 'quote " and \\']), max_size=6),
    cuts=st.lists(st.tuples(st.floats(0, 1), st.sampled_from(["reset", "close"])), max_size=2),
)
@example(messages=["a"], cuts=[(0.9, "reset"), (0.5, "reset")])
@settings(max_examples=60)
def test_many_cuts(messages: list[str], cuts: list[tuple[float, str]]) -> None:
    """However often a stream is cut, within the tries allowed, each event is given once and in order."""

    async def scenario() -> None:
        async with talking() as (server, session):
            job = add_job(server, messages)
            size = len(b"".join(map(sse, server.service.events[job])) + DONE)
            server.fail(STREAM, *(cut_at(int(share * (size - 1)), end) for share, end in cuts))
            assert await read(session, job) == told(server, job)

    asyncio.run(scenario())


async def test_live_events_between_cuts() -> None:
    """Events that happen while the connection is being made anew are given too, after those of before."""
    async with talking() as (server, session):
        job = add_job(server, end=None)
        size = len(b"".join(map(sse, server.service.events[job])))

        async def cut(exchange: Exchange) -> None:
            await server.stream(exchange, cut_at=size)
            await exchange.reset()

        server.fail(STREAM, Fault(cut))

        def go_on() -> None:
            server.service.tell(job, "meanwhile")
            server.service.finish(job)

        with OnRetry(go_on):
            messages = await read(session, job)
        assert messages == told(server, job)
        assert "meanwhile" in messages


async def test_stall() -> None:
    """A stream that falls silent is made anew."""
    async with talking() as (server, session):
        job = add_job(server)
        server.fail(STREAM, cut_at(100, "hold"), cut_at(200, "hold"))
        assert await read(session, job) == told(server, job)


@pytest.mark.parametrize("code", [429, 500, 502, 503])
@pytest.mark.parametrize("retry_after", [None, "0"])
async def test_refused_on_reconnect(code: int, retry_after: str | None) -> None:
    """A service that is busy when the connection is made anew is asked again."""
    async with talking() as (server, session):
        job = add_job(server)
        server.fail(STREAM, cut_at(150), status(code, retry_after=retry_after))
        assert await read(session, job) == told(server, job)


async def test_unreachable_on_reconnect() -> None:
    """A service that drops every connection for a while is asked again."""
    async with talking() as (server, session):
        job = add_job(server)
        server.fail(STREAM, cut_at(150))
        server.fail("", Fault(Exchange.reset, reads="head"))
        server.fail(STREAM, FAULTS["reset before the request is read"])
        assert await read(session, job) == told(server, job)


async def test_throttled_at_the_start() -> None:
    """A 429 is no failed try: however many there are, the stream opens in the end."""
    async with talking() as (server, session):
        job = add_job(server)
        server.fail(STREAM, *[status(429)] * (QUICK.attempts + 2))
        assert await read(session, job) == told(server, job)


async def test_progress_resets_the_tries() -> None:
    """A stream that is cut after each new event, more often than tries are allowed, is read to its end."""
    async with talking() as (server, session):
        job = add_job(server)
        ends = [len(b"".join(map(sse, server.service.events[job][:count]))) for count in range(1, 7)]
        assert len(ends) > QUICK.attempts
        server.fail(STREAM, *map(cut_at, ends))
        assert await read(session, job) == told(server, job)


async def test_lasting_resets_the_tries() -> None:
    """A connection that told all there was, and lasted, is progress too: a silent job is followed to its end."""
    async with talking() as (server, session):
        job = add_job(server)
        whole = len(b"".join(map(sse, server.service.events[job])))
        server.fail(STREAM, *[cut_at(whole, "hold")] * (QUICK.attempts + 3))
        assert await read(session, job) == told(server, job)


async def test_tries_are_bounded() -> None:
    """A stream that brings nothing new is given up after the tries allowed; the cause is chained."""
    async with talking() as (server, session):
        job = add_job(server)
        server.fail_always(STREAM, cut_at(200))
        messages: list[str] = []
        with pytest.raises(StreamInterrupted) as caught:
            await read(session, job, messages)
        assert isinstance(caught.value.__cause__, TransportError)
        assert server.asked().count(STREAM) == QUICK.attempts
        assert messages == told(server, job)[: len(messages)] != []


@pytest.mark.parametrize(("fault", "cause"), [("500", ServerError), ("reset after the request", TransportError)])
async def test_cause_of_giving_up(fault: str, cause: type[Exception]) -> None:
    """What a stream is given up for is the last failure of a try to take it up again."""
    async with talking() as (server, session):
        job = add_job(server)
        server.fail(STREAM, cut_at(200))
        server.fail_always(STREAM, FAULTS[fault])
        with pytest.raises(StreamInterrupted) as caught:
            await read(session, job)
        assert isinstance(caught.value.__cause__, cause)


async def test_stalls_are_bounded() -> None:
    """A stream that falls silent on every connection is given up like any other."""
    async with talking(retry=attrs.evolve(QUICK, cap=1000, deadline=10_000)) as (server, session):
        job = add_job(server)
        server.fail_always(STREAM, cut_at(100, "hold"))
        with pytest.raises(StreamInterrupted) as caught:
            await read(session, job)
        assert isinstance(caught.value.__cause__, ReplyTimeout)
        assert server.asked().count(STREAM) == QUICK.attempts


async def test_never_open() -> None:
    """A stream that could not be opened at all gives the failure itself: nothing was interrupted."""
    async with talking() as (server, session):
        server.fail_always(STREAM, FAULTS["reset after the request"])
        with pytest.raises(ConnectionLost):
            await read(session, add_job(server))


async def test_unknown_job() -> None:
    """A job that does not exist is said to be so, and not asked for again."""
    async with talking() as (server, session):
        with pytest.raises(NotFound):
            await read(session, "ft-none")
        assert server.asked() == [STREAM]


async def test_quota_on_reconnect() -> None:
    """A budget that is used up is not asked for again."""
    async with talking() as (server, session):
        job = add_job(server)
        server.fail(STREAM, cut_at(150))
        server.fail_always(STREAM, FAULTS["429, no quota"])
        with pytest.raises((QuotaExceeded, StreamInterrupted)):
            await read(session, job)
        assert server.asked().count(STREAM) == 2


# History


def lines(*messages: str) -> bytes:
    return b"".join(sse({"object": "fine-tune-event", "created_at": 1, "message": message}) for message in messages)


@pytest.mark.parametrize(
    "second",
    [
        pytest.param(lines("a", "c", "d") + DONE, id="another event"),
        pytest.param(lines("b", "a", "c") + DONE, id="another order"),
        pytest.param(lines("z", "a", "b", "c") + DONE, id="an event before the first"),
        pytest.param(lines("a") + DONE, id="shorter"),
        pytest.param(DONE, id="none"),
    ],
)
async def test_history_changed(second: bytes) -> None:
    """Where the service tells another history than before, no event can be trusted to be new."""
    async with talking() as (server, session):
        job = add_job(server)
        server.fail(STREAM, telling(lines("a", "b")), telling(second))
        messages: list[str] = []
        with pytest.raises(StreamHistoryChanged):
            await read(session, job, messages)
        assert messages == ["a", "b"]


async def test_shorter_history_that_is_cut() -> None:
    """A replay that is cut before it reached what is known has changed nothing."""
    async with talking() as (server, session):
        job = add_job(server)
        server.fail(
            STREAM, telling(lines("a", "b", "c")), telling(lines("a")), telling(lines("a", "b", "c", "d") + DONE)
        )
        assert await read(session, job) == ["a", "b", "c", "d"]


async def test_only_the_level_changed() -> None:
    """Events are compared whole, not by their text alone."""
    async with talking() as (server, session):
        job = add_job(server)
        other = sse({"object": "fine-tune-event", "created_at": 1, "message": "a", "level": "warn"})
        server.fail(STREAM, telling(lines("a")), telling(other + DONE))
        with pytest.raises(StreamHistoryChanged):
            await read(session, job)


async def test_done_too_early() -> None:
    """[DONE] ends a stream whatever the job does; only `retrieve_fine_tune` says what became of the job."""
    async with talking() as (server, session):
        job = add_job(server, end=None)
        server.fail(STREAM, telling(lines("a") + DONE))
        assert await read(session, job) == ["a"]
        assert not (await session.retrieve_fine_tune(job)).is_terminal


async def test_done_is_the_end() -> None:
    """What comes after [DONE] is not read."""
    async with talking() as (server, session):
        server.fail(STREAM, telling(lines("a") + DONE + lines("b")))
        assert await read(session, add_job(server)) == ["a"]


async def test_error_in_the_stream() -> None:
    """An error in place of an event is raised, after the events before it."""
    async with talking() as (server, session):
        server.fail(STREAM, telling(lines("a") + sse({"error": {"message": "gone wrong", "type": "server_error"}})))
        messages: list[str] = []
        with pytest.raises(APIError, match="gone wrong"):
            await read(session, add_job(server), messages)
        assert messages == ["a"]


@pytest.mark.parametrize("stop", ["break", "cancel", "timeout"])
async def test_left_early(stop: str) -> None:
    """Leaving a stream in the middle, by whatever way, frees its connection at once."""
    async with talking() as (server, session):
        job = add_job(server, end=None)
        begun = asyncio.Event()

        async def follow() -> None:
            async with session.stream_fine_tune_events(job) as events:
                async for _ in events:
                    begun.set()
                    if stop == "break":
                        break

        task = asyncio.create_task(follow())
        await begun.wait()
        if stop == "cancel":
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        elif stop == "timeout":
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.01):
                    await task
        else:
            await task
        await server.left()


# wait


def status_now(server: FaultServer, job: str, words: str) -> Fault:
    """Answer a look at a job with this status; the job itself is as it is."""
    return answer(lambda _exchange: json_reply({**server.service.jobs[job], "status": words}).raw)


@pytest.mark.parametrize(("end", "kind"), [("failed", FineTuneFailed), ("cancelled", FineTuneCancelled)])
async def test_wait_for_a_job_without_a_model(end: str, kind: type[FineTuneFailed]) -> None:
    """The end of a job that made no model is an error with its last events."""
    async with talking() as (server, session):
        job = add_job(server, end=end)
        server.fail(STREAM, cut_at(200))
        with pytest.raises(kind) as caught:
            await session.wait(job)
        assert [event.message for event in caught.value.events] == told(server, job)


@pytest.mark.parametrize(
    "fault",
    [
        pytest.param(
            answer(lambda _exchange: json_reply({"object": "list", "data": []}).raw), id="a list in place of it"
        ),
        pytest.param(answer(lambda _exchange: error_reply(404, "no such path").raw), id="404"),
        pytest.param(answer(lambda _exchange: Reply(200, b"<html>", "text/html").raw), id="a page"),
        pytest.param(telling(b"data: nonsense\n\n"), id="no events"),
        pytest.param(FAULTS["reset after the request"], id="reset"),
    ],
)
async def test_wait_without_a_stream(fault: Fault) -> None:
    """Where a service does not stream, waiting looks at the job now and then."""
    async with talking() as (server, session):
        job = add_job(server)
        server.fail_always(STREAM, fault)
        server.fail(RETRIEVE, status_now(server, job, "pending"), status_now(server, job, "running"))
        assert (await session.wait(job)).status == "succeeded"
        assert server.asked().count(RETRIEVE) == 3


async def test_wait_through_unknown_statuses(caplog: pytest.LogCaptureFixture) -> None:
    """A status that the reference does not name keeps the wait going, with one warning for each such word."""
    async with talking() as (server, session):
        job = add_job(server)
        words = ("paused", "paused", "paused", "validating", "running")
        server.fail(RETRIEVE, *(status_now(server, job, word) for word in words))
        assert (await session.wait(job)).status == "succeeded"
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    warnings = [text for text in warnings if "unknown status" in text]
    assert len(warnings) == 2
    assert "paused" in warnings[0]
    assert "validating" in warnings[1]


async def test_wait_trusts_no_text() -> None:
    """A stream that says "succeeded" and [DONE] ends no wait while the job runs."""
    async with talking() as (server, session):
        job = add_job(server, end="failed")
        server.fail(STREAM, telling(lines("Fine-tune succeeded") + DONE))
        server.fail(RETRIEVE, status_now(server, job, "running"))
        with pytest.raises(FineTuneFailed):
            await session.wait(job)


async def test_wait_survives_interruptions() -> None:
    """A service that is away for less than the deadline ends no wait."""
    async with talking(retry=attrs.evolve(QUICK, deadline=1000)) as (server, session):
        job = add_job(server)
        server.fail_always(STREAM, FAULTS["reset after the request"])
        server.fail(RETRIEVE, *[FAULTS["502 page"]] * (3 * QUICK.attempts))
        assert (await session.wait(job)).status == "succeeded"


@pytest.mark.parametrize(("fault", "kind"), [("502 page", ServerError), ("429", RateLimited)])
async def test_wait_gives_up_after_the_deadline(fault: str, kind: type[Exception]) -> None:
    """A service that is away for longer than the deadline ends the wait with what it is away by."""
    async with talking() as (server, session):
        job = add_job(server)
        server.fail_always(STREAM, FAULTS[fault])
        server.fail_always(RETRIEVE, FAULTS[fault])
        with pytest.raises(kind):
            await session.wait(job)


async def test_wait_times_out() -> None:
    """A job that is not over in the time given goes on; the wait leaves nothing open."""
    async with talking() as (server, session):
        job = add_job(server, end=None)
        with pytest.raises(WaitTimeout):
            await session.wait(job, timeout=5)
        await server.left()
        assert server.service.jobs[job]["status"] == "pending"
