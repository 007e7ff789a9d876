"""Take the attempts of a batch to their jobs: upload, record, send and record again, each when the core says so."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Container

from aiofinetune._jobs.recovery import NotSent, Recovery
from aiofinetune.batch._core import AttemptId, create_failed, upload_failed
from aiofinetune.batch._core import actions as act
from aiofinetune.batch._core import events as on
from aiofinetune.batch._data_files import DataFiles
from aiofinetune.batch._no_journal import AnyJournal
from aiofinetune.errors import FineTuneError, FineTuneUnreadable, JournalUnusable

_log = logging.getLogger("aiofinetune")
_life = logging.getLogger("aiofinetune.batch")


class Creates:
    """The creates of a batch.

    Args:
        recovery: Sends them.
        journal: Records them.
        data_files: Uploads their files.
        known: The ids of jobs that earlier runs made.
        is_wanted: Returns whether a create may still be sent; asked before each retry.
        tell: Tells the core what happens while a call is in progress.
    """

    def __init__(
        self,
        recovery: Recovery,
        journal: AnyJournal,
        data_files: DataFiles,
        known: Container[str],
        is_wanted: Callable[[], bool],
        tell: Callable[[on.Event], None],
    ) -> None:
        self._recovery = recovery
        self._journal = journal
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
                action.sent, known=self._known, wanted=self._is_wanted, note=note, key=action.key
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

    # Records

    async def write_intent(self, action: act.WriteIntent) -> on.IntentOnDisk:
        """Record that a create is about to be sent."""
        now, key = time.time(), action.key or self._recovery.new_key(action.sent)
        await self._journal.intend(action.attempt, action.request, action.sent, now, key)
        return on.IntentOnDisk(action.attempt, now, key)

    async def withdraw_intent(self, action: act.WithdrawIntent) -> on.IntentWithdrawn:
        """Record that a create made no job."""
        await self._journal.withdraw(action.attempt)
        return on.IntentWithdrawn(action.attempt)

    async def write_accepted(self, action: act.WriteAccepted) -> on.AcceptedOnDisk:
        """Record that a create was accepted by a reply that does not surely name its job."""
        await self._journal.accept(action.attempt, action.hint)
        return on.AcceptedOnDisk(action.attempt)

    async def write_job_id(self, action: act.WriteJobId) -> on.JobIdOnDisk | on.JobIdTaken:
        """Record the job that was made. If that fails, release its claim, so that a later search can find it."""
        attempt, job_id = action.attempt, action.job_id
        try:
            is_recorded = await self._journal.create(attempt, job_id)
        except asyncio.CancelledError:
            # It is not known whether the id was recorded. If it was, the journal says which entry the job belongs to.
            self._recovery.claims.release(job_id)
            raise
        except JournalUnusable as error:
            self._recovery.claims.release(job_id)
            unrecorded = JournalUnusable(f"{error}; the job of {attempt.label!r} is {job_id}")
            # Logged too, because only the first of several failures is raised, and none after the context was left.
            _log.error("%s", unrecorded)
            raise unrecorded from error
        if not is_recorded:
            return on.JobIdTaken(attempt)
        extra = {"label": attempt.label, "attempt": attempt.number, "job_id": job_id, "event": "created"}
        _life.info("%s created %s", attempt.label, job_id, extra=extra)
        return on.JobIdOnDisk(attempt)
