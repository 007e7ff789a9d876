"""Record what a batch does in its journal: each intent, job and end, before anything depends on it."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from typing import Any

import attrs

from aiofinetune._jobs.recovery import Recovery
from aiofinetune.batch._core import AttemptId
from aiofinetune.batch._core import actions as act
from aiofinetune.batch._core import events as on
from aiofinetune.batch._no_journal import AnyJournal
from aiofinetune.errors import JournalUnusable

_log = logging.getLogger("aiofinetune")
_life = logging.getLogger("aiofinetune.batch")


@attrs.define
class Record:
    """Something to write to the journal."""

    attempt: AttemptId
    note: Any
    """What the journal's method returned. Any: a coroutine that writes it, or without a journal the result itself."""
    event: Callable[[Any], on.AttemptEvent]
    """Returns the event that answers the action, from the result of the note."""
    failed: Callable[[JournalUnusable], JournalUnusable] = lambda error: error
    """Called if it cannot be written; returns the error to raise."""


class Records:
    """What a batch records.

    Args:
        recovery: Sends the creates, and makes their keys.
        journal: Keeps the records.
    """

    def __init__(self, recovery: Recovery, journal: AnyJournal) -> None:
        self._recovery = recovery
        self._journal = journal
        self.of: Mapping[type[act.Action], Callable[[Any], Record]] = {  # Any: each takes its own action
            act.WriteIntent: self._intent,
            act.WithdrawIntent: self._withdrawal,
            act.WriteAccepted: self._acceptance,
            act.WriteJobId: self._job_id,
            act.WriteEnd: self._end,
        }
        """Returns the record of an action, by the kind of the action."""

    def _intent(self, action: act.WriteIntent) -> Record:
        """Record that a create is about to be sent."""
        now, key = time.time(), action.key or self._recovery.new_key(action.sent)
        note = self._journal.intend(action.attempt, action.request, action.sent, now, key)
        return Record(action.attempt, note, lambda _: on.IntentOnDisk(action.attempt, now, key))

    def _withdrawal(self, action: act.WithdrawIntent) -> Record:
        """Record that a create made no job."""
        attempt = action.attempt
        return Record(attempt, self._journal.withdraw(attempt), lambda _: on.IntentWithdrawn(attempt))

    def _acceptance(self, action: act.WriteAccepted) -> Record:
        """Record that a create was accepted by a reply that does not surely name its job."""
        attempt = action.attempt
        return Record(attempt, self._journal.accept(attempt, action.hint), lambda _: on.AcceptedOnDisk(attempt))

    def _job_id(self, action: act.WriteJobId) -> Record:
        """Record the job that was made."""
        attempt, job_id = action.attempt, action.job_id

        def failed(error: JournalUnusable) -> JournalUnusable:
            unrecorded = JournalUnusable(f"{error}; the job of {attempt.label!r} is {job_id}")
            unrecorded.__cause__ = error
            # Logged too, because only the first of several failures is raised, and none after the context was left.
            _log.error("%s", unrecorded)
            return unrecorded

        return Record(
            attempt,
            self._journal.create(attempt, job_id),
            lambda is_recorded: _created(attempt, job_id) if is_recorded else on.JobIdTaken(attempt),
            failed,
        )

    def _end(self, action: act.WriteEnd) -> Record:
        """Record how a job ended."""
        attempt, now = action.attempt, time.time()
        return Record(attempt, self._journal.end(attempt, action.job, now), lambda _: on.EndOnDisk(attempt, now))


def _created(attempt: AttemptId, job_id: str) -> on.JobIdOnDisk:
    extra = {"label": attempt.label, "attempt": attempt.number, "job_id": job_id, "event": "created"}
    _life.info("%s created %s", attempt.label, job_id, extra=extra)
    return on.JobIdOnDisk(attempt)
