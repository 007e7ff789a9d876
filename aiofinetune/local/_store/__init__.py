"""The server's state: a folder with a SQLite database, the files' bytes, and the models' weights.

Whatever a client was told of is on the disk by then, so it outlives a ``kill -9``. The order that makes it so: bytes
go to a file of a temporary name, are flushed to the disk, the file takes its final name, and only then a transaction
makes it known. What a kill leaves half done is a file that no row names, and is set aside at the next start.
"""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from collections.abc import AsyncIterator, Callable, Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from aiofinetune._threads import in_thread
from aiofinetune.local._store.database import StoreDatabase
from aiofinetune.local._store.files import FileStore
from aiofinetune.local._store.folder import Folder
from aiofinetune.local._store.jobs import JobStore
from aiofinetune.local._store.models import ModelStore
from aiofinetune.local._store.runs import RunStore

T = TypeVar("T")


class Store:
    """Everything that the server remembers. Every coroutine does its blocking work on a thread.

    The methods of its parts are coroutines, but for those under "In a transaction", which the parts call of each other
    on the database's thread.

    Args:
        folder: Where it is kept; made if need be.
    """

    def __init__(self, folder: Path) -> None:
        self.on_change: Callable[[Collection[str]], None] = lambda _jobs: None
        """Called on the event loop with the ids of the jobs that a transaction changed, once it is committed."""
        self._folder = Folder(folder)
        self._database = StoreDatabase(self._folder, self._report_change)
        self._file_threads = ThreadPoolExecutor(4, thread_name_prefix="aiofinetune-files")
        self.files = FileStore(self._database, self._folder.files, self._file_threads)
        self.models = ModelStore(self._database, self._folder.models, self._file_threads)
        self.jobs = JobStore(self._database, self.files, self.models)
        self.runs = RunStore(self._database, self._folder, self.files, self.models, self.jobs)

    @contextlib.asynccontextmanager
    async def opened(self) -> AsyncIterator[Store]:
        """Open the folder, and close it in the end.

        Raises:
            ConfigurationError: It cannot be used: another server has it, another version made it, a part of it is
                missing or damaged, or the system refuses it.
        """
        self._loop = asyncio.get_running_loop()
        with self._file_threads:
            async with self._database.opened(self._resources()):
                yield self

    async def in_thread(self, call: Callable[[], T]) -> T:
        """Run a blocking `call` on one of the threads for files."""
        return await in_thread(self._file_threads, call)

    # On the database's thread

    @contextlib.contextmanager
    def _resources(self) -> Iterator[None]:
        """Have the folder for this process, with its database open and its jobs ready to run."""
        with self._folder.locked(), contextlib.ExitStack() as stack:
            is_new = self._folder.check()
            try:
                self._folder.make_parts()
                stack.enter_context(self._database.connected(self._folder.database))
                self._database.set_up(is_new=is_new)
                with self._database.committing():
                    self.jobs.drop_unset_hyperparams()
                    self.runs.put_all_back("the server was restarted")
                self._folder.note_place()
                self._sort_out()
            except (OSError, sqlite3.Error) as error:
                raise self._folder.unusable(error) from error
            yield

    def _sort_out(self) -> None:
        """Set aside the files that no row names, and report those that a row names and that are missing."""
        rows = self._database.execute("SELECT id FROM files UNION SELECT weights FROM models")
        known = {name for (name,) in rows}
        self._folder.set_aside(known)
        self._folder.report_missing(known)

    def _report_change(self, jobs: Collection[str]) -> None:
        self._loop.call_soon_threadsafe(lambda: self.on_change(jobs))
