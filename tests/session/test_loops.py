"""One session, several event loops, threads or processes: refused in our own words, before anything is sent."""

from __future__ import annotations

import asyncio
import gc
import multiprocessing
import threading
import warnings
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, TypeAlias

import aiohttp
import pytest

from aiofinetune import ConfigurationError, EventStream, FineTuneError, FineTuneEvent, FineTuneRequest, FineTuneSession
from aiofinetune.batch import _batch as batch
from aiofinetune.local import LocalServer
from tests.servers.rawserver import JOB, KEY, STREAM_HEAD, Received, answering, chunk, event, reply, serve, session_for

Call: TypeAlias = Callable[[FineTuneSession], Awaitable[object]]

REQUEST: Final = FineTuneRequest(training_file="file-1", model="ada")
MODELS: Final = {"object": "list", "data": []}


async def follow(session: FineTuneSession) -> None:
    async with session.stream_fine_tune_events("ft-1") as events:
        async for _ in events:
            pass


async def run_batch(session: FineTuneSession) -> None:
    async with batch.Batch(session, [REQUEST]) as running:
        await running.run()


CALLS: Final[dict[str, Call]] = {
    "list": lambda session: session.list_models(),
    "create": lambda session: session.create_fine_tune(REQUEST),
    "upload": lambda session: session.upload_file(b"{}"),
    "download": lambda session: session.download_file("file-1"),
    "delete": lambda session: session.delete_file("file-1"),
    "wait": lambda session: session.wait("ft-1"),
    "stream": follow,
    "find": lambda session: session._recovery.find(REQUEST, 1.0),
    "batch": run_batch,
}
calls = pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)


@contextmanager
def served(seen: list[Received], *replies: bytes) -> Iterator[str]:
    """A server in a thread and a loop of its own."""
    urls: list[str] = []
    is_up, is_over = threading.Event(), asyncio.Event()
    loops: list[asyncio.AbstractEventLoop] = []

    async def run() -> None:
        loops.append(asyncio.get_running_loop())
        async with serve(answering(*(replies or [reply(body=MODELS)]), seen=seen)) as url:
            urls.append(url)
            is_up.set()
            await is_over.wait()

    thread = threading.Thread(target=asyncio.run, args=(run(),))
    thread.start()
    is_up.wait()
    try:
        yield urls[0]
    finally:
        loops[0].call_soon_threadsafe(is_over.set)
        thread.join()


@contextmanager
def sockets_of_a_closed_loop() -> Iterator[None]:
    """Let pass that asyncio warns of sockets which a closed loop has left open: nothing can close them."""
    try:
        yield
    finally:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "unclosed", ResourceWarning)
            gc.collect()


async def _call(call: Call, session: FineTuneSession) -> None:
    await call(session)


@calls
def test_second_run(call: Call) -> None:
    """A session that was used in one asyncio.run is refused in the next one, and sends nothing there."""
    seen: list[Received] = []
    with served(seen) as url, sockets_of_a_closed_loop():
        session = session_for(url)
        asyncio.run(_call(CALLS["list"], session))
        with pytest.raises(ConfigurationError, match="another event loop"):
            asyncio.run(_call(call, session))
        asyncio.run(session.aclose())
        del session
    assert len(seen) == 1


@calls
async def test_second_thread(call: Call) -> None:
    """A session in use on one loop is refused on another thread's, and goes on where it belongs."""
    seen: list[Received] = []
    async with serve(answering(reply(body=MODELS), seen=seen)) as url, session_for(url) as session:
        await session.list_models()
        with pytest.raises(ConfigurationError, match="another event loop"):
            await asyncio.to_thread(asyncio.run, _call(call, session))
        with pytest.raises(ConfigurationError, match="another event loop"):
            await asyncio.to_thread(asyncio.run, session.aclose())
        assert await session.list_models() == ()
    assert len(seen) == 2


@calls
async def test_borrowed_session_of_another_loop(call: Call) -> None:
    """An aiohttp session of another loop is refused before anything is sent with it."""
    seen: list[Received] = []
    async with serve(answering(reply(body=JOB), seen=seen)) as url, aiohttp.ClientSession() as http:
        session = FineTuneSession(KEY, base_url=url, http=http)
        with pytest.raises(ConfigurationError, match="another event loop"):
            await asyncio.to_thread(asyncio.run, _call(call, session))
        await asyncio.to_thread(asyncio.run, session.aclose())
        assert not http.closed
    assert seen == []


def test_first_use_decides() -> None:
    """A session is bound by its first call, not by where it was made or entered."""
    with served([]) as url:
        session = session_for(url)

        async def use() -> None:
            async with session:
                await session.list_models()

        asyncio.run(session.__aenter__())
        asyncio.run(use())


def test_stream_of_another_loop() -> None:
    """An event stream is read only where it was opened; leaving it elsewhere raises nothing foreign."""
    with served([], STREAM_HEAD + chunk(event("a"))) as url, sockets_of_a_closed_loop():
        session = session_for(url)

        async def start(session: FineTuneSession) -> EventStream:
            events = await session.stream_fine_tune_events("ft-1").__aenter__()
            assert (await anext(events)).message == "a"
            return events

        async def go_on(events: EventStream) -> FineTuneEvent:
            async with events:
                return await anext(events)

        events = asyncio.run(start(session))
        with pytest.raises(ConfigurationError, match="another event loop"):
            asyncio.run(go_on(events))
        asyncio.run(events.__aexit__(None, None, None))
        asyncio.run(session.aclose())
        del events, session


async def test_stream_in_another_thread() -> None:
    """A stream that another thread tries to read is closed in the loop that it belongs to."""
    closed = asyncio.Event()

    async def handler(request: Received, writer: asyncio.StreamWriter) -> None:
        writer.write(STREAM_HEAD + chunk(event("a")))
        await request.gone()
        closed.set()

    async def go_on(events: EventStream) -> FineTuneEvent:
        return await anext(events)

    async with serve(handler) as url, session_for(url) as session:
        async with session.stream_fine_tune_events("ft-1") as events:
            assert (await anext(events)).message == "a"
            with pytest.raises(ConfigurationError, match="another event loop"):
                await asyncio.to_thread(asyncio.run, go_on(events))
        await closed.wait()


def _in_a_fork(session: FineTuneSession, said: Path) -> None:
    async def use() -> None:
        try:
            async with session:
                await session.list_models()
        except FineTuneError as error:
            said.write_text(f"{type(error).__name__}: {error}")

    asyncio.run(use())


@pytest.mark.filterwarnings("ignore:This process.*is multi-threaded:DeprecationWarning")
async def test_fork(tmp_path: Path) -> None:
    """A forked process is refused, and leaves the connections of its parent alone."""
    seen: list[Received] = []
    async with serve(answering(reply(body=MODELS), seen=seen)) as url, session_for(url) as session:
        await session.list_models()
        process = multiprocessing.get_context("fork").Process(target=_in_a_fork, args=(session, tmp_path / "said"))
        process.start()
        await asyncio.to_thread(process.join)
        assert await session.list_models() == ()
    assert process.exitcode == 0
    assert (tmp_path / "said").read_text().startswith("ConfigurationError: the session was created in another process")
    assert len(seen) == 2


async def test_server_left_in_another_thread(tmp_path: Path) -> None:
    """A server that another thread's loop tries to leave refuses, and goes on."""
    async with LocalServer(tmp_path, api_key=KEY) as server, session_for(server.base_url) as session:
        with pytest.raises(ConfigurationError, match="another event loop"):
            await asyncio.to_thread(asyncio.run, server.__aexit__(None, None, None))
        assert await session.list_models()


async def test_batch_read_in_another_thread() -> None:
    """A batch that another thread's loop tries to read or to leave refuses, and goes on where it was entered."""
    ended = {**JOB, "status": "succeeded", "fine_tuned_model": "ada:ft-1"}
    async with (
        serve(answering(reply(body=ended))) as url,
        session_for(url) as session,
        batch.Batch(session, []) as running,
    ):
        for call in (running.run(), running.__aexit__(None, None, None)):
            with pytest.raises(ConfigurationError, match="another event loop"):
                await asyncio.to_thread(asyncio.run, call)
        assert await running.run() == []
