"""Never more jobs, requests or creates than allowed, and what happens where the service takes no more."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from aiofinetune import ConfigurationError, FineTuneRequest, Retry
from aiofinetune.batch._batch import Batch
from aiofinetune.batch._manifest import Entry
from aiofinetune.batch._outcomes import BatchStopped, Progress
from tests.batch.runs import POLL, entries, outcomes_of, write
from tests.servers.batchserver import BatchServer, Bucket, error, talking_to


@pytest.mark.parametrize(("most", "foreign", "reserve"), [(3, 0, 0), (5, 2, 0), (6, 0, 3), (6, 2, 1), (1, 0, 0)])
async def test_never_more_jobs_than_allowed(most: int, foreign: int, reserve: int) -> None:
    """By the service's own count, active jobs never exceed the limit; others' jobs and the reserve are left room."""
    server = BatchServer(lasts=0.01)
    for _ in range(foreign):
        server.add_job()
    async with talking_to(server) as session:
        outcomes = await outcomes_of(
            Batch(session, entries(server, 25), max_active=most, reserve=reserve, poll_interval=POLL, concurrency=8)
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
        Batch(session, entries(server, 2), max_active=3, poll_interval=POLL) as batch,
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

        async with Batch(session, wanted, max_active=1, poll_interval=POLL, progress=note) as batch:
            await server.until(lambda: len(server.active) == 1)
            # The next look sees a job of which the batch has no answer yet.
            seen = server.asked["list"]
            await server.until(lambda: server.asked["list"] > seen + 1)
            # From here on, no look ends.
            server.held["list"] = asyncio.Event()
            server.held["create"].set()
            for _ in range(2):
                await server.until(lambda: len(server.active) == 1)
                server.end(*server.active)
                await anext(batch)


async def test_a_reserve_that_leaves_nothing() -> None:
    """A limit that leaves the batch no job is refused as it is set up."""
    async with talking_to(BatchServer()) as session:
        with pytest.raises(
            ConfigurationError, match=r"^max_active: 2 minus a reserve of 2 leaves no job for this batch$"
        ):
            Batch(session, [], max_active=2, reserve=2)


@pytest.mark.parametrize(
    "wrong",
    [
        *({"concurrency": 0}, {"per_minute": 0}, {"per_minute": -1}, {"reserve": -1}, {"reserve": 1}),
        *({"poll_interval": 0}, {"max_active": 1.5}, {"max_active": "2"}, {"reserve": 0.5}, {"concurrency": 1.5}),
        *({"per_minute": "6"}, {"poll_interval": None}, {"outage": "5"}, {"journal": 5}, {"results": 5}),
        *({"retry": ["failed"]}, {"retry_uncertain": 5}),
    ],
)
async def test_settings_that_are_none(wrong: dict[str, Any]) -> None:
    """A limit that lets nothing through, or a setting of a wrong type, is refused as it is set up, by its name."""
    async with talking_to(BatchServer()) as session:
        with pytest.raises(ConfigurationError, match=f"^{next(iter(wrong))}: "):
            Batch(session, [], **wrong)


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
        outcomes = await outcomes_of(Batch(session, entries(server, 20), poll_interval=POLL))
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
        Batch(session, entries(server, 1), poll_interval=POLL) as batch,
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
        Batch(session, coming(), concurrency=4, poll_interval=0.001),
    ):
        await server.until(lambda: server.asked["list"] > 50)
    assert next(read) <= 3 * 4 + 1


async def test_requests_that_wait_for_room_are_left_when_it_stops(tmp_path: Path) -> None:
    """A batch that is stopped while requests wait for room sends none of them, and the next run all."""
    server = BatchServer(lasts=None)
    wanted = entries(server, 6)
    journal = tmp_path / "journal"
    async with talking_to(server) as session:
        async with (
            asyncio.timeout(60),
            Batch(session, wanted, max_active=2, poll_interval=POLL, journal=journal) as batch,
        ):
            await server.until(lambda: len(server.jobs) == 2 and batch.progress.seen == 6)
            batch.stop()
            with pytest.raises(BatchStopped):
                await anext(batch)
        assert len(server.jobs) == 2
        server.lasts = 0.0
        async with asyncio.timeout(60), Batch(session, wanted, poll_interval=POLL, journal=journal):
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
        async with Batch(session, wanted, concurrency=1, poll_interval=7200, data_check=False) as batch:
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
        async with Batch(session, entries(server, 4), concurrency=4, per_minute=60, poll_interval=7200) as batch:
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
            Batch(session, [*new[:3], *old], journal=tmp_path / "journal", poll_interval=600) as batch,
        ):
            await server.until(lambda: server.asked["create"] - asked == 3)
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
