"""The journal of a batch: what was asked for, before it is sent, and what came of it. One file a batch.

An entry's intent is on the disk before its request leaves, and its job's id after: whatever moment a process dies at,
the next one knows which requests may have made a job that nobody knows of.

The file holds notes, one a line (see `aiofinetune.batch._journal_file`). They are read into a temporary database as the
journal is opened, and each that is added does there what it does when it is read.
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
    -- `request` is what the caller asked for, `sent` what left: the same with ids in place of local paths.
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
"""What each note does. It does no harm twice: one that could not be kept may have reached the disk all the same."""


@attrs.frozen
class Record:
    """What the journal knows of one entry. Times are Unix times by this machine's clock."""

    label: str
    request: FineTuneRequest
    """What the caller asked for."""
    sent: FineTuneRequest | None = None
    """The same with ids in place of local paths, if it was sent."""
    sent_at: float | None = None
    job_id: str | None = None
    job: FineTune | None = None
    """The job as it ended."""
    ended_at: float | None = None


@attrs.frozen
class Lost:
    """An entry that was sent, and of which no job is known."""

    label: str
    sent: FineTuneRequest
    sent_at: float
    accepted: bool = False
    """Whether the service accepted it, by a reply that does not surely name the job."""
    fine_tune_id: str | None = None
    """The id in that reply, which may be the job's."""


class _Database(Database):
    """The database of a journal, which adds to the file, as part of each transaction, the lines that it notes.

    Args:
        name: The journal's, for messages.
        file: The file, if there is one.
    """

    def __init__(self, name: str, file: JournalFile | None) -> None:
        super().__init__("aiofinetune-journal")
        self._name = name
        self._file = file
        self.lines: list[bytes] = []
        """What the transaction that is under way adds to the file."""

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
    """The journal of one batch, open in this process alone.

    Args:
        path: The file; made if need be. None keeps a journal that ends with this process.
        base_url: The service; a journal is of one.
        accept_changes: Whether it may be of another service. One of which nothing was sent may be in any case.
    """

    def __init__(self, path: Path | None, base_url: str, *, accept_changes: bool = False) -> None:
        self._name = "the journal" if path is None else str(path)
        self._file = None if path is None else JournalFile(path)
        self._base_url = base_url
        self._accept_changes = accept_changes
        self.database = _Database(self._name, self._file)

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[Journal]:
        """Open the file, and close it in the end.

        Raises:
            JournalUnusable: Another process has it open, it is no journal, a damaged one, or one of another service.
        """
        async with self.database.opened(self._resources()):
            yield self

    @transaction
    def records(self, entries: Sequence[Entry]) -> list[Record | JournalUnusable]:
        """Give what is known of entries, each of which is new to the journal or was in an earlier run.

        Of one that was in this run already, for two have one label, the error that says so stands in its place.
        """
        return [self._record(entry.label, entry.request) for entry in entries]

    def _record(self, label: str, request: FineTuneRequest) -> Record | JournalUnusable:
        row = self.database.execute(
            "SELECT label, request, sent, sent_at, job_id, job, ended_at, is_asked_for FROM entries WHERE label = ?",
            (label,),
        ).fetchone()
        if row is None:
            # Of what was not sent the file need not know.
            self.database.execute(
                "INSERT INTO entries (label, request, is_asked_for) VALUES (?, ?, TRUE)",
                (label, structuring.write_request(request.given())),
            )
            return Record(label, request)
        *columns, is_asked_for = row
        if is_asked_for:
            return JournalUnusable(f"{label!r} is there twice; each entry of a batch needs a label of its own")
        self.database.execute("UPDATE entries SET is_asked_for = TRUE WHERE label = ?", (label,))
        try:
            return _record(*columns)
        except (FineTuneError, ValueError) as error:
            return JournalUnusable(f"{self._name}: what it holds of {label!r} cannot be read: {error}")

    @transaction
    def replace(self, label: str, request: FineTuneRequest) -> Record:
        """Ask for something else under a label, and forget what came of it."""
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
        """Note that what was sent surely made no job."""
        self._note("withdraw", label=label)

    @transaction
    def accept(self, label: str, fine_tune_id: str | None) -> None:
        """Note that the service accepted a create by a reply that does not surely name the job, and what id it has."""
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
        """Give the entries that were sent, and of which no job is known."""
        rows = self.database.execute(
            "SELECT label, sent, sent_at, is_accepted, hint FROM entries WHERE sent IS NOT NULL AND job_id IS NULL"
        )
        return [
            Lost(label, _request(sent), sent_at, bool(is_accepted), hint)
            for label, sent, sent_at, is_accepted, hint in rows
        ]

    @transaction
    def job_ids(self, since: float = 0.0) -> set[str]:
        """Give the ids of the jobs made, or of those whose requests were sent since a Unix time."""
        rows = self.database.execute("SELECT job_id FROM entries WHERE job_id IS NOT NULL AND sent_at >= ?", (since,))
        return {job_id for (job_id,) in rows}

    @transaction
    def request(self, label: str) -> FineTuneRequest | None:
        """Give what was asked for under a label, in whatever run."""
        row = self.database.execute("SELECT request FROM entries WHERE label = ?", (label,)).fetchone()
        return None if row is None else _request(row[0])

    @transaction
    def sent_labels(self) -> list[str]:
        """Give the labels under which something was sent."""
        return [label for (label,) in self.database.execute("SELECT label FROM entries WHERE sent IS NOT NULL")]

    @transaction
    def unfinished_elsewhere(self) -> list[str]:
        """Give the labels of entries that earlier runs began and this one did not ask for."""
        rows = self.database.execute(
            "SELECT label FROM entries WHERE NOT is_asked_for AND sent IS NOT NULL AND job IS NULL ORDER BY number"
        )
        return [label for (label,) in rows]

    @transaction
    def file_id(self, digest: str) -> str | None:
        """Give the id of the file last uploaded by the SHA-256 of its content."""
        row = self.database.execute("SELECT id FROM files WHERE digest = ? ORDER BY number DESC", (digest,)).fetchone()
        return None if row is None else str(row[0])

    @transaction
    def digest(self, file_id: str) -> str | None:
        """Give the SHA-256 of an uploaded file's content."""
        row = self.database.execute("SELECT digest FROM files WHERE id = ?", (file_id,)).fetchone()
        return None if row is None else str(row[0])

    @transaction
    def keep_file(self, digest: str, file_id: str) -> None:
        """Note that a content was uploaded."""
        self._note("upload", id=file_id, digest=digest)

    def _note(self, note: str, **values: object) -> None:
        self._apply(note, values)
        if self._file is not None:
            self.database.lines.append(structuring.dumps({"note": note, **values}))

    def _apply(self, note: str, values: Mapping[str, object]) -> None:
        """Do what a note does."""
        parameters = {
            name: structuring.dumps(value) if isinstance(value, dict) else value for name, value in values.items()
        }
        self.database.execute(_NOTES[note], parameters)

    @contextmanager
    def _resources(self) -> Iterator[None]:
        """Have the database and the file open, with all that the file holds in the database."""
        with ExitStack() as stack:
            try:
                # An empty name is a temporary file.
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
                    # Its digest is right, so it is as it was written.
                    raise JournalUnusable(f"{self._name}: is no journal of this version: {error!r}") from error

    def _note_opening(self) -> None:
        """Note of which service it is, and where its file is, if that is new."""
        path = "" if self._file is None else os.fsencode(self._file.target).decode(errors="replace")
        with self.database.committing():
            rows = self.database.execute("SELECT base_url, path FROM openings ORDER BY number DESC LIMIT 1")
            known_url, known_path = rows.fetchone() or (None, "")
            if (known_url, known_path) == (self._base_url, path):
                return
            if self._file is not None and known_path != path and self._file.has_running_twin(Path(known_path)):
                raise JournalUnusable(f"{self._name}: is a copy of {known_path}, and a batch is running with that")
            if known_url != self._base_url:
                self._move(known_url)
            self._note("open", base_url=self._base_url, path=path, at=time.time())

    def _move(self, known_url: str | None) -> None:
        """Go on at another service than before, which needs no leave if nothing was sent to that."""
        ((was_sent,),) = self.database.execute("SELECT EXISTS (SELECT * FROM entries WHERE sent IS NOT NULL)")
        if was_sent and not self._accept_changes:
            raise JournalUnusable(
                f"{self._name}: is of a batch at {known_url}, not at {self._base_url}; if both are one service,"
                " accept_changes=True (--accept-changes) goes on there"
            )
        if not was_sent and known_url is not None:
            # Here other files may have their ids.
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
