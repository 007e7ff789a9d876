"""Run many jobs within the service's limits, follow them to their ends, and survive a crash at any moment.

Only the requests in progress are in memory. The journal (`aiofinetune.batch._journal`) records what was sent and how it
ended, so that after a crash a new run can find the jobs that may have been made before it sends anything again.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import math
import os
import time
from collections.abc import AsyncGenerator, AsyncIterable, Callable, Container, Iterable, Mapping
from contextlib import AsyncExitStack, aclosing
from pathlib import Path
from types import TracebackType
from typing import Final, Self, TypeAlias

import attrs

from aiofinetune import retry
from aiofinetune._jobs.recovery import NotSent
from aiofinetune.batch._data_files import DataFiles, difference
from aiofinetune.batch._journal import Journal, Record
from aiofinetune.batch._limiter import RateLimiter
from aiofinetune.batch._manifest import Entry, is_local
from aiofinetune.batch._outcomes import BatchStopped, Outcome, Progress
from aiofinetune.batch._results_folder import ResultsFolder
from aiofinetune.errors import (
    AuthenticationFailed,
    ConfigurationError,
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
from aiofinetune.session import FineTuneSession

Requests: TypeAlias = Iterable[Entry | FineTuneRequest] | AsyncIterable[Entry | FineTuneRequest]


_log = logging.getLogger("aiofinetune")


MAX_STREAMS: Final = 32
"""The number of jobs that are followed by their event streams. Beyond that, one look at the list for all the others is
cheaper."""


_MAX_OUTCOMES_WAITING: Final = 100
"""The number of outcomes that may wait for the caller before no further request begins, which bounds the memory."""


_MAX_HOLD: Final = 10.0
"""The number of seconds for which no create is sent if retries were throttled without a ``Retry-After``."""


_RECENT: Final = 3600.0
"""The number of seconds after which a job can no longer be taken for a new one, whatever the clocks show."""


_MAX_UNREACHED: Final = 3
"""The number of consecutive requests that could not be sent, despite retries, after which the batch stops."""


_MAX_NAMELESS: Final = 3
"""The number of consecutive creates that were accepted by replies without an id, after which the batch stops."""


_LONGEST_BLIND: Final = 300.0
"""The number of seconds for which a job, or the list of jobs once it was read, may be unreachable or unreadable."""


class Batch:
    """A batch of jobs: an async context manager, and inside it an async iterator of outcomes as entries end.

    ::

        async with Batch(session, requests, max_active=3, journal="sweep.journal") as batch:
            async for outcome in batch:
                print(outcome.label, outcome.job and outcome.job.fine_tuned_model, outcome.error)

    The failure of one entry does not stop the batch. With a journal, the process may be killed at any moment: the same
    batch, run again with the same journal, returns the outcomes that are already known, follows the jobs that are
    active, searches for the jobs that may have been made, and sends the remaining requests.

    Args:
        session: The session to use. It is not closed here.
        requests: The requests, each a `FineTuneRequest`, or an `Entry` with a label. They are read only a few ahead.
            Their files may be local paths, relative to the current folder. Each content is uploaded once.
        max_active: The maximum number of jobs that may be active at the service, including those of other programs;
            None for no limit except the service's own.
        reserve: The part of `max_active` to leave to other programs.
        concurrency: The maximum number of requests that are sent at once.
        per_minute: The maximum number of creates in a minute. It is lower if the service throttles them.
        journal: The path of the journal, a single file; if None, nothing outlasts this process.
        results: A folder to download each job's results file to, as ``label.ft-….csv``.
        fail_fast: Whether to send no more requests after the first entry that ends without a model in this run.
        cancel_on_exit: Whether to cancel the jobs that are still active on leaving the context.
        accept_changes: Whether a request may differ from the one that was sent under its label. It then makes a new
            job, and the old one is forgotten. A request that made no job may always differ.
        progress: Called on the event loop whenever something changes.
        poll_interval: The number of seconds between two looks at the service's list.

    Raises, on entering the context:
        JournalUnusable: The journal is in use, damaged, not a journal, or belongs to another service.
        LocalFileError: The folder for results cannot be made.

    Raises, during iteration:
        BatchStopped: Not all requests were sent, because a quota is used up, the service cannot be reached, or `stop`
            was called. It is raised after the outcomes of the requests that were sent.
        JournalUnusable: The journal cannot be written, was moved or deleted, or holds another request under a label; or
            two requests have the same label.
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
        poll_interval: float = 10.0,
    ) -> None:
        _check_limits(max_active, reserve, concurrency, per_minute, poll_interval)
        self.progress: Progress = Progress()
        self.active: dict[str, Record] = {}
        """The jobs of this batch that have not ended, by id."""
        file = None if journal is None else Path(journal)
        self._journal = Journal(file, session.base_url, accept_changes=accept_changes)
        self._session = session
        # The batch records a create before it is sent, and finds it again in another run. The session offers neither.
        self._recovery = session._recovery  # noqa: SLF001  # the same package
        self._requests = requests
        self._most_active = math.inf if max_active is None else max_active - reserve
        self._concurrency = concurrency
        self._results = None if results is None else ResultsFolder(session, Path(results))
        self._fail_fast = fail_fast
        self._cancel_on_exit = cancel_on_exit
        self._accept_changes = accept_changes
        self._on_progress = progress
        self._poll_interval = poll_interval
        self._limiter = RateLimiter(None if per_minute is None else per_minute / 60, concurrency)
        self._data_files = DataFiles(session, self._journal)
        self._ending = asyncio.Semaphore(concurrency)
        self._outcomes: asyncio.Queue[Outcome | None] = asyncio.Queue()
        self._changed = asyncio.Event()
        self._sending = 0
        self._unnoted: set[str] = set()
        """The ids of jobs that were made but are not in the journal."""
        self._others: set[str] = set()
        """The ids of jobs that were active at the last look and that this run does not follow."""
        self._ended: set[str] | None = None
        """The ids of jobs that ended during a look at the list, which may still list them as active."""
        self._has_looked = False
        self._is_full = False
        """Whether the service said that it takes no more jobs until one ends."""
        self._streamed: dict[str, asyncio.Task[None]] = {}
        """The tasks that follow a job by its events, by the job's id."""
        self._settling: dict[str, asyncio.Task[None]] = {}
        """The tasks that handle a job that has ended by the list, or is missing from it, by the job's id."""
        self._known: Container[str] = ()
        """The ids of jobs that earlier runs made recently."""
        self._uncertain: dict[str, CreateUncertain] = {}
        self._unreached = self._nameless = self._blind = 0
        """The numbers of consecutive creates that could not be sent, of consecutive creates that were accepted by
        replies that name no job, and of consecutive looks at the list that failed."""
        self._looked_at = 0.0
        self._missed_since: dict[str, float] = {}
        """Since when a job cannot be read, on the event loop's clock, by its id."""
        self._stopped: BatchStopped | None = None
        self._is_entered = False
        self._is_leaving = False
        self._failure: Exception | None = None
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Self:
        if self._is_entered:
            raise FineTuneError("a batch runs only once; create a new one")
        self._recovery.check_loop()
        self._is_entered = True
        if self._results is not None:
            await self._results.make()
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
                    # Wait for the requests that are being sent, so that the journal records their results.
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
            raise FineTuneError("the batch is not running; iterate over it inside 'async with'")
        self._recovery.check_loop()
        outcome = await self._outcomes.get()
        self._notify()
        if outcome is not None:
            return outcome
        # Put the end mark back, so that a further call ends too.
        self._outcomes.put_nowait(None)
        if self._failure is not None:
            raise self._failure
        if self._stopped is not None:
            raise self._stopped
        raise StopAsyncIteration

    async def run(self) -> list[Outcome]:
        """Run the batch to its end and return all outcomes.

        Raises:
            BatchStopped: Not all requests were sent; its `outcomes` are those of the requests that were sent.
        """
        outcomes: list[Outcome] = []
        try:
            async for outcome in self:
                outcomes.append(outcome)  # noqa: PERF401  # kept even if the loop raises
        except BatchStopped as stopped:
            stopped.outcomes = tuple(outcomes)
            raise
        return outcomes

    def stop(self) -> None:
        """Send no more requests, finish those that are being sent, and leave active jobs running at the service."""
        self._is_leaving = True
        self._send_no_more("it was asked to stop", None)

    # The run. One task reads the requests, one begins them in order, and one looks at the list. There is also one task
    # for each request that is being sent, for each job that is followed by its events, and for each that is settling.

    async def _run(self) -> None:
        try:
            async with asyncio.TaskGroup() as tasks:
                looking = tasks.create_task(self._look_now_and_then(tasks))
                # Nothing is sent before this ends: a new job must not be taken for the job of a lost create.
                finding = tasks.create_task(self._find_creates_of_earlier_runs())
                await self._unless_stopped(finding)
                finding.cancel()
                await asyncio.wait([finding])
                read: asyncio.Queue[Entry | Exception | None] = asyncio.Queue(self._concurrency)
                reading = tasks.create_task(self._read(read))
                beginning = tasks.create_task(self._begin(read, tasks))
                # The input may be idle for a long time, which must not delay a stop.
                await self._unless_stopped(beginning)
                for task in (reading, beginning):
                    task.cancel()
                await asyncio.wait([reading, beginning])
                await self._until(lambda: not self._sending and (not self.active or self._is_leaving))
                for task in (looking, *self._streamed.values(), *self._settling.values()):
                    task.cancel()
            await self._warn_of_forgotten()
        except* Exception as failures:  # noqa: BLE001  # raised to the caller that iterates
            self._failure = self._failure or _first(failures)
        finally:
            self._outcomes.put_nowait(None)

    async def _read(self, read: asyncio.Queue[Entry | Exception | None]) -> None:
        """Put the requests into the queue `read`, which is short; at their end, None or the error that ended them."""
        end: Exception | None = None
        try:
            async with aclosing(_numbered(self._requests)) as entries:
                async for entry in entries:
                    if _is_cancelled():
                        break
                    await read.put(entry)
        except (Exception, BaseExceptionGroup, asyncio.CancelledError) as failure:
            if _is_cancelled():
                # No more requests are needed, so an error that the input raises on being closed does not matter.
                _log.info("the input of requests was closed: %r", failure)
            elif isinstance(failure, Exception):
                end = failure
            elif isinstance(failure, asyncio.CancelledError):
                end = FineTuneError("the input of requests raised CancelledError")
                end.__cause__ = failure
            else:
                raise
        if not _is_cancelled():
            await read.put(end)

    async def _begin(self, read: asyncio.Queue[Entry | Exception | None], tasks: asyncio.TaskGroup) -> None:
        """Begin each request in order. If that fails, the requests that are being sent still finish."""
        try:
            while True:
                items = [await read.get()]
                while not read.empty():
                    items.append(read.get_nowait())
                entries = [item for item in items if isinstance(item, Entry)]
                # Waiting requests are looked up together, because each look-up waits for the journal's thread.
                for entry, record in zip(entries, await self._journal.records(entries), strict=True):
                    await self._until(self._may_begin)
                    await self._take_up(entry, record, tasks)
                end = items[-1]
                if not isinstance(end, Entry):
                    if end is not None:
                        self._give_up(end)
                    return
        except Exception as failure:  # noqa: BLE001  # raised to the caller that iterates
            self._give_up(failure)

    def _give_up(self, failure: Exception) -> None:
        self._failure = self._failure or failure
        self.stop()

    async def _take_up(self, entry: Entry, record: Record | JournalUnusable, tasks: asyncio.TaskGroup) -> None:
        """Resume one request where an earlier run left it."""
        if isinstance(record, JournalUnusable):
            raise record
        self.progress.seen += 1
        if not (change := await self._data_files.change_of(record, entry.request)):
            # Its files may have other paths than in an earlier run.
            record = attrs.evolve(record, request=entry.request)
        else:
            if record.sent is not None and not self._accept_changes:
                raise JournalUnusable(
                    f"{entry.label!r} has changed since it was sent: {change}; pass accept_changes=True"
                    " (--accept-changes) to create new jobs for changed requests"
                )
            self._uncertain.pop(entry.label, None)
            record = await self._journal.replace(entry.label, entry.request)
        if record.job is not None:
            await self._end(record, record.job)
        elif (uncertain := self._uncertain.pop(record.label, None)) is not None:
            self._report(record, None, uncertain, is_old=True)
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
        """Return a request with the ids of its files, uploading them if needed; unchanged if the batch is stopped."""
        while self._stopped is None:
            try:
                return await self._data_files.with_ids(request)
            except RateLimited as refused:
                if isinstance(refused, QuotaExceeded):
                    raise
                self._put_off(refused)
            await self._turn()
        return request

    async def _create(self, record: Record, request: FineTuneRequest) -> Record:
        """Create a job. Its intent is written to the journal before the request is sent, and its id afterwards.

        Returns:
            The record with the job's id; without one if the batch was stopped before the service accepted the create.
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
                # The batch was stopped, so this request is left to the next run.
                await self._journal.withdraw(record.label)
            except (CreateUncertain, JournalUnusable):
                # A job may have been made, so the intent must stay in the journal.
                raise
            except FineTuneUnreadable as unreadable:
                # The id is already in the journal. The job is followed, because it may become readable later.
                _log.warning("%s: %s", record.label, unreadable)
                return attrs.evolve(record, job_id=unreadable.fine_tune_id)
            except FineTuneError as refused:
                # Any other error means that no job was made.
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
        """Hold all creates for a while after the session gave up on a throttled one."""
        seconds = refused.retry_after or _MAX_HOLD
        _log.warning("no create is sent for %.0f s: %s", seconds, refused)
        self._limiter.hold(seconds)

    async def _keep_accepted(self, label: str, fine_tune_id: str | None, is_whole: bool) -> None:  # noqa: FBT001  # a `Note`
        """Record that the service accepted a create whose reply does not describe the job, and the id that it names."""
        if fine_tune_id is not None and is_whole:
            await self._keep(label, fine_tune_id)
        else:
            await self._journal.accept(label, fine_tune_id)

    async def _keep(self, label: str, job_id: str) -> None:
        """Record the job that was made. If that fails, release its claim, so that a later search can find it."""
        self._unnoted.add(job_id)
        try:
            await self._journal.create(label, job_id)
            self._unnoted.discard(job_id)
        except asyncio.CancelledError:
            # It is not known whether the id was recorded. If it was, the journal says which entry the job belongs to.
            self._recovery.claims.release(job_id)
            raise
        except JournalUnusable as error:
            self._recovery.claims.release(job_id)
            unnoted = JournalUnusable(f"{error}; the job of {label!r} is {job_id}")
            # Logged too, because only the first of several failures is raised, and none after the context was left.
            _log.error("%s", unnoted)
            raise unnoted from error

    async def _may_send(self) -> bool:
        """Wait until a create may be sent; return False if the batch is stopped.

        After True, the caller must call `RateLimiter.end` when the create ends.
        """
        await self._until(lambda: self._stopped is not None or (self._limiter.has_room and not self._is_full))
        if self._stopped is not None:
            return False
        self._limiter.start()
        await self._turn()
        if self._stopped is not None:
            self._limiter.end(was_throttled=False)
        return self._stopped is None

    async def _turn(self) -> None:
        """Wait until the rate limiter allows a create, or until the batch is stopped."""
        turn = self._limiter.reserve()
        while self._stopped is None and turn > asyncio.get_running_loop().time():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(turn):
                    await self._until(lambda: self._stopped is not None)
            # The service may have throttled another create during the wait.
            if self._limiter.held_until > turn:
                turn = self._limiter.reserve()

    def _note_failure(self, record: Record, error: FineTuneError) -> None:
        """Report that an entry ended without a job, or stop the batch if the failure would affect every request."""
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
            self._report(record, None, error)
        if self._nameless >= _MAX_NAMELESS:
            self._send_no_more(
                f"{_MAX_NAMELESS} consecutive creates were accepted by replies without a job id, so a proxy may have"
                f" answered: {error}",
                error,
            )

    # Following

    def _follow(self, record: Record, job_id: str, tasks: asyncio.TaskGroup) -> None:
        """Follow a job to its end: by its events, or by the list if many jobs are active."""
        # One job must never count for two entries.
        if (other := self.active.get(job_id)) is not None:
            _log.warning("the journal assigns %s to both %r and %r", job_id, other.label, record.label)
            sent_at = time.time() if record.sent_at is None else record.sent_at
            uncertain = CreateUncertain(record.sent or record.request, sent_at, (), True, (), job_id)
            self._report(attrs.evolve(record, job_id=None), None, uncertain)
            return
        self.active[job_id] = record
        self._others.discard(job_id)
        if len(self._streamed) < MAX_STREAMS:
            self._streamed[job_id] = tasks.create_task(self._stream(record, job_id))
        elif self.progress.followed_by != "list":
            _log.info("more than %d jobs are active; the others are followed through the list", MAX_STREAMS)
        self._notify()

    async def _stream(self, record: Record, job_id: str) -> None:
        try:
            job = await self._session.wait(job_id)
        except FineTuneEnded as ended:
            await self._end(record, ended.job, ended)
        except NotFound as error:
            self._report_inaccessible(record, job_id, error)
        except AuthenticationFailed as error:
            # The list cannot be read either with a key that the service does not accept.
            self._is_leaving = True
            self._send_no_more(str(error), error)
        except FineTuneError as error:
            _log.warning("following %s failed: %s; using the list instead", job_id, error)
        else:
            await self._end(record, job)
        finally:
            del self._streamed[job_id]
            self._notify()

    async def _look_now_and_then(self, tasks: asyncio.TaskGroup) -> None:
        """Look at the service's list at intervals, whenever something depends on it."""
        while True:
            if self._is_full or self._most_active < math.inf or len(self.active) > len(self._streamed):
                try:
                    await self._look(tasks)
                except FineTuneError as failure:
                    _log.warning("listing the jobs failed: %s", failure)
                    self._note_blindness(failure)
                else:
                    self._blind = 0
                    self._looked_at = time.monotonic()
            await asyncio.sleep(self._poll_interval)

    def _note_blindness(self, failure: FineTuneError) -> None:
        """Count a failed look at the list, and stop the batch if there are too many or they go on for too long.

        Without the list, no request can be sent under a limit, and the jobs without a stream cannot be followed.
        """
        self._blind += 1
        passes = self._has_looked and retry.may_pass(failure)
        if passes and time.monotonic() - self._looked_at < _LONGEST_BLIND:
            return
        if self._blind < _MAX_UNREACHED and not isinstance(failure, AuthenticationFailed):
            return
        if len(self.active) > len(self._streamed):
            # The jobs without a stream would never be seen to end.
            self._is_leaving = True
        self._send_no_more(f"the list of jobs cannot be read: {failure}", failure)

    async def _look(self, tasks: asyncio.TaskGroup) -> None:
        # A copy, because a job that is created during the look may be missing from the list.
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
        # In tasks of their own, so that neither another job nor the next look waits for the download of a results file.
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
        """Handle a job that has ended by the list, or is missing from it."""
        try:
            if job is None or job.status != Status.SUCCEEDED:
                # Retrieved with its events, which say why it failed. A list leaves them out.
                job = await self._session.retrieve_fine_tune(job_id)
        except NotFound as error:
            self._report_inaccessible(record, job_id, error)
            return
        except FineTuneError as error:
            _log.info("retrieving %s failed: %s", job_id, error)
            if job is None:
                now = asyncio.get_running_loop().time()
                if now - self._missed_since.setdefault(job_id, now) >= _LONGEST_BLIND:
                    self._report_inaccessible(record, job_id, error)
                return
            # The list says that the job has ended; only its events are missing.
        self._missed_since.pop(job_id, None)
        if job.is_terminal:
            await self._end(record, job)

    # Ends

    async def _end(self, record: Record, job: FineTune, error: FineTuneError | None = None) -> None:
        """Record how a job ended, and report its outcome."""
        ended_at = record.ended_at or time.time()
        is_old = record.job is not None
        if not is_old:
            try:
                await self._journal.end(record.label, job, ended_at)
            except JournalUnusable as failure:
                # Not raised, because that would cancel the requests that are being sent.
                self._give_up(failure)
                return
        record = attrs.evolve(record, job=job, job_id=job.id, ended_at=ended_at)
        if error is None and job.status != Status.SUCCEEDED:
            kind = FineTuneCancelled if job.status == Status.CANCELLED else FineTuneFailed
            error = kind(job, job.events)
        figures: Mapping[str, float] = {}
        if error is None and self._results is not None:
            try:
                figures = await self._results.fetch(record.label, job, may_exist=is_old)
            except FineTuneError as failure:
                error = failure
        self._report(record, job, error, figures, is_old=is_old)

    def _report_inaccessible(self, record: Record, job_id: str, error: FineTuneError) -> None:
        """Report a job that the service no longer knows, or that cannot be read for too long."""
        self._report(attrs.evolve(record, job_id=job_id), None, error)

    def _report(
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
        # Not `_notify`, which calls the progress callback: a callback that calls `stop` would recurse without end.
        self._changed.set()

    async def _cancel_active(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            # A job that could not be recorded is not active, but it runs all the same.
            for job_id in self.active.keys() | self._unnoted:
                tasks.create_task(self._cancel(job_id))

    async def _cancel(self, job_id: str) -> None:
        async with self._ending:
            try:
                await self._session.cancel_fine_tune(job_id)
            except FineTuneError as error:
                _log.warning("cancelling %s failed: %s", job_id, error)

    # What earlier runs left

    async def _find_creates_of_earlier_runs(self) -> None:
        """Find the jobs of creates whose result an earlier run did not record before it ended."""
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
            # Only now, because `requests` above must include this one.
            del lost[0]

    async def _warn_of_forgotten(self) -> None:
        if self._stopped is None and (labels := await self._journal.unfinished_elsewhere()):
            _log.warning("the journal has jobs that are not in this batch and are not followed: %s", labels)

    # Waiting

    def _may_begin(self) -> bool:
        return self._sending < self._concurrency and self._outcomes.qsize() < _MAX_OUTCOMES_WAITING

    def _has_room(self) -> bool:
        active = self._sending + len(self.active) + len(self._others)
        # Before the first look, it is not known how many jobs of other programs are active.
        is_known = self._has_looked or self._most_active == math.inf
        return is_known and not self._is_full and self._may_begin() and active < self._most_active

    async def _unless_stopped(self, task: asyncio.Task[None]) -> None:
        task.add_done_callback(lambda _task: self._changed.set())
        await self._until(lambda: task.done() or self._stopped is not None)

    async def _until(self, condition: Callable[[], bool]) -> None:
        # Every change of state sets the event, and every waiting task then checks its own condition.
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
            except Exception as failure:  # noqa: BLE001  # raised to the caller that iterates
                # Not called again, because giving up notifies.
                self._on_progress = None
                self._give_up(failure)


def _check_limits(
    max_active: int | None, reserve: int, concurrency: int, per_minute: float | None, poll_interval: float
) -> None:
    if reserve < 0:
        raise ConfigurationError(f"reserve: expected at least 0, got {reserve}")
    if reserve and max_active is None:
        raise ConfigurationError(f"reserve: got {reserve} without max_active; reserve is a part of max_active")
    if max_active is not None and max_active - reserve < 1:
        raise ConfigurationError(f"max_active: {max_active} minus a reserve of {reserve} leaves no job for this batch")
    if concurrency < 1:
        raise ConfigurationError(f"concurrency: expected at least 1, got {concurrency}")
    if per_minute is not None and not per_minute > 0:
        raise ConfigurationError(f"per_minute: expected a number greater than 0, got {per_minute}")
    if not poll_interval > 0:
        raise ConfigurationError(f"poll_interval: expected more than 0 seconds, got {poll_interval}")


async def find_changes(journal: Path, base_url: str, entries: Iterable[Entry]) -> list[str]:
    """Return what has changed in the entries since an earlier run sent them, as text for people.

    The list is empty if nothing has changed, or if there is no journal yet.

    Raises:
        JournalUnusable: The journal is in use, damaged, or belongs to another service.
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
                    # In a thread, because the disk may decide whether a file is a path.
                    at_paths = await asyncio.to_thread(_at_paths_of, entry.request, before)
                    if change := difference(at_paths, entry.request):
                        changes.append(f"{entry.label}: {change}")
    return [*changes, *(f"{label}: was sent, but is no longer in the manifest" for label in gone)]


def _at_paths_of(request: FineTuneRequest, before: FineTuneRequest) -> FineTuneRequest:
    """Return `before` with the local paths of `request`: the batch compares their contents, not their names."""
    for field in ("training_file", "validation_file"):
        old, new = getattr(before, field), getattr(request, field)
        if None not in (old, new) and is_local(old) and is_local(new):
            before = attrs.evolve(before, **{field: new})
    return before


async def _numbered(requests: Requests) -> AsyncGenerator[Entry, None]:
    """Yield the entries of a batch. The label of a request without one is its number, starting at 1."""
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
    """Return whether the current task was cancelled, even if the cancellation was suppressed."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def _entry(item: object, number: int) -> Entry:
    entry = item if isinstance(item, Entry) else Entry(str(number), item)  # type: ignore[arg-type]  # checked below
    if not isinstance(entry.request, FineTuneRequest):
        raise RequestInvalid("request", f"{number}: expected a FineTuneRequest, got {type(entry.request).__name__}")
    if not isinstance(entry.label, str) or not entry.label.isprintable():
        raise RequestInvalid("label", f"{number}: expected a single line of text, got {entry.label!r}")
    return entry


def _first(failures: BaseExceptionGroup[Exception]) -> Exception:
    # Groups may be nested: each task group wraps its tasks' errors in one.
    failure = failures.exceptions[0]
    return _first(failure) if isinstance(failure, BaseExceptionGroup) else failure
