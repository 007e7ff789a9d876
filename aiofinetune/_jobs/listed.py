"""Follow the events of a job at a service that lists them whole each time, without ids."""

from __future__ import annotations

from array import array

from aiofinetune._http.caller import Caller
from aiofinetune._jobs.polling import ONCE, PolledEvents
from aiofinetune.errors import ConnectionLost, StreamHistoryChanged
from aiofinetune.models import FineTuneEvent


class ListedEvents(PolledEvents):
    """The events of a job, read as a whole list at intervals; those that were given are told by their places.

    Args:
        caller: Makes the calls.
        fine_tune_id: The id of the job.
    """

    __slots__ = ("_places",)

    def __init__(self, caller: Caller, fine_tune_id: str) -> None:
        super().__init__(caller, fine_tune_id)
        self._places = array("q")
        """The hash of the event at each place of the list so far."""

    async def _unseen(self, *, is_last: bool) -> list[FineTuneEvent]:  # noqa: ARG002  # each look reads the whole list
        """Return the events that were not given yet, oldest first.

        Raises:
            ConnectionLost: The list is shorter than it was; a machine of the service may not know all of it yet.
            StreamHistoryChanged: There are other events in the places of those that were given.
        """
        endpoint = self._caller.endpoints.list_fine_tune_events
        events = (await self._caller.exchange(endpoint, self._id, policy=ONCE))[0].data
        if len(events) < len(self._places):
            words = f"the service lists {len(events)} events of {self._id}, after {len(self._places)}"
            raise ConnectionLost(words)
        for place, known in enumerate(self._places):
            if _identity(events[place]) != known:
                raise StreamHistoryChanged(
                    f"event {place + 1} of {self._id} is another than before: {events[place].message!r}"
                )
        return list(events[len(self._places) :])

    def _keep(self, events: list[FineTuneEvent]) -> None:
        self._places.extend(map(_identity, events))


def _identity(event: FineTuneEvent) -> int:
    return hash((event.created_at, event.level, event.message))
