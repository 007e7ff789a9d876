"""Trainers that are processes on this machine.

A thread cannot be killed, and a process pool cannot cancel its work, so each trainer is a process of its own.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Sequence

from aiofinetune import structuring
from aiofinetune._threads import in_thread
from aiofinetune.local._machines import Machine, Resources, shared
from aiofinetune.local._store.attempts import Attempt
from aiofinetune.local._trainers import Ended
from aiofinetune.local._trainers.trainer import ended, read_stderr, started, trainer_input


class LocalProcess:
    """Runs each trainer as a process of its own on this machine.

    Args:
        slots: The number of trainers at once. Each uses one thread.
        resources: What this machine has, such as ``{"gpu": 1}``, for models that need it.
    """

    def __init__(self, slots: int = 1, resources: Resources | None = None) -> None:
        self.slots = slots
        self._resources = resources or {}

    def machines(self, running: Collection[Attempt]) -> Sequence[Machine]:
        """Return what this machine has; see `aiofinetune.local._trainers.Trainers`."""
        return shared([self._resources], [attempt.needs for attempt in running])

    async def run(self, attempt: Attempt, on_line: Callable[[bytes], Awaitable[None]]) -> Ended:
        """Run a trainer until it ends (see `aiofinetune.local._trainers.Trainers`)."""
        await in_thread(None, lambda: attempt.job_path.write_bytes(structuring.dumps(trainer_input(attempt))))
        async with started(attempt.job_path) as process, asyncio.TaskGroup() as group:
            assert process.stdout is not None  # noqa: S101  # It is a pipe.
            stderr = group.create_task(read_stderr(process))
            async for line in process.stdout:
                await on_line(line)
            code = await process.wait()
        return ended(code, stderr.result())
