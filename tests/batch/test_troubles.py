"""Quotas, keys, services, inputs and callbacks that fail while a batch runs."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import attrs
import pytest

from aiofinetune import FineTuneRequest, FineTuneSession, RequestInvalid
from aiofinetune.batch._batch import Batch
from aiofinetune.batch._core import AttemptId
from aiofinetune.batch._journal import Journal
from aiofinetune.batch._manifest import Entry
from aiofinetune.batch._outcomes import BatchStopped, Outcome, Progress
from aiofinetune.errors import AuthenticationFailed, FineTuneError, JournalUnusable, PermissionDenied, QuotaExceeded
from tests.batch.runs import POLL, entries, outcomes_of, stopped
from tests.servers.batchserver import QUICK, BatchServer, error, ok, talking_to
from tests.servers.rawserver import KEY


async def test_a_quota_that_is_used_up_leaves_the_rest_for_later(tmp_path: Path) -> None:
    """At the quota no more is sent; what was made is followed to its end, and the next run sends the rest alone."""
    server = BatchServer(quota=5)
    wanted = entries(server, 12)
    journal = tmp_path / "journal"
    async with talking_to(server) as session:
        first, stop = await stopped(Batch(session, wanted, concurrency=2, journal=journal))
        assert str(stop).startswith("the batch sends no more requests: 429: You exceeded your current quota")
        assert isinstance(stop.__cause__, QuotaExceeded)
        assert len(first) == 5
        assert server.asked["create"] <= 5 + 2
        server.quota = None
        again = await outcomes_of(Batch(session, wanted, journal=journal))
    assert len(again) == len(server.jobs) == 12


async def test_a_quota_that_is_used_up_stops_those_who_wait_their_turn() -> None:
    """Requests that wait for their turn when the quota is found to be used up are not sent to be refused, too."""
    server = BatchServer(quota=1)
    async with talking_to(server) as session:
        await stopped(Batch(session, entries(server, 8), per_minute=120))
    assert server.asked["create"] == 2


@pytest.mark.parametrize("broken", ["refused", "reset", "502"])
async def test_a_service_out_of_reach_stops_the_batch(broken: str, tmp_path: Path) -> None:
    """A service that cannot be reached is tried with some requests, and the rest is kept for later."""
    server = BatchServer()
    wanted = entries(server, 40)
    journal = tmp_path / "journal"
    async with talking_to(server) as session:
        url = "http://127.0.0.1:1/v1" if broken == "refused" else session.base_url
        async with FineTuneSession(KEY, base_url=url, retry=attrs.evolve(QUICK, attempts=2)) as other:
            if broken == "reset":
                server.lose = lambda endpoint: "before" if endpoint == "create" else ""
                server.refuse = lambda endpoint: error(503, "away") if endpoint == "list" else None
            if broken == "502":
                server.refuse = lambda _endpoint: error(502, "Bad Gateway")
            outcomes, stop = await stopped(Batch(other, wanted, concurrency=4, journal=journal))
    assert str(stop).startswith("the batch sends no more requests: the service cannot be reached: ")
    assert len(outcomes) <= 3 + 4
    assert not server.jobs


async def test_a_key_that_may_not_make_jobs_stops_the_batch() -> None:
    """A refusal that says nothing of the request is no outcome of it, but the end of the batch."""
    server = BatchServer()
    server.refuse = lambda endpoint: error(403, "You may not do this") if endpoint == "create" else None
    async with talking_to(server) as session:
        outcomes, stop = await stopped(Batch(session, entries(server, 20), concurrency=2))
    assert outcomes == []
    assert isinstance(stop.__cause__, PermissionDenied)


async def test_a_list_that_makes_no_sense_ends_nothing() -> None:
    """A look at the list that fails, in whatever way, is made again later, and no job suffers from it."""
    server = BatchServer(lasts=None)
    pages = itertools.chain([ok("<html>"), error(403, "not now")], itertools.repeat(None))
    server.refuse = lambda endpoint: next(pages) if endpoint == "list" else None
    async with (
        talking_to(server) as session,
        asyncio.timeout(60),
        Batch(session, entries(server, 2), max_active=10, poll_interval=POLL) as batch,
    ):
        await server.until(lambda: len(server.active) == 2 and server.asked["list"] > 3)
        for job_id in list(server.active):
            server.end(job_id)
        assert [outcome.error for outcome in await batch.run()] == [None, None]


@pytest.mark.parametrize(
    "answer", [error(401, "Wrong key"), error(404, "No such path"), ok("<html>"), error(502, "away")]
)
async def test_a_list_that_cannot_be_read_stops_the_batch(answer: bytes) -> None:
    """Where the list, without which nothing may be sent, is not to be had, the batch ends, and says so."""
    server = BatchServer()
    server.refuse = lambda endpoint: answer if endpoint == "list" else None
    async with talking_to(server) as session, asyncio.timeout(60):
        outcomes, stop = await stopped(Batch(session, entries(server, 3), max_active=2, poll_interval=POLL))
    assert outcomes == []
    assert str(stop).startswith("the batch sends no more requests: the list of jobs cannot be read: ")
    assert isinstance(stop.__cause__, FineTuneError)
    assert not server.jobs


async def test_a_key_that_is_withdrawn_ends_the_batch() -> None:
    """Where jobs can be looked at no more, in any way, the batch leaves them to the service."""
    server = BatchServer(lasts=None)
    followed = {"stream", "retrieve"}
    server.refuse = lambda endpoint: (
        error(401, "Wrong key") if endpoint in followed or (endpoint == "list" and server.active) else None
    )
    async with talking_to(server) as session, asyncio.timeout(60):
        outcomes, _stop = await stopped(
            Batch(session, entries(server, 2), concurrency=1, max_active=1, poll_interval=POLL)
        )
    assert outcomes == []
    assert len(server.active) == 1


async def test_a_batch_that_goes_on_with_a_wrong_key_ends_at_once(tmp_path: Path) -> None:
    """A run that has jobs to follow, and a key that the service does not know, does not wait for a look at the list."""
    server = BatchServer(lasts=None)
    wanted, journal = entries(server, 2), tmp_path / "journal"
    async with talking_to(server) as session, asyncio.timeout(60):
        async with Batch(session, wanted, journal=journal):
            await server.until(lambda: len(server.active) == 2)
        server.refuse = lambda _endpoint: error(401, "Wrong key")
        outcomes, stop = await stopped(Batch(session, wanted, journal=journal, poll_interval=3600))
    assert outcomes == []
    assert str(stop).startswith("the batch sends no more requests: 401: Wrong key")
    assert isinstance(stop.__cause__, AuthenticationFailed)


async def test_requests_that_break_off_with_a_cancellation(tmp_path: Path) -> None:
    """An input that was cancelled by something else is no input that has ended."""
    server = BatchServer()
    wanted = entries(server, 2)

    async def coming() -> AsyncIterator[Entry]:
        yield wanted[0]
        raise asyncio.CancelledError

    async with talking_to(server) as session:
        with pytest.raises(FineTuneError, match="raised CancelledError"):
            await outcomes_of(Batch(session, coming(), journal=tmp_path / "journal"))
        outcomes = await outcomes_of(Batch(session, wanted, journal=tmp_path / "journal"))
    assert [outcome.error for outcome in outcomes] == [None] * 2
    assert len(server.jobs) == 2


class BadEnd:
    """An input of many requests that fails as it is closed."""

    def __init__(self, wanted: list[Entry]) -> None:
        self._wanted = wanted

    async def raising(self) -> AsyncIterator[Entry]:
        """Raise an error of its own."""
        try:
            for entry in self._wanted:
                yield entry
        finally:
            raise ZeroDivisionError

    async def prefetching(self) -> AsyncIterator[Entry]:
        """Make a group of what closes it, as a task group does."""
        async with asyncio.TaskGroup():
            for entry in self._wanted:
                yield entry

    async def going_on(self) -> AsyncIterator[Entry]:
        """Take no notice."""
        for entry in self._wanted:
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.sleep(0)
            yield entry


@pytest.mark.parametrize("end", ["raising", "prefetching", "going_on"])
async def test_a_batch_stops_whatever_its_input_makes_of_that(tmp_path: Path, end: str) -> None:
    """An input that fails as it is closed, or goes on, keeps neither the stop nor what is being sent from its end."""
    server = BatchServer(lasts=None)
    server.held["create"] = asyncio.Event()
    coming = getattr(BadEnd(entries(server, 100)), end)()
    async with talking_to(server) as session, asyncio.timeout(60):
        async with Batch(session, coming, concurrency=2, journal=tmp_path / "journal") as batch:
            await server.until(lambda: len(server.jobs) == 2)
            batch.stop()
            server.held["create"].set()
            with pytest.raises(BatchStopped):
                await batch.run()
        assert len(server.jobs) == 2
    async with Journal(tmp_path / "journal", session.base_url).opened() as journal:
        assert (await journal.owners()).keys() == set(server.jobs)


async def test_an_input_that_cancels_its_task_is_an_error() -> None:
    """An input whose time limit cancels the task that reads it, and does not take that back, ends the batch."""
    server = BatchServer()

    async def late() -> AsyncIterator[Entry]:
        for entry in entries(server, 5):
            task = asyncio.current_task()
            assert task is not None
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.sleep(0)
            yield entry

    async with talking_to(server) as session:
        with pytest.raises(FineTuneError, match="cancelled the task that reads it"):
            await outcomes_of(Batch(session, late()))


async def test_stop_is_heard_while_lost_creates_are_looked_for(tmp_path: Path) -> None:
    """A batch that looks for what an earlier run lost, and does not get the list, stops at once."""
    server = BatchServer()
    server.held["list"] = asyncio.Event()
    (entry,) = entries(server, 1)
    async with talking_to(server) as session, asyncio.timeout(60):
        async with Journal(tmp_path / "journal", session.base_url).opened() as crashed:
            await crashed.intend(AttemptId(entry.label), entry.request, entry.request, time.time() - 1)
        async with Batch(session, [entry], journal=tmp_path / "journal") as batch:
            await server.until(lambda: server.asked["list"] == 1)
            batch.stop()
            with pytest.raises(BatchStopped):
                await batch.run()
        server.held["list"].set()
        async with Journal(tmp_path / "journal", session.base_url).opened() as journal:
            assert [lost.attempt.label for lost in await journal.lost()] == [entry.label]


async def test_whoever_reads_a_batch_that_was_cancelled_elsewhere_is_told() -> None:
    """Outcomes that are read by another task than the one whose context it was do not end as if they were all."""
    server = BatchServer(lasts=None)
    reading: list[asyncio.Task[list[Outcome]]] = []
    async with talking_to(server) as session, asyncio.timeout(60):

        async def leave(batch: Batch) -> None:
            async with batch:
                reading.append(asyncio.create_task(batch.run()))
                await asyncio.Event().wait()

        leaving = asyncio.create_task(leave(Batch(session, entries(server, 4))))
        await server.until(lambda: len(server.jobs) == 4)
        leaving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await leaving
        with pytest.raises(BatchStopped):
            await reading[0]


async def test_a_batch_that_never_began_has_an_end(tmp_path: Path) -> None:
    """Iterating over a batch that could not be entered raises why; one that was cancelled at once says so."""
    server = BatchServer()
    journal = tmp_path / "journal"
    journal.write_text("no journal")
    async with talking_to(server) as session, asyncio.timeout(60):
        unusable = Batch(session, entries(server, 1), journal=journal)
        with pytest.raises(JournalUnusable):
            await outcomes_of(unusable)
        with pytest.raises(JournalUnusable):
            await unusable.run()
        cancelled = Batch(session, entries(server, 1))
        with pytest.raises(asyncio.CancelledError):
            async with cancelled:
                raise asyncio.CancelledError
        with pytest.raises(BatchStopped):
            await cancelled.run()
    assert not server.jobs


@pytest.mark.parametrize("wrong", [{}, None, Entry("\ud800", FineTuneRequest(training_file="file-1"))])
async def test_what_is_no_request(wrong: object) -> None:
    """What is no request, or has a label that is no text, is named; nothing of it is sent."""
    server = BatchServer()
    async with talking_to(server) as session:
        with pytest.raises(RequestInvalid, match="1: expected"):
            await outcomes_of(Batch(session, [wrong]))  # type: ignore[list-item]  # wrong on purpose
    assert not server.jobs


async def test_a_callback_that_fails() -> None:
    """What a callback raises is what the batch raises; what was sent by then settles."""
    server = BatchServer()

    def fail(_progress: Progress) -> None:
        raise ZeroDivisionError

    async with talking_to(server) as session:
        with pytest.raises(ZeroDivisionError):
            await outcomes_of(Batch(session, entries(server, 3), progress=fail))


async def test_a_slow_consumer_bounds_what_is_read() -> None:
    """Outcomes that nobody takes hold up the requests: a million of them is never in memory."""
    server = BatchServer()
    read = itertools.count()
    first = entries(server, 1)[0].request

    def coming() -> Iterator[FineTuneRequest]:
        for _ in range(1_000_000):
            next(read)
            yield first

    async with (
        talking_to(server) as session,
        asyncio.timeout(60),
        Batch(session, coming(), concurrency=8) as batch,
    ):
        await server.until(lambda: batch._outcomes.qsize() >= 100)
        for _ in range(50):
            await anext(batch)
        await server.until(lambda: batch._outcomes.qsize() >= 100)
    # Besides those there may be some that are being read, sent and followed.
    assert next(read) < 1000
