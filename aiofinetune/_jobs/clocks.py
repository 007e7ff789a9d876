"""Moments, by the clocks of this machine, and how far the clocks of a service may differ."""

from __future__ import annotations

import time
from typing import Final, NamedTuple

_AGREEMENT: Final = 1.0
"""Seconds by which this machine's two clocks may drift apart while a call is under way."""


class Moment(NamedTuple):
    """A moment by both clocks of this machine.

    Args:
        unix: By the clock that can be set, in seconds since 1970.
        steady: By the one that only runs, in seconds since some other moment.
    """

    unix: float
    steady: float

    @classmethod
    def now(cls) -> Moment:
        """This moment."""
        return cls(time.time(), time.monotonic())

    @classmethod
    def at(cls, unix: float) -> Moment:
        """The moment when the clock that can be set showed `unix`, if it was not set since."""
        return cls(unix, time.monotonic() - (time.time() - unix))

    def seconds_ago(self) -> float | None:
        """How long ago it was; None if the clocks disagree (set since, or the machine slept), or it is yet to come."""
        by_unix, by_steady = time.time() - self.unix, time.monotonic() - self.steady
        return by_steady if abs(by_unix - by_steady) <= _AGREEMENT and by_steady >= -_AGREEMENT else None
