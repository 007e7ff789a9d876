from __future__ import annotations

import asyncio

import pytest

from aiofinetune.transport import _Watch


class Clock(asyncio.SelectorEventLoop):
    """An event loop whose time is set by the test."""

    now = 0.0

    def time(self) -> float:
        """Give the time that was set."""
        return self.now

    async def set(self, now: float) -> None:
        """Set the time, and let what is due then happen."""
        self.now = now
        for _ in range(5):
            await asyncio.sleep(0)


def test_watch() -> None:
    """Each wait may last for its time, whenever the timer that they share was set; time between waits is free."""
    with asyncio.Runner(loop_factory=Clock) as runner:
        clock = runner.get_loop()
        assert isinstance(clock, Clock)

        async def main() -> None:
            broken: asyncio.Future[str] = clock.create_future()
            watch = _Watch(10.0, lambda: broken.set_exception(ConnectionError()))
            prompt: asyncio.Future[str] = clock.create_future()
            prompt.set_result("came")
            assert await watch.over(prompt) == "came"
            await clock.set(9.0)
            slow: asyncio.Future[str] = clock.create_future()
            waiting = asyncio.ensure_future(watch.over(slow))
            await clock.set(9.0)
            await clock.set(18.9)
            assert not broken.done()
            slow.set_result("came late")
            assert await waiting == "came late"
            await clock.set(500.0)
            assert not broken.done()
            waiting = asyncio.ensure_future(watch.over(broken))
            await clock.set(500.0)
            await clock.set(509.9)
            assert not broken.done()
            await clock.set(510.0)
            with pytest.raises(TimeoutError):
                await waiting
            watch.end()

        runner.run(main())


def test_watch_that_ended() -> None:
    """A watch that ended gives nothing up, and other failures of a wait stay what they are."""
    with asyncio.Runner(loop_factory=Clock) as runner:
        clock = runner.get_loop()
        assert isinstance(clock, Clock)

        async def main() -> None:
            given_up: list[bool] = []
            watch = _Watch(10.0, lambda: given_up.append(True))
            broken: asyncio.Future[str] = clock.create_future()
            waiting = asyncio.ensure_future(watch.over(broken))
            await clock.set(0.0)
            watch.end()
            await clock.set(50.0)
            broken.set_exception(ConnectionResetError())
            with pytest.raises(ConnectionResetError):
                await waiting
            assert given_up == []

        runner.run(main())
