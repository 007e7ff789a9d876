"""Lists in pages, events without a stream, and what only some services offer: OpenAI's jobs, Azure, Nebius."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from contextlib import aclosing
from urllib.parse import parse_qs, urlsplit

import pytest

from aiofinetune import (
    FineTuneFailed,
    FineTuneSession,
    NotFound,
    RequestInvalid,
    Retry,
    ServerError,
    StreamInterrupted,
)
from tests.servers.faults import FAULTS
from tests.servers.faultserver import FaultServer
from tests.servers.jobs_service import JobsService, NebiusService
from tests.servers.service import Object, Reply, Request, json_reply
from tests.session.creates import talking
from tests.support.checks import QUICK, nothing_left_open, session_for

pytestmark = pytest.mark.fastforward

EVENTS = "list_fine_tune_events"


def job_of(service: JobsService) -> str:
    file = service.add_file("train.jsonl", b"{}\n")
    return service.add_job({"training_file": file, "model": "mini"})


def messages(service: JobsService, job: str) -> list[str]:
    return [event["message"] for event in service.events[job]]


# Lists


@pytest.mark.parametrize("page_size", [1, 4, 100])
async def test_whole_list(page_size: int) -> None:
    """A list gives the jobs of all pages, each once; the iterator gives the same, and asks for no page too many."""
    service = JobsService()
    service.page_size = page_size
    async with talking(service=service) as (server, session, _request):
        made = [job_of(service) for _ in range(10)]
        assert [job.id for job in await session.list_fine_tunes()] == made[::-1]
        assert [job.id async for job in session.iter_fine_tunes()] == made[::-1]
        asked = server.asked().count("list_fine_tunes")
        async with aclosing(session.iter_fine_tunes()) as jobs:
            assert (await anext(jobs)).id == made[-1]
        assert server.asked().count("list_fine_tunes") == asked + 1


async def test_list_that_ignores_the_cursor(caplog: pytest.LogCaptureFixture) -> None:
    """If a service sends its first page again and again, the list ends and the log says that it is partial."""
    service = JobsService()
    service.page_size, service.ignores_cursor = 2, True
    async with talking(service=service) as (_server, session, _request):
        made = [job_of(service) for _ in range(5)]
        with caplog.at_level(logging.WARNING, "aiofinetune"):
            assert [job.id for job in await session.list_fine_tunes()] == made[:-3:-1]
    assert "only part of the list" in caplog.text


@pytest.mark.parametrize(("newest_first", "spread"), [(True, True), (False, True), (True, False)])
async def test_events_are_in_order(newest_first: bool, spread: bool) -> None:
    """Events are listed oldest first, whichever way they come; if all have one time, as the contract's example has."""
    service = JobsService()
    service.page_size, service.events_newest_first = 3, newest_first
    async with talking(service=service) as (_server, session, _request):
        job = job_of(service)
        for number in range(8):
            if spread and number % 2:
                service.skew += 1
            service.tell(job, f"event {number}")
        assert [event.message for event in await session.list_fine_tune_events(job)] == messages(service, job)


# Following


@pytest.mark.parametrize("newest_first", [True, False])
@pytest.mark.parametrize("page_size", [1, 2, 20])
async def test_events_are_followed(newest_first: bool, page_size: int) -> None:
    """A job's events are given each once, oldest first, to the last; the end is the job's status."""
    service = JobsService()
    service.page_size, service.events_newest_first = page_size, newest_first
    async with talking(service=service) as (_server, session, _request):
        job = job_of(service)
        service.skew += 1
        service.tell(job, "before")
        given = []
        async with session.stream_fine_tune_events(job) as events:
            async for event in events:
                given.append(event.message)
                if len(given) == 2:
                    for number in range(5):
                        service.skew += number % 2
                        service.tell(job, f"event {number}")
                elif len(given) == 7:
                    service.finish(job)
        assert given == messages(service, job)
        assert len(given) == 8


async def test_order_is_learnt_from_new_events() -> None:
    """Where the times do not tell the order of events, the place of the first new ones does."""
    service = JobsService()
    service.events_newest_first = False
    async with talking(service=service) as (_server, session, _request):
        job = job_of(service)
        async with session.stream_fine_tune_events(job) as events:
            given = [(await anext(events)).message]
            # All in one second, as far as the service says.
            for number in range(3):
                service.tell(job, f"event {number}")
            for event in service.events[job]:
                event["created_at"] = 5
            service.finish(job)
            service.events[job][-1]["created_at"] = 5
            given += [event.message async for event in events]
        assert given == messages(service, job)


async def test_over_before() -> None:
    """A job that is over gives its events at once."""
    service = JobsService()
    async with talking(service=service) as (server, session, _request):
        job = job_of(service)
        service.finish(job)
        begin = asyncio.get_running_loop().time()
        async with session.stream_fine_tune_events(job) as events:
            assert [event.message async for event in events] == messages(service, job)
        assert asyncio.get_running_loop().time() - begin < 1
        assert server.asked().count(EVENTS) == 2


async def test_intervals_are_bounded() -> None:
    """A silent job is looked at less and less often, but at least twice a minute."""
    service = JobsService()
    async with talking(service=service) as (server, session, _request):
        job = job_of(service)
        async with session.stream_fine_tune_events(job) as events:
            await anext(events)
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(600):
                    await anext(events)
            assert 20 <= server.asked().count(EVENTS) <= 40
            service.finish(job)
            # A read that was cancelled loses nothing.
            assert (await anext(events)).message == "Fine-tune succeeded"


async def test_failures_are_passed_over() -> None:
    """Looks that fail for a while lose no event, and a look that does not fail begins the count of failures anew."""
    service = JobsService()
    async with talking(service=service, retry=Retry(attempts=4, base=0.1, cap=1, grace=0.02)) as (server, session, _):
        job = job_of(service)
        server.fail(EVENTS, FAULTS["500"])
        async with session.stream_fine_tune_events(job) as events:
            await anext(events)
            for message in ("one", "two"):
                service.tell(job, message)
                server.fail(EVENTS, FAULTS["500"], FAULTS["429 with Retry-After"], FAULTS["closed inside the body"])
                assert (await anext(events)).message == message
                assert session.times_throttled > 0


@pytest.mark.parametrize("attempts", [1, 3])
@pytest.mark.parametrize("endpoint", [EVENTS, "retrieve_fine_tune"])
async def test_a_service_that_is_gone(endpoint: str, attempts: int, caplog: pytest.LogCaptureFixture) -> None:
    """Looks that keep failing end the stream as broken connections do: as often as calls are retried, and logged."""
    service = JobsService()
    caplog.set_level(logging.INFO, "aiofinetune")
    retry = Retry(attempts=attempts, base=0.1, cap=1, grace=0.02)
    async with talking(service=service, retry=retry) as (server, session, _request):
        job = job_of(service)
        async with session.stream_fine_tune_events(job) as events:
            await anext(events)
            server.fail_always(endpoint, FAULTS["502 page"])
            asked = server.asked().count(endpoint)
            # Reads that are cancelled in between do not begin the count anew.
            with pytest.raises(StreamInterrupted, match="the job may still be running"):
                for _ in range(1000):
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(0.05):
                            await anext(events)
            assert server.asked().count(endpoint) >= asked + attempts
        with pytest.raises(ServerError):
            await session.stream_fine_tune_events(job).__aenter__()
    told = [
        record.getMessage() for record in caplog.records if record.getMessage().startswith(f"event stream of {job}, f")
    ]
    assert len(told) == 2 * (attempts - 1)
    assert all("reconnecting in" in line for line in told)


async def test_unknown_job() -> None:
    """A job that the service does not know is an error on entering."""
    async with talking(service=JobsService()) as (_server, session, _request):
        with pytest.raises(NotFound):
            await session.stream_fine_tune_events("ftjob-9").__aenter__()


async def test_wait() -> None:
    """Waiting ends with the job, whose pause is none; a failed one carries its last events."""
    service = JobsService()
    async with talking(service=service) as (_server, session, _request):
        job = job_of(service)
        assert (await session.pause_fine_tune(job)).status == "pending"
        waiting = asyncio.create_task(session.wait(job))
        await asyncio.sleep(100)
        assert not waiting.done()
        service.finish(job, "failed")
        with pytest.raises(FineTuneFailed) as caught:
            await waiting
    assert caught.value.events[-1].message == "Fine-tune failed"


# What only some offer


async def test_pause_and_resume() -> None:
    """A job is paused and resumed; one whose reply was lost is too, and what cannot be is an error."""
    service = JobsService()
    async with talking(service=service) as (server, session, _request):
        job = job_of(service)
        server.fail("pause_fine_tune", FAULTS["reset after the request"])
        paused = await session.pause_fine_tune(job)
        assert (paused.status, paused.service_status, paused.is_terminal) == ("pending", "paused", False)
        server.fail("resume_fine_tune", FAULTS["reset after the request"])
        assert (await session.resume_fine_tune(job)).status == "running"
        service.finish(job)
        for call in (session.pause_fine_tune, session.resume_fine_tune):
            with pytest.raises(Exception, match="already succeeded"):
                await call(job)


async def test_checkpoints() -> None:
    """The checkpoints of a job are listed, with whatever figures they have."""
    service = JobsService()
    service.checkpoints = [
        {"id": "c-2", "fine_tuned_model_checkpoint": "m:2", "step_number": 20, "metrics": {"train_loss": 0.5}},
        {"id": "c-1", "created_at": None, "metrics": None, "result_files": ["file-7"]},
    ]
    async with talking(service=service) as (_server, session, _request):
        last, first = await session.list_checkpoints(job_of(service))
    assert (last.fine_tuned_model_checkpoint, last.step_number, last.metrics) == ("m:2", 20, {"train_loss": 0.5})
    assert [file.id for file in first.result_files] == ["file-7"]


async def test_not_offered() -> None:
    """What a service does not offer is said, and nothing is sent; nothing is named in its place that ends a job."""
    async with talking() as (server, session, _request):
        for call in (session.pause_fine_tune, session.resume_fine_tune, session.list_checkpoints):
            with pytest.raises(RequestInvalid, match="the dialect 'fine-tunes' does not have this; ") as caught:
                await call("ft-1")
            assert not [word for word in ("cancel_fine_tune", "create_fine_tune") if word in str(caught.value)]
        assert server.seen == []


async def test_tuned_model_of_a_checkpoint() -> None:
    """Where a job that succeeded does not name its model, that of its last checkpoint is given, if there is one."""
    service = NebiusService()
    service.changes["fine_tuned_model"] = None
    async with nothing_left_open(), FaultServer(service) as server, session_for(server, retry=QUICK) as session:
        job = job_of(service)
        assert (await session.retrieve_fine_tune(job)).fine_tuned_model is None
        service.finish(job)
        assert (await session.wait(job)).fine_tuned_model is None
        service.checkpoints = [
            {"id": f"c-{step}", "fine_tuned_model_checkpoint": f"m:{step}", "step_number": step}
            for step in (20, 30, 10)
        ]
        assert (await session.wait(job)).fine_tuned_model == "m:30"
        server.fail("list_checkpoints", FAULTS["404"])
        assert (await session.retrieve_fine_tune(job)).fine_tuned_model is None


async def test_jobs_by_metadata() -> None:
    """Jobs are listed by their metadata, whole or page by page, and also where a gateway ignores what was asked for."""
    service = JobsService()
    service.page_size = 2
    wanted = {"team": "blue & red", "run": ""}
    async with talking(service=service) as (server, session, request):
        for number in range(6):
            more = {} if number % 2 else wanted
            service.add_job({"training_file": request.training_file, "model": "m", "metadata": {"n": "1", **more}})
        whole = [job.id for job in await session.list_fine_tunes(metadata=wanted)]
        assert len(whole) == 3
        # The service of this test knows no filter.
        assert parse_qs(urlsplit(server.seen[0].target).query, keep_blank_values=True) == {
            "metadata[team]": ["blue & red"],
            "metadata[run]": [""],
            "limit": ["100"],
        }
        assert [job.id async for job in session.iter_fine_tunes(metadata=wanted)] == whole
        assert len(await session.list_fine_tunes(metadata={})) == 6


@pytest.mark.parametrize("dialect", ["fine-tunes", "azure", "nebius"])
async def test_jobs_by_metadata_where_there_is_no_such_list(dialect: str) -> None:
    """A dialect that cannot list by metadata says so, and nothing is sent."""
    async with FineTuneSession("key", base_url="http://127.0.0.1:1/v1", dialect=dialect) as session:
        with pytest.raises(RequestInvalid, match=f"metadata: the dialect '{dialect}' does not list jobs by metadata"):
            await session.list_fine_tunes(metadata={"a": "b"})
        with pytest.raises(RequestInvalid, match="metadata: "):
            _ = [job async for job in session.iter_fine_tunes(metadata={"a": "b"})]


# Lists of events that are not as the contract says


@pytest.mark.parametrize("page_size", [2, 20])
@pytest.mark.parametrize("newest_first", [True, False])
async def test_order_that_changes(newest_first: bool, page_size: int) -> None:
    """A service that turns its list of events around while it is followed loses none, and tells none twice."""
    service = JobsService()
    service.page_size, service.events_newest_first = page_size, newest_first
    async with talking(service=service) as (_server, session, _request):
        job = job_of(service)
        for number in range(3):
            service.skew += 1
            service.tell(job, f"event {number}")
        given = []
        async with session.stream_fine_tune_events(job) as events:
            async for event in events:
                given.append(event.message)
                if len(given) == 4:
                    service.events_newest_first = not newest_first
                    for number in range(3, 8):
                        service.skew += 1
                        service.tell(job, f"event {number}")
                    service.finish(job)
        assert given == messages(service, job)


async def test_an_event_that_comes_late() -> None:
    """An event that appears between those that were read is given, at the latest when the job is over."""
    service = JobsService()
    service.events_newest_first = False
    async with talking(service=service) as (_server, session, _request):
        job = job_of(service)
        service.skew += 5
        service.tell(job, "second")
        async with session.stream_fine_tune_events(job) as events:
            given = [(await anext(events)).message, (await anext(events)).message]
            service.tell(job, "late")
            service.events[job].insert(1, service.events[job].pop())
            service.finish(job)
            given += [event.message async for event in events]
        assert sorted(given) == sorted(messages(service, job))


@pytest.mark.parametrize("newest_first", [True, False])
async def test_events_that_do_not_say_whether_there_are_more(newest_first: bool) -> None:
    """Full pages of events without ``has_more`` are read on."""
    service = JobsService()
    service.events_newest_first = newest_first
    page = service._page

    def silent(request: Request, rows: list[Object]) -> Reply:
        return json_reply({"data": json.loads(page(request, rows).body)["data"], "has_more": None})

    service._page = silent  # type: ignore[method-assign]  # it wraps the one of this service
    async with talking(service=service) as (_server, session, _request):
        job = job_of(service)
        for number in range(70):
            service.skew += number % 2
            service.tell(job, f"event {number}")
        service.finish(job)
        assert [event.message for event in await session.list_fine_tune_events(job)] == messages(service, job)
        async with session.stream_fine_tune_events(job) as events:
            assert [event.message async for event in events] == messages(service, job)


async def test_events_that_are_not_kept() -> None:
    """A service that forgets old events, and so refuses the cursor, is read from its first event on."""
    service = JobsService()
    service.events_newest_first = False
    async with talking(service=service) as (_server, session, _request):
        job = job_of(service)
        service.skew += 1
        service.tell(job, "one")
        async with session.stream_fine_tune_events(job) as events:
            given = [(await anext(events)).message, (await anext(events)).message]
            service.tell(job, "two")
            del service.events[job][:2]
            given.append((await anext(events)).message)
            service.finish(job)
            given += [event.message async for event in events]
    assert given[1:] == ["one", "two", "Fine-tune succeeded"]


async def test_events_whose_ids_are_no_cursor(caplog: pytest.LogCaptureFixture) -> None:
    """Where events have no ids that can be read, those of the first page are given, and the log says that it is one."""
    service = JobsService()
    service.page_size = 3
    async with talking(service=service) as (_server, session, _request):
        job = job_of(service)
        for number in range(5):
            service.skew += 1
            service.tell(job, f"event {number}")
        for number, event in enumerate(service.events[job]):
            event["id"] = number
        service.jobs[job]["status"] = "succeeded"
        async with session.stream_fine_tune_events(job) as events:
            assert [event.message async for event in events] == ["event 2", "event 3", "event 4"]
    assert "only part of the list" in caplog.text
