"""What the service's list of jobs says, when to look at it, and whether the service has room."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import attrs

from aiofinetune import retry
from aiofinetune.batch._core import actions as act
from aiofinetune.batch._core import events as on
from aiofinetune.batch._core.attempts import Attempt
from aiofinetune.batch._core.run import Run
from aiofinetune.batch._core.states import ACTIVE, DRAINING, RUNNING, SETTLING, UnexpectedEvent
from aiofinetune.batch._outcomes import Wait
from aiofinetune.errors import AuthenticationFailed, FineTuneError

_MAX_UNREAD: Final = 3
"""The number of consecutive looks that may fail where no look may, after which the batch stops."""
_MAX_PAUSE: Final = 10.0
"""The number of seconds after which the list is looked at if the service cannot be reached."""


SECONDS_A_ROW: Final = 0.001
"""The number of seconds between two looks for each job in the list, so that looks take about 1 % of a core however long
the list is: a job that is not read any closer takes 10 microseconds."""


@attrs.define
class _Look:
    """A look at the list that is under way."""

    mine: tuple[act.AttemptId, ...]
    """The attempts that were active as it began. A job that is created meanwhile may be missing from the list.

    Not the attempts themselves: those that end during the look are forgotten, and their jobs with them.
    """
    since: float | None
    """When the oldest of them was sent, in Unix seconds; None if all jobs matter."""
    ended: set[str] = attrs.field(factory=set)
    """The ids of jobs that ended meanwhile, which the list may have as active."""
    has_more: bool = False
    """Whether it has found more ends, which were not asked for yet."""


class Looks:
    """The looks at the service's list.

    It owns these rules: one look is under way at most, the jobs of others are those that the last look found active and
    that this batch does not follow, and a batch does not stay blind.
    """

    def __init__(self, run: Run) -> None:
        self._run = run
        self._look: _Look | None = None
        self.due: float | None = None
        """When to look again; None if nothing depends on it."""
        self.others: set[str] = set()
        """The ids of other programs' jobs that were active at the last look."""
        self._has_looked = self._has_reached = False
        self.full: Wait | None = None
        """Since when the service takes no more jobs until one ends; None if it does."""
        self.blind: Wait | None = None
        """Since when the list cannot be read; None if it can."""
        self._blind = 0
        self.is_away = False
        """Whether a create did not reach the service, and no list was read since: the next create may fail likewise."""

    @property
    def is_full(self) -> bool:
        """Whether the service said that it takes no more jobs until one ends."""
        return self.full is not None

    def fill(self, now: float, error: FineTuneError) -> None:
        """Note that the service takes no more jobs until one ends."""
        self.full = self.full or Wait("full", now, None, error)

    @property
    def has_reached(self) -> bool:
        """Whether the service has answered in this run."""
        return self._has_looked or self._has_reached

    def reach(self) -> None:
        """Note that the service has answered."""
        self._has_reached = True

    def lose(self, now: float, error: FineTuneError) -> None:
        """Note that the service cannot be reached, and look at the list until it can."""
        self.is_away = True
        due = now + min(self._run.settings.poll_interval, _MAX_PAUSE)
        self.due = due if self.due is None else min(self.due, due)
        self.blind = Wait("unreachable", now if self.blind is None else self.blind.since, self.due, error)

    @property
    def knows_others(self) -> bool:
        """Whether it is known how many jobs of others are active, where that matters."""
        return self._has_looked or not self._is_limited

    @property
    def _is_limited(self) -> bool:
        return self._run.settings.max_active != float("inf")

    @property
    def unstreamed(self) -> int:
        """The number of active jobs that are not followed by their events."""
        attempts = self._run.attempts
        return attempts.count(ACTIVE) - attempts.awaiting(act.FollowStream)

    def start(self, now: float) -> None:
        """Look at once if there is a limit: nothing is sent before it is known how many jobs of others are active."""
        if self._is_limited:
            self.due = now

    def look_if_due(self, now: float) -> None:
        """Look at the list if it is time, and set the time of the next look."""
        if not self._is_needed:
            self.due = None
        elif self.due is None:
            # Not at once: a job that was made just now may be missing from the list.
            self.due = now + self._run.settings.poll_interval
        if self._look is None:
            if self.due is not None and self.due <= now:
                self._begin_look()
        elif self._look.has_more and self._run.in_hand < self._run.settings.max_waiting:
            self._look.has_more = False
            self._run.actions.append(act.LookAtList(self._look.since))

    def _begin_look(self) -> None:
        mine = tuple(self._run.attempts.in_state(ACTIVE))
        known = [attempt.sent_at for attempt in mine if attempt.sent_at is not None]
        # Under a limit, the jobs of others count, however old they are.
        since = None if self._is_limited or len(known) < len(mine) else min(known, default=None)
        self._look = _Look(tuple(attempt.id for attempt in mine), since)
        self._run.actions.append(act.LookAtList(since))

    @property
    def is_looking(self) -> bool:
        """Whether a look is under way."""
        return self._look is not None

    @property
    def _is_needed(self) -> bool:
        if self._run.state is RUNNING:
            return self.is_full or self.is_away or self._is_limited or self.unstreamed > 0
        return self._run.state is DRAINING and self.unstreamed > 0

    def read(self, event: on.ListRead, now: float) -> list[Attempt]:
        """Take what a look found; return the attempts that it was about, which were active as it began."""
        look = self._end_look(now)
        following = self._run.attempts.in_state(ACTIVE, SETTLING)
        self.others = {*event.active, *event.unreadable}.difference(
            look.ended, (attempt.job_id for attempt in following)
        )
        self.due = now + max(self._run.settings.poll_interval, event.rows * SECONDS_A_ROW)
        self._has_looked, self._blind, self.is_away = True, 0, False
        self.full = self.blind = None
        return self._followed(look.mine)

    def read_some(self, event: on.EndsListed) -> list[Attempt]:
        """Return the attempts whose jobs a look saw to have ended so far; it asks for the others as these are taken."""
        if self._look is None:
            raise UnexpectedEvent("a list was read that was not asked for")
        self._look.has_more = True
        owners = map(self._run.owners.owner, event.ended)
        return self._followed(owner for owner in owners if owner is not None)

    def _followed(self, names: Iterable[act.AttemptId]) -> list[Attempt]:
        """Return those of some attempts that are ACTIVE and that nothing else follows."""
        attempts = map(self._run.attempts.get, names)
        return [
            attempt
            for attempt in attempts
            if attempt is not None and attempt.state is ACTIVE and attempt.awaits is None
        ]

    def failed(self, event: on.ListFailed, now: float) -> None:
        """Count a look that failed, and stop the batch if there are too many or they go on for too long.

        Without the list, nothing can be sent under a limit, and the jobs without a stream cannot be followed.
        """
        self._end_look(now)
        self._blind += 1
        since = now if self.blind is None else self.blind.since
        self.blind = Wait("unreachable", since, self.due, event.error)
        if self.has_reached and retry.may_pass(event.error):
            if now - since < self._run.settings.outage:
                return
        elif self._blind < _MAX_UNREAD and not isinstance(event.error, AuthenticationFailed):
            return
        why = f"the list of jobs cannot be read: {event.error}"
        if self.unstreamed:
            # The jobs without a stream would never be seen to end.
            self._run.detach(why, event.error)
        else:
            self._run.send_no_more(why, event.error)

    def note_mine(self, job_id: str) -> None:
        """Note that a job that the last look may have taken for another program's is this batch's."""
        self.others.discard(job_id)

    def note_end(self, job_id: str) -> None:
        """Note that a job of this batch is over, which makes room."""
        self.full = None
        self.note_mine(job_id)
        if self._look is not None:
            self._look.ended.add(job_id)

    def _end_look(self, now: float) -> _Look:
        look = self._look
        if look is None:
            raise UnexpectedEvent("a list was read that was not asked for")
        self._look, self.due = None, now + self._run.settings.poll_interval
        return look
