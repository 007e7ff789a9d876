"""The queue: trains jobs, oldest first, each with a trainer of its own, and reports events as they happen.

The database decides what comes next (`AttemptStore.take_next`: the oldest pending job that can start). Every change of
a job there wakes the queue and all who follow the job.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import os
import re
import time
import weakref
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Final

import attrs

from aiofinetune import _sse as sse
from aiofinetune import structuring
from aiofinetune.errors import ProtocolViolation
from aiofinetune.local._machines import Machine, described
from aiofinetune.local._shortage import Shortage, shortage_of
from aiofinetune.local._store import Store
from aiofinetune.local._store.attempts import Attempt
from aiofinetune.local._store.database import now
from aiofinetune.local._store.models import Checkpoint
from aiofinetune.local._trainers import Ended, EngineLost, Trainers, engine_lost
from aiofinetune.local._trainers.local_process import LocalProcess
from aiofinetune.models import FineTuneEvent, Status

_FIRST_PAUSE: Final = 1.0
_LONGEST_PAUSE: Final = 60.0
"""The first and the longest pause, in seconds, before the queue retries after an error; each is twice the last."""

_UNFIT_INTERVAL: Final = 5.0
"""Seconds between looks for jobs that need what no machine has."""

_MAX_FAILURE: Final = 2000
"""The most characters of a trainer's word on why it failed."""

_MAX_FIGURES: Final = 100
"""The most figures of an epoch."""

MANY_EVENTS: Final = 500
"""The number of events that can be written at once without blocking the event loop for long."""

_log = logging.getLogger(__name__)


class Feed:
    """The events of one job, which are read from the store and encoded once for all who follow the job."""

    def __init__(self, store: Store, job_id: str) -> None:
        self._store = store
        self._job_id = job_id
        self._encoded: list[bytes] = []
        self._status: str = Status.PENDING
        self._attempt: str | None = None
        """The id of the job's latest attempt."""
        self._is_complete = False
        """Whether all events have been read."""
        self._reading = asyncio.Lock()
        self._changed = asyncio.Event()
        self._changed.set()

    def note_change(self) -> None:
        """Wake all waiting calls, because the store has changed."""
        self._changed.set()

    async def wait(self, position: int) -> tuple[list[bytes], bool]:
        """Wait until there are events from `position` on, or the job is over.

        Returns:
            The next events, at most `MANY_EVENTS`, and whether they are the last events of a job that is over.
        """
        while True:
            await self._read()
            is_over = self._is_complete and self._status in Status.TERMINAL
            if is_over or position < len(self._encoded):
                events = self._encoded[position : position + MANY_EVENTS]
                return events, is_over and position + len(events) == len(self._encoded)
            await self._changed.wait()

    async def wait_until(self, is_reached: Callable[[str], bool]) -> str:
        """Wait until `is_reached` is true of the job's status, and return the status."""
        position = 0
        await self._read()
        while not is_reached(self._status):
            position += len((await self.wait(position))[0])
        return self._status

    async def wait_until_over(self, attempt_id: str) -> None:
        """Wait until the job is not running under this attempt."""
        position = 0
        await self._read()
        while self._status == Status.RUNNING and self._attempt == attempt_id:
            position += len((await self.wait(position))[0])

    async def _read(self) -> None:
        async with self._reading:
            if not self._changed.is_set():
                return
            # Cleared before reading, so that a change during the reading causes another one.
            self._changed.clear()
            start = len(self._encoded)
            try:
                events, self._status, self._attempt = await self._store.jobs.events(self._job_id, start, MANY_EVENTS)
            except BaseException:
                self._changed.set()
                raise
            self._is_complete = len(events) < MANY_EVENTS
            if not self._is_complete:
                self._changed.set()  # There may be more events to read.
            self._encoded += [sse.encode(write_event(self._job_id, *event)) for event in enumerate(events, start)]


def event_id(job_id: str, position: int) -> str:
    """Return the id of one of a job's events; clients need it to read the list of events in pages."""
    return f"ftevent-{job_id.partition('-')[2]}-{position}"


def position_of(job_id: str, event: str) -> int | None:
    """Return the position of one of a job's events by its id; None if it is not the id of one."""
    digits = event.rpartition("-")[2]
    if not re.fullmatch("[0-9]{1,15}", digits):
        return None
    position = int(digits)
    return position if event_id(job_id, position) == event else None


def write_event(job_id: str, position: int, event: FineTuneEvent) -> bytes:
    """Write one of a job's events as JSON."""
    return structuring.dumps({"id": event_id(job_id, position), **structuring.write_reply(event)})


@attrs.define
class _Said:
    """What a trainer has reported about its success so far."""

    has_succeeded: bool = False
    failure: str | None = None
    failed_param: str | None = None
    epoch: int | None = None
    """The last epoch that is complete, 0 before the first; None before the training starts."""
    started_at: float = attrs.field(factory=time.time)
    """When the training started, in Unix seconds."""
    trained_tokens: int | None = None
    checkpoints: list[Checkpoint] = attrs.field(factory=list)
    """The models at the ends of the last epochs, oldest first."""


class Jobs:
    """Trains the jobs of a store, oldest first, as many at a time as the trainers have slots.

    Args:
        store: The store of the jobs, their files and their models.
        trainers: Runs the trainers; by default, they are processes on this machine.
        needs: The amount of each resource that a job needs, by its base model.
    """

    def __init__(
        self, store: Store, trainers: Trainers | None = None, needs: Mapping[str, Mapping[str, int]] | None = None
    ) -> None:
        self._store = store
        self._trainers = trainers or LocalProcess()
        self._needs = needs or {}
        self._running: dict[str, Attempt] = {}
        """The attempts that have a slot, by id."""
        self._interrupted: dict[str, tuple[Attempt, str, bool]] = {}
        """The attempts whose jobs are still to be put back into the queue, why, and whether the job may be the reason,
        by id."""
        self._failures = 0
        """The number of pauses since a training last ended as it should."""
        self._paused_until = 0.0
        self._something_new = asyncio.Event()
        self._feeds: weakref.WeakValueDictionary[str, Feed] = weakref.WeakValueDictionary()
        store.on_change = self._note_change

    def feed(self, job_id: str) -> Feed:
        """Return the job's feed, which all who follow the job at the same time share."""
        feed = self._feeds.get(job_id)
        if feed is None:
            feed = self._feeds[job_id] = Feed(self._store, job_id)
        return feed

    def look_again(self) -> None:
        """Look for a job that can start: there may be more slots or resources than before."""
        self._something_new.set()

    async def run(self) -> None:
        """Train jobs until cancelled. A job that is then running stays "running" until the next start.

        That trains it again, unless the attempt has gone on on another machine.

        Errors do not end the application around the server: they are logged, and the queue retries after a pause.
        """
        has_resumed = False
        async with asyncio.TaskGroup() as group:
            if self._needs:
                group.create_task(self._tell_unfit())
            while True:
                try:
                    await self._put_back()
                    if not has_resumed:
                        for attempt in await self._store.attempts.resumable(self._needs):
                            self._begin(group, attempt)
                        has_resumed = True
                    await self._begin_next(group)
                except Exception as error:  # noqa: BLE001  # See above.
                    self._pause(error)
                await asyncio.sleep(self._paused_until - time.monotonic())

    async def _begin_next(self, group: asyncio.TaskGroup) -> None:
        """Begin to train the next job, or wait until one may start."""
        self._something_new.clear()
        attempt = None
        if len(self._running) < self._trainers.slots:
            attempt = await self._store.attempts.take_next(self._machines(), self._needs)
        if attempt is None:
            await self._something_new.wait()
        else:
            self._begin(group, attempt)

    def _machines(self) -> Sequence[Machine]:
        """Return what each machine has, and has free."""
        return self._trainers.machines(self._running.values())

    async def _tell_unfit(self) -> None:
        """Log the jobs that wait because no machine has what they need, the first of each model, and tell their events.

        A worker is unknown for a moment between two attempts, so a job is logged only if it waits at two looks in a
        row.
        """
        earlier, told = set[str](), set[str]()
        while True:
            await asyncio.sleep(_UNFIT_INTERVAL)
            try:
                found = await self._store.attempts.unfit(self._machines(), self._needs)
                for job_id in (found.keys() & earlier) - told:
                    words = f"waits: it needs {described(found[job_id])}, and no machine has that"
                    await self._store.attempts.note_unfit(job_id, f"Fine-tune {words}")
                    _log.warning("fine-tune %s %s", job_id, words, extra={"job_id": job_id})
                    told.add(job_id)
                earlier = set(found)
            except Exception as error:  # noqa: BLE001  # as in `run`
                _log.error("what jobs need cannot be told: %s", shortage_of(error) or repr(error))

    def _begin(self, group: asyncio.TaskGroup, attempt: Attempt) -> None:
        self._running[attempt.id] = attempt
        group.create_task(self._train_or_put_back(attempt))

    def _note_change(self, jobs: Collection[str]) -> None:
        self._something_new.set()
        for job_id in jobs:
            if feed := self._feeds.get(job_id):
                feed.note_change()

    async def _train_or_put_back(self, attempt: Attempt) -> None:
        """Train a job; if it is interrupted, put it back into the queue."""
        try:
            await self._train(attempt)
            self._failures = 0
        except Exception as error:  # noqa: BLE001  # See `run`.
            lost = engine_lost(error)
            self._interrupted[attempt.id] = (
                attempt,
                self._note_interruption(attempt, error, lost),
                lost is not None and lost.by_job,
            )
            with contextlib.suppress(Exception):  # If this fails too, it is retried after the pause.
                await self._put_back()
        finally:
            del self._running[attempt.id]
            self._something_new.set()

    def _note_interruption(self, attempt: Attempt, error: Exception, lost: EngineLost | None) -> str:
        """Log why an attempt was interrupted, and return the reason; pause unless only its worker is concerned."""
        where = f" on {lost.where}" if lost and lost.where else ""
        if lost is None or not (lost.by_stop or lost.is_paced):
            return self._pause(error, f" (fine-tune {attempt.job.id}{where})")
        extra = {"job_id": attempt.job.id, "attempt": attempt.id, "where": lost.where}
        level = logging.INFO if lost.by_stop else logging.WARNING
        _log.log(level, "fine-tune %s was interrupted%s: %s", attempt.job.id, where, lost, extra=extra)
        return str(lost)

    def _pause(self, error: Exception, concerned: str = "") -> str:
        """Start no training for a while, and return the reason. Each pause is twice the last."""
        known = shortage_of(error) or engine_lost(error)
        reason = str(known or "the server failed to go on; its log says more")
        if time.monotonic() >= self._paused_until:
            pause = min(_FIRST_PAUSE * 2**self._failures, _LONGEST_PAUSE)
            self._failures += 1
            self._paused_until = time.monotonic() + pause
            exc_info = None if known else error
            _log.error("training is paused for %g s: %s%s", pause, reason, concerned, exc_info=exc_info)
        else:
            _log.error("a training was interrupted: %s%s", reason, concerned, exc_info=None if known else error)
        return reason

    async def _put_back(self) -> None:
        """Put the jobs of interrupted attempts back into the queue."""
        for attempt, reason, by_job in list(self._interrupted.values()):
            await self._store.attempts.put_back(attempt, reason, by_job=by_job)
            await self._store.attempts.clear(attempt)
            self._interrupted.pop(attempt.id, None)

    async def _train(self, attempt: Attempt) -> None:
        said = _Said(started_at=attempt.started_at) if attempt.is_resumed else _Said()
        verb = "goes on" if attempt.is_resumed else "started"
        _log.info("fine-tune %s %s", attempt.job.id, verb, extra={"job_id": attempt.job.id, "attempt": attempt.id})
        try:
            ended = await self._run_trainer(attempt, said)
            await self._conclude(attempt, said, ended)
        except Exception as error:
            # An error of one job must not affect the next one, and a shortage of the machine must not fail a job.
            if shortage_of(error) or engine_lost(error):
                raise
            _log.exception("fine-tune %s failed in the server", attempt.job.id)
            failure = "The server failed to run the training; its log says more"
            await self._store.attempts.note_failure(attempt, failure)
        finally:
            await self._store.attempts.clear(attempt)
        await self._log_end(attempt, time.time() - said.started_at)

    async def _log_end(self, attempt: Attempt, seconds: float) -> None:
        if _log.isEnabledFor(logging.INFO):
            _, status, _ = await self._store.jobs.events(attempt.job.id, 0, 0)
            extra = {"job_id": attempt.job.id, "status": status, "seconds": seconds}
            _log.info("fine-tune %s: %s after %.1f s", attempt.job.id, status, seconds, extra=extra)

    async def _run_trainer(self, attempt: Attempt, said: _Said) -> Ended:
        """Run a job's trainer until it ends, or the job is cancelled or paused."""
        async with asyncio.TaskGroup() as group:
            training = group.create_task(self._trainers.run(attempt, functools.partial(self._read, attempt, said)))
            watcher = group.create_task(self._stop_with_job(attempt, training))
            await asyncio.wait([training])
            watcher.cancel()
        return Ended(is_well=False, how="because it was cancelled") if training.cancelled() else training.result()

    async def _stop_with_job(self, attempt: Attempt, training: asyncio.Task[Ended]) -> None:
        # A job that was paused may be resumed by now, and train under another attempt.
        await self.feed(attempt.job.id).wait_until_over(attempt.id)
        training.cancel()

    async def _read(self, attempt: Attempt, said: _Said, line: bytes) -> None:
        """Read a line that a trainer wrote."""
        match structuring.loads(line):
            case {"type": "started"}:
                if said.epoch is not None:
                    raise ProtocolViolation("the trainer said twice that it has started")
                said.epoch = 0
                if not attempt.is_resumed:
                    said.started_at = time.time()
                await self._store.attempts.note_validated(attempt)
            case {"type": "epoch", "epoch": int(epoch), "n_epochs": int(n_epochs), **more}:
                # A trainer on another machine may say anything, and each epoch is an event.
                if not (said.epoch or 0) < epoch <= n_epochs <= int(attempt.job.hyperparams.n_epochs or 0):
                    raise ProtocolViolation(f"the trainer sent the end of epoch {epoch} of {n_epochs}")
                said.epoch = epoch
                if checkpoint := _checkpoint(attempt, epoch, n_epochs, more):
                    said.checkpoints.append(checkpoint)
                left = (time.time() - said.started_at) / epoch * (n_epochs - epoch)
                await self._store.attempts.note_epoch(attempt, epoch, n_epochs, now() + round(left))
            case {"type": "succeeded", **more}:
                said.has_succeeded = True
                said.trained_tokens = tokens if isinstance(tokens := more.get("trained_tokens"), int) else None
            case {"type": "failed", "message": str(message), **more}:
                said.failure = message[:_MAX_FAILURE]
                said.failed_param = param if isinstance(param := more.get("param"), str) else None
            case {"type": "short", "message": str(message)}:
                raise Shortage(message[:_MAX_FAILURE])
            case other:
                raise ProtocolViolation(f"the trainer sent an unknown message: {other!r:.500}")

    async def _conclude(self, attempt: Attempt, said: _Said, ended: Ended) -> None:
        """Store how a trainer ended, unless the job was cancelled in the meantime."""
        if said.failure is None and said.has_succeeded and ended.is_well:
            await self._store.attempts.note_success(attempt, said.trained_tokens, said.checkpoints)
        else:
            failure = said.failure or f"The trainer ended {ended.how}"
            await self._store.attempts.note_failure(attempt, _without_paths(failure, attempt), said.failed_param)


# Any: the keys of what a pattern leaves over are objects to mypy.
def _checkpoint(attempt: Attempt, epoch: int, n_epochs: int, reported: Mapping[Any, object]) -> Checkpoint | None:
    """Return the model at the end of an epoch; None if the trainer does not keep it, or reports no figures of it."""
    match reported:
        case {"step": int(step), "figures": dict(figures)} if epoch >= n_epochs - attempt.kept_epochs:
            # A trainer on another machine may say anything, and the API shows these.
            are_numbers = all(isinstance(figure, int | float | None) for figure in figures.values())
            if len(figures) > _MAX_FIGURES or not are_numbers:
                raise ProtocolViolation("the trainer sent figures that are none")
            weights = attempt.model_path if epoch == n_epochs else attempt.checkpoint_path(epoch)
            return Checkpoint(step, figures, now(), weights)
        case _:
            return None


def _without_paths(text: str, attempt: Attempt) -> str:
    """Replace the paths of the job's files with the names that its owner knows; remove the folders from others."""
    for path, files in (
        (attempt.training_path, attempt.job.training_files),
        (attempt.validation_path, attempt.job.validation_files),
    ):
        for file in files:
            text = text.replace(str(path), file.filename or file.id)
    for path in (attempt.job_path, attempt.model_path, attempt.results_path):
        text = text.replace(f"{path.parent}{os.sep}", "")
    return re.sub(r"(?<![\w.])/(?:[^\s/:'\"]+/)+", "", text)
