"""Follow the jobs of a batch to their ends: by their events, or by the list where there are many."""

from __future__ import annotations

from aiofinetune.batch._core import actions as act
from aiofinetune.batch._core import events as on
from aiofinetune.batch._core.attempts import Attempt
from aiofinetune.batch._core.looks import Looks
from aiofinetune.batch._core.run import Run
from aiofinetune.batch._core.states import ACCEPTED, ACTIVE
from aiofinetune.batch._outcomes import OutcomeStatus
from aiofinetune.errors import AuthenticationFailed, FineTuneError
from aiofinetune.models import FineTune, FineTuneCancelled, FineTuneFailed, Status


class Watcher:
    """Takes attempts from ACTIVE to their ends.

    It owns these rules: a job has ended if a look at it or its events say so and not otherwise, an outcome is reported
    once the end is on the disk, and an end makes room.
    """

    def __init__(self, run: Run, looks: Looks) -> None:
        self._run = run
        self._attempts = run.attempts
        self._looks = looks

    def follow(self, attempt: Attempt) -> None:
        """Follow a job whose id is on the disk."""
        if attempt.job_id is None:
            raise ValueError(f"{attempt.id} has no job to follow")
        self._looks.note_mine(attempt.job_id)
        if self._attempts.awaiting(act.FollowStream) < self._run.settings.max_streams:
            self._run.ask(attempt, act.FollowStream(attempt.id, attempt.job_id))

    def stream_failed(self, attempt: Attempt, event: on.StreamFailed) -> None:
        """Leave a job to the list; nothing can be followed with a key that the service does not accept."""
        self._attempts.apply(attempt, event)
        if isinstance(event.error, AuthenticationFailed):
            self._run.detach(str(event.error), event.error)

    def list_read(self, event: on.ListRead, now: float) -> None:
        """Handle the jobs that have ended by the list, or are missing from it."""
        for attempt in self._looks.read(event, now):
            if attempt.job_id is not None and attempt.job_id not in event.active:
                self._handle_end(attempt, event.ended.get(attempt.job_id))

    def ends_listed(self, event: on.EndsListed) -> None:
        """Handle some of the jobs that have ended by the list."""
        for attempt in self._looks.read_some(event):
            if attempt.job_id is not None:
                self._handle_end(attempt, event.ended.get(attempt.job_id))

    def _handle_end(self, attempt: Attempt, listed: FineTune | None) -> None:
        """Handle a job that has ended by the list, or is missing from it."""
        attempt.listed = listed
        if listed is not None and listed.fine_tuned_model is not None:
            self.ended(attempt, on.JobEnded(attempt.id, listed))
        elif attempt.job_id is not None:
            # Retrieved with its events, which say why it failed. A list leaves them out, and at some services the
            # model too.
            self._run.ask(attempt, act.RetrieveJob(attempt.id, attempt.job_id))

    def retrieved(self, attempt: Attempt, event: on.JobRetrieved) -> None:
        """Handle a job that was retrieved."""
        attempt.unread_since = None
        if event.job.is_terminal:
            self.ended(attempt, on.JobEnded(attempt.id, event.job))
        else:
            self._attempts.apply(attempt, on.JobGoesOn(attempt.id))

    def unreadable(self, attempt: Attempt, event: on.JobUnreadable, now: float) -> None:
        """Handle a job that cannot be read: what a list said of its end counts; without that it may stay so a while."""
        if attempt.listed is not None:
            self.ended(attempt, on.JobEnded(attempt.id, attempt.listed))
            return
        if attempt.unread_since is None:
            attempt.unread_since = now
        if now - attempt.unread_since >= self._run.settings.outage:
            self._attempts.apply(attempt, on.GivenUp(attempt.id, event.error))
            self._lose(attempt, event.error, "uncertain")
        else:
            self._attempts.apply(attempt, event)

    def vanished(self, attempt: Attempt, event: on.JobVanished) -> None:
        """Report a job that the service no longer knows, or begin a new attempt if the caller asked for one.

        What a list said of its end counts.
        """
        if attempt.listed is not None:
            self.ended(attempt, on.JobEnded(attempt.id, attempt.listed))
            return
        self._attempts.apply(attempt, event)
        if attempt.is_replaceable:
            self._replace(attempt)
        else:
            self._lose(attempt, event.error, "vanished")

    def ended(self, attempt: Attempt, event: on.JobEnded) -> None:
        """Write how a job ended."""
        self._attempts.apply(attempt, event)
        attempt.job, attempt.error = event.job, event.error
        self._run.ask(attempt, act.WriteEnd(attempt.id, event.job))

    def end_on_disk(self, attempt: Attempt, event: on.EndOnDisk) -> None:
        """Settle a job whose end was written."""
        self._attempts.apply(attempt, event)
        attempt.ended_at = event.ended_at
        self.settle(attempt)

    def settle(self, attempt: Attempt) -> None:
        """Fetch the results of a job that ended, if there are any and they are wanted, or report its outcome."""
        job = attempt.job
        if job is None:
            raise ValueError(f"{attempt.id} has no job that ended")
        if attempt.error is None and job.status != Status.SUCCEEDED:
            kind = FineTuneCancelled if job.status == Status.CANCELLED else FineTuneFailed
            attempt.error = kind(job, job.events)
        if attempt.error is None and self._run.settings.wants_results:
            self._run.ask(attempt, act.FetchResults(attempt.id, job, attempt.is_replayed))
        else:
            self._end(attempt, on.Settled(attempt.id))

    def results_fetched(self, attempt: Attempt, event: on.ResultsFetched) -> None:
        """Report an outcome with the results."""
        attempt.error = event.error
        self._end(attempt, event)

    def _end(self, attempt: Attempt, event: on.Settled | on.ResultsFetched) -> None:
        self._attempts.apply(attempt, event)
        if attempt.job_id is not None and not attempt.is_replayed:
            self._looks.note_end(attempt.job_id)
        figures = event.figures if isinstance(event, on.ResultsFetched) else {}
        self._run.report(attempt, _status(attempt), figures)

    def _replace(self, attempt: Attempt) -> None:
        if attempt.job_id is not None:
            self._looks.note_end(attempt.job_id)
            self._run.owners.retire(attempt.job_id)
        self._attempts.forget(attempt)
        self._attempts.add(Attempt(attempt.id.next, attempt.request, attempt.order))

    def _lose(self, attempt: Attempt, error: FineTuneError, status: OutcomeStatus) -> None:
        attempt.error = error
        if attempt.job_id is not None:
            self._looks.note_end(attempt.job_id)
        self._run.report(attempt, status)

    @property
    def is_following(self) -> bool:
        """Whether a job of this run has not been followed to its end."""
        return self._run.active > 0

    @property
    def jobs_left(self) -> list[str]:
        """The ids of jobs that have not ended as far as is known, though their ids may not be on the disk."""
        left = self._attempts.in_state(ACCEPTED, ACTIVE)
        return [attempt.job_id for attempt in left if attempt.job_id is not None]


def _status(attempt: Attempt) -> OutcomeStatus:
    match attempt.job:
        case None:
            return "vanished"
        case job if job.status == Status.SUCCEEDED:
            return "succeeded"
        case job if job.status == Status.CANCELLED:
            return "cancelled"
    # Only jobs that have ended are settled, so this is the remaining terminal status.
    return "failed"
