"""Take the attempts of a batch to their jobs: upload their files and send their creates, when the core says so."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Container, Hashable

from aiofinetune._jobs.recovery import NotSent, Recovery
from aiofinetune.batch._core import AttemptId, create_failed, upload_failed
from aiofinetune.batch._core import actions as act
from aiofinetune.batch._core import events as on
from aiofinetune.batch._data_files import DataFiles
from aiofinetune.errors import FineTuneError, FineTuneUnreadable

_log = logging.getLogger("aiofinetune")


def owner_of(attempt: AttemptId, sent_at: float) -> Hashable:
    """Return the name by which the journal of a batch, and each copy of it, owns the job of a create."""
    return attempt.label, attempt.number, sent_at


class Creates:
    """The creates of a batch.

    Args:
        recovery: Sends them.
        data_files: Uploads their files.
        known: The ids of jobs that earlier runs made.
        is_wanted: Returns whether a create may still be sent; asked before each retry.
        tell: Tells the core what happens while a call is in progress.
    """

    def __init__(
        self,
        recovery: Recovery,
        data_files: DataFiles,
        known: Container[str],
        is_wanted: Callable[[], bool],
        tell: Callable[[on.Event], None],
    ) -> None:
        self._recovery = recovery
        self._data_files = data_files
        self._known = known
        self._is_wanted = is_wanted
        self._tell = tell
        self._waiting: dict[AttemptId, asyncio.Future[None]] = {}
        """The calls that wait until the journal has recorded what they told."""

    async def upload(self, action: act.UploadFiles) -> on.AttemptEvent:
        """Upload the files of a request, unless the service cannot take it."""
        try:
            self._recovery.caller.dialect.check(action.request)
            return on.FilesUploaded(action.attempt, await self._data_files.with_ids(action.request))
        except FineTuneError as error:
            return upload_failed(action.attempt, error)

    async def send(self, action: act.SendCreate) -> on.AttemptEvent:
        """Create a job, and return what came of it."""
        attempt, throttled = action.attempt, self._recovery.caller.throttle.count

        async def note(job_id: str | None, is_whole: bool) -> None:  # noqa: FBT001  # a `Note`
            was_throttled = self._recovery.caller.throttle.count > throttled
            going_on = self._waiting[attempt] = asyncio.get_running_loop().create_future()
            if job_id is not None and is_whole:
                self._tell(on.JobNamed(attempt, job_id, was_throttled=was_throttled))
            else:
                self._tell(on.CreateAccepted(attempt, job_id, was_throttled=was_throttled))
            await going_on

        try:
            job = await self._recovery.create(
                action.sent,
                known=self._known,
                wanted=self._is_wanted,
                note=note,
                key=action.key,
                owner=owner_of(attempt, action.sent_at),
            )
        except (NotSent, FineTuneError) as error:
            if isinstance(error, FineTuneUnreadable):
                # The job is followed, because it may become readable later.
                extra = {"label": attempt.label, "job_id": error.fine_tune_id}
                words = "%s created %s, which cannot be read; it is followed by its id"
                _log.warning(words, attempt.label, error.fine_tune_id, extra=extra)
            return create_failed(attempt, error, was_throttled=self._recovery.caller.throttle.count > throttled)
        return on.JobCreated(attempt, job.id, was_throttled=self._recovery.caller.throttle.count > throttled)

    def resume(self, action: act.ResumeCreate) -> None:
        """Let a call go on that waited for the journal."""
        self._waiting.pop(action.attempt).set_result(None)

    def end(self, attempt: AttemptId) -> None:
        """End the call of an attempt that is over, if it still waits: what it told is another attempt's job."""
        waiting = self._waiting.pop(attempt, None)
        if waiting is not None:
            waiting.cancel()
