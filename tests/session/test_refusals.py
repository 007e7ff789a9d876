"""Creates that are refused for now or for good, and the pause that all calls share."""

from __future__ import annotations

import asyncio

import attrs
import pytest

from aiofinetune import BadRequest, RateLimited
from aiofinetune.errors import QuotaExceeded, TooManyJobs
from tests.servers.faults import status
from tests.session.creates import CREATE, LIST, asked_for, talking
from tests.support.checks import QUICK, OnRetry, session_for

pytestmark = pytest.mark.fastforward


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
    ("Maximum number of active fine-tunes reached", TooManyJobs),
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


async def test_a_create_that_stays_throttled_holds_up_no_other_call() -> None:
    """However often a create is throttled, any other call waits for one pause at most."""
    async with talking(retry=attrs.evolve(QUICK, deadline=3600)) as (server, session, request):
        server.fail_always(CREATE, status(429, retry_after="10"))
        job = server.service.add_job(asked_for(request))
        async with asyncio.TaskGroup() as tasks:
            creates = [tasks.create_task(session.create_fine_tune(request)) for _ in range(3)]
            while not session.times_throttled:
                await asyncio.sleep(0.001)
            for _ in range(20):
                async with asyncio.timeout(15):
                    await session.retrieve_fine_tune(job)
            async with asyncio.timeout(15):
                await session.cancel_fine_tune(job)
            for create in creates:
                create.cancel()


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
        assert 5 <= asyncio.get_running_loop().time() - start < 10
        asked = server.asked()
        assert asked[:2] == [throttled, "list_files"]
        assert asked.count("retrieve_file") == 3
