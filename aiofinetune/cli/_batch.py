"""Run a batch and show its progress, as a live table on a terminal and as plain lines elsewhere."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import signal
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Collection, Iterator
from functools import partial
from pathlib import Path
from typing import Any, Final

import attrs
from rich.console import Group
from rich.live import Live

from aiofinetune.batch._batch import Batch
from aiofinetune.batch._manifest import check_manifest, read_manifest
from aiofinetune.batch._outcomes import BatchStopped, Outcome
from aiofinetune.batch._rerun import Rerun, look_back
from aiofinetune.cli._batch_view import LiveTable, counts_line, outcome_line, unknown_words
from aiofinetune.cli._data_check import looking_into
from aiofinetune.cli._exit import NO_SUCH_SERVICE, Exit, exit_status
from aiofinetune.cli._output import one_line, print_json_line, print_line
from aiofinetune.cli._run import on_signal
from aiofinetune.cli._shell import Shell, stamped
from aiofinetune.cli._stdio import OutputFailed
from aiofinetune.cli._summary import check_summary, opened
from aiofinetune.cli._wording import again
from aiofinetune.data import Report
from aiofinetune.errors import (
    APIError,
    AuthenticationFailed,
    ConfigurationError,
    EntryChanged,
    FineTuneError,
    LocalFileError,
    PermissionDenied,
    QuotaExceeded,
)
from aiofinetune.session import FineTuneSession, find_rules

_DRAW_INTERVAL: Final = 0.25


@attrs.frozen
class JournalPlace:
    """Where the journal of a run is.

    Args:
        path: Its path.
        is_kept: Whether it outlasts the command.
        is_fresh: Whether it was begun by this run, under a name of its own.
    """

    path: Path
    is_kept: bool = True
    is_fresh: bool = False


@contextlib.contextmanager
def journal_of(manifest: Path, journal: Path | None, *, fresh: bool, is_local: bool) -> Iterator[JournalPlace]:
    """Return a context manager of the place of a batch's journal.

    That of an embedded server, whose jobs no other server knows, is a temporary one: beside the manifest it would stand
    in the way of the batch itself.

    Args:
        manifest: The manifest.
        journal: The path that was asked for; by default it is beside the manifest.
        fresh: Whether to begin a new one, beside that path.
        is_local: Whether the service is an embedded server of this command.

    Raises:
        ConfigurationError: The folder of the journal does not exist.
    """
    if journal is None and is_local:
        with tempfile.TemporaryDirectory(prefix="aiofinetune-") as folder:
            yield JournalPlace(Path(folder) / f"{manifest.name}.journal", is_kept=False)
        return
    path = journal or manifest.with_name(f"{manifest.name}.journal")
    if not path.parent.is_dir():
        raise ConfigurationError(f"journal: the folder {path.parent} does not exist")
    yield JournalPlace(fresh_path(path), is_fresh=True) if fresh else JournalPlace(path)


def fresh_path(path: Path) -> Path:
    """Return the path of a new journal beside another, with the time in its name."""
    first = path.with_name(f"{path.stem}.{time.strftime('%Y-%m-%d-%H%M%S')}{path.suffix}")
    others = (first.with_name(f"{first.stem}-{number}{path.suffix}") for number in itertools.count(2))
    return next(it for it in itertools.chain([first], others) if not it.exists())


async def run_manifest(
    manifest: Path,
    journal: JournalPlace,
    summary: Path | None,
    shell: Shell,
    *,
    check: bool,
    data_check: bool,
    accept_changes: bool,
    accept_base_url: bool,
    retry_failed: bool,
    show_ended: bool,
    **options: Any,  # as `Batch` takes them, which says their types
) -> int:
    """Check a whole manifest, run it, and show its progress and outcomes.

    Returns:
        The exit status; see `aiofinetune.cli._exit`.

    Raises:
        ManifestInvalid: The manifest is invalid; nothing was sent.
        EntryChanged: Entries have changed since an earlier run sent them.
        JournalUnusable: The journal is in use, damaged, or belongs to another service.
    """
    if summary is not None:
        await asyncio.to_thread(check_summary, summary, (manifest, journal.path))
    count = await _count_entries(manifest, shell, data_check=data_check)
    await asyncio.to_thread(_check_labels, manifest, options.get("retry_uncertain", ()))
    console = shell.err if shell.as_json else shell.out
    if check:
        print_line(console, f"{manifest}: {count} {'job' if count == 1 else 'jobs'}, no problems")
        return 0
    async with shell.session() as session:
        rerun = await _look_back(manifest, journal.path, session, changes=accept_changes, base_url=accept_base_url)
        shell.tell(_begin(manifest, count, journal, session.base_url, is_lasting=shell.local_data is not None))
        batch = Batch(
            session,
            read_manifest(manifest),
            journal=journal.path,
            retry="failed" if retry_failed else None,
            data_check=False,  # They were checked above.
            accept_changes=accept_changes,
            accept_base_url=accept_base_url,
            **options,
        )
        ended = _ended(rerun, retry_failed=retry_failed)
        cancels = bool(options.get("cancel_on_exit"))
        run = _Run(batch, count, journal, shell, ended=ended, cancels=cancels, show_ended=show_ended)
        if before := _before(rerun, count, ended):
            run.say(before)
        try:
            # Also while jobs are cancelled at the end.
            with run.interruptible():
                return await run.to_the_end(summary)
        except asyncio.CancelledError:
            # The second signal cancels the task that this command consists of.
            if len(run.signals) < 2:
                raise
            run.say(f"Quit at once. {run.way_on('What was being sent is looked for by')}")
            run.say_left()
            return exit_status(signal=run.signals[0])


async def _count_entries(manifest: Path, shell: Shell, *, data_check: bool) -> int:
    """Check a whole manifest, and the data that it names if that is wanted; return the number of its entries."""
    dialect, base_url = shell.find_service()
    with looking_into(find_rules(dialect, base_url)) as look:
        return await asyncio.to_thread(
            check_manifest, manifest, dialect, partial(_wrong_data, look) if data_check else None
        )


async def _look_back(
    manifest: Path, journal: Path, session: FineTuneSession, *, changes: bool, base_url: bool
) -> Rerun:
    """Return what earlier runs did.

    Args:
        manifest: The manifest.
        journal: The journal.
        session: The session of the batch.
        changes: Whether entries may have changed.
        base_url: Whether the base URL may have changed.

    Raises:
        EntryChanged: Entries have changed, and may not.
    """
    entries = read_manifest(manifest)
    rerun = await look_back(journal, session, entries, accept_changes=changes, accept_base_url=base_url)
    if rerun.changes and not changes:
        lines = "\n".join(rerun.changes)
        raise EntryChanged(
            f"{manifest} has changed since {journal} was started:\n{lines}\nTo create a new job for each changed"
            " request, and leave out what is gone, pass --accept-changes"
        )
    return rerun


def _begin(manifest: Path, count: int, journal: JournalPlace, base_url: str, *, is_lasting: bool) -> str:
    entries = f"{count} {'entry' if count == 1 else 'entries'}"
    if not journal.is_kept:
        why = "has another address each time" if is_lasting else "ends with this command"
        return f"{manifest}: {entries}; no journal is kept, for the embedded server {why}"
    return f"{manifest}: {entries} at {base_url}; journal {journal.path}"


def _wrong_data(look: Callable[[str], Report], file: str) -> list[str]:
    try:
        return [str(error) for error in look(file).errors()]
    except LocalFileError as error:
        return [str(error)]


def _check_labels(manifest: Path, labels: Collection[str]) -> None:
    """Check that labels that were named are those of entries, so that a misspelt one is not passed over."""
    # Without labels the manifest, which may be very long, is not read again.
    if labels and (unknown := set(labels).difference(entry.label for entry in read_manifest(manifest))):
        raise ConfigurationError(
            f"retry_uncertain: {', '.join(sorted(unknown))}: no entry of {manifest} has this label"
        )


def _ended(rerun: Rerun, *, retry_failed: bool) -> int:
    """Return how many entries ended in earlier runs, and are not sent again."""
    return rerun.succeeded + (0 if retry_failed else rerun.failed)


def _before(rerun: Rerun, count: int, ended: int) -> str:
    """Return what a rerun finds, as text for people; "" if nothing has ended."""
    retried = rerun.succeeded + rerun.failed - ended
    if not ended and not retried:
        return ""
    to_go = count - ended
    words = f"{count} {'entry' if count == 1 else 'entries'}: {ended} ended before, {to_go} to go"
    if not to_go:
        failed = f"--retry-failed creates new jobs for the {rerun.failed} that failed, " if rerun.failed else ""
        return f"{words}: nothing to send ({failed}--fresh creates all jobs anew)"
    return f"{words}, {retried} of them again" if retried else words


class _Run:
    """One run of a batch, and its display."""

    def __init__(
        self,
        batch: Batch,
        count: int,
        journal: JournalPlace,
        shell: Shell,
        *,
        ended: int,
        cancels: bool,
        show_ended: bool,
    ) -> None:
        self._batch = batch
        self._count = count
        self._unread = ended
        """How many of the entries that ended in earlier runs the batch has not come to yet."""
        self._journal = journal
        self._shell = shell
        self._console = shell.err if shell.as_json else shell.out
        self._table = LiveTable(count)
        self.signals: list[int] = []
        """The numbers of the signals that were received."""
        self._status = Exit.DONE
        self._loop = asyncio.get_running_loop()
        self._failed: FineTuneError | None = None
        """Why the first entry that failed in this run did."""
        self._failure: OutputFailed | None = None
        """Why stdout cannot be written."""
        self._cancels = cancels
        self._show_ended = show_ended

    def way_on(self, words: str) -> str:
        """Return how to go on with this batch: a line to paste into a shell, after `words`."""
        if not self._journal.is_kept:
            return "They end with the embedded server of this command"
        return f"{words}: {self._again()}"

    def _again(self, *options: str) -> str:
        """Return the command that goes on with this batch, with more options."""
        # What was accepted once, or would be paid for again, is left out; and a key that others would see.
        without, flags = ["--api-key", "--retry-uncertain"], ["--fresh", "--retry-failed", "--accept-changes"]
        more: list[str] = []
        if self._journal.is_fresh:
            without, more = [*without, "--journal"], ["--journal", str(self._journal.path)]
        return again(self._shell.words, without, flags, [*more, *options])

    def say_left(self) -> None:
        """Name the jobs that were to be cancelled, and were not."""
        left = self._batch.not_cancelled
        if left and self._journal.is_kept:
            are = "job was" if len(left) == 1 else "jobs were"
            words = f"{len(left)} {are} not cancelled, and may still run and cost money"
            self.say(f"{words}. To cancel: {self._shell.command('cancel', *left)}")

    async def to_the_end(self, summary: Path | None) -> int:
        """Run the batch; return the exit status."""
        stopped = None
        # The batch locks its journal before it has an outcome, so that the summary of another run is not written over.
        async with self._batch, self._shown():
            with self._logged(), opened(summary) as lines:
                try:
                    async for outcome in self._batch:
                        self._show(outcome)
                        if lines is not None:
                            lines.write(outcome)
                except BatchStopped as error:
                    stopped = error
                except FineTuneError as error:
                    if exit_status(error, so_far=self._status) is exit_status(error):
                        raise
                    # That a person must look at an outcome goes first.
                    self.say(one_line(str(error)))
        progress = self._batch.progress
        uncounted = 0 if stopped is None else self._unread + progress.settling
        have = "has" if uncounted == 1 else "have"
        more = f"; {uncounted} more {have} ended, and the next run counts that" if uncounted else ""
        self.say(counts_line(progress, self._count) + more)
        if unknown := unknown_words(progress):
            self.say(f"Look before anything is sent again: {unknown}. 'aiofinetune list' shows the jobs of the service")
            if self._journal.is_kept:
                self.say(f"To create a new job for an entry that has none: {self._again('--retry-uncertain', 'LABEL')}")
        if stopped is not None:
            self.say(one_line(str(stopped)))
            self.say(f"{self._count - progress.ended - uncounted} of {self._count} entries {self._rest(stopped)}")
        self.say_left()
        # An entry that ended the batch counts as what it is: sending the same again ends it again.
        told = None if self._is_of_entry(stopped) else stopped
        status = exit_status(told, so_far=self._status, signal=self.signals[0] if self.signals else 0)
        return exit_status(self._failure, so_far=status)

    def _is_of_entry(self, stopped: BatchStopped | None) -> bool:
        """Return whether a batch was stopped by how one of its entries ended, as ``--fail-fast`` has it."""
        return stopped is not None and stopped.__cause__ is not None and stopped.__cause__ is self._failed

    def _rest(self, stopped: BatchStopped) -> str:
        """Return what happens to the entries that have not ended, and what to do."""
        if self._cancels and self._batch.progress.active:
            return f"had not ended; active jobs are being cancelled. {self.way_on('To send the rest')}"
        match None if self._is_of_entry(stopped) else stopped.__cause__:
            case AuthenticationFailed() | PermissionDenied():
                kept = "have not ended. The service refused the key; the journal keeps what was done"
                key = "with another key (--api-key-file FILE, or the variable OPENAI_API_KEY)"
                return f"{kept}. {self.way_on(f'To continue {key}')}"
            case QuotaExceeded():
                return f"have not ended. {self.way_on('To continue when the quota is renewed')}"
            case APIError(is_foreign=True):
                return f"have not ended. {NO_SUCH_SERVICE} {self.way_on('To continue')}"
        return f"have not ended. {self.way_on('To continue')}"

    @contextlib.contextmanager
    def interruptible(self) -> Iterator[None]:
        """Stop sending at the first Ctrl-C or SIGTERM, and exit at the second."""
        task = asyncio.current_task()

        def interrupt(number: int) -> None:
            self.signals.append(number)
            if len(self.signals) == 1:
                fate = "are cancelled" if self._cancels else "continue at the service"
                repeat = "Press Ctrl-C again" if number == signal.SIGINT else "Send SIGTERM again"
                self.say(f"Sending no more requests. Active jobs {fate}. {repeat} to quit at once")
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
        """Show what the batch logs about its jobs and its waits, and all warnings; with ``--quiet``, only errors."""
        if self._shell.is_quiet:
            yield
            return
        usual = self._shell.log
        handler = _Shown(self, usual.level)
        logger, life = logging.getLogger("aiofinetune"), logging.getLogger("aiofinetune.batch")
        before = life.level
        logger.removeHandler(usual)
        logger.addHandler(handler)
        life.setLevel(logging.INFO)
        try:
            yield
        finally:
            logger.removeHandler(handler)
            logger.addHandler(usual)
            life.setLevel(before)

    def say_log(self, record: logging.LogRecord) -> None:
        """Print a log record: above the table on a terminal, elsewhere to stderr."""
        words = one_line(record.getMessage())
        if getattr(record, "event", None) == "left":
            words += f"; cancel it with {again(['cancel', getattr(record, 'job_id', '')])!r}"
        if self._console.is_terminal:
            self.say(words)
        else:
            print(stamped(words), file=sys.stderr, flush=True)  # noqa: T201  # rich would wrap it

    def _show(self, outcome: Outcome) -> None:
        self._status = exit_status(outcomes=[outcome], so_far=self._status)
        if not _is_news(outcome):
            self._unread -= 1
        if self._failed is None and not outcome.is_replayed:
            self._failed = outcome.error
        if self._shell.as_json:
            try:
                print_json_line(outcome.summary())
            except OutputFailed as error:
                self._fail(error)
        elif self._show_ended or _is_news(outcome):
            # On a terminal this is printed above the table of active jobs, which disappears at the end.
            self.say(outcome_line(outcome))

    def say(self, words: str) -> None:
        """Print a line, in a log with the time."""
        # A service's text is not markup, and each line must stay one line.
        line = words if self._console.is_terminal else stamped(words)
        try:
            self._console.print(line, soft_wrap=True, highlight=False, markup=False)
        except OutputFailed as error:
            self._fail(error)
            self.say(words)

    def _fail(self, error: OutputFailed) -> None:
        """Say the rest on stderr, and stop the batch. An error would go astray: the batch's own log is printed too."""
        self._failure = error
        self._console = self._shell.err
        fate = "are cancelled" if self._cancels else "continue at the service"
        self.say(f"{error}. Sending no more requests. Active jobs {fate}")
        # The batch may be in the middle of what it logs, and that perhaps in a thread.
        self._loop.call_soon_threadsafe(self._batch.stop)

    def _picture(self) -> Group:
        return self._table.picture(list(self._batch.active.values()), self._batch.progress)


class _Shown(logging.Handler):
    """Shows log records: those of batches, and all others from a level on."""

    def __init__(self, run: _Run, others: int) -> None:
        super().__init__()
        self._run = run
        self._others = others

    def emit(self, record: logging.LogRecord) -> None:
        # The ends of entries are shown with more words, as outcomes.
        is_life = record.name == "aiofinetune.batch" and getattr(record, "event", None) != "ended"
        if is_life or (record.levelno >= self._others and record.name != "aiofinetune.batch"):
            self._run.say_log(record)


def _is_news(outcome: Outcome) -> bool:
    """Return whether an earlier run cannot have printed an outcome, or it still needs a person's attention."""
    is_settled = outcome.status in {"failed", "cancelled"} or outcome.error is None
    return not (outcome.is_replayed and is_settled)
