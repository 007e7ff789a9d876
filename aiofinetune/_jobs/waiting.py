"""Waiting for a job's end: by its event stream, and by a look at the job now and then."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Final

from aiofinetune import retry
from aiofinetune._jobs.stream import EventStream
from aiofinetune.errors import FineTuneError, StreamInterrupted, WaitTimeout
from aiofinetune.models import FineTune, FineTuneCancelled, FineTuneEvent, FineTuneFailed, Status
from aiofinetune.retry import Retry

_log = logging.getLogger("aiofinetune")

_MAX_EVENTS: Final = 10
"""Events that a failed job's error carries."""
_LOOK_INTERVAL: Final = 60.0
"""Seconds between two looks at a job whose stream goes on: a connection that is kept alive says nothing of the job."""
_MIN_PAUSE: Final = 1.0
_MAX_PAUSE: Final = 30.0
"""Seconds between two looks at a job whose stream does not last."""


class Waiting:
    """One wait for a job's end.

    Args:
        fine_tune_id: The job.
        retrieve: Retrieves a job.
        follow: Opens a job's event stream.
        policy: For how long the service may be out of reach.
    """

    def __init__(
        self,
        fine_tune_id: str,
        retrieve: Callable[[str], Awaitable[FineTune]],
        follow: Callable[[str], EventStream],
        policy: Retry,
    ) -> None:
        self._id = fine_tune_id
        self._retrieve = retrieve
        self._follow = follow
        self._policy = policy
        self._events: deque[FineTuneEvent] = deque(maxlen=_MAX_EVENTS)
        """The last events of the stream that is read, or was."""
        self._last: FineTune | None = None
        """The job at the last look."""

    async def wait(self, timeout: float | None) -> FineTune:  # noqa: ASYNC109  # as the session offers it
        """Wait until the job is over; return it, succeeded.

        Raises:
            FineTuneFailed: It failed.
            FineTuneCancelled: It was cancelled.
            WaitTimeout: It was not over after `timeout` seconds.
        """
        deadline = asyncio.timeout(timeout)
        try:
            async with deadline:
                job = await self._until_over()
        except TimeoutError as error:
            if not deadline.expired():
                raise
            raise WaitTimeout(f"fine-tune {self._id} was not over after {timeout} s; {self._state()}") from error
        if job.status == Status.SUCCEEDED:
            return job
        kind = FineTuneCancelled if job.status == Status.CANCELLED else FineTuneFailed
        raise kind(job, (job.events or tuple(self._events))[-_MAX_EVENTS:])

    async def _until_over(self) -> FineTune:
        streams = True
        pause = _MIN_PAUSE
        last_seen = _now()
        strange: str | None = None
        while True:
            if streams:
                streams = await self._watch()
            try:
                job = await self._look()
            except FineTuneError as failure:
                if not retry.may_pass(failure) or _now() - last_seen > self._policy.deadline:
                    raise
                _log.info("waiting for %s: %s", self._id, failure)
            else:
                last_seen = _now()
                if job.is_terminal:
                    return job
                if job.status not in Status.KNOWN and job.status != strange:
                    strange = job.status
                    _log.warning("%s has a status that the API does not name, %r; still waiting", self._id, strange)
            await asyncio.sleep(pause)
            pause = min(2 * pause, _MAX_PAUSE)

    async def _look(self) -> FineTune:
        self._last = await self._retrieve(self._id)
        return self._last

    async def _watch(self) -> bool:
        """Follow the job's events until they end, or the job is over; return whether to follow them again."""
        self._events.clear()
        stream = self._follow(self._id)
        async with asyncio.TaskGroup() as group:
            reading = group.create_task(self._read(stream))
            while not (await asyncio.wait([reading], timeout=_LOOK_INTERVAL))[0]:
                if await self._seems_over():
                    reading.cancel()
        return reading.cancelled() or reading.result()

    async def _read(self, stream: EventStream) -> bool:
        """Read a stream to its end; return whether another may do better."""
        try:
            async with stream:
                async for event in stream:
                    self._events.append(event)
        except FineTuneError as failure:
            if isinstance(failure, StreamInterrupted) or retry.may_pass(failure):
                _log.info("following %s: %s", self._id, failure)
                return True
            # Whatever is wrong with the stream, or with the job, a look at the job will tell.
            _log.info("following %s: %s; looking at it now and then instead", self._id, failure)
            return False
        return True

    async def _seems_over(self) -> bool:
        try:
            job = await self._look()
        except FineTuneError as failure:
            _log.info("looking at %s: %s", self._id, failure)
            # What does not pass, the look that follows raises.
            return not retry.may_pass(failure)
        return job.is_terminal

    def _state(self) -> str:
        """What is known of a job that was not over in time, by the last look at it."""
        if self._last is None:
            return "it goes on, as far as is known: its status was not seen"
        status = self._last.status
        if status not in Status.KNOWN:
            return f"its status is {status!r}, which the API does not name: look at the job at the service"
        return f"it goes on, and its status is {status!r}"


def _now() -> float:
    """Seconds on a clock that is never set."""
    return asyncio.get_running_loop().time()
