"""The key is in no error, log record or local, whatever a service echoes."""

from __future__ import annotations

import logging
import socket
import struct
import threading
import traceback
from asyncio import StreamWriter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from aiofinetune import AuthenticationFailed, ConnectionLost, File, FineTune, FineTuneError, FineTuneSession, Retry
from tests.servers.rawserver import (
    JOB,
    KEY,
    STREAM_HEAD,
    Received,
    answering,
    chunk,
    knowing_file,
    reply,
    serve,
    talking_to,
)
from tests.session.calls import ECHO, ONCE, Call, all_in_chain, create, list_models

pytestmark = pytest.mark.fastforward

TESTS = str(Path(__file__).parent.parent)


def everything_said(error: BaseException) -> str:
    """All that a program or its log shows of an error: its traceback, and each in its chain by text and repr."""
    texts = ["".join(traceback.format_exception(error))]
    for each in all_in_chain(error):
        texts += [str(each), repr(each), repr(each.args)]
        texts += [repr(vars(each))] if isinstance(each, FineTuneError) else []
    return "\n".join(texts)


def every_local(error: BaseException) -> str:
    """What a tool that shows the locals of each frame shows of an error, but for the frames of the tests."""
    return "\n".join(
        repr(frame.f_locals)
        for each in all_in_chain(error)
        for frame, _ in traceback.walk_tb(each.__traceback__)
        if not frame.f_code.co_filename.startswith(TESTS)
    )


@pytest.mark.parametrize("raw", ECHO, ids=range(len(ECHO)))
@pytest.mark.parametrize("kind", ["list", "create", "upload", "download", "stream"])
async def test_key_is_never_shown(raw: bytes, kind: str, caplog: pytest.LogCaptureFixture) -> None:
    """A service that echoes the key, wherever it does, gets it into no error, no cause of one, and no log."""
    caplog.set_level(logging.DEBUG)

    async def handler(_request: Received, writer: StreamWriter) -> None:
        writer.write(raw)
        writer.close()

    async def stream(session: FineTuneSession) -> None:
        async with session.stream_fine_tune_events("ft-1") as events:
            async for _ in events:
                pass

    calls: dict[str, Call] = {
        "list": list_models,
        "create": create,
        "upload": lambda session: session.upload_file(b"x"),
        "download": lambda session: session.download_file("file-1"),
        "stream": stream,
    }
    async with talking_to(handler, retry=Retry(attempts=2, base=0.001, cap=0.001, grace=0.01)) as session:
        try:
            await calls[kind](session)
        except FineTuneError as error:
            assert KEY not in everything_said(error)  # noqa: PT017  # a download takes any bytes
    assert KEY not in caplog.text
    assert all(KEY not in repr(vars(record)) for record in caplog.records)


@pytest.mark.parametrize(
    "data", [f'{{"error": "{KEY}"}}', f'{{"error": {{"message": "{KEY}"}}}}', KEY, f'{{"message": ["{KEY}"]}}']
)
async def test_key_in_a_stream(data: str) -> None:
    """Nor does one that echoes it in an event stream."""
    raw = STREAM_HEAD + chunk(b"data: " + data.encode() + b"\n\n")
    async with talking_to(answering(raw)) as session, session.stream_fine_tune_events("ft-1") as events:
        with pytest.raises(FineTuneError) as caught:
            await anext(events)
        assert KEY not in everything_said(caught.value)


@pytest.mark.parametrize("raw", [*ECHO[:2], reply(200, b"x"), b"", b"x\r\n\r\n", reply(200)[:-5]], ids=range(6))
@pytest.mark.parametrize("call", [list_models, create, lambda session: session.upload_file(b"x")])
async def test_key_is_in_no_local(raw: bytes, call: Call) -> None:
    """Tools that show each frame's locals along with a traceback do not show the key that was sent."""

    async def handler(_request: Received, writer: StreamWriter) -> None:
        writer.write(raw)
        writer.close()

    async with talking_to(handler, retry=ONCE) as session:
        with pytest.raises(FineTuneError) as caught:
            await call(session)
    assert "FineTuneSession" in every_local(caught.value)
    assert KEY not in every_local(caught.value)


@pytest.mark.parametrize("dialect", ["fine-tunes", "jobs"])
async def test_key_in_a_write_that_fails(dialect: str) -> None:
    """Nor do they show it if the request is written to a kept connection that the service has just reset."""
    is_next = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as server, ThreadPoolExecutor() as threads:

        def answer_and_reset() -> None:
            server.settimeout(10)
            connection, _ = server.accept()
            with connection:
                connection.recv(1 << 16)
                connection.sendall(reply(body={"data": []}))
                is_next.wait(10)
                # Closing it resets it.
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

        serving = threads.submit(answer_and_reset)
        url = f"http://127.0.0.1:{server.getsockname()[1]}/v1"
        async with FineTuneSession(KEY, base_url=url, dialect=dialect, retry=ONCE) as session:
            await session.list_models()
            is_next.set()
            # The loop must not see the reset before the next call writes.
            serving.result(10)
            with pytest.raises(ConnectionLost, match="reset by peer") as caught:
                async with session.stream_fine_tune_events("ft-1"):
                    pass
    assert "Transport" in every_local(caught.value)
    assert KEY not in every_local(caught.value)
    assert KEY not in everything_said(caught.value)


@pytest.mark.parametrize("call", [lambda session: session.retrieve_fine_tune("ft-1"), create])
async def test_key_in_a_good_reply(call: Call) -> None:
    """Nor does what a call gives show the key, in whatever field the service echoes it."""
    async with talking_to(answering(reply(body={**JOB, "status": f"made for {KEY}"}))) as session:
        job = await call(session)
    assert isinstance(job, FineTune)
    assert job.status == "made for ..."


async def test_escaped_key() -> None:
    """Nor one that echoes it with JSON's escapes."""
    key = 'sk-"/quoted'
    body = rb'{"error": {"message": "wrong key: sk-\"\/quoted"}}'
    async with serve(answering(reply(401, body))) as url, FineTuneSession(key, base_url=url) as session:
        with pytest.raises(AuthenticationFailed) as caught:
            await session.list_models()
    assert key not in str(caught.value)


async def test_key_in_results() -> None:
    """Nor one that echoes it in a results file."""
    table = f"step,note\n1,{KEY}\n".encode()
    job = FineTune("ft-1", "succeeded", "ada", 0, (), result_files=(File("file-1"),))
    async with talking_to(knowing_file(len(table), answering(reply(body=table)))) as session:
        (row,) = await session.results(job)
    assert row.other == {"note": "..."}
