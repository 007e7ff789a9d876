"""How fast the creates of a batch follow one another, and how many are sent at once. All times are in seconds."""

from __future__ import annotations

import asyncio


class RateLimiter:
    """Limits the creates of a batch.

    When to go on is not guessed: the session waits as long as the service asks. What is learned is how many creates may
    go on together: additive increase, multiplicative decrease, and at least one.

    Args:
        per_second: Creates in a second; None for no limit of our own.
        max_at_once: Creates that are sent at once.
    """

    def __init__(self, per_second: float | None, max_at_once: int) -> None:
        self._gap = 0.0 if per_second is None else 1 / per_second
        self._max_at_once = max_at_once
        self._window = float(max_at_once)
        self._sending = 0
        self._next = 0.0
        self.held_until = 0.0
        """When the next create may be sent after the service throttled one, by the event loop's clock."""

    @property
    def has_room(self) -> bool:
        """Whether one more create may be sent."""
        return self._sending < int(self._window)

    def start(self) -> None:
        """Count a create as being sent."""
        self._sending += 1

    def reserve(self) -> float:
        """Reserve the time at which a create may be sent, by the event loop's clock; `held_until` may put it off."""
        reserved = max(self._next, self.held_until, asyncio.get_running_loop().time())
        self._next = reserved + self._gap
        return reserved

    def hold(self, seconds: float) -> None:
        """Send no create for so long, and fewer at once then."""
        self.held_until = max(self.held_until, asyncio.get_running_loop().time() + seconds)
        self._window = max(1.0, self._window / 2)

    def end(self, *, was_throttled: bool) -> None:
        """Note that a create has ended, and whether the service throttled this session meanwhile."""
        self._sending -= 1
        if was_throttled:
            self._window = max(1.0, self._window / 2)
        else:
            self._window = min(self._max_at_once, self._window + 1 / self._window)
