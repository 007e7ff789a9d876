"""Sessions with a `FaultServer`, and checks that they leave nothing open and do not show the key."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Final, Self

from aiofinetune import FineTuneSession, Retry, Timeout
from tests.servers.faultserver import FaultServer
from tests.servers.service import KEY

QUICK: Final = Retry(attempts=3, base=0.001, cap=1, deadline=10, grace=0.02)
"""Tries again at once, and believes after two hundredths of a second that a job which is not listed was not made."""

USUAL: Final = Timeout()
"""Times that nothing here takes."""


def session_for(server: FaultServer, *, retry: Retry = QUICK, timeout: Timeout = USUAL) -> FineTuneSession:
    """A session with the tests' key, which tries again at once."""
    return FineTuneSession(KEY, base_url=server.base_url, dialect=server.service.dialect, retry=retry, timeout=timeout)


@asynccontextmanager
async def nothing_left_open() -> AsyncIterator[None]:
    """Check that the block leaves no task running and no file, pipe or socket open."""
    tasks, files = asyncio.all_tasks(), _open_files()
    yield
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(5):
            # A connection that was closed is gone after a few rounds of the loop, however slow the machine.
            while not (asyncio.all_tasks() <= tasks and _open_files() <= files):
                await asyncio.sleep(0.001)
    assert asyncio.all_tasks() <= tasks
    assert _open_files() <= files


def _open_files() -> set[str]:
    found = set()
    for descriptor in os.listdir("/proc/self/fd"):  # noqa: PTH208  # thousands of times: pathlib takes ten times as long
        # The listing's own descriptor is closed by now.
        with contextlib.suppress(FileNotFoundError):
            found.add(f"{descriptor} {os.readlink(f'/proc/self/fd/{descriptor}')}")  # noqa: PTH115  # likewise
    return found


def chain(error: BaseException | None) -> Iterator[BaseException]:
    """An error, and all that led to it."""
    left, seen = [error], set()
    while left:
        found = left.pop()
        if found is not None and id(found) not in seen:
            seen.add(id(found))
            yield found
            left += [found.__cause__, found.__context__]


def assert_hidden(error: BaseException | None, records: list[logging.LogRecord]) -> None:
    """Check that neither an error, nor what led to it, nor the log shows the key."""
    for found in chain(error):
        shown = (str(found), repr(found), repr(found.args), repr(getattr(found, "__notes__", ())), repr(vars(found)))
        assert not [text for text in shown if KEY in text], f"{type(found).__name__} shows the key"
    for record in records:
        assert KEY not in f"{record.getMessage()} {record.args!r}", f"a log record of {record.name} shows the key"


class OnRetry(logging.Handler):
    """Calls a function when the client says in its log that it will try again."""

    def __init__(self, function: Callable[[], object]) -> None:
        super().__init__(logging.INFO)
        self._function = function

    def emit(self, record: logging.LogRecord) -> None:
        """Take a log record."""
        if ", failure " in record.getMessage():
            self._function()

    def __enter__(self) -> Self:
        logger = logging.getLogger("aiofinetune")
        self._level_before = logger.level
        logger.setLevel(min(logger.getEffectiveLevel(), logging.INFO))
        logger.addHandler(self)
        return self

    def __exit__(self, *_exception: object) -> None:
        logger = logging.getLogger("aiofinetune")
        logger.setLevel(self._level_before)
        logger.removeHandler(self)
