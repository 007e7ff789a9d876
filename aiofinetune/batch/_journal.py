"""The journal of a batch: one file that records each request before it is sent, and its outcome.

An attempt's intent is on the disk before its create is sent, and the id of its job is written after the reply. So at
whatever moment a process dies, the next one knows which creates may have made an unknown job. A label has one attempt
or several, of which the last one counts.

The file contains notes, one per line (see `aiofinetune.batch._journal_file`). When the journal is opened, they are
applied to a temporary database (see `aiofinetune.batch._journal_notes`), which is asked for what earlier runs left.
"""

from __future__ import annotations

import functools
import os
import sqlite3
import time
from collections.abc import AsyncIterator, Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Concatenate, Final, Generic, ParamSpec, TypeVar

import attrs

from aiofinetune import structuring
from aiofinetune._sqlite import Database, transaction
from aiofinetune.batch import _journal_notes as journal_notes
from aiofinetune.batch import _journal_v1 as journal_v1
from aiofinetune.batch._core import AttemptId, AttemptRecord
from aiofinetune.batch._journal_file import JournalFile, is_in_use, is_version_1, log_of, read_lines
from aiofinetune.batch._journal_notes import Row
from aiofinetune.batch._manifest import Entry
from aiofinetune.dialects._fine_tunes import FINE_TUNES
from aiofinetune.errors import FineTuneError, JournalUnusable, LocalFileError
from aiofinetune.models import FineTune, FineTuneRequest

P = ParamSpec("P")
T = TypeVar("T")

_IS_LAST: Final = "attempt = (SELECT max(attempt) FROM attempts AS later WHERE later.label = attempts.label)"
"""Whether an attempt is the last one of its label. Those before it are kept, and nothing follows them."""

_ROW: Final = f"SELECT {', '.join(Row._fields)} FROM attempts"  # noqa: S608  # names of ours
_LAST_OF_LABEL: Final = f"{_ROW} WHERE label = ? ORDER BY attempt DESC LIMIT 1"
_NEXT: Final = f"{_ROW} WHERE number > ? AND number <= ? AND {_IS_LAST} AND label NOT IN asked_for"

_MAX_AHEAD: Final = 256
"""The number of records that are read ahead at most. A rerun asks for them in the order in which they were made; with
fewer, most of its time goes into waiting for the journal's thread."""


class _Database(Database):
    """The database of a journal, which adds the lines of each transaction to the file as part of that transaction.

    Args:
        name: The name of the journal, for messages.
        file: The file.
    """

    def __init__(self, name: str, file: JournalFile) -> None:
        super().__init__("aiofinetune-journal")
        self._name = name
        self._file = file
        self.lines: list[bytes] = []
        """The lines that the current transaction adds to the file."""
        self.has_intent = False
        """Whether there is an intent among them."""

    @contextmanager
    def committing(self) -> Iterator[None]:
        self.lines, self.has_intent = [], False
        with super().committing():
            yield
            if self.has_intent:
                self._file.check_place()
            if self.lines:
                self._file.add(self.lines)

    async def run(self, call: Callable[[], T]) -> T:
        try:
            return await super().run(call)
        except (sqlite3.Error, OSError) as error:
            raise JournalUnusable(f"{self._name}: {_words(error)}") from error


class Note(Generic[T]):
    """A note that is not written yet. Await it, or write it together with others by `Journal.write`."""

    def __init__(self, journal: Journal, function: Callable[[], T]) -> None:
        self._journal = journal
        self.function = function
        """Applies the note on the database's thread."""

    def __await__(self) -> Generator[Any, None, T]:  # Any: as a future has it
        return self._journal.database.run(self.function).__await__()


def _note(method: Callable[Concatenate[Journal, P], T]) -> Callable[Concatenate[Journal, P], Note[T]]:
    """Make a method return a note, which is one transaction: whole or not at all."""

    def begin(journal: Journal, /, *args: P.args, **kwargs: P.kwargs) -> Note[T]:
        return Note(journal, functools.partial(method, journal, *args, **kwargs))

    functools.update_wrapper(begin, method)
    return begin


@attrs.frozen
class JournalContent:
    """What a journal holds."""

    base_url: str
    """The service of its last run; "" if it has had none."""
    dialect: str
    records: tuple[AttemptRecord, ...]
    """The last attempt of each label, in the order of the first runs."""
    left_out: frozenset[str]
    """The labels of entries that are no longer part of the batch."""
    is_running: bool
    """Whether a batch has the journal in use."""


class Journal:
    """The journal of one batch. Only one process at a time can open it.

    Args:
        path: The file; it is created if it does not exist.
        base_url: The service; a journal belongs to one service.
        dialect: The name of the dialect that is spoken there.
        accept_base_url: Whether the journal may belong to another base URL, because both are the same service. If
            nothing was sent, it may in any case.
    """

    def __init__(
        self, path: Path, base_url: str, dialect: str = FINE_TUNES.name, *, accept_base_url: bool = False
    ) -> None:
        self._name = str(path)
        self._file = JournalFile(path)
        self._base_url = base_url
        self._dialect = dialect
        self._accept_base_url = accept_base_url
        self.database = _Database(self._name, self._file)
        self._ahead: dict[str, Row] = {}
        """The last attempts of entries that were not asked for yet, by label. No note is about them in the meantime."""
        self._taken: list[str] = []
        """The labels that were asked for since, and are not in the database yet as such."""

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[Journal]:
        """Return a context manager in which the journal is open.

        Raises:
            JournalUnusable: Another process has the file open, or the file is not a journal, is damaged, or belongs to
                another service.
        """
        async with self.database.opened(self._resources()):
            yield self

    async def records(self, entries: Sequence[Entry]) -> list[AttemptRecord | JournalUnusable | None]:
        """Return the record of the last attempt of each entry; None for an entry that is new to the journal.

        If the label of an entry was already used in this run, or its record cannot be read, an error takes its place.
        """
        labels = [entry.label for entry in entries]
        if len(set(labels)) == len(labels) and self._ahead.keys() >= set(labels):
            self._taken += labels
            rows: list[Row | JournalUnusable | None] = [self._ahead.pop(label) for label in labels]
        else:
            rows = await self._look_up(labels)
        return [
            self._record(row, entry.request) if isinstance(row, Row) else row
            for row, entry in zip(rows, entries, strict=True)
        ]

    def _record(self, row: Row, asked: FineTuneRequest) -> AttemptRecord | JournalUnusable:
        try:
            return row.record(asked)
        except (FineTuneError, ValueError) as error:
            return JournalUnusable(f"{self._name}: the record of {row.label!r} cannot be read: {error}")

    async def _look_up(self, labels: Sequence[str]) -> list[Row | JournalUnusable | None]:
        """Look some entries up, and those that a rerun probably asks for next: the more, the more were asked for."""
        taken, self._taken, self._ahead = self._taken, [], {}
        found, ahead = await self._read_rows(taken, labels, min(_MAX_AHEAD, len(labels) + 2 * len(taken)))
        self._ahead = {row.label: row for row in ahead}
        return found

    @transaction
    def _read_rows(
        self, taken: Sequence[str], labels: Sequence[str], most_ahead: int
    ) -> tuple[list[Row | JournalUnusable | None], list[Row]]:
        self.database.connection.executemany("INSERT INTO asked_for (label) VALUES (?)", zip(taken, strict=True))
        found = [self._row(label) for label in labels]
        last = found[-1] if found else None
        if not isinstance(last, Row):
            return found, []
        following = self.database.execute(_NEXT, (last.number, last.number + most_ahead))
        return found, list(map(Row._make, following))

    def _row(self, label: str) -> Row | JournalUnusable | None:
        if not self.database.execute("INSERT OR IGNORE INTO asked_for (label) VALUES (?)", (label,)).rowcount:
            return used_twice(label)
        row = self.database.execute(_LAST_OF_LABEL, (label,)).fetchone()
        return None if row is None else Row._make(row)

    # Notes

    async def write(self, notes: Sequence[Note[T]]) -> list[T | BaseException]:
        """Write several notes with one wait for the disk; return the result or the error of each."""
        return await self.database.run_together([note.function for note in notes])

    @_note
    def intend(
        self,
        attempt: AttemptId,
        request: FineTuneRequest,
        sent: FineTuneRequest,
        at: float,
        key: str | None = None,
    ) -> None:
        """Note that a create is about to be sent.

        Args:
            attempt: The attempt.
            request: The caller's request.
            sent: The same with ids in place of local paths.
            at: The Unix time.
            key: The key that the create carries.
        """
        given = request.given()
        note = {"note": "intend", **_about(attempt), "request": given}
        note |= {"sent": given if sent is request else sent.given(), "at": at}
        if key is not None:
            note["key"] = key
        self.database.has_intent = True
        self._add(note)

    @transaction
    def note_echo(self) -> None:
        """Note that the service's list has shown the key of a job."""
        if not self._has_echoed():
            self._apply({"note": "echo", "base_url": self._base_url})

    @transaction
    def has_echoed(self) -> bool:
        """Return whether the service's list has shown the key of a job."""
        return self._has_echoed()

    def _has_echoed(self) -> bool:
        statement = "SELECT EXISTS (SELECT * FROM echoes WHERE base_url = ?)"
        return bool(self.database.execute(statement, (self._base_url,)).fetchone()[0])

    @_note
    def withdraw(self, attempt: AttemptId) -> None:
        """Note that the create certainly made no job."""
        self._apply({"note": "withdraw", **_about(attempt)})

    @_note
    def accept(self, attempt: AttemptId, hint: str | None) -> None:
        """Note that the service accepted a create in a reply that does not name the job with certainty.

        Args:
            attempt: The attempt.
            hint: The id in the reply, if there is one.
        """
        self._apply({"note": "accept", **_about(attempt), "hint": hint})

    @_note
    def create(self, attempt: AttemptId, job_id: str) -> bool:
        """Note which job was made. Return False, and note nothing, if the job is another attempt's."""
        owners = self.database.execute("SELECT label, attempt FROM attempts WHERE job_id = ?", (job_id,))
        if any(AttemptId(*owner) != attempt for owner in owners):
            return False
        self._apply({"note": "create", **_about(attempt), "job_id": job_id})
        return True

    @_note
    def end(self, attempt: AttemptId, job: FineTune, at: float) -> None:
        """Note how the job ended."""
        self._add({"note": "end", **_about(attempt), "job": structuring.write_reply(job), "at": at})

    @transaction
    def lost(self) -> list[AttemptRecord]:
        """Return the last attempts that earlier runs sent, and whose jobs are not known."""
        rows = self.database.execute(f"{_ROW} WHERE sent_at IS NOT NULL AND job_id IS NULL AND {_IS_LAST}")
        return [Row._make(row).record() for row in rows]

    @transaction
    def owners(self, since: float = 0.0) -> dict[str, AttemptId]:
        """Return the attempts whose creates were sent at a Unix time or later, by the ids of their jobs."""
        statement = "SELECT job_id, label, attempt FROM attempts WHERE job_id IS NOT NULL AND sent_at >= ?"
        return {job_id: AttemptId(*attempt) for job_id, *attempt in self.database.execute(statement, (since,))}

    @transaction
    def sent_labels(self) -> dict[str, str | None]:
        """Return all entries whose last attempt was sent, each with the id of its job if no end of that is known.

        Those that were left out since are not among them.
        """
        rows = self.database.execute(
            f"SELECT label, iif(outcome IS NULL, job_id, NULL) FROM attempts WHERE sent_at IS NOT NULL AND {_IS_LAST}"  # noqa: S608  # as above
            " AND label NOT IN left_out"
        )
        return dict(rows)

    @transaction
    def leave_out(self, labels: Iterable[str]) -> None:
        """Note that entries are no longer part of the batch. What is known of them is kept."""
        for label in labels:
            self._apply({"note": "leave out", "label": label})

    async def unfinished_elsewhere(self) -> dict[str, str | None]:
        """Return the entries that earlier runs sent and did not finish, and that are not in this run, with their jobs.

        The id of a job is None if it is not known.
        """
        await self._look_up(())
        return await self._unfinished()

    @transaction
    def _unfinished(self) -> dict[str, str | None]:
        rows = self.database.execute(
            f"SELECT label, job_id FROM attempts WHERE sent_at IS NOT NULL AND outcome IS NULL AND {_IS_LAST}"  # noqa: S608  # as above
            " AND label NOT IN asked_for ORDER BY number"
        )
        return dict(rows)

    @transaction
    def file_id(self, digest: str) -> str | None:
        """Return the id of the last file that was uploaded with a SHA-256 of its content."""
        row = self.database.execute("SELECT id FROM files WHERE digest = ? ORDER BY number DESC", (digest,)).fetchone()
        return None if row is None else str(row[0])

    @transaction
    def digest(self, file_id: str) -> str | None:
        """Return the SHA-256 of an uploaded file's content."""
        row = self.database.execute("SELECT digest FROM files WHERE id = ?", (file_id,)).fetchone()
        return None if row is None else str(row[0])

    @transaction
    def keep_file(self, digest: str, file_id: str) -> None:
        """Note that a file was uploaded."""
        self._apply({"note": "upload", "id": file_id, "digest": digest})

    def _apply(self, note: Mapping[str, object]) -> None:
        """Apply a note to the database, and add it to the file."""
        journal_notes.apply(self.database, note, self._add(note))

    def _add(self, note: Mapping[str, object]) -> bytes:
        """Add a note to the file; return its line."""
        text = structuring.dumps(note)
        self.database.lines.append(text)
        return text

    @contextmanager
    def _resources(self) -> Iterator[None]:
        """Open the database and the file, and read the file into the database."""
        with ExitStack() as stack:
            try:
                # SQLite takes an empty path for a temporary database.
                stack.enter_context(self.database.connected(""))
                self.database.connection.executescript(journal_notes.SCHEMA)
                stack.callback(self._file.close)
                self._open(self._file)
                self._note_opening()
            except BlockingIOError as error:
                raise JournalUnusable(f"{self._name}: another process is running this batch") from error
            except (sqlite3.Error, OSError) as error:
                raise JournalUnusable(f"{self._name}: {_words(error)}") from error
            except ValueError as error:
                raise JournalUnusable(f"{self._name!r}: {error}") from error
            yield

    def _open(self, file: JournalFile) -> None:
        file.open()
        if file.is_version_1:
            file.replace(map(structuring.dumps, journal_v1.read_notes(file)))
            file.log.unlink(missing_ok=True)
        self._read(file.lines())

    def _read(self, lines: Iterable[bytes]) -> None:
        try:
            journal_notes.apply_all(self.database, lines)
        except (KeyError, TypeError, ValueError, sqlite3.Error) as error:
            # The digests are correct, so no line is damaged.
            raise JournalUnusable(f"{self._name}: is not a journal of this version: {error!r}") from error

    def _note_opening(self) -> None:
        """Note the service and the path of the file, if they have changed."""
        path = os.fsencode(self._file.target).decode(errors="replace")
        with self.database.committing():
            rows = self.database.execute("SELECT base_url, dialect, path FROM openings ORDER BY number DESC LIMIT 1")
            known_url, known_dialect, known_path = rows.fetchone() or (None, self._dialect, "")
            # A journal of an earlier version names none, because there was only one.
            known_dialect = known_dialect or FINE_TUNES.name
            if (known_url, known_dialect, known_path) == (self._base_url, self._dialect, path):
                return
            if known_path != path and self._file.has_running_twin(Path(known_path)):
                raise JournalUnusable(f"{self._name}: is a copy of {known_path}, which a running batch uses")
            if (known_url, known_dialect) != (self._base_url, self._dialect):
                self._move(known_url, known_dialect)
            about = {"base_url": self._base_url, "dialect": self._dialect, "path": path}
            self._apply({"note": "open", **about, "at": time.time()})

    def _move(self, known_url: str | None, known_dialect: str) -> None:
        """Check that the journal may continue at another service, or in another dialect."""
        ((was_sent,),) = self.database.execute("SELECT EXISTS (SELECT * FROM attempts WHERE sent_at IS NOT NULL)")
        if was_sent and known_dialect != self._dialect:
            raise JournalUnusable(
                f"{self._name}: belongs to a batch in the dialect {known_dialect!r}, not {self._dialect!r};"
                f" continue with dialect={known_dialect!r} (AIOFINETUNE_DIALECT)"
            )
        if was_sent and known_url != self._base_url and not self._accept_base_url:
            raise JournalUnusable(
                f"{self._name}: belongs to a batch at {known_url}, not at {self._base_url}; if both URLs are the same"
                " service, continue with accept_base_url=True (--accept-base-url)"
            )
        if not was_sent and known_url is not None:
            # At this service, other files may have the same ids.
            self._apply({"note": "forget uploads"})


def used_twice(label: str) -> JournalUnusable:
    """Return the error for a label that was already used in this run."""
    return JournalUnusable(f"{label!r} is used twice; each entry of a batch needs a label of its own")


def read_journal(path: Path) -> JournalContent:
    """Return what a journal of any version holds, without locking or changing it. No service is asked.

    A batch may be writing to the journal meanwhile. This blocks.

    Raises:
        JournalUnusable: The file is not a journal, or it is damaged.
        LocalFileError: The file cannot be read.
    """
    journal = Journal(path, "")
    with journal.database.connected(""):
        execute = journal.database.connection.execute
        journal.database.connection.executescript(journal_notes.SCHEMA)
        try:
            with path.open("rb") as file:
                is_running = is_in_use(file.fileno())
                journal._read(_lines_of(file, path))  # noqa: SLF001  # the same module
        except OSError as error:
            raise LocalFileError(f"{path}: {error.strerror}") from error
        first = "(SELECT min(number) FROM attempts AS earlier WHERE earlier.label = attempts.label)"
        rows = execute(f"{_ROW} WHERE {_IS_LAST} ORDER BY {first}")
        opening = execute("SELECT base_url, dialect FROM openings ORDER BY number DESC LIMIT 1").fetchone()
        base_url, dialect = opening or ("", None)
        left_out = frozenset(label for (label,) in execute("SELECT label FROM left_out"))
        records = tuple(Row._make(row).record() for row in rows)
    return JournalContent(base_url, dialect or FINE_TUNES.name, records, left_out, is_running)


def _lines_of(file: BinaryIO, path: Path) -> Iterable[bytes]:
    if is_version_1(file.fileno()):
        target = Path(os.path.realpath(path))
        return map(structuring.dumps, journal_v1.read_notes_of(file.fileno(), str(path), log_of(target)))
    return read_lines(file, str(path))


def read_records(path: Path) -> list[AttemptRecord]:
    """Return the last attempt of each label of a journal, in the order of the first runs; see `read_journal`."""
    return list(read_journal(path).records)


def _about(attempt: AttemptId) -> dict[str, object]:
    return {"label": attempt.label, "attempt": attempt.number}


def _words(error: sqlite3.Error | OSError) -> str:
    return error.strerror or str(error) if isinstance(error, OSError) else str(error)
