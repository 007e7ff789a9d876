"""What a stream of a job's events is, however the service sends them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from types import TracebackType
from typing import Self

from aiofinetune.models import FineTuneEvent


class EventStream(ABC):
    """The events of a job: an async context manager, and inside it an async iterator of `FineTuneEvent`.

    ::

        async with session.stream_fine_tune_events(job.id) as events:
            async for event in events:
                print(event.message)

    The stream gives the job's history first, oldest first, then each event as it happens, each once. It ends when the
    job ends, and at nothing else.

    Where the service streams events, the end is its ``[DONE]``. If the connection breaks or falls silent, the stream
    reconnects: the service replays the history, and the events that were already returned are skipped by their
    position, because events have no ids and their times may be equal. Leaving the context closes the connection,
    wherever the stream is. Where the service does not, the list of events is read at intervals of 1 to 30 seconds, and
    the end is a terminal status of the job, after which the list is read once more. What was given is then skipped by
    its id, or in a list without ids by its place.

    A read may be cancelled and repeated later. If it is cancelled while the stream is connecting, the next read starts
    to connect again, so reads that are always cancelled too soon never connect. This does not count as a failure.

    Raises, while it is read:
        StreamInterrupted: The connection kept breaking without a new event; the last cause is chained.
        StreamHistoryChanged: After a reconnect the service replayed a different history, or its list has another one.
        APIError: The service sent an error in place of an event, or refused to continue.
        ProtocolViolation: The service sent something that is not an event of a job, or a page or JSON in place of the
            stream.
    """

    __slots__ = ()

    @abstractmethod
    async def __aenter__(self) -> Self: ...

    @abstractmethod
    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None: ...

    def __aiter__(self) -> Self:
        return self

    @abstractmethod
    async def __anext__(self) -> FineTuneEvent: ...
