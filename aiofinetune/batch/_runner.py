"""Run a batch: perform what its core decides, and tell the core what happens.

The core decides everything (see `aiofinetune.batch._core`). Here is what it does not touch: the event loop's clock and
the tasks. Each action is one call, whose result is the event that answers it.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Awaitable, Callable, Collection, Coroutine, Iterable, Mapping
from typing import Any, Final

import attrs

from aiofinetune import _observe
from aiofinetune.batch._core import AttemptId, BatchCore, BatchState
from aiofinetune.batch._core import actions as act
from aiofinetune.batch._core import events as on
from aiofinetune.errors import FineTuneError, JournalUnusable

# Any: each takes its own action.
Call = Callable[[Any], Awaitable[on.Event]]
Note = Callable[[Any], object]


_AT_ONCE: Final = 32
"""The number of actions that are performed without letting other tasks run: about a millisecond."""


class _Over(Exception):
    """The batch is over, so its tasks are cancelled at once: nothing may be told to a core that is done."""


class Runner:
    """Performs the actions of a core.

    Args:
        core: Decides.
        calls: What performs each kind of action that takes time, and returns the event that answers it.
        notes: What performs each kind of action that nothing answers.
        changed: Called whenever something may have changed.
        at_once: The kinds of actions that are performed without waiting. They then need no task, which saves a third of
            the CPU of a job that nothing is recorded of.
    """

    def __init__(
        self,
        core: BatchCore,
        calls: Mapping[type[act.Action], Call],
        notes: Mapping[type[act.Action], Note],
        changed: Callable[[], object],
        at_once: Collection[type[act.Action]],
    ) -> None:
        self._core = core
        self._calls = calls
        self._notes: dict[type[act.Action], Note] = {**notes, act.WakeAt: self._wake_at, act.Finish: self._finish}
        self._changed = changed
        self._at_once = at_once
        self._waiting: deque[act.Action] = deque()
        """The actions that need no task and are not performed yet."""
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
            if self._alarm is not None:
                self._alarm.cancel()
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
            elif self._tasks is not None and type(action) in self._at_once:
                self._waiting.append(action)
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
            if self._waiting:
                # There are many. Let other tasks run before the others.
                await asyncio.sleep(0)
            else:
                await self._news.wait()
            self._news.clear()

    def _go_on(self) -> None:
        """Perform actions that need no task, and decide what follows from all of them."""
        for _ in range(_AT_ONCE):
            if not self._waiting:
                self._begin(self._core.go_on(self._now()))
                if not self._waiting:
                    return
            _run_to_end(self._perform(self._waiting.popleft()))

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
            return contextlib.nullcontext()
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

    def _wake_at(self, action: act.WakeAt) -> None:
        if self._alarm is not None:
            self._alarm.cancel()
        if self._tasks is not None:
            self._alarm = asyncio.get_running_loop().call_at(action.at, self.tell, on.TimersDue())

    def _finish(self, action: act.Finish) -> None:
        # A failure of this runner comes before.
        self.finish = self.finish or action


def _run_to_end(call: Coroutine[Any, Any, None]) -> None:  # Any: as `async def` has it
    """Run a coroutine that never waits."""
    try:
        call.send(None)
    except StopIteration:
        return
    call.close()
    raise RuntimeError("an action waits that was to be performed at once")


def _first(failures: BaseExceptionGroup[Exception]) -> Exception:
    # Groups may be nested: each task group wraps its tasks' errors in one.
    failure = failures.exceptions[0]
    return _first(failure) if isinstance(failure, BaseExceptionGroup) else failure
