"""Wait for a job's end: follow its event stream, and retrieve the job at intervals."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Final

from aiofinetune import retry
from aiofinetune._jobs.events import EventStream
from aiofinetune._observe import in_short, word
from aiofinetune.errors import FineTuneError, StreamInterrupted, WaitTimeout
from aiofinetune.models import FineTune, FineTuneCancelled, FineTuneEvent, FineTuneFailed, Status
from aiofinetune.retry import Retry

_log = logging.getLogger("aiofinetune")

_MAX_EVENTS: Final = 10
"""The number of events that the error of a failed job carries."""
_LOOK_INTERVAL: Final = 60.0
"""The number of seconds between two looks at a job while its stream is open. An open stream is no proof that the job is
still active: a proxy may keep the connection alive."""
_MIN_PAUSE: Final = 1.0
_MAX_PAUSE: Final = 30.0
"""The bounds, in seconds, of the pause between two looks at a job whose stream ended before the job."""


class Waiting:
    """One wait for a job's end.

    Args:
        fine_tune_id: The id of the job.
        retrieve: Retrieves a job.
        follow: Opens a job's event stream.
        policy: Its deadline limits how long the service may be unreachable.
        on_event: Called with each event, once.
        on_end: Called with the job when it has ended, whatever its status.
    """

    def __init__(
        self,
        fine_tune_id: str,
        retrieve: Callable[[str], Awaitable[FineTune]],
        follow: Callable[[str], EventStream],
        policy: Retry,
        on_event: Callable[[FineTuneEvent], object] | None = None,
        on_end: Callable[[FineTune], object] | None = None,
    ) -> None:
        self._id = fine_tune_id
        self._retrieve = retrieve
        self._follow = follow
        self._policy = policy
        self._on_event = on_event
        self._on_end = on_end
        self._reported = 0
        """The number of events that `on_event` was called with. Each stream begins with the first event."""
        self._events: deque[FineTuneEvent] = deque(maxlen=_MAX_EVENTS)
        """The last events of the current stream, or of the last one."""
        self._last: FineTune | None = None
        """The job as it was at the last look."""

    async def wait(self, timeout: float | None) -> FineTune:  # noqa: ASYNC109  # the same as in the session
        """Wait until the job succeeds, and return it.

        Raises:
            FineTuneFailed: The job failed.
            FineTuneCancelled: The job was cancelled.
            WaitTimeout: The job did not end within `timeout` seconds.
        """
        deadline = asyncio.timeout(timeout)
        try:
            async with deadline:
                job = await self._until_over()
        except TimeoutError as error:
            if not deadline.expired():
                # A TimeoutError of the call itself, such as ReplyTimeout.
                raise
            raise WaitTimeout(f"fine-tune {self._id} did not end within {timeout} s; {self._state()}") from error
        if self._on_end is not None:
            self._on_end(job)
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
                _log.info("retrieving %s failed: %s; still waiting", self._id, in_short(failure))
            else:
                last_seen = _now()
                if job.is_terminal:
                    return job
                if job.status not in Status.KNOWN and job.status != strange:
                    strange = job.status
                    _log.warning("%s has the unknown status %r; still waiting", self._id, word(strange))
            await asyncio.sleep(pause)
            pause = min(2 * pause, _MAX_PAUSE)

    async def _look(self) -> FineTune:
        self._last = await self._retrieve(self._id)
        return self._last

    async def _watch(self) -> bool:
        """Follow the job's events until they end or the job ends; return whether to follow them again."""
        self._events.clear()
        stream = self._follow(self._id)
        async with asyncio.TaskGroup() as group:
            reading = group.create_task(self._read(stream))
            while not (await asyncio.wait([reading], timeout=_LOOK_INTERVAL))[0]:
                if await self._seems_over():
                    reading.cancel()
        return reading.cancelled() or reading.result()

    async def _read(self, stream: EventStream) -> bool:
        """Read a stream to its end; return whether opening another one may help."""
        try:
            async with stream:
                count = 0
                async for event in stream:
                    self._events.append(event)
                    count += 1
                    if self._on_event is not None and count > self._reported:
                        self._reported = count
                        self._on_event(event)
        except FineTuneError as failure:
            if isinstance(failure, StreamInterrupted) or retry.may_pass(failure):
                _log.info("following %s failed: %s", self._id, in_short(failure))
                return True
            # The look at the job that follows shows whether the problem is with the job or only with its stream.
            words = "following %s failed: %s; retrieving the job at intervals instead"
            _log.info(words, self._id, in_short(failure))
            return False
        return True

    async def _seems_over(self) -> bool:
        try:
            job = await self._look()
        except FineTuneError as failure:
            _log.info("retrieving %s failed: %s", self._id, in_short(failure))
            # If the failure is permanent, stop reading: the look that follows raises it.
            return not retry.may_pass(failure)
        return job.is_terminal

    def _state(self) -> str:
        """Return what the last look showed of a job that did not end in time."""
        if self._last is None:
            # The first look at the job comes after a minute of its events.
            return f"its last event was {self._events[-1].message!r}" if self._events else "its status is not known"
        status = self._last.status
        if status not in Status.KNOWN:
            return f"its status is {status!r}, which the API does not define; check the job at the service"
        return f"it continues at the service; its status is {status!r}"


def _now() -> float:
    """Return the time of the event loop's clock, which cannot be set."""
    return asyncio.get_running_loop().time()
