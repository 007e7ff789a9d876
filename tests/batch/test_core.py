"""The core of a batch keeps its promises, whatever the service, the disk and the caller do, and in whatever order."""

from __future__ import annotations

import gc
import random
from collections import Counter
from collections.abc import Sequence
from typing import TypeVar

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aiofinetune import FineTuneRequest
from aiofinetune._jobs.recovery import NotSent
from aiofinetune.batch._core import (
    ANSWERS,
    ATTEMPT_TABLE,
    BATCH_TABLE,
    AttemptState,
    BatchCore,
    BatchState,
    Settings,
    UnexpectedEvent,
    create_failed,
)
from aiofinetune.batch._core import actions as act
from aiofinetune.batch._core import events as on
from aiofinetune.batch._core.attempts import Attempt, Attempts
from aiofinetune.errors import (
    AuthenticationFailed,
    ConnectFailed,
    FineTuneError,
    FineTuneUnreadable,
    JournalUnusable,
    NotFound,
    PermissionDenied,
    QuotaExceeded,
    RateLimited,
    RequestInvalid,
    ServerError,
    TooManyJobs,
)
from aiofinetune.models import CreateUncertain, FineTune, Status
from tests.batch.coremodel import drive

T = TypeVar("T")

REQUEST = FineTuneRequest(training_file="file-1")


class Drawn:
    """Chance that hypothesis can make simpler."""

    def __init__(self, data: st.DataObject) -> None:
        self._data = data

    def choice(self, seq: Sequence[T]) -> T:
        """Draw the place of one of them."""
        return seq[self._data.draw(st.integers(0, len(seq) - 1))]


# Random events


@settings(
    max_examples=30,
    deadline=None,
    report_multiple_bugs=False,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(st.data())
def test_what_a_batch_promises(data: st.DataObject) -> None:
    """No order of events and crashes breaks a rule; what does is made as short as can be."""
    drive(Drawn(data), 60, entries=3)


@pytest.mark.parametrize("seed", range(8))
def test_what_a_batch_promises_at_length(seed: int) -> None:
    """The same with many entries, by random numbers."""
    assert drive(random.Random(f"core {seed}"), 1000) >= 1000  # noqa: S311  # by chance


def test_every_row_of_the_table_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """The model reaches each row, and each action that an event answers: none is there for nothing."""
    rows: Counter[object] = Counter()
    apply = Attempts.apply

    def noted(self: Attempts, attempt: Attempt, event: on.AttemptEvent) -> None:
        rows[attempt.state, type(event)] += 1
        rows[type(event), attempt.awaits] += 1
        apply(self, attempt, event)

    monkeypatch.setattr(Attempts, "apply", noted)
    wanted = {*ATTEMPT_TABLE, *((event, action) for event, actions in ANSWERS.items() for action in actions)}
    # The first few take them all. If the core changes, they may no longer, and it takes longer.
    for seed in (282, 232, 4, 38, 134, 204, 276, 23, *range(1004, 2000)):
        drive(random.Random(seed), 200)  # noqa: S311  # by chance
        if wanted <= rows.keys():
            return
    pytest.fail(f"not taken: {wanted - rows.keys()}")


# The tables


def test_the_tables_say_what_the_states_promise() -> None:
    """What the head of the module says of the tables is so."""
    before: dict[AttemptState, set[tuple[AttemptState, type[on.AttemptEvent]]]] = {
        state: set() for state in AttemptState
    }
    for (state, event), after in ATTEMPT_TABLE.items():
        if state is not after:
            before[after].add((state, event))
    assert before[AttemptState.SENDING] == {(AttemptState.READY, on.IntentOnDisk)}
    assert before[AttemptState.ACTIVE] == {(AttemptState.ACCEPTED, on.JobIdOnDisk)}
    assert before[AttemptState.READY] == {
        (AttemptState.SENDING, on.CreateNotSent),
        (AttemptState.SENDING, on.CreateThrottled),
        (AttemptState.SENDING, on.TooManyActive),
        (AttemptState.SENDING, on.CreateRefused),
        (AttemptState.SENDING, on.CreateBarred),
        (AttemptState.SENDING, on.NotReached),
        (AttemptState.UNKNOWN, on.NothingMade),
    }
    assert not [event for state, event in ATTEMPT_TABLE if state is AttemptState.ENDED]
    assert {event for _state, event in ATTEMPT_TABLE} == set(ANSWERS)
    assert not [event for state, event in BATCH_TABLE if BATCH_TABLE[state, event] is BatchState.RUNNING]


@pytest.mark.parametrize("state", AttemptState)
def test_an_event_without_a_row_is_a_bug(state: AttemptState) -> None:
    """What cannot follow is raised, and changes nothing."""
    for event in (on.JobIdOnDisk, on.IntentWithdrawn, on.AcceptedOnDisk, on.NothingMade):
        if (state, event) not in ATTEMPT_TABLE:
            attempts, attempt = Attempts(), Attempt(act.AttemptId("one"), REQUEST, state=state)
            attempts.add(attempt)
            with pytest.raises(UnexpectedEvent, match=f"is {state.value} and awaits nothing"):
                attempts.apply(attempt, event(attempt.id))
            assert attempt.state is state


# Single cases


def handled(core: BatchCore, event: on.Event, now: float) -> list[act.Action]:
    """Return what follows from an event that comes alone."""
    return core.handle(event, now) + core.go_on(now)


def started(given: Settings) -> BatchCore:
    core = BatchCore(given)
    handled(core, on.Started(), 0.0)
    return core


def test_events_that_cannot_be() -> None:
    """An event of an attempt that is not there, one of the core's own, and one after the end are raised."""
    core = started(Settings())
    with pytest.raises(UnexpectedEvent, match="not under way"):
        handled(core, on.IntentOnDisk(act.AttemptId("one"), 1.0), 0.0)
    with pytest.raises(UnexpectedEvent, match="the core's own"):
        handled(core, on.SendingStopped(), 0.0)
    with pytest.raises(UnexpectedEvent, match="not asked for"):
        handled(core, on.ListRead(frozenset(), {}), 0.0)
    assert handled(core, on.StopAsked(), 0.0) == [act.Finish(None, "it was asked to stop", None)]
    with pytest.raises(UnexpectedEvent, match="is done"):
        handled(core, on.TimersDue(), 0.0)


def test_an_attempt_that_may_have_made_a_job_is_not_sent() -> None:
    """An entry whose intent is on the disk, and that nothing was found out about, is a bug, and no create."""
    core = started(Settings())
    handled(core, on.EarlierRunsRead(), 0.0)
    record = on.AttemptRecord(act.AttemptId("one"), REQUEST, REQUEST, 1.0)
    with pytest.raises(UnexpectedEvent, match="was not searched for"):
        handled(core, on.EntriesRead((on.KnownEntry("one", REQUEST, record),)), 0.0)


def test_an_attempt_that_takes_the_place_of_another_holds_up_nothing() -> None:
    """It waits for a place, while what has one goes on, though its entry came before."""
    one, two = act.AttemptId("one"), act.AttemptId("two")
    core = started(Settings(concurrency=1, retries_uncertain=frozenset({"one"})))
    handled(core, on.EarlierRunsRead(), 0.0)
    record = on.AttemptRecord(one, REQUEST, REQUEST, 1.0, job_id="ft-1")
    handled(core, on.EntriesRead((on.KnownEntry("one", REQUEST, record), on.KnownEntry("two", REQUEST))), 0.0)
    handled(core, on.JobVanished(one, NotFound(404, "gone")), 0.0)
    assert handled(core, on.FilesUploaded(two, REQUEST), 0.0) == [act.WriteIntent(two, REQUEST, REQUEST)]
    handled(core, on.IntentOnDisk(two, 1.0), 0.0)
    handled(core, on.JobCreated(two, "ft-2"), 0.0)
    assert act.UploadFiles(one.next, REQUEST) in handled(core, on.JobIdOnDisk(two), 0.0)


def attempts_in_memory() -> int:
    gc.collect()
    return sum(isinstance(thing, Attempt) for thing in gc.get_objects())


def test_what_is_over_is_forgotten() -> None:
    """However many entries there are, no more attempts are in memory than are under way."""
    core = started(Settings())
    actions = handled(core, on.EarlierRunsRead(), 0.0)
    most, before = 0, attempts_in_memory()
    for number in range(500):
        assert [type(action) for action in actions] == [act.ReadEntries]
        name = act.AttemptId(str(number))
        job = FineTune(f"ft-{number}", Status.SUCCEEDED)
        for event in (
            on.EntriesRead((on.KnownEntry(name.label, REQUEST),)),
            on.FilesUploaded(name, REQUEST),
            on.IntentOnDisk(name, 1.0),
            on.JobCreated(name, job.id),
            on.JobIdOnDisk(name),
            on.JobEnded(name, job),
            on.EndOnDisk(name, 2.0),
            on.OutcomeTaken(name),
        ):
            actions = [it for it in handled(core, event, 0.0) if isinstance(it, act.ReadEntries)] or actions
        if number % 100 == 0:
            most = max(most, attempts_in_memory() - before)
    assert most < 20
    assert core.counts().seen == core.counts().ended["succeeded"] == 500


LOOK = act.LookAtList(1.0)


def following(given: Settings, count: int) -> tuple[BatchCore, list[on.AttemptRecord]]:
    """Return a core that follows jobs of an earlier run by the list, and what the journal has of them."""
    core = started(given)
    handled(core, on.EarlierRunsRead(), 0.0)
    names = [act.AttemptId(str(number)) for number in range(count)]
    records = [on.AttemptRecord(name, REQUEST, REQUEST, 1.0, job_id=f"ft-{name.label}") for name in names]
    handled(core, on.EntriesRead(tuple(on.KnownEntry(it.attempt.label, REQUEST, it) for it in records)), 0.0)
    assert handled(core, on.TimersDue(), 10.0) == [LOOK]
    return core, records


def test_ends_are_asked_for_as_the_caller_takes_them() -> None:
    """Where a look finds many ends, the next ones come once fewer than may wait are in hand, and none is kept by it."""
    core, records = following(Settings(max_streams=0, max_waiting=2), 3)
    jobs = [FineTune(str(it.job_id), Status.SUCCEEDED, fine_tuned_model="ada:ft-x") for it in records]
    names, before = [it.attempt for it in records], attempts_in_memory()
    writes = [act.WriteEnd(name, job) for name, job in zip(names, jobs, strict=True)]
    assert handled(core, on.EndsListed({job.id: job for job in jobs[:2]}), 11.0) == writes[:2]
    assert LOOK not in handled(core, on.EndOnDisk(names[0], 2.0), 11.0)
    assert LOOK in handled(core, on.OutcomeTaken(names[0]), 11.0)
    assert attempts_in_memory() == before - 1
    assert LOOK not in handled(core, on.EndOnDisk(names[1], 2.0), 11.0)
    assert handled(core, on.EndsListed({jobs[2].id: jobs[2]}), 12.0) == writes[2:]


def test_ends_are_asked_for_while_results_are_fetched() -> None:
    """A results file that does not come holds up no end of another job."""
    core, records = following(Settings(max_streams=0, max_waiting=1, wants_results=True), 2)
    job = FineTune(str(records[0].job_id), Status.SUCCEEDED, fine_tuned_model="ada:ft-x")
    assert LOOK not in handled(core, on.EndsListed({job.id: job}), 11.0)
    fetch = act.FetchResults(records[0].attempt, job, is_replayed=False)
    assert handled(core, on.EndOnDisk(records[0].attempt, 2.0), 11.0) == [fetch, LOOK]


@pytest.mark.parametrize(
    ("error", "event"),
    [
        (NotSent(), on.CreateNotSent),
        (JournalUnusable("full"), on.JournalFailed),
        (CreateUncertain(REQUEST, 1.0), on.CreateUnclear),
        (FineTuneUnreadable("no status", "ft-1"), on.JobUnreadable),
        (QuotaExceeded(429, "used up"), on.CreateBarred),
        (AuthenticationFailed(401, "no"), on.CreateBarred),
        (PermissionDenied(403, "no"), on.CreateBarred),
        (TooManyJobs(429, "full"), on.TooManyActive),
        (RateLimited(429, "slow down"), on.CreateThrottled),
        (ConnectFailed("away"), on.NotReached),
        (ServerError(502, "<html>"), on.NotReached),
        (ServerError(501, "<html>", is_foreign=True), on.CreateBarred),
        (NotFound(404, "<html>", is_foreign=True), on.CreateBarred),
        (NotFound(404, "no such file"), on.CreateRefused),
        (RequestInvalid("model", "no"), on.CreateRefused),
    ],
)
def test_what_an_error_of_a_create_means(error: FineTuneError | NotSent, event: type[on.Event]) -> None:
    """Each error of a create's call is one event."""
    assert type(create_failed(act.AttemptId("one"), error)) is event
