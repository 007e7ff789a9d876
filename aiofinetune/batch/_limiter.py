"""How fast the creates of a batch may follow one another. All times are in seconds."""

from __future__ import annotations

import asyncio


class Pace:
    """How fast creates may follow one another, and how many may be under way at once.

    Time is not guessed: a session's pause says when to go on. What is learned is how many may go on together:
    additive increase, multiplicative decrease, and one at the least.

    Args:
        per_second: Creates in a second; None for no limit of our own.
        most: Creates at once.
    """

    def __init__(self, per_second: float | None, most: int) -> None:
        self._gap = 0.0 if per_second is None else 1 / per_second
        self._most = most
        self._window = float(most)
        self._under_way = 0
        self._next = 0.0
        self.paused_until = 0.0
        """By the event loop's clock."""

    @property
    def has_room(self) -> bool:
        """Whether one more create may be under way."""
        return self._under_way < int(self._window)

    def begin(self) -> None:
        """Count a create as under way."""
        self._under_way += 1

    def turn(self) -> float:
        """Give a create its turn, by the event loop's clock; another is due if there is a pause meanwhile."""
        turn = max(self._next, self.paused_until, asyncio.get_running_loop().time())
        self._next = turn + self._gap
        return turn

    def pause(self, seconds: float) -> None:
        """Let no turn come for so long, and fewer at once then."""
        self.paused_until = max(self.paused_until, asyncio.get_running_loop().time() + seconds)
        self._window = max(1.0, self._window / 2)

    def end(self, *, was_throttled: bool) -> None:
        """Take note that a create is over, and whether the service said meanwhile that it was too fast."""
        self._under_way -= 1
        self._window = max(1.0, self._window / 2) if was_throttled else min(self._most, self._window + 1 / self._window)
