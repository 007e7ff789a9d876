"""A model of a service, a disk and a shell that drives the core of a batch at random, and checks what it promises.

What is under way is answered in any order, truly or with a failure; the process may die at any moment, and a new core
goes on from what the modelled journal holds. Each check has the name of the rule that it holds.
"""

from __future__ import annotations

import itertools
from collections import defaultdict, deque
from collections.abc import Callable
from typing import Final

import attrs

from aiofinetune.batch._core import BatchCore, BatchState, Settings, create_failed
from aiofinetune.batch._core import actions as act
from aiofinetune.batch._core import events as on
from aiofinetune.errors import (
    AuthenticationFailed,
    BadRequest,
    ConnectFailed,
    FineTuneError,
    JournalUnusable,
    NotFound,
    ProtocolViolation,
    QuotaExceeded,
    RateLimited,
    TooManyJobs,
)
from aiofinetune.models import CreateUncertain, FineTune, FineTuneRequest, Status
from tests.batch.corerules import Broken, Chance, LocalFault, check, settings_of

PASSING: Final = (ConnectFailed("away"), BadRequest(400, "no"))
"""A failure that may pass, and one that may not."""


@attrs.define
class _Truth:
    """What an attempt came to in truth, which the core may not know."""

    made: list[str] = attrs.field(factory=list)
    """The jobs that its creates made."""
    may_withdraw: bool = True
    """Whether its last create surely made nothing, or none left."""
    was_accepted: bool = False


class Model:
    """One batch, its service and its journal, from its first run to its last."""

    def __init__(self, chance: Chance, entries: int, settings: Settings) -> None:
        self.chance = chance
        self.settings = settings
        self.requests = {
            f"job-{number}": FineTuneRequest(training_file="file-1", n_epochs=number)
            for number in range(1, entries + 1)
        }
        self.now = 0.0
        self.faults = True
        self.fault_in = chance.choice((3, 8, 20))
        self.steps = 0
        # The service.
        self.jobs: dict[str, FineTune] = {}
        self.job_numbers = itertools.count()
        self.others: set[str] = set()
        self.unreadable: set[str] = set()
        self.truths: defaultdict[act.AttemptId, _Truth] = defaultdict(_Truth)
        # The disk.
        self.disk: dict[str, dict[int, on.AttemptRecord]] = {}
        self.was_ended: set[act.AttemptId] = set()
        self.start()

    # A run

    def start(self) -> None:
        """Begin a run with what the journal holds."""
        self.core = BatchCore(self.settings)
        self.input = deque(self.requests)
        self.pending: list[act.Action] = []
        self.outcomes: deque[act.ReportOutcome] = deque()
        self.live: dict[str, act.AttemptId] = {}
        self.named: set[act.AttemptId] = set()
        self.begun: set[act.AttemptId] = set()
        self.reported: set[act.AttemptId] = set()
        self.replaced: set[act.AttemptId] = set()
        self.known_jobs: dict[str, act.AttemptId] = {}
        self.streamed: set[str] = set()
        self.listed_others: set[str] | None = None
        self.listed_ends: set[str] = set()
        self.is_partly_listed = False
        self.is_full = False
        self.held_until = self.next_at = 0.0
        self.wakes_at: float | None = None
        self.finish: act.Finish | None = None
        self.wants_stop = False
        self.send(on.Started())

    def send(self, event: on.Event) -> None:
        """Send an event to the core, and note what it asks for. More may come before it decides what follows."""
        try:
            actions = self.core.handle(event, self.now)
        except Exception as failure:
            raise Broken("no event is unexpected", f"{event}: {failure!r}") from failure
        for action in actions:
            self.note(action)
        if self.finish is not None or not self.faults or self.chance.choice((True, True, False)):
            self.go_on()

    def go_on(self) -> None:
        """Let the core decide what follows."""
        try:
            actions = self.core.go_on(self.now)
        except Exception as failure:
            raise Broken("no event is unexpected", repr(failure)) from failure
        for action in actions:
            self.note(action)
        counts = self.core.counts()
        check("counts are those of the states", counts.waiting == len(self.outcomes), counts)
        check("counts are those of the states", sum(counts.ended.values()) == len(self.reported), counts)
        is_settled = self.core.state is not BatchState.DONE
        check("every stop is reached", is_settled == (self.finish is None))

    def die(self) -> None:
        """Let the process die: each write and each create that is under way may have had its effect, or not."""
        for action in self.pending:
            if self.chance.choice((False, True)):
                if isinstance(action, act.SendCreate):
                    self._make(action.attempt)
                elif isinstance(action, act.AttemptAction):
                    self._write(action)
        self.start()

    def change_and_start(self) -> None:
        """Begin a run that may want something else of an entry."""
        if self.chance.choice((False, False, True)):
            label = self.chance.choice(tuple(self.requests))
            self.requests[label] = attrs.evolve(self.requests[label], model=self.chance.choice(("ada", "curie")))
        self.start()

    # What the core asks for

    def note(self, action: act.Action) -> None:
        """Take an action, and check that it may be taken."""
        check("every stop is reached", self.finish is None or isinstance(action, act.CancelJob), action)
        match action:
            case act.WakeAt():
                self.wakes_at = action.at
            case act.ReadEntries():
                room = self.settings.max_waiting - len(self.outcomes)
                check("limits are kept", 0 < action.most <= min(room, self.settings.concurrency), action)
                self.pending.append(action)
            case act.ReportOutcome():
                self._report(action)
            case act.Finish():
                self._finish(action)
            case act.CancelJob() | act.LeaveJob():
                if isinstance(action, act.CancelJob) and action.job_id in self.jobs:
                    self._end(action.job_id, Status.CANCELLED)
            case act.AttemptAction():
                self._check(action)
                self.pending.append(action)
            case _:
                self.pending.append(action)

    def _check(self, action: act.AttemptAction) -> None:
        name = action.attempt
        record = self._record(name)
        truth = self.truths[name]
        if isinstance(action, act.SearchForCreate):
            return
        if isinstance(action, act.UploadFiles | act.FollowStream | act.FetchResults | act.RetrieveJob):
            check("a label has one live attempt at most", self.live.setdefault(name.label, name) == name, name)
            check("a label has one live attempt at most", name not in self.replaced, name)
        match action:
            case act.UploadFiles():
                check("nothing is sent unless RUNNING", self.core.state is BatchState.RUNNING, name)
                has_place = name in self.begun or len(self.outcomes) < self.settings.max_waiting
                check("limits are kept", has_place, "outcomes wait")
                self._begin(name)
            case act.WriteIntent():
                self._begin(name)
                self._check_limits(name)
                last = max(self.disk.get(name.label, {name.number: None}))
                check("a label has one live attempt at most", name.number >= last, name)
            case act.SendCreate():
                has_intent = record is not None and record.sent == action.sent and record.job_id is None
                check("an intent is on the disk before a create leaves", has_intent, name)
                check("an accepted attempt is never sent again", not (truth.made or truth.was_accepted), name)
                check("nothing is sent unless RUNNING", self.core.state is BatchState.RUNNING, name)
                truth.may_withdraw = False
            case act.WithdrawIntent():
                is_right = truth.may_withdraw and not truth.made
                check("an intent is withdrawn only after a refusal or proof", is_right, name)
            case act.WriteJobId():
                is_known = record is not None and record.job_id in {None, action.job_id}
                check("an attempt has one job at most", is_known, name)
                owner = self.known_jobs.setdefault(action.job_id, name)
                check("a job has one owner", owner == name, (action.job_id, owner, name))
            case act.FollowStream() | act.RetrieveJob():
                owner = self.known_jobs.setdefault(action.job_id, name)
                check("a job has one owner", owner == name, (action.job_id, owner, name))
                is_noted = record is not None and record.job_id == action.job_id
                check("a job has one owner", is_noted, (record, action))
            case act.WriteEnd():
                check("an attempt ends once", name not in self.was_ended, name)

    def _begin(self, name: act.AttemptId) -> None:
        """Note that an attempt goes to the service, if it is new."""
        check("a label has one live attempt at most", self.live.setdefault(name.label, name) == name, name)
        check("a label has one live attempt at most", name not in self.replaced, name)
        self._check_asked_for(name)
        self.begun.add(name)

    def _check_asked_for(self, name: act.AttemptId) -> None:
        """Check that a further attempt has a reason, which the caller gave."""
        before = self.disk.get(name.label, {}).get(name.number - 1)
        if before is None or self._record(name) is not None:
            # The first one, or one that an earlier run began.
            return
        is_changed = self.settings.accepts_changes and before.request != self.requests[name.label]
        is_failed = before.job is not None and before.job.status != Status.SUCCEEDED and self.settings.retries_failed
        is_unknown = before.job is None and name.label in self.settings.retries_uncertain
        check("a new attempt is one that the caller asked for", is_changed or is_failed or is_unknown, (name, before))

    def _check_limits(self, name: act.AttemptId) -> None:
        """Check what limits a create. Its intent is about to be written, so from here on it is sent."""
        check("nothing is sent unless RUNNING", self.core.state is BatchState.RUNNING, name)
        sending = self._under_way(act.WriteIntent, act.SendCreate, act.WithdrawIntent, act.ResumeCreate)
        check("limits are kept", sending < self.settings.concurrency, (sending, self.pending))
        check("limits are kept", not self.is_full, "the service is full")
        check("limits are kept", self.now >= max(self.held_until, self.next_at), (self.now, self.held_until))
        if self.settings.per_minute is not None:
            self.next_at = self.now + 60 / self.settings.per_minute
        if self.settings.max_active < float("inf"):
            check("limits are kept", self.listed_others is not None, "others were not looked for")
            # A service may give out another's job, which then counts as this batch's.
            others = {job_id for job_id in self.listed_others or () if self._owner(job_id) is None}
            followed = self.core.counts().active
            check("limits are kept", sending + followed + len(others) < self.settings.max_active, (sending, followed))

    def _under_way(self, *kinds: type[act.AttemptAction]) -> int:
        # Of one that follows its job already the call does not count.
        return sum(isinstance(action, kinds) and action.attempt not in self._followed() for action in self.pending)

    def _followed(self) -> set[act.AttemptId]:
        return {name for job_id, name in self.known_jobs.items() if self._holds(name, job_id)}

    def _holds(self, name: act.AttemptId, job_id: str) -> bool:
        record = self._record(name)
        return record is not None and record.job_id == job_id

    def _report(self, action: act.ReportOutcome) -> None:
        name = action.attempt
        check("an attempt ends once", name not in self.reported, name)
        is_alone = self.live.setdefault(name.label, name) == name
        check("a label has one live attempt at most", is_alone, (name, self.live[name.label]))
        record = self._record(name)
        match action.status:
            case "succeeded" | "failed" | "cancelled":
                is_written = record is not None and record.job is not None and record.job_id == action.job_id
                check("an attempt ends once", is_written, (action, record))
                check("an attempt ends once", self.jobs.get(str(action.job_id)) in {action.job, None}, action)
            case "rejected":
                is_clean = record is None or record.sent is None
                check("an intent is withdrawn only after a refusal or proof", is_clean, record)
                check("an accepted attempt is never sent again", not self.truths[name].made, name)
            case "uncertain":
                check("an attempt has one job at most", record is not None and record.sent is not None, record)
        self.reported.add(name)
        self.outcomes.append(action)
        if not action.is_replayed and action.job_id is not None:
            self.is_full = False

    def _finish(self, action: act.Finish) -> None:
        self.finish = action
        is_whole = action.failure is None and action.why is None
        if is_whole:
            labels = [name.label for name in self.reported]
            check("every entry has an outcome", sorted(labels) == sorted(self.requests), labels)
        kinds = (act.UploadFiles, act.WriteIntent, act.SendCreate, act.WriteJobId, act.WithdrawIntent)
        left = [it for it in self.pending if isinstance(it, kinds) and it.attempt in self.live.values()]
        check("every stop is reached", self.wants_stop or not left, left)

    # Steps

    def step(self) -> None:
        """Let one thing happen."""
        self.steps += 1
        if self.finish is not None:
            self._after_finish()
            return
        happenings: list[Callable[[], None]] = [self._answer] * 12 + [self._take] * 3 + [self._pass_time] * 2
        happenings.append(self.go_on)
        if self.faults:
            happenings += (
                [self._end_some_job] * 2 + [self._other_job] + [self._disturb] * (self.chance.choice(range(8)) == 0)
            )
        self.chance.choice(happenings)()

    def _after_finish(self) -> None:
        while self.outcomes:
            self._take()
        counts = self.core.counts()
        check("counts are those of the states", counts.waiting <= self.settings.concurrency, counts)
        if self.chance.choice((False, True)):
            self.send(on.LeaveAsked(cancels=self.chance.choice((False, True))))
        self.change_and_start()

    def _take(self) -> None:
        if self.outcomes:
            self.send(on.OutcomeTaken(self.outcomes.popleft().attempt))

    def _pass_time(self) -> None:
        self.go_on()
        if self.finish is not None:
            return
        if self.wakes_at is not None:
            self.now = max(self.now, self.wakes_at) + (400 if self._fails() else 0)
            self.wakes_at = None
            self.send(on.TimersDue())
        else:
            self.now += self.chance.choice((0.1, 1.0, 400.0 if self.faults else 1.0))

    def _disturb(self) -> None:
        match self.chance.choice(range(8)):
            case 0:
                self.wants_stop = True
                self.send(on.StopAsked())
            case 1:
                self.wants_stop = True
                is_at_once = self.chance.choice((False, True))
                cancels = self.chance.choice((False, True))
                if is_at_once:
                    # The shell has ended all tasks: what was under way may have had its effect.
                    self._lose_pending()
                self.send(on.LeaveAsked(cancels=cancels, is_at_once=is_at_once))
            case 2:
                self.wants_stop = True
                self.send(on.ShellFailed(ZeroDivisionError()))
            case 3 | 4:
                self._forget_some_job()
            case _:
                self.die()

    def _lose_pending(self) -> None:
        for action in self.pending:
            if self.chance.choice((False, True)):
                if isinstance(action, act.SendCreate):
                    self._make(action.attempt)
                elif isinstance(action, act.AttemptAction):
                    self._write(action)
        self.pending.clear()

    def _forget_some_job(self) -> None:
        """Let the service forget a job that it said that it made."""
        known = sorted((self.known_jobs.keys() & self.jobs.keys()) - self.others)
        if known:
            del self.jobs[self.chance.choice(known)]

    def _end_some_job(self) -> None:
        active = [job_id for job_id, job in self.jobs.items() if not job.is_terminal]
        if active:
            self._end(self.chance.choice(active), self._status())

    def _other_job(self) -> None:
        if bool(self.others) and self.chance.choice((False, True)):
            job_id = self.chance.choice(sorted(self.others))
            self.others.discard(job_id)
            self._end(job_id, Status.SUCCEEDED)
        elif len(self.others) < 3:
            self.others.add(self._new_job())

    def run_to_the_end(self) -> None:
        """Let the service answer everything, until the batch is done."""
        self.faults = False
        if self.finish is None:
            self.go_on()
        begin = self.now
        for _ in range(400 + 60 * len(self.requests)):
            if self.finish is not None:
                while self.outcomes:
                    self._take()
                return
            check("every stop is reached", self.now - begin < 10_000, "in that time")
            self.steps += 1
            self._end_some_job()
            while self.others:
                self._end(self.others.pop(), Status.SUCCEEDED)
            answerable = [action for action in self.pending if not self._must_wait(action)]
            if answerable:
                self._answer()
            self._take()
            if self.finish is None and (not answerable or self.chance.choice((False, True))):
                self._pass_time()
        check("every stop is reached", False, (self.core.state, self.core.counts(), self.pending))

    # The answers

    def _answer(self) -> None:
        answerable = [action for action in self.pending if not self._must_wait(action)]
        if not answerable:
            return
        action = self.chance.choice(answerable)
        self.pending.remove(action)
        event = self._event(action)
        if isinstance(event, on.CreateEvent) and isinstance(action, act.SendCreate):
            self._note_answer(action, event)
        if isinstance(event, on.JobVanished):
            # What a list said of its end counts more.
            is_ended = isinstance(action, act.RetrieveJob) and action.job_id in self.listed_ends
            if not is_ended:
                self._note_replacement(event.attempt)
        self.send(event)

    def _must_wait(self, action: act.Action) -> bool:
        # A stream ends with its job.
        if isinstance(action, act.FollowStream):
            job = self.jobs.get(action.job_id)
            return job is not None and not job.is_terminal and not self.faults
        return False

    def _note_answer(self, action: act.SendCreate, event: on.CreateEvent) -> None:
        truth = self.truths[action.attempt]
        truth.was_accepted = isinstance(event, on.JobCreated | on.JobNamed | on.CreateAccepted)
        truth.may_withdraw = not truth.was_accepted and not isinstance(event, on.CreateUnclear)
        if isinstance(event, on.CreateThrottled):
            self.held_until = max(self.held_until, self.now + (event.retry_after or 10.0))
        if isinstance(event, on.TooManyActive):
            self.is_full = True

    def _note_replacement(self, name: act.AttemptId) -> None:
        # Of those that an earlier run made.
        if name.label in self.settings.retries_uncertain and name not in self.begun:
            del self.live[name.label]
            self.replaced.add(name)

    def _event(self, action: act.Action) -> on.Event:
        match action:
            case act.ReadEarlierRuns():
                return self._earlier_runs()
            case act.ReadEntries():
                return self._entries(action)
            case act.LookAtList():
                return self._list()
            case act.AttemptAction():
                return self._event_of_attempt(action)
        raise LookupError(action)

    def _event_of_attempt(self, action: act.AttemptAction) -> on.Event:
        match action:
            case act.SearchForCreate():
                return self._search(action)
            case act.UploadFiles():
                return self._upload(action)
            case act.SendCreate():
                return self._create(action)
            case act.ResumeCreate():
                return self._resume(action)
            case act.FollowStream() | act.RetrieveJob():
                return self._follow(action)
            case act.FetchResults():
                error = LocalFault("no file") if self._fails() else None
                return on.ResultsFetched(action.attempt, {"training_loss": 0.1}, error)
        return self._written(action)

    def _fails(self) -> bool:
        return self.faults and self.chance.choice(range(self.fault_in)) == 0

    def _earlier_runs(self) -> on.Event:
        last = [records[max(records)] for records in self.disk.values()]
        owners = {
            record.job_id: record.attempt
            for records in self.disk.values()
            for record in records.values()
            # An old one may be left out.
            if record.job_id is not None and not (self.faults and self.chance.choice((False, True)))
        }
        return on.EarlierRunsRead(tuple(it for it in last if it.sent is not None and it.job_id is None), owners)

    def _entries(self, action: act.ReadEntries) -> on.Event:
        if self._fails() and self._fails():
            self.wants_stop = True
            return on.InputFailed(ZeroDivisionError())
        if not self.input:
            return on.InputEnded()
        number = self.chance.choice(range(1, action.most + 1))
        entries = [self._entry(self.input.popleft()) for _ in range(min(number, len(self.input)))]
        if self._fails() and self._fails() and self._fails():
            # A label that is there twice. The journal says so, but for one that is under way the core knows it too.
            twice = self.chance.choice((entries[0].label, *self.live))
            is_live = twice == entries[0].label or self.live[twice] not in self.reported
            problem = None if is_live else JournalUnusable("twice")
            entries.append(attrs.evolve(self._entry(twice), problem=problem))
            self.wants_stop = True
        return on.EntriesRead(tuple(entries))

    def _entry(self, label: str) -> on.KnownEntry:
        records = self.disk.get(label, {})
        last = records[max(records)] if records else None
        request = self.requests[label]
        change = "it is another" if last is not None and last.request != request else ""
        # A file may have to be uploaded.
        sent = self.chance.choice((None, request))
        return on.KnownEntry(label, request, last, change, sent=sent)

    def _list(self) -> on.Event:
        if self._fails():
            error: FineTuneError = AuthenticationFailed(401, "no") if self._fails() else self.chance.choice(PASSING)
            return on.ListFailed(error)
        hidden = {job_id for job_id in self.jobs if self._fails()}
        seen = {job_id: job for job_id, job in self.jobs.items() if job_id not in hidden}
        unreadable = frozenset(job_id for job_id in seen if self._is_unreadable(job_id))
        active = frozenset(job_id for job_id, job in seen.items() if not job.is_terminal and job_id not in unreadable)
        ended = {job_id: job for job_id, job in seen.items() if job.is_terminal and job_id not in unreadable}
        self.listed_ends = set(ended)
        if ended and not self.is_partly_listed and self.chance.choice(range(3)) == 1:
            # Some of them first; the rest follows.
            self.is_partly_listed = True
            return on.EndsListed({job_id: job for job_id, job in ended.items() if self.chance.choice(range(2))})
        self.is_partly_listed = False
        self.listed_others = set((active | unreadable) & self.others)
        self.is_full = False
        return on.ListRead(active, ended, unreadable)

    def _is_unreadable(self, job_id: str) -> bool:
        if self._fails() and self._fails():
            # It stays so.
            self.unreadable.add(job_id)
        return self.faults and job_id in self.unreadable

    def _search(self, action: act.SearchForCreate) -> on.Event:
        name, truth = action.attempt, self.truths[action.attempt]
        error = CreateUncertain(action.sent, action.sent_at, (), action.is_accepted)
        if self._fails() or (action.is_accepted and not truth.made):
            return on.CreateUnclear(name, error)
        if truth.made:
            return on.JobFound(name, truth.made[0])
        truth.may_withdraw = True
        return on.NothingMade(name)

    def _upload(self, action: act.UploadFiles) -> on.Event:
        if self._fails():
            if self._fails():
                self.wants_stop = True
                return on.JournalFailed(action.attempt, JournalUnusable("the disk is full"))
            event = self._refusal(action.attempt)
            if isinstance(event, on.CreateThrottled):
                self.held_until = max(self.held_until, self.now + (event.retry_after or 10.0))
            return event
        return on.FilesUploaded(action.attempt, attrs.evolve(action.request, suffix="sent"))

    def _refusal(self, name: act.AttemptId) -> on.CreateEvent:
        error = self.chance.choice((
            BadRequest(400, "no"),
            ConnectFailed("away"),
            QuotaExceeded(429, "used up"),
            RateLimited(429, "slow down"),
            RateLimited(429, "slow down"),
        ))  # fmt: skip
        event = create_failed(name, error, was_throttled=self.chance.choice((False, True)))
        if not isinstance(event, on.CreateEvent):
            raise TypeError(event)
        return event

    def _create(self, action: act.SendCreate) -> on.Event:
        name = action.attempt
        if not self.core.is_running and self.chance.choice((False, True)):
            return on.CreateNotSent(name)
        if not (self._fails() or self._fails()):
            return on.JobCreated(name, self._make(name))
        match self.chance.choice(range(7)):
            case 0:
                return self._refusal(name)
            case 1:
                return on.TooManyActive(name, TooManyJobs(429, "full"))
            case 2 | 3:
                self._make(name)
                return on.CreateAccepted(name, self.chance.choice((None, "ft-hint")))
            case 4:
                self.named.add(name)
                made = self._make(name)
                # The service may not know what it names.
                return on.JobNamed(name, self.chance.choice((made, f"{made}-unknown")))
            case 5 if len(self.jobs) > 1:
                # A service that gives out a job twice.
                self._make(name)
                return on.JobCreated(name, self.chance.choice(sorted(self.jobs)))
            case _:
                if self.chance.choice((False, True)):
                    self._make(name)
                candidates = self.chance.choice(((), (FineTune("ft-else", Status.PENDING),)))
                return on.CreateUnclear(name, CreateUncertain(action.sent, self.now, candidates))

    def _resume(self, action: act.ResumeCreate) -> on.Event:
        name, record = action.attempt, self._record(action.attempt)
        if name in self.named and record is not None and record.job_id is not None:
            self.named.discard(name)
            if self._fails() or record.job_id not in self.jobs:
                return on.CreateAccepted(name, record.job_id)
            if self._fails():
                return on.JobUnreadable(name, ProtocolViolation("no status"))
            return on.JobCreated(name, record.job_id)
        made = self.truths[name].made
        if made and not self._fails():
            return on.JobCreated(name, self.chance.choice(sorted({*self.jobs, made[0]})) if self._fails() else made[0])
        request = FineTuneRequest(training_file="file-1")
        return on.CreateUnclear(name, CreateUncertain(request, self.now, (), accepted=True))

    def _follow(self, action: act.FollowStream | act.RetrieveJob) -> on.Event:
        name, job = action.attempt, self.jobs.get(action.job_id)
        if job is None:
            return on.JobVanished(name, NotFound(404, "no such job"))
        if self._is_unreadable(action.job_id):
            error = ProtocolViolation("no status")
            return (
                on.StreamFailed(name, error) if isinstance(action, act.FollowStream) else on.JobUnreadable(name, error)
            )
        if self._fails():
            match self.chance.choice(range(4)):
                case 0:
                    return on.JobVanished(name, NotFound(404, "gone"))
                case 1 if isinstance(action, act.FollowStream):
                    return on.StreamFailed(name, AuthenticationFailed(401, "no"))
                case _ if isinstance(action, act.FollowStream):
                    return on.StreamFailed(name, ProtocolViolation("no stream"))
                case _:
                    return on.JobUnreadable(name, ProtocolViolation("no status"))
        if isinstance(action, act.RetrieveJob):
            return on.JobRetrieved(name, job)
        if not job.is_terminal:
            job = self._end(action.job_id, self._status())
        return on.JobEnded(name, job)

    def _written(self, action: act.AttemptAction) -> on.Event:
        if self._fails() and self._fails():
            self.wants_stop = True
            if self.chance.choice((False, True)):
                self._write(action)
            return on.JournalFailed(action.attempt, JournalUnusable("the disk is full"))
        name = action.attempt
        match action:
            case act.WriteIntent():
                self._write(action)
                return on.IntentOnDisk(name, self.now)
            case act.WithdrawIntent():
                self._write(action)
                return on.IntentWithdrawn(name)
            case act.WriteAccepted():
                self._write(action)
                return on.AcceptedOnDisk(name)
            case act.WriteJobId():
                return on.JobIdOnDisk(name) if self._write(action) else on.JobIdTaken(name)
            case act.WriteEnd():
                self._write(action)
                self.was_ended.add(name)
                return on.EndOnDisk(name, self.now)
        raise LookupError(action)

    # The disk and the service

    def _record(self, name: act.AttemptId) -> on.AttemptRecord | None:
        return self.disk.get(name.label, {}).get(name.number)

    def _write(self, action: act.AttemptAction) -> bool:
        name, record = action.attempt, self._record(action.attempt)
        match action:
            case act.WriteIntent():
                is_new = record is None or (record.job_id is None and not record.is_accepted)
                check("an accepted attempt is never sent again", is_new, record)
                record = on.AttemptRecord(name, action.request, action.sent, self.now)
            case act.WithdrawIntent() if record is not None:
                check("an accepted attempt is never sent again", not record.is_accepted, record)
                record = on.AttemptRecord(name, record.request)
            case act.WriteAccepted() if record is not None:
                record = attrs.evolve(record, is_accepted=True, hint=action.hint, job_id=None)
                self._disown(name)
            case act.WriteJobId() if record is not None:
                if self._owner(action.job_id) not in {None, name}:
                    # The journal refuses an id that it has already.
                    self._disown(name)
                    return False
                record = attrs.evolve(record, job_id=action.job_id)
            case act.WriteEnd() if record is not None:
                record = attrs.evolve(record, job=action.job, ended_at=self.now)
        if record is not None:
            self.disk.setdefault(name.label, {})[name.number] = record
        return True

    def _owner(self, job_id: str) -> act.AttemptId | None:
        records = [record for attempts in self.disk.values() for record in attempts.values()]
        return next((record.attempt for record in records if record.job_id == job_id), None)

    def _disown(self, name: act.AttemptId) -> None:
        for job_id in [job_id for job_id, owner in self.known_jobs.items() if owner == name]:
            del self.known_jobs[job_id]

    def _new_job(self) -> str:
        job_id = f"ft-{next(self.job_numbers)}"
        self.jobs[job_id] = FineTune(job_id, Status.PENDING)
        return job_id

    def _make(self, name: act.AttemptId) -> str:
        truth = self.truths[name]
        check("an accepted attempt is never sent again", not truth.made, name)
        truth.made.append(self._new_job())
        return truth.made[-1]

    def _status(self) -> str:
        return self.chance.choice((Status.SUCCEEDED, Status.SUCCEEDED, Status.FAILED, Status.CANCELLED))

    def _end(self, job_id: str, status: str) -> FineTune:
        if not self.jobs[job_id].is_terminal:
            # At some services the list leaves out the models.
            model = "ada:ft" if status == Status.SUCCEEDED and self.chance.choice((False, True)) else None
            self.jobs[job_id] = attrs.evolve(self.jobs[job_id], status=status, fine_tuned_model=model)
        return self.jobs[job_id]


def drive(chance: Chance, steps: int, entries: int = 12) -> int:
    """Drive a batch for a number of steps, and then to its end; return the number of steps."""
    model = Model(chance, chance.choice((1, entries, 3 * entries)), settings_of(chance))
    while model.steps < steps:
        model.step()
    model.run_to_the_end()
    return model.steps
