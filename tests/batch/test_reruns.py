"""Batches that go on with the journal of an earlier run, and what cannot be noted in it."""

from __future__ import annotations

import asyncio
import errno
import hashlib
import itertools
import logging
import time
from collections import Counter
from pathlib import Path

import attrs
import pytest

from aiofinetune import FineTuneRequest, FineTuneSession
from aiofinetune.batch._batch import MAX_STREAMS, Batch
from aiofinetune.batch._core import AttemptId, BatchCore, Settings
from aiofinetune.batch._core import actions as act
from aiofinetune.batch._data_files import difference
from aiofinetune.batch._journal import Journal
from aiofinetune.batch._manifest import Entry
from aiofinetune.batch._outcomes import Outcome
from aiofinetune.batch._records import Records
from aiofinetune.batch._rerun import Rerun, look_back
from aiofinetune.batch._runner import Runner
from aiofinetune.errors import JournalUnusable
from aiofinetune.models import CreateUncertain
from tests.batch.runs import POLL, entries, fill_disk, outcomes_of, write
from tests.servers.batchserver import QUICK, BatchServer, error, ok, talking_to

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
            session,
            [*wanted, Entry("new", wanted[0].request)],
            journal=tmp_path / "journal",
            max_active=1,
            poll_interval=POLL,
        ) as batch:
            for _ in wanted:
                await anext(batch)


async def test_active_jobs_of_an_earlier_run_are_followed_though_the_service_is_full(tmp_path: Path) -> None:
    """A resumed batch follows all its active jobs at once, and does not count them as those of other programs."""
    server = BatchServer(lasts=None)
    wanted = entries(server, 4)
    async with talking_to(server) as session, asyncio.timeout(60):
        async with Batch(session, wanted, journal=tmp_path / "journal", max_active=3, poll_interval=POLL):
            await server.until(lambda: server.asked["stream"] == 3)
        async with Batch(session, wanted, journal=tmp_path / "journal", max_active=3, poll_interval=POLL) as batch:
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
                await crashed.intend(AttemptId(entry.label), entry.request, entry.request, time.time())
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
            await crashed.intend(AttemptId(entry.label), entry.request, entry.request, time.time())
        for _ in range(2):
            server.add_job({"training_file": entry.request.training_file, "model": "ada", "n_epochs": 1})
        for _ in range(2):
            (outcome,) = await outcomes_of(Batch(session, [entry], journal=journal, poll_interval=POLL))
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
        outcomes = await outcomes_of(Batch(session, wanted, journal=tmp_path / "journal", data_check=False))
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
            JournalUnusable, match=r"^'job-1' is used twice; each entry of a batch needs a label of its own$"
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
        change = "model was 'ada' and is now None, n_epochs was 2 and is now 9"
        words = f"'job-2' has changed since it was sent: {change}; pass accept_changes=True"
        with pytest.raises(JournalUnusable, match=f"^{words}"):
            await outcomes_of(Batch(session, wanted, journal=journal))
        assert len(server.jobs) == 2
        assert (await look_back(journal, session, wanted)).changes == (f"job-2: {change}",)


async def test_nothing_is_sent_that_comes_after_a_change(tmp_path: Path) -> None:
    """A request that is refused for its file has changed keeps all that come after it from being sent."""
    server = BatchServer()
    path = write(tmp_path, "train.jsonl", "first")
    wanted = [Entry("first", FineTuneRequest(training_file=path)), *entries(server, 20)]
    async with talking_to(server) as session:
        await outcomes_of(Batch(session, wanted[:1], journal=tmp_path / "journal", data_check=False))
        write(tmp_path, "train.jsonl", "other" * 1_000_000)
        with pytest.raises(JournalUnusable, match="'first' has changed"):
            await outcomes_of(Batch(session, wanted, journal=tmp_path / "journal", data_check=False))
    assert len(server.jobs) == 1


async def test_a_file_that_cannot_be_read_any_more_has_not_changed(tmp_path: Path) -> None:
    """An old request whose file is there, and out of reach, keeps neither its outcome nor the others' from coming."""
    server = BatchServer()
    path = write(tmp_path, "train.jsonl", "train")
    wanted = [Entry("first", FineTuneRequest(training_file=path)), *entries(server, 2)]
    async with talking_to(server) as session:
        await outcomes_of(Batch(session, wanted[:1], journal=tmp_path / "journal", data_check=False))
        with pytest.MonkeyPatch.context() as patch:
            # Root may read any file: hence not by its mode.
            patch.setattr(
                hashlib, "file_digest", lambda *_given: (_ for _ in ()).throw(OSError(errno.EIO, "I/O error"))
            )
            outcomes = await outcomes_of(Batch(session, wanted, journal=tmp_path / "journal", data_check=False))
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
        assert (await look_back(journal, session, wanted)).changes == ()
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
        assert (await look_back(journal, session, wanted)).changes == ()
    before, after = ({it.label: it.job and it.job.id for it in outcomes} for outcomes in (first, again))
    assert [label for label in before if before[label] != after[label]] == ["job-2"]
    assert len(server.jobs) == 4


async def test_what_was_left_out_need_not_be_accepted_again(tmp_path: Path) -> None:
    """An entry that is gone is a change until it is accepted once; what is known of it is kept."""
    server = BatchServer()
    wanted = entries(server, 3)
    journal = tmp_path / "journal"
    async with talking_to(server) as session:
        await outcomes_of(Batch(session, wanted, journal=journal))
        gone = ("job-1: was sent, but is no longer in the manifest",)
        for _ in range(2):
            assert (await look_back(journal, session, wanted[1:])).changes == gone
        assert (await look_back(journal, session, wanted[1:], accept_changes=True)).changes == gone
        assert await look_back(journal, session, wanted[1:]) == Rerun((), 2, 0)
        assert await look_back(journal, session, wanted) == Rerun((), 3, 0)
        assert len(await outcomes_of(Batch(session, wanted, journal=journal))) == 3
    assert len(server.jobs) == 3


async def test_changes_of_a_batch_that_was_never_begun(tmp_path: Path) -> None:
    """Without a journal there is nothing to compare with, and looking makes none."""
    async with FineTuneSession("sk-key", base_url="http://127.0.0.1:1/v1") as session:
        assert await look_back(tmp_path / "journal", session, []) == Rerun()
    assert list(tmp_path.iterdir()) == []


async def test_a_changed_request_is_sent_though_the_old_one_is_uncertain(tmp_path: Path) -> None:
    """With changes accepted, what became of an old create does not keep the new request from being sent."""
    server = BatchServer()
    (entry,) = entries(server, 1)
    async with Journal(tmp_path / "journal", "http://127.0.0.1:1/v1").opened() as crashed:
        await crashed.intend(AttemptId(entry.label), entry.request, entry.request, time.time() - 1)
    server.refuse = lambda endpoint: error(404, "no list here") if endpoint == "list" else None
    wanted = [Entry(entry.label, attrs.evolve(entry.request, n_epochs=9))]
    async with talking_to(server) as session:
        (outcome,) = await outcomes_of(
            Batch(session, wanted, journal=tmp_path / "journal", accept_changes=True, accept_base_url=True)
        )
    assert outcome.error is None


async def test_what_is_not_asked_for_any_more_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Jobs that an earlier run left active and this one does not ask for are named in a warning, and as a change."""
    server = BatchServer(lasts=None)
    wanted = entries(server, 3)
    journal = tmp_path / "journal"
    async with talking_to(server) as session, asyncio.timeout(60):
        async with Batch(session, wanted, journal=journal):
            await server.until(lambda: server.asked["stream"] == 3)
        changes = (await look_back(journal, session, wanted[1:])).changes
        (old,) = (job_id for job_id, job in server.jobs.items() if job["hyperparams"]["n_epochs"] == 1)
        assert changes == (f"job-1: was sent, but is no longer in the manifest; its job {old} may still run",)
        with caplog.at_level(logging.WARNING, "aiofinetune"):
            async with Batch(session, wanted[1:], journal=journal) as batch:
                await server.until(lambda: server.asked["stream"] == 5)
                for job_id in list(server.active):
                    server.end(job_id)
                assert len(await batch.run()) == 2
    told = [record.getMessage() for record in caplog.records if record.name == "aiofinetune"]
    assert told == [f"the journal has jobs that are not in this batch and are not followed: job-1 ({old})"]


async def test_a_journal_that_breaks_stops_the_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the journal cannot be written any more, nothing is sent: no job is made of which no trace is kept."""
    server = BatchServer(lasts=None)
    async with (
        talking_to(server) as session,
        asyncio.timeout(60),
        Batch(session, entries(server, 20), journal=tmp_path / "journal", concurrency=1, per_minute=6000) as batch,
    ):
        await server.until(lambda: len(server.active) == 1)
        fill_disk(monkeypatch)
        with pytest.raises(JournalUnusable):
            await batch.run()
    assert server.asked["create"] <= 2


def test_what_differs_between_requests() -> None:
    """The difference of two requests names each parameter, what it was and what it is."""
    before = FineTuneRequest(training_file="file-1", n_epochs=2, model="ada")
    now = FineTuneRequest(training_file="file-2", n_epochs=2, suffix="x")
    words = (
        "training_file was 'file-1' and is now 'file-2', model was 'ada' and is now None,"
        " suffix was None and is now 'x'"
    )
    assert difference(before, now) == words


# What cannot be noted, and what cannot be


async def test_a_job_that_could_not_be_noted_is_found_by_the_next_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If the disk is full when a job's id is recorded, the error names the job, and the next run finds it."""
    server = BatchServer(lasts=None)
    wanted = entries(server, 1)
    server.held["create"] = asyncio.Event()
    async with talking_to(server) as session, asyncio.timeout(60):
        async with Batch(session, wanted, journal=tmp_path / "journal") as batch:
            await server.until(lambda: bool(server.jobs))
            fill_disk(monkeypatch)
            server.held["create"].set()
            (job_id,) = server.jobs
            with pytest.raises(JournalUnusable, match=f"No space left on device; the job of 'job-1' is {job_id}$"):
                await batch.run()
        monkeypatch.undo()
        server.end(job_id)
        (outcome,) = await outcomes_of(Batch(session, wanted, journal=tmp_path / "journal"))
    assert outcome.job_id == job_id
    assert list(server.jobs) == [job_id]


async def test_an_end_that_cannot_be_noted_lets_what_is_being_sent_settle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a job's end cannot be noted the batch ends with that, once the creates under way are noted."""
    server = BatchServer(lasts=None)
    wanted = entries(server, 2)
    async with talking_to(server) as session, asyncio.timeout(60):
        async with Batch(session, wanted, journal=tmp_path / "journal", concurrency=1) as batch:
            await server.until(lambda: server.asked["stream"] == 1)
            server.held["create"] = asyncio.Event()
            await server.until(lambda: len(server.jobs) == 2)
            fill_disk(monkeypatch, for_what=b'"note":"end"')
            server.end(min(server.jobs))
            await server.until(lambda: server.asked["retrieve"] == 1)
            server.held["create"].set()
            with pytest.raises(JournalUnusable, match="No space left on device"):
                await batch.run()
        async with Journal(tmp_path / "journal", session.base_url).opened() as known:
            assert (await known.owners()).keys() == set(server.jobs)


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
        Batch(session, wanted, concurrency=1, poll_interval=POLL) as batch,
    ):
        outcomes = [await anext(batch)]
        server.end(*server.jobs)
        outcomes += await batch.run()
    assert [(outcome.label, outcome.job_id) for outcome in outcomes] == [("job-2", None), ("job-1", *server.jobs)]
    assert isinstance(outcomes[0].error, CreateUncertain)
    assert outcomes[0].error.candidate_ids == tuple(server.jobs)


async def test_a_batch_that_is_cancelled_records_the_jobs_that_it_knows(tmp_path: Path) -> None:
    """A job's id that waits to be recorded as a batch is cancelled is recorded, and one that is being recorded too."""
    server = BatchServer()
    async with talking_to(server) as session, Journal(tmp_path / "journal", session.base_url).opened() as journal:
        records = Records(session._recovery, journal).of
        runner = Runner(BatchCore(Settings()), {}, {}, records, journal.write, lambda: None)
        runner._unwritten.append(act.WriteJobId(AttemptId("job-1"), "ft-1"))
        noting = asyncio.create_task(runner._write_all(journal.write))
        await asyncio.sleep(0)
        runner._unwritten.append(act.WriteJobId(AttemptId("job-2"), "ft-2"))
        noting.cancel()
        await asyncio.wait([noting])
        assert noting.cancelled()
        for job_id in ("ft-1", "ft-2"):
            assert not await journal.create(AttemptId("another"), job_id)
