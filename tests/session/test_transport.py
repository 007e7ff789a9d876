"""One timer for many waits."""

from __future__ import annotations

import asyncio

import pytest

from aiofinetune._http.reply_body import _Watch

pytestmark = pytest.mark.fastforward


async def test_watch() -> None:
    """Each wait may last for its time, whenever the timer that they share was set; time between waits is free."""
    clock = asyncio.get_running_loop()
    start = clock.time()
    broken: asyncio.Future[str] = clock.create_future()
    watch = _Watch(100.0, lambda: broken.set_exception(ConnectionError()), lambda: False)
    with watch:
        await asyncio.sleep(0)
    await asyncio.sleep(90)
    with watch:
        await asyncio.sleep(99)
    await asyncio.sleep(500)
    assert not broken.done()
    begun = clock.time()
    with pytest.raises(TimeoutError), watch:
        await broken
    assert begun - start > 600
    assert 100 <= clock.time() - begun < 200
    watch.end()


async def test_watch_that_ended() -> None:
    """A watch that ended gives nothing up, and other failures of a wait stay what they are."""
    clock = asyncio.get_running_loop()
    given_up: list[bool] = []
    broken: asyncio.Future[str] = clock.create_future()
    watch = _Watch(100.0, lambda: given_up.append(True), lambda: False)
    clock.call_later(50, watch.end)
    clock.call_later(500, broken.set_exception, ConnectionResetError())
    with pytest.raises(ConnectionResetError), watch:
        await broken
    assert given_up == []
