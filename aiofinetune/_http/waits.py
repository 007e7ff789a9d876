"""End the waits for the next bytes of replies, with one timer for all replies of a session."""

from __future__ import annotations

import asyncio
from typing import Final, Protocol

LOOK_INTERVAL: Final = 1.0
"""The number of seconds between two looks at all waits. A wait may last too long by as much."""


class Waiter(Protocol):
    """What may wait for bytes."""

    def look(self, now: float) -> bool:
        """End the wait if it has lasted too long or nothing can arrive; return whether there still is one."""
        ...


class Waits:
    """The waits of a session's replies.

    With a timer for each reply, the timers are a third of the cost of 1,000 streams with an event a second.

    Args:
        interval: The number of seconds between two looks.
    """

    def __init__(self, interval: float) -> None:
        self._interval = interval
        self._open: set[Waiter] = set()
        self._timer: asyncio.TimerHandle | None = None

    def add(self, waiter: Waiter) -> None:
        """Look at this waiter from now on, until a look finds that it does not wait."""
        self._open.add(waiter)
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(self._interval, self._look)

    def discard(self, waiter: Waiter) -> None:
        """Look at this waiter no more."""
        self._open.discard(waiter)

    def close(self) -> None:
        """Cancel the timer, if nothing waits."""
        if self._timer is not None and not self._open:
            self._timer.cancel()
            self._timer = None

    def _look(self) -> None:
        now = asyncio.get_running_loop().time()
        self._open -= {waiter for waiter in self._open if not waiter.look(now)}
        self._timer = asyncio.get_running_loop().call_later(self._interval, self._look) if self._open else None
