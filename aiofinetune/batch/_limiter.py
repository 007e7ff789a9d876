"""Limit the rate of a batch's creates, and how many are sent at once. All times are in seconds."""

from __future__ import annotations

import asyncio


class RateLimiter:
    """Limits the creates of a batch.

    The time to wait is not estimated: the session waits for as long as the service asks. Only the number of creates
    that may be sent at once is, by additive increase and multiplicative decrease. It is at least one.

    Args:
        per_second: The maximum number of creates in a second; None for no limit.
        max_at_once: The maximum number of creates that are sent at once.
    """

    def __init__(self, per_second: float | None, max_at_once: int) -> None:
        self._gap = 0.0 if per_second is None else 1 / per_second
        self._max_at_once = max_at_once
        # A float, because it grows by fractions.
        self._window = float(max_at_once)
        self._sending = 0
        self._next = 0.0
        self.held_until = 0.0
        """When the next create may be sent after the service throttled one, by the event loop's clock."""

    @property
    def has_room(self) -> bool:
        """Whether another create may be sent."""
        return self._sending < int(self._window)

    def start(self) -> None:
        """Count a create as being sent."""
        self._sending += 1

    def reserve(self) -> float:
        """Reserve and return the time at which a create may be sent, by the event loop's clock.

        If `held_until` is later when that time comes, the caller must reserve again.
        """
        reserved = max(self._next, self.held_until, asyncio.get_running_loop().time())
        self._next = reserved + self._gap
        return reserved

    def hold(self, seconds: float) -> None:
        """Let no create be sent for `seconds`, and fewer at once after that."""
        self.held_until = max(self.held_until, asyncio.get_running_loop().time() + seconds)
        self._window = max(1.0, self._window / 2)

    def end(self, *, was_throttled: bool) -> None:
        """Count a create as ended, and record whether the service throttled the session in the meantime."""
        self._sending -= 1
        if was_throttled:
            self._window = max(1.0, self._window / 2)
        else:
            # This adds about one for each full window of creates, as in TCP's congestion avoidance.
            self._window = min(self._max_at_once, self._window + 1 / self._window)
