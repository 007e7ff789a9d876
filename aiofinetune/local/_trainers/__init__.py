"""What runs trainers: the seam between the queue and the machine that a job is trained on.

A trainer is a program that trains one job. It reports on standard output, one JSON object a line, as
`aiofinetune.local._engines.trainer` says. The queue reads those lines; what runs the trainer only passes them on.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Protocol

import attrs

from aiofinetune.local._store.runs import Run


@attrs.frozen
class Ended:
    """How a trainer ended."""

    is_well: bool
    """Whether nothing went wrong, such as with exit status 0."""
    how: str
    """What follows "The trainer ended" in a message for the job's owner, such as "by SIGKILL"."""


class Trainers(Protocol):
    """Runs the trainers of jobs."""

    async def run(self, run: Run, on_line: Callable[[bytes], Awaitable[None]]) -> Ended:
        """Run a trainer to its end, and return how it ended.

        A trainer that says that it has succeeded has left the model and the results, whole, at the paths in `run`.

        If this is cancelled, or `on_line` raises an exception, the trainer is ended first. Any other exception says
        that the trainer could not be run: a shortage of this machine (`aiofinetune.local._shortage`) puts the job back
        into the queue, and all else fails it.

        Args:
            run: The attempt: the job, and where the trainer finds and leaves things.
            on_line: Called with each line that the trainer writes, and awaited before the next.
        """
        ...  # Pyright takes a body of a docstring alone for one that returns None.
