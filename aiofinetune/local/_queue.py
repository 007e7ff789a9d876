"""The queue: one job after the other, each trained by a process of its own, and the events told as they happen.

A thread cannot be killed and a process pool cannot cancel what it runs, so a job gets a process. The database alone
says what is to do: whoever changes a job there wakes the queue and everybody who follows the job.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import re
import signal
import sys
import weakref
from asyncio.subprocess import PIPE, Process
from collections.abc import Collection
from pathlib import Path
from typing import Final

import attrs

from aiofinetune import _sse as sse
from aiofinetune import structuring
from aiofinetune.errors import ProtocolViolation
from aiofinetune.local._shortage import Shortage, shortage_of
from aiofinetune.local._store import Store
from aiofinetune.local._store.runs import Run
from aiofinetune.models import FineTuneEvent, Status

_GRACE: Final = 2.0
"""Seconds that a trainer has to end by itself once it was asked to."""

_FIRST_PAUSE: Final = 1.0
_LONGEST_PAUSE: Final = 60.0
"""Seconds until the queue tries again what failed for want of something; each pause is twice the one before."""

_STDERR_BYTES: Final = 4096
"""How much of the end of a trainer's stderr is kept."""

_LINE_BYTES: Final = 1 << 20
"""The longest line that a trainer may write."""

MANY_EVENTS: Final = 500
"""As many as can be written without holding up the event loop for long."""

_TRAINER: Final = Path(__file__).parent / "_engines" / "trainer.py"

_SEED: Final = 0
"""The same data and parameters give the same model; the API has no parameter for it."""

_log = logging.getLogger(__name__)


class Feed:
    """The events of one job, read from the store and encoded once for all who follow it."""

    def __init__(self, store: Store, job_id: str) -> None:
        self._store = store
        self._job_id = job_id
        self._encoded: list[bytes] = []
        self._status = Status.PENDING
        self._reading = asyncio.Lock()
        self._changed = asyncio.Event()
        self._changed.set()

    def note_change(self) -> None:
        """Wake those who wait: the store holds something new."""
        self._changed.set()

    async def wait(self, position: int) -> tuple[list[bytes], bool]:
        """Wait until there are events from `position` on, or the job is over.

        Returns:
            The next events, `MANY_EVENTS` at most, and whether the job is over and those are the last.
        """
        while True:
            await self._read()
            is_over = self._status in Status.TERMINAL
            if is_over or position < len(self._encoded):
                events = self._encoded[position : position + MANY_EVENTS]
                return events, is_over and position + len(events) == len(self._encoded)
            await self._changed.wait()

    async def wait_until_over(self) -> str:
        """Wait until the job is over; return its status."""
        position = 0
        while self._status not in Status.TERMINAL:
            position += len((await self.wait(position))[0])
        return self._status

    async def _read(self) -> None:
        async with self._reading:
            if not self._changed.is_set():
                return
            # Cleared before reading: a change that comes meanwhile asks for another reading.
            self._changed.clear()
            start = len(self._encoded)
            try:
                events, status = await self._store.jobs.events(self._job_id, start, MANY_EVENTS)
            except BaseException:
                self._changed.set()
                raise
            if len(events) == MANY_EVENTS:
                self._changed.set()  # There may be more of them.
            else:
                self._status = status
            self._encoded += [sse.encode(write_event(self._job_id, *event)) for event in enumerate(events, start)]


def event_id(job_id: str, position: int) -> str:
    """Return what names one of a job's events, so that a list of them can be read in pages."""
    return f"ftevent-{job_id.removeprefix('ft-')}-{position}"


def write_event(job_id: str, position: int, event: FineTuneEvent) -> bytes:
    """Write one of a job's events as JSON."""
    return structuring.dumps({"id": event_id(job_id, position), **structuring.write_reply(event)})


@attrs.define
class _Outcome:
    """What a trainer has said and left so far."""

    has_succeeded: bool = False
    failure: str | None = None
    stderr: bytes = b""


class Jobs:
    """Trains the jobs of a store, oldest first, one at a time."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._something_new = asyncio.Event()
        self._feeds: weakref.WeakValueDictionary[str, Feed] = weakref.WeakValueDictionary()
        store.on_change = self._note_change

    def feed(self, job_id: str) -> Feed:
        """Return the job's feed, the same one for all who follow the job at a time."""
        feed = self._feeds.get(job_id)
        if feed is None:
            feed = self._feeds[job_id] = Feed(self._store, job_id)
        return feed

    async def run(self) -> None:
        """Train jobs until cancelled. A job that is under way then stays "running", for the next start to repeat.

        What fails here is no reason for the application around the server to end: it is tried again after a pause.
        """
        failures, reason = 0, None
        while True:
            try:
                if reason is not None:
                    await self._store.runs.put_back(reason)
                    reason = None
                await self._train_next()
                failures = 0
            except Exception as error:  # noqa: BLE001  # See above.
                shortage = shortage_of(error)
                reason = str(shortage or "the server failed to go on; its log says more")
                pause = min(_FIRST_PAUSE * 2**failures, _LONGEST_PAUSE)
                failures += 1
                _log.error("fine-tunes wait for %g s: %s", pause, reason, exc_info=None if shortage else error)
                with contextlib.suppress(Exception):  # If it cannot be written down yet, then after the pause.
                    await self._store.runs.put_back(reason)
                    reason = None
                await asyncio.sleep(pause)

    async def _train_next(self) -> None:
        """Train the next job, or wait until there may be one."""
        self._something_new.clear()
        run = await self._store.runs.take_next()
        if run is None:
            await self._something_new.wait()
        else:
            await self._train(run)

    def _note_change(self, jobs: Collection[str]) -> None:
        self._something_new.set()
        for job_id in jobs:
            if feed := self._feeds.get(job_id):
                feed.note_change()

    async def _train(self, run: Run) -> None:
        try:
            await self._store.in_thread(lambda: run.job_path.write_bytes(structuring.dumps(_orders(run))))
            code, outcome = await self._run_trainer(run)
            await self._conclude(run, code, outcome)
        except Exception as error:
            # One job's trouble is not the next one's; the machine's is no job's.
            if shortage_of(error):
                raise
            _log.exception("fine-tune %s failed in the server", run.job.id)
            await self._store.runs.note_failure(run.job.id, "The server failed to run the training; its log says more")
        finally:
            await self._store.runs.clear(run)

    async def _run_trainer(self, run: Run) -> tuple[int, _Outcome]:
        """Run a job's trainer to its end, or until the job is cancelled."""
        outcome = _Outcome()
        process = await _start_trainer(run)
        try:
            async with asyncio.TaskGroup() as group:
                watcher = group.create_task(self._stop_if_cancelled(run, process))
                group.create_task(_keep_stderr(process, outcome))
                await self._listen(run, process, outcome)
                code = await process.wait()
                watcher.cancel()
        finally:
            await _end(process)
        return code, outcome

    async def _stop_if_cancelled(self, run: Run, process: Process) -> None:
        """Stop the trainer once its job is cancelled; whoever reads its output goes on, so that it can end."""
        if await self.feed(run.job.id).wait_until_over() == Status.CANCELLED:
            _signal(process, signal.SIGTERM)
            await asyncio.sleep(_GRACE)
            _signal(process, signal.SIGKILL)

    async def _listen(self, run: Run, process: Process, outcome: _Outcome) -> None:
        assert process.stdout is not None  # noqa: S101  # It is a pipe.
        async for line in process.stdout:
            match structuring.loads(line):
                case {"type": "started"}:
                    pass
                case {"type": "epoch", "epoch": int(epoch), "n_epochs": int(n_epochs)}:
                    await self._store.runs.note_event(run.job.id, f"Completed epoch {epoch}/{n_epochs}")
                case {"type": "succeeded"}:
                    outcome.has_succeeded = True
                case {"type": "failed", "message": str(message)}:
                    outcome.failure = message
                case {"type": "short", "message": str(message)}:
                    raise Shortage(message)
                case other:
                    raise ProtocolViolation(f"the trainer said {other!r}")

    async def _conclude(self, run: Run, code: int, outcome: _Outcome) -> None:
        """Write down how a trainer ended; nothing is written if the job was cancelled meanwhile."""
        if outcome.failure is not None:
            await self._store.runs.note_failure(run.job.id, _without_paths(outcome.failure, run))
        elif outcome.has_succeeded and code == 0:
            await self._store.runs.note_success(run)
        else:
            await self._store.runs.note_failure(run.job.id, _death_notice(code, outcome.stderr, run))


def _orders(run: Run) -> dict[str, object]:
    """Return what the trainer reads."""
    return {
        "training_path": str(run.training_path),
        "validation_path": run.validation_path and str(run.validation_path),
        "model": run.start,
        "model_path": str(run.model_path),
        "results_path": str(run.results_path),
        "hyperparams": structuring.write_reply(run.job.hyperparams),
        "seed": _SEED,
    }


async def _start_trainer(run: Run) -> Process:
    # One BLAS thread: with more, a run of 7 s took 45 s beside other work. The trainer imports what the server would,
    # wherever it is started. A session of its own keeps a Ctrl-C at the terminal for the server to act on (uvloop knows
    # no `process_group`); the trainer sees the end of its stdin if the server is gone.
    one_thread = dict.fromkeys(("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    python_path = os.pathsep.join(path or os.curdir for path in sys.path)
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-P", str(_TRAINER), str(run.job_path)),
        stdin=PIPE,
        stdout=PIPE,
        stderr=PIPE,
        limit=_LINE_BYTES,
        env={**os.environ, **one_thread, "PYTHONPATH": python_path},
        start_new_session=True,
    )


async def _keep_stderr(process: Process, outcome: _Outcome) -> None:
    assert process.stderr is not None  # noqa: S101  # It is a pipe.
    while piece := await process.stderr.read(_STDERR_BYTES):
        outcome.stderr = (outcome.stderr + piece)[-_STDERR_BYTES:]


def _signal(process: Process, number: signal.Signals) -> None:
    """Signal a trainer and whatever it may have started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, number)


async def _end(process: Process) -> None:
    """End a trainer that nobody listens to any more, if it has not ended: ask it to, and kill it if it does not."""
    assert process.stdin is not None  # noqa: S101  # It is a pipe.
    assert process.stdout is not None  # noqa: S101  # It is a pipe.
    process.stdin.close()
    if process.returncode is None or not process.stdout.at_eof():
        _signal(process, signal.SIGTERM)
    try:
        async with asyncio.timeout(_GRACE):
            await process.communicate()
    except TimeoutError:
        _signal(process, signal.SIGKILL)
        await process.communicate()


def _death_notice(code: int, stderr: bytes, run: Run) -> str:
    """Say how a trainer ended that did not say so itself."""
    how = f"with exit status {code}" if code >= 0 else f"by {signal.Signals(-code).name}"
    lines = stderr.decode(errors="replace").strip().splitlines()
    return _without_paths(f"The trainer ended {how}" + (f": {lines[-1]}" if lines else ""), run)


def _without_paths(text: str, run: Run) -> str:
    """Call the job's files by their own names, and leave the folders out of any other path."""
    for path, files in (
        (run.training_path, run.job.training_files),
        (run.validation_path, run.job.validation_files),
    ):
        for file in files:
            text = text.replace(str(path), file.filename or file.id)
    for path in (run.job_path, run.model_path, run.results_path):
        text = text.replace(f"{path.parent}{os.sep}", "")
    return re.sub(r"(?<![\w.])/(?:[^\s/:'\"]+/)+", "", text)
