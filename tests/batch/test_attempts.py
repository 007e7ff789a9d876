"""A label has attempts: what a rerun makes anew, what it leaves, and what it keeps of those before."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import attrs
import pytest

from aiofinetune import ConfigurationError, EntryChanged, FineTuneRequest, FineTuneSession, NotFound
from aiofinetune.batch._batch import Batch
from aiofinetune.batch._core import AttemptId
from aiofinetune.batch._journal import Journal
from aiofinetune.batch._journal_file import JournalFile
from aiofinetune.batch._manifest import Entry
from aiofinetune.models import CreateUncertain
from aiofinetune.structuring import dumps
from tests.batch.runs import POLL, entries, outcomes_of
from tests.servers.batchserver import BatchServer, talking_to


@pytest.fixture
def journal(tmp_path: Path) -> Path:
    return tmp_path / "sweep.journal"


async def owners(journal: Path, session: FineTuneSession) -> dict[str, AttemptId]:
    """Give the attempts that a journal holds, by their jobs."""
    async with Journal(journal, session.base_url).opened() as known:
        return await known.owners()


async def test_failed_and_cancelled_entries_are_tried_again_if_asked(journal: Path) -> None:
    """A retry makes a new job for what failed or was cancelled, and for nothing else; the old jobs are kept."""
    fates = {1: "succeeded", 2: "failed", 3: "cancelled"}
    server = BatchServer(fate=lambda asked: fates[int(str(asked["n_epochs"]))])
    wanted = entries(server, 3)
    async with talking_to(server) as session:
        await outcomes_of(Batch(session, wanted, journal=journal))
        first = list(server.jobs)
        fates[3] = "succeeded"
        outcomes = await outcomes_of(Batch(session, wanted, journal=journal, retry="failed"))
        told = {outcome.label: (outcome.status, outcome.attempt, outcome.is_replayed) for outcome in outcomes}
        assert told == {
            "job-1": ("succeeded", 1, True),
            "job-2": ("failed", 2, False),
            "job-3": ("succeeded", 2, False),
        }
        assert len(server.jobs) == 5
        assert set(await owners(journal, session)) == set(server.jobs)
        assert [(await owners(journal, session))[job_id].number for job_id in server.jobs] == [1, 1, 1, 2, 2]
        # Without being asked, nothing is tried again, and the last attempt counts.
        again = await outcomes_of(Batch(session, wanted, journal=journal))
    assert {outcome.label: (outcome.status, outcome.attempt) for outcome in again} == {
        label: (status, attempt) for label, (status, attempt, _) in told.items()
    }
    assert all(outcome.is_replayed for outcome in again)
    assert {outcome.job_id for outcome in again}.isdisjoint(first[1:])
    assert len(server.jobs) == 5


async def test_a_retry_that_was_cut_off_is_found_and_not_made_again(journal: Path) -> None:
    """The job of a retry whose reply nobody saw is found by the next run, though it was not asked to retry."""
    server = BatchServer(fate=lambda _asked: "failed")
    (entry,) = wanted = entries(server, 1)
    async with talking_to(server) as session:
        await outcomes_of(Batch(session, wanted, journal=journal))
        async with Journal(journal, session.base_url).opened() as crashed:
            await crashed.intend(AttemptId(entry.label, 2), entry.request, entry.request, time.time())
        made = server.add_job({"training_file": entry.request.training_file, "model": "ada", "n_epochs": 1})
        server.end(made)
        (outcome,) = await outcomes_of(Batch(session, wanted, journal=journal))
    assert (outcome.job_id, outcome.attempt, outcome.status) == (made, 2, "succeeded")
    assert len(server.jobs) == 2


async def test_the_progress_of_a_rerun(journal: Path) -> None:
    """What an earlier run knew counts as ended, and not in the rate of this one."""
    server = BatchServer()
    wanted = entries(server, 3)
    async with talking_to(server) as session:
        await outcomes_of(Batch(session, wanted[:2], journal=journal))
        async with asyncio.timeout(60), Batch(session, wanted[:2], journal=journal) as batch:
            assert len(await batch.run()) == 2
            assert (batch.progress.ended, batch.progress.replayed, batch.progress.ended_per_minute) == (2, 2, 0)
        async with asyncio.timeout(60), Batch(session, wanted, journal=journal) as batch:
            assert [outcome.is_replayed for outcome in await batch.run()] == [True, True, False]
            assert (batch.progress.ended, batch.progress.replayed) == (3, 2)
            assert batch.progress.ended_per_minute > 0


async def test_a_changed_request_leaves_its_old_job(journal: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Accepted changes make a new attempt; the old job runs on, which is said, is kept, and is not followed."""
    server = BatchServer(lasts=None)
    (entry,) = entries(server, 1)
    changed = Entry(entry.label, attrs.evolve(entry.request, n_epochs=7))
    async with talking_to(server) as session, asyncio.timeout(60):
        async with Batch(session, [entry], journal=journal):
            await server.until(lambda: server.asked["stream"] == 1)
        (old,) = server.jobs
        with pytest.raises(EntryChanged, match=f"; its job {old} may still run; pass accept_changes=True"):
            await outcomes_of(Batch(session, [changed], journal=journal))
        async with Batch(session, [changed], journal=journal, accept_changes=True) as batch:
            await server.until(lambda: server.asked["stream"] == 2)
            (new,) = server.active - {old}
            assert [job.job_id for job in batch.active.values()] == [new]
            server.end(new)
            (outcome,) = await batch.run()
        assert (outcome.job_id, outcome.attempt) == (new, 2)
        assert await owners(journal, session) == {old: AttemptId("job-1"), new: AttemptId("job-1", 2)}
    assert old in server.active
    (told,) = [record for record in caplog.records if getattr(record, "event", None) == "left"]
    assert (told.name, told.levelname) == ("aiofinetune.batch", "WARNING")
    assert told.getMessage() == f"job-1: {old} may still run, and is no longer followed"


async def test_an_uncertain_entry_is_sent_again_by_its_name_alone(journal: Path) -> None:
    """Neither a rerun nor a retry of what failed sends an uncertain entry; naming it does."""
    server = BatchServer()
    first, second = entries(server, 2)
    async with talking_to(server) as session:
        async with Journal(journal, session.base_url).opened() as crashed:
            for entry in (first, second):
                await crashed.intend(AttemptId(entry.label), entry.request, entry.request, time.time())
                for _ in range(2):
                    server.add_job(
                        {
                            "training_file": entry.request.training_file,
                            "model": "ada",
                            "n_epochs": entry.request.n_epochs,
                        }
                    )
        outcomes = await outcomes_of(Batch(session, [first, second], journal=journal, retry="failed"))
        assert [outcome.status for outcome in outcomes] == ["uncertain"] * 2
        assert len(server.jobs) == 4
        batch = Batch(session, [first, second], journal=journal, retry_uncertain=[second.label])
        outcomes = await outcomes_of(batch)
        assert {outcome.label: (outcome.status, outcome.attempt) for outcome in outcomes} == {
            "job-1": ("uncertain", 1),
            "job-2": ("succeeded", 2),
        }
        assert len(server.jobs) == 5
        (still, _) = await outcomes_of(Batch(session, [first, second], journal=journal))
    assert isinstance(still.error, CreateUncertain)
    assert len(server.jobs) == 5


async def test_a_vanished_job_is_made_again_by_its_name_alone(journal: Path) -> None:
    """A job that the service forgot stays an outcome, until its label is named: then a new one is made."""
    server = BatchServer(lasts=None)
    wanted = entries(server, 2)
    async with talking_to(server) as session, asyncio.timeout(60):
        async with Batch(session, wanted, journal=journal):
            await server.until(lambda: server.asked["stream"] == 2)
        for job_id in list(server.jobs):
            del server.jobs[job_id]
            server.active.remove(job_id)
        outcomes = await outcomes_of(Batch(session, wanted, journal=journal, retry="failed"))
        assert [type(outcome.error) for outcome in outcomes] == [NotFound] * 2
        assert not server.jobs
        server.lasts = 0
        outcomes = await outcomes_of(Batch(session, wanted, journal=journal, retry_uncertain=["job-1"]))
    assert {outcome.label: (outcome.status, outcome.attempt) for outcome in outcomes} == {
        "job-1": ("succeeded", 2),
        "job-2": ("vanished", 1),
    }


async def test_a_job_that_runs_is_not_made_again_by_its_name(journal: Path) -> None:
    """An entry that is named and whose job is there is followed, as if it were not named."""
    server = BatchServer(lasts=None)
    wanted = entries(server, 1)
    async with talking_to(server) as session, asyncio.timeout(60):
        async with Batch(session, wanted, journal=journal):
            await server.until(lambda: server.asked["stream"] == 1)
        async with Batch(session, wanted, journal=journal, retry_uncertain=["job-1"], poll_interval=POLL) as batch:
            await server.until(lambda: server.asked["stream"] == 2)
            server.end(*server.active)
            (outcome,) = await batch.run()
    assert (outcome.status, outcome.attempt) == ("succeeded", 1)
    assert len(server.jobs) == 1


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"retry": "all"}, "retry: expected 'failed' or None, got 'all'"),
        ({"retry_uncertain": "job-1"}, "retry_uncertain: expected a list of labels, got the text 'job-1'"),
    ],
)
async def test_wrong_retries_are_refused(options: dict[str, str], words: str) -> None:
    """What to retry is one of the words, and a list of labels."""
    async with FineTuneSession("sk-key", base_url="http://127.0.0.1:1/v1") as session:
        with pytest.raises(ConfigurationError, match=words):
            Batch(session, [], **options)  # type: ignore[arg-type]  # wrong on purpose


# Journals of version 2, which know no attempts


async def test_a_journal_of_version_2_goes_on(journal: Path) -> None:
    """Its notes are those of first attempts; a changed request is the next one."""
    asked = FineTuneRequest(training_file="file-1", n_epochs=1)
    now = attrs.evolve(asked, n_epochs=2)
    notes = (
        {"note": "open", "base_url": "http://127.0.0.1:1/v1", "path": ""},
        {"note": "intend", "label": "a", "request": asked.given(), "sent": asked.given(), "at": 1.0},
        {"note": "create", "label": "a", "job_id": "ft-1"},
        {"note": "replace", "label": "a", "request": now.given()},
        {"note": "intend", "label": "a", "request": now.given(), "sent": now.given(), "at": 2.0},
        {"note": "create", "label": "a", "job_id": "ft-2"},
        {"note": "intend", "label": "b", "request": asked.given(), "sent": asked.given(), "at": 3.0},
        {"note": "withdraw", "label": "b"},
        {"note": "intend", "label": "b", "request": asked.given(), "sent": asked.given(), "at": 4.0},
        {"note": "accept", "label": "b", "hint": "ft-3"},
    )
    file = JournalFile(journal)
    file.open()
    file.replace(map(dumps, notes))
    file.close()
    content = journal.read_bytes()
    journal.write_bytes(content.replace(b"aiofinetune journal 3 ", b"aiofinetune journal 2 "))
    async with Journal(journal, "http://127.0.0.1:1/v1").opened() as known:
        assert await known.owners() == {"ft-1": AttemptId("a"), "ft-2": AttemptId("a", 2)}
        (lost,) = await known.lost()
        assert (lost.attempt, lost.sent_at, lost.hint) == (AttemptId("b"), 4.0, "ft-3")
        await known.create(lost.attempt, "ft-3")
    assert journal.read_bytes().startswith(b"aiofinetune journal 3 ")
    async with Journal(journal, "http://127.0.0.1:1/v1").opened() as known:
        assert set(await known.owners()) == {"ft-1", "ft-2", "ft-3"}
        assert await known.lost() == []
