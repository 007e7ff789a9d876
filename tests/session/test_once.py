"""A job is created exactly once, whatever becomes of the reply; and what is not certain is said."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import nullcontext
from typing import Any

import attrs
import pytest

from aiofinetune import ConnectionLost, FineTune, FineTuneError, FineTuneRequest, FineTuneSession
from aiofinetune._jobs.recovery import NotSent
from aiofinetune.models import CreateUncertain
from tests.servers.faults import FAULTS, answer, status
from tests.servers.faultserver import Exchange, Fault, FaultServer
from tests.servers.rawserver import reply
from tests.session.creates import CREATE, LIST, asked_for, talking
from tests.support.checks import QUICK, chain

pytestmark = pytest.mark.fastforward

LOST = FAULTS["reset after the request"]
"""The service made the job; nobody was told."""
DROPPED = FAULTS["reset after the request, no effect"]
"""The service made no job; to the client it looks the same."""

UPLOAD = "upload_file"
DAY = 86400


# One create


@pytest.mark.parametrize("skew", [0, DAY, -DAY, 365 * DAY])
async def test_clock_skew(skew: float) -> None:
    """A lost job is found however far the service's clock is from ours."""
    async with talking() as (server, session, request):
        server.service.skew = skew
        server.fail(CREATE, LOST)
        job = await session.create_fine_tune(request)
        assert list(server.service.jobs) == [job.id]


@pytest.mark.parametrize("skew", [-29, -20, -6, -4, 20])
async def test_jobs_dated_by_another_clock(skew: float) -> None:
    """A lost job that is dated before its create by the clock that dates replies is found, or leaves it uncertain."""
    async with talking() as (server, session, request):
        server.service.job_skew = skew
        server.fail(CREATE, LOST)
        with pytest.raises(CreateUncertain, match="it may be ft-") if skew < -5 else nullcontext():
            await session.create_fine_tune(request)
        assert len(server.service.jobs) == 1


@pytest.mark.parametrize("skew", [0, DAY, -DAY])
async def test_equal_job_of_before(skew: float) -> None:
    """An equal job that was made earlier, by whomever, is not taken for the one that was asked for."""
    async with talking() as (server, session, request):
        server.service.skew = skew
        earlier = server.service.add_job(asked_for(request), age=60)
        server.fail(CREATE, DROPPED)
        job = await session.create_fine_tune(request)
        assert list(server.service.jobs) == [earlier, job.id]


async def test_equal_job_of_this_session() -> None:
    """An equal job that this session was given a moment ago is not given twice."""
    async with talking() as (server, session, request):
        first = await session.create_fine_tune(request)
        server.fail(CREATE, DROPPED)
        second = await session.create_fine_tune(request)
        assert list(server.service.jobs) == [first.id, second.id]


async def test_shows_up_late() -> None:
    """A lost job that the list shows only after a while is waited for, not made again."""
    async with talking(retry=attrs.evolve(QUICK, grace=10)) as (server, session, request):

        async def lose(exchange: Exchange) -> None:
            server.service.hidden |= set(server.service.jobs)
            await exchange.reset()

        async def show_next_time(exchange: Exchange) -> None:
            await exchange.send(exchange.reply.raw)
            server.service.hidden.clear()

        server.fail(CREATE, Fault(lose))
        server.fail(LIST, *[answer(lambda exchange: exchange.reply.raw)] * 2, Fault(show_next_time))
        job = await session.create_fine_tune(request)
        assert list(server.service.jobs) == [job.id]
        assert server.asked() == [CREATE, *[LIST] * 4]


async def test_sent_again_after_grace() -> None:
    """A create is sent again only once the list has not shown its job for the time of grace."""
    async with talking(retry=attrs.evolve(QUICK, grace=30, deadline=300)) as (server, session, request):
        server.fail(CREATE, DROPPED)
        begin = asyncio.get_running_loop().time()
        job = await session.create_fine_tune(request)
        assert asyncio.get_running_loop().time() - begin >= 30
        assert list(server.service.jobs) == [job.id]
        first, *looks, last = server.asked()
        assert first == last == CREATE
        assert set(looks) == {LIST}


@pytest.mark.parametrize("step", [600, -600])
async def test_clock_set_while_looking(step: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who sets this machine's clock while a lost job is looked for neither shortens nor stretches the time of grace."""
    async with talking(retry=attrs.evolve(QUICK, grace=30, deadline=300)) as (server, session, request):

        async def look(exchange: Exchange) -> None:
            set_clock(monkeypatch, server, step)
            await exchange.send(exchange.reply.raw)

        server.fail(CREATE, DROPPED)
        server.fail(LIST, Fault(look))
        begin = asyncio.get_running_loop().time()
        job = await session.create_fine_tune(request)
        assert 30 <= asyncio.get_running_loop().time() - begin < 60
        assert list(server.service.jobs) == [job.id]


@pytest.mark.parametrize("step", [600, -600])
async def test_clock_set_under_way(step: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who sets this machine's clock while a create is under way makes it uncertain, and no second job or wrong one."""
    async with talking() as (server, session, request):
        earlier = server.service.add_job(asked_for(request), age=60)

        async def lose(exchange: Exchange) -> None:
            set_clock(monkeypatch, server, step)
            await exchange.reset()

        server.fail(CREATE, Fault(lose))
        with pytest.raises(CreateUncertain) as caught:
            await session.create_fine_tune(request)
        assert {job.id for job in caught.value.candidates} == set(server.service.jobs)
        assert len(server.service.jobs) == 2
        assert earlier in server.service.jobs


def set_clock(monkeypatch: pytest.MonkeyPatch, server: FaultServer, step: float) -> None:
    """Set this machine's clock by so many seconds; the service's goes on as it did."""
    before = time.time
    monkeypatch.setattr(time, "time", lambda: before() + step)
    server.service.skew -= step


@pytest.mark.parametrize("astray", [20.0, 3600.0, -3600.0])
async def test_record_by_a_clock_that_was_wrong(astray: float) -> None:
    """A job is not taken for none, nor waited for, where the clock by which its asking was noted has been set since."""
    async with talking() as (_server, session, request):
        noted = time.time() + astray
        job = await session._recovery.create(request, owner="record")
        await asyncio.sleep(22)
        asked_at = time.monotonic()
        with pytest.raises(CreateUncertain, match=f"it may be {job.id}$") if astray > 0 else nullcontext():
            found = await session._recovery.find(request, noted, owner="record")
            assert found is not None
            assert found.id == job.id
        assert time.monotonic() - asked_at < 60


async def test_find_what_a_session_gave_and_nobody_kept() -> None:
    """A search from a record finds what this session made for that record, and passes over what it made otherwise."""
    async with talking() as (_server, session, request):
        asked_at = time.time()
        job = await session._recovery.create(request, owner="record")
        await asyncio.sleep(60)
        await session.create_fine_tune(attrs.evolve(request, n_epochs=3))
        for owner in (None, "another"):
            assert await session._recovery.find(request, asked_at, owner=owner) is None
        for _ in range(2):
            found = await session._recovery.find(request, asked_at, owner="record")
            assert found is not None
            assert found.id == job.id


async def test_see_other() -> None:
    """A create that is answered with a 303 was done: its job is looked for, and not made again."""
    async with talking() as (server, session, request):
        server.fail(CREATE, answer(lambda _exchange: reply(303, Location="/v1/fine-tunes/ft-1")))
        job = await session.create_fine_tune(request)
        assert list(server.service.jobs) == [job.id]


async def test_unwanted() -> None:
    """A create that nobody wants any more is not sent, however often it was before."""
    async with talking() as (server, session, request):
        server.fail(CREATE, *[status(429)] * 9)
        answers = iter([True, True, False])
        with pytest.raises(NotSent):
            await session._recovery.create(request, wanted=lambda: next(answers))
        assert server.asked().count(CREATE) == 2


async def test_unwanted_while_it_waits() -> None:
    """A create that waits for the pause of another, until nobody wants it any more, is not sent at all."""
    async with talking() as (server, session, request), asyncio.TaskGroup() as tasks:
        server.fail(CREATE, status(429, retry_after="5"))
        first = tasks.create_task(session.create_fine_tune(request))
        while not session.times_throttled:
            await asyncio.sleep(0.001)
        late = time.monotonic() + 1
        with pytest.raises(NotSent):
            await session._recovery.create(request, wanted=lambda: time.monotonic() < late)
        assert list(server.service.jobs) == [(await first).id]


async def test_recorded_and_not_anothers() -> None:
    """A job that was made for a record is not given to another create of the session."""
    async with talking() as (server, session, request):
        job = await session._recovery.create(request, owner="record")
        server.fail(CREATE, DROPPED)
        other = await session.create_fine_tune(request)
        assert list(server.service.jobs) == [job.id, other.id]


async def test_tries_are_counted_once() -> None:
    """A create that never arrives is sent as often as the retry policy says, and not once more."""
    async with talking() as (server, session, request):
        server.fail_always(CREATE, DROPPED)
        with pytest.raises(ConnectionLost):
            await session.create_fine_tune(request)
        assert server.asked().count(CREATE) == QUICK.attempts
        assert not server.service.jobs


@pytest.mark.parametrize("endpoint", ["list_fine_tunes", "delete_model"])
async def test_no_hidden_tries(endpoint: str) -> None:
    """A call that never gets a reply is sent as often as the retry policy says: nothing below tries on its own."""
    async with talking() as (server, session, _request):
        server.fail_always(endpoint, DROPPED)
        with pytest.raises(ConnectionLost):
            await (session.delete_model("m") if endpoint == "delete_model" else session.list_fine_tunes())
        assert server.asked() == [endpoint] * QUICK.attempts


async def test_missing_date() -> None:
    """Without the service's time, a job that fits may be an old one: that is for a person to tell."""
    async with talking() as (server, session, request):
        server.service.has_date = False
        server.fail(CREATE, LOST)
        with pytest.raises(CreateUncertain) as caught:
            await session.create_fine_tune(request)
        assert [job.id for job in caught.value.candidates] == list(server.service.jobs)
        assert server.asked().count(CREATE) == 1


async def test_missing_date_and_no_job() -> None:
    """Without the service's time, an empty list still says that no job was made."""
    async with talking() as (server, session, request):
        server.service.has_date = False
        server.fail(CREATE, DROPPED)
        job = await session.create_fine_tune(request)
        assert list(server.service.jobs) == [job.id]


async def test_altered_hyperparameter() -> None:
    """A new job that is not quite what was asked for may be the one: it is neither given nor made again."""
    async with talking() as (server, session, request):
        server.service.overrides = {"n_epochs": 1}
        server.fail(CREATE, LOST)
        with pytest.raises(CreateUncertain) as caught:
            await session.create_fine_tune(request)
        (job_id,) = server.service.jobs
        assert [job.id for job in caught.value.candidates] == [job_id]
        assert job_id in str(caught.value)
        assert isinstance(caught.value.__cause__, ConnectionLost)


@pytest.mark.parametrize("fault", [LOST, DROPPED], ids=["lost", "dropped"])
async def test_has_more(fault: Fault) -> None:
    """A list that keeps jobs back can show that a job was made, and never that none was."""
    async with talking() as (server, session, request):
        server.service.has_more = True
        server.fail(CREATE, fault)
        if fault is LOST:
            await session.create_fine_tune(request)
        else:
            with pytest.raises(CreateUncertain):
                await session.create_fine_tune(request)
        assert server.asked().count(CREATE) == 1


@pytest.mark.parametrize(
    "why", ["500, no effect", "401", "reset after the request", "200 with broken JSON", "200 with a page"]
)
async def test_list_fails(why: str) -> None:
    """Where the list cannot be read, the create is not sent again, and the error says what to look for."""
    async with talking() as (server, session, request):
        server.fail(CREATE, LOST)
        server.fail_always(LIST, FAULTS[why])
        with pytest.raises(CreateUncertain) as caught:
            await session.create_fine_tune(request)
        assert caught.value.request == request
        assert request.training_file in str(caught.value)
        assert isinstance(caught.value.__cause__, FineTuneError)
        assert server.asked().count(CREATE) == 1
        assert len(server.service.jobs) == 1


async def test_list_throttled() -> None:
    """A list that is throttled is asked again."""
    async with talking() as (server, session, request):
        server.fail(CREATE, LOST)
        server.fail(LIST, *[status(429, retry_after="0")] * 5)
        job = await session.create_fine_tune(request)
        assert list(server.service.jobs) == [job.id]


@pytest.mark.parametrize(
    "parameters",
    [
        {"model": None},
        {"suffix": "My Suffix_1"},
        {"learning_rate_multiplier": 0.25, "prompt_loss_weight": 0},
        {"validation_file": "file-2", "compute_classification_metrics": True, "classification_n_classes": 3},
        {"batch_size": 8, "n_epochs": None},
    ],
    ids=str,
)
async def test_any_parameters(parameters: dict[str, Any]) -> None:
    """A lost job is found whatever was asked for, and whatever was left to the service."""
    async with talking() as (server, session, request):
        server.service.add_file("valid.jsonl", b"{}\n")
        server.fail(CREATE, LOST)
        job = await session.create_fine_tune(attrs.evolve(request, **parameters))
        assert list(server.service.jobs) == [job.id]


# Several creates at once


async def all_created(session: FineTuneSession, *requests: FineTuneRequest) -> list[FineTune]:
    return await asyncio.gather(*map(session.create_fine_tune, requests))


@pytest.mark.parametrize("pattern", ["LLLL", "DDDD", "LDLD", "DLDL", "L---", "D---", "-LD-", "LLDD", "DDLL"])
async def test_equal_creates(pattern: str) -> None:
    """Of equal creates at the same moment, each gets a job of its own, whichever replies are lost."""
    async with talking() as (server, session, request):
        fine = answer(lambda exchange: exchange.reply.raw)
        server.fail(CREATE, *({"L": LOST, "D": DROPPED, "-": fine}[letter] for letter in pattern))
        jobs = await all_created(session, *[request] * len(pattern))
        assert sorted(job.id for job in jobs) == sorted(server.service.jobs)


async def test_a_hundred_equal_creates() -> None:
    """The same of a hundred, half of whose replies are lost."""
    async with talking(retry=attrs.evolve(QUICK, deadline=60)) as (server, session, request):
        server.fail(CREATE, *[LOST, DROPPED] * 25)
        jobs = await all_created(session, *[request] * 100)
        assert sorted(job.id for job in jobs) == sorted(server.service.jobs)


async def test_sweep() -> None:
    """Creates that differ in a hyperparameter each get their own job, whichever replies are lost."""
    async with talking() as (server, session, request):
        server.fail(CREATE, LOST, DROPPED, LOST, DROPPED)
        requests = [attrs.evolve(request, n_epochs=epochs) for epochs in (1, 2, 3, 4, 5, 6)]
        jobs = await all_created(session, *requests)
        assert [job.hyperparams.n_epochs for job in jobs] == [1, 2, 3, 4, 5, 6]
        assert sorted(job.id for job in jobs) == sorted(server.service.jobs)


async def test_differing_in_suffix_alone() -> None:
    """The list tells no suffix: of two lost creates that differ in it alone, neither gets the other's job."""
    async with talking() as (server, session, request):
        server.fail(CREATE, LOST, LOST)
        requests = [attrs.evolve(request, suffix=suffix) for suffix in ("one", "two")]
        results = await asyncio.gather(*map(session.create_fine_tune, requests), return_exceptions=True)
        assert len(server.service.jobs) == 2
        assert all(isinstance(result, CreateUncertain) for result in results)


async def test_differing_in_suffix_of_which_one_is_lost() -> None:
    """Where one of two creates that differ in their suffix alone was answered, the other's job is certain."""
    async with talking() as (server, session, request):
        server.fail(CREATE, LOST)
        requests = [attrs.evolve(request, suffix=suffix) for suffix in ("one", "two")]
        jobs = await all_created(session, *requests)
        assert sorted(job.id for job in jobs) == sorted(server.service.jobs)


async def test_foreign_job_beside_ours() -> None:
    """Where another client made an equal job at the same moment, it cannot be told whose is whose."""
    async with talking() as (server, session, request):

        async def lose(exchange: Exchange) -> None:
            server.service.add_job(asked_for(request))
            await exchange.reset()

        server.fail(CREATE, Fault(lose))
        with pytest.raises(CreateUncertain) as caught:
            await session.create_fine_tune(request)
        assert {job.id for job in caught.value.candidates} == set(server.service.jobs)


async def test_other_files_do_not_wait() -> None:
    """A create of another training file does not wait while one that was lost is looked for."""
    async with talking(retry=attrs.evolve(QUICK, grace=60)) as (server, session, request):
        other = attrs.evolve(request, training_file=server.service.add_file("other.jsonl", b"{}\n"))
        looked = asyncio.Event()

        async def look(exchange: Exchange) -> None:
            looked.set()
            await exchange.send(exchange.reply.raw)

        server.fail(CREATE, DROPPED)
        server.fail(LIST, Fault(look))
        searching = asyncio.create_task(session.create_fine_tune(request))
        await looked.wait()
        job = await session.create_fine_tune(other)
        assert list(server.service.jobs) == [job.id]
        searching.cancel()
        with pytest.raises(asyncio.CancelledError):
            await searching


# Cancelling


@pytest.mark.parametrize("how", ["cancel", "timeout"])
async def test_cancelled_create(how: str) -> None:
    """A create that is given up under way says that a job may exist, and frees its connection."""
    async with talking() as (server, session, request):
        arrived = asyncio.Event()

        async def hold(exchange: Exchange) -> None:
            arrived.set()
            await exchange.hold()

        server.fail(CREATE, Fault(hold))
        creating = asyncio.create_task(session.create_fine_tune(request))
        await arrived.wait()
        with pytest.raises((asyncio.CancelledError, TimeoutError)) as caught:  # two ways to the same end
            if how == "cancel":
                creating.cancel()
                await creating
            async with asyncio.timeout(0):
                await creating
        notes = [note for error in chain(caught.value) for note in getattr(error, "__notes__", ())]
        assert any("may have made a job" in note and request.training_file in note for note in notes)
        await server.left()


async def test_cancelled_while_looking() -> None:
    """A create that is given up while its job is looked for says the same, and hinders no other."""
    async with talking(retry=attrs.evolve(QUICK, grace=60)) as (server, session, request):
        looked = asyncio.Event()

        async def look(exchange: Exchange) -> None:
            looked.set()
            await exchange.hold()

        server.fail(CREATE, LOST)
        server.fail(LIST, Fault(look))
        creating = asyncio.create_task(session.create_fine_tune(request))
        await looked.wait()
        creating.cancel()
        with pytest.raises(asyncio.CancelledError) as caught:
            await creating
        assert any("may have made a job" in note for note in caught.value.__notes__)
        await session.create_fine_tune(request)
        assert len(server.service.jobs) == 2


CALLS: dict[str, Callable[[FineTuneSession, FineTuneRequest], Awaitable[object]]] = {
    "create_fine_tune": lambda session, request: session.create_fine_tune(request),
    "list_fine_tunes": lambda session, _request: session.list_fine_tunes(),
    "retrieve_fine_tune": lambda session, _request: session.retrieve_fine_tune("ft-1"),
    "cancel_fine_tune": lambda session, _request: session.cancel_fine_tune("ft-1"),
    "list_fine_tune_events": lambda session, _request: session.list_fine_tune_events("ft-1"),
    "stream_fine_tune_events": lambda session, _request: session.wait("ft-1"),
    "delete_file": lambda session, _request: session.delete_file("file-1"),
    "create_completion": lambda session, _request: session.create_completion("ada", "x"),
    "upload_file": lambda session, _request: session.upload_file(b"x" * 1_000_000),
    "download_file": lambda session, _request: session.download_file("file-1"),
}


@pytest.mark.parametrize("endpoint", CALLS)
@pytest.mark.parametrize("fault", ["stall before the reply", "stall inside the body", "unread"])
async def test_timeout_around_any_call(endpoint: str, fault: str) -> None:
    """``asyncio.timeout`` around a call that hangs ends it, and frees its connection, file and task."""
    async with talking() as (server, session, request):
        server.service.add_job(asked_for(request))
        unread = Fault(Exchange.hold, reads="head", has_effect=False)
        server.fail_always(endpoint, unread if fault == "unread" else FAULTS[fault])
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(10):
                await CALLS[endpoint](session, request)
        await server.left()


# Uploads


async def test_lost_upload() -> None:
    """A file whose upload got no reply is found, not sent again, whatever the clocks say."""
    async with talking() as (server, session, _request):
        server.service.skew = -DAY
        server.fail(UPLOAD, LOST)
        file = await session.upload_file(b"{}\n{}\n")
        assert server.asked().count(UPLOAD) == 1
        assert server.service.contents[file.id] == b"{}\n{}\n"


async def test_equal_file_of_before() -> None:
    """A file of the same name and size that was there before is not taken for the one that was sent."""
    async with talking() as (server, session, _request):
        earlier = server.service.add_file("data.jsonl", b"{ }")
        server.service.files[earlier]["created_at"] -= 60
        server.fail(UPLOAD, DROPPED)
        file = await session.upload_file(b"{}\n")
        assert server.service.contents[file.id] == b"{}\n"


@pytest.mark.parametrize("pattern", ["LL", "DD", "LD", "DL", "L-", "-D"])
async def test_uploads_of_one_name_and_size(pattern: str) -> None:
    """Of uploads that a list cannot tell apart, each gives a file with its own content."""
    async with talking() as (server, session, _request):
        fine = answer(lambda exchange: exchange.reply.raw)
        server.fail(UPLOAD, *({"L": LOST, "D": DROPPED, "-": fine}[letter] for letter in pattern))
        contents = [b"one", b"two"]
        uploaded = await asyncio.gather(*map(session.upload_file, contents))
        assert [server.service.contents[file.id] for file in uploaded] == contents


async def test_upload_that_can_be_read_once() -> None:
    """A source that cannot go back is sent once: what failed is said."""

    async def pieces() -> AsyncIterator[bytes]:
        yield b"{}\n"

    async with talking() as (server, session, _request):
        server.fail(UPLOAD, DROPPED)
        with pytest.raises(ConnectionLost):
            await session.upload_file(pieces())
        assert server.asked().count(UPLOAD) == 1
