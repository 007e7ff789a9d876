"""Follow the jobs of a batch to their ends."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator, Mapping
from functools import partial

from aiofinetune._jobs.looking import Seen
from aiofinetune._observe import in_short
from aiofinetune.batch._core import actions as act
from aiofinetune.batch._core import events as on
from aiofinetune.batch._no_journal import AnyJournal
from aiofinetune.batch._results_folder import ResultsFolder
from aiofinetune.errors import BadRequest, Conflict, FineTuneError, JournalUnusable, NotFound, ProtocolViolation
from aiofinetune.models import FineTune, FineTuneEnded, FineTuneEvent, Status
from aiofinetune.session import FineTuneSession

_log = logging.getLogger("aiofinetune")
_life = logging.getLogger("aiofinetune.batch")


class Follower:
    """The jobs of a batch.

    Args:
        session: Asks the service.
        journal: Records that the list shows the keys of jobs.
        results: Downloads the results files, if they are wanted.
        concurrency: The maximum number of jobs that are retrieved, or whose results are downloaded, at once.
        active: Returns the labels of the jobs that are active, by id.
    """

    def __init__(
        self,
        session: FineTuneSession,
        journal: AnyJournal,
        results: ResultsFolder | None,
        concurrency: int,
        active: Callable[[], Mapping[str, str]],
    ) -> None:
        self._session = session
        self._recovery = session._recovery  # noqa: SLF001  # the same package; it also lists the rows that cannot be read
        self._journal = journal
        self._results = results
        # Many jobs may end at once.
        self._ending = asyncio.Semaphore(concurrency)
        self._active = active
        self.messages: dict[str, str] = {}
        """The last event's message of each job that is followed, or its status, by the job's id."""
        self._started: set[str] = set()
        self._found: tuple[Seen, Iterator[Mapping[str, FineTune]]] | None = None
        """What the look that is under way saw, and the rest of the jobs that ended; None if none is under way."""

    async def follow(self, action: act.FollowStream) -> on.JobEnded | on.JobVanished | on.StreamFailed:
        """Follow a job by its events."""
        try:
            try:
                # Not `wait`, which logs the end: the batch does, with the label.
                waiting = self._session._waiting(action.job_id, partial(self._note_event, action))  # noqa: SLF001
                job = await waiting.wait(None)
            except FineTuneEnded as ended:
                _check_id(ended.job, action.job_id)
                return on.JobEnded(action.attempt, ended.job, ended)
            _check_id(job, action.job_id)
        except FineTuneError as error:
            if _is_gone(error):
                return on.JobVanished(action.attempt, error)
            _log.info("following %s failed: %s; using the list instead", action.job_id, in_short(error))
            return on.StreamFailed(action.attempt, error)
        return on.JobEnded(action.attempt, job)

    async def look(self, action: act.LookAtList) -> on.ListRead | on.EndsListed | on.ListFailed:
        """Read the service's list, or return more of what the last reading found."""
        if self._found is None:
            try:
                seen = await self._recovery.look(action.since, self._active().__contains__)
            except FineTuneError as error:
                _log.info("listing the jobs failed: %s", in_short(error))
                return on.ListFailed(error)
            if seen.has_echoed:
                await self._note_echo()
            self._note_statuses(seen.active)
            self._found = seen, seen.ended(self._recovery.caller.note_oddity)
        seen, ended = self._found
        # Not in one piece, because thousands of jobs may have ended.
        for some in ended:
            await asyncio.sleep(0)
            return on.EndsListed(some)
        self._found = None
        return on.ListRead(frozenset(seen.active), {}, frozenset(seen.unreadable), seen.rows)

    def _note_event(self, action: act.FollowStream, event: FineTuneEvent) -> None:
        self.messages[action.job_id] = event.message
        # The words of an event decide nothing but this line.
        if "started" in event.message.lower():
            self._note_start(action.attempt.label, action.job_id)

    def _note_statuses(self, statuses: Mapping[str, str]) -> None:
        # By the ids that the core has: those of the list are other objects, which thousands of jobs would keep.
        for job_id, label in self._active().items():
            status = statuses.get(job_id)
            # Most have the same status as before.
            if status is None or self.messages.get(job_id) == status:
                continue
            if status == Status.RUNNING:
                self._note_start(label, job_id)
            if self.messages.get(job_id, status) in Status.KNOWN:
                self.messages[job_id] = status

    def _note_start(self, label: str, job_id: str) -> None:
        if job_id not in self._started:
            self._started.add(job_id)
            _life.info("%s started", label, extra={"label": label, "job_id": job_id, "event": "started"})

    def forget(self, job_id: str) -> None:
        """Forget what was said of a job that is over."""
        self.messages.pop(job_id, None)
        self._started.discard(job_id)

    async def _note_echo(self) -> None:
        """Record that the list shows the keys of jobs, which makes later searches surer."""
        try:
            await self._journal.note_echo()
        except JournalUnusable as error:
            # A look must not end the batch. What the batch cannot do without is recorded elsewhere.
            _log.warning("%s", error)

    async def retrieve(self, action: act.RetrieveJob) -> on.JobRetrieved | on.JobVanished | on.JobUnreadable:
        """Retrieve a job with its events."""
        try:
            async with self._ending:
                job = await self._session.retrieve_fine_tune(action.job_id)
            _check_id(job, action.job_id)
        except FineTuneError as error:
            if _is_gone(error):
                return on.JobVanished(action.attempt, error)
            _log.info("retrieving %s failed: %s", action.job_id, in_short(error))
            return on.JobUnreadable(action.attempt, error)
        return on.JobRetrieved(action.attempt, job)

    async def fetch_results(self, action: act.FetchResults) -> on.ResultsFetched:
        """Download a job's results file, and read its figures."""
        if self._results is None:
            return on.ResultsFetched(action.attempt)
        try:
            async with self._ending:
                label, job = action.attempt.label, action.job
                figures = await self._results.fetch(label, job, may_exist=action.is_replayed)
        except FineTuneError as error:
            return on.ResultsFetched(action.attempt, error=error)
        return on.ResultsFetched(action.attempt, figures)

    async def cancel(self, job_ids: list[str]) -> None:
        """Cancel jobs, and remove from the list those that are cancelled, or have ended."""
        async with asyncio.TaskGroup() as tasks:
            for job_id in list(job_ids):
                tasks.create_task(self._cancel(job_id, job_ids))

    async def _cancel(self, job_id: str, job_ids: list[str]) -> None:
        try:
            async with self._ending:
                try:
                    await self._session.cancel_fine_tune(job_id)
                except (BadRequest, Conflict):
                    # It may have ended just before.
                    if not (await self._session.retrieve_fine_tune(job_id)).is_terminal:
                        raise
            job_ids.remove(job_id)
        except FineTuneError as error:
            _log.warning("cancelling %s failed: %s", job_id, in_short(error))


def _is_gone(error: FineTuneError) -> bool:
    """Return whether the service no longer knows a job; what is no such service cannot tell."""
    return isinstance(error, NotFound) and not error.is_foreign


def _check_id(job: FineTune, job_id: str) -> None:
    """Raise `ProtocolViolation` if a reply describes another job than the one that was asked for."""
    if job.id != job_id:
        raise ProtocolViolation(f"$.id: expected {job_id}, which was asked for, got {job.id}")
