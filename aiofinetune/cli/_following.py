"""Follow a job: print its events as they happen, and draw how far it is."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import Callable, Iterator
from typing import Final

import attrs
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from aiofinetune import retry
from aiofinetune.cli._output import clock, duration, one_line, print_fields, print_line
from aiofinetune.cli._shell import Shell
from aiofinetune.errors import FineTuneError, StreamHistoryChanged, StreamInterrupted
from aiofinetune.models import FineTune, FineTuneCancelled, FineTuneEvent, FineTuneFailed, Status
from aiofinetune.session import FineTuneSession

_DONE: Final = re.compile(r"\b(epoch|step):? (\d{1,9})(?: ?(?:/|of) ?(\d{1,9}))?\b", re.IGNORECASE)
"""``Completed epoch 2/4`` (reference) and ``Step 10/100: training loss=0.5`` (OpenAI's jobs)."""
_LOSS: Final = re.compile(r"\b(?:training |train_)?loss\s*[=:]?\s*(\d+(?:\.\d+)?(?:e-?\d+)?)", re.IGNORECASE)
_PAUSE: Final = 1.0
"""The number of seconds before events are followed again that were interrupted, or ended before their job."""


@attrs.frozen
class Training:
    """How far a job's training is, as its events tell.

    Args:
        unit: What `done` counts: ``"epoch"`` or ``"step"``.
        done: The number of the last one that was completed.
        total: The number of all; None if it is not known.
        loss: The last training loss that was told.
    """

    unit: str = "epoch"
    done: int = 0
    total: int | None = None
    loss: str | None = None

    def after(self, message: str) -> Training:
        """Return how far it is after an event with this message."""
        state = self
        if match := _DONE.search(message):
            unit, total = match[1].lower(), None if match[3] is None else int(match[3])
            if total is None and unit == self.unit:
                total = self.total
            state = attrs.evolve(state, unit=unit, done=int(match[2]), total=total)
        if match := _LOSS.search(message):
            state = attrs.evolve(state, loss=match[1])
        return state

    def __str__(self) -> str:
        if not self.done:
            return ""
        count = f"{self.done}" if self.total is None else f"{self.done}/{self.total}"
        return f"{self.unit} {count}" + ("" if self.loss is None else f", loss {self.loss}")


async def follow_to_the_end(shell: Shell, session: FineTuneSession, fine_tune_id: str) -> FineTune:
    """Print the events of a job until it ends, and then the job.

    If it is cancelled, the job continues, and what to do is printed.

    Raises:
        FineTuneFailed: The job failed.
        FineTuneCancelled: The job was cancelled.
    """
    try:
        job = await _Following(shell, session, fine_tune_id).run()
    except asyncio.CancelledError:
        for line in _left(shell, fine_tune_id):
            shell.hint(line)
        raise
    show_end(shell, job)
    if job.status == Status.SUCCEEDED:
        return job
    # The events are on the screen already.
    kind = FineTuneCancelled if job.status == Status.CANCELLED else FineTuneFailed
    raise kind(job)


def _left(shell: Shell, fine_tune_id: str) -> tuple[str, ...]:
    if shell.local and shell.local_data is None:
        return (f"No longer following {fine_tune_id}, which ended with the embedded server of this command.",)
    fate = "It continues when a server runs with this folder again" if shell.local else "The job continues"
    return (
        f"No longer following {fine_tune_id}. {fate}.",
        f"To follow it again: {shell.command('follow', fine_tune_id)}",
        f"To cancel it: {shell.command('cancel', fine_tune_id)}",
    )


def show_end(shell: Shell, job: FineTune) -> None:
    """Print how a job ended."""
    if shell.as_json:
        shell.print_json(job)
        return
    ended_at = job.finished_at or job.updated_at
    took = "" if ended_at is None or job.created_at is None else duration(ended_at - job.created_at)
    fields = [("status", job.status), ("fine-tuned model", job.fine_tuned_model or ""), ("took", took)]
    fields.append(("results file", ", ".join(file.id for file in job.result_files)))
    if job.error is not None:
        fields.append(("error", job.error.message or job.error.code or ""))
    print_fields(shell.out, [("job", job.id), *fields])


class _Following:
    """One job that is followed, and its progress bar."""

    def __init__(self, shell: Shell, session: FineTuneSession, fine_tune_id: str) -> None:
        self._shell = shell
        self._session = session
        self._id = fine_tune_id
        self._shown = 0
        self._training = Training()
        self._draw: Callable[[], None] = lambda: None
        """Draws how far the job is."""

    async def run(self) -> FineTune:
        """Print events until the job has ended, and return it."""
        with self._drawn():
            while True:
                try:
                    await self._print_events()
                except FineTuneError as error:
                    if not isinstance(error, StreamInterrupted) and not retry.may_pass(error):
                        raise
                    if isinstance(error, StreamHistoryChanged):
                        self._shown = 0
                    self._shell.hint(f"the events were interrupted: {error}; following again")
                # The session retries this as long as `Retry` says, so an outage ends the command here or not at all.
                job = await self._session.retrieve_fine_tune(self._id)
                if job.is_terminal:
                    return job
                await asyncio.sleep(_PAUSE)

    async def _print_events(self) -> None:
        place = 0
        async with self._session.stream_fine_tune_events(self._id) as events:
            async for event in events:
                place += 1
                if place > self._shown:
                    self._shown = place
                    self._print(event)

    def _print(self, event: FineTuneEvent) -> None:
        self._training = self._training.after(event.message)
        self._draw()
        if self._shell.as_json:
            self._shell.print_json(event)
        else:
            # Above the bar, if there is one: it is drawn on stderr, and both are the terminal then.
            shell = self._shell
            show_event(shell.err if shell.shows_progress and shell.out.is_terminal else shell.out, event, "%H:%M:%S")

    @contextlib.contextmanager
    def _drawn(self) -> Iterator[None]:
        shell = self._shell
        if not shell.shows_progress:
            yield
            return
        columns = (TextColumn("{task.description}", markup=False), BarColumn(bar_width=None), TimeElapsedColumn())
        is_shared = shell.out.is_terminal
        with Progress(*columns, console=shell.err, transient=True, redirect_stdout=is_shared) as progress:
            bar = progress.add_task(self._id, total=None)

            def draw() -> None:
                words, training = f"{self._id}  {self._training}", self._training
                progress.update(bar, description=words, completed=training.done, total=training.total)

            self._draw = draw
            yield


def show_event(console: Console, event: FineTuneEvent, form: str) -> None:
    """Print an event on a line."""
    level = "" if event.level == "info" else f"{event.level}: "
    style = {"warn": "yellow", "warning": "yellow", "error": "bold red"}.get(event.level, "")
    print_line(console, f"{clock(event.created_at, form)}  {level}{one_line(event.message)}", style)
