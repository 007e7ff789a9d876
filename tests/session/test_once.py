"""A job is created exactly once, whatever becomes of the reply; and what is not certain is said."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, nullcontext
from typing import Any

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiofinetune import (
    APIError,
    BadRequest,
    ConnectFailed,
    ConnectionLost,
    File,
    FineTune,
    FineTuneError,
    FineTuneRequest,
    FineTuneSession,
    Hyperparams,
    ProtocolViolation,
    RateLimited,
    ReplyTimeout,
    RequestInvalid,
    Retry,
    ServerError,
    Timeout,
)
from aiofinetune._jobs import matching as reconcile
from aiofinetune._jobs.recovery import NotSent
from aiofinetune.errors import QuotaExceeded, TooManyJobs
from aiofinetune.models import CreateUncertain
from aiofinetune.retry import may_have_arrived
from tests.servers.faultserver import (
    FAULTS,
    QUICK,
    USUAL,
    Exchange,
    Fault,
    FaultServer,
    OnRetry,
    answer,
    chain,
    nothing_left_open,
    session_for,
    status,
)
from tests.servers.rawserver import reply

pytestmark = pytest.mark.fastforward

LOST = FAULTS["reset after the request"]
"""The service made the job; nobody was told."""
DROPPED = FAULTS["reset after the request, no effect"]
"""The service made no job; to the client it looks the same."""
CREATE = "create_fine_tune"
LIST = "list_fine_tunes"
UPLOAD = "upload_file"
DAY = 86400


@asynccontextmanager
async def talking(
    *,
    retry: Retry = QUICK,
    timeout: Timeout = USUAL,  # noqa: ASYNC109  # for the session
) -> AsyncIterator[tuple[FaultServer, FineTuneSession, FineTuneRequest]]:
    """A server, a session with it that leaves nothing open, and a request for a job."""
    async with nothing_left_open(), FaultServer() as server:
        file = server.service.add_file("train.jsonl", b"{}\n")
        request = FineTuneRequest(training_file=file, model="ada", n_epochs=2)
        async with session_for(server, retry=retry, timeout=timeout) as session:
            yield server, session, request
        await server.left()


def asked_for(request: FineTuneRequest) -> dict[str, object]:
    return attrs.asdict(request, filter=lambda _attribute, value: value is not None)


# One create


@pytest.mark.parametrize("skew", [0, DAY, -DAY, 365 * DAY])
async def test_clock_skew(skew: float) -> None:
    """A lost job is found however far the service's clock is from ours."""
    async with talking() as (server, session, request):
        server.service.skew = skew
        server.fail(CREATE, LOST)
        job = await session.create_fine_tune(request)
        assert list(server.service.jobs) == [job.id]


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
        job = await session.create_fine_tune(request)
        session._recovery.claims.release(job.id)
        await asyncio.sleep(22)
        asked_at = time.monotonic()
        with pytest.raises(CreateUncertain, match=f"it may be {job.id}$") if astray > 0 else nullcontext():
            found = await session._recovery.find(request, noted)
            assert found is not None
            assert found.id == job.id
        assert time.monotonic() - asked_at < 60


async def test_find_what_a_session_gave_and_nobody_kept() -> None:
    """A search from a record passes over what this session claimed, however long ago, until it is released."""
    async with talking() as (_server, session, request):
        asked_at = time.time()
        job = await session.create_fine_tune(request)
        await asyncio.sleep(60)
        await session.create_fine_tune(attrs.evolve(request, n_epochs=3))
        assert await session._recovery.find(request, asked_at) is None
        session._recovery.claims.release(job.id)
        found = await session._recovery.find(request, asked_at)
        assert found is not None
        assert found.id == job.id
        assert await session._recovery.find(request, asked_at) is None


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


async def test_disowned_and_still_not_anothers() -> None:
    """A job that is disowned is found by whoever looks for it, and is not given to another create of the session."""
    async with talking() as (server, session, request):
        job = await session.create_fine_tune(request)
        session._recovery.claims.release(job.id)
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


# What is refused


async def test_still_being_processed() -> None:
    """A training file that is not ready yet is waited for, however many tries that takes."""
    async with talking() as (server, session, request):
        server.service.not_ready.add(request.training_file)
        refusals = iter(range(QUICK.attempts + 2))

        def process() -> None:
            if next(refusals, None) is None:
                server.service.not_ready.clear()

        with OnRetry(process):
            job = await session.create_fine_tune(request)
        assert list(server.service.jobs) == [job.id]
        assert LIST not in server.asked()


async def test_never_processed() -> None:
    """A training file that is never ready is waited for until the deadline."""
    async with talking() as (server, session, request):
        server.service.not_ready.add(request.training_file)
        with pytest.raises(BadRequest, match="being processed"):
            await session.create_fine_tune(request)
        assert not server.service.jobs


LIMITS = [
    ("You exceeded your current quota, please check your plan and billing details.", QuotaExceeded),
    ("You have created the maximum number of fine-tunes per day (10 per day)", QuotaExceeded),
    ("You have too many active jobs. Wait for one to finish.", TooManyJobs),
    ("Too many concurrent jobs for this organization", TooManyJobs),
]


@pytest.mark.parametrize(("message", "kind"), LIMITS)
async def test_limits_that_do_not_pass(message: str, kind: type[RateLimited]) -> None:
    """A limit that does not pass soon is said at once: nothing is sent again, and nothing was made."""
    async with talking() as (server, session, request):
        server.fail(CREATE, status(429, message=message, retry_after="0"))
        with pytest.raises(kind):
            await session.create_fine_tune(request)
        assert server.asked() == [CREATE]


async def test_throttled() -> None:
    """Throttling is waited out within the deadline, however many tries that takes."""
    async with talking() as (server, session, request):
        server.fail(CREATE, *[status(429, message="Rate limit reached, slow down")] * (QUICK.attempts + 3))
        job = await session.create_fine_tune(request)
        assert list(server.service.jobs) == [job.id]
        assert LIST not in server.asked()


async def test_asked_to_wait_for_too_long() -> None:
    """A service that asks to wait beyond the deadline gets its error raised at once."""
    async with talking() as (server, session, request):
        server.fail(CREATE, status(429, retry_after="3600"))
        with pytest.raises(RateLimited) as caught:
            await session.create_fine_tune(request)
        assert caught.value.retry_after == 3600
        assert server.asked() == [CREATE]


@pytest.mark.parametrize("throttled", ["list_models", "stream_fine_tune_events"])
async def test_shared_pause(throttled: str) -> None:
    """When one call of a session is throttled, no other begins before it may again; other sessions go on."""
    async with talking() as (server, session, request), session_for(server) as another:
        job = server.service.add_job(asked_for(request))
        server.service.finish(job)
        server.fail(throttled, status(429, retry_after="5"))
        begun: list[asyncio.Task[object]] = []

        def begin() -> None:
            begun.extend(asyncio.create_task(session.retrieve_file(request.training_file)) for _ in range(3))
            begun.append(asyncio.create_task(another.list_files()))

        start = asyncio.get_running_loop().time()
        with OnRetry(begin):
            await (session.list_models() if throttled == "list_models" else session.wait(job))
        await asyncio.gather(*begun)
        assert 5 <= asyncio.get_running_loop().time() - start < 8
        asked = server.asked()
        assert asked[:2] == [throttled, "list_files"]
        assert asked.count("retrieve_file") == 3


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


# The pure part

FILE = File("file-1")
REQUEST = FineTuneRequest(training_file="file-1", model="ada")


def job_of(number: int, request: FineTuneRequest = REQUEST, created_at: int = 1000) -> FineTune:
    """A job as the list would show it if `request` had made it."""
    return FineTune(
        id=f"ft-{number}",
        status="pending",
        model=request.model or "curie",
        created_at=created_at,
        training_files=(File(request.training_file),),
        hyperparams=Hyperparams(n_epochs=request.n_epochs or 4),
    )


REQUESTS = st.builds(
    FineTuneRequest,
    training_file=st.sampled_from(["file-1", "file-2"]),
    model=st.sampled_from([None, "ada", "curie"]),
    n_epochs=st.sampled_from([None, 1, 4]),
    suffix=st.sampled_from([None, "a", "b"]),
)


@given(requests=st.lists(st.tuples(REQUESTS, st.booleans()), min_size=1, max_size=6), order=st.randoms())
def test_judge_never_gives_a_job_to_another(requests: list[tuple[FineTuneRequest, bool]], order: object) -> None:
    """Whichever lost creates were made, no job goes to two, nor to one that did not ask for it."""
    jobs = [job_of(number, request) for number, (request, is_made) in enumerate(requests) if is_made]
    lost = [request for request, _ in requests]
    own: set[str] = set()
    order.shuffle(lost)  # type: ignore[attr-defined]  # a random.Random, as hypothesis types it not
    for request in list(lost):
        verdict = reconcile.judge(jobs, request, 1000.0, lost, own)
        lost.remove(request)
        if verdict.job is not None:
            assert verdict.job.id not in own
            own.add(verdict.job.id)
            askers = [
                asker
                for asker, is_made in requests
                if is_made and job_of(0, asker) == attrs.evolve(verdict.job, id="ft-0")
            ]
            assert request in askers or any(reconcile.fits(verdict.job, request) for _ in askers)


@given(request=REQUESTS, count=st.integers(1, 5), made=st.integers(0, 5))
def test_judge_shares_out_equal_jobs(request: FineTuneRequest, count: int, made: int) -> None:
    """Of equal lost creates, as many get a job as were made; the rest are told that there is none."""
    made = min(made, count)
    jobs = [job_of(number, request) for number in range(made)]
    lost, own, given_out = [request] * count, set[str](), 0
    for _ in range(count):
        verdict = reconcile.judge(jobs, request, 1000.0, lost, own)
        lost.remove(request)
        assert not verdict.unclear
        if verdict.job is not None:
            own.add(verdict.job.id)
            given_out += 1
    assert given_out == made


JUDGED = [
    pytest.param([], 1000.0, None, [], id="no job"),
    pytest.param([job_of(1)], 1000.0, 1, [], id="one"),
    pytest.param([job_of(1), job_of(2)], 1000.0, None, [1, 2], id="two that fit one create"),
    pytest.param([job_of(1, created_at=900)], 1000.0, None, [], id="an old one"),
    pytest.param([job_of(1, created_at=996)], 1000.0, 1, [], id="one within the slack"),
    pytest.param([job_of(1, created_at=994)], 1000.0, None, [], id="one beyond the slack"),
    pytest.param([job_of(1)], None, None, [1], id="no time known"),
    pytest.param([job_of(1, created_at=0)], None, None, [1], id="an old one, no time known"),
    pytest.param([job_of(1, attrs.evolve(REQUEST, model="curie"))], 1000.0, None, [1], id="another model"),
    pytest.param([job_of(1, attrs.evolve(REQUEST, training_file="file-2"))], 1000.0, None, [], id="another file"),
    pytest.param([attrs.evolve(job_of(1), validation_files=(FILE,))], 1000.0, None, [1], id="another validation file"),
    pytest.param([attrs.evolve(job_of(1), training_files=())], 1000.0, None, [1], id="no file told"),
]


@pytest.mark.parametrize(("jobs", "since", "job", "unclear"), JUDGED)
def test_judge(jobs: list[FineTune], since: float | None, job: int | None, unclear: list[int]) -> None:
    """What the list says of one lost create."""
    verdict = reconcile.judge(jobs, REQUEST, since, [REQUEST], set())
    assert (verdict.job and verdict.job.id) == (f"ft-{job}" if job else None)
    assert [candidate.id for candidate in verdict.unclear] == [f"ft-{number}" for number in unclear]


@pytest.mark.parametrize(("age", "is_unclear"), [(99, True), (101, False)])
def test_judge_by_a_time_that_may_be_too_late(age: int, is_unclear: bool) -> None:  # a table's column
    """A job that fits, and is older than the create seems to be, is a candidate as far as that may be mistaken."""
    job = job_of(1, created_at=1000 - age)
    verdict = reconcile.judge([job], REQUEST, 1000.0, [REQUEST], set(), astray=100.0)
    assert verdict == reconcile.Verdict(unclear=(job,) if is_unclear else ())


def test_judge_leaves_others_alone() -> None:
    """A job that another lost create of the session explains is no candidate."""
    other = attrs.evolve(REQUEST, n_epochs=2)
    request = attrs.evolve(REQUEST, n_epochs=3)
    verdict = reconcile.judge([job_of(1, other)], request, 1000.0, [request, other], set())
    assert verdict == reconcile.Verdict()


def test_judge_passes_over_own() -> None:
    """A job that somebody was given already is no candidate."""
    assert reconcile.judge([job_of(1)], REQUEST, 1000.0, [REQUEST], {"ft-1"}) == reconcile.Verdict()


SUFFIXES = [
    ("spam", "ada:ft-org:spam-2022-02-15-04-21-04", True),
    ("Spam Filter!", "ada:ft-org:spam-filter-2022-02-15-04-21-04", True),
    ("spam", "ada:ft-org-2022-02-15-04-21-04", False),
    ("spam", None, True),
    (None, "ada:ft-org:spam-2022-02-15-04-21-04", True),
    ("\u00e9\u00e8", "ada:ft-org-2022-02-15-04-21-04", True),
]


@pytest.mark.parametrize(("suffix", "name", "does_fit"), SUFFIXES)
def test_fits_by_suffix(suffix: str | None, name: str | None, does_fit: bool) -> None:  # a table's column
    """A suffix is looked for in the model's name, where there is one, by the letters that every service keeps."""
    job = attrs.evolve(job_of(1), fine_tuned_model=name)
    assert reconcile.fits(job, attrs.evolve(REQUEST, suffix=suffix)) == does_fit


@given(request=REQUESTS)
def test_what_a_request_made_fits_it(request: FineTuneRequest) -> None:
    """The job that a request made always fits it."""
    assert reconcile.fits(job_of(1, request), request)


ARRIVED = [
    (ConnectFailed("x"), False),
    (ConnectionLost("x"), True),
    (ReplyTimeout("x"), True),
    (ProtocolViolation("x"), True),
    (ServerError(500, "x"), True),
    (ServerError(503, "x"), True),
    (ServerError(503, "x", retry_after=1.0), False),
    (ServerError(500, "x", retry_after=1.0), True),
    (APIError(408, "x"), True),
    (APIError(303, "x"), True),
    (APIError(302, "x"), True),
    (APIError(307, "x"), False),
    (BadRequest(400, "x"), False),
    (RateLimited(429, "x"), False),
    (QuotaExceeded(429, "x"), False),
    (RequestInvalid("x", "y"), False),
]


@pytest.mark.parametrize(("failure", "may_have"), ARRIVED, ids=repr)
def test_may_have_arrived(failure: FineTuneError, may_have: bool) -> None:  # a table's column
    """Only what surely did not arrive, or was refused in so many words, had no effect."""
    assert may_have_arrived(failure) == may_have


def file_of(number: int, **changes: Any) -> File:
    return attrs.evolve(File(f"file-{number}", "a.jsonl", "fine-tune", 3, 1000), **changes)


FOUND = [
    pytest.param([], None, id="none"),
    pytest.param([file_of(1)], "file-1", id="one"),
    pytest.param([file_of(1), file_of(2)], None, id="two"),
    pytest.param([file_of(1, bytes=4)], None, id="another size"),
    pytest.param([file_of(1, filename="b.jsonl")], None, id="another name"),
    pytest.param([file_of(1, purpose="other")], None, id="another purpose"),
    pytest.param([file_of(1, created_at=994)], None, id="too old"),
    pytest.param([file_of(9), file_of(1)], "file-1", id="one given already"),
]


@pytest.mark.parametrize(("files", "found"), FOUND)
def test_find_file(files: list[File], found: str | None) -> None:
    """A lost upload is the one new file of its name, size and purpose."""
    file = reconcile.find_file(files, "a.jsonl", 3, "fine-tune", 1000.0, {"file-9"})
    assert (file and file.id) == found


def test_find_file_without_a_time() -> None:
    """Without the service's time no file is surely new."""
    assert reconcile.find_file([file_of(1)], "a.jsonl", 3, "fine-tune", None, set()) is None


def test_uncertain_says_what_to_look_for() -> None:
    """The error for a person names the time, the file, the model, the suffix and the candidates."""
    error = CreateUncertain(attrs.evolve(REQUEST, suffix="spam"), 0.0, (job_of(7),))
    assert all(word in str(error) for word in ("1970-01-01T00:00:00Z", "file-1", "ada", "spam", "ft-7"))
