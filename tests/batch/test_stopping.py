"""Stopping, leaving early, and cancelling what is active."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import AsyncGenerator
from pathlib import Path

import pytest

from aiofinetune import FineTuneFailed, FineTuneSession
from aiofinetune.batch._batch import Batch
from aiofinetune.batch._journal import Journal
from aiofinetune.batch._manifest import Entry
from aiofinetune.batch._outcomes import BatchStopped, Progress
from aiofinetune.errors import JournalUnusable
from tests.batch.runs import POLL, entries, outcomes_of, stopped
from tests.servers.batchserver import QUICK, BatchServer, error, ok, talking_to
from tests.servers.rawserver import KEY
from tests.support.fastforward import FastForwardLoop


async def test_fail_fast_sends_no_more() -> None:
    """After the first failure no more is sent, what is active is followed to its end, and the reason is given."""
    server = BatchServer(fate=lambda asked: "failed" if asked["n_epochs"] == 3 else "succeeded")
    async with talking_to(server) as session:
        outcomes, stop = await stopped(Batch(session, entries(server, 20), fail_fast=True, concurrency=1))
    assert str(stop).startswith("the batch sends no more requests: job-3 ended without a model: fine-tune ft-")
    assert isinstance(stop.__cause__, FineTuneFailed)
    assert {"job-1", "job-2", "job-3"} <= {outcome.label for outcome in outcomes}
    assert len(server.jobs) == len(outcomes) < 20


async def test_fail_fast_stops_those_who_wait_their_turn() -> None:
    """Requests that wait for their turn at the first failure are not sent any more."""
    server = BatchServer(lasts=None)
    async with (
        talking_to(server) as session,
        asyncio.timeout(60),
        Batch(session, entries(server, 5), fail_fast=True, per_minute=60) as batch,
    ):
        await server.until(lambda: len(server.active) == 1)
        server.end(next(iter(server.active)), "failed")
        with pytest.raises(BatchStopped):
            await batch.run()
    assert len(server.jobs) == 1


async def test_stop_leaves_the_active_to_the_service(tmp_path: Path) -> None:
    """`stop` sends no more and cancels nothing; the same batch goes on with what is active."""
    server = BatchServer(lasts=None)
    wanted = entries(server, 10)
    journal = tmp_path / "journal"
    async with talking_to(server) as session, asyncio.timeout(60):
        async with Batch(session, wanted, max_active=3, poll_interval=POLL, journal=journal) as batch:
            await server.until(lambda: len(server.active) == 3)
            batch.stop()
            with pytest.raises(BatchStopped, match=r"^the batch sends no more requests: it was asked to stop$"):
                await batch.run()
        assert len(server.active) == len(server.jobs) == 3
        assert server.asked["cancel"] == 0
        server.lasts = 0
        async with Batch(session, wanted, journal=journal) as batch:
            for job_id in list(server.active):
                server.end(job_id)
            assert len(await batch.run()) == 10
    assert len(server.jobs) == 10


@pytest.mark.fastforward
async def test_a_look_that_is_due_as_the_batch_ends_is_not_begun() -> None:
    """A busy machine may let the time of the next look pass between the end of a batch and that of its tasks."""
    server = BatchServer(lasts=None)
    loop = asyncio.get_running_loop()
    assert isinstance(loop, FastForwardLoop)
    wrong: list[dict[str, object]] = []
    loop.set_exception_handler(lambda _loop, context: wrong.append(context))
    async with (
        talking_to(server) as session,
        Batch(session, entries(server, 5), max_active=2, poll_interval=1000) as batch,
    ):
        await server.until(lambda: server.asked["stream"] == 2)
        batch.stop()
        loop.call_soon(loop.jump, 2000)
    assert wrong == []


async def test_stop_stops_those_who_wait_their_turn() -> None:
    """Requests that wait for their turn when `stop` is called are not sent, and the context is left at once."""
    server = BatchServer(lasts=None)
    async with (
        talking_to(server) as session,
        asyncio.timeout(60),
        Batch(session, entries(server, 3), per_minute=60) as batch,
    ):
        await server.until(lambda: len(server.active) == 1)
        batch.stop()
    assert len(server.jobs) == 1


async def test_stop_does_not_wait_for_the_results_of_an_earlier_run(tmp_path: Path) -> None:
    """A download of what ended in an earlier run is given up when the batch is stopped; the next run has it."""
    server = BatchServer()
    wanted, journal, folder = entries(server, 8), tmp_path / "journal", tmp_path / "results"
    async with talking_to(server) as session:
        await outcomes_of(Batch(session, wanted, journal=journal))
        server.held["download"] = asyncio.Event()
        async with asyncio.timeout(60), Batch(session, wanted, journal=journal, results=folder) as batch:
            await server.until(lambda: server.asked["download"] >= 1)
            batch.stop()
            with pytest.raises(BatchStopped):
                await batch.run()
        server.held["download"].set()
        again = await outcomes_of(Batch(session, wanted, journal=journal, results=folder))
    assert [outcome.error for outcome in again] == [None] * 8


async def test_a_callback_may_stop_the_batch() -> None:
    """The progress callback may stop the batch, any number of times."""
    server = BatchServer(fate=lambda _asked: "failed")
    async with talking_to(server) as session:

        def stop_at_two(progress: Progress) -> None:
            if progress.failed >= 2:
                batch.stop()

        batch = Batch(session, entries(server, 50), concurrency=1, progress=stop_at_two)
        outcomes, _stop = await stopped(batch)
    assert 2 <= len(outcomes) < 50


@pytest.mark.parametrize("how", ["stop", "raise"])
async def test_a_callback_may_stop_the_batch_at_once(how: str) -> None:
    """A progress callback that stops the batch the first time it is called, or fails then, ends the batch."""
    server = BatchServer()

    def end(_progress: Progress) -> None:
        if how == "raise":
            raise ZeroDivisionError
        batch.stop()

    async with talking_to(server) as session:
        batch = Batch(session, entries(server, 5), concurrency=1, progress=end)
        with pytest.raises(BatchStopped if how == "stop" else ZeroDivisionError):
            await outcomes_of(batch)
    assert not server.jobs


async def test_stop_stops_those_who_are_throttled(tmp_path: Path) -> None:
    """A create that the service put off is not sent again after `stop`, and is sent by the next run."""
    server = BatchServer()
    wanted = entries(server, 1)
    server.refuse = lambda endpoint: error(429, "slow down", retry_after="0.05") if endpoint == "create" else None
    async with talking_to(server) as session:
        async with asyncio.timeout(60), Batch(session, wanted, journal=tmp_path / "journal") as batch:
            await server.until(lambda: server.asked["create"] == 2)
            batch.stop()
            with pytest.raises(BatchStopped):
                await batch.run()
        assert server.asked["create"] == 2
        assert batch.progress.rejected == 0
        server.refuse = lambda _endpoint: None
        (outcome,) = await outcomes_of(Batch(session, wanted, journal=tmp_path / "journal"))
    assert outcome.error is None


async def test_stop_leaves_what_was_lost_to_the_next_run(tmp_path: Path) -> None:
    """A create that surely made no job, though its reply was lost, is left by `stop` to the next run."""
    server = BatchServer()
    wanted = entries(server, 1)
    server.lose = lambda endpoint: "before" if endpoint == "create" else ""
    async with talking_to(server) as session:
        async with asyncio.timeout(60), Batch(session, wanted, journal=tmp_path / "journal") as batch:
            await server.until(lambda: server.asked["list"] > 0)
            batch.stop()
            with pytest.raises(BatchStopped):
                await batch.run()
        assert (server.asked["create"], batch.progress.rejected) == (1, 0)
        server.lose = lambda _endpoint: ""
        (outcome,) = await outcomes_of(Batch(session, wanted, journal=tmp_path / "journal"))
    assert outcome.error is None
    assert len(server.jobs) == 1


async def test_leaving_early_lets_what_is_being_sent_settle(tmp_path: Path) -> None:
    """Leaving the context waits for the answers to what was sent, so that the journal knows the jobs."""
    server = BatchServer(lasts=None)
    wanted = entries(server, 6)
    server.held["create"] = asyncio.Event()
    journal = tmp_path / "journal"
    async with talking_to(server) as session, asyncio.timeout(60):
        async with Batch(session, wanted, concurrency=4, journal=journal):
            await server.until(lambda: len(server.active) == 4)
            asyncio.get_running_loop().call_soon(server.held["create"].set)
        async with Journal(journal, session.base_url).opened() as known:
            assert (await known.owners()).keys() == server.active
            assert await known.lost() == []
    assert server.asked["create"] == 4


@pytest.mark.parametrize("cancels", [True, False])
async def test_leaving_early_lets_a_job_be_found_that_a_reply_named_wrongly(tmp_path: Path, *, cancels: bool) -> None:
    """Leaving waits for the look at a job that the service turns out not to know, and for the right one's id."""
    server = BatchServer(lasts=None)
    server.rewrite = lambda endpoint, right: ok({"id": "ft-wrong"}) if endpoint == "create" else right
    wanted, journal = entries(server, 1), tmp_path / "journal"
    async with talking_to(server) as session, asyncio.timeout(60):
        async with Batch(session, wanted, journal=journal, cancel_on_exit=cancels):
            await server.until(lambda: server.asked["retrieve"] > 0)
        async with Journal(journal, session.base_url).opened() as known:
            assert (await known.owners()).keys() == server.jobs.keys()
    assert bool(server.active) is not cancels


async def test_cancelling_the_body_leaves_a_journal_to_go_on_with(tmp_path: Path) -> None:
    """Cancelled in the middle of its creates, a batch ends at once, and the next run finds what they made."""
    server = BatchServer(lasts=None)
    wanted = entries(server, 6)
    server.held["create"] = asyncio.Event()
    journal = tmp_path / "journal"
    async with talking_to(server) as session, asyncio.timeout(60):

        async def body() -> None:
            async with Batch(session, wanted, concurrency=4, journal=journal) as batch:
                await batch.run()

        task = asyncio.create_task(body())
        await server.until(lambda: len(server.active) == 4)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        del server.held["create"]
        async with (
            FineTuneSession(KEY, base_url=session.base_url, retry=QUICK) as another,
            Batch(another, wanted, journal=journal) as batch,
        ):
            await server.until(lambda: len(server.active) == 6)
            for job_id in list(server.active):
                server.end(job_id)
            assert [outcome.error for outcome in await batch.run()] == [None] * 6
    assert len(server.jobs) == 6


async def test_an_exception_of_the_body_is_raised_as_it_is() -> None:
    """What the body raises comes out as it is, in no group, after what was being sent has settled."""
    server = BatchServer(lasts=None)
    async with talking_to(server) as session, asyncio.timeout(60):
        with pytest.raises(ZeroDivisionError):  # the block is what is tested
            async with Batch(session, entries(server, 2)):
                await server.until(lambda: len(server.active) == 2)
                raise ZeroDivisionError


@pytest.mark.parametrize("is_older", [False, True])
async def test_cancelled_at_any_turn_it_makes_no_second_job(tmp_path: Path, *, is_older: bool) -> None:
    """A batch may be cancelled between any two steps, and again, and goes on in the same session with the one job.

    So it does from a copy of the journal that was made when the create was on its way.
    """
    server = BatchServer(lasts=None)
    async with talking_to(server) as session, asyncio.timeout(60):

        async def body(entry: Entry, journal: Path) -> None:
            async with Batch(session, [entry], journal=journal) as batch:
                await batch.run()

        for turns, entry in enumerate(entries(server, 50)):
            server.held["create"] = asyncio.Event()
            journal = tmp_path / f"journal-{turns}"
            first = asyncio.create_task(body(entry, journal))
            await server.until(lambda: len(server.active) == 1)
            older = tmp_path / f"older-{turns}"
            older.write_bytes(journal.read_bytes())
            server.held.pop("create").set()
            await cancelled_after(turns, first)
            journal = older if is_older else journal
            await cancelled_after(turns, asyncio.create_task(body(entry, journal)))
            for job_id in list(server.active):
                server.end(job_id)
            await body(entry, journal)
            assert len(server.jobs) == turns + 1


async def cancelled_after(turns: int, task: asyncio.Task[None]) -> None:
    """Cancel a task after so many turns of the event loop."""
    for _ in range(turns):
        await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


@pytest.mark.parametrize("how", ["left", "failed", "cancelled"])
async def test_cancel_on_exit_cancels_what_is_active(how: str) -> None:
    """However the context is left, the jobs that are still active are cancelled, and those of others are not."""
    server = BatchServer(lasts=None)
    other = server.add_job()
    entered = asyncio.Event()

    async def body(session: FineTuneSession) -> None:
        async with Batch(session, entries(server, 3), cancel_on_exit=True) as batch:
            await server.until(lambda: server.asked["stream"] == 3)
            entered.set()
            if how == "failed":
                raise ZeroDivisionError
            if how == "cancelled":
                await batch.run()

    async with talking_to(server) as session, asyncio.timeout(60):
        task = asyncio.create_task(body(session))
        await entered.wait()
        if how == "cancelled":
            task.cancel()
        await asyncio.wait([task])
    assert task.cancelled() == (how == "cancelled")
    assert task.cancelled() or isinstance(task.exception(), ZeroDivisionError) == (how == "failed")
    assert server.active == {other}
    assert Counter(job["status"] for job in server.jobs.values()) == {"cancelled": 3, "pending": 1}


async def test_cancel_on_exit_survives_a_service_that_will_not() -> None:
    """A job that cannot be cancelled is left with a warning."""
    server = BatchServer(lasts=None)
    server.refuse = lambda endpoint: error(403, "no") if endpoint == "cancel" else None
    async with (
        talking_to(server) as session,
        asyncio.timeout(60),
        Batch(session, entries(server, 2), cancel_on_exit=True),
    ):
        await server.until(lambda: len(server.active) == 2)
    assert server.asked["cancel"] == 2


async def test_an_input_that_is_left_is_no_failure(caplog: pytest.LogCaptureFixture) -> None:
    """A batch that is left while its input waits for more logs nothing about the input."""
    server = BatchServer()

    async def waiting() -> AsyncGenerator[Entry, None]:
        for entry in entries(server, 1):
            yield entry
        await asyncio.Event().wait()

    caplog.set_level(logging.INFO, "aiofinetune")
    async with talking_to(server) as session, asyncio.timeout(60), Batch(session, waiting()) as batch:
        assert (await anext(batch)).status == "succeeded"
    assert "input" not in caplog.text


@pytest.mark.parametrize("ends", [True, False])
async def test_a_job_that_ends_just_before_its_cancel_is_not_left(
    caplog: pytest.LogCaptureFixture, *, ends: bool
) -> None:
    """Where the service refuses a cancel because the job has ended, nothing is left running, and nothing is warned of.

    Of a job that has not ended both are said.
    """
    server = BatchServer(lasts=None)

    def refuse(endpoint: str) -> bytes | None:
        if endpoint != "cancel":
            return None
        if ends:
            server.end("ft-2")
        return error(400, "this job cannot be cancelled")

    async with talking_to(server) as session, asyncio.timeout(60):
        async with Batch(session, entries(server, 1), cancel_on_exit=True) as batch:
            await server.until(lambda: server.asked["stream"] == 1)
            server.refuse = refuse
        assert batch.not_cancelled == (() if ends else ("ft-2",))
    assert ("cancelling ft-2 failed" in caplog.text) is not ends


@pytest.mark.parametrize("iterates", [True, False])
async def test_a_job_that_could_not_be_noted_is_cancelled_too(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, *, iterates: bool
) -> None:
    """With `cancel_on_exit`, jobs whose ids the journal did not take are cancelled, and all are named in the log."""
    server = BatchServer(lasts=None)
    server.held["create"] = asyncio.Event()
    async with (
        talking_to(server) as session,
        asyncio.timeout(60),
        Batch(session, entries(server, 5), journal=tmp_path / "journal", cancel_on_exit=True) as batch,
    ):
        await server.until(lambda: len(server.jobs) == 5)
        assert isinstance(batch._journal, Journal)
        batch._journal.database.connection.execute("PRAGMA query_only = 1")
        server.held["create"].set()
        if iterates:
            with pytest.raises(JournalUnusable, match="readonly"):
                await batch.run()
    assert {job["status"] for job in server.jobs.values()} == {"cancelled"}
    told = " ".join(record.getMessage() for record in caplog.records if record.levelno == logging.ERROR)
    assert all(job_id in told for job_id in server.jobs)


def test_a_batch_is_stopped_where_no_loop_runs() -> None:
    """A batch that was made and stopped before any event loop ran sends nothing, and says that it was stopped."""
    server = BatchServer()

    session = FineTuneSession(KEY, base_url="http://127.0.0.1:1/v1")
    batch = Batch(session, entries(server, 2))
    batch.stop()

    async def enter() -> None:
        async with session:
            _, why = await stopped(batch)
            assert "asked to stop" in str(why)

    asyncio.run(enter())
    assert not server.asked
