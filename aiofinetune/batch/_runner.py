"""Run a batch: perform what its core decides, and tell the core what happens.

The core decides everything (see `aiofinetune.batch._core`). Here is what it does not touch: the event loop's clock and
the tasks. Each action is one call, whose result is the event that answers it.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping, Sequence
from typing import Any, Final

import attrs

from aiofinetune import _observe
from aiofinetune.batch._core import AttemptId, BatchCore, BatchState
from aiofinetune.batch._core import actions as act
from aiofinetune.batch._core import events as on
from aiofinetune.batch._records import Record
from aiofinetune.errors import FineTuneError, JournalUnusable

# Any: each takes its own action, and each note has a result of its own.
Call = Callable[[Any], Awaitable[on.Event]]
Note = Callable[[Any], object]
Write = Callable[[Sequence[Any]], Awaitable[Sequence[object]]]


_AT_ONCE: Final = 32
"""The number of actions that are performed without letting other tasks run: about a millisecond."""

_UNWATCHED: Final = contextlib.nullcontext()


class _Over(Exception):
    """The batch is over, so its tasks are cancelled at once: nothing may be told to a core that is done."""


class Runner:
    """Performs the actions of a core.

    Args:
        core: Decides.
        calls: What performs each kind of action that takes time, and returns the event that answers it.
        notes: What performs each kind of action that nothing answers.
        records: Returns what each kind of action writes to the journal.
        write: Writes the notes of several records, and returns the result or the error of each; None if there is no
            journal, and a record holds the result. It is called once for all that there is to write: a task for each
            takes a fifth of the CPU of a job.
        changed: Called whenever something may have changed.
    """

    def __init__(
        self,
        core: BatchCore,
        calls: Mapping[type[act.Action], Call],
        notes: Mapping[type[act.Action], Note],
        records: Mapping[type[act.Action], Callable[[Any], Record]],
        write: Write | None,
        changed: Callable[[], object],
    ) -> None:
        self._core = core
        self._calls = calls
        self._notes: dict[type[act.Action], Note] = {**notes, act.WakeAt: self._wake_at, act.Finish: self._finish}
        self._changed = changed
        self._records = records
        self._write = write
        self._unwritten: deque[act.Action] = deque()
        """The actions that write to the journal and are not performed yet."""
        self._is_writing = False
        self._tasks: asyncio.TaskGroup | None = None
        """The tasks of what is under way; None before the run and after it, when nothing is begun."""
        self._news = asyncio.Event()
        """Set when something happened, and the core is to decide what follows."""
        self._alarm: asyncio.TimerHandle | None = None
        self._watched: dict[AttemptId, _observe.Job] = {}
        """The attempts that are under way, if there is an observer."""
        self.finish: act.Finish | None = None
        """How the batch ended; None while it runs."""

    async def run(self, *others: Callable[[], Coroutine[Any, Any, None]]) -> None:  # Any: as `async def` has it
        """Run the batch to its end, and in the meantime `others`, such as the reading of its input."""
        try:
            async with asyncio.TaskGroup() as self._tasks:
                # It may have been stopped before it was entered.
                if self.finish is None:
                    for other in others:
                        self._tasks.create_task(other())
                    self.tell(on.Started())
                    await self._decide()
        except* _Over:
            pass
        except* Exception as failures:  # noqa: BLE001  # raised to the caller that iterates
            self.finish = act.Finish(_first(failures), None, None)
        finally:
            self._tasks = None
            self._disarm()
            for attempt in list(self._watched):
                self._end_watch(attempt, "left", None)

    def tell(self, event: on.Event) -> None:
        """Tell the core what happened, and begin what it asks for because of it; what follows is decided later."""
        self._begin(self._core.handle(event, self._now()))
        if self._tasks is not None and self.finish is None:
            self._news.set()
        else:
            self._begin(self._core.go_on(self._now()))
            self._changed()

    def _now(self) -> float:
        # Before it begins and after it ends, no decision depends on the time, and there may be no event loop.
        return 0.0 if self._tasks is None else asyncio.get_running_loop().time()

    def _begin(self, actions: Iterable[act.Action]) -> None:
        for action in actions:
            if (note := self._notes.get(type(action))) is not None:
                note(action)
                if isinstance(action, act.ReportOutcome):
                    self._end_watch(action.attempt, action.status, action.error)
            elif self._tasks is not None and type(action) in self._records:
                self._unwritten.append(action)
                self._news.set()
            elif self._tasks is not None:
                self._tasks.create_task(self._perform(action))

    async def _decide(self) -> None:
        """Have the core decide what follows, once after all that happened in one turn of the event loop."""
        while True:
            self._go_on()
            self._changed()
            if self.finish is not None:
                raise _Over
            if self._unwritten and self._write is None:
                # There are many. Let other tasks run before the others.
                await asyncio.sleep(0)
            else:
                await self._news.wait()
            self._news.clear()

    def _go_on(self) -> None:
        """Decide what follows, and begin to write the records that wait."""
        if self._write is None:
            self._write_at_once()
            return
        self._begin(self._core.go_on(self._now()))
        if self._unwritten and not self._is_writing and self._tasks is not None:
            self._is_writing = True
            self._tasks.create_task(self._write_all(self._write))

    def _write_at_once(self) -> None:
        """Decide what follows, and write the records that wait: all of them, or `_AT_ONCE` if there are more."""
        for _ in range(_AT_ONCE):
            if not self._unwritten:
                self._begin(self._core.go_on(self._now()))
                if not self._unwritten:
                    return
            event = self._recorded(self._unwritten.popleft())
            self._begin(self._core.handle(event, self._now()))
        # What the last event changed is not decided on yet.
        self._news.set()

    def _recorded(self, action: act.Action) -> on.Event:
        """Record an action without a journal, and return the event that answers it."""
        with self._watching(action):
            record = self._records[type(action)](action)
            return record.event(record.note)

    async def _write_all(self, write: Write) -> None:
        """Write the records that wait, all in one call, and repeat this with those added in the meantime."""
        while self._unwritten:
            actions = list(self._unwritten)
            self._unwritten.clear()
            records = [self._record(action) for action in actions]
            try:
                results = await write([record.note for record in records])
            except asyncio.CancelledError:
                # What happened in the meantime is written too, so that the next run need not search for it.
                rest = [self._record(each) for each in self._unwritten if not isinstance(each, act.WriteIntent)]
                self._unwritten.clear()
                await write([record.note for record in rest])
                raise
            for action, record, result in zip(actions, records, results, strict=True):
                with self._watching(action):
                    event = _event_of(record, result)
                self.tell(event)
        self._is_writing = False

    def _record(self, action: act.Action) -> Record:
        with self._watching(action):
            return self._records[type(action)](action)

    def fail(self, error: Exception) -> None:
        """End the batch by an error that belongs to no attempt."""
        if self._core.state is not BatchState.DONE:
            self.tell(on.ShellFailed(error))
        elif self.finish is not None and self.finish.failure is None:
            self.finish = attrs.evolve(self.finish, failure=error)

    async def _perform(self, action: act.Action) -> None:
        try:
            with self._watching(action):
                event = await self._calls[type(action)](action)
        except JournalUnusable as error:
            if not isinstance(action, act.AttemptAction):
                raise
            event = on.JournalFailed(action.attempt, error)
        self.tell(event)

    def _watching(self, action: act.Action) -> contextlib.AbstractContextManager[object]:
        """Return a context manager in which what is done for an attempt is watched."""
        if _observe.observer is None or not isinstance(action, act.AttemptAction):
            return _UNWATCHED
        attempt = action.attempt
        job = self._watched.get(attempt)
        if job is None:
            job = self._watched[attempt] = _observe.observer.job(attempt.label, attempt.number)
        if isinstance(action, act.WriteJobId | act.FollowStream | act.RetrieveJob):
            job.name(action.job_id)
        return job.current()

    def _end_watch(self, attempt: AttemptId, status: str, error: FineTuneError | None) -> None:
        if (job := self._watched.pop(attempt, None)) is not None:
            job.end(status, error)

    def _disarm(self) -> None:
        if self._alarm is not None:
            self._alarm.cancel()

    def _wake_at(self, action: act.WakeAt) -> None:
        self._disarm()
        if self._tasks is not None:
            self._alarm = asyncio.get_running_loop().call_at(action.at, self.tell, on.TimersDue())

    def _finish(self, action: act.Finish) -> None:
        # The tasks take a while to end, and nothing may be told to a core that is done.
        self._disarm()
        # A failure of this runner comes before.
        self.finish = self.finish or action


def _event_of(record: Record, result: object) -> on.AttemptEvent:
    """Return what came of writing a record."""
    if isinstance(result, JournalUnusable):
        return on.JournalFailed(record.attempt, record.failed(result))
    if isinstance(result, BaseException):
        raise result
    return record.event(result)


def _first(failures: BaseExceptionGroup[Exception]) -> Exception:
    # Groups may be nested: each task group wraps its tasks' errors in one.
    failure = failures.exceptions[0]
    return _first(failure) if isinstance(failure, BaseExceptionGroup) else failure
