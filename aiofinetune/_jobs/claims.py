"""Keep track of the jobs and files that belong to calls of a session, and of calls whose results look alike."""

from __future__ import annotations

import asyncio
import time
import weakref
from collections import OrderedDict
from collections.abc import AsyncIterator, Container, Hashable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from types import TracebackType
from typing import Final, Generic, TypeVar

from aiofinetune._jobs.matching import CLOCK_SLACK

T = TypeVar("T")

_KEPT: Final = 10_000
"""The number of ids that are always kept. They take a few megabytes."""


class Claims:
    """The ids of the jobs and files that belong to calls of a session, so that no search takes them for another call's.

    A call that its caller has recorded has an owner, the name of that record. Whether the caller recorded the result
    too is not known: it may have been cancelled just then. So a search for the same record finds what the call made.

    An id is forgotten once its job or file is older than every call in progress, because its date then tells it apart
    from what those calls make. At least `_KEPT` ids are always kept, because a search for the job of an earlier run may
    go further back.
    """

    def __init__(self) -> None:
        # Of a plain dictionary, the first of many is found slowly once others before it were deleted.
        self._ids: OrderedDict[str, tuple[float, Hashable]] = OrderedDict()
        self._calls: dict[_Call, float] = {}

    def __contains__(self, name: object) -> bool:
        return name in self._ids

    def call(self) -> _Call:
        """Return a context manager that marks a call as in progress.

        In it no id is forgotten that could be taken for the result of this call.
        """
        return _Call(self._calls)

    def add(self, name: str, owner: Hashable = None) -> None:
        """Claim an id, and forget those that are too old to matter."""
        now = time.monotonic()
        self._ids[name] = now, owner
        if len(self._ids) > _KEPT:
            self._forget(now)

    def _forget(self, now: float) -> None:
        # Dictionaries keep their order, so the first value of each is the oldest time. The slack is doubled because the
        # service's times are in whole seconds and its clocks differ.
        oldest = next(iter(self._calls.values()), now) - 2 * CLOCK_SLACK
        while len(self._ids) > _KEPT and next(iter(self._ids.values()))[0] < oldest:
            self._ids.popitem(last=False)

    def withdraw(self, name: str) -> None:
        """Forget an id that turned out not to be the call's."""
        self._ids.pop(name, None)

    def of_others(self, owner: Hashable) -> Container[str]:
        """Return the ids, now and later, that a search for a recorded call must ignore: all but its owner's."""
        return _OfOthers(self._ids, owner)


class _OfOthers(Container[str]):
    def __init__(self, ids: Mapping[str, tuple[float, Hashable]], owner: Hashable) -> None:
        self._ids = ids
        self._owner = owner

    def __contains__(self, name: object) -> bool:
        claim = self._ids.get(name) if isinstance(name, str) else None
        return claim is not None and (self._owner is None or claim[1] != self._owner)


class _Call:
    """A call in progress, which is among `calls` with the time of its start."""

    __slots__ = ("_calls",)

    def __init__(self, calls: dict[_Call, float]) -> None:
        self._calls = calls

    def __enter__(self) -> None:
        self._calls[self] = time.monotonic()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        del self._calls[self]


class Group(Generic[T]):
    """The requests of a session whose results look alike in the service's list.

    Any number of them may be sent at once, each in the group's context. If the reply to one is lost, the search for its
    result runs alone: after the requests that are being sent have ended, and before a new one starts.
    """

    def __init__(self) -> None:
        self.lost: list[T] = []
        """The requests whose reply was lost and whose result is not found yet."""
        self.is_contested = False
        """Whether several were lost at once, so that their results cannot be told apart."""
        self._sending = 0
        self._searching = 0
        self._all_sent = asyncio.Event()
        self._none_searching = asyncio.Event()
        self._search = asyncio.Lock()

    @property
    def is_searching(self) -> bool:
        """Whether a search is running."""
        return self._searching > 0

    async def wait_for_searches(self) -> None:
        """Wait until no search is running."""
        # A loop, because a new search may start before this task runs again.
        while self._searching:
            await self._none_searching.wait()

    def __enter__(self) -> None:
        self._sending += 1

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._sending -= 1
        if self._searching:
            self._all_sent.set()

    @contextmanager
    def losing(self, what: T) -> Iterator[None]:
        """List a request as lost, within the context."""
        self.lost.append(what)
        try:
            yield
        finally:
            self.lost.remove(what)

    @asynccontextmanager
    async def searching(self) -> AsyncIterator[None]:
        """Run a search alone: no other search runs, and no request is being sent."""
        self._searching += 1
        self._none_searching.clear()
        try:
            async with self._search:
                while self._sending:
                    self._all_sent.clear()
                    await self._all_sent.wait()
                yield
        finally:
            self._searching -= 1
            if not self._searching:
                self._none_searching.set()


class Groups(Generic[T]):
    """The groups of the calls in progress, by what their results have in common in the service's list."""

    def __init__(self) -> None:
        # Weak, so that a group lasts for as long as a call uses it.
        self._groups: weakref.WeakValueDictionary[str, Group[T]] = weakref.WeakValueDictionary()

    def named(self, name: str) -> Group[T]:
        """Return the group of a name, such as a training file's id."""
        group = self._groups.get(name)
        if group is None:
            group = self._groups[name] = Group()
        return group
