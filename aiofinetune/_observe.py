"""What can watch calls, event streams and jobs: the log, and an observer such as `aiofinetune.telemetry`.

Nothing is watched until there is an observer, or the log records INFO.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from contextvars import ContextVar
from typing import Final, Protocol

from aiofinetune.errors import APIError, FineTuneError

_CODE: Final = r"[a-z]+(_[a-z]+)+"
"""What an error's code looks like, such as ``insufficient_quota``."""


_WORD: Final = r"[A-Za-z_-]{1,40}"


class Call:
    """One call of the API, with all its attempts.

    Args:
        method: The HTTP method.
        path: The path below the base URL; ``{}`` stands for an id.
        base_url: The base URL.
    """

    __slots__ = ("attempts", "base_url", "method", "path", "request_id", "status", "url")

    def __init__(self, method: str, path: str, base_url: str) -> None:
        self.method = method
        self.path = path
        self.base_url = base_url
        self.attempts = 0
        """The number of attempts that began."""
        self.url: str | None = None
        """The URL of the last attempt, without its query, before any redirect."""
        self.status: int | None = None
        """The HTTP status of the last attempt's reply; None if there was none."""
        self.request_id: str | None = None
        """The service's id for the last attempt; None if the reply has none."""

    def begin_attempt(self) -> None:
        """Count an attempt, of which nothing is known yet."""
        self.attempts += 1
        self.url = self.status = self.request_id = None


class Job(Protocol):
    """Watches one job of a batch."""

    def current(self) -> AbstractContextManager[object]:
        """Return a context manager in which calls are made for this job."""
        ...

    def name(self, job_id: str) -> None:
        """Note the job's id, as often as it is known."""
        ...

    def end(self, status: str, error: BaseException | None) -> None:
        """Note how the job's entry ended, or why it is no longer watched."""
        ...


class Observer(Protocol):
    """Watches what this process does at services."""

    def call(self, call: Call) -> AbstractContextManager[object]:
        """Return a context manager in which a call is made; when it exits, `call` says how its last attempt ended."""
        ...

    def retrying(self, call: Call, failure: FineTuneError, seconds: float) -> None:
        """Note that an attempt failed, and that the next one begins in `seconds`."""
        ...

    def stream_opened(self) -> Callable[[], object]:
        """Note that an event stream is open; return what to call when it is closed."""
        ...

    def reconnecting(self, failure: FineTuneError, seconds: float) -> None:
        """Note that an event stream broke, and that it connects again in `seconds`."""
        ...

    def job(self, label: str, attempt: int) -> Job:
        """Return what watches a job of a batch, from before it is created."""
        ...


observer: Observer | None = None
"""Watches everything; None if nothing does."""

has_watched: bool = False
"""Whether a call of this process was ever watched. Until then there is nothing to note and nothing to log, and a create
takes no more than the test of this flag."""

_current: Final[ContextVar[Call | None]] = ContextVar("aiofinetune_call", default=None)


def in_short(failure: BaseException) -> str:
    """Return what the log says of a failure: not the words of a service or a path, which may repeat data."""
    words = type(failure).__name__
    if isinstance(failure, APIError):
        code = failure.code or failure.type or ""
        return f"{failure.status} {words}" + (f" ({code})" if re.fullmatch(_CODE, code) else "")
    cause = failure.__cause__
    return f"{words}: {cause.strerror}" if isinstance(cause, OSError) and cause.strerror else words


def word(text: str) -> str:
    """Return a word of a service for the log, such as a status; what is no word is left out."""
    return text if re.fullmatch(_WORD, text) else "…"


@contextlib.contextmanager
def watching(call: Call) -> Iterator[Call]:
    """Return a context manager in which `call` is made: its replies are noted, and the observer watches it."""
    global has_watched  # noqa: PLW0603  # a flag of the process
    has_watched = True
    before = _current.set(call)
    try:
        with contextlib.nullcontext() if observer is None else observer.call(call):
            yield call
    finally:
        _current.reset(before)


def current() -> Call | None:
    """Return the call that is being made and watched; None if there is none."""
    return _current.get()
