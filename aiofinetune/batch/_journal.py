"""The journal of a batch: one file that records each request before it is sent, and its outcome.

An entry's intent is on the disk before its request is sent, and the id of its job is written after the reply. So at
whatever moment a process dies, the next one knows which requests may have made an unknown job.

The file contains notes, one per line (see `aiofinetune.batch._journal_file`). When the journal is opened, they are
applied to a temporary database. A new note is applied to the database in the same way, and added to the file.
"""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Final, TypeVar

import attrs

from aiofinetune import structuring
from aiofinetune._sqlite import Database, transaction
from aiofinetune.batch import _journal_v1 as journal_v1
from aiofinetune.batch._journal_file import JournalFile
from aiofinetune.batch._manifest import Entry
from aiofinetune.errors import FineTuneError, JournalUnusable
from aiofinetune.models import FineTune, FineTuneRequest

T = TypeVar("T")

_SCHEMA: Final = """
    PRAGMA synchronous = OFF;
    PRAGMA journal_mode = MEMORY;
    -- `request` is the caller's request. `sent` is the same with ids in place of local paths, once it was sent.
    CREATE TABLE entries (
        number INTEGER PRIMARY KEY, label TEXT UNIQUE NOT NULL, request BLOB NOT NULL, sent BLOB, sent_at REAL,
        is_accepted INTEGER NOT NULL DEFAULT FALSE, hint TEXT, job_id TEXT, job BLOB, ended_at REAL,
        is_asked_for INTEGER NOT NULL DEFAULT FALSE);
    CREATE INDEX lost_entries ON entries (number) WHERE sent IS NOT NULL AND job_id IS NULL;
    CREATE TABLE files (number INTEGER PRIMARY KEY, id TEXT UNIQUE NOT NULL, digest TEXT NOT NULL);
    CREATE INDEX files_by_digest ON files (digest, number);
    CREATE TABLE openings (number INTEGER PRIMARY KEY, base_url TEXT NOT NULL, path TEXT NOT NULL);
"""

_NOTES: Final = {
    "open": "INSERT INTO openings (base_url, path) VALUES (:base_url, :path)",
    "upload": "INSERT OR REPLACE INTO files (id, digest) VALUES (:id, :digest)",
    "forget uploads": "DELETE FROM files",
    "replace": """UPDATE entries SET request = :request, sent = NULL, sent_at = NULL, is_accepted = FALSE, hint = NULL,
        job_id = NULL, job = NULL, ended_at = NULL WHERE label = :label""",
    "intend": """INSERT INTO entries (label, request, sent, sent_at) VALUES (:label, :request, :sent, :at)
        ON CONFLICT (label) DO UPDATE SET request = :request, sent = :sent, sent_at = :at, is_accepted = FALSE,
        hint = NULL""",
    "withdraw": """UPDATE entries SET sent = NULL, sent_at = NULL, is_accepted = FALSE, hint = NULL
        WHERE label = :label""",
    "accept": "UPDATE entries SET is_accepted = TRUE, hint = :hint, job_id = NULL WHERE label = :label",
    "create": "UPDATE entries SET job_id = :job_id WHERE label = :label",
    "end": "UPDATE entries SET job = :job, ended_at = :at WHERE label = :label",
}
"""The statement of each note. A note may be applied twice, because one whose writing failed may be on the disk."""


@attrs.frozen
class Record:
    """The journal's record of one entry. Times are Unix times by this machine's clock."""

    label: str
    request: FineTuneRequest
    """The caller's request."""
    sent: FineTuneRequest | None = None
    """The request with ids in place of local paths; None if it was not sent."""
    sent_at: float | None = None
    job_id: str | None = None
    job: FineTune | None = None
    """The final state of the job."""
    ended_at: float | None = None


@attrs.frozen
class Lost:
    """An entry that was sent, but whose job is not known."""

    label: str
    sent: FineTuneRequest
    sent_at: float
    accepted: bool = False
    """Whether the service accepted the create, in a reply that does not name the job with certainty."""
    fine_tune_id: str | None = None
    """The id in that reply, which may be the job's."""


class _Database(Database):
    """The database of a journal, which adds the lines of each transaction to the file as part of that transaction.

    Args:
        name: The name of the journal, for messages.
        file: The file, if there is one.
    """

    def __init__(self, name: str, file: JournalFile | None) -> None:
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
            if self._file is not None and self.lines:
                self._file.add(self.lines)

    async def run(self, call: Callable[[], T]) -> T:
        try:
            return await super().run(call)
        except (sqlite3.Error, OSError) as error:
            raise JournalUnusable(f"{self._name}: {_words(error)}") from error


class Journal:
    """The journal of one batch. Only one process at a time can open it.

    Args:
        path: The file; it is created if it does not exist. None keeps a temporary journal.
        base_url: The service; a journal belongs to one service.
        accept_changes: Whether the journal may belong to another service. If nothing was sent, it may in any case.
    """

    def __init__(self, path: Path | None, base_url: str, *, accept_changes: bool = False) -> None:
        self._name = "the journal" if path is None else str(path)
        self._file = None if path is None else JournalFile(path)
        self._base_url = base_url
        self._accept_changes = accept_changes
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
    def records(self, entries: Sequence[Entry]) -> list[Record | JournalUnusable]:
        """Return the records of entries, each of which is new to the journal or was in an earlier run.

        If the label of an entry was already used in this run, an error takes the place of its record.
        """
        return [self._record(entry.label, entry.request) for entry in entries]

    def _record(self, label: str, request: FineTuneRequest) -> Record | JournalUnusable:
        row = self.database.execute(
            "SELECT label, request, sent, sent_at, job_id, job, ended_at, is_asked_for FROM entries WHERE label = ?",
            (label,),
        ).fetchone()
        if row is None:
            # The file need not record what was not sent.
            self.database.execute(
                "INSERT INTO entries (label, request, is_asked_for) VALUES (?, ?, TRUE)",
                (label, structuring.write_request(request.given())),
            )
            return Record(label, request)
        *columns, is_asked_for = row
        if is_asked_for:
            return JournalUnusable(f"{label!r} is used twice; each entry of a batch needs a label of its own")
        self.database.execute("UPDATE entries SET is_asked_for = TRUE WHERE label = ?", (label,))
        try:
            return _record(*columns)
        except (FineTuneError, ValueError) as error:
            return JournalUnusable(f"{self._name}: the record of {label!r} cannot be read: {error}")

    @transaction
    def replace(self, label: str, request: FineTuneRequest) -> Record:
        """Replace the request under a label, and forget the outcome of the previous one."""
        self._note("replace", label=label, request=request.given())
        return Record(label, request)

    @transaction
    def intend(self, label: str, sent: FineTuneRequest, at: float) -> None:
        """Note that a create is about to be sent."""
        if self._file is not None:
            self._file.check_place()
        (request,) = self.database.execute("SELECT request FROM entries WHERE label = ?", (label,)).fetchone()
        self._note("intend", label=label, request=structuring.loads(request), sent=sent.given(), at=at)

    @transaction
    def withdraw(self, label: str) -> None:
        """Note that the create certainly made no job."""
        self._note("withdraw", label=label)

    @transaction
    def accept(self, label: str, fine_tune_id: str | None) -> None:
        """Note that the service accepted a create in a reply that does not name the job with certainty.

        Args:
            label: The label of the entry.
            fine_tune_id: The id in the reply, if there is one.
        """
        self._note("accept", label=label, hint=fine_tune_id)

    @transaction
    def create(self, label: str, job_id: str) -> None:
        """Note which job was made."""
        self._note("create", label=label, job_id=job_id)

    @transaction
    def end(self, label: str, job: FineTune, at: float) -> None:
        """Note how the job ended."""
        self._note("end", label=label, job=structuring.write_reply(job), at=at)

    @transaction
    def lost(self) -> list[Lost]:
        """Return the entries that were sent, but whose jobs are not known."""
        rows = self.database.execute(
            "SELECT label, sent, sent_at, is_accepted, hint FROM entries WHERE sent IS NOT NULL AND job_id IS NULL"
        )
        return [
            Lost(label, _request(sent), sent_at, bool(is_accepted), hint)
            for label, sent, sent_at, is_accepted, hint in rows
        ]

    @transaction
    def job_ids(self, since: float = 0.0) -> set[str]:
        """Return the ids of the jobs whose requests were sent at a Unix time or later."""
        rows = self.database.execute("SELECT job_id FROM entries WHERE job_id IS NOT NULL AND sent_at >= ?", (since,))
        return {job_id for (job_id,) in rows}

    @transaction
    def request(self, label: str) -> FineTuneRequest | None:
        """Return the request under a label, in whichever run it was made."""
        row = self.database.execute("SELECT request FROM entries WHERE label = ?", (label,)).fetchone()
        return None if row is None else _request(row[0])

    @transaction
    def sent_labels(self) -> list[str]:
        """Return the labels of all entries that were sent."""
        return [label for (label,) in self.database.execute("SELECT label FROM entries WHERE sent IS NOT NULL")]

    @transaction
    def unfinished_elsewhere(self) -> list[str]:
        """Return the labels of entries that earlier runs sent and did not finish, and that are not in this run."""
        rows = self.database.execute(
            "SELECT label FROM entries WHERE NOT is_asked_for AND sent IS NOT NULL AND job IS NULL ORDER BY number"
        )
        return [label for (label,) in rows]

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

    def _note(self, note: str, **values: object) -> None:
        self._apply(note, values)
        if self._file is not None:
            self.database.lines.append(structuring.dumps({"note": note, **values}))

    def _apply(self, note: str, values: Mapping[str, object]) -> None:
        """Apply a note to the database."""
        parameters = {
            name: structuring.dumps(value) if isinstance(value, dict) else value for name, value in values.items()
        }
        self.database.execute(_NOTES[note], parameters)

    @contextmanager
    def _resources(self) -> Iterator[None]:
        """Open the database and the file, and read the file into the database."""
        with ExitStack() as stack:
            try:
                # SQLite takes an empty path for a temporary database.
                stack.enter_context(self.database.connected(""))
                self.database.connection.executescript(_SCHEMA)
                if self._file is not None:
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
        self._read(file)

    def _read(self, file: JournalFile) -> None:
        with self.database.committing():
            for text in file.lines():
                try:
                    values = structuring.loads(text)
                    self._apply(values["note"], values)
                except (KeyError, TypeError, ValueError, sqlite3.Error) as error:
                    # The digest is correct, so the line is not damaged.
                    raise JournalUnusable(f"{self._name}: is not a journal of this version: {error!r}") from error

    def _note_opening(self) -> None:
        """Note the service and the path of the file, if they have changed."""
        path = "" if self._file is None else os.fsencode(self._file.target).decode(errors="replace")
        with self.database.committing():
            rows = self.database.execute("SELECT base_url, path FROM openings ORDER BY number DESC LIMIT 1")
            known_url, known_path = rows.fetchone() or (None, "")
            if (known_url, known_path) == (self._base_url, path):
                return
            if self._file is not None and known_path != path and self._file.has_running_twin(Path(known_path)):
                raise JournalUnusable(f"{self._name}: is a copy of {known_path}, which a running batch uses")
            if known_url != self._base_url:
                self._move(known_url)
            self._note("open", base_url=self._base_url, path=path, at=time.time())

    def _move(self, known_url: str | None) -> None:
        """Check that the journal may continue at another service than `known_url`."""
        ((was_sent,),) = self.database.execute("SELECT EXISTS (SELECT * FROM entries WHERE sent IS NOT NULL)")
        if was_sent and not self._accept_changes:
            raise JournalUnusable(
                f"{self._name}: belongs to a batch at {known_url}, not at {self._base_url}; if both URLs are the same"
                " service, continue with accept_changes=True (--accept-changes)"
            )
        if not was_sent and known_url is not None:
            # At this service, other files may have the same ids.
            self._note("forget uploads")


def _record(
    label: str,
    request: bytes,
    sent: bytes | None,
    sent_at: float | None,
    job_id: str | None,
    job: bytes | None,
    ended_at: float | None,
) -> Record:
    return Record(
        label,
        _request(request),
        None if sent is None else _request(sent),
        sent_at,
        job_id,
        None if job is None else structuring.read_reply(job, FineTune),
        ended_at,
    )


def _request(blob: bytes) -> FineTuneRequest:
    return structuring.read_request(structuring.loads(blob), FineTuneRequest)


def _words(error: sqlite3.Error | OSError) -> str:
    return error.strerror or str(error) if isinstance(error, OSError) else str(error)
