"""The store's files: those that clients upload, and the results of jobs."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import threading
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Executor
from pathlib import Path
from typing import BinaryIO, Final, TypeVar

from aiofinetune._sqlite import transaction
from aiofinetune._threads import in_thread
from aiofinetune.local._engines.training_files import TrainingError, read_file
from aiofinetune.local._store.database import StoreDatabase, new_id, now
from aiofinetune.local._store.folder import sync_folder
from aiofinetune.local._store.refused import Refused, refuse_if_needed
from aiofinetune.models import File

T = TypeVar("T")

PURPOSE: Final = "fine-tune"
MAX_FILE_BYTES: Final = 1 << 30


class FileStore:
    """The files. A file gets its row when all its bytes are on the disk, and keeps it as long as a job needs the file.

    Args:
        database: The store's database.
        folder: The folder of the files' bytes.
        threads: The threads for blocking work.
    """

    def __init__(self, database: StoreDatabase, folder: Path, threads: Executor) -> None:
        self.database = database
        self._folder = folder
        self._threads = threads
        self._examples: dict[tuple[str, str, int | None], int | TrainingError] = {}
        """The number of examples in each file that a job was created with, or why it was refused, by id, role and
        length of the longest completion."""
        self._reading: dict[tuple[str, str, int | None], asyncio.Lock] = {}

    @contextlib.asynccontextmanager
    async def receive(self, file_id: str | None = None) -> AsyncIterator[Incoming]:
        """Return a context manager that receives a file piece by piece, and removes it unless `keep` is called.

        Args:
            file_id: The id that the file will have; by default a new one.
        """
        incoming = Incoming(file_id or new_id("file-"), self._folder)
        try:
            await self._in_thread(incoming.open)
            yield incoming
        finally:
            await self._in_thread(incoming.discard)

    async def keep(
        self, incoming: Incoming, filename: str, purpose: str, also: Callable[[File], object] = lambda _file: None
    ) -> File:
        """Add a file that was received completely.

        Args:
            incoming: The received file.
            filename: Its name.
            purpose: Its purpose.
            also: Called with the file in the same transaction; if it raises an exception, the file is not added.
        """
        await self._in_thread(incoming.seal)
        file = _file(incoming.id, filename, purpose, incoming.size, now())
        try:
            await self._adopt(incoming, file, also)
        except Exception:
            # On a full disk the row may have failed although the file was renamed.
            await self._in_thread(incoming.unsettle)
            raise
        return file

    @transaction
    def _adopt(self, incoming: Incoming, file: File, also: Callable[[File], object] = lambda _file: None) -> None:
        incoming.settle()
        self._insert(file)
        also(file)

    @transaction
    def list(self, purpose: str | None = None) -> tuple[File, ...]:
        """Return the files, oldest first; if `purpose` is given, only those with that purpose."""
        rows = self.database.execute(
            "SELECT id, filename, purpose, bytes, created_at FROM files WHERE purpose = coalesce(?, purpose)"
            " ORDER BY number",
            (purpose,),
        )
        return tuple(_file(*row) for row in rows)

    @transaction
    def get(self, file_id: str) -> File:
        """Return one file, or refuse with 404."""
        return self.find(file_id)

    @transaction
    def with_checksum(self, sha256: str, purpose: str) -> File | None:
        """Return a file of this content and purpose, if one has come with its checksum."""
        row = self.database.execute(
            "SELECT id, filename, purpose, bytes, created_at FROM files JOIN checksums ON file = id"
            " WHERE sha256 = ? AND purpose = ? ORDER BY number LIMIT 1",
            (sha256, purpose),
        ).fetchone()
        return None if row is None else _file(*row)

    def path(self, file_id: str) -> Path:
        """Return the path of a file's bytes."""
        return self._folder / file_id

    @contextlib.asynccontextmanager
    async def reading(self, file_id: str) -> AsyncIterator[BinaryIO]:
        """Return a context manager of an open file; refuse with 404 if the file was deleted in the meantime."""
        try:
            handle = await self._in_thread(lambda: self.path(file_id).open("rb"))
        except FileNotFoundError:
            raise _no_file(file_id) from None
        try:
            yield handle
        finally:
            await self._in_thread(handle.close)

    async def count_examples(self, file_id: str, role: str, max_completion_bytes: int | None) -> int:
        """Return the number of examples in a file; refuse with 400 what a trainer would, in the same words.

        A file is read once, however many jobs are created with it; 0 is returned if it was deleted in the meantime.

        Args:
            file_id: The file.
            role: What the file is for: ``"training"`` or ``"validation"``.
            max_completion_bytes: The length of the longest completion in UTF-8; None for no limit.
        """
        key = (file_id, role, max_completion_bytes)
        async with self._reading.setdefault(key, asyncio.Lock()):
            found = self._examples.get(key)
            if found is None:
                found = self._examples[key] = await self._read_examples(*key)
        if isinstance(found, TrainingError):
            raise Refused(400, str(found), param=found.param)
        return found

    async def _read_examples(self, file_id: str, role: str, max_completion_bytes: int | None) -> int | TrainingError:
        stopped = threading.Event()
        try:
            # On another thread than those for files: reading a file of a gigabyte takes a while.
            return await asyncio.to_thread(_count_examples, self.path(file_id), role, max_completion_bytes, stopped)
        except TrainingError as error:
            return error
        finally:
            stopped.set()

    async def delete(self, file_id: str) -> None:
        """Delete a file; refuse if a job that is not over needs it."""
        await self._forget(file_id)
        for key in [key for key in self._reading if key[0] == file_id]:
            self._examples.pop(key, None)
            self._reading.pop(key, None)
        await self._in_thread(lambda: self.path(file_id).unlink(missing_ok=True))

    @transaction
    def _forget(self, file_id: str) -> None:
        self.find(file_id)
        refuse_if_needed(self.database, "file", file_id)
        self.database.execute("DELETE FROM files WHERE id = ?", (file_id,))
        self.database.execute("DELETE FROM checksums WHERE file = ?", (file_id,))

    async def _in_thread(self, call: Callable[[], T]) -> T:
        return await in_thread(self._threads, call)

    # In a transaction

    def find(self, file_id: str) -> File:
        """Return one file, or refuse with 404."""
        row = self.database.execute(
            "SELECT id, filename, purpose, bytes, created_at FROM files WHERE id = ?", (file_id,)
        ).fetchone()
        if row is None:
            raise _no_file(file_id)
        return _file(*row)

    def note_checksum(self, file_id: str, sha256: str) -> None:
        """Note the checksum that a file came with."""
        self.database.execute("INSERT OR REPLACE INTO checksums (file, sha256) VALUES (?, ?)", (file_id, sha256))

    def add(self, path: Path, filename: str, purpose: str) -> File:
        """Add a file whose bytes are already in their place; the name of `path` is its id."""
        sync_folder(self._folder)
        file = _file(path.name, filename, purpose, path.stat().st_size, now())
        self._insert(file)
        return file

    def _insert(self, file: File) -> None:
        self.database.execute(
            "INSERT INTO files (id, filename, purpose, bytes, created_at) VALUES (?, ?, ?, ?, ?)",
            (file.id, file.filename, file.purpose, file.bytes, file.created_at),
        )


class Incoming:
    """A file that is being received. Only the store calls the methods, and they block."""

    def __init__(self, file_id: str, folder: Path) -> None:
        self.id = file_id
        self.size = 0
        self._path = folder / file_id
        self._partial = folder / f"{file_id}.partial"
        self._handle: BinaryIO | None = None

    def open(self) -> None:
        """Create the temporary file."""
        self._handle = self._partial.open("xb")

    def write(self, piece: bytes) -> None:
        """Add a piece."""
        assert self._handle is not None  # noqa: S101  # `open` comes first.
        self._handle.write(piece)
        self.size += len(piece)

    def seal(self) -> None:
        """Flush the file to the disk."""
        assert self._handle is not None  # noqa: S101  # `open` comes first.
        self._handle.flush()
        os.fsync(self._handle.fileno())

    def settle(self) -> None:
        """Give the file its final name. This may be called twice, because a transaction may run twice."""
        if not self._path.exists():
            self._partial.replace(self._path)
        sync_folder(self._path.parent)

    def unsettle(self) -> None:
        """Remove the file under its final name."""
        self._path.unlink(missing_ok=True)

    def discard(self) -> None:
        """Close the temporary file, and remove it if it still has its temporary name."""
        if self._handle is not None:
            try:
                with contextlib.suppress(OSError):  # The file is removed, so its last bytes need not be written.
                    self._handle.close()
            finally:
                self._partial.unlink(missing_ok=True)


def _file(file_id: str, filename: str, purpose: str, size: int, created_at: int) -> File:
    return File(file_id, filename, purpose, size, created_at, status="processed")


def _no_file(file_id: str) -> Refused:
    return Refused(404, f"No such File object: {file_id}", param="id")


def _count_examples(path: Path, role: str, max_completion_bytes: int | None, stopped: threading.Event) -> int:
    """Count the examples of a file, in bounded memory.

    Raises:
        TrainingError: A trainer would refuse the file.
    """
    if not path.exists():
        return 0
    examples = read_file(str(path), role, max_completion_bytes)
    return sum(1 for _ in itertools.takewhile(lambda _: not stopped.is_set(), examples))
