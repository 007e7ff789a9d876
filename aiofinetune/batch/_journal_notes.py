"""What the notes of a journal say: they are applied one after another to a temporary database.

The database holds what earlier runs left. Of what this run notes it holds what is asked for while the batch runs, and
not the requests and ends, which only the next run reads.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final, NamedTuple

from aiofinetune import structuring
from aiofinetune._sqlite import Database
from aiofinetune.batch._core import AttemptId, AttemptRecord
from aiofinetune.models import FineTune, FineTuneRequest

SCHEMA: Final = """
    PRAGMA synchronous = OFF;
    PRAGMA journal_mode = MEMORY;
    -- `intent` is the line with the attempt's request, and `outcome` the line with its job as it ended. An attempt of
    -- this run has neither. `sent_at` is the Unix time of the create, NULL again if that surely made no job.
    CREATE TABLE attempts (
        number INTEGER PRIMARY KEY, label TEXT NOT NULL, attempt INTEGER NOT NULL, intent BLOB, sent_at REAL,
        is_accepted INTEGER NOT NULL DEFAULT FALSE, hint TEXT, job_id TEXT, outcome BLOB, UNIQUE (label, attempt));
    CREATE INDEX lost_attempts ON attempts (number) WHERE sent_at IS NOT NULL AND job_id IS NULL;
    CREATE TABLE asked_for (label TEXT PRIMARY KEY) WITHOUT ROWID;
    -- The entries that a caller agreed to leave out of the batch.
    CREATE TABLE left_out (label TEXT PRIMARY KEY) WITHOUT ROWID;
    CREATE TABLE files (number INTEGER PRIMARY KEY, id TEXT UNIQUE NOT NULL, digest TEXT NOT NULL);
    CREATE INDEX files_by_digest ON files (digest, number);
    CREATE TABLE openings (number INTEGER PRIMARY KEY, base_url TEXT NOT NULL, dialect TEXT, path TEXT NOT NULL);
    CREATE TABLE echoes (base_url TEXT PRIMARY KEY) WITHOUT ROWID;
"""

_INDEX: Final = "CREATE INDEX attempts_by_job ON attempts (job_id) WHERE job_id IS NOT NULL"
"""Made when all notes were read, because that takes less than to keep it up."""

_NOTES: Final = {
    "open": "INSERT INTO openings (base_url, dialect, path) VALUES (:base_url, :dialect, :path)",
    # The service shows the keys of its jobs.
    "echo": "INSERT OR IGNORE INTO echoes (base_url) VALUES (:base_url)",
    "upload": "INSERT OR REPLACE INTO files (id, digest) VALUES (:id, :digest)",
    "forget uploads": "DELETE FROM files",
    # Only in journals of version 2. Later ones have the next attempt's intent alone.
    "replace": "INSERT INTO attempts (label, attempt, intent) VALUES (:label, :attempt, :text)",
    "intend": """INSERT INTO attempts (label, attempt, intent, sent_at) VALUES (:label, :attempt, :text, :at)
        ON CONFLICT (label, attempt) DO UPDATE SET intent = :text, sent_at = :at, is_accepted = FALSE, hint = NULL""",
    "withdraw": """UPDATE attempts SET sent_at = NULL, is_accepted = FALSE, hint = NULL
        WHERE label = :label AND attempt = :attempt""",
    "accept": """UPDATE attempts SET is_accepted = TRUE, hint = :hint, job_id = NULL
        WHERE label = :label AND attempt = :attempt""",
    "create": """INSERT INTO attempts (label, attempt, job_id) VALUES (:label, :attempt, :job_id)
        ON CONFLICT (label, attempt) DO UPDATE SET job_id = :job_id""",
    "leave out": "INSERT OR IGNORE INTO left_out (label) VALUES (:label)",
    "end": "UPDATE attempts SET outcome = :text WHERE label = :label AND attempt = :attempt",
}
"""The statement of each note. A note may be applied twice, because one whose writing failed may be on the disk."""

_CONTENT: Final = {"intend": ("request", "sent", "at"), "replace": ("request",), "end": ("job", "at")}
"""What is read from the lines of notes only when a record is asked for."""

_ADD: Final = """INSERT INTO attempts (label, attempt, intent, sent_at, job_id, outcome) VALUES (?, ?, ?, ?, ?, ?)
    ON CONFLICT (label, attempt) DO UPDATE SET intent = excluded.intent, sent_at = excluded.sent_at,
    is_accepted = FALSE, hint = NULL, job_id = ifnull(excluded.job_id, job_id),
    outcome = ifnull(excluded.outcome, outcome)"""
"""The statement of an intent and what may follow it: the creation of the job, and its end."""
_END: Final = "UPDATE attempts SET outcome = ? WHERE label = ? AND attempt = ?"

_AT_ONCE: Final = 1000
"""The number of attempts that are written to the database together. One at a time, reading a journal takes twice the
CPU."""


def apply(database: Database, values: Mapping[str, Any], text: bytes) -> None:  # Any: JSON
    """Apply one note to the database.

    Args:
        database: The database.
        values: The note.
        text: The same as it is in the file.

    Raises:
        KeyError: It is no note of ours, or lacks a value.
        sqlite3.Error: A value is of another type.
    """
    if "label" in values and "attempt" not in values:
        values = {**values, "attempt": _attempt_of(database, values["note"], values["label"])}
    # Journals of earlier versions name no dialect, because there was only one.
    database.execute(_NOTES[values["note"]], {"dialect": None, **values, "text": text})


def _attempt_of(database: Database, note: str, label: str) -> int:
    """Return the attempt that a note of version 2 is about, which knows only the last one."""
    ((last,),) = database.execute("SELECT max(attempt) FROM attempts WHERE label = ?", (label,))
    return (last or 0) + (last is None or note == "replace")


def apply_all(database: Database, lines: Iterable[bytes], at_once: int = _AT_ONCE) -> None:
    """Apply all notes of a journal to the database, which is empty.

    Args:
        database: The database.
        lines: The notes, as they are in the file.
        at_once: The number of attempts that are written to the database together.

    Raises:
        KeyError, TypeError, ValueError, sqlite3.Error: A line is no note of ours.
    """
    with database.committing():
        reader = _Reader(database, at_once)
        for text in lines:
            reader.read(text)
        reader.write()
        database.execute(_INDEX)


class _Reader:
    """Reads notes in order. Most are the intent of an attempt, its job and its end: these are written together."""

    def __init__(self, database: Database, at_once: int) -> None:
        self._database = database
        self._at_once = at_once
        self._begun: dict[tuple[object, object], list[object]] = {}
        """The attempts whose intents were read, by label and number: the parameters of `_ADD`."""
        self._ended: list[tuple[object, ...]] = []
        """The parameters of `_END`, of the attempts whose intents are in the database."""

    def read(self, text: bytes) -> None:
        """Read one note."""
        values = structuring.loads(text)
        for name in _CONTENT.get(values["note"], ()):
            values[name]
        if not self._take(values, text):
            self.write()
            apply(self._database, values, text)
        elif len(self._begun) + len(self._ended) >= self._at_once:
            self.write()

    def _take(self, values: Mapping[str, Any], text: bytes) -> bool:
        """Take a note to write it with others; return False if it has to be applied by itself."""
        note = values["note"]
        if "attempt" not in values:
            return False
        key = (values["label"], values["attempt"])
        attempt = self._begun.get(key)
        if note == "intend" and attempt is None:
            self._begun[key] = [*key, text, values["at"], None, None]
        elif note == "create" and attempt is not None:
            attempt[4] = values["job_id"]
        elif note == "end" and attempt is not None:
            attempt[5] = text
        elif note == "end":
            self._ended.append((text, *key))
        else:
            return False
        return True

    def write(self) -> None:
        """Write to the database what was read."""
        # First the ends: if the same attempt has a new intent, that came later.
        self._database.connection.executemany(_END, self._ended)
        self._database.connection.executemany(_ADD, self._begun.values())
        self._ended.clear()
        self._begun.clear()


class Row(NamedTuple):
    """An attempt in the database."""

    number: int
    label: str
    attempt: int
    intent: bytes
    sent_at: float | None
    is_accepted: int
    hint: str | None
    job_id: str | None
    outcome: bytes | None

    def record(self, asked: FineTuneRequest | None = None) -> AttemptRecord:
        """Return what the journal holds of the attempt.

        Args:
            asked: What is asked for now. It becomes the record's request if it is the same, because requests seldom
                change, and to read one takes a while.

        Raises:
            FineTuneError: A request or a job in the journal cannot be read.
        """
        intent = structuring.loads(self.intent)
        given = intent["request"]
        request = asked if asked is not None and asked.given() == given else _request(given)
        sent = key = job = ended_at = None
        if self.sent_at is not None:
            sent, key = request if intent["sent"] == given else _request(intent["sent"]), intent.get("key")
        if self.outcome is not None:
            outcome = structuring.loads(self.outcome)
            ended_at = outcome["at"]
            job = structuring.read_object(outcome["job"], FineTune, _ignore) or _job(self.outcome)
        attempt = AttemptId(self.label, self.attempt)
        accepted = bool(self.is_accepted)
        return AttemptRecord(attempt, request, sent, self.sent_at, accepted, self.hint, self.job_id, job, ended_at, key)


def _request(given: object) -> FineTuneRequest:
    return structuring.read_request(given, FineTuneRequest)


def _job(outcome: bytes) -> FineTune:
    """Return a job that the quick reader cannot read, or say why."""
    return structuring.fit_reply(structuring.loads(outcome)["job"], FineTune)


def _ignore(_field: str, _kind: str) -> None:
    """Ignore a field that is read as absent, which was reported when the job ended."""
