"""The life of each job in the log: each step once, in sessions and batches, in both dialects."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from aiofinetune import Batch, Entry, FineTuneFailed, FineTuneRequest, FineTuneSession, Retry
from aiofinetune.batch import _batch
from aiofinetune.testing import FineTuneServer
from tests.batch.runs import POLL, outcomes_of

EXAMPLES = b'{"prompt": "wren ->", "completion": " bird"}\n'
QUICK = Retry(base=0.01, cap=0.05, grace=0.2)
DIALECTS = pytest.mark.parametrize("dialect", ["fine-tunes", "jobs"])


@pytest.fixture
def server() -> Iterator[FineTuneServer]:
    """A server of tests."""
    with FineTuneServer().in_thread() as server:
        yield server


def session_with(server: FineTuneServer, dialect: str) -> FineTuneSession:
    return FineTuneSession(server.api_key, base_url=server.base_url, dialect=dialect, retry=QUICK)


def of_the_client(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    """The records of this client: those of the server come from another thread, at any time."""
    return [record for record in caplog.records if record.name in ("aiofinetune", "aiofinetune.batch")]


def steps(caplog: pytest.LogCaptureFixture) -> Counter[tuple[str, str]]:
    """How often each step of each job was logged by this client."""
    records = [vars(record) for record in of_the_client(caplog)]
    return Counter((record["event"], record["job_id"]) for record in records if "event" in record)


@DIALECTS
async def test_the_life_of_a_sessions_job(
    server: FineTuneServer, dialect: str, caplog: pytest.LogCaptureFixture
) -> None:
    """However it was created, a job is created once, its stream's resumption is told, and it ends once."""
    caplog.set_level(logging.INFO, "aiofinetune")
    async with session_with(server, dialect) as session:
        file = await session.upload_file(EXAMPLES)
        server.faults.lose_reply("create")
        server.faults.fail_next("events", status=502)
        job = await session.create_fine_tune(FineTuneRequest(training_file=file.id, model="ada"))
        await session.wait(job.id)
        await session.wait(job.id)
    assert steps(caplog) == {("created", job.id): 1, ("ended", job.id): 1}
    resumed = [record for record in caplog.records if f"event stream of {job.id}, resumed" in record.getMessage()]
    assert [record.levelno for record in resumed] == [logging.INFO]


@DIALECTS
async def test_a_failed_job_has_ended_too(
    server: FineTuneServer, dialect: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The end of a job that failed is a record at INFO: the error says the rest."""
    caplog.set_level(logging.INFO, "aiofinetune")
    server.faults.fail_job("private words")
    async with session_with(server, dialect) as session:
        file = await session.upload_file(EXAMPLES)
        job = await session.create_fine_tune(FineTuneRequest(training_file=file.id, model="ada"))
        with pytest.raises(FineTuneFailed, match="private words"):
            await session.wait(job.id)
    last = of_the_client(caplog)[-1]
    assert (last.getMessage(), last.levelno) == (f"{job.id} ended: failed", logging.INFO)
    assert "private words" not in caplog.text


@DIALECTS
@pytest.mark.parametrize("max_streams", [0, 32], ids=["by the list", "by streams"])
async def test_the_life_of_a_batchs_jobs(
    server: FineTuneServer,
    dialect: str,
    max_streams: int,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each entry's job is created, started and ended once, under its label, and again not by a run that replays it."""
    caplog.set_level(logging.INFO, "aiofinetune")
    monkeypatch.setattr(_batch, "MAX_STREAMS", max_streams)
    server.faults.lose_reply("create")
    server.faults.fail_next("create", status=429, retry_after=0)
    async with session_with(server, dialect) as session:
        file = await session.upload_file(EXAMPLES)
        wanted = [Entry(f"job-{n}", FineTuneRequest(training_file=file.id, model="ada", n_epochs=n)) for n in (1, 2, 3)]
        journal = tmp_path / "journal"
        outcomes = await outcomes_of(Batch(session, wanted, journal=journal, poll_interval=POLL))
        seen = steps(caplog)
        assert {key for key, count in seen.items() if count > 1} == set()
        ids = {outcome.job_id for outcome in outcomes}
        for step in ("created", "ended"):
            assert {job_id for each, job_id in seen if each == step} == ids
        told = [vars(record) for record in caplog.records if vars(record).get("event") == "ended"]
        assert {record["label"] for record in told} == {"job-1", "job-2", "job-3"}
        assert {(record["status"], record["levelno"]) for record in told} == {("succeeded", logging.INFO)}
        caplog.clear()
        await outcomes_of(Batch(session, wanted, journal=journal, poll_interval=POLL))
        assert steps(caplog) == {}


async def test_what_needs_a_person_is_a_warning(server: FineTuneServer, caplog: pytest.LogCaptureFixture) -> None:
    """An entry that is uncertain ends at WARNING, one that was rejected at INFO."""
    caplog.set_level(logging.INFO, "aiofinetune")
    async with session_with(server, "fine-tunes") as session:
        file = await session.upload_file(EXAMPLES)
        request = FineTuneRequest(training_file=file.id, model="ada")
        server.faults.odd_reply("create", {}, without=["id", "created_at", "training_files"])
        server.faults.fail_next("list", status=500, times=None)
        (uncertain,) = await outcomes_of(Batch(session, [Entry("first", request)], poll_interval=POLL))
        server.faults.clear()
        server.faults.fail_next("create", status=400, message="private words")
        (rejected,) = await outcomes_of(Batch(session, [Entry("second", request)], poll_interval=POLL))
    assert (uncertain.status, rejected.status) == ("uncertain", "rejected")
    told = [(each.levelname, each.getMessage()) for each in caplog.records if hasattr(each, "event")]
    assert told == [
        ("WARNING", "first ended: uncertain: CreateUncertain"),
        ("INFO", "second ended: rejected: 400 BadRequest (invalid_request_error)"),
    ]
