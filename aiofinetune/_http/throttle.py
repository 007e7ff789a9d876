"""Throttling: when a service answers one call with 429, every call of its session waits. All times are in seconds."""

from __future__ import annotations

import asyncio
import random

from aiofinetune.retry import SPREAD


class Throttle:
    """How long the calls of one session wait before they are sent."""

    def __init__(self) -> None:
        self.count = 0
        """How often the service asked to slow down."""
        self._until = 0.0
        self._spread = 0.0

    def slow_down(self, seconds: float) -> None:
        """Send no call for this long."""
        self.count += 1
        self._until = max(self._until, asyncio.get_running_loop().time() + seconds)
        self._spread = SPREAD * seconds

    async def wait(self) -> None:
        """Wait until calls may be sent, and then a little more, so that those who wait do not all start at once."""
        while (left := self._until - asyncio.get_running_loop().time()) > 0:  # noqa: ASYNC110  # its end is known
            await asyncio.sleep(left + random.uniform(0, self._spread))  # noqa: S311  # no secret
