"""Measure how long ago something happened, by both clocks of this machine and by the service's."""

from __future__ import annotations

import time
from typing import Final, NamedTuple

from aiofinetune.dialects._error_replies import server_time
from aiofinetune.dialects._requests import Reply

_AGREEMENT: Final = 1.0
"""The number of seconds by which this machine's two clocks may disagree about the length of an interval."""


class Moment(NamedTuple):
    """A moment by both clocks of this machine.

    Args:
        unix: By the system clock, which can be set, in seconds since 1970.
        steady: By the monotonic clock, in seconds since an arbitrary moment.
    """

    unix: float
    steady: float

    @classmethod
    def now(cls) -> Moment:
        """Return the current moment."""
        return cls(time.time(), time.monotonic())

    @classmethod
    def at(cls, unix: float) -> Moment:
        """Return the moment at which the system clock showed `unix`, assuming that it was not set since then."""
        return cls(unix, time.monotonic() - (time.time() - unix))

    def seconds_ago(self) -> float | None:
        """Return how long ago the moment was, or None if that is not known.

        It is not known if the clocks disagree, because one was set or the machine slept, or if the moment is in the
        future.
        """
        by_unix, by_steady = time.time() - self.unix, time.monotonic() - self.steady
        return by_steady if abs(by_unix - by_steady) <= _AGREEMENT and by_steady >= -_AGREEMENT else None


def at_service(reply: Reply, moment: Moment) -> float | None:
    """Return the service's time at `moment`; None if it is not known.

    The difference between two times of the service does not depend on how this machine's clock is set.
    """
    now, seconds_ago = server_time(reply), moment.seconds_ago()
    return None if now is None or seconds_ago is None else now - seconds_ago
