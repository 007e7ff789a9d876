"""A batch in the dialects of today's services: the same promises, with what each service offers."""

from __future__ import annotations

import asyncio
import hashlib
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import attrs
import pytest

from aiofinetune import CreateUncertain, FineTuneFailed, FineTuneRequest, FineTuneSession, JournalUnusable
from aiofinetune.batch._batch import Batch
from aiofinetune.batch._core import AttemptId
from aiofinetune.batch._journal import Journal
from aiofinetune.batch._manifest import Entry, ManifestInvalid, check_manifest
from aiofinetune.dialects._dialect import KEY_NAME
from aiofinetune.dialects._jobs import JOBS
from aiofinetune.results import read_results
from tests.batch.runs import POLL, outcomes_of, stopped
from tests.servers.faults import FAULTS
from tests.servers.faultserver import FaultServer
from tests.servers.jobs_service import JobsService, NebiusService, OddGateway
from tests.servers.service import KEY, Object, Service
from tests.servers.together_service import TogetherService
from tests.session.creates import CREATE
from tests.support.checks import QUICK, session_for


class Quick(JobsService):
    """A service whose jobs end at once."""

    def add_job(self, asked: Object, *, age: float = 0) -> str:
        """Make a job, and end it; one with the seed 13 fails."""
        job_id = super().add_job(asked, age=age)
        self.finish(job_id, "failed" if asked.get("seed") == 13 else "succeeded")
        return job_id


class LongGateway(OddGateway):
    """A gateway that leaves out whether there is more; its jobs end when there are as many as three pages."""

    def add_job(self, asked: Object, *, age: float = 0) -> str:
        """Make a job, and end all of them if it is the last."""
        self.page_size = 20
        job_id = super().add_job(asked, age=age)
        if len(self.jobs) == 50:
            for made in self.jobs:
                self.finish(made)
        return job_id


class QuickNebius(NebiusService):
    """One without metadata, whose jobs end at once and name their models in their checkpoints alone."""

    def add_job(self, asked: Object, *, age: float = 0) -> str:
        """Make a job, and end it."""
        job_id = super().add_job(asked, age=age)
        self.finish(job_id)
        self.jobs[job_id]["fine_tuned_model"] = None
        self.checkpoints = [{"id": "ftckpt-1", "step_number": 3, "fine_tuned_model_checkpoint": "tuned"}]
        return job_id


class QuickTogether(TogetherService):
    """Together, whose jobs end at once."""

    def add_job(self, asked: Object, *, age: float = 0) -> str:
        """Make a job, and end it; one with the seed 13 fails."""
        job_id = super().add_job(asked, age=age)
        self.finish(job_id, "failed" if asked.get("random_seed") == 13 else "succeeded")
        return job_id


@asynccontextmanager
async def talking_to(service: Service) -> AsyncIterator[tuple[FaultServer, FineTuneSession, list[Entry]]]:
    """A server, a session with it, and entries for a batch."""
    async with FaultServer(service) as server:
        file = service.add_file("train.jsonl", b"{}\n")
        wanted = [
            Entry(f"job-{number}", FineTuneRequest(training_file=file, model="gpt", n_epochs=number))
            for number in range(1, 4)
        ]
        async with session_for(server) as session, asyncio.timeout(60):
            yield server, session, wanted


def keys_of(server: FaultServer) -> list[str | None]:
    bodies = [json.loads(each.body) for each in server.seen if each.endpoint[0] == CREATE]
    return [(body.get("metadata") or {}).get(KEY_NAME) for body in bodies]


async def test_a_batch_of_jobs(tmp_path: Path) -> None:
    """Each create carries a key of its own, which the journal has, and all jobs are followed by the list."""
    service = Quick()
    async with talking_to(service) as (server, session, wanted):
        wanted[1] = Entry("job-2", attrs.evolve(wanted[1].request, seed=13))
        outcomes = await outcomes_of(Batch(session, wanted, journal=tmp_path / "journal", poll_interval=POLL))
        assert {outcome.label: outcome.status for outcome in outcomes} == {
            "job-1": "succeeded",
            "job-2": "failed",
            "job-3": "succeeded",
        }
        (failed,) = (outcome.error for outcome in outcomes if outcome.error)
        assert isinstance(failed, FineTuneFailed)
        keys = keys_of(server)
        assert len(set(keys)) == 3
        assert None not in keys
        async with Journal(tmp_path / "journal", session.base_url, "jobs").opened() as journal:
            (record,) = await journal.records([wanted[0]])
            assert not isinstance(record, JournalUnusable | None)
            assert record.key in keys
        again = await outcomes_of(Batch(session, wanted, journal=tmp_path / "journal", poll_interval=POLL))
        assert {outcome.is_replayed for outcome in again} == {True}
    assert len(service.jobs) == 3


async def test_ends_are_seen_on_all_pages_of_a_list_that_does_not_say_whether_there_is_more() -> None:
    """A page that is full by the contract's default is not taken for the last one."""
    service = LongGateway()
    async with talking_to(service) as (server, session, wanted):
        entries = [Entry(f"job-{number}", wanted[0].request) for number in range(50)]
        batch = Batch(session, entries, concurrency=50, poll_interval=POLL)
        assert {outcome.status for outcome in await outcomes_of(batch)} == {"succeeded"}
    assert (len(service.jobs), server.asked().count("retrieve_fine_tune")) == (50, 0)


async def test_a_lost_create_is_found_by_its_key(tmp_path: Path) -> None:
    """A create that a killed run left is found by its key among equal jobs, and not made again."""
    service = Quick()
    async with talking_to(service) as (_server, session, wanted):
        entry = wanted[0]
        async with Journal(tmp_path / "journal", session.base_url, "jobs").opened() as crashed:
            await crashed.intend(AttemptId(entry.label), entry.request, entry.request, time.time(), "the-key")
        asked = JOBS.body_of(entry.request)
        service.add_job(asked)
        ours = service.add_job(JOBS.body_of(entry.request, "the-key"))
        service.add_job(asked)
        (outcome,) = await outcomes_of(Batch(session, [entry], journal=tmp_path / "journal", poll_interval=POLL))
    assert (outcome.job_id, outcome.status) == (ours, "succeeded")
    assert len(service.jobs) == 3


async def test_that_keys_were_seen_is_kept(tmp_path: Path) -> None:
    """Once a list has shown a key of the batch, the journal says so to later runs, whose searches are surer then."""
    service = Quick()
    async with talking_to(service) as (_server, session, wanted):
        await outcomes_of(Batch(session, wanted, journal=tmp_path / "journal", poll_interval=POLL))
        async with Journal(tmp_path / "journal", session.base_url, "jobs").opened() as journal:
            assert await journal.has_echoed()
        async with Journal(tmp_path / "journal", "http://other/v1", "jobs", accept_base_url=True).opened() as journal:
            assert not await journal.has_echoed()


async def test_a_proxy_that_drops_metadata_makes_no_second_job(tmp_path: Path) -> None:
    """Where the metadata is lost on the way, a lost create is told by its parameters, or uncertain."""
    service = Quick()
    service.keeps_metadata = False
    async with talking_to(service) as (server, session, wanted):
        server.fail(CREATE, FAULTS["reset after the request"])
        outcomes = await outcomes_of(Batch(session, wanted, journal=tmp_path / "journal", poll_interval=POLL))
    assert all(outcome.error is None or isinstance(outcome.error, CreateUncertain) for outcome in outcomes)
    assert len(service.jobs) == 3


async def test_a_token_source_that_fails_stops_the_batch(tmp_path: Path) -> None:
    """Where no token can be had, the batch stops, with one entry rejected for it at most; the next run goes on."""
    service = Quick()
    async with talking_to(service) as (server, _session, wanted):
        tokens = [KEY]

        def give() -> str:
            if not tokens:
                raise ValueError("signed out")
            return tokens.pop()

        options = {"base_url": server.base_url, "dialect": "jobs", "retry": QUICK}
        async with FineTuneSession(give, **options) as session:  # type: ignore[arg-type]  # of several types
            add_job = service.add_job

            def expire(asked: Object, *, age: float = 0) -> str:
                session._caller._token.refused(KEY)  # type: ignore[union-attr,arg-type]  # the one in use
                return add_job(asked, age=age)

            service.add_job = expire  # type: ignore[method-assign]  # it wraps the one of this service
            batch = Batch(session, wanted, concurrency=1, journal=tmp_path / "journal", poll_interval=POLL)
            outcomes, error = await stopped(batch)
            assert {outcome.status for outcome in outcomes} <= {"succeeded", "rejected"}
            assert len([outcome for outcome in outcomes if outcome.status == "rejected"]) <= 1
            assert "signed out" in str(error.__cause__)
            assert len(service.jobs) == 1
            tokens += [KEY] * 20
            again = await outcomes_of(Batch(session, wanted, journal=tmp_path / "journal", poll_interval=POLL))
    assert [outcome.status for outcome in again] == ["succeeded"] * 3
    assert len(service.jobs) == 3


async def test_a_batch_at_together(tmp_path: Path) -> None:
    """Files go to the storage once, jobs are followed by the list, a failed one says why, and nothing runs twice."""
    service = QuickTogether()
    data = tmp_path / "data.jsonl"
    data.write_text('{"prompt": "a", "completion": " b"}\n')
    async with talking_to(service) as (server, session, wanted):
        entries = [attrs.evolve(it, request=attrs.evolve(it.request, training_file=str(data))) for it in wanted]
        entries[1] = attrs.evolve(entries[1], request=attrs.evolve(entries[1].request, seed=13))
        outcomes = await outcomes_of(Batch(session, entries, journal=tmp_path / "journal", poll_interval=POLL))
        assert {it.label: it.status for it in outcomes} == {
            "job-1": "succeeded",
            "job-2": "failed",
            "job-3": "succeeded",
        }
        (failed,) = (outcome.error for outcome in outcomes if outcome.error)
        assert isinstance(failed, FineTuneFailed)
        assert failed.job.error is not None
        assert server.asked().count("put_content") == 1
        again = await outcomes_of(Batch(session, entries, journal=tmp_path / "journal", poll_interval=POLL))
        assert {outcome.is_replayed for outcome in again} == {True}
    assert len(service.jobs) == 3


async def test_a_lost_create_is_found_by_the_key_in_its_suffix(tmp_path: Path) -> None:
    """So it is where the key is in the suffix: a killed run's job is found among equal ones, and not made again."""
    service = QuickTogether()
    async with talking_to(service) as (_server, session, wanted):
        entry = Entry("job", attrs.evolve(wanted[0].request, suffix="team-{key}"))
        async with Journal(tmp_path / "journal", session.base_url, "together").opened() as crashed:
            await crashed.intend(AttemptId(entry.label), entry.request, entry.request, time.time(), "0123456789abcdef")
        for key in ("a" * 12, "0123456789ab", "b" * 12):
            service.add_job(session.dialect.body_of(entry.request, key))
        (outcome,) = await outcomes_of(Batch(session, [entry], journal=tmp_path / "journal", poll_interval=POLL))
    assert (outcome.job_id, outcome.status) == (list(service.jobs)[1], "succeeded")
    assert len(service.jobs) == 3


async def test_a_lost_create_at_together_is_not_made_again(tmp_path: Path) -> None:
    """Without a key, creates whose replies are lost are told by their parameters, or are uncertain."""
    service = QuickTogether()
    async with talking_to(service) as (server, session, wanted):
        server.fail(CREATE, *[FAULTS["reset after the request"]] * 3)
        outcomes = await outcomes_of(Batch(session, wanted, journal=tmp_path / "journal", poll_interval=POLL))
    assert [outcome.status for outcome in outcomes] == ["succeeded"] * 3
    assert len({outcome.job_id for outcome in outcomes}) == len(service.jobs) == 3


async def test_results_of_a_service_without_results_files(tmp_path: Path) -> None:
    """Where the service has figures and no file of them, the folder of results gets a file of the figures."""
    service = QuickTogether()
    service.metrics = [{"train/loss": 0.5, "train/global_step": 7}, {"eval/loss": 0.25, "train/global_step": 14}]
    async with talking_to(service) as (_server, session, wanted):
        batch = Batch(session, wanted[:1], results=tmp_path, poll_interval=POLL)
        (outcome,) = await outcomes_of(batch)
        assert outcome.figures == {"training_loss": 0.5, "validation_loss": 0.25}
        (path,) = tmp_path.glob("job-1.*.csv")
        rows = read_results(path.read_bytes())
        assert rows.series("validation_loss") == [(14, 0.25)]
        service.metrics = []
        (again,) = await outcomes_of(Batch(session, wanted[1:2], results=tmp_path, poll_interval=POLL))
        assert again.figures == {}


@pytest.mark.parametrize("has_bytes", [False, True])
async def test_a_file_whose_bytes_have_not_arrived(has_bytes: bool, tmp_path: Path) -> None:
    """A file that a killed run has begun, and not sent, is not taken for the one that is there."""
    service = QuickTogether()
    data = tmp_path / "data.jsonl"
    data.write_text('{"prompt": "a", "completion": " b"}\n')
    async with talking_to(service) as (server, session, wanted):
        digest = hashlib.sha256(data.read_bytes()).hexdigest()
        name = f"data-{digest[:16]}.jsonl"
        there = service.add_file(name, data.read_bytes())
        if not has_bytes:
            service.files[there] |= {"bytes": 0, "processing_status": None}
            del service.contents[there]
        entry = Entry("job", attrs.evolve(wanted[0].request, training_file=str(data)))
        (outcome,) = await outcomes_of(Batch(session, [entry], poll_interval=POLL))
        assert outcome.job is not None
        assert (outcome.job.training_files[0].id == there) == has_bytes
        assert server.asked().count("put_content") == (not has_bytes)


async def test_the_model_of_a_service_that_names_it_in_checkpoints() -> None:
    """A job that the list shows without its model is retrieved, and its model looked up."""
    service = QuickNebius()
    async with talking_to(service) as (_server, session, wanted):
        outcomes = await outcomes_of(Batch(session, wanted, poll_interval=POLL))
    assert [outcome.job and outcome.job.fine_tuned_model for outcome in outcomes] == ["tuned"] * 3


async def test_a_parameter_that_the_service_lacks(tmp_path: Path) -> None:
    """An entry that the dialect cannot express is rejected before its file is uploaded; the others go on."""
    service = Quick()
    data = tmp_path / "data.jsonl"
    data.write_text("{}\n")
    async with talking_to(service) as (server, session, wanted):
        wrong = Entry("wrong", FineTuneRequest(training_file=str(data), model="gpt", prompt_loss_weight=0.1))
        outcomes = await outcomes_of(Batch(session, [wrong, *wanted], poll_interval=POLL))
        told = {outcome.label: outcome.status for outcome in outcomes}
        assert told == {"wrong": "rejected", "job-1": "succeeded", "job-2": "succeeded", "job-3": "succeeded"}
        assert "upload_file" not in {each.endpoint[0] for each in server.seen}
    (error,) = (outcome.error for outcome in outcomes if outcome.error)
    assert str(error).startswith("prompt_loss_weight: the dialect 'jobs' does not have this parameter")


def test_a_manifest_is_checked_for_its_dialect(tmp_path: Path) -> None:
    """A parameter that the service lacks is a problem of the manifest, with its line."""
    manifest = tmp_path / "jobs.jsonl"
    manifest.write_text('{"training_file": "file-1", "model": "ada", "prompt_loss_weight": 0.1}\n')
    assert check_manifest(manifest) == 1
    with pytest.raises(ManifestInvalid, match="line 1, prompt_loss_weight: the dialect 'jobs' does not have this"):
        check_manifest(manifest, JOBS)


async def test_a_journal_is_of_one_dialect(tmp_path: Path) -> None:
    """A journal of another dialect is refused, naming both."""
    url = "http://127.0.0.1:1/v1"
    request = FineTuneRequest(training_file="file-1")
    async with Journal(tmp_path / "journal", url).opened() as journal:
        await journal.intend(AttemptId("a"), request, request, 1.0)
    with pytest.raises(JournalUnusable, match="belongs to a batch in the dialect 'fine-tunes', not 'jobs'"):
        async with Journal(tmp_path / "journal", url, "jobs").opened():
            pass


async def test_how_long_a_job_took_is_by_its_own_times() -> None:
    """Where a job says when it was made and when it finished, the time of polling it does not count."""
    service = Quick()
    async with talking_to(service) as (_server, session, wanted):
        for finished_at, seconds in ((service.now() + 90, 90.0), (None, None), (5, 0.0)):
            service.changes["finished_at"] = finished_at
            (outcome,) = await outcomes_of(Batch(session, wanted[:1], poll_interval=POLL))
            if seconds is None:
                assert outcome.seconds == pytest.approx(outcome.ended_at - (outcome.sent_at or 0), abs=0.001)
            else:
                assert outcome.seconds == pytest.approx(seconds, abs=1.1)
            assert outcome.summary()["seconds"] == outcome.seconds


async def test_a_lost_create_behind_a_gateway_that_changes_keys(tmp_path: Path) -> None:
    """A create that a killed run left is found by its parameters where its key comes back changed."""
    service = Quick()
    async with talking_to(service) as (_server, session, wanted):
        entry = wanted[0]
        key = "0123456789abcdef" * 2
        async with Journal(tmp_path / "journal", session.base_url, "jobs").opened() as crashed:
            await crashed.intend(AttemptId(entry.label), entry.request, entry.request, time.time(), key)
        made = service.add_job(JOBS.body_of(entry.request, key.upper()))
        (outcome,) = await outcomes_of(Batch(session, [entry], journal=tmp_path / "journal", poll_interval=POLL))
    assert (outcome.job_id, outcome.status) == (made, "succeeded")
    assert len(service.jobs) == 1
