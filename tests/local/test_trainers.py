"""What runs trainers: what the queue makes of it, and that no process outlives it."""

from __future__ import annotations

import asyncio
import errno
import os
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from aiofinetune.local import _queue as queue
from aiofinetune.local._machines import Machine, shared
from aiofinetune.local._queue import Jobs
from aiofinetune.local._store import Store
from aiofinetune.local._store.attempts import Attempt
from aiofinetune.local._trainers import Ended, trainer
from aiofinetune.local._trainers.local_process import LocalProcess
from aiofinetune.models import FineTune, FineTuneRequest, Status

WELL = Ended(is_well=True, how="well")


class Scripted:
    """Trainers that end at once, each as the next of `endings` says."""

    slots = 1

    def __init__(self, *endings: Ended | BaseException, lines: tuple[bytes, ...] = ()) -> None:
        self._endings = iter(endings)
        self._lines = lines

    def machines(self, running: Collection[Attempt]) -> Sequence[Machine]:
        """One machine that has nothing."""
        return shared([{}], [attempt.needs for attempt in running])

    async def run(self, attempt: Attempt, on_line: Callable[[bytes], Awaitable[None]]) -> Ended:
        """Leave what a training leaves, write the lines, and end."""
        attempt.model_path.touch()
        attempt.results_path.touch()
        for line in self._lines:
            await on_line(line)
        ending = next(self._endings)
        if isinstance(ending, BaseException):
            raise ending
        return ending


@asynccontextmanager
async def created(data: Path) -> AsyncIterator[tuple[Store, FineTune]]:
    """Open a store, with one job in it."""
    async with Store(data).opened() as store, store.files.receive() as incoming:
        await store.in_thread(lambda: incoming.write(b'{"prompt": "a", "completion": "b"}\n'))
        file = await store.files.keep(incoming, "a.jsonl", "fine-tune")
        yield store, await store.jobs.create(FineTuneRequest(training_file=file.id, model="ada", n_epochs=1000))


async def finish(store: Store, job: FineTune, trainers: Scripted) -> tuple[str, list[str]]:
    """Run the queue until a job is over; return its status, and what its events say after its start."""
    jobs = Jobs(store, trainers)
    running = asyncio.create_task(jobs.run())
    try:
        async with asyncio.timeout(30):
            status = await jobs.feed(job.id).wait_until(Status.TERMINAL.__contains__)
    finally:
        running.cancel()
        await asyncio.wait([running])
    return status, [event.message for event in (await store.jobs.get(job.id)).events[4:]]


async def test_a_trainer_that_succeeds(data: Path) -> None:
    """The lines of a trainer become events, and what it leaves becomes a model and a file."""
    lines = (b'{"type": "started"}', b'{"type": "epoch", "epoch": 1, "n_epochs": 1}', b'{"type": "succeeded"}')
    async with created(data) as (store, job):
        status, messages = await finish(store, job, Scripted(WELL, lines=lines))
        assert (status, messages[0], messages[-1]) == ("succeeded", "Completed epoch 1/1", "Fine-tune succeeded")
        assert (await store.jobs.get(job.id)).fine_tuned_model in [model.id for model in await store.models.list()]


@pytest.mark.parametrize(
    ("trainers", "failure"),
    [
        (Scripted(WELL), "The trainer ended well"),
        (Scripted(Ended(is_well=False, how="by SIGKILL"), lines=(b'{"type": "succeeded"}',)), "ended by SIGKILL"),
        (Scripted(WELL, lines=(b'{"type": "failed", "message": "no prompt"}',)), "no prompt"),
        (Scripted(WELL, lines=(b'{"type": "odd"}',)), "The server failed to run the training"),
        (Scripted(ZeroDivisionError()), "The server failed to run the training"),
        (Scripted(asyncio.CancelledError()), "The trainer ended because it was cancelled"),
    ],
    ids=["silent", "killed", "failed", "unknown line", "broken", "cancelled by itself"],
)
async def test_a_trainer_that_does_not_succeed(data: Path, trainers: Scripted, failure: str) -> None:
    """However a trainer ends that did not succeed, its job fails and leaves nothing."""
    async with created(data) as (store, job):
        status, messages = await finish(store, job, trainers)
        assert (status, failure in messages[0]) == ("failed", True)
        assert [len(list((data / part).iterdir())) for part in ("models", "runs", "files")] == [0, 0, 1]


async def test_a_trainer_that_is_short_of_something(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a trainer cannot be run for want of something, its job goes back to the queue and is tried again."""
    monkeypatch.setattr(queue, "_FIRST_PAUSE", 0.01)
    shortage = OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))
    async with created(data) as (store, job):
        _, messages = await finish(store, job, Scripted(shortage, WELL))
        assert messages[0].startswith("Fine-tune interrupted: Cannot allocate memory.")


@pytest.mark.uvloop
async def test_a_trainer_that_is_cancelled_is_ended(
    data: Path, tmp_path: Path, trainers: Callable[[Path], list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whenever a trainer is cancelled, and again while it starts or is being ended, no process is left."""
    stubborn = tmp_path / "python"
    stubborn.write_text("#!/bin/sh\ntrap '' TERM\nsleep 60\n")
    stubborn.chmod(0o700)
    monkeypatch.setattr(sys, "executable", str(stubborn))
    monkeypatch.setattr(trainer, "_GRACE", 0.02)

    async def ignore(_line: bytes) -> None:
        pass

    async with created(data) as (store, _):
        attempt = await store.attempts.take_next()
        assert attempt is not None
        for steps in range(12):
            training = asyncio.create_task(LocalProcess().run(attempt, ignore))
            while steps > 2 and not trainers(data):
                await asyncio.sleep(0)
            for _ in range(steps):
                await asyncio.sleep(0)
            while not training.done():
                training.cancel()
                await asyncio.sleep(0)
            assert training.cancelled()
            assert trainers(data) == []
