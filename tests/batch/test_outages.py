"""A service that is away for a while, once it has answered: the batch waits for it, as long as it is asked to."""

from __future__ import annotations

from pathlib import Path

import attrs
import pytest

from aiofinetune import ConfigurationError, FineTuneSession
from aiofinetune.batch._batch import Batch
from tests.batch.runs import POLL, entries, outcomes_of, stopped
from tests.servers.batchserver import QUICK, BatchServer, error, talking_to
from tests.servers.rawserver import KEY, reply

AWAY = error(503, "away", **{"Retry-After": "0"})
ONCE = attrs.evolve(QUICK, attempts=1)


def going_away(server: BatchServer, *, after: int) -> list[bool]:
    """Let the service be away once so many jobs are over; what is returned is emptied when it is to come back."""
    away = [True]
    server.refuse = lambda _endpoint: AWAY if away and server.asked["create"] > after else None
    return away


async def test_creates_wait_for_a_service_that_is_away() -> None:
    """Entries whose creates do not reach the service are sent when it answers again, and none is rejected."""
    server = BatchServer()
    wanted = entries(server, 9)
    away = going_away(server, after=3)
    async with talking_to(server, retry=ONCE) as session:
        batch = Batch(session, wanted, concurrency=1, max_active=1, poll_interval=POLL)
        outcomes, sent = [], 0
        async with batch:
            async for outcome in batch:
                outcomes.append(outcome)
                if len(outcomes) == 3:
                    await server.until(lambda: server.asked["create"] == 4)
                    server.asked["list"] = 0
                    await server.until(lambda: server.asked["list"] > 3)
                    (wait,) = batch.progress.waits
                    assert (wait.kind, wait.why) == ("unreachable", "503: away (type server_error)")
                    sent = server.asked["create"]
                    away.clear()
    assert [outcome.status for outcome in outcomes] == ["succeeded"] * 9
    assert (len(server.jobs), sent) == (9, 4)


async def test_a_service_that_stays_away_stops_the_batch(tmp_path: Path) -> None:
    """After the outage that the batch is to survive it stops, and the next run sends what is left."""
    server = BatchServer()
    wanted = entries(server, 5)
    away = going_away(server, after=2)
    journal = tmp_path / "journal"
    async with talking_to(server, retry=ONCE) as session:
        outcomes, stop = await stopped(
            Batch(session, wanted, concurrency=1, max_active=1, poll_interval=POLL, journal=journal, outage=0.1)
        )
        assert [outcome.status for outcome in outcomes] == ["succeeded"] * 2
        assert str(stop).startswith("the batch sends no more requests: the list of jobs cannot be read: 503")
        away.clear()
        again = await outcomes_of(Batch(session, wanted, journal=journal))
    assert [outcome.status for outcome in again] == ["succeeded"] * 5
    assert len(server.jobs) == 5


@pytest.mark.parametrize("status", [404, 405, 501])
async def test_what_is_no_such_service_stops_the_batch(status: int, tmp_path: Path) -> None:
    """A create that some other server answers rejects no entry: the next run sends them all."""
    server = BatchServer()
    wanted, journal = entries(server, 3), tmp_path / "journal"
    server.refuse = lambda _endpoint: reply(status, b"<!DOCTYPE HTML>", content_type="text/html")
    async with talking_to(server, retry=ONCE) as session:
        outcomes, stop = await stopped(Batch(session, wanted, poll_interval=POLL, journal=journal))
        assert (outcomes, getattr(stop.__cause__, "is_foreign", None)) == ([], True)
        server.refuse = lambda _endpoint: None
        again = await outcomes_of(Batch(session, wanted, journal=journal))
    assert [outcome.status for outcome in again] == ["succeeded"] * 3


async def test_an_entry_that_fails_where_others_do_not_is_rejected() -> None:
    """A create that fails again while the service answers is an outcome of its own, and keeps no other waiting."""
    server = BatchServer()
    wanted = entries(server, 4)
    right = server._create
    server._create = lambda asked: AWAY if asked["n_epochs"] == 2 else right(asked)  # type: ignore[method-assign]  # a service with a fault
    async with talking_to(server, retry=ONCE) as session:
        outcomes = await outcomes_of(Batch(session, wanted, concurrency=1, poll_interval=POLL))
    assert {it.label: it.status for it in outcomes} == {
        f"job-{number}": "rejected" if number == 2 else "succeeded" for number in range(1, 5)
    }


@pytest.mark.parametrize("outage", [-1, float("nan")])
async def test_an_outage_is_a_number_of_seconds(outage: float) -> None:
    """What is no time is refused."""
    async with FineTuneSession(KEY, base_url="http://127.0.0.1:9/v1") as session:
        with pytest.raises(ConfigurationError, match="outage: expected at least 0 seconds"):
            Batch(session, [], outage=outage)
