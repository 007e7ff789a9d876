"""Find the jobs of creates whose results an earlier run did not record before it ended."""

from __future__ import annotations

from collections import deque

from aiofinetune.batch._core import actions as act
from aiofinetune.batch._core import events as on
from aiofinetune.batch._core.attempts import Attempt, Attempts, attempt_of
from aiofinetune.batch._core.run import Run
from aiofinetune.batch._core.sending import taken
from aiofinetune.batch._core.states import ACCEPTED
from aiofinetune.models import CreateUncertain


class EarlierCreates:
    """The creates of earlier runs that may have made a job that the journal does not know.

    It owns these rules: they are searched for one after another, before anything is read and sent, so that no new job
    is taken for one of theirs; and an intent is withdrawn only after `NothingMade`.
    """

    def __init__(self, run: Run) -> None:
        self._run = run
        # Of their own, because no entry asks for them yet, and maybe none ever does.
        self._attempts = Attempts()
        self._queue: deque[Attempt] = deque()
        self.is_over = False
        """Whether all searches are over."""

    def get(self, name: act.AttemptId) -> Attempt | None:
        """Return an attempt whose create an earlier run sent."""
        return self._attempts.get(name)

    def read(self, event: on.EarlierRunsRead) -> None:
        """Search for what earlier runs left."""
        self._run.owners.learn(event.owners)
        for record in event.lost:
            attempt = attempt_of(record)
            self._attempts.add(attempt)
            self._queue.append(attempt)
        self._search_next()

    def _search_next(self) -> None:
        if not self._queue:
            self.is_over = True
        elif self._run.is_running:
            attempt = self._queue[0]
            sent, sent_at = attempt.sent or attempt.request, attempt.sent_at or 0.0
            is_accepted = attempt.state is ACCEPTED
            among = tuple(other.sent or other.request for other in self._queue)
            search = act.SearchForCreate(attempt.id, sent, sent_at, is_accepted, attempt.hint, attempt.key, among)
            self._ask(attempt, search)

    def handle(self, attempt: Attempt, event: on.AttemptEvent) -> None:
        """Handle an event of an attempt that no entry asked for yet."""
        if isinstance(event, on.JobFound) and not self._run.owners.take(event.job_id, attempt.id):
            event = on.CreateUnclear(attempt.id, taken(attempt, event.job_id))
        self._attempts.apply(attempt, event)
        match event:
            case on.JobFound():
                attempt.job_id = event.job_id
                self._ask(attempt, act.WriteJobId(attempt.id, event.job_id))
            case on.NothingMade():
                self._ask(attempt, act.WithdrawIntent(attempt.id))
            case on.CreateUnclear():
                attempt.error = event.error
                self._end_search()
            case on.JobIdTaken():
                self._ask(attempt, act.WriteAccepted(attempt.id, attempt.hint))
            case on.AcceptedOnDisk():
                uncertain = taken(attempt, attempt.job_id)
                attempt.job_id = None
                self.handle(attempt, on.CreateUnclear(attempt.id, uncertain))
            case on.JobIdOnDisk() | on.IntentWithdrawn():
                # The journal knows enough of it, and gives it where an entry asks for it.
                if attempt.job_id is not None:
                    self._run.owners.retire(attempt.job_id)
                self._attempts.forget(attempt)
                self._end_search()
            case on.JournalFailed():
                self._run.give_up(event.error)

    def _ask(self, attempt: Attempt, action: act.AttemptAction) -> None:
        self._run.actions.append(self._attempts.begin_action(attempt, action))

    def _end_search(self) -> None:
        # Only now, because `among` must include this one.
        self._queue.popleft()
        self._search_next()

    def take_uncertain(self, name: act.AttemptId) -> CreateUncertain | None:
        """Forget an attempt of which a search could not tell, for an entry asks for it; return what it said."""
        attempt = self._attempts.get(name)
        if attempt is None:
            return None
        self._attempts.forget(attempt)
        return attempt.error if isinstance(attempt.error, CreateUncertain) else None
