"""Run many jobs within the service's limits, follow them to their ends, and survive a crash at any moment.

`Batch` is what users see. Its core (`aiofinetune.batch._core`) makes every decision. Its runner
(`aiofinetune.batch._runner`) performs the decisions and reports the results to the core. Only the entries in progress
are in memory. The journal (`aiofinetune.batch._journal`) records what was sent and how it ended, so that after a crash
a new run can find the jobs that may have been made before it sends anything again.
"""

from __future__ import annotations

import asyncio
import logging
import math
import os
import time
from collections.abc import Callable, Collection, Mapping
from contextlib import AsyncExitStack
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Final, Literal, Self

import attrs

from aiofinetune.batch._core import AttemptId, BatchCore, BatchState, Settings
from aiofinetune.batch._core import actions as act
from aiofinetune.batch._core import events as on
from aiofinetune.batch._creates import Creates
from aiofinetune.batch._data_files import DataFiles
from aiofinetune.batch._earlier_runs import EarlierRuns
from aiofinetune.batch._follower import Follower
from aiofinetune.batch._input import Input, Requests
from aiofinetune.batch._journal import Journal
from aiofinetune.batch._no_journal import AnyJournal, NoJournal
from aiofinetune.batch._notices import Notices, log_end, log_left
from aiofinetune.batch._outcomes import ActiveJob, BatchStopped, Outcome, Progress, Wait
from aiofinetune.batch._records import Records
from aiofinetune.batch._results_folder import ResultsFolder
from aiofinetune.batch._runner import Call, Note, Runner
from aiofinetune.dialects._dialect import Follows
from aiofinetune.errors import ConfigurationError, FineTuneError, JournalUnusable
from aiofinetune.retry import is_integer, is_number
from aiofinetune.session import FineTuneSession

if TYPE_CHECKING:
    from aiofinetune.data import Rules

_log = logging.getLogger("aiofinetune")
_life = logging.getLogger("aiofinetune.batch")


MAX_STREAMS: Final = 32
"""The number of jobs that are followed by their event streams. Beyond that, one look at the list for all the others is
cheaper; where a service does not stream events, it is for any number."""

"""The actions that write to the journal."""

_NOTICE_INTERVAL: Final = 0.5
"""The number of seconds between two looks at what is waited for."""


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
        journal: The path of the journal, a single file; if None, nothing outlasts this process. Keep it on a local
            disk, and do not copy or move it while a batch runs. The lock file beside it (``.NAME.lock``) may stay
            behind; it blocks nothing.
        results: A folder to download each job's results file to, as ``label.ft-….csv``.
        fail_fast: Whether to send no more requests after the first entry that ends without a model in this run.
        cancel_on_exit: Whether to cancel the jobs that are still active on leaving the context.
        accept_changes: Whether a request may differ from the one that was sent under its label. It then makes a new
            job, and the old one is no longer followed. A request that made no job may always differ.
        accept_base_url: Whether the session's base URL may differ from that of the earlier runs, because both are the
            same service.
        retry: ``"failed"`` to make a new job for each entry whose last one failed or was cancelled in an earlier run.
            The journal keeps the earlier attempts.
        retry_uncertain: The labels of entries to send again although an earlier run left them uncertain, or the service
            no longer knows their jobs. A job that was made after all then runs beside the new one, and costs money.
        progress: Called on the event loop whenever something changes.
        poll_interval: The number of seconds between two looks at the service's list. Where the list is long, they are
            further apart: a second for each 1,000 jobs.
        outage: The number of seconds for which the service may be away, once it has answered, before the batch sends no
            more. A create that did not reach it waits until it answers again. Jobs that are followed by their streams
            are given up only when these have failed for ``Retry.deadline`` (300 seconds).
        data_check: Whether to check the data of each local file before its upload, once, by the session's `data_rules`
            or by other rules. An entry with wrong data is rejected, and nothing of it is sent.

    Raises, on entering the context:
        JournalUnusable: The journal is in use, damaged, not a journal, or belongs to another base URL or dialect.
        LocalFileError: The folder for results cannot be made.

    Raises, during iteration:
        BatchStopped: Not all requests were sent, because a quota is used up, the service cannot be reached, or `stop`
            was called. It is raised after the outcomes of the requests that were sent.
        EntryChanged: The journal holds another request under a label, or a data file has changed since it was sent.
        JournalUnusable: The journal cannot be written, was moved or deleted; or two requests have the same label.
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
        accept_base_url: bool = False,
        retry: Literal["failed"] | None = None,
        retry_uncertain: Collection[str] = (),
        progress: Callable[[Progress], object] | None = None,
        poll_interval: float = 10.0,
        outage: float = 300.0,
        data_check: bool | Rules = True,
    ) -> None:
        _check_limits(max_active, reserve, concurrency, per_minute, poll_interval, outage)
        _check_retries(retry, retry_uncertain)
        _check_path("journal", journal)
        _check_path("results", results)
        settings = Settings(
            max_active=math.inf if max_active is None else max_active - reserve,
            concurrency=concurrency,
            per_minute=per_minute,
            poll_interval=poll_interval,
            outage=outage,
            max_streams=MAX_STREAMS if session.dialect.follows is Follows.STREAM else 0,
            wants_results=results is not None,
            fail_fast=fail_fast,
            accepts_changes=accept_changes,
            retries_failed=retry is not None,
            retries_uncertain=frozenset(retry_uncertain),
        )
        self._session = session
        self._settings = settings
        self._core = BatchCore(settings)
        self._journal: AnyJournal = (
            NoJournal()
            if journal is None
            else Journal(Path(journal), session.base_url, session.dialect.name, accept_base_url=accept_base_url)
        )
        self._results = None if results is None else ResultsFolder(session, Path(results))
        self._data_files = data_files = DataFiles(session, self._journal, check=data_check)
        self._input = Input(requests, concurrency, self._journal, data_files)
        self._follower = Follower(session, self._journal, self._results, concurrency, self._core.active_labels)
        # The batch records a create before it is sent, and finds it again in another run. The session offers neither.
        self._recovery = session._recovery  # noqa: SLF001  # the same package
        self._earlier = EarlierRuns(self._recovery, self._journal)
        self._creates = Creates(
            self._recovery, data_files, self._earlier.known, lambda: self._core.is_running, self._tell
        )
        notes: dict[type[act.Action], Note] = {
            act.ResumeCreate: self._creates.resume,
            act.CancelJob: self._note_cancel,
            act.LeaveJob: log_left,
            act.ReportOutcome: self._report,
        }
        records = Records(self._recovery, self._journal)
        write = self._journal.write if isinstance(self._journal, Journal) else None
        self._runner = Runner(self._core, self._calls(), notes, records.of, write, self._notify)
        self._cancel_on_exit = cancel_on_exit
        self._on_progress = progress
        self._outcomes: asyncio.Queue[Outcome | None] = asyncio.Queue()
        self._to_cancel: list[str] = []
        """The ids of the jobs to cancel on leaving the context, without those that are cancelled."""
        self._started_at = time.monotonic()
        self._is_entered = False
        self._stack = AsyncExitStack()

    def _calls(self) -> Mapping[type[act.Action], Call]:
        return {
            act.ReadEarlierRuns: self._earlier.read,
            act.SearchForCreate: self._earlier.search,
            act.ReadEntries: self._input.take,
            act.UploadFiles: self._creates.upload,
            act.SendCreate: self._creates.send,
            act.FollowStream: self._follower.follow,
            act.LookAtList: self._follower.look,
            act.RetrieveJob: self._follower.retrieve,
            act.FetchResults: self._follower.fetch_results,
        }

    @property
    def progress(self) -> Progress:
        """How far the batch is."""
        counts = self._core.counts()
        return Progress(
            counts.seen,
            counts.active,
            counts.settling,
            counts.others,
            **{str(status): count for status, count in counts.ended.items()},
            replayed=counts.replayed,
            unsaved=counts.unsaved,
            followed_by="list" if counts.active > self._settings.max_streams else "streams",
            started_at=self._started_at,
            waits=tuple(self._waits()),
        )

    def _waits(self) -> list[Wait]:
        """Return what the batch waits for, one of a kind: its session may wait for the same."""
        try:
            now = asyncio.get_running_loop().time()
        except RuntimeError:
            # A thread may show the progress. The event loop's clock is this one.
            now = time.monotonic()
        waits = {wait.kind: wait for wait in self._core.waits(now)}
        trouble = self._recovery.caller.trouble
        if trouble is not None and trouble.kind not in waits:
            waits[trouble.kind] = Wait(trouble.kind, trouble.since, trouble.until, trouble.failure)
        return list(waits.values())

    async def _say_what_is_waited_for(self) -> None:
        """Log what the batch waits for, and why it sends no more."""
        notices = Notices()
        is_told = False
        while True:
            for line in notices.lines(self._waits(), asyncio.get_running_loop().time()):
                _life.warning("%s", line)
            if self._core.state is BatchState.DRAINING and not is_told:
                is_told = True
                _life.warning("no more entries are sent, and active jobs are followed: %s", self._core.why_in_short)
            await asyncio.sleep(_NOTICE_INTERVAL)

    @property
    def active(self) -> dict[str, ActiveJob]:
        """The jobs of this batch that have not ended, by id."""
        said = self._follower.messages
        return {job.job_id: attrs.evolve(job, message=said.get(job.job_id, "")) for job in self._core.active_jobs()}

    @property
    def not_cancelled(self) -> tuple[str, ...]:
        """The ids of the jobs that `cancel_on_exit` did not cancel: the service refused, or leaving was interrupted."""
        return tuple(self._to_cancel)

    async def __aenter__(self) -> Self:
        if self._is_entered:
            raise FineTuneError("a batch runs only once; create a new one")
        self._recovery.check_loop()
        self._is_entered = True
        try:
            await self._begin()
        except BaseException as failure:
            if isinstance(failure, Exception):
                self._runner.fail(failure)
            self._conclude()
            raise
        return self

    async def _begin(self) -> None:
        if self._results is not None:
            await self._results.make()
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(self._journal.opened())
            group = await stack.enter_async_context(asyncio.TaskGroup())
            self._running = group.create_task(self._run())
            self._stack = stack.pop_all()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._recovery.check_loop()
        async with self._stack:
            try:
                if kind is None or issubclass(kind, Exception):
                    # Wait for the requests that are being sent, so that the journal records their results.
                    self._tell(on.LeaveAsked(self._cancel_on_exit))
                    await asyncio.wait([self._running])
            finally:
                if not self._running.done():
                    self._running.cancel()
                    await asyncio.wait([self._running])
                if self._core.state is not BatchState.DONE:
                    # It was cancelled before it began.
                    self._conclude()
                await self._follower.cancel(self._to_cancel)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Outcome:
        if not self._is_entered:
            raise FineTuneError("the batch is not running; iterate over it inside 'async with'")
        self._recovery.check_loop()
        outcome = await self._outcomes.get()
        if outcome is not None:
            self._tell(on.OutcomeTaken(AttemptId(outcome.label, outcome.attempt)))
            return outcome
        # Put the end mark back, so that a further call ends too.
        self._outcomes.put_nowait(None)
        raise self._end()

    def _end(self) -> Exception:
        """Return what ends the iteration."""
        finish = self._runner.finish
        if finish is None or (finish.failure is None and finish.why is None):
            return StopAsyncIteration()
        if finish.failure is not None:
            return finish.failure
        stopped = BatchStopped(f"the batch sends no more requests: {finish.why}")
        stopped.__cause__ = finish.cause
        return stopped

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
        if self._core.state in {BatchState.RUNNING, BatchState.DRAINING}:
            self._tell(on.StopAsked())

    async def _run(self) -> None:
        try:
            await self._runner.run(self._input.read_all, self._say_what_is_waited_for)
            await self._warn_of_forgotten()
        except JournalUnusable as failure:
            self._runner.fail(failure)
        finally:
            self._conclude()

    def _conclude(self) -> None:
        """End the iteration."""
        if self._core.state is not BatchState.DONE:
            # It was cancelled, or failed.
            self._tell(on.LeaveAsked(self._cancel_on_exit, is_at_once=True))
        self._outcomes.put_nowait(None)

    async def _warn_of_forgotten(self) -> None:
        finish = self._runner.finish
        is_whole = finish is not None and finish.failure is None and finish.why is None
        if is_whole and (jobs := await self._journal.unfinished_elsewhere()):
            named = ", ".join(f"{label} ({job_id or 'its id is not known'})" for label, job_id in jobs.items())
            _log.warning("the journal has jobs that are not in this batch and are not followed: %s", named)

    def _tell(self, event: on.Event) -> None:
        self._runner.tell(event)

    def _report(self, action: act.ReportOutcome) -> None:
        self._creates.end(action.attempt)
        if action.job_id is not None:
            self._follower.forget(action.job_id)
        if not action.is_replayed:
            log_end(action)
        self._outcomes.put_nowait(
            Outcome(
                action.attempt.label,
                action.status,
                action.request,
                action.job_id,
                action.job,
                action.error,
                action.sent_at,
                action.ended_at or time.time(),
                action.figures,
                action.attempt.number,
                action.is_replayed,
            )
        )

    def _note_cancel(self, action: act.CancelJob) -> None:
        self._to_cancel.append(action.job_id)

    def _notify(self) -> None:
        if self._on_progress is not None:
            try:
                self._on_progress(self.progress)
            except Exception as failure:  # noqa: BLE001  # raised to the caller that iterates
                # Not called again, because failing notifies.
                self._on_progress = None
                self._runner.fail(failure)


def _check_limits(
    max_active: int | None,
    reserve: int,
    concurrency: int,
    per_minute: float | None,
    poll_interval: float,
    outage: float,
) -> None:
    if not is_integer(reserve) or reserve < 0:
        raise ConfigurationError(f"reserve: expected an integer of at least 0, got {reserve!r}")
    if reserve and max_active is None:
        raise ConfigurationError(f"reserve: got {reserve} without max_active; it is a part of that")
    if max_active is not None and not is_integer(max_active):
        raise ConfigurationError(f"max_active: expected an integer of at least 1, or None; got {max_active!r}")
    if max_active is not None and max_active - reserve < 1:
        raise ConfigurationError(f"max_active: {max_active} minus a reserve of {reserve} leaves no job for this batch")
    if not is_integer(concurrency) or concurrency < 1:
        raise ConfigurationError(f"concurrency: expected an integer of at least 1, got {concurrency!r}")
    _check_times(per_minute, poll_interval, outage)


def _check_times(per_minute: float | None, poll_interval: float, outage: float) -> None:
    # Written as "not >" so that NaN is refused too.
    if per_minute is not None and (not is_number(per_minute) or not per_minute > 0):
        raise ConfigurationError(f"per_minute: expected a number greater than 0, got {per_minute!r}")
    if not is_number(poll_interval) or not poll_interval > 0:
        raise ConfigurationError(f"poll_interval: expected more than 0 seconds, got {poll_interval!r}")
    if not is_number(outage) or not outage >= 0:
        raise ConfigurationError(f"outage: expected at least 0 seconds, got {outage!r}")


def _check_path(name: str, path: object) -> None:
    if not isinstance(path, str | os.PathLike | None):
        raise ConfigurationError(f"{name}: expected a path, got {path!r}")


def _check_retries(retry: str | None, retry_uncertain: Collection[str]) -> None:
    if retry not in (None, "failed"):
        raise ConfigurationError(f"retry: expected 'failed' or None, got {retry!r}")
    if isinstance(retry_uncertain, str):
        raise ConfigurationError(f"retry_uncertain: expected a list of labels, got the text {retry_uncertain!r}")
    if not isinstance(retry_uncertain, Collection):
        raise ConfigurationError(f"retry_uncertain: expected a list of labels, got {retry_uncertain!r}")
