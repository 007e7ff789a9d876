"""What the log says of a batch: what it waits for (at once, then once a minute, and when it is over), and the ends."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from typing import Final

import attrs

from aiofinetune._observe import in_short
from aiofinetune.batch._core.actions import LeaveJob, ReportOutcome
from aiofinetune.batch._outcomes import Wait
from aiofinetune.errors import FineTuneError

_log = logging.getLogger("aiofinetune.batch")

_FOR_A_PERSON: Final = ("uncertain", "vanished")
"""How an entry ends if a person must look."""

_INTERVAL: Final = 60.0
"""The number of seconds between two lines about the same kind of wait."""

_SETTLED: Final = 5.0
"""The number of seconds after which a wait that is gone counts as over: a call in between may have succeeded."""

_WHAT: Final = {
    "throttled": "the service asks to slow down",
    "full": "the service takes no more jobs",
    "unreachable": "the service does not answer as it should",
}
_OVER: Final = {
    "throttled": "the service takes requests again",
    "full": "the service takes jobs again",
    "unreachable": "the service answers again",
}


class Notices:
    """The lines about one batch's waits. No line about the same kind of wait follows another within a minute.

    Args:
        words: What to say of a failure; by default, what the log may say.
    """

    def __init__(self, words: Callable[[FineTuneError], str] = in_short) -> None:
        self._words = words
        self._told_at: dict[str, float] = {}
        """When the last line about each kind was returned."""
        self._told: dict[str, Wait] = {}
        """The waits of which a line was returned, and whose end was not."""
        self._gone_at: dict[str, float] = {}
        """Since when those are gone that are."""

    def lines(self, waits: Iterable[Wait], now: float) -> list[str]:
        """Return what to say now.

        Args:
            waits: What is being waited for, one of a kind.
            now: The event loop's time, in seconds.
        """
        lines = []
        current = {wait.kind: wait for wait in waits}
        for back in current:
            self._gone_at.pop(back, None)
        for name, told in list(self._told.items()):
            gone_at = now if name in current else self._gone_at.setdefault(name, now)
            if now - gone_at >= _SETTLED:
                del self._told[name], self._gone_at[name]
                lines.append(f"{_OVER[name]}, after {duration(gone_at - told.since)}")
        for kind, wait in current.items():
            if now - self._told_at.get(kind, -_INTERVAL) >= _INTERVAL:
                # One that was gone for a moment is the same.
                since = self._told.get(kind, wait).since
                self._told_at[kind], self._told[kind] = now, attrs.evolve(wait, since=since)
                lines.append(_line(self._told[kind], now, self._words))
        return lines


def _line(wait: Wait, now: float, words: Callable[[FineTuneError], str]) -> str:
    lasted = "" if now - wait.since < 1 else f" for {duration(now - wait.since)} now"
    if wait.until is None:
        following = "the next one is sent when a job ends"
    else:
        seconds = wait.until - now
        following = "trying again now" if seconds < 1 else f"the next try is in {duration(seconds)}"
    return f"{_WHAT[wait.kind]}{lasted}: {words(wait.error)}; {following}"


def duration(seconds: float) -> str:
    """Return a time as text for people."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {seconds} s"


def log_search(count: int) -> None:
    """Log that the jobs of so many creates are searched for, and that nothing is sent in the meantime."""
    _log.info("before anything is sent, looking for jobs of creates whose replies an earlier run missed: %d", count)


def log_left(left: LeaveJob) -> None:
    """Log that a job that may still run is no longer followed."""
    extra = {"label": left.label, "job_id": left.job_id, "event": "left"}
    _log.warning("%s: %s may still run, and is no longer followed", left.label, left.job_id, extra=extra)


def log_end(ended: ReportOutcome) -> None:
    """Log how an entry ended."""
    label, status = ended.attempt.label, ended.status
    level = logging.WARNING if status in _FOR_A_PERSON else logging.INFO
    if not _log.isEnabledFor(level):
        return
    words = status if ended.error is None or ended.job is not None else f"{status}: {in_short(ended.error)}"
    extra = {
        "label": label,
        "attempt": ended.attempt.number,
        "job_id": ended.job_id,
        "status": status,
        "event": "ended",
    }
    _log.log(level, "%s ended: %s", label, words, extra=extra)
