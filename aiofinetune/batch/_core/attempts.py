"""The attempts that are under way, and the jobs that belong to them. What has ended and was taken is forgotten."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from typing import Final

import attrs

from aiofinetune.batch._core import actions as act
from aiofinetune.batch._core import events as on
from aiofinetune.batch._core.actions import AttemptId
from aiofinetune.batch._core.states import ANSWERS, ATTEMPT_TABLE, AttemptState, UnexpectedEvent
from aiofinetune.batch._outcomes import OutcomeStatus
from aiofinetune.errors import FineTuneError
from aiofinetune.models import FineTune, FineTuneRequest

_MAX_OWNED: Final = 10_000
"""The number of jobs that are over whose owners are kept, in a few megabytes. The journal knows them all."""


@attrs.define(eq=False)
class Attempt:
    """One attempt. Once it is under way, `Attempts` alone sets its state and what it awaits."""

    id: AttemptId
    request: FineTuneRequest
    """What the caller asked for."""
    order: int = 0
    """Its place in the input."""
    state: AttemptState = AttemptState.READY
    awaits: type[act.AttemptAction] | None = None
    """The action that is under way for it."""
    is_begun: bool = False
    """Whether it has one of the places of those that are being sent, which it keeps until it is ACTIVE or ended."""
    is_replayed: bool = False
    """Whether an earlier run knew its outcome."""
    sent: FineTuneRequest | None = None
    sent_at: float | None = None
    key: str | None = None
    """The key in the metadata of its create, if that carries one."""
    hint: str | None = None
    job_id: str | None = None
    job: FineTune | None = None
    """The job as it ended."""
    listed: FineTune | None = None
    """The job as a list has it, without the events that say why it failed."""
    error: FineTuneError | None = None
    ended_at: float | None = None
    unread_since: float | None = None
    """Since when its job cannot be read, by the core's clock."""
    is_replaceable: bool = False
    """Whether a new attempt takes its place if its job has vanished."""
    call_waits: bool = False
    """Whether the call of its create waits for a note to be on the disk."""
    was_unreached: bool = False
    """Whether its create did not reach the service once, and is sent again."""
    status: OutcomeStatus | None = None
    """How it ended, once that was reported."""

    @property
    def is_unsaved(self) -> bool:
        """Whether it made a model, and its results file was not saved."""
        return self.status == "succeeded" and self.error is not None


def attempt_of(record: on.AttemptRecord) -> Attempt:
    """Return an attempt in the state in which the journal has it."""
    attempt = Attempt(
        record.attempt,
        record.request,
        sent=record.sent,
        sent_at=record.sent_at,
        key=record.key,
        hint=record.hint,
        job_id=record.job_id,
        job=record.job,
        ended_at=record.ended_at,
    )
    if record.job is not None:
        attempt.state = AttemptState.SETTLING
    elif record.job_id is not None:
        attempt.state = AttemptState.ACTIVE
    elif record.is_accepted:
        attempt.state = AttemptState.ACCEPTED
    elif record.sent is not None:
        attempt.state = AttemptState.UNKNOWN
    return attempt


class Attempts:
    """The attempts that are under way, by label, by state and by what they await.

    It owns these rules: a label has one attempt under way at most, an attempt has one action under way at most, an
    event changes a state as the table says, and an outcome is reported once.
    """

    def __init__(self) -> None:
        self._by_label: dict[str, Attempt] = {}
        self._by_state: dict[AttemptState, dict[str, Attempt]] = {state: {} for state in AttemptState}
        self._idle: dict[AttemptState, dict[str, Attempt]] = {state: {} for state in AttemptState}
        """Those for which nothing is under way."""
        self._unplaced: dict[str, Attempt] = {}
        """Those that are READY and have no place among those that are being sent."""
        self._by_action: dict[type[act.AttemptAction], dict[str, Attempt]] = {}
        self._replayed: dict[str, Attempt] = {}
        self._forgotten: Counter[OutcomeStatus] = Counter()
        self._forgotten_replays = self._forgotten_unsaved = 0

    def __contains__(self, label: str) -> bool:
        return label in self._by_label

    def __len__(self) -> int:
        return len(self._by_label)

    def add(self, attempt: Attempt) -> None:
        """Take an attempt that begins."""
        label = attempt.id.label
        if label in self._by_label:
            raise UnexpectedEvent(f"{attempt.id} begins while {self._by_label[label].id} is under way")
        self._by_label[label] = self._by_state[attempt.state][label] = self._idle[attempt.state][label] = attempt
        if attempt.is_replayed:
            self._replayed[label] = attempt
        if attempt.state is AttemptState.READY and not attempt.is_begun:
            self._unplaced[label] = attempt

    @property
    def unplaced(self) -> Collection[Attempt]:
        """The attempts that are READY and have no place among those that are being sent."""
        return self._unplaced.values()

    def place(self, attempt: Attempt) -> None:
        """Give an attempt a place among those that are being sent, which it keeps until it is ACTIVE or ended."""
        attempt.is_begun = True
        del self._unplaced[attempt.id.label]

    def get(self, name: AttemptId) -> Attempt | None:
        """Return an attempt; None if it is not under way."""
        attempt = self._by_label.get(name.label)
        return attempt if attempt is not None and attempt.id == name else None

    def in_state(self, *states: AttemptState) -> Iterator[Attempt]:
        """Yield the attempts in the given states. None may change its state meanwhile."""
        for state in states:
            yield from self._by_state[state].values()

    def count(self, *states: AttemptState) -> int:
        """Return the number of attempts in the given states."""
        count = 0
        for state in states:
            count += len(self._by_state[state])
        return count

    def idle(self, state: AttemptState) -> Collection[Attempt]:
        """Return the attempts in a state for which nothing is under way."""
        return self._idle[state].values()

    @property
    def replaying(self) -> int:
        """The number of attempts that ended in an earlier run and whose results are being fetched."""
        replayed = self._replayed
        return sum(attempt.state is AttemptState.SETTLING for attempt in replayed.values()) if replayed else 0

    def awaiting(self, action: type[act.AttemptAction]) -> Collection[Attempt]:
        """Return the attempts for which an action is under way."""
        return self._by_action.get(action, {}).values()

    def begin_action(self, attempt: Attempt, action: act.AttemptAction) -> act.AttemptAction:
        """Note that an action is under way for an attempt, and return it."""
        if attempt.awaits is not None:
            raise UnexpectedEvent(f"{attempt.id}: {action} while {attempt.awaits.__name__} is under way")
        self._await(attempt, type(action))
        return action

    def apply(self, attempt: Attempt, event: on.AttemptEvent) -> None:
        """Change an attempt's state as the table says; what it awaited is answered."""
        state = ATTEMPT_TABLE.get((attempt.state, type(event)))
        if state is None or attempt.awaits not in ANSWERS[type(event)]:
            awaited = "nothing" if attempt.awaits is None else attempt.awaits.__name__
            raise UnexpectedEvent(f"{attempt.id} is {attempt.state.value} and awaits {awaited}: {event}")
        self._await(attempt, None)
        if state is not attempt.state:
            label = attempt.id.label
            for place in (self._by_state, self._idle):
                del place[attempt.state][label]
                place[state][label] = attempt
            attempt.state = state

    def give_up_actions(self) -> None:
        """Note that nothing that is under way will be answered."""
        for attempt in self._by_label.values():
            self._await(attempt, None)

    def note_outcome(self, attempt: Attempt, status: OutcomeStatus) -> None:
        """Note that an outcome is reported."""
        if attempt.status is not None or attempt.state not in {AttemptState.ENDED, AttemptState.UNKNOWN}:
            raise UnexpectedEvent(f"{attempt.id} is {attempt.state.value}, and {attempt.status}: ended as {status}")
        attempt.status = status

    def forget(self, attempt: Attempt) -> None:
        """Forget an attempt, but for how it ended."""
        del self._by_label[attempt.id.label]
        del self._by_state[attempt.state][attempt.id.label]
        self._idle[attempt.state].pop(attempt.id.label, None)
        self._replayed.pop(attempt.id.label, None)
        self._unplaced.pop(attempt.id.label, None)
        if attempt.status is not None:
            self._forgotten[attempt.status] += 1
            self._forgotten_replays += attempt.is_replayed
            self._forgotten_unsaved += attempt.is_unsaved

    def outcomes(self) -> Counter[OutcomeStatus]:
        """Return the number of attempts that ended, by how they did."""
        ended = self._forgotten.copy()
        for attempt in self.in_state(AttemptState.ENDED, AttemptState.UNKNOWN):
            if attempt.status is not None:
                ended[attempt.status] += 1
        return ended

    def replays(self) -> int:
        """Return the number of attempts that ended and whose outcomes an earlier run knew."""
        told = sum(attempt.status is not None for attempt in self._replayed.values())
        return self._forgotten_replays + told

    def unsaved(self) -> int:
        """Return the number of attempts that made a model, and whose results files were not saved."""
        return self._forgotten_unsaved + sum(attempt.is_unsaved for attempt in self.in_state(AttemptState.ENDED))

    def _await(self, attempt: Attempt, action: type[act.AttemptAction] | None) -> None:
        label = attempt.id.label
        if attempt.awaits is not None:
            del self._by_action[attempt.awaits][label]
        if action is None:
            self._idle[attempt.state][label] = attempt
        else:
            self._idle[attempt.state].pop(label, None)
            self._by_action.setdefault(action, {})[label] = attempt
        attempt.awaits = action


class Owners:
    """Which attempt each job belongs to: a job has one owner, which keeps it.

    The jobs of attempts that are under way are all known, and of the others those that were made or ended last. The
    journal knows the rest, and answers `JobIdTaken`.
    """

    def __init__(self) -> None:
        self._under_way: dict[str, AttemptId] = {}
        self._earlier: dict[str, AttemptId] = {}

    def learn(self, owners: Mapping[str, AttemptId]) -> None:
        """Take over the owners that the journal knows."""
        self._earlier.update(owners)

    def owner(self, job_id: str) -> AttemptId | None:
        """Return the attempt that a job belongs to; None if none is known."""
        return self._under_way.get(job_id) or self._earlier.get(job_id)

    def take(self, job_id: str, attempt: AttemptId) -> bool:
        """Give a job to an attempt; return False if it belongs to another."""
        if self.owner(job_id) not in {None, attempt}:
            return False
        self._under_way[job_id] = attempt
        return True

    def withdraw(self, job_id: str) -> None:
        """Forget whose a job is: the service does not know it."""
        self._under_way.pop(job_id, None)
        self._earlier.pop(job_id, None)

    def retire(self, job_id: str) -> None:
        """Note that a job is no longer followed. It stays its attempt's."""
        owner = self._under_way.pop(job_id, None)
        if owner is not None:
            self._earlier[job_id] = owner
            while len(self._earlier) > _MAX_OWNED:
                del self._earlier[next(iter(self._earlier))]
