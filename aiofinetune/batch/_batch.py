"""Many jobs at once: under the service's limits, followed to their ends, and safe to kill at any moment.

Of all requests, only those that are under way are in memory. What was sent and what came of it is in the journal
(`aiofinetune.batch._journal`), which says after a crash what to look for before anything is sent again.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import hashlib
import logging
import math
import os
import re
import time
from collections.abc import AsyncGenerator, AsyncIterable, Callable, Container, Iterable, Mapping
from contextlib import AsyncExitStack, aclosing
from pathlib import Path
from types import TracebackType
from typing import Final, Literal, Self, TypeAlias, get_args

import attrs

from aiofinetune import retry
from aiofinetune._jobs.recovery import NotSent
from aiofinetune.batch._data_files import Uploads
from aiofinetune.batch._journal import Journal, Record
from aiofinetune.batch._limiter import RateLimiter
from aiofinetune.batch._manifest import Entry
from aiofinetune.errors import (
    AuthenticationFailed,
    ConfigurationError,
    FineTuneError,
    FineTuneUnreadable,
    JournalUnusable,
    LocalFileError,
    NotFound,
    PermissionDenied,
    ProtocolViolation,
    QuotaExceeded,
    RateLimited,
    RequestInvalid,
    ServerError,
    TooManyJobs,
    TransportError,
)
from aiofinetune.models import (
    CreateUncertain,
    FineTune,
    FineTuneCancelled,
    FineTuneEnded,
    FineTuneFailed,
    FineTuneRequest,
    Status,
)
from aiofinetune.results._rows import last_figures, read_results
from aiofinetune.session import FineTuneSession

Requests: TypeAlias = Iterable[Entry | FineTuneRequest] | AsyncIterable[Entry | FineTuneRequest]

_log = logging.getLogger("aiofinetune")

MAX_STREAMS: Final = 32
"""Jobs that are followed by their event streams. Past that, one look at the list for all of them costs less."""

_MAX_OUTCOMES_WAITING: Final = 100
_MAX_HOLD: Final = 10.0
"""Seconds for which no create is sent where the service throttles, does not say for how long, and was asked again and
again."""
_RECENT: Final = 3600.0
"""Seconds. What was made before cannot be taken for what is made now, whatever the clocks show."""
_MAX_UNREACHED: Final = 3
"""Requests in a row that could not be sent at all, each tried again and again, before no more are tried."""
_MAX_NAMELESS: Final = 3
"""Creates in a row that may be accepted by replies that name no job, before no more are sent."""
_LONGEST_BLIND: Final = 300.0
"""Seconds for which the list of jobs, once it was read, or a job, may be out of reach or unreadable."""


OutcomeStatus: TypeAlias = Literal["succeeded", "failed", "cancelled", "rejected", "uncertain", "vanished"]
"""How an entry ended: see `Outcome.status`."""


@attrs.frozen
class Outcome:
    """What came of one request of a batch."""

    label: str
    request: FineTuneRequest
    """As the caller asked; its files may be local paths."""
    job_id: str | None
    """The job's id; None if none was made, or it is not known."""
    job: FineTune | None
    """The job as it ended; None if none was made, or the service no longer knows it."""
    error: FineTuneError | None
    """Why there is no tuned model, if there is none."""
    sent_at: float | None
    """Unix time at which the request was sent."""
    ended_at: float
    """Unix time at which its end was seen."""
    figures: Mapping[str, float] = attrs.field(factory=dict)
    """The last value of each column of the results file, where results are downloaded."""

    @property
    def status(self) -> OutcomeStatus:
        """How the entry ended, in one word.

        - ``"succeeded"``: with a model;
        - ``"failed"``: the job failed;
        - ``"cancelled"``: the job was cancelled;
        - ``"rejected"``: no job was made: the service refused the create, or it could not be sent;
        - ``"uncertain"``: it is not known whether a job was made, or nothing of the job can be read;
        - ``"vanished"``: a job was made, and the service no longer knows it.
        """
        match self.job:
            case FineTune(status=Status.SUCCEEDED):
                return "succeeded"
            case FineTune(status=Status.CANCELLED):
                return "cancelled"
            case FineTune():
                return "failed"
            case None if self.job_id is None:
                return "uncertain" if isinstance(self.error, CreateUncertain) else "rejected"
            case None:
                return "vanished" if isinstance(self.error, NotFound) else "uncertain"

    def summary(self) -> dict[str, object]:
        """What a person wants to know, as a JSON object."""
        return {
            "label": self.label,
            "status": self.status,
            "job": self.job_id,
            "model": None if self.job is None else self.job.fine_tuned_model,
            "seconds": None if self.sent_at is None else round(self.ended_at - self.sent_at, 3),
            "figures": dict(self.figures),
            "error": None if self.error is None else str(self.error),
        }


@attrs.define
class Progress:
    """How far a batch is."""

    seen: int = 0
    """Requests read."""
    active: int = 0
    """Jobs of this batch that are not over."""
    others: int = 0
    """Jobs of other programs that are not over, at the last look."""
    # How many ended in each way: the words are those of `Outcome.status`.
    succeeded: int = 0
    failed: int = 0
    cancelled: int = 0
    rejected: int = 0
    uncertain: int = 0
    vanished: int = 0
    followed_by: str = "streams"
    """How jobs are followed: ``"streams"``, or ``"list"`` where there are many."""
    began: float = attrs.field(factory=time.monotonic)

    @property
    def ended(self) -> int:
        """Requests of which the outcome is known."""
        return sum(getattr(self, status) for status in get_args(OutcomeStatus))

    def count(self, outcome: Outcome) -> None:
        """Add an outcome to the count of its status."""
        setattr(self, outcome.status, getattr(self, outcome.status) + 1)

    @property
    def ended_per_minute(self) -> float:
        """Requests ended in a minute, so far."""
        return 60 * self.ended / max(1e-9, time.monotonic() - self.began)


class BatchStopped(FineTuneError):
    """A batch ended before all its requests were sent; the cause, if there is one, is chained.

    What was sent is in the journal; running the batch again with the same journal goes on from there.
    """

    outcomes: tuple[Outcome, ...] = ()
    """Where `Batch.run` raises it: the outcomes of the requests that were sent."""


class Batch:
    """A batch of jobs: an async context manager, and within it an async iterator of outcomes as they come.

    ::

        async with Batch(session, requests, max_active=3, journal="sweep.journal") as batch:
            async for outcome in batch:
                print(outcome.label, outcome.job and outcome.job.fine_tuned_model, outcome.error)

    One failure stops nothing. With a journal the process may be killed at any moment: the same batch run again with
    the same journal gives the outcomes that were known already, goes on with the jobs that run, looks for those that
    may have been made, and sends the rest.

    Args:
        session: What to send with. It is not closed here.
        requests: What to ask for, read a few ahead of their turn; each a `FineTuneRequest`, or an `Entry` with a label.
            Their files may be local paths, which start at the current folder: each content is uploaded once.
        max_active: Jobs that may be active at the service, those of other programs included; None for no limit but
            the service's own word.
        reserve: How many of them to leave to others.
        concurrency: Requests under way at once.
        per_minute: Creates in a minute, at most; slower where the service asks for it.
        journal: The journal's path, one file; None keeps none beyond this process.
        results: A folder to download each job's results file to, as ``label.ft-….csv``.
        fail_fast: Whether to send no more after the first request that ends, in this run, without a model.
        cancel_on_exit: Whether to cancel the jobs that are still active when the context is left.
        accept_changes: Whether a request may be another than was sent under its label; it then makes a new job, and the
            old one is forgotten. One that made none may be another in any case.
        progress: Called on the event loop whenever something has changed.
        poll: Seconds between two looks at the service's list.

    Raises, as it is entered:
        JournalUnusable: The journal is in use, damaged, no journal, or of another service.
        LocalFileError: The folder for results cannot be made.

    Raises, while it is iterated:
        BatchStopped: Not all requests were sent: a quota is used up, the service cannot be reached, or `stop` was
            called. The outcomes of those that were sent come first.
        JournalUnusable: The journal cannot be written, is no longer at its path, or knows another request by a label;
            or two have one label.
    """

    def __init__(
        self,
        session: FineTuneSession,
        requests: Requests,
        *,
        max_active: int | None = None,
        reserve: int = 0,
        concurrency: int = 8,
        per_minute: float | None = None,
        journal: str | os.PathLike[str] | None = None,
        results: str | os.PathLike[str] | None = None,
        fail_fast: bool = False,
        cancel_on_exit: bool = False,
        accept_changes: bool = False,
        progress: Callable[[Progress], object] | None = None,
        poll: float = 10.0,
    ) -> None:
        _check_limits(max_active, reserve, concurrency, per_minute, poll)
        self.progress: Progress = Progress()
        self.active: dict[str, Record] = {}
        """The jobs of this batch that are not over, by id."""
        file = None if journal is None else Path(journal)
        self._journal = Journal(file, session.base_url, accept_changes=accept_changes)
        self._session = session
        # A create of the batch is noted before it is sent, and found again by another run: the session offers neither.
        self._recovery = session._recovery  # noqa: SLF001  # of this package
        self._requests = requests
        self._most_active = math.inf if max_active is None else max_active - reserve
        self._concurrency = concurrency
        self._results = None if results is None else Path(results)
        self._fail_fast = fail_fast
        self._cancel_on_exit = cancel_on_exit
        self._accept_changes = accept_changes
        self._on_progress = progress
        self._poll = poll
        self._limiter = RateLimiter(None if per_minute is None else per_minute / 60, concurrency)
        self._uploads = Uploads(session, self._journal)
        self._ending = asyncio.Semaphore(concurrency)
        self._outcomes: asyncio.Queue[Outcome | None] = asyncio.Queue()
        self._changed = asyncio.Event()
        self._sending = 0
        self._unnoted: set[str] = set()
        """Ids of jobs that were made, and are not in the journal."""
        self._others: set[str] = set()
        """Ids of jobs that were active at the last look, and that this run does not follow."""
        self._ended: set[str] | None = None
        """Ids of jobs that ended while the list is being looked at."""
        self._has_looked = False
        self._is_full = False
        """Whether the service said that it takes no more jobs until one is over."""
        self._streamed: dict[str, asyncio.Task[None]] = {}
        """What follows a job by its events, by the job's id."""
        self._settling: dict[str, asyncio.Task[None]] = {}
        """What ends a job that the list says is over, or does not know, by the job's id."""
        self._known: Container[str] = ()
        """Ids of jobs that earlier runs made, but lately."""
        self._uncertain: dict[str, CreateUncertain] = {}
        self._unreached = self._nameless = self._blind = 0
        """Creates in a row that could not be sent, creates that were accepted by replies that name no job, and looks at
        the list that failed."""
        self._looked_at = 0.0
        self._missed_since: dict[str, float] = {}
        """Since when, on the event loop's clock, nothing can be read of a job, by its id."""
        self._stopped: BatchStopped | None = None
        self._is_entered = False
        self._is_leaving = False
        self._failure: Exception | None = None
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Self:
        if self._is_entered:
            raise FineTuneError("a batch runs once; make a new one")
        self._recovery.check_loop()
        self._is_entered = True
        if self._results is not None:
            await asyncio.to_thread(_make_folder, self._results)
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(self._journal.opened())
            group = await stack.enter_async_context(asyncio.TaskGroup())
            self._runner = group.create_task(self._run())
            self._stack = stack.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._recovery.check_loop()
        async with self._stack:
            try:
                self.stop()
                if kind is None or issubclass(kind, Exception):
                    # What is being sent is waited for, so that the journal knows what came of it.
                    await asyncio.wait([self._runner])
            finally:
                self._runner.cancel()
                if self._cancel_on_exit:
                    await asyncio.wait([self._runner])
                    await self._cancel_active()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Outcome:
        if not self._is_entered:
            raise FineTuneError("the batch does not run; read it inside 'async with'")
        self._recovery.check_loop()
        outcome = await self._outcomes.get()
        self._notify()
        if outcome is not None:
            return outcome
        self._outcomes.put_nowait(None)
        if self._failure is not None:
            raise self._failure
        if self._stopped is not None:
            raise self._stopped
        raise StopAsyncIteration

    async def run(self) -> list[Outcome]:
        """Give all outcomes, when all are known.

        Raises:
            BatchStopped: Not all requests were sent; its `outcomes` are those of the requests that were.
        """
        outcomes: list[Outcome] = []
        try:
            async for outcome in self:
                outcomes.append(outcome)  # noqa: PERF401  # kept, however far it comes
        except BatchStopped as stopped:
            stopped.outcomes = tuple(outcomes)
            raise
        return outcomes

    def stop(self) -> None:
        """Send no more, and leave the jobs that are active to the service; what is being sent now is waited for."""
        self._is_leaving = True
        self._send_no_more("it was asked to", None)

    # The run: one task reads the requests, one begins with each in its turn, one looks at the list; and there is one
    # for each that is being sent, followed by its events, or settled

    async def _run(self) -> None:
        try:
            async with asyncio.TaskGroup() as tasks:
                looking = tasks.create_task(self._look_now_and_then(tasks))
                finding = tasks.create_task(self._find_lost())
                await self._unless_stopped(finding)
                finding.cancel()
                await asyncio.wait([finding])
                read: asyncio.Queue[Entry | Exception | None] = asyncio.Queue(self._concurrency)
                reading = tasks.create_task(self._read(read))
                beginning = tasks.create_task(self._begin(read, tasks))
                # An input may have nothing for long; that holds up nobody who wants to stop.
                await self._unless_stopped(beginning)
                for task in (reading, beginning):
                    task.cancel()
                await asyncio.wait([reading, beginning])
                await self._until(lambda: not self._sending and (not self.active or self._is_leaving))
                for task in (looking, *self._streamed.values(), *self._settling.values()):
                    task.cancel()
            await self._warn_of_forgotten()
        except* Exception as failures:  # noqa: BLE001  # whoever iterates gets it
            self._failure = self._failure or _first(failures)
        finally:
            self._outcomes.put_nowait(None)

    async def _read(self, read: asyncio.Queue[Entry | Exception | None]) -> None:
        """Read the requests, a few ahead of their turn; after the last comes what ended them, if it was a failure."""
        end: Exception | None = None
        try:
            async with aclosing(_numbered(self._requests)) as entries:
                async for entry in entries:
                    if _is_cancelled():
                        break
                    await read.put(entry)
        except (Exception, BaseExceptionGroup, asyncio.CancelledError) as failure:
            if _is_cancelled():
                # Nobody reads any more: whatever an input raises as it is closed changes nothing.
                _log.info("closing the requests: %r", failure)
            elif isinstance(failure, Exception):
                end = failure
            elif isinstance(failure, asyncio.CancelledError):
                end = FineTuneError("the requests broke off with a cancellation of their own")
                end.__cause__ = failure
            else:
                raise
        if not _is_cancelled():
            await read.put(end)

    async def _begin(self, read: asyncio.Queue[Entry | Exception | None], tasks: asyncio.TaskGroup) -> None:
        """Begin with each request in its turn. If that fails, what is being sent still settles."""
        try:
            while True:
                items = [await read.get()]
                while not read.empty():
                    items.append(read.get_nowait())
                entries = [item for item in items if isinstance(item, Entry)]
                # Those that wait are looked up together: one by one they would wait for the journal's thread.
                for entry, record in zip(entries, await self._journal.records(entries), strict=True):
                    await self._until(self._may_begin)
                    await self._take_up(entry, record, tasks)
                end = items[-1]
                if not isinstance(end, Entry):
                    if end is not None:
                        self._give_up(end)
                    return
        except Exception as failure:  # noqa: BLE001  # whoever iterates gets it
            self._give_up(failure)

    def _give_up(self, failure: Exception) -> None:
        self._failure = self._failure or failure
        self.stop()

    async def _take_up(self, entry: Entry, record: Record | JournalUnusable, tasks: asyncio.TaskGroup) -> None:
        """Take one request up where an earlier run left it."""
        if isinstance(record, JournalUnusable):
            raise record
        self.progress.seen += 1
        change = difference(record.request, entry.request) or await self._uploads.change_of(record)
        if change:
            if record.sent is not None and not self._accept_changes:
                raise JournalUnusable(
                    f"{entry.label!r} has changed since it was sent: {change}; accept_changes=True (--accept-changes)"
                    " makes new jobs for what has changed"
                )
            self._uncertain.pop(entry.label, None)
            record = await self._journal.replace(entry.label, entry.request)
        if record.job is not None:
            await self._end(record, record.job)
        elif (uncertain := self._uncertain.pop(record.label, None)) is not None:
            self._tell(record, None, uncertain, is_old=True)
        elif record.job_id is not None:
            self._follow(record, record.job_id, tasks)
        else:
            await self._until(self._has_room)
            self._sending += 1
            tasks.create_task(self._send(record, tasks))

    async def _send(self, record: Record, tasks: asyncio.TaskGroup) -> None:
        """Create the job of a request, then follow it."""
        try:
            request = await self._with_ids(record.request)
            record = await self._create(record, request)
        except JournalUnusable as error:
            self._give_up(error)
        except FineTuneError as error:
            self._note_failure(record, error)
        else:
            self._unreached = self._nameless = 0
            if record.job_id is not None:
                self._follow(record, record.job_id, tasks)
        finally:
            self._sending -= 1
            self._notify()

    async def _with_ids(self, request: FineTuneRequest) -> FineTuneRequest:
        """A request with the ids of its files, as soon as the service takes them; or as it is, if stopped before."""
        while self._stopped is None:
            try:
                return await self._uploads.with_ids(request)
            except RateLimited as refused:
                if isinstance(refused, QuotaExceeded):
                    raise
                self._put_off(refused)
            await self._turn()
        return request

    async def _create(self, record: Record, request: FineTuneRequest) -> Record:
        """Create a job, its intent on the disk before the request leaves, and its id after.

        Returns:
            The record with the job's id; without one if the batch was stopped before the service took the request.
        """
        while await self._may_send():
            throttled = self._session.times_throttled
            now = time.time()
            record = attrs.evolve(record, sent_at=now)
            try:
                await self._journal.intend(record.label, request, now)
                job = await self._recovery.create(
                    request,
                    known=self._known,
                    wanted=lambda: self._stopped is None,
                    note=functools.partial(self._keep_accepted, record.label),
                )
            except NotSent:
                # The batch was stopped: it is left to the next run.
                await self._journal.withdraw(record.label)
            except (CreateUncertain, JournalUnusable):
                raise
            except FineTuneUnreadable as unreadable:
                # Its id is in the journal, and it is followed: it may be readable later.
                _log.warning("%s: %s", record.label, unreadable)
                return attrs.evolve(record, job_id=unreadable.fine_tune_id)
            except FineTuneError as refused:
                await self._journal.withdraw(record.label)
                if not isinstance(refused, RateLimited) or isinstance(refused, QuotaExceeded):
                    raise
                if isinstance(refused, TooManyJobs):
                    self._is_full = True
                else:
                    self._put_off(refused)
            else:
                await self._keep(record.label, job.id)
                return attrs.evolve(record, job_id=job.id)
            finally:
                self._limiter.end(was_throttled=self._session.times_throttled > throttled)
                self._notify()
        return record

    def _put_off(self, refused: RateLimited) -> None:
        """Let no create be sent for a while where the session gave up: it may not ask again, or not wait so long."""
        seconds = refused.retry_after or _MAX_HOLD
        _log.warning("no create is sent for %.0f s: %s", seconds, refused)
        self._limiter.hold(seconds)

    async def _keep_accepted(self, label: str, fine_tune_id: str | None, is_whole: bool) -> None:  # noqa: FBT001  # as a create calls it
        """Note that the service accepted a create whose reply does not describe the job, and what id it names."""
        if fine_tune_id is not None and is_whole:
            await self._keep(label, fine_tune_id)
        else:
            await self._journal.accept(label, fine_tune_id)

    async def _keep(self, label: str, job_id: str) -> None:
        """Note which job was made; if that cannot be noted, let who looks for it later find it."""
        self._unnoted.add(job_id)
        try:
            await self._journal.create(label, job_id)
            self._unnoted.discard(job_id)
        except asyncio.CancelledError:
            # Whether it was noted is not known here; if it was, the journal knows whose the job is.
            self._recovery.claims.release(job_id)
            raise
        except JournalUnusable as error:
            self._recovery.claims.release(job_id)
            unnoted = JournalUnusable(f"{error}; the job of {label!r} is {job_id}")
            # Of several only the first is raised, and none to whoever has left.
            _log.error("%s", unnoted)
            raise unnoted from error

    async def _may_send(self) -> bool:
        """Wait until a create may be sent; False if it may not any more. `RateLimiter.end` is due after it."""
        await self._until(lambda: self._stopped is not None or (self._limiter.has_room and not self._is_full))
        if self._stopped is not None:
            return False
        self._limiter.start()
        await self._turn()
        if self._stopped is not None:
            self._limiter.end(was_throttled=False)
        return self._stopped is None

    async def _turn(self) -> None:
        """Wait for a turn, or until the batch is stopped."""
        turn = self._limiter.reserve()
        while self._stopped is None and turn > asyncio.get_running_loop().time():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(turn):
                    await self._until(lambda: self._stopped is not None)
            if self._limiter.held_until > turn:
                turn = self._limiter.reserve()

    def _note_failure(self, record: Record, error: FineTuneError) -> None:
        """Tell that a request made no job, or, where it says nothing of the request, send no more."""
        is_blind = isinstance(error, CreateUncertain) and not (error.accepted or error.candidate_ids)
        if isinstance(error, CreateUncertain):
            record = attrs.evolve(record, sent_at=error.since)
            if error.accepted and error.fine_tune_id is None:
                self._nameless += 1
        if isinstance(error, TransportError | ServerError) or is_blind:
            self._unreached += 1
        if isinstance(error, QuotaExceeded | AuthenticationFailed | PermissionDenied):
            self._send_no_more(str(error), error)
        elif self._unreached >= _MAX_UNREACHED:
            self._send_no_more(f"the service cannot be reached: {error}", error)
        else:
            self._tell(record, None, error)
        if self._nameless >= _MAX_NAMELESS:
            self._send_no_more(
                f"{_MAX_NAMELESS} creates in a row were accepted by replies that name no job, so something between"
                f" here and the service may have answered: {error}",
                error,
            )

    # Following

    def _follow(self, record: Record, job_id: str, tasks: asyncio.TaskGroup) -> None:
        """See to it that the end of a job is seen: by its events, or, where there are many, by the list."""
        if (other := self.active.get(job_id)) is not None:
            _log.warning("the journal gives %s to %r and to %r", job_id, other.label, record.label)
            sent_at = time.time() if record.sent_at is None else record.sent_at
            uncertain = CreateUncertain(record.sent or record.request, sent_at, (), True, (), job_id)
            self._tell(attrs.evolve(record, job_id=None), None, uncertain)
            return
        self.active[job_id] = record
        self._others.discard(job_id)
        if len(self._streamed) < MAX_STREAMS:
            self._streamed[job_id] = tasks.create_task(self._stream(record, job_id))
        elif self.progress.followed_by != "list":
            _log.info("more than %d jobs are active; the further ones are followed by the list", MAX_STREAMS)
        self._notify()

    async def _stream(self, record: Record, job_id: str) -> None:
        try:
            job = await self._session.wait(job_id)
        except FineTuneEnded as ended:
            await self._end(record, ended.job, ended)
        except NotFound as error:
            self._lose(record, job_id, error)
        except AuthenticationFailed as error:
            # No more will the list tell.
            self._is_leaving = True
            self._send_no_more(str(error), error)
        except FineTuneError as error:
            _log.warning("following %s: %s; looking at the list instead", job_id, error)
        else:
            await self._end(record, job)
        finally:
            del self._streamed[job_id]
            self._notify()

    async def _look_now_and_then(self, tasks: asyncio.TaskGroup) -> None:
        """Look at the service's list as often as was asked for, where something depends on it."""
        while True:
            if self._is_full or self._most_active < math.inf or len(self.active) > len(self._streamed):
                try:
                    await self._look(tasks)
                except FineTuneError as failure:
                    _log.warning("looking at the list of jobs: %s", failure)
                    self._note_blindness(failure)
                else:
                    self._blind = 0
                    self._looked_at = time.monotonic()
            await asyncio.sleep(self._poll)

    def _note_blindness(self, failure: FineTuneError) -> None:
        """Without the list nothing can be sent, and what no stream follows cannot be followed: not for ever."""
        self._blind += 1
        passes = self._has_looked and retry.may_pass(failure)
        if passes and time.monotonic() - self._looked_at < _LONGEST_BLIND:
            return
        if self._blind < _MAX_UNREACHED and not isinstance(failure, AuthenticationFailed):
            return
        if len(self.active) > len(self._streamed):
            self._is_leaving = True
        self._send_no_more(f"the list of jobs cannot be read: {failure}", failure)

    async def _look(self, tasks: asyncio.TaskGroup) -> None:
        mine = set(self.active)
        ended_meanwhile = self._ended = set()
        try:
            rows = await self._recovery.list_rows()
        finally:
            self._ended = None
        jobs = rows.jobs
        active = {job.id for job in jobs if not job.is_terminal}.union(rows.unreadable)
        self._others = active - self.active.keys() - ended_meanwhile
        self._has_looked = True
        self._is_full = False
        self._notify()
        ended = {job.id: job for job in jobs if job.is_terminal and job.id in mine}
        missing = mine - {job.id for job in jobs}
        # None waits for the others' results files, nor does the next look.
        for job_id in (ended.keys() | missing) - self._streamed.keys() - self._settling.keys():
            if job_id in self.active:
                settling = self._settle(self.active[job_id], job_id, ended.get(job_id))
                self._settling[job_id] = tasks.create_task(settling)

    async def _settle(self, record: Record, job_id: str, job: FineTune | None) -> None:
        try:
            async with self._ending:
                await self._end_listed(record, job_id, job)
        finally:
            del self._settling[job_id]
            self._notify()

    async def _end_listed(self, record: Record, job_id: str, job: FineTune | None) -> None:
        """End a job that the list says is over, or does not know."""
        try:
            if job is None or job.status != Status.SUCCEEDED:
                # With its events, which say why.
                job = await self._session.retrieve_fine_tune(job_id)
        except NotFound as error:
            self._lose(record, job_id, error)
            return
        except FineTuneError as error:
            _log.info("looking at %s: %s", job_id, error)
            if job is None:
                now = asyncio.get_running_loop().time()
                if now - self._missed_since.setdefault(job_id, now) >= _LONGEST_BLIND:
                    self._lose(record, job_id, error)
                return
            # The list says that it is over; all that is missing are its events.
        self._missed_since.pop(job_id, None)
        if job.is_terminal:
            await self._end(record, job)

    # Ends

    async def _end(self, record: Record, job: FineTune, error: FineTuneError | None = None) -> None:
        """Write down how a job ended, and tell."""
        ended_at = record.ended_at or time.time()
        is_old = record.job is not None
        if not is_old:
            try:
                await self._journal.end(record.label, job, ended_at)
            except JournalUnusable as failure:
                # What is being sent still settles.
                self._give_up(failure)
                return
        record = attrs.evolve(record, job=job, job_id=job.id, ended_at=ended_at)
        if error is None and job.status != Status.SUCCEEDED:
            kind = FineTuneCancelled if job.status == Status.CANCELLED else FineTuneFailed
            error = kind(job, job.events)
        figures: Mapping[str, float] = {}
        if error is None and self._results is not None:
            try:
                figures = await self._fetch_results(record.label, job, self._results, is_old=is_old)
            except FineTuneError as failure:
                error = failure
        self._tell(record, job, error, figures, is_old=is_old)

    async def _fetch_results(self, label: str, job: FineTune, folder: Path, *, is_old: bool) -> Mapping[str, float]:
        path = folder / f"{_filename(label)}.{_filename(job.id)}.csv"
        try:
            if not (is_old and await asyncio.to_thread(path.exists)):
                if not job.result_files:
                    raise NotFound(404, f"fine-tune {job.id} has no results file")
                await self._session.download_file(job.result_files[0].id, path)
            content = await asyncio.to_thread(path.read_bytes)
            return last_figures(await asyncio.to_thread(read_results, content))
        except OSError as error:
            raise LocalFileError(f"{path}: {error.strerror}") from error
        except ProtocolViolation as error:
            raise ProtocolViolation(f"{path}: {error}") from error

    def _lose(self, record: Record, job_id: str, error: FineTuneError) -> None:
        """Give up a job that the service does not know any more."""
        self._tell(attrs.evolve(record, job_id=job_id), None, error)

    def _tell(
        self,
        record: Record,
        job: FineTune | None,
        error: FineTuneError | None,
        figures: Mapping[str, float] | None = None,
        *,
        is_old: bool = False,
    ) -> None:
        ended_at = record.ended_at or time.time()
        outcome = Outcome(
            record.label, record.request, record.job_id, job, error, record.sent_at, ended_at, figures or {}
        )
        self._outcomes.put_nowait(outcome)
        self.progress.count(outcome)
        if record.job_id is not None:
            if self.active.pop(record.job_id, None) is not None:
                self._is_full = False
            self._others.discard(record.job_id)
            if self._ended is not None:
                self._ended.add(record.job_id)
        if error is not None and self._fail_fast and not is_old:
            self._send_no_more(f"{record.label} ended without a model: {error}", error)
        self._notify()

    def _send_no_more(self, why: str, cause: FineTuneError | None) -> None:
        if self._stopped is None:
            self._stopped = BatchStopped(f"the batch sends no more requests: {why}")
            self._stopped.__cause__ = cause
            self._notify()
        # Not `_notify`: a callback may ask to stop whenever it is called.
        self._changed.set()

    async def _cancel_active(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            for job_id in self.active.keys() | self._unnoted:
                tasks.create_task(self._cancel(job_id))

    async def _cancel(self, job_id: str) -> None:
        async with self._ending:
            try:
                await self._session.cancel_fine_tune(job_id)
            except FineTuneError as error:
                _log.warning("cancelling %s: %s", job_id, error)

    # What earlier runs left

    async def _find_lost(self) -> None:
        """Find the jobs of requests that an earlier run sent, and whose reply it did not live to see."""
        begin = time.time()
        self._known = await self._journal.job_ids(begin - _RECENT)
        lost = await self._journal.lost()
        known = await self._journal.job_ids() if lost else set()
        while lost:
            entry = lost[0]
            requests = [other.sent for other in lost]
            try:
                job = await self._recovery.find(
                    entry.sent,
                    entry.sent_at,
                    lost_at=begin,
                    lost=requests,
                    known=known,
                    accepted=entry.accepted,
                    fine_tune_id=entry.fine_tune_id,
                )
            except CreateUncertain as uncertain:
                self._uncertain[entry.label] = uncertain
            else:
                if job is None:
                    await self._journal.withdraw(entry.label)
                else:
                    known.add(job.id)
                    await self._keep(entry.label, job.id)
            del lost[0]

    async def _warn_of_forgotten(self) -> None:
        if self._stopped is None and (labels := await self._journal.unfinished_elsewhere()):
            _log.warning("the journal has jobs that this batch did not ask for, and does not follow: %s", labels)

    # Waiting

    def _may_begin(self) -> bool:
        return self._sending < self._concurrency and self._outcomes.qsize() < _MAX_OUTCOMES_WAITING

    def _has_room(self) -> bool:
        active = self._sending + len(self.active) + len(self._others)
        is_known = self._has_looked or self._most_active == math.inf
        return is_known and not self._is_full and self._may_begin() and active < self._most_active

    async def _unless_stopped(self, task: asyncio.Task[None]) -> None:
        task.add_done_callback(lambda _task: self._changed.set())
        await self._until(lambda: task.done() or self._stopped is not None)

    async def _until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            self._changed.clear()
            await self._changed.wait()

    def _notify(self) -> None:
        self._changed.set()
        self.progress.active = len(self.active)
        self.progress.others = len(self._others)
        self.progress.followed_by = "list" if len(self.active) > MAX_STREAMS else "streams"
        if self._on_progress is not None:
            try:
                self._on_progress(self.progress)
            except Exception as failure:  # noqa: BLE001  # whoever iterates gets it
                self._on_progress = None
                self._give_up(failure)


def _check_limits(
    max_active: int | None, reserve: int, concurrency: int, per_minute: float | None, poll: float
) -> None:
    if reserve < 0:
        raise ConfigurationError(f"reserve: expected 0 or above, got {reserve}")
    if reserve and max_active is None:
        raise ConfigurationError(f"reserve: got {reserve} without max_active, of which it is a part")
    if max_active is not None and max_active - reserve < 1:
        raise ConfigurationError(f"max_active: {max_active} less a reserve of {reserve} leaves this batch no job")
    if concurrency < 1:
        raise ConfigurationError(f"concurrency: expected 1 or above, got {concurrency}")
    if per_minute is not None and not per_minute > 0:
        raise ConfigurationError(f"per_minute: expected a number above 0, got {per_minute}")
    if not poll > 0:
        raise ConfigurationError(f"poll: expected seconds, more than 0, got {poll}")


async def find_changes(journal: Path, base_url: str, entries: Iterable[Entry]) -> list[str]:
    """Say what an earlier run with a journal sent otherwise; nothing where there is no journal yet.

    Raises:
        JournalUnusable: It is in use, broken, or of another service.
    """
    if not await asyncio.to_thread(os.path.exists, journal):
        return []
    changes = []
    async with Journal(journal, base_url).opened() as known:
        gone = dict.fromkeys(await known.sent_labels())
        for entry in entries:
            if entry.label in gone:
                del gone[entry.label]
                before = await known.request(entry.label)
                if before is not None and before != entry.request:
                    changes.append(f"{entry.label}: {difference(before, entry.request)}")
    return [*changes, *(f"{label}: was sent, and is not asked for any more" for label in gone)]


def difference(before: FineTuneRequest, now: FineTuneRequest) -> str:
    """What differs between two requests, for people; nothing where they are equal."""
    if before == now:
        return ""
    pairs = zip(attrs.asdict(before).items(), attrs.asdict(now).values(), strict=True)
    return ", ".join(f"{name} was {old!r}, is {new!r}" for (name, old), new in pairs if old != new)


async def _numbered(requests: Requests) -> AsyncGenerator[Entry, None]:
    """The entries of a batch; a request without a label is called by its number, from 1."""
    number = 0
    if isinstance(requests, AsyncIterable):
        try:
            async for item in requests:
                number += 1
                yield _entry(item, number)
        finally:
            if isinstance(requests, AsyncGenerator):
                await requests.aclose()
    else:
        for item in requests:
            number += 1
            yield _entry(item, number)


def _is_cancelled() -> bool:
    """Whether the current task was cancelled, whatever it made of that."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def _entry(item: object, number: int) -> Entry:
    entry = item if isinstance(item, Entry) else Entry(str(number), item)  # type: ignore[arg-type]  # checked below
    if not isinstance(entry.request, FineTuneRequest):
        raise RequestInvalid("request", f"{number}: expected a FineTuneRequest, got {type(entry.request).__name__}")
    if not isinstance(entry.label, str) or not entry.label.isprintable():
        raise RequestInvalid("label", f"{number}: expected a line of text, got {entry.label!r}")
    return entry


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise LocalFileError(f"{folder}: {error.strerror}") from error


def _filename(label: str) -> str:
    """A label as the name of a file; a label that had to be changed is told from others by its digest."""
    plain = re.sub(r"[^A-Za-z0-9_.,=+-]", "_", label)[:100].lstrip(".-")
    return plain if plain == label else f"{plain}-{hashlib.sha256(label.encode()).hexdigest()[:8]}"


def _first(failures: BaseExceptionGroup[Exception]) -> Exception:
    failure = failures.exceptions[0]
    return _first(failure) if isinstance(failure, BaseExceptionGroup) else failure
