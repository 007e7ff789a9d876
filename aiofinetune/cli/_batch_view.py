"""What a batch shows: the line of an outcome, the counts, and the live table."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from typing import Final

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, Group, RenderResult
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from aiofinetune.batch._notices import Notices
from aiofinetune.batch._outcomes import ActiveJob, Outcome, Progress
from aiofinetune.cli._following import Training
from aiofinetune.cli._output import duration, one_line
from aiofinetune.results._figures import diverged

_SHOWN_ACTIVE: Final = 10
_MIN_LABEL: Final = 11
_MIN_PROGRESS: Final = 16
_GAP: Final = 2
_BAR: Final = 30


def outcome_line(outcome: Outcome) -> str:
    """Return the line of an entry that ended: its label, its status, how long it took, and its model or error."""
    took = "" if outcome.seconds is None else f" {outcome.seconds:.1f} s"
    model = None if outcome.job is None else outcome.job.fine_tuned_model
    words = str(outcome.error or model)
    if outcome.status == "succeeded" and outcome.error is not None:
        words = f"{model}; its results file was not saved: {outcome.error}"
    elif lost := diverged(outcome.figures):
        words = f"{model}; its training diverged: at the end its {lost}"
    return f"{outcome.label} {outcome.status}{took} {one_line(words)}"


def counts_line(progress: Progress, count: int) -> str:
    """Return how many of all entries are how far.

    Args:
        progress: How far the batch is.
        count: The number of all entries.
    """
    words = (
        f"{progress.ended} of {count} ended: {progress.succeeded} succeeded, {progress.failed} failed,"
        f" {progress.cancelled} cancelled, {progress.rejected} rejected"
    )
    for name in ("uncertain", "vanished"):
        if number := getattr(progress, name):
            words += f", {number} {name}"
    if progress.unsaved:
        words += f"; {progress.unsaved} results {'file' if progress.unsaved == 1 else 'files'} not saved"
    return words


def unknown_words(progress: Progress) -> str:
    """Return how many entries a person must look at, and why; "" if there are none."""
    whys = {"uncertain": "may have made a job that is not known", "vanished": "had a job that the service has no more"}
    counts = {name: getattr(progress, name) for name in whys}
    return ", ".join(f"{counts[name]} {name} ({why})" for name, why in whys.items() if counts[name])


def _active_line(progress: Progress, count: int) -> str:
    others = f" and {progress.others} of other programs" if progress.others else ""
    words = f"{progress.active} active{others}, followed by {progress.followed_by}"
    if left := count - progress.ended - progress.active:
        words += f"; {left} to send"
    return f"{words}; {progress.ended_per_minute:.1f} ended a minute"


def arrival(progress: Progress, count: int) -> str:
    """Return when the batch will probably be over; "" if that is not known."""
    rate, left = progress.ended_per_minute, count - progress.ended
    if not rate or not left:
        return ""
    return f", over at about {time.strftime('%H:%M', time.localtime(time.time() + 60 * left / rate))}"


class LiveTable:
    """The active jobs of a batch, each with how far its training is, and what the batch waits for.

    Args:
        count: The number of all entries.
    """

    def __init__(self, count: int) -> None:
        self._count = count
        self._trainings: dict[str, Training] = {}

    def picture(self, active: Sequence[ActiveJob], progress: Progress) -> Group:
        """Return what to draw now."""
        self._trainings = {job.job_id: self._trainings.get(job.job_id, Training()).after(job.message) for job in active}
        shown = active[:_SHOWN_ACTIVE]
        lines: list[_Jobs | Table | Text] = []
        if shown:
            lines.append(_Jobs(shown, [str(self._trainings[job.job_id]) or job.message for job in shown]))
        if more := len(active) - len(shown):
            lines.append(Text(f"and {more} more"))
        bar = Table.grid(padding=(0, 1))
        percent = f"{100 * progress.ended / max(1, self._count):.0f} %{arrival(progress, self._count)}"
        bar.add_row(ProgressBar(self._count, progress.ended, width=_BAR), percent)
        lines += [bar, Text(counts_line(progress, self._count)), Text(_active_line(progress, self._count))]
        waits = Notices().lines(progress.waits, time.monotonic())
        return Group(*lines, *(Text(one_line(words)) for words in waits))


class _Jobs:
    """A table of active jobs: their ids are whole at any width, and the times are left out where there is no room."""

    def __init__(self, jobs: Sequence[ActiveJob], progress: Sequence[str]) -> None:
        self._jobs = jobs
        self._progress = progress

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Yield the table."""
        now = time.time()
        times = [duration(now - (job.sent_at or now)) for job in self._jobs]
        ids = [job.job_id for job in self._jobs]
        least = _MIN_LABEL + _MIN_PROGRESS + _width(["job", *ids]) + _width(["time", *times]) + 3 * _GAP
        has_times = options.max_width >= least
        table = Table(box=None, pad_edge=False, padding=(0, _GAP, 0, 0))
        # Labels are folded, not cut: those of a sweep often differ only at the end.
        table.add_column("active", overflow="fold", min_width=_MIN_LABEL)
        table.add_column("job", no_wrap=True, min_width=_width(["job", *ids]))
        if has_times:
            table.add_column("time", no_wrap=True, justify="right", min_width=_width(["time", *times]))
        table.add_column("progress", overflow="fold")
        for job, took, progress in zip(self._jobs, times, self._progress, strict=True):
            cells = [job.label, job.job_id, *[took] * has_times, one_line(progress)]
            table.add_row(*map(Text, cells))
        yield table


def _width(cells: Iterable[str]) -> int:
    return max(map(cell_len, cells))
