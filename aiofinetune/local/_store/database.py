"""The store's database: its tables, and the work that is part of each of its transactions."""

from __future__ import annotations

import contextlib
import secrets
import string
import time
from collections.abc import Callable, Collection, Iterator
from typing import Final

from aiofinetune._sqlite import Database
from aiofinetune.local._store.folder import SCHEMA_VERSION, Folder

_SCHEMA: Final = (
    """CREATE TABLE files (
        number INTEGER PRIMARY KEY, id TEXT UNIQUE NOT NULL, filename TEXT NOT NULL, purpose TEXT NOT NULL,
        bytes INTEGER NOT NULL, created_at INTEGER NOT NULL)""",
    # `record` is the job's JSON as lists show it, without its events. `queue` is the last queue number announced.
    """CREATE TABLE jobs (
        number INTEGER PRIMARY KEY, id TEXT UNIQUE NOT NULL, status TEXT NOT NULL, model TEXT NOT NULL,
        training_file TEXT NOT NULL, validation_file TEXT, suffix TEXT, queue INTEGER, record BLOB NOT NULL)""",
    "CREATE INDEX jobs_by_status ON jobs (status, number)",
    """CREATE TABLE events (
        job TEXT NOT NULL, position INTEGER NOT NULL, created_at INTEGER NOT NULL, level TEXT NOT NULL,
        message TEXT NOT NULL, PRIMARY KEY (job, position)) WITHOUT ROWID""",
    """CREATE TABLE models (
        number INTEGER PRIMARY KEY, id TEXT UNIQUE NOT NULL, base TEXT NOT NULL, created INTEGER NOT NULL,
        weights TEXT NOT NULL)""",
    f"PRAGMA user_version = {SCHEMA_VERSION}",
)

_LATER_TABLES: Final = (
    # What stores of earlier servers lack. Those servers can still use a store that has it, and ignore it, so the schema
    # version is the same.
    "CREATE TABLE IF NOT EXISTS commits (count INTEGER NOT NULL)",
    # `weights` is null for the checkpoint of the last epoch: that is the job's model, which is in `models`.
    """CREATE TABLE IF NOT EXISTS checkpoints (
        number INTEGER PRIMARY KEY, id TEXT UNIQUE NOT NULL, job TEXT NOT NULL, created_at INTEGER NOT NULL,
        step INTEGER NOT NULL, metrics BLOB NOT NULL, model TEXT UNIQUE NOT NULL, base TEXT NOT NULL, weights TEXT)""",
    "CREATE INDEX IF NOT EXISTS checkpoints_by_job ON checkpoints (job, number)",
    """CREATE TABLE IF NOT EXISTS uploads (
        number INTEGER PRIMARY KEY, id TEXT UNIQUE NOT NULL, filename TEXT NOT NULL, purpose TEXT NOT NULL,
        bytes INTEGER NOT NULL, created_at INTEGER NOT NULL, expires_at INTEGER NOT NULL, status TEXT NOT NULL,
        file TEXT)""",
    # A part that is joined is in the file of its upload, and no longer needed.
    """CREATE TABLE IF NOT EXISTS parts (
        number INTEGER PRIMARY KEY, id TEXT UNIQUE NOT NULL, upload TEXT NOT NULL, bytes INTEGER NOT NULL,
        created_at INTEGER NOT NULL, is_joined INTEGER NOT NULL DEFAULT 0)""",
    "CREATE INDEX IF NOT EXISTS parts_by_upload ON parts (upload)",
    # The SHA-256 of the files that came through the Together API, which refuses equal content.
    "CREATE TABLE IF NOT EXISTS checksums (file TEXT PRIMARY KEY, sha256 TEXT NOT NULL) WITHOUT ROWID",
    "CREATE INDEX IF NOT EXISTS checksums_by_sha256 ON checksums (sha256)",
    "CREATE INDEX IF NOT EXISTS jobs_by_model ON jobs (status, model, number)",
    # The attempts that run on other machines. `token` is the SHA-256 of the token, `runner` is what the process that
    # runs the attempt calls itself, and `epoch` is the last epoch with an event.
    """CREATE TABLE IF NOT EXISTS remote_attempts (
        id TEXT PRIMARY KEY, job TEXT NOT NULL, token BLOB NOT NULL, started_at INTEGER NOT NULL, runner TEXT,
        epoch INTEGER NOT NULL DEFAULT 0) WITHOUT ROWID""",
)

_LATER_COLUMNS: Final = {
    # What a client of the Together API asked for, as JSON, which that API shows again.
    "asked": "TEXT",
    # What the jobs API shows of a job in addition to `record`. `failed_param` is the parameter to blame for a failure.
    "seed": "INTEGER",
    "metadata": "TEXT",
    "is_validated": "INTEGER",
    "estimated_finish": "INTEGER",
    "trained_tokens": "INTEGER",
    "failed_param": "TEXT",
    # The id of the latest attempt to train it.
    "attempt": "TEXT",
    # The attempts in a row that ended with their workers and got no further than those before, and how many epochs
    # the furthest completed.
    "losses": "INTEGER DEFAULT 0",
    "furthest": "INTEGER DEFAULT 0",
}
"""The columns of `jobs` that stores of earlier servers lack."""

_COUNT_OF_ACTIVE: Final = (
    # Counting the pending and running jobs takes time in proportion to their number, so triggers keep the count. The
    # table is temporary: the folder does not change, and the count is right even if an earlier version of the server
    # used the folder in between.
    "PRAGMA temp_store = MEMORY",
    "CREATE TEMP TABLE active (count INTEGER NOT NULL)",
    "INSERT INTO active SELECT count(*) FROM jobs WHERE status IN ('pending', 'running')",
    """CREATE TEMP TRIGGER job_added AFTER INSERT ON jobs BEGIN
        UPDATE active SET count = count + (NEW.status IN ('pending', 'running')); END""",
    """CREATE TEMP TRIGGER job_changed AFTER UPDATE OF status ON jobs BEGIN
        UPDATE active SET count = count + (NEW.status IN ('pending', 'running'))
        - (OLD.status IN ('pending', 'running')); END""",
)


def new_id(prefix: str) -> str:
    """Return a new id: `prefix` and 24 random letters and digits."""
    return prefix + "".join(secrets.choice(string.ascii_letters + string.digits) for _ in range(24))


def now() -> int:
    """Return the Unix time in whole seconds."""
    return int(time.time())


class StoreDatabase(Database):
    """The database, which also counts its commits in the folder and reports which jobs they changed.

    Args:
        folder: The store's folder.
        on_change: Called on the database's thread after each commit, with the ids of the jobs that the transaction
            changed.
    """

    def __init__(self, folder: Folder, on_change: Callable[[Collection[str]], None]) -> None:
        super().__init__("aiofinetune-database", begin="BEGIN IMMEDIATE")
        self._folder = folder
        self._on_change = on_change
        self.changed_jobs: set[str] = set()
        """The ids of the jobs that the current transaction has changed so far."""

    def set_up(self, *, is_new: bool) -> None:
        """Create the tables that are missing."""
        self.execute("PRAGMA journal_mode = WAL")
        self.execute("PRAGMA synchronous = FULL")
        with self.committing():
            for statement in _SCHEMA if is_new else ():
                self.execute(statement)
            for statement in _LATER_TABLES:
                self.execute(statement)
            columns = {name for _, name, *_ in self.execute("PRAGMA table_info(jobs)")}
            for name, kind in _LATER_COLUMNS.items():
                if name not in columns:
                    self.execute(f"ALTER TABLE jobs ADD COLUMN {name} {kind}")
            self.execute("INSERT INTO commits SELECT 0 WHERE NOT EXISTS (SELECT * FROM commits)")
        for statement in _COUNT_OF_ACTIVE:
            self.execute(statement)

    @contextlib.contextmanager
    def committing(self) -> Iterator[None]:
        self.changed_jobs = set()
        changes, count = self.connection.total_changes, None
        with super().committing():
            yield
            if self.connection.total_changes > changes:
                self._folder.check_place()
                ((count,),) = self.execute("UPDATE commits SET count = count + 1 RETURNING count").fetchall()
        if count is not None:
            self._folder.keep_count(count)
        if self.changed_jobs:
            self._on_change(frozenset(self.changed_jobs))
