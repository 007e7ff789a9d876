"""The journal of a batch: one file that records each request before it is sent, and its outcome.

An attempt's intent is on the disk before its create is sent, and the id of its job is written after the reply. So at
whatever moment a process dies, the next one knows which creates may have made an unknown job. A label has one attempt
or several, of which the last one counts.

The file contains notes, one per line (see `aiofinetune.batch._journal_file`). When the journal is opened, they are
applied to a temporary database. A new note is applied to the database in the same way, and added to the file.
"""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from typing import BinaryIO, Final, TypeVar

import attrs

from aiofinetune import structuring
from aiofinetune._sqlite import Database, transaction
from aiofinetune.batch import _journal_v1 as journal_v1
from aiofinetune.batch._core import AttemptId, AttemptRecord
from aiofinetune.batch._journal_file import JournalFile, is_in_use, is_version_1, log_of, read_lines
from aiofinetune.batch._manifest import Entry
from aiofinetune.dialects._fine_tunes import FINE_TUNES
from aiofinetune.errors import FineTuneError, JournalUnusable, LocalFileError
from aiofinetune.models import FineTune, FineTuneRequest

T = TypeVar("T")

_SCHEMA: Final = """
    PRAGMA synchronous = OFF;
    PRAGMA journal_mode = MEMORY;
    -- `request` is the caller's request. `sent` is the same with ids in place of local paths, once it was sent.
    CREATE TABLE attempts (
        number INTEGER PRIMARY KEY, label TEXT NOT NULL, attempt INTEGER NOT NULL, request BLOB NOT NULL, sent BLOB,
        sent_at REAL, key TEXT, is_accepted INTEGER NOT NULL DEFAULT FALSE, hint TEXT, job_id TEXT, job BLOB,
        ended_at REAL, UNIQUE (label, attempt));
    CREATE INDEX lost_attempts ON attempts (number) WHERE sent IS NOT NULL AND job_id IS NULL;
    CREATE INDEX attempts_by_job ON attempts (job_id) WHERE job_id IS NOT NULL;
    CREATE TABLE asked_for (label TEXT PRIMARY KEY) WITHOUT ROWID;
    -- The entries that a caller agreed to leave out of the batch.
    CREATE TABLE left_out (label TEXT PRIMARY KEY) WITHOUT ROWID;
    CREATE TABLE files (number INTEGER PRIMARY KEY, id TEXT UNIQUE NOT NULL, digest TEXT NOT NULL);
    CREATE INDEX files_by_digest ON files (digest, number);
    CREATE TABLE openings (number INTEGER PRIMARY KEY, base_url TEXT NOT NULL, dialect TEXT, path TEXT NOT NULL);
    CREATE TABLE echoes (base_url TEXT PRIMARY KEY) WITHOUT ROWID;
"""

_RECORD: Final = "label, attempt, request, sent, sent_at, is_accepted, hint, job_id, job, ended_at, key"
"""The columns of an `AttemptRecord`, in the order of its fields."""

_IS_LAST: Final = "attempt = (SELECT max(attempt) FROM attempts AS later WHERE later.label = attempts.label)"
"""Whether an attempt is the last one of its label. Those before it are kept, and nothing follows them."""

_NOTES: Final = {
    "open": "INSERT INTO openings (base_url, dialect, path) VALUES (:base_url, :dialect, :path)",
    # The service shows the keys of its jobs.
    "echo": "INSERT OR IGNORE INTO echoes (base_url) VALUES (:base_url)",
    "upload": "INSERT OR REPLACE INTO files (id, digest) VALUES (:id, :digest)",
    "forget uploads": "DELETE FROM files",
    # Only in journals of version 2. Later ones have the next attempt's intent alone.
    "replace": "INSERT INTO attempts (label, attempt, request) VALUES (:label, :attempt, :request)",
    "intend": """INSERT INTO attempts (label, attempt, request, sent, sent_at, key)
        VALUES (:label, :attempt, :request, :sent, :at, :key)
        ON CONFLICT (label, attempt) DO UPDATE SET request = :request, sent = :sent, sent_at = :at, key = :key,
        is_accepted = FALSE, hint = NULL""",
    "withdraw": """UPDATE attempts SET sent = NULL, sent_at = NULL, key = NULL, is_accepted = FALSE, hint = NULL
        WHERE label = :label AND attempt = :attempt""",
    "accept": """UPDATE attempts SET is_accepted = TRUE, hint = :hint, job_id = NULL
        WHERE label = :label AND attempt = :attempt""",
    "create": "UPDATE attempts SET job_id = :job_id WHERE label = :label AND attempt = :attempt",
    "leave out": "INSERT OR IGNORE INTO left_out (label) VALUES (:label)",
    "end": "UPDATE attempts SET job = :job, ended_at = :at WHERE label = :label AND attempt = :attempt",
}
"""The statement of each note. A note may be applied twice, because one whose writing failed may be on the disk."""

_WITH_OBJECTS: Final = frozenset({"open", "replace", "intend", "end"})
"""The notes that hold JSON objects, or may lack values."""
_OPTIONAL: Final = {"dialect": None, "key": None}
"""What notes of earlier versions lack, and those of the reference, which has no keys."""


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

    @contextmanager
    def committing(self) -> Iterator[None]:
        self.lines = []
        with super().committing():
            yield
            if self.lines:
                self._file.add(self.lines)

    async def run(self, call: Callable[[], T]) -> T:
        try:
            return await super().run(call)
        except (sqlite3.Error, OSError) as error:
            raise JournalUnusable(f"{self._name}: {_words(error)}") from error


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

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[Journal]:
        """Return a context manager in which the journal is open.

        Raises:
            JournalUnusable: Another process has the file open, or the file is not a journal, is damaged, or belongs to
                another service.
        """
        async with self.database.opened(self._resources()):
            yield self

    @transaction
    def records(self, entries: Sequence[Entry]) -> list[AttemptRecord | JournalUnusable | None]:
        """Return the record of the last attempt of each entry; None for an entry that is new to the journal.

        If the label of an entry was already used in this run, or its record cannot be read, an error takes its place.
        """
        return [self._last_record(entry.label, entry.request) for entry in entries]

    def _last_record(self, label: str, asked: FineTuneRequest) -> AttemptRecord | JournalUnusable | None:
        if not self.database.execute("INSERT OR IGNORE INTO asked_for (label) VALUES (?)", (label,)).rowcount:
            return used_twice(label)
        statement = f"SELECT {_RECORD} FROM attempts WHERE label = ? ORDER BY attempt DESC"  # noqa: S608  # names of ours
        row = self.database.execute(statement, (label,)).fetchone()
        try:
            return None if row is None else _record(*row, asked=asked)
        except (FineTuneError, ValueError) as error:
            return JournalUnusable(f"{self._name}: the record of {label!r} cannot be read: {error}")

    @transaction
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
        self._file.check_place()
        keyed = {} if key is None else {"key": key}
        self._note("intend", attempt, request=request.given(), sent=sent.given(), at=at, **keyed)

    @transaction
    def note_echo(self) -> None:
        """Note that the service's list has shown the key of a job."""
        if not self._has_echoed():
            self._note("echo", base_url=self._base_url)

    @transaction
    def has_echoed(self) -> bool:
        """Return whether the service's list has shown the key of a job."""
        return self._has_echoed()

    def _has_echoed(self) -> bool:
        statement = "SELECT EXISTS (SELECT * FROM echoes WHERE base_url = ?)"
        return bool(self.database.execute(statement, (self._base_url,)).fetchone()[0])

    @transaction
    def withdraw(self, attempt: AttemptId) -> None:
        """Note that the create certainly made no job."""
        self._note("withdraw", attempt)

    @transaction
    def accept(self, attempt: AttemptId, hint: str | None) -> None:
        """Note that the service accepted a create in a reply that does not name the job with certainty.

        Args:
            attempt: The attempt.
            hint: The id in the reply, if there is one.
        """
        self._note("accept", attempt, hint=hint)

    @transaction
    def create(self, attempt: AttemptId, job_id: str) -> bool:
        """Note which job was made. Return False, and note nothing, if the job is another attempt's."""
        owners = self.database.execute("SELECT label, attempt FROM attempts WHERE job_id = ?", (job_id,))
        if any(AttemptId(*owner) != attempt for owner in owners):
            return False
        self._note("create", attempt, job_id=job_id)
        return True

    @transaction
    def end(self, attempt: AttemptId, job: FineTune, at: float) -> None:
        """Note how the job ended."""
        self._note("end", attempt, job=structuring.write_reply(job), at=at)

    @transaction
    def lost(self) -> list[AttemptRecord]:
        """Return the last attempts that were sent, but whose jobs are not known."""
        statement = f"SELECT {_RECORD} FROM attempts WHERE sent IS NOT NULL AND job_id IS NULL AND {_IS_LAST}"  # noqa: S608  # names of ours
        return [_record(*row) for row in self.database.execute(statement)]

    @transaction
    def owners(self, since: float = 0.0) -> dict[str, AttemptId]:
        """Return the attempts whose creates were sent at a Unix time or later, by the ids of their jobs."""
        statement = "SELECT job_id, label, attempt FROM attempts WHERE job_id IS NOT NULL AND sent_at >= ?"
        return {job_id: AttemptId(*attempt) for job_id, *attempt in self.database.execute(statement, (since,))}

    @transaction
    def request(self, label: str) -> FineTuneRequest | None:
        """Return the last request under a label, in whichever run it was made."""
        statement = "SELECT request FROM attempts WHERE label = ? ORDER BY attempt DESC"
        row = self.database.execute(statement, (label,)).fetchone()
        return None if row is None else _request(row[0])

    @transaction
    def sent_labels(self) -> dict[str, str | None]:
        """Return all entries whose last attempt was sent, each with the id of its job if no end of that is known.

        Those that were left out since are not among them.
        """
        rows = self.database.execute(
            f"SELECT label, iif(job IS NULL, job_id, NULL) FROM attempts WHERE sent IS NOT NULL AND {_IS_LAST}"  # noqa: S608  # as above
            " AND label NOT IN left_out"
        )
        return dict(rows)

    @transaction
    def leave_out(self, labels: Iterable[str]) -> None:
        """Note that entries are no longer part of the batch. What is known of them is kept."""
        for label in labels:
            self._note("leave out", label=label)

    @transaction
    def unfinished_elsewhere(self) -> dict[str, str | None]:
        """Return the entries that earlier runs sent and did not finish, and that are not in this run, with their jobs.

        The id of a job is None if it is not known.
        """
        rows = self.database.execute(
            f"SELECT label, job_id FROM attempts WHERE sent IS NOT NULL AND job IS NULL AND {_IS_LAST}"  # noqa: S608  # as above
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
        self._note("upload", id=file_id, digest=digest)

    def _note(self, note: str, attempt: AttemptId | None = None, **values: object) -> None:
        if attempt is not None:
            values = {"label": attempt.label, "attempt": attempt.number, **values}
        self._apply(note, values)
        self.database.lines.append(structuring.dumps({"note": note, **values}))

    def _apply(self, note: str, values: Mapping[str, object]) -> None:
        """Apply a note to the database."""
        if "label" in values and "attempt" not in values:
            values = {**values, "attempt": self._attempt_of(note, str(values["label"]))}
        if note in _WITH_OBJECTS:
            values = {name: structuring.dumps(each) if type(each) is dict else each for name, each in values.items()}
            values = {**_OPTIONAL, **values}
        self.database.execute(_NOTES[note], values)

    def _attempt_of(self, note: str, label: str) -> int:
        """Return the attempt that a note of version 2 is about, which knows only the last one."""
        ((last,),) = self.database.execute("SELECT max(attempt) FROM attempts WHERE label = ?", (label,))
        return (last or 0) + (last is None or note == "replace")

    @contextmanager
    def _resources(self) -> Iterator[None]:
        """Open the database and the file, and read the file into the database."""
        with ExitStack() as stack:
            try:
                # SQLite takes an empty path for a temporary database.
                stack.enter_context(self.database.connected(""))
                self.database.connection.executescript(_SCHEMA)
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
        with self.database.committing():
            for text in lines:
                try:
                    values = structuring.loads(text)
                    self._apply(values["note"], values)
                except (KeyError, TypeError, ValueError, sqlite3.Error) as error:
                    # The digest is correct, so the line is not damaged.
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
            self._note("open", base_url=self._base_url, dialect=self._dialect, path=path, at=time.time())

    def _move(self, known_url: str | None, known_dialect: str) -> None:
        """Check that the journal may continue at another service, or in another dialect."""
        ((was_sent,),) = self.database.execute("SELECT EXISTS (SELECT * FROM attempts WHERE sent IS NOT NULL)")
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
            self._note("forget uploads")


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
        journal.database.connection.executescript(_SCHEMA)
        try:
            with path.open("rb") as file:
                is_running = is_in_use(file.fileno())
                journal._read(_lines_of(file, path))  # noqa: SLF001  # the same module
        except OSError as error:
            raise LocalFileError(f"{path}: {error.strerror}") from error
        first = "(SELECT min(number) FROM attempts AS earlier WHERE earlier.label = attempts.label)"
        rows = execute(f"SELECT {_RECORD} FROM attempts WHERE {_IS_LAST} ORDER BY {first}")  # noqa: S608  # names of ours
        opening = execute("SELECT base_url, dialect FROM openings ORDER BY number DESC LIMIT 1").fetchone()
        base_url, dialect = opening or ("", None)
        left_out = frozenset(label for (label,) in execute("SELECT label FROM left_out"))
        records = tuple(_record(*row) for row in rows)
    return JournalContent(base_url, dialect or FINE_TUNES.name, records, left_out, is_running)


def _lines_of(file: BinaryIO, path: Path) -> Iterable[bytes]:
    if is_version_1(file.fileno()):
        target = Path(os.path.realpath(path))
        return map(structuring.dumps, journal_v1.read_notes_of(file.fileno(), str(path), log_of(target)))
    return read_lines(file, str(path))


def read_records(path: Path) -> list[AttemptRecord]:
    """Return the last attempt of each label of a journal, in the order of the first runs; see `read_journal`."""
    return list(read_journal(path).records)


def _record(
    label: str,
    attempt: int,
    request: bytes,
    sent: bytes | None,
    sent_at: float | None,
    is_accepted: int,
    hint: str | None,
    job_id: str | None,
    job: bytes | None,
    ended_at: float | None,
    key: str | None,
    *,
    asked: FineTuneRequest | None = None,
) -> AttemptRecord:
    # Requests are seldom other than before, and most are sent as they are; to read one is half of a look-up.
    is_same = asked is not None and structuring.dumps(asked.given()) == request
    before = asked if is_same and asked is not None else _request(request)
    return AttemptRecord(
        AttemptId(label, attempt),
        before,
        None if sent is None else before if sent == request else _request(sent),
        sent_at,
        bool(is_accepted),
        hint,
        job_id,
        None if job is None else structuring.read_reply(job, FineTune),
        ended_at,
        key,
    )


def _request(blob: bytes) -> FineTuneRequest:
    return structuring.read_request(structuring.loads(blob), FineTuneRequest)


def _words(error: sqlite3.Error | OSError) -> str:
    return error.strerror or str(error) if isinstance(error, OSError) else str(error)
