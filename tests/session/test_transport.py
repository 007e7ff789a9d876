"""One timer for the waits of all replies."""

from __future__ import annotations

import asyncio

import pytest

from aiofinetune import FineTuneError, ReplyTimeout, StreamInterrupted, Timeout
from aiofinetune._http.waits import Waits
from aiofinetune._jobs.stream import SentEvents
from tests.servers.rawserver import STREAM_HEAD, Received, chunk, event, talking_to
from tests.session.calls import ONCE

pytestmark = pytest.mark.fastforward


class Waiter:
    """Waits until a time."""

    def __init__(self, until: float) -> None:
        self.until = until
        self.looked_at: list[float] = []

    def look(self, now: float) -> bool:
        """Note the look."""
        self.looked_at.append(now)
        return now < self.until


async def test_all_are_looked_at_together() -> None:
    """All that wait are looked at in turn, until they wait no more or are taken out; they may come back."""
    clock = asyncio.get_running_loop()
    start = clock.time()
    waits = Waits(10.0)
    short, long, gone = Waiter(start + 15), Waiter(start + 55), Waiter(start + 1000)
    for waiter in (short, long, gone):
        waits.add(waiter)
    await asyncio.sleep(25)
    waits.discard(gone)
    await asyncio.sleep(500)
    assert [len(each.looked_at) for each in (short, long, gone)] == [2, 6, 2]
    assert short.looked_at == long.looked_at[:2]
    short.until = clock.time() + 15
    waits.add(short)
    await asyncio.sleep(500)
    assert len(short.looked_at) == 4


async def test_close() -> None:
    """A timer that nothing needs ends with the session; one that is needed goes on."""
    loop = asyncio.get_running_loop()
    waits, waiter = Waits(10.0), Waiter(loop.time() + 15)
    waits.add(waiter)
    waits.close()
    await asyncio.sleep(11)
    assert len(waiter.looked_at) == 1
    waits.discard(waiter)
    waits.close()
    await asyncio.sleep(100)
    assert len(waiter.looked_at) == 1


async def test_each_wait_has_its_time() -> None:
    """A stream may be silent for its time again and again; the time between reads is free."""
    told = asyncio.Event()

    async def handler(request: Received, writer: asyncio.StreamWriter) -> None:
        writer.write(STREAM_HEAD)
        for number in range(4):
            await asyncio.sleep(90)
            writer.write(chunk(event(str(number))))
        told.set()
        await request.gone()

    loop = asyncio.get_running_loop()
    async with (
        talking_to(handler, retry=ONCE, timeout=Timeout(stream=100)) as session,
        session.stream_fine_tune_events("ft-1") as events,
    ):
        assert [(await anext(events)).message for _ in range(3)] == ["0", "1", "2"]
        await told.wait()
        await asyncio.sleep(500)
        assert (await anext(events)).message == "3"
        begun = loop.time()
        with pytest.raises(StreamInterrupted) as caught:
            await anext(events)
        assert isinstance(caught.value.__cause__, ReplyTimeout)
        assert 100 <= loop.time() - begun < 102


async def test_two_tasks_that_read_one_stream() -> None:
    """If two tasks read at once, the second one fails, and the first one goes on."""
    goes_on = asyncio.Event()

    async def handler(request: Received, writer: asyncio.StreamWriter) -> None:
        writer.write(STREAM_HEAD + chunk(event("a")))
        await goes_on.wait()
        writer.write(chunk(event("b")))
        await request.gone()

    async with talking_to(handler, retry=ONCE) as session, session.stream_fine_tune_events("ft-1") as events:
        await anext(events)
        first = asyncio.ensure_future(anext(events))
        await asyncio.sleep(1)
        assert isinstance(events, SentEvents)
        assert events._incoming is not None
        with pytest.raises(FineTuneError, match="another task"):
            await events._incoming.read()
        goes_on.set()
        assert (await first).message == "b"
