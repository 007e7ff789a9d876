"""Follow the events of a job at a service that only lists them: read the list at intervals."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import aclosing
from types import TracebackType
from typing import Final, Self

from aiofinetune import _observe
from aiofinetune._http.caller import Caller
from aiofinetune._jobs.events import EventStream
from aiofinetune._jobs.ordering import is_newest_first, oldest_first
from aiofinetune._jobs.reconnecting import note_resumed, pause_after
from aiofinetune.errors import BadRequest, FineTuneError, NotFound, RateLimited
from aiofinetune.models import FineTuneEvent
from aiofinetune.retry import Retry

_MIN_PAUSE: Final = 1.0
_MAX_PAUSE: Final = 30.0
"""The bounds, in seconds, of the pause between two looks. It grows while nothing happens."""
_GROWTH: Final = 1.5
ONCE: Final = Retry(attempts=1)
"""A look is not retried by itself: failures are counted over all looks, also over those that were cancelled."""


class PolledEvents(EventStream):
    """The events of a job that the service only lists, read at intervals.

    Args:
        caller: Makes the calls.
        fine_tune_id: The id of the job.
    """

    __slots__ = (
        "_caller",
        "_failing_since",
        "_failures",
        "_given",
        "_has_looked",
        "_id",
        "_is_done",
        "_is_open",
        "_is_over",
        "_last_id",
        "_new",
        "_newest_first",
        "_next_at",
        "_note_closed",
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
        self._has_looked = False
        """Whether any look has succeeded."""
        self._is_over = False
        """Whether the job has ended, so that the next look at its events is the last."""
        self._is_done = False
        self._next_at = 0.0
        self._pause = _MIN_PAUSE
        self._failures = 0
        """The number of looks that failed since the last one that did not."""
        self._failing_since = 0.0
        self._note_closed: Callable[[], object] | None = None
        """Tells the observer that this stream is closed, if it was told of the opening."""

    async def __aenter__(self) -> Self:
        self._is_open, self._has_looked = True, False
        self._next_at, self._failures = _now(), 0
        try:
            while not self._has_looked:
                await self._wait_and_look()
        except BaseException:
            self._is_open = False
            raise
        if _observe.observer is not None:
            self._note_closed = _observe.observer.stream_opened()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._new.clear()
        self._is_open = False
        if self._note_closed is not None:
            self._note_closed()
            self._note_closed = None

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
        if (seconds := self._next_at - _now()) > 0:
            await asyncio.sleep(seconds)
        try:
            await self._look()
        except FineTuneError as error:
            failure = error
        else:
            return
        # Outside the except block, as in `SentEvents`: an error that is raised must not have itself as its context.
        self._fail(failure)

    async def _look(self) -> None:
        """Read the list of events, and the job's status if that may have ended the list."""
        is_first, is_last = not self._has_looked, self._is_over
        events = await self._unseen(is_last=is_last)
        is_over = is_last
        if not is_last and (is_first or not events):
            endpoint = self._caller.endpoints.retrieve_fine_tune
            is_over = (await self._caller.exchange(endpoint, self._id, policy=ONCE))[0].is_terminal
        # No await from here on: a look that is cancelled has no effect, and the next one reads the same events.
        self._keep(events)
        self._new = events[::-1]
        self._is_over, self._is_done = is_over, is_last
        self._has_looked = True
        note_resumed(self._id, self._failures)
        self._failures = 0
        self._pause = _MIN_PAUSE if events else min(self._pause * _GROWTH, _MAX_PAUSE)
        # The last events may have come between the two calls, so after the end they are read once more, at once.
        self._next_at = _now() + (0 if is_over else self._pause)

    def _keep(self, events: list[FineTuneEvent]) -> None:
        """Note what is given next."""
        self._given.update(map(_identity, events))
        if events:
            self._last_id = events[-1].id

    async def _unseen(self, *, is_last: bool) -> list[FineTuneEvent]:
        """Return the events that were not given yet, oldest first.

        Where the oldest come first, only those after the last one are read; where the newest do, the cursor leads into
        the past, so the pages are read until a known event. The last look reads the whole list: a service that changed
        the order meanwhile, or added an event late, has not told all of them to the looks before.
        """
        after = self._last_id if self._newest_first is False and not is_last else None
        try:
            found = await self._read(after, is_last=is_last)
        except (BadRequest, NotFound):
            if after is None:
                raise
            # The service may not keep all events, and no longer know the last one.
            found = await self._read(None, is_last=is_last)
        learnt = self._caller.dialect.newest_first if self._newest_first is None else self._newest_first
        newest_first = is_newest_first(list(found.values()), otherwise=learnt)
        events = [event for name, event in found.items() if name not in self._given]
        return oldest_first(events, newest_first=newest_first)

    async def _read(self, after: str | None, *, is_last: bool) -> dict[int, FineTuneEvent]:
        """Return the events of the list after a cursor, by their identities, up to the first page with a known one."""
        found: dict[int, FineTuneEvent] = {}
        has_more = False
        endpoint = self._caller.endpoints.list_fine_tune_events
        async with aclosing(self._caller.pages(endpoint, self._id, after=after, policy=ONCE)) as pages:
            async for page, _reply in pages:
                found.update((_identity(event), event) for event in page.data)
                has_more = page.has_more
                if self._newest_first is None:
                    self._learn_order(list(found.values()))
                if self._newest_first and not is_last and any(_identity(event) in self._given for event in page.data):
                    has_more = False
                    break
        if has_more:
            self._caller.note_partial(endpoint)
        return found

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
        """Schedule another look after a failure, or give up after too many; see `pause_after`."""
        now = _now()
        if self._failures == 0:
            self._failing_since = now
        self._failures += 1
        elapsed = now - self._failing_since
        policy = self._caller.policy
        seconds = pause_after(self._id, policy, failure, self._failures, elapsed, was_open=self._has_looked)
        self._next_at = now + seconds
        if isinstance(failure, RateLimited):
            self._caller.throttle.slow_down(seconds if failure.retry_after is None else failure.retry_after)


def _identity(event: FineTuneEvent) -> int:
    return hash(event.id or (event.created_at, event.level, event.message))


def _now() -> float:
    """Return the time of the event loop's clock, which cannot be set."""
    return asyncio.get_running_loop().time()
