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

    @property
    def has_room(self) -> bool:
        """Whether one more create may be under way."""
        return self._under_way < int(self._window)

    def begin(self) -> float:
        """Count a create as under way; give the time of its turn, by the loop's clock."""
        self._under_way += 1
        turn = max(self._next, asyncio.get_running_loop().time())
        self._next = turn + self._gap
        return turn

    def put_off(self, seconds: float) -> None:
        """Let no turn come for so long, and fewer at once then."""
        self._next = max(self._next, asyncio.get_running_loop().time() + seconds)
        self._window = max(1.0, self._window / 2)

    def end(self, *, was_throttled: bool) -> None:
        """Take note that a create is over, and whether the service said meanwhile that it was too fast."""
        self._under_way -= 1
        self._window = max(1.0, self._window / 2) if was_throttled else min(self._most, self._window + 1 / self._window)
