"""Trainers that are processes on this machine.

A thread cannot be killed, and a process pool cannot cancel its work, so each trainer is a process of its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Final

from aiofinetune import structuring
from aiofinetune._threads import in_thread, until_over
from aiofinetune.local._store.attempts import Attempt
from aiofinetune.local._trainers import Ended

_GRACE: Final = 2.0
"""Seconds that a trainer has to end after SIGTERM."""

_STDERR_BYTES: Final = 4096
"""The number of bytes that are kept from the end of a trainer's stderr."""

_LINE_BYTES: Final = 1 << 20
"""The length of the longest line that a trainer may write."""

_TRAINER: Final = Path(__file__).parents[1] / "_engines" / "trainer.py"


class LocalProcess:
    """Runs each trainer as a process of its own on this machine."""

    async def run(self, attempt: Attempt, on_line: Callable[[bytes], Awaitable[None]]) -> Ended:
        """Run a trainer until it ends (see `aiofinetune.local._trainers.Trainers`)."""
        await in_thread(None, lambda: attempt.job_path.write_bytes(structuring.dumps(_input(attempt))))
        async with _started(attempt) as process, asyncio.TaskGroup() as group:
            assert process.stdout is not None  # noqa: S101  # It is a pipe.
            stderr = group.create_task(_read_stderr(process))
            async for line in process.stdout:
                await on_line(line)
            code = await process.wait()
        return Ended(code == 0, _how(code, stderr.result()))


def _input(attempt: Attempt) -> dict[str, object]:
    """Return the trainer's input."""
    return {
        "training_path": str(attempt.training_path),
        "validation_path": attempt.validation_path and str(attempt.validation_path),
        "model": attempt.start,
        "model_path": str(attempt.model_path),
        "results_path": str(attempt.results_path),
        "hyperparams": structuring.write_reply(attempt.job.hyperparams),
        "seed": attempt.seed,
        "checkpoint_paths": {str(epoch): str(path) for epoch, path in attempt.checkpoint_paths().items()},
    }


@contextlib.asynccontextmanager
async def _started(attempt: Attempt) -> AsyncIterator[Process]:
    """Return a context manager that starts a trainer, and ends it when the block ends."""
    # If this were cancelled halfway, the process would run and nothing would end it.
    starting = asyncio.ensure_future(_start(attempt))
    try:
        yield await until_over(starting)
    finally:
        if not starting.cancelled() and starting.exception() is None:
            # This must not be cancelled either: the server may close while a cancelled job's trainer ends.
            await until_over(asyncio.ensure_future(_end(starting.result())))


async def _start(attempt: Attempt) -> Process:
    # With more than one BLAS thread, a run of 7 s took 45 s on a busy machine. With this path, the trainer imports the
    # same modules as the server. In a session of its own, the trainer does not receive a Ctrl-C at the terminal, which
    # is for the server (uvloop does not support `process_group`). If the server dies, the trainer's stdin ends.
    one_thread = dict.fromkeys(("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    python_path = os.pathsep.join(path or os.curdir for path in sys.path)
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-P", str(_TRAINER), str(attempt.job_path)),
        stdin=PIPE,
        stdout=PIPE,
        stderr=PIPE,
        limit=_LINE_BYTES,
        env={**os.environ, **one_thread, "PYTHONPATH": python_path},
        start_new_session=True,
    )


async def _read_stderr(process: Process) -> bytes:
    """Read all of a trainer's stderr, and return its end."""
    assert process.stderr is not None  # noqa: S101  # It is a pipe.
    end = b""
    while piece := await process.stderr.read(_STDERR_BYTES):
        end = (end + piece)[-_STDERR_BYTES:]
    return end


async def _end(process: Process) -> None:
    """End a trainer that is still running: send SIGTERM, and SIGKILL if it does not end in time."""
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


def _signal(process: Process, number: signal.Signals) -> None:
    """Send a signal to a trainer and all processes that it has started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, number)


def _how(code: int, stderr: bytes) -> str:
    """Return how a trainer ended, with the last line of its stderr."""
    how = f"with exit status {code}" if code >= 0 else f"by {signal.Signals(-code).name}"
    lines = stderr.decode(errors="replace").strip().splitlines()
    return how + (f": {lines[-1]}" if lines else "")
