"""The journal of a batch: what was asked for, before it is sent, and what came of it. One file a batch.

An entry's intent is on the disk before its request leaves, and its job's id after: whatever moment a process dies at,
the next one knows which requests may have made a job that nobody knows of.

The file holds notes, one a line (see `aiofinetune.batch._journal_file`). They are read into a temporary database as the
journal is opened, and each that is added does there what it does when it is read.
"""

from __future__ import annotations

import asyncio
import functools
import os
import sqlite3
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Concatenate, Final, NamedTuple, ParamSpec, TypeVar, cast

import attrs

from aiofinetune import structuring
from aiofinetune._threads import in_thread, until_over
from aiofinetune.batch import _journal_v1 as journal_v1
from aiofinetune.batch._journal_file import JournalFile
from aiofinetune.batch._manifest import Entry
from aiofinetune.errors import FineTuneError, JournalUnusable
from aiofinetune.models import FineTune, FineTuneRequest

P = ParamSpec("P")
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


class _Work(NamedTuple):
    """Something to be done with the database, and who waits for it."""

    call: Callable[[], Any]  # Any: each has a result of its own
    done: asyncio.Future[Any]


def _transaction(
    method: Callable[Concatenate[Journal, P], T],
) -> Callable[Concatenate[Journal, P], Coroutine[Any, Any, T]]:  # Any: as `async def` has it.
    """Make `method` a coroutine that runs on the journal's thread, whole or not at all, and on the disk at its end."""

    @functools.wraps(method)
    async def run(self: Journal, *args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return await self._do(functools.partial(method, self, *args, **kwargs))
        except (sqlite3.Error, OSError) as error:
            raise JournalUnusable(f"{self._name}: {_words(error)}") from error

    return cast("Callable[Concatenate[Journal, P], Coroutine[Any, Any, T]]", run)


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
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="aiofinetune-journal")
        self._waiting: list[_Work] = []
        """What is to be done as soon as the transaction that is under way is over."""
        self._is_busy = False
        self._is_open = False
        self._lines: list[bytes] = []
        """What the transaction that is under way adds to the file."""

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[Journal]:
        """Open the file, and close it in the end.

        Raises:
            JournalUnusable: Another process has it open, it is no journal, a damaged one, or one of another service.
        """
        try:
            # Cancelled or not, the thread opens it.
            await in_thread(self._thread, self._open)
            yield self
        finally:
            await in_thread(self._thread, self._close)
            self._thread.shutdown()

    @_transaction
    def records(self, entries: Sequence[Entry]) -> list[Record | JournalUnusable]:
        """Give what is known of entries, each of which is new to the journal or was in an earlier run.

        Of one that was in this run already, for two have one label, the error that says so stands in its place.
        """
        return [self._record(entry.label, entry.request) for entry in entries]

    def _record(self, label: str, request: FineTuneRequest) -> Record | JournalUnusable:
        row = self._db.execute(
            "SELECT label, request, sent, sent_at, job_id, job, ended_at, is_asked_for FROM entries WHERE label = ?",
            (label,),
        ).fetchone()
        if row is None:
            # Of what was not sent the file need not know.
            self._db.execute(
                "INSERT INTO entries (label, request, is_asked_for) VALUES (?, ?, TRUE)",
                (label, structuring.write_request(request.given())),
            )
            return Record(label, request)
        *columns, is_asked_for = row
        if is_asked_for:
            return JournalUnusable(f"{label!r} is there twice; each entry of a batch needs a label of its own")
        self._db.execute("UPDATE entries SET is_asked_for = TRUE WHERE label = ?", (label,))
        try:
            return _record(*columns)
        except (FineTuneError, ValueError) as error:
            return JournalUnusable(f"{self._name}: what it holds of {label!r} cannot be read: {error}")

    @_transaction
    def replace(self, label: str, request: FineTuneRequest) -> Record:
        """Ask for something else under a label, and forget what came of it."""
        self._note("replace", label=label, request=request.given())
        return Record(label, request)

    @_transaction
    def intend(self, label: str, sent: FineTuneRequest, at: float) -> None:
        """Note that a create is about to be sent."""
        if self._file is not None:
            self._file.check_place()
        (request,) = self._db.execute("SELECT request FROM entries WHERE label = ?", (label,)).fetchone()
        self._note("intend", label=label, request=structuring.loads(request), sent=sent.given(), at=at)

    @_transaction
    def withdraw(self, label: str) -> None:
        """Note that what was sent surely made no job."""
        self._note("withdraw", label=label)

    @_transaction
    def accept(self, label: str, fine_tune_id: str | None) -> None:
        """Note that the service accepted a create by a reply that does not surely name the job, and what id it has."""
        self._note("accept", label=label, hint=fine_tune_id)

    @_transaction
    def create(self, label: str, job_id: str) -> None:
        """Note which job was made."""
        self._note("create", label=label, job_id=job_id)

    @_transaction
    def end(self, label: str, job: FineTune, at: float) -> None:
        """Note how the job ended."""
        self._note("end", label=label, job=structuring.write_reply(job), at=at)

    @_transaction
    def lost(self) -> list[Lost]:
        """Give the entries that were sent, and of which no job is known."""
        rows = self._db.execute(
            "SELECT label, sent, sent_at, is_accepted, hint FROM entries WHERE sent IS NOT NULL AND job_id IS NULL"
        )
        return [
            Lost(label, _request(sent), sent_at, bool(is_accepted), hint)
            for label, sent, sent_at, is_accepted, hint in rows
        ]

    @_transaction
    def job_ids(self, since: float = 0.0) -> set[str]:
        """Give the ids of the jobs made, or of those whose requests were sent since a Unix time."""
        rows = self._db.execute("SELECT job_id FROM entries WHERE job_id IS NOT NULL AND sent_at >= ?", (since,))
        return {job_id for (job_id,) in rows}

    @_transaction
    def request(self, label: str) -> FineTuneRequest | None:
        """Give what was asked for under a label, in whatever run."""
        row = self._db.execute("SELECT request FROM entries WHERE label = ?", (label,)).fetchone()
        return None if row is None else _request(row[0])

    @_transaction
    def sent_labels(self) -> list[str]:
        """Give the labels under which something was sent."""
        return [label for (label,) in self._db.execute("SELECT label FROM entries WHERE sent IS NOT NULL")]

    @_transaction
    def unfinished_elsewhere(self) -> list[str]:
        """Give the labels of entries that earlier runs began and this one did not ask for."""
        rows = self._db.execute(
            "SELECT label FROM entries WHERE NOT is_asked_for AND sent IS NOT NULL AND job IS NULL ORDER BY number"
        )
        return [label for (label,) in rows]

    @_transaction
    def file_id(self, digest: str) -> str | None:
        """Give the id of the file last uploaded by the SHA-256 of its content."""
        row = self._db.execute("SELECT id FROM files WHERE digest = ? ORDER BY number DESC", (digest,)).fetchone()
        return None if row is None else str(row[0])

    @_transaction
    def digest(self, file_id: str) -> str | None:
        """Give the SHA-256 of an uploaded file's content."""
        row = self._db.execute("SELECT digest FROM files WHERE id = ?", (file_id,)).fetchone()
        return None if row is None else str(row[0])

    @_transaction
    def keep_file(self, digest: str, file_id: str) -> None:
        """Note that a content was uploaded."""
        self._note("upload", id=file_id, digest=digest)

    def _note(self, note: str, **values: object) -> None:
        self._apply(note, values)
        if self._file is not None:
            self._lines.append(structuring.dumps({"note": note, **values}))

    def _apply(self, note: str, values: Mapping[str, object]) -> None:
        """Do what a note does."""
        parameters = {
            name: structuring.dumps(value) if isinstance(value, dict) else value for name, value in values.items()
        }
        self._db.execute(_NOTES[note], parameters)

    async def _do(self, call: Callable[[], T]) -> T:
        done: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._waiting.append(_Work(call, done))
        if not self._is_busy:
            self._begin()
        return await until_over(done)

    def _begin(self) -> None:
        """Do all that waits, in one transaction: the disk takes as long for many as for one."""
        works, self._waiting = self._waiting, []
        transaction = asyncio.get_running_loop().run_in_executor(self._thread, self._transact, works)
        transaction.add_done_callback(self._settle)
        self._is_busy = True

    def _settle(self, transaction: asyncio.Future[list[Callable[[], None]]]) -> None:
        self._is_busy = False
        if self._waiting:
            self._begin()
        for tell in transaction.result():
            tell()

    def _transact(self, works: list[_Work]) -> list[Callable[[], None]]:
        """Do all, on the journal's thread; give what then tells those who wait. Where one fails, each is done alone."""
        self._lines = []
        try:
            with self._db:
                done: list[Callable[[], None]] = [
                    functools.partial(work.done.set_result, work.call()) for work in works
                ]
                if self._file is not None and self._lines:
                    self._file.add(self._lines)
            return done
        except Exception as failure:  # noqa: BLE001  # whoever waits gets it
            if len(works) == 1:
                return [functools.partial(works[0].done.set_exception, failure)]
        return [tell for work in works for tell in self._transact([work])]

    def _open(self) -> None:
        try:
            # An empty name is a temporary file.
            self._db = sqlite3.connect("", check_same_thread=False)
            self._is_open = True
            self._db.executescript(_SCHEMA)
            if self._file is not None:
                self._file.open()
                if self._file.is_version_1:
                    self._file.replace(map(structuring.dumps, journal_v1.read_notes(self._file)))
                    self._file.log.unlink(missing_ok=True)
                self._read(self._file)
            self._note_opening()
        except BlockingIOError as error:
            raise JournalUnusable(f"{self._name}: another process is running this batch") from error
        except (sqlite3.Error, OSError) as error:
            raise JournalUnusable(f"{self._name}: {_words(error)}") from error
        except ValueError as error:
            raise JournalUnusable(f"{self._name!r}: {error}") from error

    def _close(self) -> None:
        if self._file is not None:
            self._file.close()
        if self._is_open:
            self._db.close()

    def _read(self, file: JournalFile) -> None:
        with self._db:
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
        with self._db:
            rows = self._db.execute("SELECT base_url, path FROM openings ORDER BY number DESC LIMIT 1")
            known_url, known_path = rows.fetchone() or (None, "")
            if (known_url, known_path) == (self._base_url, path):
                return
            if self._file is not None and known_path != path and self._file.has_running_twin(Path(known_path)):
                raise JournalUnusable(f"{self._name}: is a copy of {known_path}, and a batch is running with that")
            if known_url != self._base_url:
                self._move(known_url)
            self._note("open", base_url=self._base_url, path=path, at=time.time())
            if self._file is not None:
                self._file.add(self._lines)

    def _move(self, known_url: str | None) -> None:
        """Go on at another service than before, which needs no leave if nothing was sent to that."""
        ((was_sent,),) = self._db.execute("SELECT EXISTS (SELECT * FROM entries WHERE sent IS NOT NULL)")
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
