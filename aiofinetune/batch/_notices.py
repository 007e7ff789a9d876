"""Say what a batch waits for: at once, then once a minute, and when it is over. No I/O."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from aiofinetune.batch._outcomes import Wait

_INTERVAL: Final = 60.0
"""The number of seconds between two lines about the same kind of wait."""

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
    """The lines about one batch's waits. No line about the same kind of wait follows another within a minute."""

    def __init__(self) -> None:
        self._told_at: dict[str, float] = {}
        """When the last line about each kind was returned."""
        self._told: dict[str, Wait] = {}
        """The waits of which a line was returned, and whose end was not."""

    def lines(self, waits: Iterable[Wait], now: float) -> list[str]:
        """Return what to say now.

        Args:
            waits: What is being waited for, one of a kind.
            now: The event loop's time, in seconds.
        """
        lines = []
        current = {wait.kind: wait for wait in waits}
        for kind, told in list(self._told.items()):
            if kind not in current:
                del self._told[kind]
                lines.append(f"{_OVER[kind]}, after {duration(now - told.since)}")
        for kind, wait in current.items():
            if now - self._told_at.get(kind, -_INTERVAL) >= _INTERVAL:
                self._told_at[kind], self._told[kind] = now, wait
                lines.append(_line(wait, now))
        return lines


def _line(wait: Wait, now: float) -> str:
    lasted = "" if now - wait.since < 1 else f" for {duration(now - wait.since)} now"
    if wait.until is None:
        following = "the next one is sent when a job ends"
    else:
        following = f"the next try is in {duration(max(0.0, wait.until - now))}"
    return f"{_WHAT[wait.kind]}{lasted}: {wait.why}; {following}"


def duration(seconds: float) -> str:
    """Return a time as text for people."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {seconds} s"
