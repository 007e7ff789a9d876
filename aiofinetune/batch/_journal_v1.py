"""Read journals of version 1, which are SQLite databases in WAL mode, as the notes of a journal of this version.

They have no digests of their own. Damage is detected by SQLite's integrity check, the checksums of its log, and checks
of the rows. Nothing that cannot be read is skipped, because it may be a paid job.
"""

from __future__ import annotations

import fcntl
import shutil
import sqlite3
import struct
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, Final

import attrs

from aiofinetune import structuring
from aiofinetune.batch._journal_file import JournalFile
from aiofinetune.batch._manifest import is_local
from aiofinetune.errors import FineTuneError, JournalUnusable
from aiofinetune.models import FineTune, FineTuneRequest

_VERSION: Final = 1
_APPLICATION: Final = 0x61696674
"""The application id of our journals ("aift")."""
_SQLITE_LOCK: Final = (512, 0x40000000)
"""The range of bytes that SQLite locks; it is beyond the end of the file."""
_WAL_MODE: Final = b"\2\2"
_WAL_MAGIC: Final = {0x377F0682: "<", 0x377F0683: ">"}
"""The first bytes of a log, and the byte order of the words that its checksums add up."""

_COLUMNS: Final[dict[str, tuple[type, ...]]] = {
    "label": (str,),
    "request": (bytes,),
    "sent": (bytes, type(None)),
    "sent_at": (float, type(None)),
    "job_id": (str, type(None)),
    "job": (bytes, type(None)),
    "ended_at": (float, type(None)),
}


class _Damaged(Exception):
    """A journal is damaged; the message describes the damage."""


def read_notes(file: JournalFile) -> list[dict[str, Any]]:  # Any: JSON
    """Return the notes of a journal of version 1, without changing the file, which is locked.

    Raises:
        JournalUnusable: The file is another database, or it is damaged.
        BlockingIOError: Another process uses the file.
        OSError: The file cannot be read.
    """
    fcntl.lockf(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB, *_SQLITE_LOCK)
    return read_notes_of(file.fileno(), file.name, file.log)


def read_notes_of(file: int, name: str, log: Path) -> list[dict[str, Any]]:  # Any: JSON
    """Return the notes of a journal of version 1, without locking or changing it.

    Args:
        file: The descriptor of the file.
        name: Its name, for messages.
        log: The path of its log.

    Raises:
        JournalUnusable: The file is another database, or it is damaged.
        OSError: The file cannot be read.
    """
    with tempfile.TemporaryDirectory(prefix="aiofinetune-") as folder:
        # This reads a copy, because SQLite would move the contents of the log into the original.
        path = Path(folder) / "journal"
        with open(file, "rb", closefd=False) as source, path.open("wb") as copy:
            source.seek(0)
            shutil.copyfileobj(source, copy)
        log_copy = Path(f"{path}-wal")
        if log.exists():
            shutil.copyfile(log, log_copy)
        try:
            if log_copy.exists():
                _check_log(log_copy.read_bytes(), path)
            with closing(sqlite3.connect(path)) as db:
                return list(_notes(db, name, log))
        except (_Damaged, sqlite3.Error, FineTuneError, ValueError) as error:
            if isinstance(error, JournalUnusable):
                raise
            raise JournalUnusable(
                f"{name}: is damaged, or not a journal: {error}; restore an intact copy, with its log ({log}) if it has"
                " one"
            ) from error


def _notes(db: sqlite3.Connection, name: str, log: Path) -> Iterator[dict[str, Any]]:
    ((application,), (version,), (tables,)) = (
        db.execute(statement).fetchone()
        for statement in ("PRAGMA application_id", "PRAGMA user_version", "SELECT count(*) FROM sqlite_schema")
    )
    if not tables:
        raise JournalUnusable(
            f"{name}: is empty: its process was killed, and its log is missing or truncated; restore the log ({log})"
        )
    if (application, version) != (_APPLICATION, _VERSION):
        raise JournalUnusable(f"{name}: is not a journal of this version")
    for (problem,) in db.execute("PRAGMA integrity_check"):
        if problem != "ok":
            raise _Damaged(problem)
    for (base_url,) in db.execute("SELECT base_url FROM runs ORDER BY number"):
        yield {"note": "open", "base_url": _checked(base_url), "path": "", "at": time.time()}
    uploads = set()
    for file_id, digest in db.execute("SELECT id, digest FROM files ORDER BY number"):
        yield {"note": "upload", "id": _checked(file_id), "digest": _checked(digest)}
        uploads.add(file_id)
    for row in db.execute(f"SELECT {', '.join(_COLUMNS)} FROM entries ORDER BY number"):  # noqa: S608  # names of ours
        yield from _entry_notes(uploads, *row)


def _entry_notes(
    uploads: set[str],
    label: str,
    request: bytes,
    sent: bytes | None,
    sent_at: float | None,
    job_id: str | None,
    job: bytes | None,
    ended_at: float | None,
) -> Iterator[dict[str, Any]]:
    values = (label, request, sent, sent_at, job_id, job, ended_at)
    for (column, kinds), value in zip(_COLUMNS.items(), values, strict=True):
        if type(value) not in kinds:
            raise _Damaged(f"{column} of {label!r} is {value!r}, which is not of the expected type")
    if (sent is None) != (sent_at is None) or (sent is None and job_id is not None):
        raise _Damaged(f"the sent request of {label!r} is incomplete")
    if (job is None) != (ended_at is None) or (job_id is None and job is not None):
        raise _Damaged(f"the outcome of {label!r} is incomplete")
    asked = _request(request)
    if sent is None or sent_at is None:
        return
    left = _request(sent)
    _check_sent(label, asked, left, uploads)
    yield {"note": "intend", "label": label, "request": asked.given(), "sent": left.given(), "at": sent_at}
    if job_id is not None:
        yield {"note": "create", "label": label, "job_id": job_id}
    if job is not None:
        if structuring.read_reply(job, FineTune).id != job_id:
            raise _Damaged(f"{label!r} made the job {job_id}, but its outcome is another job's")
        yield {"note": "end", "label": label, "job": structuring.loads(job), "at": ended_at}


def _check_sent(label: str, asked: FineTuneRequest, sent: FineTuneRequest, uploads: set[str]) -> None:
    """Check that the sent request is the caller's, with ids of uploads in place of local paths."""
    for path, file_id in (
        (asked.training_file, sent.training_file),
        (asked.validation_file, sent.validation_file),
    ):
        is_upload = path is not None and is_local(path) and file_id in uploads
        if file_id != path and not is_upload:
            raise _Damaged(f"the sent request of {label!r} has another file than the caller's")
    if attrs.evolve(sent, training_file=asked.training_file, validation_file=asked.validation_file) != asked:
        raise _Damaged(f"the sent request of {label!r} differs from the caller's")


def _checked(text: object) -> str:
    if not isinstance(text, str):
        raise _Damaged(f"{text!r} is not a text")
    return text


def _request(blob: bytes) -> FineTuneRequest:
    return structuring.read_request(structuring.loads(blob), FineTuneRequest)


def _check_log(log: bytes, database: Path) -> None:
    """Check the log of a database completely, because SQLite ignores everything from the first damaged frame on.

    See "The Write-Ahead Log" in https://www.sqlite.org/fileformat2.html.
    """
    with database.open("rb") as file:
        file.seek(18)
        if file.read(2) != _WAL_MODE:
            raise _Damaged("the file is not marked as having a log")
    order = _WAL_MAGIC.get(int.from_bytes(log[:4], "big"))
    if len(log) < 32 or order is None:
        raise _Damaged("the header of its log is missing")
    _, _, page_size, resets, *salts = struct.unpack(">6I", log[:24])
    checksum = _sum(order, (0, 0), log[:24])
    if checksum != struct.unpack(">2I", log[24:32]) or not page_size:
        raise _Damaged("the header of its log is damaged")
    rest = (len(log) - 32) % (24 + page_size)
    # A killed process may leave the header of a frame without its page, or a log that fills a block of the disk.
    if rest not in {0, 24} and len(log) % 512:
        raise _Damaged("its log is truncated")
    is_old = False
    for start in range(32, len(log) - 24 - page_size + 1, 24 + page_size):
        head, page = log[start : start + 24], log[start + 24 : start + 24 + page_size]
        *frame_salts, first, second = struct.unpack(">8x4I", head)
        if is_old or frame_salts != salts:
            # When the whole log is in the database, it is written from its start again. The frames behind are older.
            is_old = True
            if not 1 <= (salts[0] - frame_salts[0]) % (1 << 32) <= resets or frame_salts[1] == salts[1]:
                raise _Damaged(f"its log is damaged at byte {start}")
            continue
        checksum = _sum(order, _sum(order, checksum, head[:8]), page)
        if checksum != (first, second):
            raise _Damaged(f"its log is damaged at byte {start}")


def _sum(order: str, sums: tuple[int, int], data: bytes) -> tuple[int, int]:
    """Return the checksum of some bytes as SQLite computes it, starting from `sums`."""
    first, second = sums
    words = iter(struct.unpack(f"{order}{len(data) // 4}I", data))
    for word, next_word in zip(words, words, strict=True):
        first = (first + word + second) & 0xFFFFFFFF
        second = (second + next_word + first) & 0xFFFFFFFF
    return first, second
