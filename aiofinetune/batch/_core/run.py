"""What the parts of the core share: the settings, the attempts, the state of the batch, and the actions to perform."""

from __future__ import annotations

import math
from collections.abc import Mapping

import attrs

from aiofinetune.batch._core import actions as act
from aiofinetune.batch._core import events as on
from aiofinetune.batch._core.attempts import Attempt, Attempts, Owners
from aiofinetune.batch._core.states import ACTIVE, BATCH_TABLE, DONE, ENDED, RUNNING, SETTLING, UNKNOWN, UnexpectedEvent
from aiofinetune.batch._outcomes import OutcomeStatus
from aiofinetune.errors import FineTuneError


@attrs.frozen
class Settings:
    """What the caller asked of a batch; see `aiofinetune.Batch`."""

    max_active: float = math.inf
    """Less the reserve."""
    concurrency: int = 8
    per_minute: float | None = None
    poll_interval: float = 10.0
    outage: float = 300.0
    max_streams: int = 32
    max_waiting: int = 100
    """The number of outcomes that may wait for the caller before no further entry is read, which bounds the memory."""
    wants_results: bool = False
    fail_fast: bool = False
    accepts_changes: bool = False
    retries_failed: bool = False
    """Whether an entry whose last attempt failed or was cancelled gets a new one."""
    retries_uncertain: frozenset[str] = frozenset()
    """The labels of entries that get a new attempt if the last one is uncertain or its job has vanished."""


class Run:
    """The state of a batch, and what it asks its shell to do.

    It owns these rules: the batch goes from state to state as the table says, the first reason to stop is the one that
    is given, and each outcome is reported as its attempt ends.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.attempts = Attempts()
        self.owners = Owners()
        self.state = RUNNING
        self.actions: list[act.Action] = []
        self.failure: Exception | None = None
        self.why: str | None = None
        self.cause: FineTuneError | None = None

    @property
    def is_running(self) -> bool:
        """Whether more may be sent."""
        return self.state is RUNNING

    def ask(self, attempt: Attempt, action: act.AttemptAction) -> None:
        """Ask for an action about an attempt, which awaits the answer."""
        self.actions.append(self.attempts.begin_action(attempt, action))

    def take_actions(self) -> list[act.Action]:
        """Return the actions that were asked for since the last call."""
        actions, self.actions = self.actions, []
        return actions

    def change(self, event: on.Event) -> None:
        """Change the state of the batch as the table says."""
        state = BATCH_TABLE.get((self.state, type(event)))
        if state is None:
            raise UnexpectedEvent(f"the batch is {self.state.value}: {event}")
        self.state = state

    def send_no_more(self, why: str, cause: FineTuneError | None) -> None:
        """Send no more, and follow all jobs to their ends."""
        if self.why is None and self.state is not DONE:
            self.why, self.cause = why, cause
        self.change(on.SendingStopped())

    def detach(self, why: str, cause: FineTuneError | None = None) -> None:
        """Send no more, and leave all jobs."""
        self.send_no_more(why, cause)
        self.change(on.Detached())

    def give_up(self, failure: Exception) -> None:
        """Detach, because of something that the batch raises as it is."""
        self.failure = self.failure or failure
        self.detach("it was asked to stop")

    def report(self, attempt: Attempt, status: OutcomeStatus, figures: Mapping[str, float] | None = None) -> None:
        """Report how an attempt ended."""
        self.attempts.note_outcome(attempt, status)
        if attempt.job_id is not None:
            self.owners.retire(attempt.job_id)
        self.actions.append(
            act.ReportOutcome(
                attempt.id,
                status,
                attempt.request,
                attempt.job_id,
                attempt.job,
                attempt.error,
                attempt.sent_at,
                attempt.ended_at,
                figures or {},
                attempt.is_replayed,
            )
        )
        if attempt.error is not None and self.settings.fail_fast and not attempt.is_replayed:
            self.send_no_more(f"{attempt.id.label} ended without a model: {attempt.error}", attempt.error)

    @property
    def active(self) -> int:
        """The number of jobs that are active, or whose ends are being handled, but for those of earlier runs."""
        return self.attempts.count(ACTIVE, SETTLING) - self.attempts.replaying

    @property
    def in_hand(self) -> int:
        """The number of jobs that are over as far as is known and are being read or written, or wait for the caller.

        Not those whose results are being fetched: a file that does not come holds up no end of another job.
        """
        over = self.attempts.count(SETTLING, ENDED, UNKNOWN)
        return over - self.attempts.awaiting(act.FetchResults) + self.attempts.awaiting(act.RetrieveJob)

    @property
    def outcomes_waiting(self) -> int:
        """The number of outcomes that the iterator has not taken."""
        return self.attempts.count(ENDED, UNKNOWN)
