"""The file of a journal: a header, and lines that are only ever added.

::

    aiofinetune journal 2 00000000000000000266 9c33cd1b49a8a2b6acc3f8f0b29e6a55
    1b7af4ae8c6d3c0b9a3d1f7d5a5b8b0e {"note":"open","base_url":"https://api.example.org/v1",…}
    9c33cd1b49a8a2b6acc3f8f0b29e6a55 {"note":"intend","label":"1","sent":{"training_file":"file-1"},…}

Each line begins with a digest of its text and of the digest before, so no line can be changed, dropped or moved. The
header says where the last line ends, and its digest, so a file that was cut is not taken for a shorter one.

`JournalFile.add` returns when its lines are on the disk and the header counts them. A process that is killed leaves
the file as it was before an `add` or after it, or between the two with lines that the header does not count: they are
good if their digests are, and the last may be incomplete, for nothing was done yet that depends on it. The header
itself reaches the disk with the next `add`. So after a power failure it may count one `add` too few, never too many.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import re
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

from aiofinetune.errors import JournalUnusable

_HEADER: Final = re.compile(rb"aiofinetune journal 2 (\d{20}) ([0-9a-f]{32})\n")
_OTHER_VERSION: Final = re.compile(rb"aiofinetune journal (?!2 )\d+ ")
_HEADER_BYTES: Final = len("aiofinetune journal 2 \n") + 20 + 1 + 32
_FIRST_DIGEST: Final = b"0" * 32
_VERSION_1: Final = b"SQLite format 3\0"
"""What a journal of version 1 begins with."""

# Not on macOS.
_sync = getattr(os, "fdatasync", os.fsync)


class JournalFile:
    """The file of a journal, locked by this process while it is open. All methods block.

    There are two locks, for the path and for the file: one holds when the file is deleted, the other when it is moved.

    Args:
        path: Where it is; made if need be.
    """

    def __init__(self, path: Path) -> None:
        self.name = str(path)
        self._path = self._target = path
        self._lock = self._file = -1
        self._end = 0
        self._digest = _FIRST_DIGEST

    def open(self) -> None:
        """Open and lock it. `lines` is due next, or `replace` if it is of version 1.

        Raises:
            JournalUnusable: It is no journal.
            BlockingIOError: Another process has it.
            OSError: It cannot be opened or made.
        """
        self._path = self._path.absolute()
        self._target = Path(os.path.realpath(self._path))
        self._lock = _lock_file(self._beside("lock"))
        try:
            self._open()
        except FileNotFoundError:
            if self.log.exists():
                raise JournalUnusable(
                    f"{self.name}: is missing, and its log is there ({self.log}); bring it back beside the log"
                ) from None
            self.replace(())

    def _open(self) -> None:
        # Not blocking: it may be a pipe.
        self._file = os.open(self._target, os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
        status = os.fstat(self._file)
        if not stat.S_ISREG(status.st_mode):
            raise JournalUnusable(f"{self.name}: is no journal, for it is no regular file")
        fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if status.st_size == 0:
            # A copy onto a full disk looks like this.
            raise JournalUnusable(
                f"{self.name}: is empty, which no journal is; bring back the one that was here, or delete this file to"
                " begin a new batch"
            )

    @property
    def is_version_1(self) -> bool:
        """Whether it is a journal of version 1, or another SQLite database."""
        return os.pread(self._file, len(_VERSION_1), 0) == _VERSION_1

    @property
    def target(self) -> Path:
        """Its path, all symbolic links resolved."""
        return self._target

    @property
    def log(self) -> Path:
        """Where a journal of version 1 has its log."""
        return self._target.with_name(f"{self._target.name}-wal")

    def fileno(self) -> int:
        """Return its descriptor."""
        return self._file

    def lines(self) -> Iterator[bytes]:
        """Give the text of each line, and find the end, after which `add` adds. To be read to the end.

        Raises:
            JournalUnusable: It is no journal, or it is damaged. Lines that were given before are worth nothing then.
        """
        with open(self._file, "rb", closefd=False) as file:
            file.seek(0)
            counted = self._read_header(file.readline(_HEADER_BYTES))
            digest, end = _FIRST_DIGEST, _HEADER_BYTES
            is_whole = counted == (end, digest)
            for number, line in enumerate(file, 2):
                if not line.endswith(b"\n"):
                    break
                text = line[33:-1]
                digest = _digest(digest, text)
                if line[:33] != digest + b" ":
                    raise JournalUnusable(f"{self.name}: is damaged in line {number}; bring back a copy that is not")
                end += len(line)
                is_whole = is_whole or counted == (end, digest)
                yield text
        if not is_whole:
            raise JournalUnusable(
                f"{self.name}: is damaged: not all of the {counted[0]} bytes that were written are there; bring back"
                " the whole file"
            )
        if counted[0] < end:
            _sync(self._file)
            _write(self._file, _header(end, digest), 0)
        # What is behind the last line was being added when its process ended.
        os.ftruncate(self._file, end)
        self._end, self._digest = end, digest

    def _read_header(self, header: bytes) -> tuple[int, bytes]:
        found = _HEADER.fullmatch(header)
        if found is not None:
            return int(found[1]), found[2]
        if _OTHER_VERSION.match(header):
            raise JournalUnusable(f"{self.name}: is no journal of this version")
        raise JournalUnusable(f"{self.name}: is no journal, or a damaged one")

    def check_place(self) -> None:
        """Check that the file is still where this process found it.

        Raises:
            JournalUnusable: It was deleted, moved or replaced.
        """
        if not _is_at(self._file, self._path):
            raise JournalUnusable(
                f"{self.name}: is no longer the file that this batch began with, which was deleted, moved or replaced;"
                " bring it back before you run the batch again"
            )

    def has_running_twin(self, path: Path) -> bool:
        """Whether the file at a path is the same journal as this one, which was copied, and a batch runs with it."""
        try:
            if not path.is_file():
                return False
            with path.open("rb") as file:
                starts = [os.pread(number, _HEADER_BYTES + 4096, 0) for number in (file.fileno(), self._file)]
                # What the header counts differs. The first line says when the journal was made, and where.
                first, own = (start[_HEADER_BYTES:].partition(b"\n")[0] for start in starts)
                if first == own:
                    fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except (OSError, ValueError):
            pass
        return False

    def add(self, texts: Iterable[bytes]) -> None:
        """Add lines, and return when they are on the disk; all of them, or none.

        Raises:
            JournalUnusable: Another process has changed or deleted the file.
            OSError: They cannot be written.
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
        """Put a new file in place of this one, or of none, in one step: it is there whole or not at all."""
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
        """Close it; it can be opened again, here or elsewhere."""
        if self._file >= 0:
            with contextlib.suppress(OSError):
                # The header.
                os.fsync(self._file)
            os.close(self._file)
        if self._lock >= 0:
            with contextlib.suppress(OSError):
                if _is_at(self._lock, self._beside("lock")):
                    self._beside("lock").unlink()
            os.close(self._lock)
        self._file = self._lock = -1

    def _beside(self, what: str) -> Path:
        """A hidden file beside it, which ``rm sweep.journal*`` leaves alone."""
        return self._target.with_name(f".{self._target.name}.{what}")


def _lock_file(path: Path) -> int:
    """Make a file if need be, and lock it."""
    while True:
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_at(file, path):
                return file
        except OSError:
            os.close(file)
            raise
        # Who had it before has deleted it meanwhile.
        os.close(file)


def _is_at(file: int, path: Path) -> bool:
    """Whether a path leads to an open file."""
    try:
        return os.path.samestat(path.stat(), os.fstat(file))
    except OSError:
        return False


def _digest(before: bytes, text: bytes) -> bytes:
    return hashlib.sha256(before + text).hexdigest()[:32].encode()


def _header(end: int, digest: bytes) -> bytes:
    return b"aiofinetune journal 2 %020d %b\n" % (end, digest)


def _lines(digest: bytes, texts: Iterable[bytes]) -> tuple[bytes, bytes]:
    """Give lines of these texts that follow a line of a digest, and the digest of the last."""
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
    """Let the names of the files in a folder reach the disk."""
    folder = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
