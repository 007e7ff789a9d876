"""An event loop that waits for sockets and threads alone: while they are still, its clock jumps to the next timer.

Tests marked ``fastforward`` run on it, and the machine's clocks jump with it. So a call that has a minute has a minute,
however long the machine stalls, and a minute in which nothing happens is over at once.

What a test waits for in any other way (a child process, a thread that is not the loop's own executor's) does not keep
the clock from jumping. Waits of up to a thousandth of a second are waited out.
"""

from __future__ import annotations

import asyncio
import selectors
import time
from collections.abc import Callable
from typing import Any, Final, TypeVarTuple, Unpack

Ts = TypeVarTuple("Ts")

_STILL: Final = 0.001
"""Seconds without a byte that count as stillness: loopback hands a byte over as it is sent, but for a busy kernel."""
_JUMPS: Final = 8
"""Timers in a row that may be jumped to after one wait, while no byte comes."""

# As they are before a loop makes them jump.
_monotonic, _unix_time = time.monotonic, time.time


class _Selector(selectors.DefaultSelector):
    def __init__(self) -> None:
        super().__init__()
        self.ahead = 0.0
        self.threads = 0
        self._jumps = 0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None or timeout <= _STILL or self.threads:
            return super().select(timeout)
        # Where all was still, it is looked at again and again, but not waited for each time.
        seconds = _STILL if self._jumps % _JUMPS == 0 else 0.0
        ready = super().select(seconds)
        if ready:
            self._jumps = 0
        else:
            self._jumps += 1
            self.ahead += timeout - seconds
        return ready


class DebugLoop(asyncio.SelectorEventLoop):
    """A loop that makes the checks of asyncio's debug mode, but keeps no stack with each future and timer.

    Those stacks take a third of the time of a test.
    """

    def get_debug(self) -> bool:
        """Deny it to futures and timers, which alone ask here."""
        return False


class FastForwardLoop(DebugLoop):
    """A loop whose clock jumps, and which makes the machine's clocks jump with it while it runs."""

    def __init__(self) -> None:
        self._waits = _Selector()
        super().__init__(self._waits)

    def time(self) -> float:
        """Seconds, those that were jumped over included."""
        return _monotonic() + self._waits.ahead

    def run_forever(self) -> None:
        """Run, and let the machine's clocks show what this loop's does."""
        time.monotonic, time.time = self.time, self._unix_time
        try:
            super().run_forever()
        finally:
            time.monotonic, time.time = _monotonic, _unix_time

    def jump(self, seconds: float) -> None:
        """Let time pass in which this loop does not run, as on a machine that is busy."""
        self._waits.ahead += seconds

    def _unix_time(self) -> float:
        return _unix_time() + self._waits.ahead

    def run_in_executor(self, executor: Any, func: Callable[[Unpack[Ts]], Any], *args: *Ts) -> asyncio.Future[Any]:
        """Run in a thread, in real time."""
        future = super().run_in_executor(executor, func, *args)
        self._waits.threads += 1
        future.add_done_callback(self._back)
        return future

    async def shutdown_asyncgens(self) -> None:
        """Begin to close: what is waited for after this is threads alone, in real time."""
        self._waits.threads += 1
        await super().shutdown_asyncgens()

    def _back(self, _future: asyncio.Future[Any]) -> None:
        self._waits.threads -= 1
