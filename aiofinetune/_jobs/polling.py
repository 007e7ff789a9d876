"""Follow the events of a job at a service that only lists them: read the list at intervals."""

from __future__ import annotations

import asyncio
import logging
from contextlib import aclosing
from types import TracebackType
from typing import Final, Self

from aiofinetune import retry
from aiofinetune._http.caller import Caller
from aiofinetune._jobs.events import EventStream
from aiofinetune._jobs.ordering import is_newest_first, oldest_first
from aiofinetune.errors import FineTuneError, StreamInterrupted
from aiofinetune.models import FineTuneEvent

_log = logging.getLogger("aiofinetune")

_MIN_PAUSE: Final = 1.0
_MAX_PAUSE: Final = 30.0
"""The bounds, in seconds, of the pause between two looks. It grows while nothing happens."""
_GROWTH: Final = 1.5


class PolledEvents(EventStream):
    """The events of a job that the service only lists, read at intervals.

    Args:
        caller: Makes the calls.
        fine_tune_id: The id of the job.
    """

    __slots__ = (
        "_caller",
        "_failing_since",
        "_given",
        "_id",
        "_is_done",
        "_is_open",
        "_is_over",
        "_last_id",
        "_new",
        "_newest_first",
        "_next_at",
        "_pause",
    )

    def __init__(self, caller: Caller, fine_tune_id: str) -> None:
        self._caller = caller
        self._id = fine_tune_id
        self._new: list[FineTuneEvent] = []
        """The events to return next, in reverse order."""
        self._given: set[int] = set()
        """The hashes of the ids of the events so far, which take less memory than the events."""
        self._newest_first: bool | None = None
        """The order of the list; None until the times of some events show it."""
        self._last_id: str | None = None
        """The id of the newest event so far."""
        self._is_open = False
        self._is_over = False
        """Whether the job has ended, so that the next look at its events is the last."""
        self._is_done = False
        self._next_at = 0.0
        self._pause = _MIN_PAUSE
        self._failing_since: float | None = None

    async def __aenter__(self) -> Self:
        self._is_open = True
        try:
            await self._look()
        except BaseException:
            self._is_open = False
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._new.clear()
        self._is_open = False

    async def __anext__(self) -> FineTuneEvent:
        while not self._new:
            if self._is_done:
                raise StopAsyncIteration
            if not self._is_open:
                raise FineTuneError("the event stream is not open; read it inside 'async with'")
            await self._wait_and_look()
        return self._new.pop()

    async def _wait_and_look(self) -> None:
        # The time of the next look is kept, so that a read that was cancelled during the pause can continue it.
        await asyncio.sleep(self._next_at - _now())
        try:
            await self._look()
        except FineTuneError as failure:
            self._fail(failure)

    async def _look(self) -> None:
        """Read the list of events, and the job's status if that may have ended the list."""
        is_first, is_last = not self._given, self._is_over
        events = await self._unseen()
        is_over = is_last
        if not is_last and (is_first or not events):
            is_over = (await self._caller.call(self._caller.endpoints.retrieve_fine_tune, self._id)).is_terminal
        # No await from here on: a look that is cancelled has no effect, and the next one reads the same events.
        self._given.update(map(_identity, events))
        self._new = events[::-1]
        if events:
            self._last_id = events[-1].id
        self._is_over, self._is_done = is_over, is_last
        self._failing_since = None
        self._pause = _MIN_PAUSE if events else min(self._pause * _GROWTH, _MAX_PAUSE)
        # The last events may have come between the two calls, so after the end they are read once more, at once.
        self._next_at = _now() + (0 if is_over else self._pause)

    async def _unseen(self) -> list[FineTuneEvent]:
        """Return the events that were not given yet, oldest first."""
        # Where the newest come first, the cursor leads into the past, so the pages are read until a known event.
        after = self._last_id if self._newest_first is False else None
        found: dict[int, FineTuneEvent] = {}
        endpoint = self._caller.endpoints.list_fine_tune_events
        async with aclosing(self._caller.pages(endpoint, self._id, after=after)) as pages:
            async for page, _reply in pages:
                found.update((_identity(event), event) for event in page.data)
                if self._newest_first is None:
                    self._learn_order(list(found.values()))
                if self._newest_first and any(_identity(event) in self._given for event in page.data):
                    break
        newest_first = self._caller.dialect.newest_first if self._newest_first is None else self._newest_first
        events = [event for name, event in found.items() if name not in self._given]
        return oldest_first(events, newest_first=newest_first)

    def _learn_order(self, events: list[FineTuneEvent]) -> None:
        """Learn the order of the list from the times of its events, or else from where new ones have appeared."""
        by_times = is_newest_first(events, otherwise=True)
        if by_times == is_newest_first(events, otherwise=False):
            self._newest_first = by_times
        elif events and (was_last_given := _identity(events[-1]) in self._given) != (
            _identity(events[0]) in self._given
        ):
            self._newest_first = was_last_given

    def _fail(self, failure: FineTuneError) -> None:
        """Schedule another look after a failure, or give up.

        Raises:
            StreamInterrupted: Looks have failed for too long.
            FineTuneError: The failure itself, if looking again cannot help.
        """
        now = _now()
        if self._failing_since is None:
            self._failing_since = now
        if not retry.may_pass(failure):
            raise failure
        if now - self._failing_since > self._caller.policy.deadline:
            raise StreamInterrupted(f"{failure}; the job may still be running") from failure
        self._pause = min(2 * self._pause, _MAX_PAUSE)
        self._next_at = now + self._pause
        _log.info("reading the events of %s failed: %s; reading them again in %.1f s", self._id, failure, self._pause)


def _identity(event: FineTuneEvent) -> int:
    return hash(event.id or (event.created_at, event.level, event.message))


def _now() -> float:
    """Return the time of the event loop's clock, which cannot be set."""
    return asyncio.get_running_loop().time()
