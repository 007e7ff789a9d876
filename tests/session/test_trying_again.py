"""What is sent again and what is not, after refusals and lost connections."""

from __future__ import annotations

import asyncio
import logging
import socket
from asyncio import StreamWriter
from pathlib import Path

import pytest

from aiofinetune import APIError, ConnectFailed, CreateUncertain, FineTuneError, FineTuneSession, Retry, ServerError
from tests.servers.rawserver import (
    JOB,
    KEY,
    STREAM_HEAD,
    Received,
    answering,
    chunk,
    event,
    reply,
    session_for,
    talking_to,
    targets,
)
from tests.session.calls import FILE, MODELS, ONCE, REQUEST, Call, create

pytestmark = pytest.mark.fastforward


@pytest.mark.parametrize("status", [408, 425, 429, 500, 502, 503])
async def test_get_is_repeated(status: int) -> None:
    """A GET that failed in a way which may pass is sent again, as it was."""
    seen: list[Received] = []
    async with talking_to(answering(reply(status), reply(status), reply(body=MODELS), seen=seen)) as session:
        assert await session.list_models()
    assert targets(seen) == ["GET /v1/models"] * 3
    assert seen[0].headers == seen[2].headers


@pytest.mark.parametrize("status", [408, 425])
async def test_passing_refusals(status: int, tmp_path: Path) -> None:
    """A 408 or a 425 ends nothing that may be sent again: no wait, no stream, no download, no upload, no cancel."""
    seen: list[Received] = []
    file = {**FILE, "bytes": 0}
    over = {**JOB, "status": "succeeded", "fine_tuned_model": "ada:ft-1"}
    refused: set[str] = set()

    async def handler(request: Received, writer: StreamWriter) -> None:
        seen.append(request)
        line = f"{request.method} {request.target}"
        if line not in refused:
            refused.add(line)
            writer.write(reply(status))
        elif "stream=true" in line:
            writer.write(STREAM_HEAD + chunk(event("a") + b"data: [DONE]\n\n") + chunk(b""))
        elif request.method == "DELETE":
            writer.write(reply(body={"id": "file-1", "object": "file", "deleted": True}))
        elif line == "GET /v1/files":
            writer.write(reply(body={"object": "list", "data": []}))
        elif line == "GET /v1/files/file-1/content":
            writer.write(reply())
        else:
            writer.write(reply(body=file if "/files" in line else over))

    async with talking_to(handler) as session:
        assert (await session.wait("ft-1")).status == "succeeded"
        refused.clear()
        async with session.stream_fine_tune_events("ft-1") as events:
            assert [each.message async for each in events] == ["a"]
        assert await session.download_file("file-1", tmp_path / "a") == tmp_path / "a"
        assert (await session.upload_file(b"{}\n")).id == "file-1"
        assert (await session.delete_file("file-1")).deleted
        assert (await session.cancel_fine_tune("ft-1")).id == "ft-1"
    assert targets(seen).count("POST /v1/fine-tunes/ft-1/cancel") == 2


async def test_wait_survives_refusals_that_pass() -> None:
    """Waiting for a job goes on through more 408s than a call has attempts."""
    over = {**JOB, "status": "succeeded", "fine_tuned_model": "ada:ft-1"}
    left = 12

    async def handler(request: Received, writer: StreamWriter) -> None:
        nonlocal left
        left -= "stream" not in request.target
        writer.write(reply(408) if left > 0 or "stream" in request.target else reply(body=over))

    async with talking_to(handler) as session:
        assert (await session.wait("ft-1")).status == "succeeded"


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"retry_after_ms": "2500"}, 2.5),
        ({"x_ms_retry_after_ms": "2500", "retry_after": "100"}, 2.5),
        ({"retry_after_ms": "soon", "x_ms_retry_after_ms": "2500"}, 2.5),
        ({"retry_after_ms": "nan", "retry_after": "2.5"}, 2.5),
    ],
    ids=str,
)
async def test_wait_in_milliseconds(headers: dict[str, str], seconds: float) -> None:
    """What a service says in milliseconds is waited for, before what it says in whole seconds."""
    loop = asyncio.get_running_loop()
    times: list[float] = []

    async def handler(_request: Received, writer: StreamWriter) -> None:
        times.append(loop.time())
        writer.write(reply(429, **headers) if len(times) == 1 else reply(body=MODELS))

    async with talking_to(handler) as session:
        assert await session.list_models()
    assert seconds <= times[1] - times[0] < 50


@pytest.mark.parametrize("attempts", [1, 3])
async def test_attempts(attempts: int) -> None:
    """After the last attempt the failure itself is raised."""
    seen: list[Received] = []
    policy = Retry(attempts=attempts, base=0.001, cap=0.001, grace=0.01)
    async with talking_to(answering(reply(500), seen=seen), retry=policy) as session:
        with pytest.raises(ServerError):
            await session.list_models()
    assert len(seen) == attempts


@pytest.mark.parametrize("status", [400, 401, 403, 404, 409])
async def test_what_is_not_repeated(status: int) -> None:
    """What would fail again is sent once."""
    seen: list[Received] = []
    async with talking_to(answering(reply(status), seen=seen)) as session:
        with pytest.raises(APIError):
            await session.list_models()
    assert len(seen) == 1


async def test_reset_is_repeated() -> None:
    """A GET whose connection is reset is sent again on another."""
    seen: list[Received] = []

    async def handler(request: Received, writer: StreamWriter) -> None:
        seen.append(request)
        if len(seen) < 3:
            reset(writer)
        else:
            writer.write(reply(body=MODELS))

    async with talking_to(handler) as session:
        assert await session.list_models()
    assert len(seen) == 3


def reset(writer: StreamWriter) -> None:
    """Close a connection by RST, as a crash or a firewall does."""
    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    writer.transport.abort()


async def test_create_is_not_repeated_after_a_reset() -> None:
    """A create whose reply was lost may have made a job that costs: it is not sent again."""
    seen: list[Received] = []

    async def handler(request: Received, writer: StreamWriter) -> None:
        seen.append(request)
        reset(writer)

    async with talking_to(handler) as session:
        with pytest.raises(CreateUncertain):
            await session.create_fine_tune(REQUEST)
    assert targets(seen).count("POST /v1/fine-tunes") == 1


async def test_create_is_not_repeated_on_a_used_connection() -> None:
    """Nor where the connection was used before, and closed just as the create was sent: aiohttp repeats some itself."""
    seen: list[Received] = []

    async def handler(request: Received, writer: StreamWriter) -> None:
        seen.append(request)
        if request.method == "GET":
            writer.write(reply(body=MODELS))
        else:
            writer.close()

    async with talking_to(handler) as session:
        await session.list_models()
        with pytest.raises(CreateUncertain):
            await session.create_fine_tune(REQUEST)
    assert targets(seen).count("POST /v1/fine-tunes") == 1


@pytest.mark.parametrize(
    ("failure", "is_sent_again"),
    [
        (reply(503, Retry_After="0"), True),
        (reply(429), True),
        (reply(429, Retry_After="0"), True),
        (reply(429, Retry_After="3600"), False),
        (reply(429, Retry_After="Fri, 01 Jan 2100 00:00:00 GMT"), False),
        (reply(429, Retry_After="Fri, 01 Jan 1999 00:00:00 GMT"), True),
        (reply(429, Retry_After="soon"), True),
    ],
)
@pytest.mark.parametrize("call", [create, lambda session: session.upload_file(b"x")], ids=["create", "upload"])
async def test_create_is_repeated_if_refused(failure: bytes, call: Call, is_sent_again: bool) -> None:
    """What creates something is sent again where the service refused it before looking, and within our patience."""
    seen: list[Received] = []
    made = reply(body={**JOB, **FILE, "id": "x-1"})
    async with talking_to(answering(failure, made, seen=seen)) as session:
        if is_sent_again:
            assert await call(session)
            assert seen[0].headers.get("idempotency-key") == seen[1].headers.get("idempotency-key")
        else:
            with pytest.raises(APIError):
                await call(session)
    assert len(seen) == 1 + is_sent_again


async def test_create_is_repeated_if_not_connected() -> None:
    """A create that found no one listening is sent to who listens later."""
    seen: list[Received] = []
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))
        port = reserved.getsockname()[1]
        failures: list[str] = []
        listening = asyncio.Event()
        session = session_for(
            f"http://127.0.0.1:{port}/v1", retry=Retry(attempts=10_000, base=0.001, cap=0.001, grace=0.01)
        )

        class Counting(logging.Handler):
            def emit(self, record: logging.LogRecord) -> None:
                failures.append(record.getMessage())
                if len(failures) == 2:
                    listening.set()

        logger = logging.getLogger("aiofinetune")
        handler, level = Counting(), logger.level
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
        try:
            async with session:
                creating = asyncio.create_task(session.create_fine_tune(REQUEST))
                await listening.wait()

                async def connected(reader: asyncio.StreamReader, writer: StreamWriter) -> None:
                    head = await reader.readuntil(b"\r\n\r\n")
                    method, target, _ = head.decode().split(maxsplit=2)
                    seen.append(Received(method, target, {}, b"", reader))
                    writer.write(reply(body=JOB, Connection="close"))
                    writer.close()

                reserved.listen()
                reserved.setblocking(False)
                async with await asyncio.start_server(connected, sock=reserved.dup()):
                    assert (await creating).id == "ft-1"
        finally:
            logger.removeHandler(handler)
            logger.setLevel(level)
    assert targets(seen) == ["POST /v1/fine-tunes"]
    assert "ConnectFailed: Connect" in failures[0]


async def test_no_one_listens() -> None:
    """Where no one listens, the connection failed, and it says to whom."""
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{reserved.getsockname()[1]}/v1"
        async with session_for(url, retry=ONCE) as session:
            with pytest.raises(ConnectFailed, match=url):
                await session.list_models()


@pytest.mark.parametrize("host", ["a..b", "x" * 64 + ".test", "."])
async def test_host_that_is_no_name(host: str) -> None:
    """A host that no name server could know is an error of ours like any other."""
    with pytest.raises(FineTuneError):
        async with FineTuneSession(KEY, base_url=f"https://{host}/v1", retry=ONCE) as session:
            await session.list_models()


async def test_warnings_and_logs(caplog: pytest.LogCaptureFixture) -> None:
    """What is tried again is logged, by endpoint, reason and wait, and at a level that is silent by default."""
    caplog.set_level(logging.DEBUG, "aiofinetune")
    async with talking_to(answering(reply(500, {"error": "busy"}), reply(body=MODELS))) as session:
        await session.list_models()
    (record,) = [record for record in caplog.records if "retrying" in record.getMessage()]
    assert record.levelno == logging.INFO
    assert "GET /models, failure 1: 500 ServerError; retrying in 0.0 s" in record.getMessage()
