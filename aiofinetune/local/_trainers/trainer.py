"""What a trainer is told, and its process: the same for every way to run trainers, on this machine or another."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from aiofinetune import structuring
from aiofinetune._threads import until_over
from aiofinetune.local._trainers import Ended

if TYPE_CHECKING:
    from aiofinetune.local._store.attempts import Attempt

_GRACE: Final = 2.0
"""Seconds that a trainer has to end after SIGTERM."""

_STDERR_BYTES: Final = 4096
"""The number of bytes that are kept from the end of a trainer's stderr."""

_LINE_BYTES: Final = 1 << 20
"""The length of the longest line that a trainer may write."""

_TRAINER: Final = Path(__file__).parents[1] / "_engines" / "trainer.py"


def trainer_input(attempt: Attempt, place: Callable[[Path], str] = str) -> dict[str, object]:
    """Return a trainer's input, which `aiofinetune.local._engines.trainer` describes.

    Args:
        attempt: The attempt.
        place: Returns where a file of this server is for the trainer.
    """
    is_base, open_model = attempt.start == attempt.base, attempt.open_model
    return {
        "training_path": place(attempt.training_path),
        "validation_path": attempt.validation_path and place(attempt.validation_path),
        "model": attempt.start if is_base else place(Path(attempt.start)),
        "model_path": place(attempt.model_path),
        "results_path": place(attempt.results_path),
        "hyperparams": structuring.write_reply(attempt.job.hyperparams),
        "seed": attempt.seed,
        "open_model": open_model and {**open_model.as_json(), "path": place(open_model.path)},
        "checkpoint_paths": {str(epoch): place(path) for epoch, path in attempt.checkpoint_paths().items()},
    }


def input_paths(attempt: Attempt) -> Sequence[Path]:
    """Return the files and folders that a trainer reads besides its input."""
    start = None if attempt.start == attempt.base else Path(attempt.start)
    open_model = attempt.open_model and attempt.open_model.path
    return [path for path in (attempt.training_path, attempt.validation_path, start, open_model) if path]


def output_paths(attempt: Attempt) -> Sequence[Path]:
    """Return the files that a trainer writes if it succeeds."""
    return [attempt.model_path, attempt.results_path, *attempt.checkpoint_paths().values()]


@contextlib.asynccontextmanager
async def started(job_path: Path) -> AsyncIterator[Process]:
    """Return a context manager that starts a trainer, and ends it when the block ends.

    Args:
        job_path: The file with the trainer's input. Relative paths in it are relative to its folder.
    """
    # If this were cancelled halfway, the process would run and nothing would end it.
    starting = asyncio.ensure_future(_start(job_path))
    try:
        yield await until_over(starting)
    finally:
        if not starting.cancelled() and starting.exception() is None:
            # This must not be cancelled either: the server may close while a cancelled job's trainer ends.
            await until_over(asyncio.ensure_future(_end(starting.result())))


async def _start(job_path: Path) -> Process:
    # With more than one BLAS thread, a run of 7 s took 45 s on a busy machine. With this path, the trainer imports the
    # same modules as this process. In a session of its own, the trainer does not receive a Ctrl-C at the terminal,
    # which is for this process (uvloop does not support `process_group`). If this one dies, the trainer's stdin ends.
    one_thread = dict.fromkeys(("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    python_path = os.pathsep.join(map(os.path.abspath, sys.path))
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-P", str(_TRAINER), str(job_path)),
        stdin=PIPE,
        stdout=PIPE,
        stderr=PIPE,
        limit=_LINE_BYTES,
        cwd=job_path.parent,
        env={**os.environ, **one_thread, "PYTHONPATH": python_path},
        start_new_session=True,
    )


async def read_stderr(process: Process) -> bytes:
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


def ended(code: int, stderr: bytes) -> Ended:
    """Return how a trainer ended, with the last line of its stderr."""
    how = f"with exit status {code}" if code >= 0 else f"by {signal.Signals(-code).name}"
    if code == -signal.SIGKILL:
        how += ", perhaps because the machine ran out of memory"  # Linux sends it then.
    if code < 0:
        return Ended(is_well=False, how=how)  # What it wrote last is not the reason.
    lines = stderr.decode(errors="replace").strip().splitlines()
    return Ended(code == 0, how + (f": {lines[-1]}" if lines else ""))
