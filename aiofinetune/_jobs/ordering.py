"""Put the events of a list in order, whichever way the service sends them. Pure functions, no I/O."""

from __future__ import annotations

from collections.abc import Sequence

from aiofinetune.models import FineTuneEvent


def is_newest_first(events: Sequence[FineTuneEvent], otherwise: bool) -> bool:  # noqa: FBT001  # what to return
    """Return whether the newest events of a list come first, by their times; `otherwise` if these do not tell.

    Nothing else in a list tells: ids have no order that a service promises, and a page after a cursor goes on in the
    same order. Events of one second, at a service whose order is not its dialect's, stay the wrong way round until
    later events show the order.
    """
    times = [event.created_at for event in events if event.created_at is not None]
    return times[0] > times[-1] if times and times[0] != times[-1] else otherwise


def oldest_first(events: Sequence[FineTuneEvent], *, newest_first: bool) -> list[FineTuneEvent]:
    """Return the events of a list, oldest first. Events of one second keep the order in which the service has them."""
    ordered = list(reversed(events)) if newest_first else list(events)
    if all(event.created_at is not None for event in ordered):
        ordered.sort(key=lambda event: event.created_at or 0)
    return ordered
