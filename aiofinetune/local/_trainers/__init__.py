"""The interface between the queue and whatever runs the trainers.

A trainer is a program that trains one job. It reports on standard output, with one JSON object per line, as described
in `aiofinetune.local._engines.trainer`. The queue interprets those lines; a class that runs trainers only passes them
on.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Protocol

import attrs

from aiofinetune.local._store.attempts import Attempt


@attrs.frozen
class Ended:
    """How a trainer ended."""

    is_well: bool
    """Whether the trainer ended without an error, for example with exit status 0."""
    how: str
    """The end of the sentence "The trainer ended ..." for the job's owner, such as "by SIGKILL"."""


class Trainers(Protocol):
    """Runs the trainers of jobs."""

    async def run(self, attempt: Attempt, on_line: Callable[[bytes], Awaitable[None]]) -> Ended:
        """Run a trainer until it ends, and return how it ended.

        When a trainer reports success, the complete model and results are at the paths in `attempt`. If `attempt` asks
        for the models at the ends of further epochs, each is complete at its path when the trainer reports that epoch.

        If this call is cancelled, or `on_line` raises an exception, end the trainer before the exception propagates.
        Any other exception means that the trainer could not be run: if it is a shortage of this machine
        (`aiofinetune.local._shortage`), the job goes back into the queue; otherwise the job fails.

        Args:
            attempt: The job, and the paths that the trainer reads and writes.
            on_line: Called and awaited for each line that the trainer writes.
        """
        ...  # Without this, Pyright takes the method for one that returns None.
