"""The core of a batch: events in, actions out. It decides everything and does nothing."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from typing import Any, Final

import attrs

from aiofinetune._observe import in_short
from aiofinetune.batch._core import actions as act
from aiofinetune.batch._core import events as on
from aiofinetune.batch._core.attempts import Attempt, attempt_of
from aiofinetune.batch._core.earlier import EarlierCreates
from aiofinetune.batch._core.looks import Looks
from aiofinetune.batch._core.run import Run, Settings
from aiofinetune.batch._core.sending import Sender, taken
from aiofinetune.batch._core.states import (
    ACCEPTED,
    ACTIVE,
    DONE,
    DRAINING,
    RUNNING,
    SETTLING,
    UNKNOWN,
    UNMADE,
    BatchState,
    UnexpectedEvent,
)
from aiofinetune.batch._core.watching import Watcher
from aiofinetune.batch._outcomes import ActiveJob, OutcomeStatus, Wait
from aiofinetune.errors import EntryChanged, FineTuneError, JournalUnusable
from aiofinetune.models import Status

_ASKED_TO: Final = "it was asked to stop"
_AT_ANY_TIME: Final = frozenset({on.OutcomeTaken, on.LeaveAsked})
"""The events that may come after the batch is done."""


@attrs.frozen
class Counts:
    """How far a batch is."""

    seen: int
    """The number of entries that were begun, and will have an outcome unless the batch is stopped."""
    sending: int
    """The number of entries that are being sent."""
    active: int
    """The number of this batch's jobs that have not ended, or whose ends are being handled."""
    settling: int
    """The number of those whose ends are being handled."""
    others: int
    """The number of other programs' jobs that had not ended at the last look."""
    waiting: int
    """The number of outcomes that the caller has not taken."""
    ended: Mapping[OutcomeStatus, int]
    """The number of entries that ended, by how they did."""
    replayed: int
    """The number of those whose outcome an earlier run knew."""
    unsaved: int
    """The number of those that made a model, and whose results files were not saved."""


class BatchCore:
    """Decides what a batch does. Time is an argument, by any clock that cannot be set, in seconds.

    The shell calls `handle` with each event as it comes, and `go_on` once after all events that came together. It
    performs the actions in their order, and sends the events that answer them. It sends nothing but `OutcomeTaken` and
    `LeaveAsked` after `Finish`.
    """

    def __init__(self, settings: Settings) -> None:
        self._run = run = Run(settings)
        self._looks = Looks(run)
        self._earlier = EarlierCreates(run)
        self._sender = Sender(run, self._looks)
        self._watcher = Watcher(run, self._looks)
        self._order = itertools.count()
        self._is_reading = self._has_input_ended = False
        self._wakes_at: float | None = None
        self._cancels = False
        self._handlers = self._batch_handlers()
        self._attempt_handlers = self._handlers_of_attempts()

    @property
    def state(self) -> BatchState:
        """The state of the batch."""
        return self._run.state

    @property
    def is_running(self) -> bool:
        """Whether a create may be sent; the shell asks this again before each of the session's own retries."""
        return self._run.is_running

    def counts(self) -> Counts:
        """Count how far the batch is, from the states of its attempts."""
        attempts = self._run.attempts
        return Counts(
            seen=len(attempts) - attempts.waiting + attempts.ended.total(),
            sending=attempts.count(*UNMADE),
            active=self._run.active,
            settling=attempts.count(SETTLING) - attempts.replaying,
            others=len(self._looks.others),
            waiting=attempts.waiting,
            ended=attempts.ended.copy(),
            replayed=attempts.replayed,
            unsaved=attempts.unsaved,
        )

    @property
    def why(self) -> str | None:
        """Why no more entries are sent; None if they are."""
        return self._run.why

    @property
    def why_in_short(self) -> str | None:
        """The same for the log, without words of the service."""
        return self._run.why if self._run.cause is None else in_short(self._run.cause)

    def waits(self, now: float) -> list[Wait]:
        """Return what the batch waits for, besides its jobs."""
        return self._sender.waits(now)

    def active_labels(self) -> dict[str, str]:
        """Return the labels of the same jobs as `active_jobs`, by the jobs' ids."""
        attempts = self._run.attempts.in_state(ACTIVE, SETTLING)
        return {
            attempt.job_id: attempt.id.label
            for attempt in attempts
            if attempt.job_id is not None and not attempt.is_replayed
        }

    def active_jobs(self) -> list[ActiveJob]:
        """Return the jobs that are active, or whose ends are being handled, but for those of earlier runs."""
        attempts = self._run.attempts.in_state(ACTIVE, SETTLING)
        return [
            ActiveJob(attempt.id.label, attempt.request, attempt.job_id, attempt.sent_at)
            for attempt in attempts
            if attempt.job_id is not None and not attempt.is_replayed
        ]

    def handle(self, event: on.Event, now: float) -> list[act.Action]:
        """Handle one event, and return the actions to perform because of it, in order.

        Raises:
            UnexpectedEvent: The event cannot follow, which is a bug of the shell or of the core.
        """
        kind = type(event)
        if self._run.state is DONE and kind not in _AT_ANY_TIME:
            raise UnexpectedEvent(f"the batch is done: {event}")
        if isinstance(event, on.AttemptEvent):
            self._handle_attempt(event, now)
        elif (handler := self._handlers.get(kind)) is not None:
            handler(event, now)
        else:
            raise UnexpectedEvent(f"{event} is the core's own")
        return self._run.take_actions()

    def go_on(self, now: float) -> list[act.Action]:
        """Return the actions to perform now that some events were handled: send, read, look, wait, or finish.

        One decision for all events that came together takes 15 % less CPU of a batch than one after each.
        """
        if self._run.state is not DONE:
            self._sender.send(now)
            self._read_on()
            self._looks.look_if_due(now)
            if self._is_over():
                self._finish()
            else:
                self._set_timer(now)
        return self._run.take_actions()

    # Events of the batch

    def _batch_handlers(self) -> Mapping[type[on.Event], Callable[[Any, float], object]]:  # Any: each takes its own
        run = self._run
        return {
            on.Started: lambda _event, now: self._start(now),
            on.EarlierRunsRead: lambda event, _now: self._earlier.read(event),
            on.EntriesRead: lambda event, _now: self._read(event),
            on.InputEnded: lambda _event, _now: self._end_input(),
            on.InputFailed: lambda event, _now: self._end_input(event.error),
            on.ShellFailed: lambda event, _now: run.give_up(event.error),
            on.ListRead: self._watcher.list_read,
            on.EndsListed: lambda event, _now: self._watcher.ends_listed(event),
            on.ListFailed: self._looks.failed,
            on.StopAsked: lambda _event, _now: run.detach(_ASKED_TO),
            on.LeaveAsked: lambda event, _now: self._leave(event),
            on.TimersDue: lambda _event, _now: self._forget_timer(),
        }

    def _start(self, now: float) -> None:
        self._run.actions.append(act.ReadEarlierRuns())
        self._looks.start(now)

    def _end_input(self, failure: Exception | None = None) -> None:
        self._is_reading = False
        self._has_input_ended = True
        if failure is not None:
            self._run.give_up(failure)

    def _forget_timer(self) -> None:
        self._wakes_at = None

    def _leave(self, event: on.LeaveAsked) -> None:
        self._cancels = event.cancels
        if event.is_at_once:
            self._run.attempts.give_up_actions()
        self._run.detach(_ASKED_TO)
        if self._run.state is DONE:
            self._cancel_jobs()

    def _cancel_jobs(self) -> None:
        if self._cancels:
            self._run.actions += map(act.CancelJob, self._watcher.jobs_left)
            self._cancels = False

    # Entries

    def _read(self, event: on.EntriesRead) -> None:
        self._is_reading = False
        for entry in event.entries:
            # After one that is refused, none is begun.
            if not self._run.is_running:
                return
            refusal = self._refusal(entry)
            if refusal is None:
                self._begin(entry)
            else:
                self._run.give_up(refusal)

    def _begin(self, entry: on.KnownEntry) -> None:
        """Begin an entry where earlier runs left it."""
        attempt = self._attempt(entry)
        if entry.last is not None and attempt.id != entry.last.attempt and (old := entry.last.running_job) is not None:
            self._run.actions.append(act.LeaveJob(entry.label, old))
        uncertain = None if entry.last is None else self._earlier.take_uncertain(entry.last.attempt)
        attempt.order = next(self._order)
        attempt.is_replayed = attempt.state in {SETTLING, UNKNOWN, ACCEPTED}
        if attempt.state in {UNKNOWN, ACCEPTED}:
            if uncertain is None:
                raise UnexpectedEvent(f"{attempt.id} may have made a job, and was not searched for")
            attempt.state, attempt.error = UNKNOWN, uncertain
        elif attempt.job_id is not None and not self._run.owners.take(attempt.job_id, attempt.id):
            # One job must never count for two entries, though a journal of an old version may say so.
            attempt.state, attempt.error = UNKNOWN, taken(attempt, attempt.job_id)
            attempt.job_id = attempt.job = None
        self._run.attempts.add(attempt)
        if attempt.state is UNKNOWN:
            self._run.report(attempt, "uncertain")
        elif attempt.state is SETTLING:
            self._watcher.settle(attempt)
        elif attempt.state is ACTIVE:
            self._watcher.follow(attempt)

    def _refusal(self, entry: on.KnownEntry) -> FineTuneError | None:
        """Return why an entry cannot be begun."""
        if entry.problem is not None:
            return entry.problem
        if entry.label in self._run.attempts:
            return JournalUnusable(f"{entry.label!r} is used twice; each entry of a batch needs a label of its own")
        last = entry.last
        if entry.change and last is not None and last.sent is not None and not self._run.settings.accepts_changes:
            running = "" if last.running_job is None else f"; its job {last.running_job} may still run"
            return EntryChanged(
                f"{entry.label!r} has changed since it was sent: {entry.change}{running}; pass accept_changes=True"
                " (--accept-changes) to create new jobs for changed requests"
            )
        return None

    def _attempt(self, entry: on.KnownEntry) -> Attempt:
        """Return the attempt that an entry goes on with: its last one, or a new one."""
        last = entry.last
        if last is None:
            return Attempt(act.AttemptId(entry.label), entry.request, sent=entry.sent)
        if last.sent is None:
            # It made no job, so it may differ.
            return Attempt(last.attempt, entry.request, sent=entry.sent)
        if entry.change or self._is_retried(last):
            return Attempt(last.attempt.next, entry.request, sent=entry.sent)
        # Its files may have other paths than in the earlier run.
        attempt = attempt_of(last)
        attempt.request = entry.request
        attempt.is_replaceable = entry.label in self._run.settings.retries_uncertain
        return attempt

    def _is_retried(self, last: on.AttemptRecord) -> bool:
        """Return whether the caller asked for a new attempt because of how the last one ended."""
        settings = self._run.settings
        if last.job is not None:
            return settings.retries_failed and last.job.status != Status.SUCCEEDED
        return last.job_id is None and last.attempt.label in settings.retries_uncertain

    # Events of attempts

    def _handle_attempt(self, event: on.AttemptEvent, now: float) -> None:
        attempt = self._run.attempts.get(event.attempt)
        if attempt is not None:
            handler = self._attempt_handlers.get(type(event))
            if handler is None:
                raise UnexpectedEvent(f"{event} is the core's own")
            handler(attempt, event, now)
        elif (earlier := self._earlier.get(event.attempt)) is not None:
            self._earlier.handle(earlier, event)
        else:
            raise UnexpectedEvent(f"{event.attempt} is not under way: {event}")

    def _handlers_of_attempts(
        self,
    ) -> Mapping[type[on.AttemptEvent], Callable[[Attempt, Any, float], object]]:  # likewise
        send, watch = self._sender, self._watcher
        return {
            on.FilesUploaded: lambda attempt, event, _now: send.uploaded(attempt, event),
            on.IntentOnDisk: lambda attempt, event, _now: send.intent_on_disk(attempt, event),
            on.IntentWithdrawn: lambda attempt, event, _now: send.withdrawn(attempt, event),
            on.CreateNotSent: send.not_made,
            on.CreateRefused: send.not_made,
            on.CreateThrottled: send.not_made,
            on.CreateBarred: send.not_made,
            on.TooManyActive: send.not_made,
            on.NotReached: send.not_made,
            on.JobCreated: lambda attempt, event, _now: self._follow_if(attempt, send.made(attempt, event)),
            on.JobNamed: lambda attempt, event, _now: send.made(attempt, event),
            on.CreateAccepted: lambda attempt, event, _now: send.accepted(attempt, event),
            on.AcceptedOnDisk: send.accepted_on_disk,
            on.JobIdOnDisk: lambda attempt, event, _now: self._follow_if(attempt, send.job_id_on_disk(attempt, event)),
            on.JobIdTaken: lambda attempt, event, _now: self._take_back(attempt, event),
            on.CreateUnclear: send.unclear,
            on.JobUnreadable: self._unreadable,
            on.StreamFailed: lambda attempt, event, _now: watch.stream_failed(attempt, event),
            on.JobEnded: lambda attempt, event, _now: watch.ended(attempt, event),
            on.JobRetrieved: lambda attempt, event, _now: watch.retrieved(attempt, event),
            on.JobVanished: lambda attempt, event, _now: watch.vanished(attempt, event),
            on.EndOnDisk: lambda attempt, event, _now: watch.end_on_disk(attempt, event),
            on.ResultsFetched: lambda attempt, event, _now: watch.results_fetched(attempt, event),
            on.JournalFailed: lambda attempt, event, _now: self._journal_failed(attempt, event),
            on.OutcomeTaken: lambda attempt, _event, _now: self._forget(attempt),
        }

    def _follow_if(self, attempt: Attempt, is_on_disk: bool) -> None:  # noqa: FBT001  # what the sender returns
        if is_on_disk:
            self._watcher.follow(attempt)

    def _take_back(self, attempt: Attempt, event: on.JobIdTaken) -> None:
        """Handle an id that the journal gives to another attempt, which this core has forgotten."""
        job_id = attempt.job_id
        if job_id is not None:
            self._run.owners.withdraw(job_id)
        self._sender.job_id_taken(attempt, event, job_id)

    def _unreadable(self, attempt: Attempt, event: on.JobUnreadable, now: float) -> None:
        if attempt.awaits is act.ResumeCreate:
            # The call of its create could not read it; it may become readable later.
            self._run.attempts.apply(attempt, event)
            self._sender.succeeded()
            self._watcher.follow(attempt)
        else:
            self._watcher.unreadable(attempt, event, now)

    def _journal_failed(self, attempt: Attempt, event: on.JournalFailed) -> None:
        # Not undone: the write may be on the disk. The attempt stays as it is, and the next run looks.
        self._run.attempts.apply(attempt, event)
        self._run.give_up(event.error)

    def _forget(self, attempt: Attempt) -> None:
        if attempt.status is None:
            raise UnexpectedEvent(f"{attempt.id} has no outcome")
        self._run.attempts.forget(attempt)

    # What follows from all events

    def _finish(self) -> None:
        self._run.change(on.AllAnswered())
        self._cancel_jobs()
        self._run.actions.append(act.Finish(self._run.failure, self._run.why, self._run.cause))

    def _read_on(self) -> None:
        if self._is_reading or self._has_input_ended or self._sender.has_waiting:
            return
        is_wanted = self._run.is_running and self._earlier.is_over and self._sender.has_place
        # What ended in an earlier run is handed on a few at a time, like what is sent.
        if is_wanted and self._run.attempts.replaying < self._run.settings.concurrency:
            self._is_reading = True
            room = self._run.settings.max_waiting - self._run.outcomes_waiting
            self._run.actions.append(act.ReadEntries(min(self._run.settings.concurrency, room)))

    def _is_over(self) -> bool:
        if self._run.state is RUNNING:
            is_read = self._has_input_ended and self._earlier.is_over
            return is_read and len(self._run.attempts) == self._run.outcomes_waiting
        if self._run.state is DRAINING:
            return not self._sender.is_sending and not self._watcher.is_following
        return not self._sender.is_sending

    def _set_timer(self, now: float) -> None:
        at = self._sender.wakes_at(now)
        looks_at = None if self._looks.is_looking else self._looks.due
        if at is None or (looks_at is not None and looks_at < at):
            at = looks_at
        if at is not None and at != self._wakes_at:
            self._wakes_at = at
            self._run.actions.append(act.WakeAt(at))
