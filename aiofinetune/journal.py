"""The journal of a batch: what was asked for, before it is sent, and what came of it. One SQLite file a batch.

An entry's intent is on the disk before its request leaves, and its job's id after: whatever moment a process dies at,
the next one knows which requests may have made a job that nobody knows of.
"""

from __future__ import annotations

import asyncio
import functools
import sqlite3
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Concatenate, Final, NamedTuple, ParamSpec, TypeVar, cast

import attrs

from aiofinetune import converters, wire
from aiofinetune.errors import JournalUnusable
from aiofinetune.manifest import Entry
from aiofinetune.models import FineTune, FineTuneRequest
from aiofinetune.threads import in_thread, until_over

P = ParamSpec("P")
T = TypeVar("T")

_VERSION: Final = 1
_APPLICATION: Final = 0x61696674
"""Marks the file as ours ("aift")."""

_SCHEMA: Final = (
    # `request` is what the caller asked for, `sent` what left: the same with ids in place of local paths.
    """CREATE TABLE entries (
        number INTEGER PRIMARY KEY, label TEXT UNIQUE NOT NULL, request BLOB NOT NULL, sent BLOB, sent_at REAL,
        job_id TEXT, job BLOB, ended_at REAL, run INTEGER NOT NULL)""",
    "CREATE INDEX lost_entries ON entries (number) WHERE sent IS NOT NULL AND job_id IS NULL",
    "CREATE TABLE files (number INTEGER PRIMARY KEY, id TEXT UNIQUE NOT NULL, digest TEXT NOT NULL)",
    "CREATE INDEX files_by_digest ON files (digest, number)",
    "CREATE TABLE runs (number INTEGER PRIMARY KEY, base_url TEXT NOT NULL)",
    f"PRAGMA application_id = {_APPLICATION}",
    f"PRAGMA user_version = {_VERSION}",
)


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
        except sqlite3.Error as error:
            raise JournalUnusable(f"{self._name}: {error}") from error

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
        self._path = path
        self._base_url = base_url
        self._accept_changes = accept_changes
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="aiofinetune-journal")
        self._waiting: list[_Work] = []
        """What is to be done as soon as the transaction that is under way is over."""
        self._is_busy = False
        self._is_open = False
        self._run = 0

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[Journal]:
        """Open the file, and close it in the end.

        Raises:
            JournalUnusable: Another process has it open, it is no journal, or one of another service.
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
            "SELECT label, request, sent, sent_at, job_id, job, ended_at, run FROM entries WHERE label = ?", (label,)
        ).fetchone()
        if row is None:
            self._db.execute(
                "INSERT INTO entries (label, request, run) VALUES (?, ?, ?)",
                (label, wire.write_request(request.given()), self._run),
            )
            return Record(label, request)
        *columns, run = row
        if run == self._run:
            return JournalUnusable(f"{label!r} is there twice; each entry of a batch needs a label of its own")
        self._db.execute("UPDATE entries SET run = ? WHERE label = ?", (self._run, label))
        return _record(*columns)

    @_transaction
    def replace(self, label: str, request: FineTuneRequest) -> Record:
        """Ask for something else under a label, and forget what came of it."""
        self._db.execute(
            "UPDATE entries SET request = ?, sent = NULL, sent_at = NULL, job_id = NULL, job = NULL, ended_at = NULL"
            " WHERE label = ?",
            (wire.write_request(request.given()), label),
        )
        return Record(label, request)

    @_transaction
    def intend(self, label: str, sent: FineTuneRequest, at: float) -> None:
        """Note that a create is about to be sent."""
        self._db.execute(
            "UPDATE entries SET sent = ?, sent_at = ? WHERE label = ?", (wire.write_request(sent.given()), at, label)
        )

    @_transaction
    def withdraw(self, label: str) -> None:
        """Note that what was sent surely made no job."""
        self._db.execute("UPDATE entries SET sent = NULL, sent_at = NULL WHERE label = ?", (label,))

    @_transaction
    def create(self, label: str, job_id: str) -> None:
        """Note which job was made."""
        self._db.execute("UPDATE entries SET job_id = ? WHERE label = ?", (job_id, label))

    @_transaction
    def end(self, label: str, job: FineTune, at: float) -> None:
        """Note how the job ended."""
        blob = wire.dumps(converters.write_reply(job))
        self._db.execute("UPDATE entries SET job = ?, ended_at = ? WHERE label = ?", (blob, at, label))

    @_transaction
    def lost(self) -> list[Lost]:
        """Give the entries that were sent, and of which no job is known."""
        rows = self._db.execute("SELECT label, sent, sent_at FROM entries WHERE sent IS NOT NULL AND job_id IS NULL")
        return [Lost(label, _request(sent), sent_at) for label, sent, sent_at in rows]

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
            "SELECT label FROM entries WHERE run < ? AND sent IS NOT NULL AND job IS NULL ORDER BY number", (self._run,)
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
        self._db.execute("INSERT OR REPLACE INTO files (id, digest) VALUES (?, ?)", (file_id, digest))

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
        try:
            with self._db:
                return [functools.partial(work.done.set_result, work.call()) for work in works]
        except Exception as failure:  # noqa: BLE001  # whoever waits gets it
            if len(works) == 1:
                return [functools.partial(works[0].done.set_exception, failure)]
        return [tell for work in works for tell in self._transact([work])]

    def _open(self) -> None:
        # SQLite's own lock says that another process is at it; it goes with the process, however that ends. An empty
        # name is a temporary file.
        try:
            self._db = sqlite3.connect(self._path or "", timeout=0, check_same_thread=False)
            self._is_open = True
            self._prepare()
        except sqlite3.OperationalError as error:
            if "locked" not in str(error):
                raise JournalUnusable(f"{self._name}: {error}") from error
            raise JournalUnusable(f"{self._name}: another process is running this batch") from error
        except sqlite3.DatabaseError as error:
            raise JournalUnusable(f"{self._name}: is no journal: {error}") from error
        except ValueError as error:
            raise JournalUnusable(f"{self._name!r}: {error}") from error

    def _close(self) -> None:
        if self._is_open:
            self._db.close()

    def _prepare(self) -> None:
        db = self._db
        # Before anything is written: the file may be another program's.
        self._count_tables()
        db.execute("PRAGMA locking_mode = EXCLUSIVE")
        db.execute("PRAGMA journal_mode = WAL")
        db.execute(f"PRAGMA synchronous = {'FULL' if self._path else 'OFF'}")
        with db:
            db.execute("BEGIN IMMEDIATE")
            if self._count_tables() == 0:
                for statement in _SCHEMA:
                    db.execute(statement)
            for (base_url,) in db.execute("SELECT base_url FROM runs ORDER BY number DESC LIMIT 1"):
                if base_url != self._base_url:
                    self._move(base_url)
            cursor = db.execute("INSERT INTO runs (base_url) VALUES (?)", (self._base_url,))
            self._run = cursor.lastrowid or 0

    def _move(self, base_url: str) -> None:
        """Go on at another service than before: at will if nothing was sent to that."""
        ((was_sent,),) = self._db.execute("SELECT EXISTS (SELECT * FROM entries WHERE sent IS NOT NULL)")
        if was_sent and not self._accept_changes:
            raise JournalUnusable(
                f"{self._name}: is of a batch at {base_url}, not at {self._base_url}; if both are one service,"
                " accept_changes=True (--accept-changes) goes on there"
            )
        if not was_sent:
            # Here other files may have their ids.
            self._db.execute("DELETE FROM files")

    def _count_tables(self) -> int:
        """Give the number of tables; none is a new journal."""
        ((application,), (version,), (tables,)) = (
            self._db.execute(statement).fetchone()
            for statement in ("PRAGMA application_id", "PRAGMA user_version", "SELECT count(*) FROM sqlite_schema")
        )
        if tables and (application, version) != (_APPLICATION, _VERSION):
            raise JournalUnusable(f"{self._name}: is no journal of this version")
        return int(tables)


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
        None if job is None else wire.read_reply(job, FineTune),
        ended_at,
    )


def _request(blob: bytes) -> FineTuneRequest:
    return converters.read_request(wire.loads(blob), FineTuneRequest)
