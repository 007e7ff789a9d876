"""Waiting for a job by its stream and its state."""

from __future__ import annotations

import asyncio
from asyncio import StreamWriter

import pytest

from aiofinetune import (
    AuthenticationFailed,
    FineTuneCancelled,
    FineTuneFailed,
    NotFound,
    ReplyTimeout,
    Retry,
    WaitTimeout,
)
from tests.servers.rawserver import (
    JOB,
    KEY,
    STREAM_HEAD,
    Handler,
    Received,
    answering,
    chunk,
    event,
    reply,
    talking_to,
    targets,
)
from tests.session.streams import DONE, messages

pytestmark = pytest.mark.fastforward


def ended(status: str, **fields: object) -> dict[str, object]:
    return {**JOB, "status": status, **fields}


def job_with(stream: bytes, *jobs: dict[str, object], seen: list[Received] | None = None) -> Handler:
    """A service with one job: what it streams, and what it reports in turn."""
    left = list(jobs)

    async def handler(request: Received, writer: StreamWriter) -> None:
        if seen is not None:
            seen.append(request)
        if "/events" in request.target:
            writer.write(stream)
            writer.close()
        else:
            writer.write(reply(body=left.pop(0) if len(left) > 1 else left[0]))

    return handler


TOLD = STREAM_HEAD + chunk(b"".join(event(str(number)) for number in range(15)) + DONE) + chunk(b"")


async def test_wait() -> None:
    """Waiting gives the job that succeeded, as the service reports it after the stream's end."""
    seen: list[Received] = []
    async with talking_to(job_with(TOLD, ended("succeeded", fine_tuned_model="ada:ft-x"), seen=seen)) as session:
        job = await session.wait("ft-1")
    assert job.fine_tuned_model == "ada:ft-x"
    assert targets(seen) == ["GET /v1/fine-tunes/ft-1/events?stream=true", "GET /v1/fine-tunes/ft-1"]


@pytest.mark.parametrize(("status", "kind"), [("failed", FineTuneFailed), ("cancelled", FineTuneCancelled)])
async def test_wait_for_what_ends_badly(status: str, kind: type[Exception]) -> None:
    """A job that ended without a model is an error with the job and its last events."""
    async with talking_to(job_with(TOLD, ended(status))) as session:
        with pytest.raises(kind, match=f"^fine-tune ft-1 {status}: 12; 13; 14$") as caught:
            await session.wait("ft-1")
    assert isinstance(caught.value, FineTuneFailed | FineTuneCancelled)
    assert caught.value.job.status == status
    assert [each.message for each in caught.value.events] == [str(number) for number in range(5, 15)]


async def test_events_of_the_job() -> None:
    """Where the job itself brings its events, those are the ones that the error tells."""
    failed = ended("failed", events=[{"message": "out of tokens"}])
    async with talking_to(job_with(TOLD, failed)) as session:
        with pytest.raises(FineTuneFailed, match=r"out of tokens$"):
            await session.wait("ft-1")


@pytest.mark.parametrize(
    "stream",
    [
        STREAM_HEAD + chunk(event("a")) + chunk(b""),
        STREAM_HEAD + chunk(event("a")),
        b"",
        reply(500),
        STREAM_HEAD + chunk(b'data: {"error": {"message": "stream broke"}}\n\n'),
    ],
    ids=["ended", "lost", "reset", "500", "error event"],
)
async def test_wait_without_a_stream(stream: bytes) -> None:
    """A stream that breaks does not end the wait: the job's own status does."""
    async with talking_to(job_with(stream, ended("succeeded"))) as session:
        assert (await session.wait("ft-1")).status == "succeeded"


@pytest.mark.parametrize("frame", [STREAM_HEAD, STREAM_HEAD + chunk(event("a")), STREAM_HEAD + chunk(b": here\n\n")])
async def test_wait_beside_a_stream_without_an_end(frame: bytes) -> None:
    """A job is over when its own status says so, though its stream is kept open and never says it."""
    jobs = [{**JOB, "status": "running"}, ended("succeeded")]

    async def handler(request: Received, writer: StreamWriter) -> None:
        if "/events" in request.target:
            writer.write(frame)
            await request.gone()
        else:
            writer.write(reply(body=jobs.pop(0) if len(jobs) > 1 else jobs[0]))

    async with talking_to(handler) as session:
        assert (await session.wait("ft-1")).status == "succeeded"


async def test_wait_hides_an_echoed_key() -> None:
    """A service that puts the key into an event, a status or a field does not make an error show it."""
    told = STREAM_HEAD + chunk(event(f"the key {KEY} is spent") + DONE) + chunk(b"")
    async with talking_to(job_with(told, ended("failed", organization_id=KEY))) as session:
        async with session.stream_fine_tune_events("ft-1") as events:
            assert KEY not in repr([each async for each in events])
        with pytest.raises(FineTuneFailed, match="is spent") as caught:
            await session.wait("ft-1")
    assert KEY not in repr(caught.value)
    assert KEY not in str(caught.value)


async def test_wait_logs_no_echoed_key(caplog: pytest.LogCaptureFixture) -> None:
    """Nor does a status that no one knows, which is logged."""
    async with talking_to(job_with(TOLD, ended(f"odd {KEY}"), ended("succeeded"))) as session:
        await session.wait("ft-1")
    assert "unknown status" in caplog.text
    assert KEY not in caplog.text


@pytest.mark.parametrize("done", [b"data: [DONE] \n\n", b"data: [DONE]\t\n\n", b"data:  [DONE]\n\n"])
async def test_done_with_a_space(done: bytes) -> None:
    """A space around the mark of the end changes nothing."""
    assert await messages(STREAM_HEAD + chunk(event("a") + done)) == (["a"], None)


async def test_wait_goes_on() -> None:
    """A job that is not over when its stream ends is waited for further, statuses that no one knows included."""
    seen: list[Received] = []
    jobs = (ended("validating"), ended("succeeded"))
    async with talking_to(job_with(TOLD, *jobs, seen=seen)) as session:
        assert (await session.wait("ft-1")).status == "succeeded"
    assert len(seen) == 4


@pytest.mark.parametrize("status", [401, 404])
async def test_wait_for_what_is_not_there(status: int) -> None:
    """A job that cannot be waited for is an error at once."""
    async with talking_to(answering(reply(status))) as session:
        with pytest.raises((NotFound, AuthenticationFailed)):
            await session.wait("ft-1")


@pytest.mark.parametrize("timeout", [0, 100])
async def test_wait_timeout(timeout: float) -> None:  # noqa: ASYNC109  # the call's own
    """Waiting ends after the time given, and says that the job goes on; the connection is freed."""
    came, gone = asyncio.Event(), asyncio.Event()

    async def handler(request: Received, writer: StreamWriter) -> None:
        came.set()
        writer.write(STREAM_HEAD + chunk(event("a")))
        await request.gone()
        gone.set()

    async with talking_to(handler) as session:
        begin = asyncio.get_running_loop().time()
        # Which of them depends on what was answered in time.
        state = "(it continues at the service|its status is not known|its last event was 'a')"
        with pytest.raises(WaitTimeout, match=f"ft-1 did not end within {timeout} s; {state}") as caught:
            await session.wait("ft-1", timeout=timeout)
        assert timeout <= asyncio.get_running_loop().time() - begin < timeout + 50
        assert isinstance(caught.value, TimeoutError)
        if came.is_set():
            await gone.wait()


@pytest.mark.parametrize(
    ("status", "words"),
    [
        ("running", "100 s; it continues at the service; its status is 'running'"),
        ("paused", "100 s; its status is 'paused', which the API does not define"),
    ],
)
@pytest.mark.parametrize("streams", [True, False])
async def test_wait_timeout_names_the_status(status: str, words: str, streams: bool) -> None:
    """What a wait says of a job that was not over in time is what its status says."""

    async def handler(request: Received, writer: StreamWriter) -> None:
        if "stream" not in request.target:
            writer.write(reply(body={**JOB, "status": status}))
        elif streams:
            writer.write(STREAM_HEAD)
            await request.gone()
        else:
            writer.write(reply(404))

    async with talking_to(handler) as session:
        with pytest.raises(WaitTimeout, match=words):
            await session.wait("ft-1", timeout=100)


async def test_wait_within_a_callers_timeout() -> None:
    """A caller's own timeout is the caller's, whatever the wait's own."""

    async def handler(request: Received, writer: StreamWriter) -> None:
        writer.write(STREAM_HEAD)
        await request.gone()

    async with talking_to(handler) as session:
        with pytest.raises(TimeoutError) as caught:
            async with asyncio.timeout(100):
                await session.wait("ft-1", timeout=600)
        assert type(caught.value) is TimeoutError


async def test_wait_keeps_other_timeouts() -> None:
    """A service that does not answer until the deadline is a reply that timed out, no job that took too long."""

    async def handler(request: Received, _writer: StreamWriter) -> None:
        await request.gone()

    impatient = Retry(attempts=1, deadline=0)
    async with talking_to(handler, retry=impatient) as session:
        with pytest.raises(ReplyTimeout):
            await session.wait("ft-1", timeout=6000)
