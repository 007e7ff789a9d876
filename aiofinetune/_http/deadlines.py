"""Limit how long calls may take, with one timer for all calls of a session."""

from __future__ import annotations

import asyncio
import math
from types import TracebackType


class Deadlines:
    """The deadlines of a session's calls.

    `asyncio.timeout` sets a timer for each call and cancels it after the call; with all other timers of a call this is
    a twelfth of a create. Here a timer is set only when there is none that ends early enough: about one in the time
    that a call may take.
    """

    def __init__(self) -> None:
        self._open: set[Deadline] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._looks_at = math.inf
        """When the timer ends; infinity if there is none."""

    def close(self) -> None:
        """Cancel the timer, if there are no calls."""
        if self._timer is not None and not self._open:
            self._timer.cancel()
            self._timer, self._looks_at = None, math.inf

    def open(self, deadline: Deadline) -> None:
        """Watch a deadline."""
        self._open.add(deadline)
        if deadline.at < self._looks_at:
            self._set(deadline.at)

    def discard(self, deadline: Deadline) -> None:
        """Stop watching a deadline. The timer is left: the next call needs it again."""
        self._open.discard(deadline)

    def _set(self, at: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer, self._looks_at = asyncio.get_running_loop().call_at(at, self._look), at

    def _look(self) -> None:
        self._timer, self._looks_at = None, math.inf
        now = asyncio.get_running_loop().time()
        for deadline in [deadline for deadline in self._open if deadline.at <= now]:
            self._open.discard(deadline)
            deadline.expire()
        if self._open:
            self._set(min(deadline.at for deadline in self._open))


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

    def __enter__(self) -> None:
        task = asyncio.current_task()
        if task is None:
            raise RuntimeError("a call is made outside a task")
        self._task = task
        self._cancelling = task.cancelling()
        self.at = asyncio.get_running_loop().time() + self._seconds
        self._deadlines.open(self)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._deadlines.discard(self)
        # As in asyncio.timeout: if the task was cancelled by others too, the cancellation stays one.
        if self._has_expired and self._task.uncancel() <= self._cancelling and kind is asyncio.CancelledError:
            raise TimeoutError from error

    def expire(self) -> None:
        """Cancel the call."""
        self._has_expired = True
        self._task.cancel()
