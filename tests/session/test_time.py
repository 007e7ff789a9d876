"""Timeouts, the session's and the caller's, and cancellation."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from asyncio import StreamWriter

import pytest

from aiofinetune import ConnectFailed, CreateUncertain, ReplyTimeout
from tests.servers.rawserver import STREAM_HEAD, Received, chunk, reply, session_for, talking_to, targets
from tests.session.calls import MODELS, ONCE, REQUEST, Call, create, list_models

pytestmark = pytest.mark.fastforward


async def silent(request: Received, _writer: StreamWriter) -> None:
    await request.gone()


@pytest.mark.parametrize("call", [list_models, lambda session: session.upload_file(b"x")])
async def test_reply_timeout(call: Call) -> None:
    """A service that never answers is given up: a transport's failure, and a TimeoutError."""
    async with talking_to(silent, retry=ONCE) as session:
        with pytest.raises(ReplyTimeout) as caught:
            await call(session)
        assert isinstance(caught.value, TimeoutError)


async def test_reply_that_drips() -> None:
    """A reply has one time in all: a byte now and then does not stretch it."""

    async def handler(_request: Received, writer: StreamWriter) -> None:
        writer.write(STREAM_HEAD)
        with contextlib.suppress(ConnectionError):
            while not writer.is_closing():
                writer.write(chunk(b" "))
                await writer.drain()
                await asyncio.sleep(10)

    async with talking_to(handler, retry=ONCE) as session:
        with pytest.raises(ReplyTimeout):
            await session.list_models()


async def test_get_is_repeated_after_a_timeout() -> None:
    """A GET that was not answered in time is sent again; a create is not."""
    seen: list[Received] = []

    async def handler(request: Received, writer: StreamWriter) -> None:
        seen.append(request)
        if request.method == "GET" and len(seen) > 1:
            writer.write(reply(body=MODELS))
        else:
            await request.gone()

    async with talking_to(handler) as session:
        assert await session.list_models()
        assert len(seen) > 1
        with pytest.raises(CreateUncertain):
            await session.create_fine_tune(REQUEST)
    assert targets(seen).count("POST /v1/fine-tunes") == 1


async def test_connect_timeout() -> None:
    """A connection that is not made in time surely carried nothing: that it failed is all that is said."""
    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        address = full.getsockname()
        # Fills the queue of connections, so that the next is not answered.
        waiting = [socket.socket() for _ in range(4)]
        for each in waiting:
            each.setblocking(False)
            each.connect_ex(address)
        try:
            async with session_for(f"http://127.0.0.1:{address[1]}/v1", retry=ONCE) as session:
                with pytest.raises(ConnectFailed):
                    await session.create_fine_tune(REQUEST)
        finally:
            for each in waiting:
                each.close()


@pytest.mark.parametrize("call", [list_models, create, lambda session: session.upload_file(b"x")])
async def test_cancellation(call: Call) -> None:
    """A cancelled call stays cancelled, is not sent again, and frees its connection."""
    came, gone = asyncio.Event(), asyncio.Event()
    seen: list[Received] = []

    async def handler(request: Received, _writer: StreamWriter) -> None:
        seen.append(request)
        came.set()
        await request.gone()
        gone.set()

    async with talking_to(handler) as session:
        task = asyncio.ensure_future(call(session))
        await came.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await gone.wait()
    assert len(seen) == 1


async def test_callers_own_timeout() -> None:
    """A caller's own `asyncio.timeout` ends a call with a plain TimeoutError, none of ours."""
    async with talking_to(silent) as session:
        with pytest.raises(TimeoutError) as caught:
            async with asyncio.timeout(10):
                await session.list_models()
        assert type(caught.value) is TimeoutError
