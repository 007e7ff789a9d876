"""The interface between the queue and whatever runs the trainers.

A trainer is a program that trains one job. It reports on standard output, with one JSON object per line, as described
in `aiofinetune.local._engines.trainer`. The queue interprets those lines; a class that runs trainers only passes them
on.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Sequence
from typing import TYPE_CHECKING, Protocol

import attrs

if TYPE_CHECKING:
    from aiofinetune.local._machines import Machine
    from aiofinetune.local._store.attempts import Attempt


@attrs.frozen
class Ended:
    """How a trainer ended."""

    is_well: bool
    """Whether the trainer ended without an error, for example with exit status 0."""
    how: str
    """The end of the sentence "The trainer ended ..." for the job's owner, such as "by SIGKILL"."""


class EngineLost(Exception):
    """What runs an attempt was lost, and the attempt with it; the job goes back into the queue.

    Args:
        message: What was lost, for the job's owner; "Fine-tune interrupted: " comes before it.
        by_job: Whether the job itself may be the reason: its worker ended while it trained it. A job to which that
            happens again and again fails.
        by_stop: Whether its worker was stopped in an ordinary way, as for an update.
        where: The machine that ran it, if that is known.
        is_paced: Whether what failed waits by itself before it takes another attempt, so that the queue need not.
    """

    def __init__(
        self,
        message: str,
        *,
        by_job: bool = False,
        by_stop: bool = False,
        where: str | None = None,
        is_paced: bool = False,
    ) -> None:
        super().__init__(message)
        self.by_job = by_job
        self.by_stop = by_stop
        self.where = where
        self.is_paced = is_paced


def engine_lost(error: BaseException) -> EngineLost | None:
    """Return the `EngineLost` that an error, or an error in a group, is; None if there is none."""
    if isinstance(error, BaseExceptionGroup):
        return next(filter(None, map(engine_lost, error.exceptions)), None)
    return error if isinstance(error, EngineLost) else None


class Trainers(Protocol):
    """Runs the trainers of jobs."""

    @property
    def slots(self) -> int:
        """The number of attempts that can run at once, those that run already included. It may change."""
        ...  # Without this, Pyright takes the method for one that returns None.

    def machines(self, running: Collection[Attempt]) -> Sequence[Machine]:
        """Return what each machine has now, and has free.

        Args:
            running: All attempts that the queue has begun and that are not over, oldest first.
        """
        ...  # as above

    async def run(self, attempt: Attempt, on_line: Callable[[bytes], Awaitable[None]]) -> Ended:
        """Run a trainer until it ends, and return how it ended.

        When a trainer reports success, the complete model and results are at the paths in `attempt`. If `attempt` asks
        for the models at the ends of further epochs, each is complete at its path before this returns.

        If this call is cancelled, or `on_line` raises an exception, end the trainer before the exception propagates.
        A trainer on another machine need only be told to end; and while its job is still running under this attempt,
        the server is only closing, and the trainer goes on until the server is back.

        Any other exception means that the trainer could not be run: if it is `EngineLost`, or a shortage of this
        machine (`aiofinetune.local._shortage`), the job goes back into the queue; otherwise the job fails.

        Args:
            attempt: The job, and the paths that the trainer reads and writes.
            on_line: Called and awaited for each line that the trainer writes.
        """
        ...  # as above
