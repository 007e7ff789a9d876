"""The file of a journal: a header, and lines that are only added, never changed.

::

    aiofinetune journal 3 00000000000000000266 9c33cd1b49a8a2b6acc3f8f0b29e6a55
    1b7af4ae8c6d3c0b9a3d1f7d5a5b8b0e {"note":"open","base_url":"https://api.example.org/v1",…}
    9c33cd1b49a8a2b6acc3f8f0b29e6a55 {"note":"intend","label":"1","attempt":1,"sent":{"training_file":"file-1"},…}

Each line begins with a digest of its text and of the previous digest, so that a line that is changed, removed or moved
is noticed. The header contains the end of the last line and its digest, so that a truncated file is noticed too.

`JournalFile.add` returns when its lines are on the disk and the header counts them. If the process is killed during an
`add`, the file may contain lines that the header does not count. They are valid if their digests are correct. The last
of them may be incomplete; nothing depends on it yet. The header itself is flushed to the disk by the next `add`, so
after a power failure it may count one `add` too few, but never too many.

A file of version 2 differs in its notes alone, which know no attempts. The first `add` makes it one of version 3.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import re
import stat
from collections.abc import Generator, Iterable, Iterator
from pathlib import Path
from typing import BinaryIO, Final

from aiofinetune.errors import JournalUnusable

_HEADER: Final = re.compile(rb"aiofinetune journal [23] (\d{20}) ([0-9a-f]{32})\n")
_OTHER_VERSION: Final = re.compile(rb"aiofinetune journal (?![23] )\d+ ")
_HEADER_BYTES: Final = len("aiofinetune journal 3 \n") + 20 + 1 + 32
_FIRST_DIGEST: Final = b"0" * 32
_VERSION_1: Final = b"SQLite format 3\0"
"""The first bytes of a journal of version 1."""
_NOT_OLDER: Final = " (an older one lacks the last jobs, and a run with it makes them again)"

# macOS has no fdatasync.
_sync = getattr(os, "fdatasync", os.fsync)


class JournalFile:
    """The file of a journal, locked by this process while it is open. All methods block.

    There are two locks, one for the path and one for the file. The first is still held if the file is deleted, the
    second if it is moved.

    Args:
        path: The path of the file, which is created if it does not exist.
    """

    def __init__(self, path: Path) -> None:
        self.name = str(path)
        self._path = self._target = path
        self._lock = self._file = -1
        self._end = 0
        self._digest = _FIRST_DIGEST

    def open(self) -> None:
        """Open and lock the file. Call `lines` next, or `replace` if the journal is of version 1.

        Raises:
            JournalUnusable: The file is not a journal.
            BlockingIOError: Another process uses the file.
            OSError: The file cannot be opened or created.
        """
        self._path = self._path.absolute()
        self._target = Path(os.path.realpath(self._path))
        self._lock = _lock_file(self._beside("lock"))
        try:
            self._open()
        except FileNotFoundError:
            if self.log.exists():
                raise JournalUnusable(
                    f"{self.name}: is missing, but its log exists ({self.log}); restore the journal beside the log"
                ) from None
            self.replace(())

    def _open(self) -> None:
        # It is opened without blocking, because it may be a pipe.
        self._file = os.open(self._target, os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
        status = os.fstat(self._file)
        if not stat.S_ISREG(status.st_mode):
            raise JournalUnusable(f"{self.name}: is not a regular file")
        fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if status.st_size == 0:
            # A copy onto a full disk looks like this.
            raise JournalUnusable(
                f"{self.name}: is empty, so it is not a journal; restore the previous file, or delete this one to start"
                " a new batch"
            )

    @property
    def is_version_1(self) -> bool:
        """Whether the file is a journal of version 1, or another SQLite database."""
        return is_version_1(self._file)

    @property
    def target(self) -> Path:
        """The path of the file with all symbolic links resolved."""
        return self._target

    @property
    def log(self) -> Path:
        """The path of the log of a journal of version 1."""
        return log_of(self._target)

    def fileno(self) -> int:
        """Return the file descriptor."""
        return self._file

    def lines(self) -> Iterator[bytes]:
        """Yield the text of each line. After the last one, `add` can be called.

        Raises:
            JournalUnusable: The file is not a journal, or it is damaged. The lines that were yielded are then invalid.
        """
        with open(self._file, "rb", closefd=False) as file:
            file.seek(0)
            counted, end, digest = yield from read_lines(file, self.name)
        if counted < end:
            _sync(self._file)
            _write(self._file, _header(end, digest), 0)
        # The rest is part of a line that was being written when the process ended.
        os.ftruncate(self._file, end)
        self._end, self._digest = end, digest

    def check_place(self) -> None:
        """Check that the file is still at the path where this process opened it.

        Raises:
            JournalUnusable: The file was deleted, moved or replaced.
        """
        if not _is_at(self._file, self._path):
            raise JournalUnusable(
                f"{self.name}: is no longer the file that this batch started with, which was deleted, moved or"
                " replaced; restore it before you run the batch again"
            )

    def has_running_twin(self, path: Path) -> bool:
        """Return whether a running batch uses the file at a path, and this file is a copy of it."""
        try:
            if not path.is_file():
                return False
            with path.open("rb") as file:
                starts = [os.pread(number, _HEADER_BYTES + 4096, 0) for number in (file.fileno(), self._file)]
                # The headers may differ. The first line contains the time and the path of the journal's creation.
                first, own = (start[_HEADER_BYTES:].partition(b"\n")[0] for start in starts)
                if first == own:
                    fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except (OSError, ValueError):
            pass
        return False

    def add(self, texts: Iterable[bytes]) -> None:
        """Add all of the lines or none, and return when they are on the disk.

        Raises:
            JournalUnusable: Another process has changed or deleted the file.
            OSError: The lines cannot be written.
        """
        status = os.fstat(self._file)
        if status.st_nlink == 0:
            raise JournalUnusable(f"{self.name}: was deleted while this batch was running")
        if status.st_size != self._end:
            raise JournalUnusable(f"{self.name}: was changed by another program while this batch was running")
        data, digest = _lines(self._digest, texts)
        end = self._end + len(data)
        try:
            _write(self._file, data, self._end)
            _sync(self._file)
            _write(self._file, _header(end, digest), 0)
        except OSError:
            with contextlib.suppress(OSError):
                os.ftruncate(self._file, self._end)
            raise
        self._end, self._digest = end, digest

    def replace(self, texts: Iterable[bytes]) -> None:
        """Create the file or replace it in one step, so that it is never incomplete."""
        data, digest = _lines(_FIRST_DIGEST, texts)
        before, mode = self._file, 0o666
        if before >= 0:
            mode = stat.S_IMODE(os.fstat(before).st_mode)
        new_path = self._beside("new")
        new_path.unlink(missing_ok=True)
        new = os.open(new_path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
        try:
            fcntl.flock(new, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _write(new, _header(_HEADER_BYTES + len(data), digest) + data, 0)
            os.fsync(new)
            new_path.rename(self._target)
        except OSError:
            os.close(new)
            with contextlib.suppress(OSError):
                new_path.unlink()
            raise
        self._file = new
        if before >= 0:
            os.close(before)
        _sync_folder(self._target.parent)

    def close(self) -> None:
        """Close and unlock the file."""
        if self._file >= 0:
            with contextlib.suppress(OSError):
                # Flush the header.
                os.fsync(self._file)
            os.close(self._file)
        if self._lock >= 0:
            with contextlib.suppress(OSError):
                if _is_at(self._lock, self._beside("lock")):
                    self._beside("lock").unlink()
            os.close(self._lock)
        self._file = self._lock = -1

    def _beside(self, what: str) -> Path:
        """Return the path of a hidden file beside this one, which ``rm sweep.journal*`` does not delete."""
        return self._target.with_name(f".{self._target.name}.{what}")


def is_version_1(file: int) -> bool:
    """Return whether an open file is a journal of version 1, or another SQLite database."""
    return os.pread(file, len(_VERSION_1), 0) == _VERSION_1


def log_of(path: Path) -> Path:
    """Return the path of the log of a journal of version 1."""
    return path.with_name(f"{path.name}-wal")


def is_in_use(file: int) -> bool:
    """Return whether a running batch has locked an open journal."""
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    fcntl.flock(file, fcntl.LOCK_UN)
    return False


def is_journal(path: Path) -> bool:
    """Return whether a file begins like a journal of any version.

    Raises:
        OSError: The file cannot be read.
    """
    with path.open("rb") as file:
        start = file.read(_HEADER_BYTES)
    return start.startswith(_VERSION_1) or bool(_HEADER.match(start) or _OTHER_VERSION.match(start))


def read_lines(file: BinaryIO, name: str) -> Generator[bytes, None, tuple[int, int, bytes]]:
    """Yield the text of each line of a journal, which is neither locked nor changed; a batch may be writing to it.

    Args:
        file: The file, at its beginning.
        name: Its name, for messages.

    Returns:
        The end that the header counts, that of the last line, and the digest of that line.

    Raises:
        JournalUnusable: The file is not a journal, or it is damaged. The lines that were yielded are then invalid.
        OSError: The file cannot be read.
    """
    counted = _read_header(file.readline(_HEADER_BYTES), name)
    digest, end = _FIRST_DIGEST, _HEADER_BYTES
    is_whole = counted == (end, digest)
    for number, line in enumerate(file, 2):
        if not line.endswith(b"\n"):
            break
        text = line[33:-1]
        digest = _digest(digest, text)
        if line[:33] != digest + b" ":
            raise JournalUnusable(f"{name}: is damaged in line {number}; restore an intact copy{_NOT_OLDER}")
        end += len(line)
        is_whole = is_whole or counted == (end, digest)
        yield text
    if not is_whole:
        raise JournalUnusable(
            f"{name}: is damaged: some of the {counted[0]} bytes that were written are missing; restore the complete"
            f" file{_NOT_OLDER}"
        )
    return counted[0], end, digest


def _read_header(header: bytes, name: str) -> tuple[int, bytes]:
    found = _HEADER.fullmatch(header)
    if found is not None:
        return int(found[1]), found[2]
    if _OTHER_VERSION.match(header):
        raise JournalUnusable(f"{name}: is not a journal of this version")
    raise JournalUnusable(f"{name}: is not a journal, or it is damaged")


def _lock_file(path: Path) -> int:
    """Open a file, or create it, and lock it."""
    while True:
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_at(file, path):
                return file
        except OSError:
            os.close(file)
            raise
        # The process that held the lock has deleted the file, so this lock is worthless.
        os.close(file)


def _is_at(file: int, path: Path) -> bool:
    """Return whether the file at a path is an open file."""
    try:
        return os.path.samestat(path.stat(), os.fstat(file))
    except OSError:
        return False


def _digest(before: bytes, text: bytes) -> bytes:
    return hashlib.sha256(before + text).hexdigest()[:32].encode()


def _header(end: int, digest: bytes) -> bytes:
    return b"aiofinetune journal 3 %020d %b\n" % (end, digest)


def _lines(digest: bytes, texts: Iterable[bytes]) -> tuple[bytes, bytes]:
    """Return the lines of some texts, which follow a line with `digest`, and the digest of the last line."""
    lines = bytearray()
    for text in texts:
        digest = _digest(digest, text)
        lines += b"%b %b\n" % (digest, text)
    return bytes(lines), digest


def _write(file: int, data: bytes, at: int) -> None:
    view = memoryview(data)
    while view:
        written = os.pwrite(file, view, at)
        view, at = view[written:], at + written


def _sync_folder(path: Path) -> None:
    """Flush the names of the files in a folder to the disk."""
    folder = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
