"""Throttle a session: if a service answers one call with 429, all calls wait. All times are in seconds."""

from __future__ import annotations

import asyncio
import random
from typing import Final, Literal

from aiofinetune.errors import FineTuneError
from aiofinetune.retry import SPREAD


class Trouble:
    """Why the calls of a session do not go through at the moment.

    Args:
        kind: Whether the service asks to slow down, or does not answer as it should.
        since: When it began, by the event loop's clock.
        until: When a call is sent next, by the same clock.
        failure: The last one.
    """

    def __init__(
        self, kind: Literal["throttled", "unreachable"], since: float, until: float, failure: FineTuneError
    ) -> None:
        self.kind: Final = kind
        self.since: Final = since
        self.until: Final = until
        self.failure: Final = failure


class Throttle:
    """Delays the calls of one session."""

    def __init__(self) -> None:
        self.count = 0
        """The number of times that the service asked the session to slow down."""
        self.until = 0.0
        """Until when no call is sent, by the event loop's clock."""
        self._spread = 0.0

    def slow_down(self, seconds: float) -> None:
        """Delay all calls by this long."""
        self.count += 1
        self.until = max(self.until, asyncio.get_running_loop().time() + seconds)
        self._spread = SPREAD * seconds

    async def wait(self, *, yields: bool) -> None:
        """Wait until calls may be sent, plus a random time, so that waiting calls do not all start at once.

        Args:
            yields: Whether to wait again if another call is throttled during the wait. If all calls did, a create that
                is throttled again and again would keep jobs from being followed and cancelled.
        """
        while (left := self.until - asyncio.get_running_loop().time()) > 0:
            await asyncio.sleep(left + random.uniform(0, self._spread))  # noqa: S311  # not a secret
            if not yields:
                return
