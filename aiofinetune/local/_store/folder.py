"""The server's folder: who has it, whether all of it is there, and what in it is nobody's.

A folder that lost its database, or a part of it, holds files that nobody could name again: it is refused, and nothing
in it is changed. SQLite itself notices little of that. It takes a missing file for a new database; of a log whose end
is missing or damaged it silently drops what it cannot read, and a log that is gone was never there. So each transaction
that changes something is counted in the database, and the count is kept beside it as well: a database whose count is
lower has lost what a client was told of.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
import re
import shutil
import sqlite3
import tempfile
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Final

from aiofinetune import structuring
from aiofinetune.errors import ConfigurationError, FineTuneError, LocalFileError
from aiofinetune.models import FineTune

SCHEMA_VERSION: Final = 1

_DATABASE: Final = "server.sqlite3"
_COUNT: Final = "commits"
_UNKNOWN: Final = "unknown"
_OWN_NAME: Final = re.compile(r"(?:file|model|run)-[A-Za-z0-9]{24}(?:\.\w+)*")
"""Names that the store gives to files; the folder may hold others, which are none of its business."""

_log = logging.getLogger(__name__)


class Folder:
    """A folder, and what is where in it.

    Args:
        path: The folder; made if need be.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.database = path / _DATABASE
        self.files = path / "files"
        """Where the bytes of files are."""
        self.models = path / "models"
        """Where the weights of models are."""
        self.runs = path / "runs"
        """Where the orders of trainers are."""
        self._log = path / f"{_DATABASE}-wal"
        self._count = path / _COUNT
        self._counter = -1
        self._place: tuple[int, int] | None = None

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Have the folder for this process alone. The folder itself is locked: a file could be deleted meanwhile.

        Raises:
            ConfigurationError: Another server has it, or the system refuses it.
        """
        with contextlib.ExitStack() as stack:
            try:
                self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
                folder = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
                stack.callback(os.close, folder)
                try:
                    fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except OSError as error:
                    # NFS locks no folder: there SQLite's own lock is all that there is.
                    if error.errno != errno.EBADF:
                        raise
                # What servers of version 0 lock.
                with contextlib.suppress(FileNotFoundError):
                    fcntl.flock(stack.enter_context((self.path / "lock").open("rb")), fcntl.LOCK_EX | fcntl.LOCK_NB)
                stack.callback(self._close_counter)
            except BlockingIOError:
                raise ConfigurationError(f"data: another server is using {str(self.path)!r}") from None
            except OSError as error:
                raise self.unusable(error) from error
            yield

    @property
    def _parts(self) -> tuple[Path, ...]:
        return self.files, self.models, self.runs

    def make_parts(self) -> None:
        """Make the folders in it that are not there."""
        for part in self._parts:
            part.mkdir(mode=0o700, exist_ok=True)

    def unusable(self, error: Exception) -> ConfigurationError:
        """What to raise for a folder that the system, or SQLite, refuses."""
        return ConfigurationError(f"data: {str(self.path)!r} cannot be used: {error}")

    def check(self) -> bool:
        """Check that the folder is whole, and change nothing in it; give whether it is new.

        Raises:
            ConfigurationError: Its database, or a part of it, is missing, damaged, another program's, or of another
                version.
        """
        kept = self._count_kept()
        try:
            with self._copied() as copy:
                is_new = not copy.exists() or copy.stat().st_size == 0
                if not is_new:
                    with contextlib.closing(sqlite3.connect(f"{copy.as_uri()}?mode=rw", uri=True)) as database:
                        is_new = self._check_database(database, kept)
        except (sqlite3.Error, FineTuneError, ValueError) as error:
            if isinstance(error, ConfigurationError):
                raise
            raise self._damaged(f"the database cannot be read: {error}") from error
        except OSError as error:
            raise self.unusable(error) from error
        if is_new and (kept or self._own_files()):
            raise self._damaged("the database, or its log, is missing, and the folder holds files that it named")
        return is_new

    @contextlib.contextmanager
    def _copied(self) -> Iterator[Path]:
        """A copy of the database and its log, for SQLite to read: of the originals it may drop what it cannot read."""
        with tempfile.TemporaryDirectory(prefix="aiofinetune-") as folder:
            copy = Path(folder) / _DATABASE
            for original, target in ((self.database, copy), (self._log, copy.with_name(self._log.name))):
                with contextlib.suppress(FileNotFoundError):
                    shutil.copyfile(original, target)
            yield copy

    def _check_database(self, database: sqlite3.Connection, kept: int) -> bool:
        ((version,),) = database.execute("PRAGMA user_version")
        tables = {name for (name,) in database.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")}
        if not version and not tables:
            return True
        if version != SCHEMA_VERSION or not {"files", "jobs", "events", "models"} <= tables:
            raise ConfigurationError(
                f"data: {str(self.path)!r} is of schema version {version}, and this server reads version"
                f" {SCHEMA_VERSION}; use another folder"
            )
        for (problem,) in database.execute("PRAGMA integrity_check"):
            if problem != "ok":
                raise self._damaged(f"the database is damaged: {problem}")
        for (record,) in database.execute("SELECT record FROM jobs"):
            structuring.read_reply(record, FineTune)
        count = 0
        if "commits" in tables:
            ((count,),) = database.execute("SELECT coalesce(max(count), 0) FROM commits")
        if not isinstance(count, int) or count < kept:
            raise self._damaged(f"the database has {count} of the {kept} changes that were made to it")
        return False

    def _damaged(self, problem: str) -> ConfigurationError:
        return ConfigurationError(
            f"data: {str(self.path)!r} is not whole: {problem}. Nothing in it was changed. Bring back {_DATABASE}, and"
            f" {self._log.name} if there was one, as they were together; use another folder; or, to give up what is"
            f" missing, move aside what is left, or delete {str(self._count)!r} where only the last changes are missing"
        )

    def _count_kept(self) -> int:
        """How many changes the database must hold, at least."""
        try:
            text = self._count.read_bytes()
        except FileNotFoundError:
            return 0
        except OSError as error:
            raise self.unusable(error) from error
        # A machine that lost its power may have lost this too: no count is no reason to refuse a whole database.
        return int(text) if re.fullmatch(rb"[0-9]{20}\n", text) else 0

    def keep_count(self, count: int) -> None:
        """Keep how many changes the database holds. Nobody waits for the disk: the changes are there already."""
        # In place, and of one length: there is a count at any moment.
        with contextlib.suppress(OSError):
            if self._counter < 0:
                self._counter = os.open(self._count, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
            os.pwrite(self._counter, b"%020d\n" % count, 0)

    def note_place(self) -> None:
        """Remember which database this is, once it is open."""
        self._place = _place(self.database)

    def check_place(self) -> None:
        """Check that what is written will be there at the next start.

        Raises:
            LocalFileError: The database was deleted, moved or replaced.
        """
        if self._place is not None and self._place != _place(self.database):
            raise LocalFileError(
                f"{self.database} was deleted, moved or replaced while the server had it open; stop the server, and put"
                " back the folder as it was"
            )

    def _close_counter(self) -> None:
        if self._counter >= 0:
            os.close(self._counter)
            self._counter = -1

    def _own_files(self) -> list[Path]:
        found = []
        for part in self._parts:
            with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                found += [path for path in part.iterdir() if _OWN_NAME.fullmatch(path.name)]
        return found

    def set_aside(self, known: Collection[str]) -> None:
        """Move files of ours that the database does not know to a folder of their own, and name them in the log.

        A process that is killed leaves some: uploads and models that were not finished, and what was being deleted.
        """
        for path in self._own_files():
            if path.name not in known:
                target = _free(self.path / _UNKNOWN / path.name)
                path.rename(target)
                _log.warning("%s is in no record of this server: it was moved to %s", path, target)

    def report_missing(self, known: Collection[str]) -> None:
        """Name in the log the files that the database knows and that are not there."""
        there = {path.name for path in self._own_files()}
        for name in sorted(set(known) - there):
            _log.warning("%s: the file %s is missing; bring it back, or delete what it belongs to", self.path, name)


def sync_folder(folder: Path) -> None:
    """Bring the names in a folder to the disk, as POSIX has it: the file's own fsync does not."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _place(path: Path) -> tuple[int, int] | None:
    """What tells a file from another of the same name; None where there is none."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _free(path: Path) -> Path:
    """A path at which there is nothing."""
    path.parent.mkdir(mode=0o700, exist_ok=True)
    number = 0
    target = path
    while target.exists() or target.is_symlink():
        number += 1
        target = path.with_name(f"{path.name}.{number}")
    return target
