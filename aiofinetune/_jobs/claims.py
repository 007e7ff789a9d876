"""Which jobs and files belong to a call of this session, and the calls that a list could not tell apart."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Container, Iterator
from contextlib import asynccontextmanager, contextmanager
from types import TracebackType
from typing import Final, Generic, TypeVar

from aiofinetune._jobs.matching import CLOCK_SLACK

T = TypeVar("T")

_KEPT: Final = 10_000
"""Ids that are kept in any case: some megabytes."""


class Claims:
    """Ids of the jobs and files that belong to calls of a session, while they could be taken for another call's.

    What was made before the oldest call under way started is told from what that call made by its date; what is looked
    for from another session's record may be older.
    """

    def __init__(self) -> None:
        self._ids: dict[str, float] = {}
        self._released: set[str] = set()
        self._calls: dict[object, float] = {}

    def __contains__(self, name: object) -> bool:
        return name in self._ids

    @contextmanager
    def call(self) -> Iterator[None]:
        """While a call is under way, forget nothing that could be taken for what it makes."""
        call = object()
        self._calls[call] = time.monotonic()
        try:
            yield
        finally:
            del self._calls[call]

    def add(self, name: str) -> None:
        """Claim an id, and forget those that are too old to matter."""
        now = time.monotonic()
        self._ids[name] = now
        self._released.discard(name)
        # Both are in the order of their times. Whole seconds, and clocks that differ: hence twice the slack.
        oldest = next(iter(self._calls.values()), now) - 2 * CLOCK_SLACK
        while len(self._ids) > _KEPT and next(iter(self._ids.values())) < oldest:
            del self._ids[next(iter(self._ids))]

    def withdraw(self, name: str) -> None:
        """Forget an id that turned out not to be what the call made."""
        self._ids.pop(name, None)

    def release(self, name: str) -> None:
        """Let a search from a record find an id: the caller that got it could not write it down."""
        self._released.add(name)

    def unreleased(self) -> Container[str]:
        """The ids that no search may take."""
        return self._ids.keys() - self._released


class Group(Generic[T]):
    """Sends of one session that its service's list could not tell apart.

    Any number may be under way at once, each in the group's context. Where the reply to one is lost, it is looked for
    alone: after those under way have ended, and before a new one starts.
    """

    def __init__(self) -> None:
        self.lost: list[T] = []
        """What was sent, the reply was lost, and is not found yet."""
        self.is_contested = False
        """Whether, of several that were lost, it cannot be told which is which."""
        self._sending = 0
        self._searching = 0
        self._all_sent = asyncio.Event()
        self._none_searching = asyncio.Event()
        self._search = asyncio.Lock()

    async def wait_for_searches(self) -> None:
        """Wait until no call looks for what was lost."""
        while self._searching:
            await self._none_searching.wait()

    def __enter__(self) -> None:
        self._sending += 1

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._sending -= 1
        self._all_sent.set()

    @contextmanager
    def losing(self, what: T) -> Iterator[None]:
        """Have lost the reply to what was sent."""
        self.lost.append(what)
        try:
            yield
        finally:
            self.lost.remove(what)

    @asynccontextmanager
    async def searching(self) -> AsyncIterator[None]:
        """Be the only one that is under way."""
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
