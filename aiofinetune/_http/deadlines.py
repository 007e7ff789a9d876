"""Limit how long calls may take, with one timer for all calls of a session."""

from __future__ import annotations

import asyncio
import math
from types import TracebackType
from typing import Self


class Deadlines:
    """The deadlines of a session's calls.

    `asyncio.timeout` sets a timer for each call and cancels it after the call; with all other timers of a call this is
    a twelfth of a create. Here a timer is set only when there is none that ends early enough: about one in the time
    that a call may take.
    """

    def __init__(self) -> None:
        self.open: set[Deadline] = set()
        """Those of the calls under way."""
        self._timer: asyncio.TimerHandle | None = None
        self.looks_at = math.inf
        """When the timer ends; infinity if there is none."""

    def close(self) -> None:
        """Cancel the timer, if there are no calls."""
        if self._timer is not None and not self.open:
            self._timer.cancel()
            self._timer, self.looks_at = None, math.inf

    def look_at(self, at: float) -> None:
        """Look at the deadlines at this time, by the event loop's clock, instead of at a later one."""
        if self._timer is not None:
            self._timer.cancel()
        self._timer, self.looks_at = asyncio.get_running_loop().call_at(at, self._look), at

    def _look(self) -> None:
        self._timer, self.looks_at = None, math.inf
        now = asyncio.get_running_loop().time()
        for deadline in [deadline for deadline in self.open if deadline.at <= now]:
            self.open.discard(deadline)
            deadline.expire()
        if self.open:
            self.look_at(min(deadline.at for deadline in self.open))


class Deadline:
    """One call's deadline: a context manager that raises TimeoutError if its block takes longer.

    Args:
        deadlines: Those of the session.
        seconds: How long the block may take.
    """

    __slots__ = ("_cancelling", "_deadlines", "_has_expired", "_seconds", "_task", "at")

    def __init__(self, deadlines: Deadlines, seconds: float) -> None:
        self._deadlines = deadlines
        self._seconds = seconds
        self._has_expired = False

    def __enter__(self) -> Self:
        task = asyncio.current_task()
        if task is None:
            raise RuntimeError("a call is made outside a task")
        self._task = task
        self._cancelling = task.cancelling()
        self._deadlines.open.add(self)
        self.put_off(self._seconds)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        # The timer is left: the next call needs it again.
        self._deadlines.open.discard(self)
        # As in asyncio.timeout: if the task was cancelled by others too, the cancellation stays one.
        if self._has_expired and self._task.uncancel() <= self._cancelling and kind is asyncio.CancelledError:
            raise TimeoutError from error

    def put_off(self, seconds: float) -> None:
        """Let the block take so many seconds from now."""
        self.at = at = asyncio.get_running_loop().time() + seconds
        if at < self._deadlines.looks_at:
            self._deadlines.look_at(at)

    def expire(self) -> None:
        """Cancel the call."""
        self._has_expired = True
        self._task.cancel()
