"""Limit the rate of a batch's creates, and how many are sent at once. Times are in seconds, by the core's clock."""

from __future__ import annotations

from typing import Final

_MAX_HOLD: Final = 10.0
"""The number of seconds for which no create is sent if the service throttled one without a ``Retry-After``."""


class CreateLimiter:
    """Says when the next create may be sent, and how many at once.

    The time to wait is not estimated: it is what the service asks for. Only the number of creates that may be sent at
    once is, by additive increase and multiplicative decrease. It is at least one.
    """

    def __init__(self, per_minute: float | None, max_at_once: int) -> None:
        self._gap = 0.0 if per_minute is None else 60 / per_minute
        self._max_at_once = max_at_once
        # A float, because it grows by fractions.
        self._window = float(max_at_once)
        self._next = 0.0
        self._held_until = 0.0

    @property
    def window(self) -> int:
        """The number of creates that may be sent at once."""
        return int(self._window)

    @property
    def opens_at(self) -> float:
        """The time from which the next create may be sent."""
        return max(self._next, self._held_until)

    def take(self, now: float) -> None:
        """Note that a create is sent now."""
        self._next = max(self._next, now) + self._gap

    def hold(self, now: float, seconds: float | None) -> float:
        """Let no create be sent for as long as the service asks, and fewer at once after that; return until when."""
        self._held_until = max(self._held_until, now + (seconds or _MAX_HOLD))
        self._window = max(1.0, self._window / 2)
        return self._held_until

    def end(self, *, was_throttled: bool) -> None:
        """Note that a create was answered, and whether the service throttled the session in the meantime."""
        if was_throttled:
            self._window = max(1.0, self._window / 2)
        else:
            # This adds about one for each full window of creates, as in TCP's congestion avoidance.
            self._window = min(self._max_at_once, self._window + 1 / self._window)
