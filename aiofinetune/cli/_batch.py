"""Run a batch and show its progress, as a live table on a terminal and as plain lines elsewhere."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sys
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Callable, Collection, Iterator
from pathlib import Path
from typing import IO, Any, Final

from rich.console import Group
from rich.live import Live
from rich.markup import escape
from rich.progress_bar import ProgressBar
from rich.table import Column, Table
from rich.text import Text

from aiofinetune import structuring
from aiofinetune.batch._batch import Batch
from aiofinetune.batch._manifest import check_manifest, read_manifest
from aiofinetune.batch._notices import Notices
from aiofinetune.batch._outcomes import BatchStopped, Outcome, Progress
from aiofinetune.batch._rerun import Rerun, look_back
from aiofinetune.cli._data import progress_bar
from aiofinetune.cli._exit import Exit, exit_status
from aiofinetune.cli._output import one_line, print_json_line
from aiofinetune.cli._run import on_signal
from aiofinetune.cli._shell import Shell
from aiofinetune.data import Rules, check_file
from aiofinetune.errors import ConfigurationError, FineTuneError, JournalUnusable, LocalFileError
from aiofinetune.session import find_rules, find_service

_SHOWN_ACTIVE: Final = 10
_DRAW_INTERVAL: Final = 0.25
_TOLD: Final = ("label", "status", "job")
"""The keys by which a line of a summary is recognised; see `Outcome.summary`."""
_MAX_LINE_BYTES: Final = 1 << 20


@contextlib.contextmanager
def journal_of(manifest: Path, journal: Path | None, *, is_local: bool) -> Iterator[Path]:
    """Return a context manager of the path of a batch's journal.

    That of an embedded server, whose jobs no other server knows, is a temporary one: beside the manifest it would stand
    in the way of the batch itself.
    """
    if journal is None and is_local:
        with tempfile.TemporaryDirectory(prefix="aiofinetune-") as folder:
            yield Path(folder) / f"{manifest.name}.journal"
    else:
        yield journal or manifest.with_name(f"{manifest.name}.journal")


async def run_manifest(
    manifest: Path,
    journal: Path,
    summary: Path | None,
    shell: Shell,
    *,
    check: bool,
    data_check: bool,
    accept_changes: bool,
    retry_failed: bool,
    show_ended: bool,
    **options: Any,  # as `Batch` takes them, which says their types
) -> int:
    """Check a whole manifest, run it, and show its progress and outcomes.

    Returns:
        The exit status; see `aiofinetune.cli._exit`.

    Raises:
        ManifestInvalid: The manifest is invalid; nothing was sent.
        JournalUnusable: The journal is in use, damaged, or belongs to another manifest.
    """
    if summary is not None:
        await asyncio.to_thread(_check_summary, summary, (manifest, journal))
    dialect, base_url = find_service(shell.dialect, shell.base_url)
    with looking_into(find_rules(dialect, base_url)) as look:
        count = await asyncio.to_thread(check_manifest, manifest, dialect, look if data_check else None)
    console = shell.err if shell.as_json else shell.out
    if check:
        console.print(f"{manifest}: {count} {'job' if count == 1 else 'jobs'}, no problems")
        return 0
    async with shell.session() as session:
        rerun = await look_back(journal, session, read_manifest(manifest), accept_changes=accept_changes)
        if rerun.changes and not accept_changes:
            lines = "\n".join(rerun.changes)
            raise JournalUnusable(
                f"{manifest} has changed since {journal} was started:\n{lines}\nTo create a new job for each changed"
                " request, and leave out what is gone, pass --accept-changes"
            )
        if ended := _before(rerun, count, retry_failed=retry_failed):
            console.print(ended, soft_wrap=True, highlight=False)
        await asyncio.to_thread(_check_labels, manifest, options.get("retry_uncertain", ()))
        batch = Batch(
            session,
            read_manifest(manifest),
            journal=journal,
            accept_changes=accept_changes,
            retry="failed" if retry_failed else None,
            data_check=False,  # They were checked above.
            **options,
        )
        run = _Run(batch, count, journal, shell, cancels=bool(options.get("cancel_on_exit")), show_ended=show_ended)
        try:
            return await run.to_the_end(summary)
        except asyncio.CancelledError:
            # The second signal cancels the task that this command consists of.
            if len(run.signals) < 2:
                raise
            return exit_status(signal=run.signals[0])


@contextlib.contextmanager
def looking_into(rules: Rules) -> Iterator[Callable[[str], list[str]]]:
    """Return a context manager of a function that returns what is wrong with a data file, and ends with the block."""
    is_over = threading.Event()

    def look(file: str) -> list[str]:
        with progress_bar(Path(file)) as show:

            def progress(done: int, size: int) -> None:
                if is_over.is_set():
                    raise LocalFileError(f"{file}: the check was interrupted")
                show(done, size)

            try:
                return [str(error) for error in check_file(file, rules=rules, progress=progress).errors()]
            except LocalFileError as error:
                return [str(error)]

    try:
        yield look
    finally:
        is_over.set()


def _check_labels(manifest: Path, labels: Collection[str]) -> None:
    """Check that labels that were named are those of entries, so that a misspelt one is not passed over."""
    if unknown := set(labels).difference(entry.label for entry in read_manifest(manifest) if labels):
        raise ConfigurationError(
            f"retry_uncertain: {', '.join(sorted(unknown))}: no entry of {manifest} has this label"
        )


def _before(rerun: Rerun, count: int, *, retry_failed: bool) -> str:
    """Return what a rerun finds, as text for people; "" if nothing has ended."""
    retried = rerun.failed if retry_failed else 0
    ended = rerun.succeeded + rerun.failed - retried
    if not ended and not retried:
        return ""
    to_go = count - ended
    words = f"{count} {'entry' if count == 1 else 'entries'}: {ended} ended before, {to_go} to go"
    return f"{words}, {retried} of them again" if retried else words


class _Run:
    """One run of a batch, and its display."""

    def __init__(
        self, batch: Batch, count: int, journal: Path, shell: Shell, *, cancels: bool, show_ended: bool
    ) -> None:
        self._batch = batch
        self._count = count
        self._journal = journal
        self._as_json = shell.as_json
        self._usual_log = shell.log
        self._console = shell.err if shell.as_json else shell.out
        self.signals: list[int] = []
        """The numbers of the signals that were received."""
        self._status = Exit.DONE
        self._cancels = cancels
        self._show_ended = show_ended

    async def to_the_end(self, summary: Path | None) -> int:
        """Run the batch; return the exit status."""
        stopped = None
        # The batch locks its journal before the summary is opened, so that the summary of another run is not truncated.
        async with self._batch, self._shown():
            with self._interruptible(), self._logged(), _opened(summary) as lines:
                try:
                    async for outcome in self._batch:
                        self._show(outcome)
                        if lines is not None:
                            _write(lines, outcome)
                except BatchStopped as error:
                    stopped = error
                except FineTuneError as error:
                    if exit_status(error, so_far=self._status) is exit_status(error):
                        raise
                    # That a person must look at an outcome goes first.
                    self._say(one_line(str(error)))
        progress = self._batch.progress
        self._say(_counts(progress, self._count))
        if stopped is not None:
            left = self._count - progress.ended
            rest = "have not ended; run the same command again to continue"
            if self._cancels:
                rest = "had not ended; the active ones are being cancelled. Run the same command again to send the rest"
            self._say(f"{one_line(str(stopped))}\n{left} of {self._count} jobs {rest}")
        return exit_status(stopped, so_far=self._status, signal=self.signals[0] if self.signals else 0)

    @contextlib.contextmanager
    def _interruptible(self) -> Iterator[None]:
        """Stop sending at the first Ctrl-C or SIGTERM, and exit at the second."""
        task = asyncio.current_task()

        def interrupt(number: int) -> None:
            self.signals.append(number)
            if len(self.signals) == 1:
                fate = "are cancelled" if self._cancels else "continue at the service"
                self._say(f"Sending no more requests. Active jobs {fate}; the journal is {self._journal}")
                self._batch.stop()
            elif task is not None:
                task.cancel()

        with on_signal(interrupt):
            yield

    @contextlib.asynccontextmanager
    async def _shown(self) -> AsyncIterator[None]:
        """Show the table on a terminal. It is drawn on the event loop: the batch belongs to that thread alone."""
        if not self._console.is_terminal:
            yield
            return
        with Live(self._picture(), console=self._console, auto_refresh=False, transient=True) as live:
            # Not in a task group, which would wrap what the block raises.
            drawing = asyncio.create_task(self._draw(live))
            try:
                yield
            finally:
                drawing.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await drawing

    async def _draw(self, live: Live) -> None:
        while True:
            live.update(self._picture(), refresh=True)
            await asyncio.sleep(_DRAW_INTERVAL)

    @contextlib.contextmanager
    def _logged(self) -> Iterator[None]:
        """Show what the batch logs about its jobs and its waits, and all warnings."""
        handler = _Shown(self, self._usual_log.level)
        logger, life = logging.getLogger("aiofinetune"), logging.getLogger("aiofinetune.batch")
        before = life.level
        logger.removeHandler(self._usual_log)
        logger.addHandler(handler)
        life.setLevel(logging.INFO)
        try:
            yield
        finally:
            logger.removeHandler(handler)
            logger.addHandler(self._usual_log)
            life.setLevel(before)

    def say_log(self, record: logging.LogRecord) -> None:
        """Print a log record: above the table on a terminal, elsewhere to stderr."""
        words = one_line(record.getMessage())
        if self._console.is_terminal:
            self._say(words)
        else:
            print(_stamped(words), file=sys.stderr, flush=True)  # noqa: T201  # rich would wrap it

    def _show(self, outcome: Outcome) -> None:
        self._status = exit_status(outcomes=[outcome], so_far=self._status)
        if self._as_json:
            print_json_line(outcome.summary())
        elif self._show_ended or _is_news(outcome):
            # On a terminal this is printed above the table of active jobs, which disappears at the end.
            words = _words(outcome)
            self._say(words if self._console.is_terminal else _stamped(words))

    def _say(self, words: str) -> None:
        # A service's text is not markup, and each line must stay one line.
        self._console.print(words, soft_wrap=True, highlight=False, markup=False)

    def _picture(self) -> Group:
        # Labels are folded, not cut: those of a sweep often differ only at the end.
        table = Table(
            Column("active", overflow="fold"),
            "seconds",
            Column("job", overflow="fold"),
            Column("last event", overflow="fold"),
            box=None,
            pad_edge=False,
        )
        now = time.time()
        active = list(self._batch.active.values())
        for job in active[:_SHOWN_ACTIVE]:
            seconds = f"{now - (job.sent_at or now):.0f}"
            table.add_row(escape(job.label), seconds, escape(job.job_id), escape(one_line(job.message)))
        if len(active) > _SHOWN_ACTIVE:
            table.add_row(f"{len(active) - _SHOWN_ACTIVE} more", "", "", "")
        progress = self._batch.progress
        waits = [Text(one_line(words)) for words in Notices().lines(progress.waits, time.monotonic())]
        bar = Table.grid(padding=(0, 1))
        percent = f"{100 * progress.ended / max(1, self._count):.0f} %{_arrival(progress, self._count)}"
        bar.add_row(ProgressBar(self._count, progress.ended, width=30), percent)
        return Group(table, bar, _counts(progress, self._count), *waits)


class _Shown(logging.Handler):
    """Shows log records: those of batches, and all others from a level on."""

    def __init__(self, run: _Run, others: int) -> None:
        super().__init__()
        self._run = run
        self._others = others

    def emit(self, record: logging.LogRecord) -> None:
        if record.name == "aiofinetune.batch" or record.levelno >= self._others:
            self._run.say_log(record)


def _stamped(words: str) -> str:
    """Return a line with the time before it, for a log that somebody reads later."""
    return f"{time.strftime('%H:%M:%S')} {words}"


def _arrival(progress: Progress, count: int) -> str:
    """Return when the batch will probably be over, if that is known."""
    rate, left = progress.ended_per_minute, count - progress.ended
    if not rate or not left:
        return ""
    return f", over at about {time.strftime('%H:%M', time.localtime(time.time() + 60 * left / rate))}"


def _is_news(outcome: Outcome) -> bool:
    """Return whether an earlier run cannot have printed an outcome, or it still needs a person's attention."""
    is_settled = outcome.status in {"failed", "cancelled"} or outcome.error is None
    return not (outcome.is_replayed and is_settled)


def _words(outcome: Outcome) -> str:
    told = outcome.summary()
    seconds = "" if told["seconds"] is None else f"{told['seconds']:.1f}"
    return f"{outcome.label} {told['status']} {seconds} {one_line(str(told['error'] or told['model']))}"


def _counts(progress: Progress, count: int) -> str:
    ended = (
        f"{progress.ended} of {count} ended: {progress.succeeded} succeeded, {progress.failed} failed,"
        f" {progress.cancelled} cancelled, {progress.rejected} rejected"
    )
    if progress.uncertain:
        ended += f", {progress.uncertain} uncertain"
    if progress.vanished:
        ended += f", {progress.vanished} vanished"
    if not progress.active:
        return ended
    rate = f"{progress.ended_per_minute:.1f} a minute"
    return f"{ended}; {progress.active} active, followed by {progress.followed_by}; {rate}"


def _check_summary(summary: Path, others: tuple[Path, ...]) -> None:
    """Refuse to overwrite a file that is not a summary, such as a manifest, a journal or training data."""
    if summary.resolve() in [other.resolve() for other in others]:
        raise ConfigurationError(f"summary: {summary} is the manifest or the journal; give another file")
    try:
        with summary.open("rb") as file:
            line = file.readline(_MAX_LINE_BYTES)
        # An empty file may be overwritten.
        told = structuring.loads(line) if line else dict.fromkeys(_TOLD)
    except FileNotFoundError:
        return
    except (OSError, ValueError):
        told = None
    if not isinstance(told, dict) or not told.keys() >= set(_TOLD):
        raise ConfigurationError(f"summary: {summary} exists and is not a summary; give another file")


@contextlib.contextmanager
def _opened(summary: Path | None) -> Iterator[IO[bytes] | None]:
    if summary is None:
        yield None
        return
    try:
        # Not buffered, so that every outcome is in the file even if this process is killed.
        file = summary.open("wb", buffering=0)
    except OSError as error:
        raise LocalFileError(f"{summary}: {error.strerror}") from error
    with file:
        yield file


def _write(lines: IO[bytes], outcome: Outcome) -> None:
    try:
        lines.write(structuring.dumps(outcome.summary()) + b"\n")
    except OSError as error:
        raise LocalFileError(f"{lines.name}: {error.strerror}") from error
