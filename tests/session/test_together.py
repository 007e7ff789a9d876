"""Jobs of Together: made once and never lost, followed by a whole list without ids, and known in any dialect."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

import attrs
import pytest

from aiofinetune import (
    ConnectionLost,
    CreateUncertain,
    FineTuneFailed,
    FineTuneRequest,
    FineTuneSession,
    RequestInvalid,
    Retry,
    StreamHistoryChanged,
    StreamInterrupted,
)
from aiofinetune.dialects import DIALECTS
from tests.servers.faults import FAULTS
from tests.servers.faultserver import FaultServer
from tests.servers.service import KEY
from tests.servers.together_service import TogetherService
from tests.session.creates import CREATE, LIST, talking
from tests.support.checks import QUICK

pytestmark = pytest.mark.fastforward

LOST = FAULTS["reset after the request"]
VAIN = FAULTS["reset after the request, no effect"]
EVENTS = "list_fine_tune_events"


def asked(request: FineTuneRequest, **more: object) -> dict[str, object]:
    """What another program asks for to get an equal job."""
    return DIALECTS["together"].body_of(request) | more


def suffixes(server: FaultServer) -> list[str | None]:
    """The suffix in each create that came in."""
    return [json.loads(each.body).get("suffix") for each in server.seen if each.endpoint[0] == CREATE]


# Once


@pytest.mark.parametrize("lacks", [("events",), ("events", "suffix", "random_seed"), ("events", "training_method")])
async def test_lost_create_is_found(lacks: tuple[str, ...]) -> None:
    """A create whose reply is lost is found by what the list says of it, and not sent again."""
    service = TogetherService()
    service.list_lacks = lacks
    async with talking(service=service) as (server, session, request):
        server.fail(CREATE, LOST)
        job = await session.create_fine_tune(attrs.evolve(request, suffix="mine", seed=7))
    assert list(service.jobs) == [job.id]


@pytest.mark.parametrize(
    "theirs",
    [{"suffix": "yours"}, {"suffix": ""}, {"random_seed": 8}, {"n_epochs": 9}, {"training_method": {"method": "dpo"}}],
)
async def test_lost_create_is_told_from_others(theirs: dict[str, Any]) -> None:
    """It is told from a job of another program of the same moment by its suffix, its seed and its parameters."""
    service = TogetherService()
    async with talking(service=service) as (server, session, request):
        ours = attrs.evolve(request, suffix="mine", seed=7, method="supervised")
        service.add_job(asked(ours, **theirs))
        server.fail(CREATE, LOST)
        job = await session.create_fine_tune(ours)
    assert job.id == list(service.jobs)[1]
    assert len(service.jobs) == 2


async def test_equal_jobs_are_uncertain() -> None:
    """Among equal jobs of one moment it is uncertain which is ours, and none is made again."""
    service = TogetherService()
    async with talking(service=service) as (server, session, request):
        service.add_job(asked(request))
        server.fail(CREATE, LOST)
        with pytest.raises(CreateUncertain) as caught:
            await session.create_fine_tune(request)
    assert set(caught.value.candidate_ids) == set(service.jobs)
    assert len(service.jobs) == 2


async def test_key_in_the_suffix_tells_equal_jobs() -> None:
    """Where the caller allows a key in the suffix, the lost job is found among equal ones."""
    service = TogetherService()
    async with talking(service=service) as (server, session, request):
        allowed = attrs.evolve(request, suffix="team-{key}")
        for other in ("team-000000000000", "team-111111111111"):
            service.add_job(asked(request, suffix=other))
        server.fail(CREATE, LOST)
        job = await session.create_fine_tune(allowed)
        (sent,) = suffixes(server)
    assert (job.suffix, job.id) == (sent, list(service.jobs)[2])
    assert len(service.jobs) == 3


async def test_key_in_the_suffix_is_kept_over_resends() -> None:
    """An attempt has one key, in whatever it sends again; the next create has another."""
    service = TogetherService()
    async with talking(service=service) as (server, session, request):
        allowed = attrs.evolve(request, suffix="{key}")
        server.fail(CREATE, VAIN, VAIN)
        await session.create_fine_tune(allowed)
        await session.create_fine_tune(allowed)
        first, again, third, other = suffixes(server)
    assert first == again == third != other
    assert len(service.jobs) == 2


async def test_equal_creates_with_keys_at_once() -> None:
    """Equal requests with keys that are lost at once each find their own job."""
    service = TogetherService()
    async with talking(service=service) as (server, session, request):
        allowed = attrs.evolve(request, suffix="{key}")
        server.fail(CREATE, LOST, LOST, LOST)
        jobs = await asyncio.gather(*(session.create_fine_tune(allowed) for _ in range(3)))
    assert {job.id for job in jobs} == set(service.jobs)
    assert len({job.suffix for job in jobs}) == 3


async def test_recorded_create_is_found_by_its_key() -> None:
    """A later session finds a recorded create by the key in its suffix; without the job it says that there is none."""
    service = TogetherService()
    async with talking(service=service) as (_server, session, request):
        allowed = attrs.evolve(request, suffix="{key}")
        sent_at = service.now() - 1
        service.add_job(asked(request, suffix="bbbbbbbbbbbb"), age=-1)
        made = service.add_job(asked(request, suffix="aaaaaaaaaaaa"), age=-1)
        job = await session._recovery.find(allowed, sent_at, key="aaaaaaaaaaaa0000")
        assert job is not None
        assert job.id == made


async def test_not_made_is_sent_again() -> None:
    """A create that surely made nothing is sent again."""
    service = TogetherService()
    async with talking(service=service) as (server, session, request):
        server.fail(CREATE, VAIN)
        job = await session.create_fine_tune(request)
        assert server.asked().count(LIST) > 0
    assert list(service.jobs) == [job.id]


async def test_job_of_another_suffix_is_no_proof() -> None:
    """A job of the same moment and file that is not as asked for may be ours, changed: uncertain, not sent again."""
    service = TogetherService()
    async with talking(service=service) as (server, session, request):
        theirs = service.add_job(asked(request, suffix="yours"))
        server.fail(CREATE, VAIN)
        with pytest.raises(CreateUncertain) as caught:
            await session.create_fine_tune(attrs.evolve(request, suffix="mine"))
    assert caught.value.candidate_ids == (theirs,)
    assert len(service.jobs) == 1


# Following


def job_of(service: TogetherService) -> str:
    file = service.add_file("train.jsonl", b"{}\n")
    return service.add_job({"training_file": file, "model": "mini"})


def messages(service: TogetherService, job: str) -> list[str]:
    return [event["message"] for event in service.events[job]]


@pytest.mark.parametrize("newest_first", [True, False])
async def test_events_are_followed(newest_first: bool) -> None:
    """A job's events are given each once, also equal ones, oldest first, to the last; the end is the job's status."""
    service = TogetherService()
    service.events_newest_first = newest_first
    async with talking(service=service) as (_server, session, _request):
        job = job_of(service)
        given = []
        async with session.stream_fine_tune_events(job) as events:
            async for event in events:
                given.append(event.message)
                if len(given) == 1:
                    for _ in range(3):
                        service.skew += 0.01
                        service.tell(job, "the same")
                elif len(given) == 4:
                    service.skew += 0.01
                    service.finish(job)
        assert given == messages(service, job) == [given[0], *["the same"] * 3, "Fine-tune succeeded"]
        assert [event.message for event in await session.list_fine_tune_events(job)] == given


async def test_another_history() -> None:
    """If the list has other events than before in the places of those that were given, the stream says so."""
    service = TogetherService()
    async with talking(service=service) as (_server, session, _request):
        job = job_of(service)
        async with session.stream_fine_tune_events(job) as events:
            await anext(events)
            service.events[job][0]["message"] = "rewritten"
            service.tell(job, "new")
            with pytest.raises(StreamHistoryChanged, match=r"event 1 of .* 'rewritten'"):
                await anext(events)


async def test_list_that_is_shorter_for_a_while() -> None:
    """A list that lacks what was given is not believed, also at the end: it is read again until it is whole."""
    service = TogetherService()
    retry = Retry(attempts=50, base=0.1, cap=1, deadline=1000, grace=0.02)
    async with talking(service=service, retry=retry) as (_server, session, _request):
        job = job_of(service)
        service.tell(job, "two")
        given = []
        async with session.stream_fine_tune_events(job) as events:
            given += [(await anext(events)).message, (await anext(events)).message]
            service.finish(job)
            whole = service.events[job]
            service.events[job] = whole[:1]
            asyncio.get_running_loop().call_later(5, service.events.__setitem__, job, whole)
            given += [event.message async for event in events]
        assert given == messages(service, job)


async def test_list_that_stays_shorter() -> None:
    """If it stays so, the stream is given up in the end."""
    service = TogetherService()
    retry = Retry(attempts=1, base=0.1, cap=1, deadline=30, grace=0.02)
    async with talking(service=service, retry=retry) as (_server, session, _request):
        job = job_of(service)
        async with session.stream_fine_tune_events(job) as events:
            await anext(events)
            service.events[job] = []
            with pytest.raises(StreamInterrupted) as caught:
                await anext(events)
    assert isinstance(caught.value.__cause__, ConnectionLost)


async def test_failures_are_passed_over() -> None:
    """Looks that fail for a while lose no event."""
    service = TogetherService()
    async with talking(service=service) as (server, session, _request):
        job = job_of(service)
        async with session.stream_fine_tune_events(job) as events:
            await anext(events)
            service.tell(job, "one")
            server.fail(EVENTS, FAULTS["500"], FAULTS["closed inside the body"])
            assert (await anext(events)).message == "one"


async def test_wait_for_a_failed_job() -> None:
    """A job that fails carries its error and its last events; that it is to be cancelled is no end."""
    service = TogetherService()
    async with talking(service=service) as (_server, session, _request):
        job = job_of(service)
        service.changes["status"] = "cancel_requested"
        waiting = asyncio.create_task(session.wait(job))
        await asyncio.sleep(100)
        assert not waiting.done()
        service.changes.clear()
        service.finish(job, "failed")
        with pytest.raises(FineTuneFailed) as caught:
            await waiting
    assert caught.value.job.error is not None
    assert caught.value.job.error.code == "job_error"
    assert caught.value.events[-1].message == "Fine-tune failed"


async def test_cancelling_twice() -> None:
    """A job that is about to be cancelled counts as cancelled when the service refuses to cancel it again."""
    service = TogetherService()
    async with talking(service=service) as (server, session, _request):
        job = job_of(service)
        service.changes["status"] = "cancel_requested"
        server.fail("cancel_fine_tune", FAULTS["400"])
        assert (await session.cancel_fine_tune(job)).service_status == "cancel_requested"


# What only some offer


async def test_results_checkpoints_price_and_deletion() -> None:
    """Figures are results, whatever the status of the job; checkpoints, prices and deletion are calls of their own."""
    service = TogetherService()
    service.metrics = [{"train/loss": 0.5, "train/global_step": 7}]
    service.checkpoints = [{"step": 7, "path": "s3://b/7", "created_at": "2026-01-01T00:00:00Z"}]
    async with talking(service=service) as (server, session, request):
        priced = attrs.evolve(request, suffix="s", seed=1, extra={"n_evals": 2, "n_checkpoints": 3})
        estimate = await session.estimate_price(priced)
        assert (estimate.price, estimate.is_allowed, estimate.limit) == (2.5, True, 10)
        assert json.loads(server.seen[-1].body) == {
            "training_file": request.training_file,
            "model": "ada",
            "n_epochs": 2,
            "n_evals": 2,
        }
        job = await session.create_fine_tune(request)
        assert [row.training_loss for row in await session.results(job)] == [0.5]
        assert [each.step_number for each in await session.list_checkpoints(job.id)] == [7]
        assert (await session.delete_fine_tune(job.id)).deleted
        assert service.jobs == {}


async def test_not_offered() -> None:
    """What a service does not offer is said, and nothing is sent."""
    async with talking() as (server, session, request):
        with pytest.raises(RequestInvalid, match="it has no counterpart"):
            await session.delete_fine_tune("ft-1")
        with pytest.raises(RequestInvalid, match="does not have this"):
            await session.estimate_price(request)
        assert server.seen == []


# In another dialect

CALLS: list[Callable[[FineTuneSession, str], Any]] = [
    lambda session, job: session.retrieve_fine_tune(job),
    lambda session, _job: session.list_fine_tunes(),
]


@pytest.mark.parametrize("call", CALLS, ids=["retrieve", "list"])
async def test_in_the_reference(call: Callable[[FineTuneSession, str], Any], caplog: pytest.LogCaptureFixture) -> None:
    """A session of the reference that meets such a job gives it, and names the dialect, once."""
    service = TogetherService()
    async with FaultServer(service) as server:
        job = job_of(service)
        async with FineTuneSession(KEY, base_url=server.base_url, retry=QUICK) as session:
            await call(session, job)
            await call(session, job)
    assert caplog.text.count("pass dialect='together' (AIOFINETUNE_DIALECT=together)") == 1


async def test_create_in_the_reference(caplog: pytest.LogCaptureFixture) -> None:
    """A create in the reference makes a job there, which is given and kept, and the dialect is named."""
    service = TogetherService()
    async with FaultServer(service) as server:
        file = service.add_file("train.jsonl", b"{}\n")
        async with FineTuneSession(KEY, base_url=server.base_url, retry=QUICK) as session:
            job = await session.create_fine_tune(FineTuneRequest(training_file=file, model="mini"))
    assert list(service.jobs) == [job.id]
    assert "pass dialect='together'" in caplog.text


async def test_jobs_of_the_reference_here(caplog: pytest.LogCaptureFixture) -> None:
    """A session of Together that meets a job of the reference says so too."""
    async with talking() as (server, _session, _request):
        job = server.service.add_job({"training_file": next(iter(server.service.files)), "model": "ada"})
        async with FineTuneSession(KEY, base_url=server.base_url, dialect="together", retry=QUICK) as session:
            await session.retrieve_fine_tune(job)
    assert "pass dialect='fine-tunes'" in caplog.text
