"""A create that the service accepted made a job, whatever its reply looks like: it is sent once, and not forgotten."""

from __future__ import annotations

import asyncio
import email.utils
import json
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import pytest

from aiofinetune import (
    APIError,
    Batch,
    BatchStopped,
    CreateUncertain,
    Entry,
    FineTuneError,
    FineTuneRequest,
    FineTuneSession,
    FineTuneUnreadable,
    Outcome,
    ProtocolViolation,
)
from tests.servers.batchserver import QUICK, BatchServer, error, ok, talking_to
from tests.servers.rawserver import KEY, Received, reply, serve

pytestmark = pytest.mark.fastforward

Job = dict[str, Any]
Odd = Callable[[Job], bytes]
"""What the service says of a job that it has just made, in place of the job."""


def raw(status: int, body: bytes, *, length: int | None = None, **headers: str) -> bytes:
    """A reply, dated, whose length may be told wrongly."""
    date = email.utils.formatdate(usegmt=True)
    return reply(status, body, date=date, content_length=str(len(body) if length is None else length), **headers)


def changed(**fields: object) -> Odd:
    """The job, with fields that are odd; ``...`` stands for one that is missing."""
    return lambda job: ok({name: value for name, value in {**job, **fields}.items() if value is not ...})


def body_of(job: Job) -> bytes:
    return json.dumps(job).encode()


HEAD: Final = b"HTTP/1.1 200 OK\r\n"


def cut(end: Callable[[bytes], int]) -> Odd:
    """The reply broken off inside its body."""
    return lambda job: raw(200, body_of(job)[: end(body_of(job))], length=len(body_of(job)))


TOGETHER: Final[Callable[[Job], Job]] = lambda job: {  # noqa: E731  # a column of the table
    "id": job["id"],
    "training_file": job["training_files"][0]["id"],
    "validation_file": "",
    "model": job["model"],
    "model_output_name": f"org/{job['model']}-1",
    "n_epochs": job["hyperparams"].get("n_epochs"),
    "batch_size": "max",
    "learning_rate": 0.00001,
    "created_at": "2026-11-27T05:00:00.123Z",
    "updated_at": "2026-11-27T05:00:00.123Z",
    "status": "pending",
    "events": [{"object": "fine-tune-event", "created_at": "2026-11-27T05:00:00.1Z", "message": "x", "level": None}],
    "token_count": 0,
    "total_price": 0,
}

READABLE: Final[dict[str, Odd]] = {
    "no created_at": changed(created_at=...),
    "a fraction of a second": changed(created_at=1700000000.5),
    "an ISO time": changed(created_at="2026-11-27T05:00:00.123Z"),
    "a time that is none": changed(created_at="yesterday"),
    "n_epochs auto": changed(hyperparams={"n_epochs": "auto", "batch_size": "auto"}),
    "hyperparams a text": changed(hyperparams="auto"),
    "no training_files": changed(training_files=...),
    "training_files null": changed(training_files=None),
    "files by their ids": changed(training_files=["file-1"], result_files=["file-9"]),
    "no model": changed(model=...),
    "model an object": changed(model={"id": "ada"}),
    "events null": changed(events=None),
    "events odd": changed(events=[1, None, {"message": 5}]),
    "an unknown status": changed(status="validating_files"),
    "fields unknown": changed(training_type={"type": "Lora"}, seed=1),
    "201": lambda job: raw(201, body_of(job)),
    "Together's shape": lambda job: ok(TOGETHER(job)),
}
"""Replies from which the job can be read."""

NAMED: Final[dict[str, Odd]] = {
    "no status": changed(status=...),
    "status null": changed(status=None),
    "status a number": changed(status=3),
    "status an object": changed(status={"state": "pending"}),
    "id alone": lambda job: ok({"id": job["id"]}),
    "id and an error": lambda job: ok({"id": job["id"], "error": {"message": "queue slow"}}),
    "202 with the id": lambda job: raw(202, json.dumps({"id": job["id"]}).encode()),
}
"""Replies that came whole and name the job, and nothing else that counts can be read of them."""

BROKEN: Final[dict[str, Odd]] = {
    "cut before its last byte": cut(lambda body: len(body) - 1),
    "cut after the id": cut(lambda body: body.index(b",")),
    "broken JSON": lambda job: raw(200, body_of(job)[:-1]),
    "not UTF-8 after the id": lambda job: raw(200, body_of(job)[:-1] + b', "x": "\xff"}'),
}
"""Replies that broke off, and whose id is whole."""

NAMELESS: Final[dict[str, Odd]] = {
    "202 with no body": lambda _job: raw(202, b""),
    "200 with no body": lambda _job: raw(200, b""),
    "204": lambda _job: b"HTTP/1.1 204 No Content\r\n\r\n",
    "an error under 200": lambda _job: ok({"error": {"message": "the queue is slow", "type": "server_error"}}),
    "a page": lambda _job: raw(200, b"<!DOCTYPE html><p>Please log in</p>", content_type="text/html"),
    "null": lambda _job: ok(None),
    "a list": lambda _job: ok([]),
    "a text": lambda job: ok(job["id"]),
    "in an envelope": lambda job: ok({"data": job}),
    "id a number": changed(id=7),
    "id empty": changed(id=""),
    "id null": changed(id=None),
    "cut after the headers": cut(lambda _body: 0),
    "cut inside the id": cut(lambda body: body.index(b",") - 2),
    "an id that is not at the top": lambda job: raw(200, b'{"training_files": [{"id": "%b"}], ' % job["id"].encode()),
    "chunk garbled": lambda job: HEAD + b"Transfer-Encoding: chunked\r\n\r\n5\r\n%b\r\nzz\r\n" % body_of(job)[:5],
    "cut inside the headers": lambda _job: HEAD + b"Content-Le",
    "a header that is none": lambda job: HEAD + b"X Y: 1\r\n\r\n" + body_of(job),
    "a header of 100,000 bytes": lambda job: HEAD + b"X: %b\r\n\r\n" % (b"a" * 100_000) + body_of(job),
    "two lengths": lambda job: HEAD + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\n" + body_of(job),
    "more than its length": lambda job: raw(200, body_of(job), length=5),
    "gzip that is none": lambda job: raw(200, body_of(job), content_encoding="gzip"),
    "gzip cut": lambda job: raw(200, zlib.compress(body_of(job), wbits=31)[:10], content_encoding="gzip"),
}
"""Replies that name no job."""

EVERY: Final = {**READABLE, **NAMED, **BROKEN, **NAMELESS}


def cases(table: dict[str, Odd]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("odd", [pytest.param(odd, id=name) for name, odd in table.items()])


def answer_oddly(server: BatchServer, odd: Odd) -> None:
    """Let the server answer each create as told, and close the connection after it."""

    def rewrite(endpoint: str, right: bytes) -> bytes:
        return odd(json.loads(right.partition(b"\r\n\r\n")[2])) if endpoint == "create" else right

    server.rewrite = rewrite
    server.closes = True


def one_entry(server: BatchServer) -> Entry:
    return Entry("one", FineTuneRequest(training_file=server.add_file("train.jsonl", b"x"), model="ada", n_epochs=2))


async def run(url: str, entry: Entry, journal: Path) -> Outcome:
    """Run a batch of one entry to its end, in a session of its own."""
    async with (
        asyncio.timeout(600),
        FineTuneSession(KEY, base_url=url, retry=QUICK) as session,
        Batch(session, [entry], journal=journal) as batch,
    ):
        (outcome,) = await batch.run()
    return outcome


# A batch, run again and again


@cases(EVERY)
async def test_an_accepted_create_is_sent_once(odd: Odd, tmp_path: Path) -> None:
    """Two runs with one journal make one job, whatever the reply was, though the list never shows the job."""
    server = BatchServer()
    server.hides = lambda _job: True
    answer_oddly(server, odd)
    entry = one_entry(server)
    async with server.listening() as url:
        for _ in range(2):
            outcome = await run(url, entry, tmp_path / "journal")
            assert len(server.jobs) == server.asked["create"] == 1
            if outcome.job is None:
                assert isinstance(outcome.error, CreateUncertain)
                assert outcome.error.accepted
            else:
                assert [outcome.job.id] == list(server.jobs)


@cases(EVERY)
async def test_a_job_that_can_be_told_is_found(odd: Odd, tmp_path: Path) -> None:
    """Where the service knows the job by its id, or lists it plainly, its outcome is the job's."""
    server = BatchServer()
    answer_oddly(server, odd)
    async with server.listening() as url:
        outcome = await run(url, one_entry(server), tmp_path / "journal")
    assert outcome.job is not None
    assert [outcome.job.id] == list(server.jobs)
    assert outcome.error is None


@cases(NAMELESS)
async def test_a_rerun_adopts_a_job_that_shows_up_later(odd: Odd, tmp_path: Path) -> None:
    """A job that the list did not show within the grace time is adopted by the run that finds it there."""
    server = BatchServer()
    server.hides = lambda _job: True
    answer_oddly(server, odd)
    entry = one_entry(server)
    async with server.listening() as url:
        first = await run(url, entry, tmp_path / "journal")
        assert isinstance(first.error, CreateUncertain)
        server.hides = lambda _job: False
        second = await run(url, entry, tmp_path / "journal")
    assert second.job is not None
    assert [second.job.id] == list(server.jobs)
    assert server.asked["create"] == 1


@cases({**NAMED, **BROKEN})
async def test_an_id_that_the_service_does_not_know_is_kept(odd: Odd, tmp_path: Path) -> None:
    """Where the named job answers 404 and is not listed, the outcome is uncertain and names the id, in a rerun too."""
    server = BatchServer()
    server.hides = lambda _job: True
    answer_oddly(server, odd)
    server.refuse = lambda endpoint: error(404, "No such job") if endpoint == "retrieve" else None
    entry = one_entry(server)
    async with server.listening() as url:
        for _ in range(2):
            outcome = await run(url, entry, tmp_path / "journal")
            assert isinstance(outcome.error, CreateUncertain)
            assert outcome.error.accepted
            assert outcome.error.candidate_ids == tuple(server.jobs)
            assert server.asked["create"] == 1


async def test_a_job_that_stays_unreadable_is_followed_until_it_is_uncertain(tmp_path: Path) -> None:
    """A job whose status cannot be read is active under its id; past the outage it is uncertain."""
    server = BatchServer(lasts=None)
    server.rewrite = lambda _endpoint, right: right.replace(b'"status":', b'"state_":')
    entry = one_entry(server)
    async with (
        asyncio.timeout(3000),
        talking_to(server) as session,
        Batch(session, [entry], journal=tmp_path / "journal", max_active=5) as batch,
    ):
        await server.until(lambda: server.asked["list"] > 1)
        assert list(batch.active) == list(server.jobs)
        (outcome,) = await batch.run()
    assert outcome.job is None
    assert outcome.job_id in server.jobs
    assert outcome.status == "uncertain"
    assert isinstance(outcome.error, ProtocolViolation)
    assert server.asked["create"] == 1


async def test_three_accepted_creates_that_name_no_job_stop_a_batch() -> None:
    """Where a proxy accepts creates and names no jobs, a batch stops after three, and says so."""
    server = BatchServer()
    server.hides = lambda _job: True
    answer_oddly(server, NAMELESS["a page"])
    file = server.add_file("train.jsonl", b"x")
    entries = [Entry(str(n), FineTuneRequest(training_file=file, model="ada", n_epochs=n)) for n in range(1, 9)]
    outcomes = []
    async with talking_to(server) as session, asyncio.timeout(600), Batch(session, entries, concurrency=1) as batch:
        with pytest.raises(BatchStopped, match="without a job id"):
            async for outcome in batch:
                outcomes.append(outcome)  # noqa: PERF401  # those before it stops count
    assert server.asked["create"] == len(server.jobs) == 3
    assert [type(outcome.error) for outcome in outcomes] == [CreateUncertain] * 3


# One call


async def create(server: BatchServer, **parameters: Any) -> Any:
    """Create a job; give it, or the error."""
    request = FineTuneRequest(training_file=server.add_file("train.jsonl", b"x"), model="ada", **parameters)
    async with talking_to(server) as session:
        try:
            return await session.create_fine_tune(request)
        except FineTuneError as failure:
            return failure


@cases(READABLE)
async def test_odd_fields_are_none(odd: Odd) -> None:
    """A reply whose id and status are right gives the job, without any further call."""
    server = BatchServer()
    answer_oddly(server, odd)
    job = await create(server)
    assert [job.id] == list(server.jobs)
    assert not server.asked["list"]
    assert not server.asked["retrieve"]


@cases(NAMED)
async def test_a_named_job_that_cannot_be_read_is_told_by_its_id(odd: Odd) -> None:
    """Where the job cannot be read by its id either, the error holds the id."""
    server = BatchServer()
    answer_oddly(server, odd)
    server.refuse = lambda endpoint: ok({"oops": 1}) if endpoint == "retrieve" else None
    failure = await create(server)
    assert isinstance(failure, FineTuneUnreadable)
    assert [failure.fine_tune_id] == list(server.jobs)
    assert failure.fine_tune_id in str(failure)


async def test_the_services_words_are_the_cause() -> None:
    """What an error object under status 200 says is told by the error, and chained to it."""
    server = BatchServer()
    server.hides = lambda _job: True
    answer_oddly(server, NAMELESS["an error under 200"])
    failure = await create(server)
    assert isinstance(failure, CreateUncertain)
    assert isinstance(failure.__cause__, APIError)
    assert failure.__cause__.message == "the queue is slow"
    assert "the queue is slow" in str(failure)


async def test_a_page_is_said_to_be_a_proxys() -> None:
    """A page of HTML under status 200 is said to come from a proxy, perhaps."""
    server = BatchServer()
    server.hides = lambda _job: True
    answer_oddly(server, NAMELESS["a page"])
    assert "proxy" in str(await create(server))


async def test_a_hint_of_another_job_is_not_taken() -> None:
    """A job named by a reply that broke off is taken only if it is what was asked for."""
    server = BatchServer()
    server.hides = lambda _job: True
    answer_oddly(server, BROKEN["cut after the id"])

    odd = server.rewrite
    server.rewrite = lambda endpoint, right: (
        right.replace(b'"ada"', b'"babbage"') if endpoint == "retrieve" else odd(endpoint, right)
    )
    failure = await create(server)
    assert isinstance(failure, CreateUncertain)
    assert failure.accepted
    assert server.asked["create"] == 1


async def test_an_id_that_another_create_was_given_is_not_given_twice() -> None:
    """Two creates that are answered with one id: the second is uncertain, and names it."""
    server = BatchServer()
    answer_oddly(server, changed(id="ft-same"))
    server.closes = False
    request = FineTuneRequest(training_file=server.add_file("train.jsonl", b"x"), model="ada")
    async with talking_to(server) as session:
        first = await session.create_fine_tune(request)
        with pytest.raises(CreateUncertain) as caught:
            await session.create_fine_tune(request)
    assert first.id == "ft-same"
    assert caught.value.accepted
    assert caught.value.fine_tune_id == "ft-same"
    assert server.asked["create"] == 2


@pytest.mark.parametrize(
    "silence",
    [changed(training_files=...), changed(created_at=...), changed(training_files=[], hyperparams=None)],
    ids=["no files", "no time", "nothing"],
)
async def test_silence_is_no_proof(silence: Odd) -> None:
    """A listed job that fits only because the list does not say what it is made of is a candidate, not the answer."""
    server = BatchServer()
    answer_oddly(server, NAMELESS["202 with no body"])
    odd = server.rewrite

    def rewrite(endpoint: str, right: bytes) -> bytes | None:
        if endpoint != "list":
            return odd(endpoint, right)
        jobs = json.loads(right.partition(b"\r\n\r\n")[2])["data"]
        return ok({"data": [json.loads(silence(job).partition(b"\r\n\r\n")[2]) for job in jobs]})

    server.rewrite = rewrite
    failure = await create(server)
    assert isinstance(failure, CreateUncertain)
    assert failure.candidate_ids == tuple(server.jobs)


@pytest.mark.parametrize(
    "listing",
    [{"data": None}, {}, {"data": [{"status": "pending"}]}, {"data": [7]}, {"data": [{"id": "ft-other"}]}],
    ids=["null", "missing", "a row without an id", "a row that is no object", "a row that cannot be read"],
)
async def test_a_list_that_may_lack_the_job_is_no_proof(listing: object) -> None:
    """A lost create is not sent again where the list cannot prove that it made nothing."""
    server = BatchServer()
    server.lose = lambda endpoint: "after" if endpoint == "create" else ""
    server.refuse = lambda endpoint: ok(listing) if endpoint == "list" else None
    failure = await create(server)
    assert isinstance(failure, CreateUncertain)
    assert server.asked["create"] == 1


async def test_a_repeated_create_goes_out_on_a_connection_of_its_own() -> None:
    """Where each connection is dropped on its second request, a create still gets through."""
    jobs: list[object] = []
    used: set[int] = set()

    async def handler(request: Received, writer: asyncio.StreamWriter) -> None:  # a handler may wait
        if id(request.reader) in used:
            writer.transport.abort()
            return
        used.add(id(request.reader))
        date = email.utils.formatdate(usegmt=True)
        if request.method == "POST":
            jobs.append({"id": "ft-1", "status": "pending", "created_at": 1, "training_files": ["file-1"]})
            writer.write(reply(200, jobs[-1], date=date))
        else:
            writer.write(reply(200, {"data": jobs}, date=date))

    async with serve(handler) as url, FineTuneSession(KEY, base_url=url, retry=QUICK) as session:
        await session.list_fine_tunes()
        job = await session.create_fine_tune(FineTuneRequest(training_file="file-1"))
    assert job.id == "ft-1"
    assert len(jobs) == 1


@pytest.mark.parametrize("name", ["202 with no body", "cut after the id"])
async def test_a_cancellation_says_that_the_create_was_accepted(name: str) -> None:
    """The note on a cancelled create says that the service accepted it, and the id where the reply named one."""
    server = BatchServer()
    server.hides = lambda _job: True
    answer_oddly(server, EVERY[name])
    server.held["retrieve"] = server.held["list"] = asyncio.Event()
    request = FineTuneRequest(training_file=server.add_file("train.jsonl", b"x"), model="ada")
    async with talking_to(server) as session:
        creating = asyncio.create_task(session.create_fine_tune(request))
        await server.until(lambda: server.asked["list"] + server.asked["retrieve"] > 0)
        creating.cancel()
        with pytest.raises(asyncio.CancelledError) as cancelled:
            await creating
        server.held["list"].set()
    (note,) = cancelled.value.__notes__
    assert "accepted" in note
    assert (next(iter(server.jobs)) in note) == (name == "cut after the id")
