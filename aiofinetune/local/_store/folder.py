"""The server's folder: its lock, the checks that it is complete, and the files in it that no record names.

If a folder has lost its database, or a part of it, it contains files that no record names any more. Such a folder is
refused, and nothing in it is changed. SQLite itself does not notice most of this: it treats a missing file as a new
database, silently drops the part of a log that it cannot read, and does not miss a log that was deleted. So the
database counts each transaction that changes something, and a file beside it keeps the count too. If the count in the
database is lower than in that file, changes are lost that a client already knows of.
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
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Final

from aiofinetune import structuring
from aiofinetune.errors import ConfigurationError, FineTuneError, LocalFileError
from aiofinetune.models import FineTune

SCHEMA_VERSION: Final = 1

_DATABASE: Final = "server.sqlite3"
_COUNT: Final = "commits"
_UNKNOWN: Final = "unknown"
_OWN_NAME: Final = re.compile(r"(?:file-|model-|checkpoint-|run-|part_)([A-Za-z0-9]{24})(?:\.\w+)*")
"""The names of files that the store creates. It ignores all others in the folder."""

_log = logging.getLogger(__name__)


class Folder:
    """The folder, and the paths in it.

    Args:
        path: The folder; it is created if it does not exist.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.database = path / _DATABASE
        self.files = path / "files"
        """The folder of the files' bytes."""
        self.models = path / "models"
        """The folder of the models' weights."""
        self.runs = path / "runs"
        """The folder of the trainers' input."""
        self.parts = path / "parts"
        """The folder of the parts of uploads."""
        self._log = path / f"{_DATABASE}-wal"
        self._count = path / _COUNT
        self._counter = -1
        self._place: tuple[int, int] | None = None

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Return a context manager that locks the folder for this process.

        The folder itself is locked, because a lock file could be deleted in the meantime.

        Raises:
            ConfigurationError: Another server uses the folder, or the system denies access to it.
        """
        with contextlib.ExitStack() as stack:
            try:
                self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
                folder = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
                stack.callback(os.close, folder)
                try:
                    fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except OSError as error:
                    # NFS cannot lock folders. There, only SQLite's own lock protects the database.
                    if error.errno != errno.EBADF:
                        raise
                # Servers of version 0 lock this file.
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
        return self.files, self.models, self.runs, self.parts

    def make_parts(self) -> None:
        """Create the folders in it that do not exist."""
        for part in self._parts:
            part.mkdir(mode=0o700, exist_ok=True)

    def unusable(self, error: Exception) -> ConfigurationError:
        """Return the error to raise if the system or SQLite cannot use the folder."""
        return ConfigurationError(f"data: {str(self.path)!r} cannot be used: {error}")

    def check(self) -> bool:
        """Check that the folder is complete without changing anything in it, and return whether it is new.

        Raises:
            ConfigurationError: The database, or a part of it, is missing or damaged, or it belongs to another program
                or another version.
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
            raise self._damaged("the database or its log is missing, but the folder contains files that it recorded")
        return is_new

    @contextlib.contextmanager
    def _copied(self) -> Iterator[Path]:
        """Copy the database and its log for SQLite, which may drop parts of the originals that it cannot read."""
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
                f"data: {str(self.path)!r} has schema version {version}, but this server reads version"
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
            raise self._damaged(f"the database contains only {count} of {kept} changes")
        return False

    def _damaged(self, problem: str) -> ConfigurationError:
        return ConfigurationError(
            f"data: {str(self.path)!r} is incomplete: {problem}. Nothing in it was changed. Restore {_DATABASE}, and"
            f" {self._log.name} if it existed, from the same moment, or use another folder. To continue without the"
            f" missing data, move the rest aside; if only the last changes are missing, delete {str(self._count)!r}"
        )

    def _count_kept(self) -> int:
        """Return the least number of changes that the database must contain."""
        try:
            text = self._count.read_bytes()
        except FileNotFoundError:
            return 0
        except OSError as error:
            raise self.unusable(error) from error
        # A power failure may damage the count itself, which is no reason to refuse an intact database.
        return int(text) if re.fullmatch(rb"[0-9]{20}\n", text) else 0

    def keep_count(self, count: int) -> None:
        """Write the number of changes in the database. This is not flushed to the disk, as the changes already are."""
        # It is overwritten in place with the same length, so that the file always contains a count.
        with contextlib.suppress(OSError):
            if self._counter < 0:
                self._counter = os.open(self._count, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
            os.pwrite(self._counter, b"%020d\n" % count, 0)

    def note_place(self) -> None:
        """Remember which file the open database is."""
        self._place = _place(self.database)

    def check_place(self) -> None:
        """Check that the database is still in its place, so that the next start finds what is written to it.

        Raises:
            LocalFileError: The database was deleted, moved or replaced.
        """
        if self._place is not None and self._place != _place(self.database):
            raise LocalFileError(
                f"{self.database} was deleted, moved or replaced while the server was using it; stop the server and"
                " restore the folder"
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

    def set_aside(
        self, known: Collection[str], is_running: Callable[[str], bool | None], is_attempt: Callable[[str], bool]
    ) -> None:
        """Move the store's files that the database does not know to a separate folder, and log their names.

        A killed process leaves such files: unfinished uploads and models, and files that were being deleted.

        Args:
            known: The names of files that the database knows.
            is_running: Returns whether the attempt on another machine runs whose files have this in their names; None
                if there is no such attempt. Files of attempts that run stay; those of others are removed, because only
                files that are known are needed of an attempt that is over.
            is_attempt: Returns whether the files of an attempt, on any machine, have this in their names. What an
                attempt on this machine left unfinished is removed, because its job begins again.
        """
        for path in self._own_files():
            own = _OWN_NAME.fullmatch(path.name)
            if path.name in known or own is None or (runs := is_running(own[1])):
                continue
            if runs is False or (_is_unfinished(path) and is_attempt(own[1])):
                path.unlink()
                continue
            target = _free(self.path / _UNKNOWN / path.name)
            path.rename(target)
            _log.warning("no record of this server names %s; moved it to %s", path, target)

    def report_missing(self, known: Collection[str]) -> None:
        """Log the names of files that the database knows but that do not exist."""
        there = {path.name for path in self._own_files()}
        for name in sorted(set(known) - there):
            _log.warning("%s: the file %s is missing; restore it, or delete that file or model", self.path, name)


def _is_unfinished(path: Path) -> bool:
    """Return whether a file of an attempt is the trainer's input, or was never completed."""
    return path.is_file() and (path.name.startswith("run-") or path.name.endswith(".partial"))


def sync_folder(folder: Path) -> None:
    """Flush the names in a folder to the disk. POSIX does not require that fsync of a file does this."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _place(path: Path) -> tuple[int, int] | None:
    """Return what distinguishes a file from others with the same name; None if there is no file."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _free(path: Path) -> Path:
    """Return a path that does not exist, `path` itself if possible; create its folder."""
    path.parent.mkdir(mode=0o700, exist_ok=True)
    number = 0
    target = path
    while target.exists() or target.is_symlink():
        number += 1
        target = path.with_name(f"{path.name}.{number}")
    return target
