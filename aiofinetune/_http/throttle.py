"""A pause that a service asked of one call (429), and all calls of its session keep. All times are in seconds."""

from __future__ import annotations

import asyncio
import random

from aiofinetune.retry import SPREAD


class Pause:
    """The pause of one session."""

    def __init__(self) -> None:
        self.count = 0
        """How often one was asked for."""
        self._until = 0.0
        self._spread = 0.0

    def extend(self, seconds: float) -> None:
        """Let no call begin for so long."""
        self.count += 1
        self._until = max(self._until, asyncio.get_running_loop().time() + seconds)
        self._spread = SPREAD * seconds

    async def wait(self) -> None:
        """Wait until the pause is over, and then a little, so that those who wait do not all begin at once."""
        while (left := self._until - asyncio.get_running_loop().time()) > 0:  # noqa: ASYNC110  # its end is known
            await asyncio.sleep(left + random.uniform(0, self._spread))  # noqa: S311  # no secret
