"""Batches against a service with limits, whose books are compared with what the batch said."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import hashlib
import itertools
import json
import logging
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from io import BufferedReader
from pathlib import Path

import attrs
import pytest

from aiofinetune import (
    ConfigurationError,
    FineTuneCancelled,
    FineTuneFailed,
    FineTuneRequest,
    FineTuneSession,
    LocalFileError,
    NotFound,
    RequestInvalid,
    Retry,
)
from aiofinetune.batch._batch import MAX_STREAMS, Batch, BatchStopped, Outcome, Progress, difference, find_changes
from aiofinetune.batch._journal import Journal
from aiofinetune.batch._manifest import Entry
from aiofinetune.errors import AuthenticationFailed, FineTuneError, JournalUnusable, PermissionDenied, QuotaExceeded
from aiofinetune.local import LocalServer
from aiofinetune.models import CreateUncertain
from tests.servers.batchserver import QUICK, RESULTS, BatchServer, Bucket, error, ok, talking_to
from tests.servers.rawserver import KEY

POLL = 0.02


def entries(server: BatchServer, count: int) -> list[Entry]:
    """Requests of a batch, unlike one another, with a file that is at the service."""
    file = server.add_file("train.jsonl", b"train")
    return [
        Entry(f"job-{number}", FineTuneRequest(training_file=file, model="ada", n_epochs=number))
        for number in range(1, count + 1)
    ]


async def outcomes_of(batch: Batch) -> list[Outcome]:
    """Run a batch to its end."""
    async with asyncio.timeout(60), batch:
        return await batch.run()


async def stopped(batch: Batch) -> tuple[list[Outcome], BatchStopped]:
    """Run a batch until it sends no more; its outcomes, and why."""
    outcomes = []
    async with asyncio.timeout(60), batch:
        try:
            async for outcome in batch:
                outcomes.append(outcome)  # noqa: PERF401  # those before it stops count
        except BatchStopped as error:
            return outcomes, error
    pytest.fail("the batch did not stop")


def labels(outcomes: list[Outcome]) -> list[str]:
    return sorted(outcome.label for outcome in outcomes)


def write(folder: Path, name: str, content: str) -> str:
    path = folder / name
    path.write_text(content)
    return str(path)


# To the end


async def test_every_request_has_an_outcome() -> None:
    """Each request is made a job once, and its outcome holds the job as the service has it."""
    server = BatchServer()
    wanted = entries(server, 20)
    async with talking_to(server) as session:
        outcomes = await outcomes_of(Batch(session, wanted))
    assert labels(outcomes) == sorted(entry.label for entry in wanted)
    assert len(server.jobs) == 20
    for outcome in outcomes:
        assert outcome.job is not None
        assert outcome.job.hyperparams.n_epochs == outcome.request.n_epochs
        assert outcome.job.fine_tuned_model == server.jobs[outcome.job.id]["fine_tuned_model"]
        assert outcome.error is None
        assert outcome.sent_at is not None
        assert outcome.ended_at >= outcome.sent_at


async def test_an_outcome_comes_as_soon_as_its_job_is_over() -> None:
    """Outcomes come in the order in which jobs end, while others run."""
    server = BatchServer(lasts=None)
    async with talking_to(server) as session, asyncio.timeout(60), Batch(session, entries(server, 3)) as batch:
        await server.until(lambda: len(server.active) == 3)
        by_epochs = {job["hyperparams"]["n_epochs"]: job_id for job_id, job in server.jobs.items()}
        for number in (2, 3, 1):
            server.end(by_epochs[number])
            assert (await anext(batch)).label == f"job-{number}"
        with pytest.raises(StopAsyncIteration):
            await anext(batch)
        with pytest.raises(StopAsyncIteration):
            await anext(batch)


async def test_no_requests() -> None:
    """A batch of nothing is over at once, and asks the service for nothing."""
    server = BatchServer()
    async with talking_to(server) as session:
        assert await outcomes_of(Batch(session, [])) == []
    assert not server.asked


async def test_requests_without_labels_are_called_by_their_number() -> None:
    """A bare request is labelled with its number, from 1."""
    server = BatchServer()
    bare = [entry.request for entry in entries(server, 3)]
    async with talking_to(server) as session:
        outcomes = await outcomes_of(Batch(session, bare))
    assert labels(outcomes) == ["1", "2", "3"]


async def test_an_async_iterable() -> None:
    """Requests may come from an async iterable, with or without labels."""
    server = BatchServer()

    async def coming() -> AsyncIterator[Entry | FineTuneRequest]:
        for entry in entries(server, 3):
            await asyncio.sleep(0)
            yield entry if entry.label == "job-2" else entry.request

    async with talking_to(server) as session:
        outcomes = await outcomes_of(Batch(session, coming()))
    assert labels(outcomes) == ["1", "3", "job-2"]


@pytest.mark.parametrize("how", ["stopped", "left"])
async def test_an_input_that_has_nothing_yet_holds_nothing_up(how: str) -> None:
    """A batch that is fed from a queue can be stopped and left while it waits for the next request."""
    server = BatchServer(lasts=None)
    queue: asyncio.Queue[Entry] = asyncio.Queue()
    queue.put_nowait(entries(server, 1)[0])

    async def coming() -> AsyncIterator[Entry]:
        while True:
            yield await queue.get()

    async with (
        talking_to(server) as session,
        asyncio.timeout(60),
        Batch(session, coming()) as batch,
    ):
        await server.until(lambda: server.asked["stream"] == 1)
        if how == "stopped":
            batch.stop()
            with pytest.raises(BatchStopped):
                await batch.run()


async def test_an_async_generator_is_closed_when_the_batch_is_left() -> None:
    """A generator that was not read to its end has cleaned up by the time the context is left."""
    server = BatchServer(lasts=None)
    log = []

    async def coming() -> AsyncIterator[Entry]:
        try:
            for entry in entries(server, 3):
                yield entry
        finally:
            log.append("closed")

    async with talking_to(server) as session, asyncio.timeout(60):
        async with Batch(session, coming(), max_active=1, poll=POLL):
            await server.until(lambda: len(server.active) == 1)
        assert log == ["closed"]


async def test_a_failure_of_the_input_lets_what_is_sent_settle(tmp_path: Path) -> None:
    """An exception of the caller's own iterable is raised as it is, after the creates under way are known."""
    server = BatchServer(lasts=None)
    server.held["create"] = asyncio.Event()

    async def coming() -> AsyncIterator[Entry]:
        for entry in entries(server, 2):
            yield entry
        await server.until(lambda: len(server.active) == 2)
        asyncio.get_running_loop().call_soon(server.held["create"].set)
        raise ZeroDivisionError

    async with talking_to(server) as session, asyncio.timeout(60):
        async with Batch(session, coming(), journal=tmp_path / "journal") as batch:
            with pytest.raises(ZeroDivisionError):
                await batch.run()
        async with Journal(tmp_path / "journal", session.base_url).opened() as known:
            assert await known.job_ids() == server.active


async def test_one_failure_stops_nothing() -> None:
    """Jobs that fail, are cancelled or are refused are outcomes with an error, and the others go on."""
    fates = {1: "failed", 2: "cancelled"}
    server = BatchServer(fate=lambda asked: fates.get(asked["n_epochs"], "succeeded"))
    wanted = entries(server, 5)
    wanted[2] = Entry("job-3", FineTuneRequest(training_file="file-unknown"))
    wanted[3] = Entry("job-4", FineTuneRequest(training_file="gone.jsonl"))
    async with talking_to(server) as session:
        batch = Batch(session, wanted)
        outcomes = {outcome.label: outcome for outcome in await outcomes_of(batch)}
    assert isinstance(outcomes["job-1"].error, FineTuneFailed)
    assert "Fine-tune failed" in str(outcomes["job-1"].error)
    assert isinstance(outcomes["job-2"].error, FineTuneCancelled)
    assert str(outcomes["job-3"].error).startswith("400: No such file: file-unknown")
    assert isinstance(outcomes["job-4"].error, LocalFileError)
    assert outcomes["job-5"].error is None
    assert {label: outcome.status for label, outcome in outcomes.items()} == {
        "job-1": "failed",
        "job-2": "cancelled",
        "job-3": "rejected",
        "job-4": "rejected",
        "job-5": "succeeded",
    }
    progress = batch.progress
    counts = (progress.succeeded, progress.failed, progress.cancelled, progress.rejected, progress.ended, progress.seen)
    assert counts == (1, 1, 1, 2, 5, 5)


async def test_an_outcome_in_short() -> None:
    """The summary of an outcome is JSON that a person can read."""
    server = BatchServer(fate=lambda asked: "failed" if asked["n_epochs"] == 1 else "succeeded")
    wanted = [*entries(server, 2), Entry("none", FineTuneRequest(training_file="file-unknown"))]
    async with talking_to(server) as session:
        told = {outcome.label: outcome.summary() for outcome in await outcomes_of(Batch(session, wanted))}
    assert json.loads(json.dumps(told)) == told
    assert [told[label]["status"] for label in ("job-1", "job-2", "none")] == ["failed", "succeeded", "rejected"]
    assert told["job-2"]["model"] == server.jobs[str(told["job-2"]["job"])]["fine_tuned_model"]
    assert (told["none"]["job"], told["job-2"]["error"]) == (None, None)


async def test_a_job_that_the_service_forgets_is_an_outcome() -> None:
    """A job that is deleted at the service while it is followed is told as not found, and nothing waits for it."""
    server = BatchServer(lasts=None)
    async with (
        talking_to(server) as session,
        asyncio.timeout(60),
        Batch(session, entries(server, 1), poll=POLL) as batch,
    ):
        await server.until(lambda: bool(server.asked["stream"]))
        (job_id,) = server.active
        server.refuse = lambda endpoint: error(404, "gone") if endpoint in {"stream", "retrieve"} else None
        server.end(job_id)
        outcome = await anext(batch)
    assert isinstance(outcome.error, NotFound)
    assert outcome.job is None
    assert outcome.status == outcome.summary()["status"] == "vanished"
    assert (batch.progress.vanished, batch.progress.uncertain, batch.progress.ended) == (1, 0, 1)


async def test_jobs_whose_streams_fail_are_followed_by_the_list() -> None:
    """Where following a job fails for good, the list of jobs tells its end."""
    server = BatchServer(lasts=None)
    wanted = entries(server, 2)
    server.refuse = lambda endpoint: error(403, "no streams") if endpoint in {"stream", "retrieve"} else None
    async with talking_to(server) as session, asyncio.timeout(60), Batch(session, wanted, poll=POLL) as batch:
        await server.until(lambda: server.asked["stream"] == 2 and server.asked["list"] > 0)
        for job_id in list(server.active):
            server.end(job_id)
        assert [outcome.error for outcome in await batch.run()] == [None, None]


async def test_many_jobs_are_followed_by_the_list() -> None:
    """Past the number of streams, one look at the list tells the end of all; failures say why, with their events."""
    server = BatchServer(lasts=None)
    count = MAX_STREAMS + 10
    seen = set()
    async with talking_to(server) as session, asyncio.timeout(60):
        batch = Batch(
            session, entries(server, count), poll=POLL, progress=lambda progress: seen.add(progress.followed_by)
        )
        async with batch:
            await server.until(lambda: len(batch.active) == count and server.asked["stream"] >= MAX_STREAMS)
            streamed = [job_id for job_id in batch.active if job_id in batch._streamed]
            listed = sorted(server.active - set(streamed))
            server.end(listed[0], "failed")
            for job_id in sorted(server.active):
                server.end(job_id)
            outcomes = await batch.run()
    assert server.asked["stream"] >= MAX_STREAMS
    assert server.asked["list"] > 0
    assert {"streams", "list"} == seen
    assert [str(outcome.error) for outcome in outcomes if outcome.error] == [
        f"fine-tune {listed[0]} failed: Fine-tune failed"
    ]
    assert len(outcomes) == count


async def test_a_listed_job_that_is_gone_is_an_outcome() -> None:
    """A job that is followed by the list, and is not in it any more, is told as not found."""
    server = BatchServer(lasts=None)
    count = MAX_STREAMS + 1
    async with (
        talking_to(server) as session,
        asyncio.timeout(60),
        Batch(session, entries(server, count), poll=POLL) as batch,
    ):
        await server.until(lambda: len(batch.active) == count and server.asked["stream"] >= MAX_STREAMS)
        (gone,) = (job_id for job_id in batch.active if job_id not in batch._streamed)
        del server.jobs[gone]
        server.active.remove(gone)
        outcome = await anext(batch)
        assert isinstance(outcome.error, NotFound)
        for job_id in sorted(server.active):
            server.end(job_id)
        assert len(await batch.run()) == count - 1


async def test_looks_go_on_while_results_are_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A results file that does not come holds up neither the ends of other jobs nor new ones."""
    monkeypatch.setattr("aiofinetune.batch._batch.MAX_STREAMS", 0)
    server = BatchServer(lasts=None)
    server.held["download"] = asyncio.Event()
    async with (
        talking_to(server) as session,
        asyncio.timeout(60),
        Batch(session, entries(server, 20), max_active=5, poll=POLL, results=tmp_path) as batch,
    ):
        await server.until(lambda: len(server.jobs) == 5)
        first, *rest = server.jobs
        server.end(first)
        await server.until(lambda: server.asked["download"] == 1)
        for job_id in rest:
            server.end(job_id, "failed")
        told = [await anext(batch) for _ in rest]
        assert {outcome.job_id for outcome in told} == set(rest)
        await server.until(lambda: len(server.jobs) == 9)
        server.held["download"].set()


async def test_a_job_that_is_not_listed_is_given_up_after_looks_that_fail_in_a_row(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A look that finds the job running, though the list does not hold it, makes good those that failed before."""
    monkeypatch.setattr("aiofinetune.batch._batch.MAX_STREAMS", 0)
    server = BatchServer(lasts=None)
    looks = itertools.count(1)

    def refuse(endpoint: str) -> bytes | None:
        if endpoint == "list":
            return ok({"object": "list", "data": []})
        return error(418, "odd") if endpoint == "retrieve" and next(looks) % 3 else None

    server.refuse = refuse
    async with (
        talking_to(server, retry=Retry(attempts=1)) as session,
        asyncio.timeout(60),
        Batch(session, entries(server, 1), poll=0.001) as batch,
    ):
        await server.until(lambda: server.asked["retrieve"] >= 12)
        server.end(*server.active)
        (outcome,) = await batch.run()
    assert outcome.error is None


# Limits


@pytest.mark.parametrize(("most", "foreign", "reserve"), [(3, 0, 0), (5, 2, 0), (6, 0, 3), (6, 2, 1), (1, 0, 0)])
async def test_never_more_jobs_than_allowed(most: int, foreign: int, reserve: int) -> None:
    """By the service's own count, active jobs never exceed the limit; others' jobs and the reserve are left room."""
    server = BatchServer(lasts=0.01)
    for _ in range(foreign):
        server.add_job()
    async with talking_to(server) as session:
        outcomes = await outcomes_of(
            Batch(session, entries(server, 25), max_active=most, reserve=reserve, poll=POLL, concurrency=8)
        )
    assert len(outcomes) == 25
    assert server.most_seen <= most - reserve


async def test_jobs_of_others_are_known_before_the_first_is_sent() -> None:
    """Where the service is full of other programs' jobs from the start, nothing is sent until one of them is over."""
    server = BatchServer()
    others = [server.add_job() for _ in range(3)]
    async with (
        talking_to(server) as session,
        asyncio.timeout(60),
        Batch(session, entries(server, 2), max_active=3, poll=POLL) as batch,
    ):
        await server.until(lambda: server.asked["list"] > 3 or server.asked["create"] > 0)
        assert server.asked["create"] == 0
        server.end(others[0])
        assert len(await batch.run()) == 2
    assert server.most_seen == 3


async def test_own_jobs_are_not_taken_for_those_of_others() -> None:
    """A job that was under way while the list was looked at leaves its room when it is over, before the next look."""
    server = BatchServer(lasts=None)
    wanted = entries(server, 2)
    server.held["create"] = asyncio.Event()
    async with talking_to(server) as session, asyncio.timeout(60):
        looked = asyncio.Event()

        def note(progress: Progress) -> None:
            if progress.others:
                looked.set()

        async with Batch(session, wanted, max_active=1, poll=POLL, progress=note) as batch:
            await server.until(lambda: len(server.active) == 1)
            # The next look sees a job of which the batch has no answer yet.
            seen = server.asked["list"]
            await server.until(lambda: server.asked["list"] > seen + 1)
            batch._poll = 3600
            server.held["create"].set()
            for _ in range(2):
                await server.until(lambda: len(server.active) == 1)
                server.end(*server.active)
                await anext(batch)


async def test_a_reserve_that_leaves_nothing() -> None:
    """A limit that leaves the batch no job is refused as it is set up."""
    async with talking_to(BatchServer()) as session:
        with pytest.raises(ConfigurationError, match=r"^max_active: 2 less a reserve of 2 leaves this batch no job$"):
            Batch(session, [], max_active=2, reserve=2)


@pytest.mark.parametrize(
    "wrong",
    [{"concurrency": 0}, {"per_minute": 0}, {"per_minute": -1}, {"reserve": -1}, {"reserve": 1}, {"poll": 0}],
)
async def test_limits_that_are_none(wrong: dict[str, int]) -> None:
    """A limit that lets nothing through is refused as it is set up, by its name."""
    async with talking_to(BatchServer()) as session:
        with pytest.raises(ConfigurationError, match=f"^{next(iter(wrong))}: "):
            Batch(session, [], **wrong)  # type: ignore[arg-type]  # each takes a number


async def test_no_more_requests_at_once_than_allowed() -> None:
    """Of creates that get no answer, no more than the concurrency are sent."""
    server = BatchServer()
    server.held["create"] = asyncio.Event()
    async with (
        talking_to(server) as session,
        asyncio.timeout(60),
        Batch(session, entries(server, 10), concurrency=3) as batch,
    ):
        await server.until(lambda: server.asked["create"] == 3)
        server.held["create"].set()
        assert len(await batch.run()) == 10


async def test_a_service_that_takes_no_more_jobs_is_waited_for() -> None:
    """A 429 for too many active jobs is no outcome: the request is sent again when there is room."""
    server = BatchServer(lasts=0.01, most_active=2)
    async with talking_to(server) as session:
        outcomes = await outcomes_of(Batch(session, entries(server, 20), poll=POLL))
    assert [outcome.error for outcome in outcomes] == [None] * 20
    assert len(server.jobs) == 20
    assert server.most_seen == 2


async def test_a_service_full_of_others_jobs_is_waited_for() -> None:
    """With no job of its own active, a batch refused for too many jobs goes on when another program's job is over."""
    server = BatchServer(most_active=1)
    other = server.add_job()
    async with (
        talking_to(server) as session,
        asyncio.timeout(60),
        Batch(session, entries(server, 1), poll=POLL) as batch,
    ):
        await server.until(lambda: server.asked["create"] > 0 and server.asked["list"] > 1)
        server.end(other)
        assert [outcome.error for outcome in await batch.run()] == [None]


async def test_requests_that_wait_for_room_do_not_pile_up() -> None:
    """Where the service is full, no more than a few requests are read, however often there is another look."""
    server = BatchServer(most_active=1, lasts=None)
    read = itertools.count()
    wanted = entries(server, 1000)

    def coming() -> Iterator[Entry]:
        for entry in wanted:
            next(read)
            yield entry

    async with (
        talking_to(server) as session,
        asyncio.timeout(60),
        Batch(session, coming(), concurrency=4, poll=0.001),
    ):
        await server.until(lambda: server.asked["list"] > 50)
    assert next(read) <= 3 * 4 + 1


async def test_requests_that_wait_for_room_are_left_when_it_stops(tmp_path: Path) -> None:
    """A batch that is stopped while requests wait for room sends none of them, and the next run all."""
    server = BatchServer(lasts=None)
    wanted = entries(server, 6)
    journal = tmp_path / "journal"
    async with talking_to(server) as session:
        async with asyncio.timeout(60), Batch(session, wanted, max_active=2, poll=POLL, journal=journal) as batch:
            await server.until(lambda: len(server.jobs) == 2 and batch.progress.seen == 3)
            batch.stop()
            with pytest.raises(BatchStopped):
                await anext(batch)
        assert len(server.jobs) == 2
        server.lasts = 0.0
        async with asyncio.timeout(60), Batch(session, wanted, poll=POLL, journal=journal):
            await server.until(lambda: len(server.jobs) == 6)


@pytest.mark.fastforward
async def test_throttling_slows_down_and_loses_nothing() -> None:
    """Creates that the service throttles are sent again until each is through, and none twice."""
    server = BatchServer(bucket=Bucket(rate=0.5, size=2))
    async with talking_to(server) as session:
        outcomes = await outcomes_of(Batch(session, entries(server, 12)))
        assert session.times_throttled > 0
    assert [outcome.error for outcome in outcomes] == [None] * 12
    assert len(server.jobs) == 12


THROTTLED = [(Retry(), "3600", 3600), (Retry(attempts=1), "20", 20), (Retry(attempts=1), "0", 10)]
"""Policies, what a service asks for that a session with them does not wait out, and the seconds that a batch waits."""


@pytest.mark.parametrize("endpoint", ["create", "upload", "list files"])
@pytest.mark.parametrize(("retry", "retry_after", "seconds"), [*THROTTLED, (Retry(attempts=1), None, 10)])
@pytest.mark.fastforward
async def test_a_throttling_that_the_session_does_not_wait_out(
    tmp_path: Path, endpoint: str, retry: Retry, retry_after: str | None, seconds: float
) -> None:
    """Where a session gives up what was throttled, the batch waits as long as it was asked to, or a while."""
    server = BatchServer()
    file = write(tmp_path, "train.jsonl", "train")
    refused = error(429, "slow down", **({} if retry_after is None else {"retry_after": retry_after}))
    server.refuse = lambda asked: refused if asked == endpoint and server.asked[asked] <= 1 else None
    wanted = [FineTuneRequest(training_file=file, n_epochs=number) for number in range(1, 5)]
    async with talking_to(server, retry=retry) as session:
        begin = asyncio.get_running_loop().time()
        async with Batch(session, wanted, concurrency=1, poll=7200) as batch:
            outcomes = await batch.run()
    assert [outcome.error for outcome in outcomes] == [None] * 4
    assert server.asked[endpoint] == (5 if endpoint == "create" else 2)
    assert min(server.created_at) - begin >= seconds


@pytest.mark.fastforward
async def test_a_pause_holds_back_turns_that_were_given() -> None:
    """Creates that wait for their turn when the service asks for a long pause wait for its end, and for a turn then."""
    server = BatchServer()
    server.refuse = lambda asked: (
        error(429, "slow down", retry_after="600") if asked == "create" and server.asked[asked] <= 1 else None
    )
    async with talking_to(server) as session:
        begin = asyncio.get_running_loop().time()
        async with Batch(session, entries(server, 4), concurrency=4, per_minute=60, poll=7200) as batch:
            outcomes = await batch.run()
    assert [outcome.error for outcome in outcomes] == [None] * 4
    assert server.asked["create"] == 5
    for number, created_at in enumerate(sorted(server.created_at)):
        assert created_at - begin >= 600 + number


async def test_only_an_end_that_makes_room_is_a_reason_to_try_again(tmp_path: Path) -> None:
    """While the service is full, outcomes of an earlier run, which free no room, send no create again."""
    server = BatchServer()
    old, new = (entries(server, 30)[part] for part in (slice(20), slice(20, None)))
    async with talking_to(server) as session:
        await outcomes_of(Batch(session, old, journal=tmp_path / "journal"))
        server.most_active = 0
        asked = server.asked["create"]
        async with (
            asyncio.timeout(60),
            Batch(session, [*new[:3], *old], journal=tmp_path / "journal", poll=600) as batch,
        ):
            told = [await anext(batch) for _ in old]
    assert [outcome.error for outcome in told] == [None] * 20
    assert server.asked["create"] - asked == 3


@pytest.mark.fastforward
async def test_a_rate_of_our_own() -> None:
    """Creates follow one another no faster than asked for, in the order of the requests."""
    server = BatchServer()
    wanted = entries(server, 8)
    async with talking_to(server) as session:
        begin = asyncio.get_running_loop().time()
        outcomes = await outcomes_of(Batch(session, wanted, per_minute=60))
    for number, created_at in enumerate(sorted(server.created_at)):
        assert created_at - begin >= number
    by_time = sorted(outcomes, key=lambda outcome: outcome.sent_at or 0)
    assert [outcome.label for outcome in by_time] == [entry.label for entry in wanted]


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
        Batch(session, entries(server, 2), max_active=10, poll=POLL) as batch,
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
        outcomes, stop = await stopped(Batch(session, entries(server, 3), max_active=2, poll=POLL))
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
        outcomes, _stop = await stopped(Batch(session, entries(server, 2), concurrency=1, max_active=1, poll=POLL))
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
        outcomes, stop = await stopped(Batch(session, wanted, journal=journal, poll=3600))
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
        with pytest.raises(FineTuneError, match="broke off"):
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
        assert await journal.job_ids() == set(server.jobs)


async def test_stop_is_heard_while_lost_creates_are_looked_for(tmp_path: Path) -> None:
    """A batch that looks for what an earlier run lost, and does not get the list, stops at once."""
    server = BatchServer()
    server.held["list"] = asyncio.Event()
    (entry,) = entries(server, 1)
    async with talking_to(server) as session, asyncio.timeout(60):
        async with Journal(tmp_path / "journal", session.base_url).opened() as crashed:
            await crashed.records([entry])
            await crashed.intend(entry.label, entry.request, time.time() - 1)
        async with Batch(session, [entry], journal=tmp_path / "journal") as batch:
            await server.until(lambda: server.asked["list"] == 1)
            batch.stop()
            with pytest.raises(BatchStopped):
                await batch.run()
        server.held["list"].set()
        async with Journal(tmp_path / "journal", session.base_url).opened() as journal:
            assert [lost.label for lost in await journal.lost()] == [entry.label]


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


@pytest.mark.parametrize("wrong", [{}, None, Entry("\ud800", FineTuneRequest(training_file="file-1"))])
async def test_what_is_no_request(wrong: object) -> None:
    """What is no request, or has a label that is no text, is named; nothing of it is sent."""
    server = BatchServer()
    async with talking_to(server) as session:
        with pytest.raises(RequestInvalid, match="1: expected"):
            await outcomes_of(Batch(session, [wrong]))  # type: ignore[list-item]  # what is to be refused
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


# Stopping


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
        async with Batch(session, wanted, max_active=3, poll=POLL, journal=journal) as batch:
            await server.until(lambda: len(server.active) == 3)
            batch.stop()
            with pytest.raises(BatchStopped, match=r"^the batch sends no more requests: it was asked to$"):
                await batch.run()
        assert len(server.active) == len(server.jobs) == 3
        assert server.asked["cancel"] == 0
        server.lasts = 0
        async with Batch(session, wanted, journal=journal) as batch:
            for job_id in list(server.active):
                server.end(job_id)
            assert len(await batch.run()) == 10
    assert len(server.jobs) == 10


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
    """What is told how far the batch is may stop it, as often as it likes."""
    server = BatchServer(fate=lambda _asked: "failed")
    async with talking_to(server) as session:

        def stop_at_two(progress: Progress) -> None:
            if progress.failed >= 2:
                batch.stop()

        batch = Batch(session, entries(server, 50), concurrency=1, progress=stop_at_two)
        outcomes, _stop = await stopped(batch)
    assert 2 <= len(outcomes) < 50


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
            assert await known.job_ids() == server.active
            assert await known.lost() == []
    assert server.asked["create"] == 4


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
        batch._journal.database.connection.execute("PRAGMA query_only = 1")
        server.held["create"].set()
        if iterates:
            with pytest.raises(JournalUnusable, match="readonly"):
                await batch.run()
    assert {job["status"] for job in server.jobs.values()} == {"cancelled"}
    told = " ".join(record.getMessage() for record in caplog.records if record.levelno == logging.ERROR)
    assert all(job_id in told for job_id in server.jobs)


# Files


async def test_a_content_is_uploaded_once(tmp_path: Path) -> None:
    """Requests that name one file, and files of other names with the same content, share one upload."""
    server = BatchServer()
    train, same, valid = (write(tmp_path, f"{name}.jsonl", name[:5]) for name in ("train-1", "train-2", "valid"))
    wanted = [FineTuneRequest(training_file=file, validation_file=valid) for file in [train, same] * 5]
    async with talking_to(server) as session:
        outcomes = await outcomes_of(Batch(session, wanted))
    assert [outcome.error for outcome in outcomes] == [None] * 10
    assert server.trained_on() == [b"train"] * 10
    assert server.asked["upload"] == 2


@pytest.mark.parametrize("name", ["train.json", "train.JSONL", "train.csv", "train.jsonl.gz", "train", "file-abc123"])
async def test_a_file_of_the_current_folder_is_uploaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """A request in code that names a file of the current folder trains on it, whatever its name looks like."""
    monkeypatch.chdir(tmp_path)
    Path(name).write_text("train")
    server = BatchServer()
    at_service = server.add_file("other.jsonl", b"other")
    wanted = [FineTuneRequest(training_file=file, validation_file=at_service) for file in (name, at_service)]
    async with talking_to(server) as session:
        outcomes = await outcomes_of(Batch(session, wanted, journal="journal", concurrency=1))
        assert [outcome.status for outcome in outcomes] == ["succeeded", "succeeded"]
        assert server.trained_on() == [b"train", b"other"]
        Path(name).unlink()
        again = await outcomes_of(Batch(session, wanted, journal="journal"))
    assert [outcome.job_id for outcome in again] == [outcome.job_id for outcome in outcomes]


@pytest.mark.parametrize("name", ["train.json", "train.JSONL", "train.csv", "train.jsonl.gz"])
async def test_a_missing_data_file_is_no_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """A request in code that names a data file which is not there is rejected, and the name is not sent as an id."""
    monkeypatch.chdir(tmp_path)
    server = BatchServer()
    async with talking_to(server) as session:
        (outcome,) = await outcomes_of(Batch(session, [FineTuneRequest(training_file=name)]))
    assert isinstance(outcome.error, LocalFileError)
    assert str(outcome.error) == f"{name}: No such file or directory"
    assert (outcome.status, server.asked["create"]) == ("rejected", 0)


async def test_a_content_is_uploaded_once_whatever_happens_first(tmp_path: Path) -> None:
    """A file of another name with a content that this run has uploaded before needs no further upload."""
    server = BatchServer()
    train, same = (write(tmp_path, name, "train") for name in ("a.jsonl", "b.jsonl"))
    async with talking_to(server) as session:
        wanted = [FineTuneRequest(training_file=file) for file in (train, same, train)]
        await outcomes_of(Batch(session, wanted, concurrency=1))
    assert server.asked["upload"] == 1


async def test_files_are_told_by_their_content(tmp_path: Path) -> None:
    """Files of one name and other contents are not taken for one another."""
    server = BatchServer()
    contents = ["one", "two", "six"]
    for content in contents:
        (tmp_path / content).mkdir()
    wanted = [FineTuneRequest(training_file=write(tmp_path / name, "train.jsonl", name)) for name in contents]
    async with talking_to(server) as session:
        await outcomes_of(Batch(session, wanted))
    assert sorted(server.trained_on()) == [b"one", b"six", b"two"]


@pytest.mark.parametrize("has_journal", [True, False])
async def test_a_content_is_uploaded_once_across_runs(tmp_path: Path, *, has_journal: bool) -> None:
    """The next run finds what was uploaded: by the journal, and without one by the name at the service."""
    server = BatchServer()
    file = write(tmp_path, "train.jsonl", "train")
    journal = tmp_path / "journal" if has_journal else None
    async with talking_to(server) as session:
        for number in range(2):
            wanted = [Entry(f"job-{number}", FineTuneRequest(training_file=file))]
            await outcomes_of(Batch(session, wanted, journal=journal))
    assert server.asked["upload"] == 1
    assert server.trained_on() == [b"train"] * 2


async def test_a_run_reads_a_file_once_to_see_whether_it_has_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sweep that is run again looks into the one file of all its requests once, though it begins with many."""
    read = []
    file_digest = hashlib.file_digest

    def counted(file: BufferedReader, name: str) -> object:
        read.append(file.name)
        return file_digest(file, name)

    monkeypatch.setattr(hashlib, "file_digest", counted)
    server = BatchServer()
    file = write(tmp_path, "train.jsonl", "train")
    wanted = [Entry(f"job-{number}", FineTuneRequest(training_file=file, n_epochs=number)) for number in range(1, 9)]
    async with talking_to(server) as session:
        await outcomes_of(Batch(session, wanted, journal=tmp_path / "journal"))
        read.clear()
        outcomes = await outcomes_of(Batch(session, wanted, journal=tmp_path / "journal"))
    assert [outcome.error for outcome in outcomes] == [None] * 8
    assert read == [file]


async def test_a_file_that_is_gone_at_the_service_is_uploaded_again(tmp_path: Path) -> None:
    """A file that the journal knows and the service does not is uploaded again."""
    server = BatchServer()
    file = write(tmp_path, "train.jsonl", "train")
    async with talking_to(server) as session:
        for label in ("a", "b", "c"):
            wanted = [Entry(label, FineTuneRequest(training_file=file))]
            await outcomes_of(Batch(session, wanted, journal=tmp_path / "journal"))
            if label == "a":
                for file_id in [key for key, value in server.files.items() if value["purpose"] == "fine-tune"]:
                    del server.files[file_id]
    assert server.asked["upload"] == 2


@pytest.mark.parametrize("wrong", [{"bytes": 2}, {"status": "error"}])
async def test_what_is_left_of_a_failed_upload_is_not_used(tmp_path: Path, wrong: dict[str, object]) -> None:
    """A file of the right name that the service has in part, or could not read, is uploaded again."""
    server = BatchServer()
    file = write(tmp_path, "train.jsonl", "train")
    async with talking_to(server) as session:
        await outcomes_of(Batch(session, [Entry("a", FineTuneRequest(training_file=file))]))
        for known in server.files.values():
            known.update(wrong)
        await outcomes_of(Batch(session, [Entry("b", FineTuneRequest(training_file=file))]))
    assert server.asked["upload"] == 2
    first, second = (job["training_files"][0]["id"] for job in server.jobs.values())
    assert first != second


async def test_a_file_that_changes_while_it_is_sent(tmp_path: Path) -> None:
    """What was sent under the name of another content is not trained on, and not left for later runs to find."""
    server = BatchServer()
    file = write(tmp_path, "train.jsonl", "train")
    server.held["list files"] = asyncio.Event()
    async with (
        talking_to(server) as session,
        asyncio.timeout(60),
        Batch(session, [FineTuneRequest(training_file=file)]) as batch,
    ):
        await server.until(lambda: server.asked["list files"] == 1)
        write(tmp_path, "train.jsonl", "other")
        server.held["list files"].set()
        (outcome,) = await batch.run()
    assert isinstance(outcome.error, LocalFileError)
    assert "changed while it was sent" in str(outcome.error)
    assert (server.jobs, server.files) == ({}, {})


async def test_an_upload_that_fails_is_the_outcome_of_those_who_need_it(tmp_path: Path) -> None:
    """A file that the service refuses fails its own requests alone."""
    server = BatchServer()
    known = entries(server, 1)
    server.refuse = lambda endpoint: error(400, "Invalid file") if endpoint == "upload" else None
    wanted = [*known, Entry("bad", FineTuneRequest(training_file=write(tmp_path, "bad.jsonl", "bad")))]
    async with talking_to(server) as session:
        outcomes = {outcome.label: outcome for outcome in await outcomes_of(Batch(session, wanted))}
    assert outcomes["job-1"].error is None
    assert str(outcomes["bad"].error).startswith("400: Invalid file")


async def test_a_path_that_no_file_can_have() -> None:
    """A path with a null byte is the error of its own request, and no other's."""
    server = BatchServer()
    wanted = [*entries(server, 1), Entry("bad", FineTuneRequest(training_file="a\0.jsonl"))]
    async with talking_to(server) as session:
        outcomes = {outcome.label: outcome for outcome in await outcomes_of(Batch(session, wanted))}
    assert isinstance(outcomes["bad"].error, LocalFileError)
    assert outcomes["job-1"].error is None


# Results


async def test_results_are_downloaded_to_a_folder(tmp_path: Path) -> None:
    """Each results file is written under its label, made a file name where need be, and its last figures are given."""
    server = BatchServer(fate=lambda asked: "failed" if asked["n_epochs"] == 1 else "succeeded")
    failing, *wanted = entries(server, 4)
    names = ["spam/n_epochs=4,model=ada", "spam_n_epochs=4,model=ada", "../../etc"]
    wanted = [Entry(name, entry.request) for name, entry in zip(names, wanted, strict=True)]
    folder = tmp_path / "deep" / "results"
    async with talking_to(server) as session:
        outcomes = await outcomes_of(Batch(session, [failing, *wanted], results=folder))
    paths = sorted(folder.iterdir())
    assert sorted(tmp_path.rglob("*.csv")) == paths
    assert [path.read_bytes() for path in paths] == [RESULTS] * 3
    told = {outcome.label: outcome.job_id for outcome in outcomes}
    assert f"{names[1]}.{told[names[1]]}.csv" in {path.name for path in paths}
    for outcome in outcomes:
        assert dict(outcome.figures).get("training_loss") == (None if outcome.label == "job-1" else 0.25)


async def test_a_batch_that_was_not_entered_says_so() -> None:
    """A batch that is read outside its context, or entered again, raises at once rather than waits for ever."""
    server = BatchServer()
    async with talking_to(server) as session:
        batch = Batch(session, entries(server, 1))
        with pytest.raises(FineTuneError, match="async with"):
            await batch.run()
        await outcomes_of(batch)
        with pytest.raises(FineTuneError, match="make a new one"):
            await batch.__aenter__()


async def test_a_file_that_was_edited_is_a_change(tmp_path: Path) -> None:
    """A local file with another content than was sent makes its entry another one, which is refused until accepted."""
    server = BatchServer()
    path = tmp_path / "train.jsonl"
    path.write_text("first")
    wanted = [Entry("a", FineTuneRequest(training_file=str(path)))]
    async with talking_to(server) as session:
        (first,) = await outcomes_of(Batch(session, wanted, journal=tmp_path / "journal"))
        (again,) = await outcomes_of(Batch(session, wanted, journal=tmp_path / "journal"))
        assert again.job_id == first.job_id
        path.write_text("second")
        with pytest.raises(JournalUnusable, match=r"the content of .*train\.jsonl"):
            await outcomes_of(Batch(session, wanted, journal=tmp_path / "journal"))
        (other,) = await outcomes_of(Batch(session, wanted, journal=tmp_path / "journal", accept_changes=True))
        assert other.job_id != first.job_id
        path.unlink()
        (gone,) = await outcomes_of(Batch(session, wanted, journal=tmp_path / "journal"))
        assert gone.job_id == other.job_id


@pytest.mark.parametrize(
    ("job_id", "error", "status"),
    [
        ("ft-1", CreateUncertain(FineTuneRequest(training_file="file-1"), 0.0), "uncertain"),
        (None, NotFound(404, "no such file"), "rejected"),
        (None, CreateUncertain(FineTuneRequest(training_file="file-1"), 0.0), "uncertain"),
        ("ft-1", NotFound(404, "no such job"), "vanished"),
    ],
)
def test_what_is_not_known_is_not_denied(job_id: str | None, error: FineTuneError, status: str) -> None:
    """A job that may have been made, or was, is never called "rejected"."""
    outcome = Outcome("a", FineTuneRequest(training_file="file-1"), job_id, None, error, None, 0.0)
    assert outcome.status == status
    assert (outcome.summary()["status"], outcome.summary()["job"]) == (status, job_id)


async def test_results_that_are_missing_are_told(tmp_path: Path) -> None:
    """A job that succeeded without a results file is an outcome with its job, and an error that says so."""
    server = BatchServer()
    server.keeps_ended = False
    async with talking_to(server) as session:
        (outcome,) = await outcomes_of(Batch(session, entries(server, 1), results=tmp_path))
    assert outcome.job is not None
    assert "has no results file" in str(outcome.error)


async def test_a_results_folder_that_cannot_be_is_told_first(tmp_path: Path) -> None:
    """Where the folder cannot be made, the batch is not begun."""
    server = BatchServer()
    folder = Path(write(tmp_path, "results", "a file in its place"))
    async with talking_to(server) as session:
        with pytest.raises(LocalFileError, match="File exists"):
            await outcomes_of(Batch(session, entries(server, 3), results=folder))
    assert not server.jobs


async def test_a_results_folder_that_goes_is_told(tmp_path: Path) -> None:
    """Where the folder is gone when results come, each job is told with its model and an error of ours."""
    server = BatchServer(lasts=None)
    folder = tmp_path / "results"
    async with (
        talking_to(server) as session,
        asyncio.timeout(60),
        Batch(session, entries(server, 3), results=folder) as batch,
    ):
        await server.until(lambda: len(server.active) == 3)
        folder.rmdir()
        for job_id in list(server.active):
            server.end(job_id)
        outcomes = await batch.run()
    assert [type(outcome.error) for outcome in outcomes] == [LocalFileError] * 3
    assert all(outcome.job and outcome.job.fine_tuned_model for outcome in outcomes)


async def test_results_that_are_there_are_not_downloaded_again(tmp_path: Path) -> None:
    """A resumed batch gives the old figures from the files that it has, even if the service has them no more."""
    server = BatchServer()
    wanted = entries(server, 3)
    async with talking_to(server) as session:
        for _ in range(2):
            outcomes = await outcomes_of(
                Batch(session, wanted, results=tmp_path / "results", journal=tmp_path / "journal")
            )
            assert [(outcome.error, outcome.figures["training_loss"]) for outcome in outcomes] == [(None, 0.25)] * 3
            server.contents.clear()
    assert server.asked["download"] == 3


# The journal


async def test_without_a_journal_nothing_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch without a journal leaves no file, and the next one sends all again."""
    monkeypatch.chdir(tmp_path)
    server = BatchServer()
    wanted = entries(server, 2)
    async with talking_to(server) as session:
        for _ in range(2):
            await outcomes_of(Batch(session, wanted))
    assert len(server.jobs) == 4
    assert list(tmp_path.iterdir()) == []


async def test_a_finished_batch_gives_its_outcomes_again(tmp_path: Path) -> None:
    """Run again with its journal, a finished batch gives the same outcomes and asks the service for nothing."""
    server = BatchServer(fate=lambda asked: "failed" if asked["n_epochs"] == 2 else "succeeded")
    wanted = entries(server, 4)
    async with talking_to(server) as session:
        first = await outcomes_of(Batch(session, wanted, journal=tmp_path / "journal"))
        asked = server.asked.total()
        again = await outcomes_of(Batch(session, wanted, journal=tmp_path / "journal"))
        assert server.asked.total() == asked

    def key(outcome: Outcome) -> tuple[object, ...]:
        return outcome.label, outcome.job and outcome.job.id, type(outcome.error), outcome.sent_at, outcome.ended_at

    assert sorted(map(key, first)) == sorted(map(key, again))


async def test_old_outcomes_do_not_wait_for_room(tmp_path: Path) -> None:
    """What an earlier run knows is given though the service is full, for nothing need be sent for it."""
    server = BatchServer()
    wanted = entries(server, 3)
    async with talking_to(server) as session, asyncio.timeout(60):
        await outcomes_of(Batch(session, wanted, journal=tmp_path / "journal"))
        server.add_job()
        server.held["list"] = asyncio.Event()
        server.held["list"].set()
        async with Batch(
            session, [*wanted, Entry("new", wanted[0].request)], journal=tmp_path / "journal", max_active=1, poll=POLL
        ) as batch:
            for _ in wanted:
                await anext(batch)


async def test_active_jobs_of_an_earlier_run_are_followed_though_the_service_is_full(tmp_path: Path) -> None:
    """A resumed batch takes up all its active jobs at once, and does not take them for those of others."""
    server = BatchServer(lasts=None)
    wanted = entries(server, 4)
    async with talking_to(server) as session, asyncio.timeout(60):
        async with Batch(session, wanted, journal=tmp_path / "journal", max_active=3, poll=POLL):
            await server.until(lambda: server.asked["stream"] == 3)
        async with Batch(session, wanted, journal=tmp_path / "journal", max_active=3, poll=POLL) as batch:
            await server.until(lambda: server.asked["stream"] == 6)
            assert batch.active.keys() == server.active
            server.lasts = 0
            for job_id in list(server.active):
                server.end(job_id)
            assert len(await batch.run()) == 4
    assert server.most_seen == 3


async def test_a_lost_create_is_found_before_anything_is_sent(tmp_path: Path) -> None:
    """A job whose create left and whose reply nobody saw is found by the next run, and not made again."""
    server = BatchServer()
    wanted = entries(server, 3)
    journal = tmp_path / "journal"
    async with talking_to(server) as session:
        async with Journal(journal, session.base_url).opened() as crashed:
            for entry in wanted[:2]:
                await crashed.records([entry])
                await crashed.intend(entry.label, entry.request, time.time())
        made = server.add_job({"training_file": wanted[0].request.training_file, "model": "ada", "n_epochs": 1})
        server.end(made)
        outcomes = {outcome.label: outcome for outcome in await outcomes_of(Batch(session, wanted, journal=journal))}
    assert outcomes["job-1"].job is not None
    assert outcomes["job-1"].job.id == made
    assert [outcome.error for outcome in outcomes.values()] == [None] * 3
    assert len(server.jobs) == 3


async def test_a_lost_create_that_cannot_be_told_is_not_sent_again(tmp_path: Path) -> None:
    """Where the list cannot tell which job a lost create made, that is its outcome, and stays so in the next run."""
    server = BatchServer()
    (entry,) = entries(server, 1)
    journal = tmp_path / "journal"
    async with talking_to(server) as session:
        async with Journal(journal, session.base_url).opened() as crashed:
            await crashed.records([entry])
            await crashed.intend(entry.label, entry.request, time.time())
        for _ in range(2):
            server.add_job({"training_file": entry.request.training_file, "model": "ada", "n_epochs": 1})
        for _ in range(2):
            (outcome,) = await outcomes_of(Batch(session, [entry], journal=journal, poll=POLL))
            assert isinstance(outcome.error, CreateUncertain)
            assert len(outcome.error.candidates) == 2
    assert server.asked["create"] == 0


@pytest.mark.parametrize("lost", ["before", "after"])
async def test_lost_replies_make_no_job_twice(lost: str, tmp_path: Path) -> None:
    """Creates and uploads whose reply is lost once in three are all made, and made once."""
    server = BatchServer()
    turn = itertools.count()
    server.lose = lambda _endpoint: lost if next(turn) % 3 == 0 else ""
    files = [write(tmp_path, f"{number}.jsonl", str(number)) for number in range(4)]
    wanted = [FineTuneRequest(training_file=file, n_epochs=n) for file in files for n in range(1, 6)]
    async with talking_to(server, retry=attrs.evolve(QUICK, attempts=8)) as session:
        outcomes = await outcomes_of(Batch(session, wanted, journal=tmp_path / "journal"))
    assert [outcome.error for outcome in outcomes] == [None] * 20
    assert len(server.jobs) == 20
    assert Counter(server.trained_on()) == {str(number).encode(): 5 for number in range(4)}


async def test_two_batches_on_one_journal(tmp_path: Path) -> None:
    """While a batch runs, a second one with its journal is refused as it is entered, and the first goes on."""
    server = BatchServer()
    wanted = entries(server, 2)
    async with talking_to(server) as session:
        batch = Batch(session, wanted, journal=tmp_path / "journal")
        async with asyncio.timeout(60), batch:
            with pytest.raises(JournalUnusable, match=r"journal: another process is running this batch$"):
                async with Batch(session, wanted, journal=tmp_path / "journal"):
                    pass
            assert len(await batch.run()) == 2


async def test_a_label_that_is_there_twice() -> None:
    """Two requests of one label end the batch with an error that names it."""
    server = BatchServer()
    (entry,) = entries(server, 1)
    async with talking_to(server) as session:
        with pytest.raises(
            JournalUnusable, match=r"^'job-1' is there twice; each entry of a batch needs a label of its own$"
        ):
            await outcomes_of(Batch(session, [entry, entry]))


async def test_a_changed_request_is_refused(tmp_path: Path) -> None:
    """A request that is another than the journal knows under its label ends the batch, saying what has changed."""
    server = BatchServer()
    wanted = entries(server, 2)
    journal = tmp_path / "journal"
    async with talking_to(server) as session:
        await outcomes_of(Batch(session, wanted, journal=journal))
        wanted[1] = Entry("job-2", attrs.evolve(wanted[1].request, n_epochs=9, model=None))
        words = "'job-2' has changed since it was sent: model was 'ada', is None, n_epochs was 2, is 9; accept_changes="
        with pytest.raises(JournalUnusable, match=f"^{words}"):
            await outcomes_of(Batch(session, wanted, journal=journal))
        assert len(server.jobs) == 2
        assert await find_changes(journal, session.base_url, wanted) == [
            "job-2: model was 'ada', is None, n_epochs was 2, is 9"
        ]


async def test_nothing_is_sent_that_comes_after_a_change(tmp_path: Path) -> None:
    """A request that is refused for its file has changed keeps all that come after it from being sent."""
    server = BatchServer()
    path = write(tmp_path, "train.jsonl", "first")
    wanted = [Entry("first", FineTuneRequest(training_file=path)), *entries(server, 20)]
    async with talking_to(server) as session:
        await outcomes_of(Batch(session, wanted[:1], journal=tmp_path / "journal"))
        write(tmp_path, "train.jsonl", "other" * 1_000_000)
        with pytest.raises(JournalUnusable, match="'first' has changed"):
            await outcomes_of(Batch(session, wanted, journal=tmp_path / "journal"))
    assert len(server.jobs) == 1


async def test_a_file_that_cannot_be_read_any_more_has_not_changed(tmp_path: Path) -> None:
    """An old request whose file is there, and out of reach, keeps neither its outcome nor the others' from coming."""
    server = BatchServer()
    path = write(tmp_path, "train.jsonl", "train")
    wanted = [Entry("first", FineTuneRequest(training_file=path)), *entries(server, 2)]
    async with talking_to(server) as session:
        await outcomes_of(Batch(session, wanted[:1], journal=tmp_path / "journal"))
        with pytest.MonkeyPatch.context() as patch:
            # Root may read any file: hence not by its mode.
            patch.setattr(
                hashlib, "file_digest", lambda *_given: (_ for _ in ()).throw(OSError(errno.EIO, "I/O error"))
            )
            outcomes = await outcomes_of(Batch(session, wanted, journal=tmp_path / "journal"))
    assert sorted((outcome.label, outcome.error) for outcome in outcomes) == [
        ("first", None),
        ("job-1", None),
        ("job-2", None),
    ]


async def test_a_request_that_made_no_job_may_be_corrected(tmp_path: Path) -> None:
    """A request that the service refused is no change when it is asked for otherwise: it is sent as it is now."""
    server = BatchServer()
    wanted = entries(server, 2)
    wanted[1] = Entry("job-2", attrs.evolve(wanted[1].request, training_file="file-unknown"))
    journal = tmp_path / "journal"
    async with talking_to(server) as session:
        first = await outcomes_of(Batch(session, wanted, journal=journal))
        assert [it.label for it in first if it.error is not None] == ["job-2"]
        wanted[1] = Entry("job-2", wanted[0].request)
        assert await find_changes(journal, session.base_url, wanted) == []
        again = await outcomes_of(Batch(session, wanted, journal=journal))
    assert [it.error for it in again] == [None] * 2
    assert len(server.jobs) == 2


async def test_a_changed_request_makes_a_new_job_if_accepted(tmp_path: Path) -> None:
    """With changes accepted, a changed request makes a new job, and the others give their old outcomes."""
    server = BatchServer()
    wanted = entries(server, 3)
    journal = tmp_path / "journal"
    async with talking_to(server) as session:
        first = await outcomes_of(Batch(session, wanted, journal=journal))
        wanted[1] = Entry("job-2", attrs.evolve(wanted[1].request, n_epochs=9))
        again = await outcomes_of(Batch(session, wanted, journal=journal, accept_changes=True))
        assert await find_changes(journal, session.base_url, wanted) == []
    before, after = ({it.label: it.job and it.job.id for it in outcomes} for outcomes in (first, again))
    assert [label for label in before if before[label] != after[label]] == ["job-2"]
    assert len(server.jobs) == 4


async def test_changes_of_a_batch_that_was_never_begun(tmp_path: Path) -> None:
    """Without a journal there is nothing to compare with, and looking makes none."""
    assert await find_changes(tmp_path / "journal", "http://127.0.0.1:1/v1", []) == []
    assert list(tmp_path.iterdir()) == []


async def test_a_changed_request_is_sent_though_the_old_one_is_uncertain(tmp_path: Path) -> None:
    """With changes accepted, what became of an old create does not keep the new request from being sent."""
    server = BatchServer()
    (entry,) = entries(server, 1)
    async with Journal(tmp_path / "journal", "http://127.0.0.1:1/v1", accept_changes=True).opened() as crashed:
        await crashed.records([entry])
        await crashed.intend(entry.label, entry.request, time.time() - 1)
    server.refuse = lambda endpoint: error(404, "no list here") if endpoint == "list" else None
    wanted = [Entry(entry.label, attrs.evolve(entry.request, n_epochs=9))]
    async with talking_to(server) as session:
        (outcome,) = await outcomes_of(Batch(session, wanted, journal=tmp_path / "journal", accept_changes=True))
    assert outcome.error is None


async def test_what_is_not_asked_for_any_more_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Jobs that an earlier run left active and this one does not ask for are named in a warning, and as a change."""
    server = BatchServer(lasts=None)
    wanted = entries(server, 3)
    journal = tmp_path / "journal"
    async with talking_to(server) as session, asyncio.timeout(60):
        async with Batch(session, wanted, journal=journal):
            await server.until(lambda: server.asked["stream"] == 3)
        changes = await find_changes(journal, session.base_url, wanted[1:])
        assert changes == ["job-1: was sent, and is not asked for any more"]
        with caplog.at_level(logging.WARNING, "aiofinetune"):
            async with Batch(session, wanted[1:], journal=journal) as batch:
                await server.until(lambda: server.asked["stream"] == 5)
                for job_id in list(server.active):
                    server.end(job_id)
                assert len(await batch.run()) == 2
    told = [record.getMessage() for record in caplog.records if record.name == "aiofinetune"]
    assert told == ["the journal has jobs that this batch did not ask for, and does not follow: ['job-1']"]


async def test_a_journal_that_breaks_stops_the_batch(tmp_path: Path) -> None:
    """Where the journal cannot be written any more, nothing is sent: no job is made of which no trace is kept."""
    server = BatchServer(lasts=None)
    async with (
        talking_to(server) as session,
        asyncio.timeout(60),
        Batch(session, entries(server, 20), journal=tmp_path / "journal", concurrency=1, per_minute=6000) as batch,
    ):
        await server.until(lambda: len(server.active) == 1)
        # As a full disk does.
        batch._journal.database.connection.execute("PRAGMA query_only = ON")
        with pytest.raises(JournalUnusable):
            await batch.run()
    assert server.asked["create"] <= 2


def test_what_differs_between_requests() -> None:
    """The difference of two requests names each parameter, what it was and what it is."""
    before = FineTuneRequest(training_file="file-1", n_epochs=2, model="ada")
    now = FineTuneRequest(training_file="file-2", n_epochs=2, suffix="x")
    words = "training_file was 'file-1', is 'file-2', model was 'ada', is None, suffix was None, is 'x'"
    assert difference(before, now) == words


# Progress


async def test_progress_is_told(tmp_path: Path) -> None:
    """The callback is called on every change, and its counts only grow, to what the batch came to."""
    server = BatchServer(fate=lambda asked: "failed" if asked["n_epochs"] % 2 else "succeeded", lasts=0.001)
    told: list[tuple[int, int, int]] = []
    async with talking_to(server) as session:
        batch = Batch(
            session,
            entries(server, 10),
            journal=tmp_path / "journal",
            max_active=3,
            poll=POLL,
            progress=lambda progress: told.append((progress.seen, progress.ended, progress.active)),
        )
        await outcomes_of(batch)
    assert max(active for _, _, active in told) in range(1, 4)
    for earlier, later in itertools.pairwise(told):
        assert earlier[:2] <= later[:2]
    assert told[-1] == (10, 10, 0)
    assert (batch.progress.succeeded, batch.progress.failed) == (5, 5)
    assert batch.progress.ended_per_minute > 0


async def test_jobs_of_others_are_counted() -> None:
    """Where there is a limit, progress tells how many jobs of other programs are active."""
    server = BatchServer(lasts=None)
    for _ in range(2):
        server.add_job()
    async with (
        talking_to(server) as session,
        asyncio.timeout(60),
        Batch(session, entries(server, 1), max_active=5, poll=POLL) as batch,
    ):
        await server.until(lambda: len(server.active) == 3 and batch.progress.active == 1)
        seen = server.asked["list"]
        await server.until(lambda: server.asked["list"] > seen + 1)
        assert (batch.progress.active, batch.progress.others) == (1, 2)


# For real


async def test_real_jobs_to_completion(tmp_path: Path) -> None:
    """A dozen jobs train on the embedded server, never more than three active, each with a model and figures."""
    rows = [{"prompt": f"{name} ->", "completion": f" {kind}"} for kind, name in [("bird", "owl"), ("fish", "eel")] * 4]
    file = write(tmp_path, "train.jsonl", "\n".join(map(json.dumps, rows)))
    wanted = [
        Entry(f"{number}", FineTuneRequest(training_file=file, model="ada", n_epochs=1, suffix=f"j{number}"))
        for number in range(12)
    ]
    async with (
        LocalServer(tmp_path / "data") as server,
        FineTuneSession(server.api_key, base_url=server.base_url) as session,
    ):
        batch = Batch(
            session, wanted, max_active=3, poll=0.2, journal=tmp_path / "journal", results=tmp_path / "results"
        )
        outcomes = await batch_with_watcher(batch, session)
        assert len(await session.list_fine_tunes()) == len(wanted)
    assert [outcome.error for outcome in outcomes] == [None] * len(wanted)
    assert all(outcome.figures["training_loss"] > 0 for outcome in outcomes)
    assert len(list((tmp_path / "results").iterdir())) == len(wanted)


async def batch_with_watcher(batch: Batch, session: FineTuneSession) -> list[Outcome]:
    """Run a batch, and look after each outcome that no more than three jobs are active."""
    outcomes = []
    async with asyncio.timeout(120), batch:
        async for outcome in batch:
            outcomes.append(outcome)
            assert sum(not job.is_terminal for job in await session.list_fine_tunes()) <= 3
    return outcomes


# What cannot be noted, and what cannot be


async def test_a_job_that_could_not_be_noted_is_found_by_the_next_run(tmp_path: Path) -> None:
    """Where the disk is full as a job's id is to be noted, the error names the job, and the next run finds it."""
    server = BatchServer(lasts=None)
    wanted = entries(server, 1)
    server.held["create"] = asyncio.Event()
    async with talking_to(server) as session, asyncio.timeout(60):
        async with Batch(session, wanted, journal=tmp_path / "journal") as batch:
            await server.until(lambda: bool(server.jobs))
            batch._journal.database.connection.execute("PRAGMA query_only = ON")
            server.held["create"].set()
            (job_id,) = server.jobs
            with pytest.raises(JournalUnusable, match=f"readonly database; the job of 'job-1' is {job_id}$"):
                await batch.run()
        server.end(job_id)
        (outcome,) = await outcomes_of(Batch(session, wanted, journal=tmp_path / "journal"))
    assert outcome.job_id == job_id
    assert list(server.jobs) == [job_id]


async def test_an_end_that_cannot_be_noted_lets_what_is_being_sent_settle(tmp_path: Path) -> None:
    """Where a job's end cannot be noted the batch ends with that, once the creates under way are noted."""
    server = BatchServer(lasts=None)
    wanted = entries(server, 2)
    async with talking_to(server) as session, asyncio.timeout(60):
        async with Batch(session, wanted, journal=tmp_path / "journal", concurrency=1) as batch:
            await server.until(lambda: server.asked["stream"] == 1)
            server.held["create"] = asyncio.Event()
            await server.until(lambda: len(server.jobs) == 2)
            batch._journal.database.connection.execute(
                "CREATE TRIGGER full BEFORE UPDATE OF job ON entries BEGIN SELECT RAISE(FAIL, 'full'); END"
            )
            server.end(min(server.jobs))
            await server.until(lambda: server.asked["retrieve"] == 1)
            server.held["create"].set()
            with pytest.raises(JournalUnusable, match="full"):
                await batch.run()
        async with Journal(tmp_path / "journal", session.base_url).opened() as known:
            assert await known.job_ids() == set(server.jobs)


@pytest.mark.parametrize("most_streams", [0, MAX_STREAMS])
async def test_one_job_for_two_requests(monkeypatch: pytest.MonkeyPatch, most_streams: int) -> None:
    """Where a service gives a job that it gave to another request, each request has its outcome, and one the job."""
    monkeypatch.setattr("aiofinetune.batch._batch.MAX_STREAMS", most_streams)
    server = BatchServer(lasts=None)
    wanted = entries(server, 2)

    def same(endpoint: str) -> bytes | None:
        return ok(next(iter(server.jobs.values()))) if endpoint == "create" and server.jobs else None

    server.refuse = same
    async with (
        talking_to(server) as session,
        asyncio.timeout(60),
        Batch(session, wanted, concurrency=1, poll=POLL) as batch,
    ):
        outcomes = [await anext(batch)]
        server.end(*server.jobs)
        outcomes += await batch.run()
    assert [(outcome.label, outcome.job_id) for outcome in outcomes] == [("job-2", None), ("job-1", *server.jobs)]
    assert isinstance(outcomes[0].error, CreateUncertain)
    assert outcomes[0].error.candidate_ids == tuple(server.jobs)


async def test_a_note_whose_taker_is_cancelled_leaves_the_job_to_be_found(tmp_path: Path) -> None:
    """Cancelled as a job's id is noted, a batch leaves it to the next run to find the job, wherever it is known."""
    server = BatchServer()
    (entry,) = entries(server, 1)
    async with talking_to(server) as session, Batch(session, [], journal=tmp_path / "journal") as batch:
        begun = time.time()
        job = await session.create_fine_tune(entry.request)
        noting = asyncio.create_task(batch._keep(entry.label, job.id))
        await asyncio.sleep(0)
        noting.cancel()
        await asyncio.wait([noting])
        assert noting.cancelled()
        found = await session._recovery.find(entry.request, begun)
        assert found is not None
        assert found.id == job.id
