"""Send the creates of a batch: when there is room, with the intent on the disk, and never again once accepted."""

from __future__ import annotations

from operator import attrgetter
from typing import Final

from aiofinetune.batch._core import actions as act
from aiofinetune.batch._core import events as on
from aiofinetune.batch._core.attempts import Attempt
from aiofinetune.batch._core.limiter import CreateLimiter
from aiofinetune.batch._core.looks import Looks
from aiofinetune.batch._core.run import Run
from aiofinetune.batch._core.states import ACCEPTED, ACTIVE, SENDING, UNMADE, UnexpectedEvent
from aiofinetune.batch._outcomes import Wait
from aiofinetune.errors import FineTuneError
from aiofinetune.models import CreateUncertain

_ORDER: Final = attrgetter("order")
_SENT_BY: Final = (
    *(act.UploadFiles, act.WriteIntent, act.SendCreate, act.WithdrawIntent),
    *(act.WriteAccepted, act.WriteJobId, act.ResumeCreate),
)
"""The actions that take an attempt from READY to ACTIVE."""
_MAX_UNREACHED: Final = 3
"""The number of consecutive creates that could not be sent, despite retries, after which the batch stops."""
_MAX_NAMELESS: Final = 3
"""The number of consecutive creates that were accepted by replies without an id, after which the batch stops."""


class Sender:
    """Takes attempts from READY to ACTIVE.

    It owns these rules: nothing is sent unless the batch is RUNNING and there is room, what was sent and made no job is
    withdrawn before anything else happens to it, and a batch stops where every create would fail.
    """

    def __init__(self, run: Run, looks: Looks) -> None:
        self._run = run
        self._attempts = run.attempts
        self._looks = looks
        self._limiter = CreateLimiter(run.settings.per_minute, run.settings.concurrency)
        self._unreached = self._nameless = 0
        self._held: Wait | None = None
        """The last time that the service throttled a create for longer than the session waits."""

    # Room

    @property
    def has_place(self) -> bool:
        """Whether another entry may be begun, whatever becomes of it."""
        return (
            self._in_hand < self._run.settings.concurrency
            and self._run.outcomes_waiting < self._run.settings.max_waiting
        )

    @property
    def has_waiting(self) -> bool:
        """Whether an attempt waits for room."""
        return bool(self._attempts.unplaced)

    @property
    def is_sending(self) -> bool:
        """Whether an answer is awaited for something that is being sent, withdrawn or noted.

        The call of a create may still look at the job that its reply named, whose id is on the disk. If the service
        does not know it, the id is not the job's, and the journal must hold that.
        """
        return self._attempts.awaiting(*_SENT_BY) > 0

    @property
    def _in_hand(self) -> int:
        return self._attempts.count(*UNMADE) - len(self._attempts.unplaced)

    @property
    def _under_way(self) -> int:
        """The number of attempts of which an intent is on the disk, or about to be, and no job."""
        noted = self._attempts.awaiting(act.WriteIntent, act.WithdrawIntent)
        return noted + self._attempts.count(SENDING, ACCEPTED)

    def _room(self, mine: int) -> float:
        """Return how many jobs the service takes besides `mine`, those of others, and those that are active."""
        if self._looks.is_full or not self._looks.knows_others:
            return 0
        return self._run.settings.max_active - mine - self._run.active - len(self._looks.others)

    def waits(self, now: float) -> list[Wait]:
        """Return what the creates wait for."""
        held = self._held
        is_held = held is not None and held.until is not None and held.until > now
        return [wait for wait in (held if is_held else None, self._looks.full, self._looks.blind) if wait is not None]

    # Sending

    def send(self, now: float) -> None:
        """Begin and send what may be sent."""
        # This is called after each event, and most leave nothing to send.
        if not self._run.is_running or self._looks.is_away:
            return
        if self._attempts.unplaced and self.has_place:
            self._place()
        if self._attempts.ready:
            self._send_placed(now)

    def _place(self) -> None:
        """Begin the attempts for which there is a place, in the order of the input."""
        free = min(self._run.settings.concurrency - self._in_hand, self._room(self._in_hand))
        for attempt in sorted(self._attempts.unplaced, key=_ORDER):
            if free <= 0:
                break
            free -= 1
            self._attempts.place(attempt)
            if attempt.sent is None:
                self._run.ask(attempt, act.UploadFiles(attempt.id, attempt.request))

    def _send_placed(self, now: float) -> None:
        """Send the creates that may be sent, in the order of the input."""
        free = min(self._limiter.window - self._under_way, self._room(self._under_way))
        for attempt in sorted(self._attempts.ready, key=_ORDER):
            if now < self._limiter.opens_at:
                break
            if attempt.sent is None:
                # The service throttled its upload.
                self._limiter.take(now)
                self._run.ask(attempt, act.UploadFiles(attempt.id, attempt.request))
            elif free > 0:
                free -= 1
                self._limiter.take(now)
                self._run.ask(attempt, act.WriteIntent(attempt.id, attempt.request, attempt.sent, attempt.key))

    def wakes_at(self, now: float) -> float | None:
        """Return when the rate limiter lets the next create through; None if that is not what is waited for."""
        opens_at = self._limiter.opens_at
        is_held = opens_at > now and self._run.is_running and not self._looks.is_away and self._attempts.ready
        return opens_at if is_held else None

    def uploaded(self, attempt: Attempt, event: on.FilesUploaded) -> None:
        """Keep the request with the ids of its files."""
        self._attempts.apply(attempt, event)
        attempt.sent = event.sent

    def intent_on_disk(self, attempt: Attempt, event: on.IntentOnDisk) -> None:
        """Send the create, unless the batch was stopped in the meantime."""
        self._attempts.apply(attempt, event)
        attempt.sent_at, attempt.key = event.sent_at, event.key
        if self._run.is_running and attempt.sent is not None:
            self._run.ask(attempt, act.SendCreate(attempt.id, attempt.sent, event.sent_at, attempt.key))
        else:
            self._attempts.apply(attempt, on.CreateNotSent(attempt.id))
            self._run.ask(attempt, act.WithdrawIntent(attempt.id))

    # No job was made

    def not_made(self, attempt: Attempt, event: on.CreateEvent, now: float) -> None:
        """Take back what made no job, and draw the conclusion for the batch."""
        was_sent = attempt.state is SENDING
        self._attempts.apply(attempt, event)
        if was_sent:
            self._limiter.end(was_throttled=event.was_throttled)
        match event:
            case on.CreateThrottled():
                until = self._limiter.hold(now, event.retry_after)
                is_new = self._held is None or self._held.until is None or self._held.until < now
                since = now if is_new or self._held is None else self._held.since
                self._held = Wait("throttled", since, until, event.error)
            case on.TooManyActive():
                self._looks.fill(now, event.error)
            case on.CreateBarred():
                self._run.send_no_more(str(event.error), event.error)
            case on.CreateRefused():
                attempt.error = event.error
            case on.NotReached():
                self._not_reached(attempt, event.error, now)
        if was_sent:
            self._run.ask(attempt, act.WithdrawIntent(attempt.id))
        else:
            self._reject(attempt)

    def _not_reached(self, attempt: Attempt, error: FineTuneError, now: float) -> None:
        """Send a create again once the service can be reached, but each only once, for it may be what fails."""
        if self._looks.has_reached and not attempt.was_unreached:
            attempt.was_unreached = True
            self._looks.lose(now, error)
            return
        self._unreached += 1
        if self._unreached < _MAX_UNREACHED:
            attempt.error = error
        else:
            self._run.send_no_more(f"the service cannot be reached: {error}", error)

    def withdrawn(self, attempt: Attempt, event: on.IntentWithdrawn) -> None:
        """Report the refusal; if there is none, the attempt is sent again, or by the next run."""
        self._attempts.apply(attempt, event)
        attempt.sent_at = None
        self._reject(attempt)

    def _reject(self, attempt: Attempt) -> None:
        if attempt.error is not None:
            self._attempts.apply(attempt, on.Rejected(attempt.id))
            self._run.report(attempt, "rejected")

    # A job was made

    def made(self, attempt: Attempt, event: on.JobCreated | on.JobNamed) -> bool:
        """Write the id of the job that a create made; return whether it is on the disk already."""
        was_sent = attempt.state is SENDING
        if was_sent:
            self._limiter.end(was_throttled=event.was_throttled)
        if attempt.job_id is not None and attempt.job_id != event.job_id:
            raise UnexpectedEvent(f"{attempt.id} has the job {attempt.job_id}: {event}")
        if not self._run.owners.take(event.job_id, attempt.id):
            self.job_id_taken(attempt, on.JobIdTaken(attempt.id), event.job_id)
            return False
        if isinstance(event, on.JobCreated):
            self.succeeded()
        self._attempts.apply(attempt, event)
        if attempt.state is ACTIVE:
            return True
        attempt.job_id = event.job_id
        attempt.call_waits = isinstance(event, on.JobNamed)
        self._run.ask(attempt, act.WriteJobId(attempt.id, event.job_id))
        return False

    def job_id_on_disk(self, attempt: Attempt, event: on.JobIdOnDisk) -> bool:
        """Return whether the job can be followed: the call of its create may still look at it."""
        self._attempts.apply(attempt, event)
        if not attempt.call_waits:
            return True
        self._resume_call(attempt)
        return False

    def succeeded(self) -> None:
        """Note that the service can be reached, and names its jobs."""
        self._looks.reach()
        self._unreached = self._nameless = 0

    # A job was made, or may have been, and is not known

    def accepted(self, attempt: Attempt, event: on.CreateAccepted) -> None:
        """Write that the create was accepted, before its job is searched for."""
        if attempt.state is SENDING:
            self._limiter.end(was_throttled=event.was_throttled)
        self._attempts.apply(attempt, event)
        attempt.call_waits = True
        self._run.ask(attempt, act.WriteAccepted(attempt.id, event.hint))

    def accepted_on_disk(self, attempt: Attempt, event: on.AcceptedOnDisk, now: float) -> None:
        """Let the call search; where it has ended, for the job is another's, the attempt is uncertain."""
        self._attempts.apply(attempt, event)
        if attempt.job_id is not None:
            # The service does not know the id that its reply named, so it is only a hint. Not before this is on the
            # disk, which gave the attempt that id.
            self._run.owners.withdraw(attempt.job_id)
            attempt.job_id = None
        if isinstance(attempt.error, CreateUncertain):
            self.unclear(attempt, on.CreateUnclear(attempt.id, attempt.error), now)
        else:
            self._resume_call(attempt)

    def _resume_call(self, attempt: Attempt) -> None:
        attempt.call_waits = False
        self._run.ask(attempt, act.ResumeCreate(attempt.id))

    def job_id_taken(self, attempt: Attempt, event: on.JobIdTaken, job_id: str | None) -> None:
        """Write that a create was accepted whose reply names the job of another attempt."""
        self._attempts.apply(attempt, event)
        attempt.error = taken(attempt, job_id)
        attempt.job_id = None
        self._run.ask(attempt, act.WriteAccepted(attempt.id, None))

    def unclear(self, attempt: Attempt, event: on.CreateUnclear, now: float) -> None:
        """Report that it is not known which job a create made, or whether it made one."""
        error = event.error
        if attempt.state is SENDING:
            self._limiter.end(was_throttled=event.was_throttled)
        self._attempts.apply(attempt, event)
        attempt.error, attempt.sent_at = error, error.since
        # The list could not be read either.
        is_blind = not (error.accepted or error.candidate_ids)
        if is_blind and self._looks.has_reached and self._run.is_running:
            # The creates after it wait until the list can be read.
            self._looks.lose(now, error)
            is_blind = False
        self._unreached += is_blind
        self._nameless += error.accepted and error.fine_tune_id is None
        if is_blind and self._unreached >= _MAX_UNREACHED:
            self._run.send_no_more(f"the service cannot be reached: {error}", error)
        else:
            self._run.report(attempt, "uncertain")
        if self._nameless >= _MAX_NAMELESS:
            self._run.send_no_more(
                f"{_MAX_NAMELESS} consecutive creates were accepted by replies without a job id, so a proxy may have"
                f" answered: {error}",
                error,
            )


def taken(attempt: Attempt, job_id: str | None) -> CreateUncertain:
    """Return the error of an attempt whose create was accepted, and whose job belongs to another."""
    # Every attempt that has a job has the time of its intent, but a damaged journal may lack it.
    return CreateUncertain(attempt.sent or attempt.request, attempt.sent_at or 0.0, (), True, (), job_id, attempt.key)
