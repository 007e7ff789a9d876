"""Trainers whose jobs are held, or fail, on demand."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Sequence

from aiofinetune import structuring
from aiofinetune.local._machines import Machine
from aiofinetune.local._store.attempts import Attempt
from aiofinetune.local._trainers import Ended, Trainers
from aiofinetune.testing._plans import Plans

OnLine = Callable[[bytes], Awaitable[None]]


class FaultyTrainers:
    """Lets jobs wait while they are held, and fail on demand; otherwise, other trainers run them.

    Args:
        trainers: What runs the jobs.
        plans: The faults.
    """

    def __init__(self, trainers: Trainers, plans: Plans) -> None:
        self._trainers = trainers
        self._plans = plans

    @property
    def slots(self) -> int:
        """The number of attempts at once; see `Trainers`."""
        return self._trainers.slots

    def machines(self, running: Collection[Attempt]) -> Sequence[Machine]:
        """Return what each machine has; see `Trainers`."""
        return self._trainers.machines(running)

    async def run(self, attempt: Attempt, on_line: OnLine) -> Ended:
        """Run a job (see `aiofinetune.local._trainers.Trainers`)."""
        tell = on_line
        if self._plans.held_jobs.is_closed:
            # Until a trainer says that it has started, the status in /fine_tuning/jobs is "validating_files".
            await on_line(b'{"type": "started"}')
            tell = _without_start(on_line)
            await self._plans.held_jobs.passed()
        if failure := self._plans.take_job_failure():
            report = {"type": "failed", "message": failure.message, "param": failure.param}
            await on_line(structuring.dumps(report))
            return Ended(is_well=False, how="because a test asked for it")
        return await self._trainers.run(attempt, tell)


def _without_start(on_line: OnLine) -> OnLine:
    """Pass on what a trainer says, but for its start, which the queue has been told and refuses to be told again."""

    async def tell(line: bytes) -> None:
        match structuring.loads(line):
            case {"type": "started"}:
                return
        await on_line(line)

    return tell
