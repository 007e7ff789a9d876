"""The attempts that are under way, and the jobs that belong to them. What has ended and was taken is forgotten."""

from __future__ import annotations

from collections import Counter, OrderedDict, defaultdict
from collections.abc import Collection, Iterator, Mapping
from typing import Final

import attrs

from aiofinetune.batch._core import actions as act
from aiofinetune.batch._core import events as on
from aiofinetune.batch._core.actions import AttemptId
from aiofinetune.batch._core.states import (
    ACCEPTED,
    ACTIVE,
    ANSWERS,
    ATTEMPT_TABLE,
    ENDED,
    READY,
    SETTLING,
    UNKNOWN,
    AttemptState,
    UnexpectedEvent,
)
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
    state: AttemptState = READY
    awaits: type[act.AttemptAction] | None = None
    """The action that is under way for it."""
    is_replayed: bool = False
    """Whether an earlier run knew its outcome."""
    sent: FineTuneRequest | None = None
    """The same with ids in place of local paths, once they are known."""
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
        attempt.state = SETTLING
    elif record.job_id is not None:
        attempt.state = ACTIVE
    elif record.is_accepted:
        attempt.state = ACCEPTED
    elif record.sent is not None:
        attempt.state = UNKNOWN
    return attempt


class Attempts:
    """The attempts that are under way, by label, and how many there are in each state and for each action.

    It owns these rules: a label has one attempt under way at most, an attempt has one action under way at most, an
    event changes a state as the table says, and an outcome is reported once.
    """

    def __init__(self) -> None:
        self._by_label: dict[str, Attempt] = {}
        self._in_state = dict.fromkeys(AttemptState, 0)
        self._awaiting: defaultdict[type[act.AttemptAction], int] = defaultdict(int)
        self._unplaced: dict[str, Attempt] = {}
        self._ready: dict[str, Attempt] = {}
        self.replaying = 0
        """The number of attempts that ended in an earlier run and whose results are being fetched."""
        self.waiting = 0
        """The number of attempts whose outcomes were reported and not taken."""
        self.ended: Counter[OutcomeStatus] = Counter()
        """The number of attempts whose outcomes were reported, by how they ended."""
        self.replayed = 0
        """The number of those whose outcomes an earlier run knew."""
        self.unsaved = 0
        """The number of those that made a model, and whose results files were not saved."""

    def __contains__(self, label: str) -> bool:
        return label in self._by_label

    def __len__(self) -> int:
        return len(self._by_label)

    def add(self, attempt: Attempt) -> None:
        """Take an attempt that begins."""
        label = attempt.id.label
        if label in self._by_label:
            raise UnexpectedEvent(f"{attempt.id} begins while {self._by_label[label].id} is under way")
        self._by_label[label] = attempt
        self._in_state[attempt.state] += 1
        if attempt.state is READY:
            self._unplaced[label] = attempt
        self.replaying += attempt.is_replayed and attempt.state is SETTLING

    @property
    def unplaced(self) -> Collection[Attempt]:
        """The attempts that have no place among those that are being sent."""
        return self._unplaced.values()

    @property
    def ready(self) -> Collection[Attempt]:
        """The attempts that are READY, have a place, and for which nothing is under way."""
        return self._ready.values()

    def place(self, attempt: Attempt) -> None:
        """Give an attempt a place among those that are being sent, which it keeps until it is ACTIVE or ended."""
        label = attempt.id.label
        self._ready[label] = self._unplaced.pop(label)

    def get(self, name: AttemptId) -> Attempt | None:
        """Return an attempt; None if it is not under way."""
        attempt = self._by_label.get(name.label)
        return attempt if attempt is not None and (attempt.id is name or attempt.id == name) else None

    def in_state(self, *states: AttemptState) -> Iterator[Attempt]:
        """Yield the attempts in the given states, of all that are under way. None may begin or end meanwhile."""
        return (attempt for attempt in self._by_label.values() if attempt.state in states)

    def count(self, *states: AttemptState) -> int:
        """Return the number of attempts in the given states."""
        count = 0
        for state in states:
            count += self._in_state[state]
        return count

    def awaiting(self, *actions: type[act.AttemptAction]) -> int:
        """Return the number of attempts for which one of the given actions is under way."""
        count = 0
        for action in actions:
            count += self._awaiting[action]
        return count

    def begin_action(self, attempt: Attempt, action: act.AttemptAction) -> act.AttemptAction:
        """Note that an action is under way for an attempt, and return it."""
        if attempt.awaits is not None:
            raise UnexpectedEvent(f"{attempt.id}: {action} while {attempt.awaits.__name__} is under way")
        attempt.awaits = type(action)
        self._awaiting[attempt.awaits] += 1
        if attempt.state is READY:
            self._ready.pop(attempt.id.label, None)
        return action

    def apply(self, attempt: Attempt, event: on.AttemptEvent) -> None:
        """Change an attempt's state as the table says; what it awaited is answered."""
        before = attempt.state
        state = ATTEMPT_TABLE.get((before, type(event)))
        if state is None or attempt.awaits not in ANSWERS[type(event)]:
            awaited = "nothing" if attempt.awaits is None else attempt.awaits.__name__
            raise UnexpectedEvent(f"{attempt.id} is {before.value} and awaits {awaited}: {event}")
        if attempt.awaits is not None:
            self._awaiting[attempt.awaits] -= 1
            attempt.awaits = None
        if state is not before:
            attempt.state = state
            self._in_state[before] -= 1
            self._in_state[state] += 1
            self.replaying -= attempt.is_replayed and before is SETTLING
        if state is READY:
            self._ready[attempt.id.label] = attempt
        elif before is READY:
            self._ready.pop(attempt.id.label, None)

    def give_up_actions(self) -> None:
        """Note that nothing that is under way will be answered."""
        for attempt in self._by_label.values():
            attempt.awaits = None
        self._awaiting.clear()

    def note_outcome(self, attempt: Attempt, status: OutcomeStatus) -> None:
        """Note that an outcome is reported."""
        if attempt.status is not None or attempt.state not in {ENDED, UNKNOWN}:
            raise UnexpectedEvent(f"{attempt.id} is {attempt.state.value}, and {attempt.status}: ended as {status}")
        attempt.status = status
        self.waiting += 1
        self.ended[status] += 1
        self.replayed += attempt.is_replayed
        self.unsaved += status == "succeeded" and attempt.error is not None

    def forget(self, attempt: Attempt) -> None:
        """Forget an attempt, but for how it ended."""
        label = attempt.id.label
        del self._by_label[label]
        self._in_state[attempt.state] -= 1
        self._ready.pop(label, None)
        self.waiting -= attempt.status is not None


class Owners:
    """Which attempt each job belongs to: a job has one owner, which keeps it.

    The jobs of attempts that are under way are all known, and of the others those that were made or ended last. The
    journal knows the rest, and answers `JobIdTaken`.
    """

    def __init__(self) -> None:
        self._under_way: dict[str, AttemptId] = {}
        # Of a plain dictionary, the first of many is found slowly once others before it were deleted.
        self._earlier: OrderedDict[str, AttemptId] = OrderedDict()

    def learn(self, owners: Mapping[str, AttemptId]) -> None:
        """Take over the owners that the journal knows."""
        self._earlier.update(owners)

    def owner(self, job_id: str) -> AttemptId | None:
        """Return the attempt that a job belongs to; None if none is known."""
        return self._under_way.get(job_id) or self._earlier.get(job_id)

    def take(self, job_id: str, attempt: AttemptId) -> bool:
        """Give a job to an attempt; return False if it belongs to another."""
        owner = self.owner(job_id)
        if owner is not None and owner != attempt:
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
                self._earlier.popitem(last=False)
