"""The server's state: a folder with a SQLite database, the files' bytes, and the models' weights.

Before a client gets an answer, the change is on the disk, so it survives a ``kill -9``. A file is first written under a
temporary name and flushed to the disk. It is then renamed, and only after that a transaction adds a row for it. A
killed server may therefore leave a file that no row names; the next start moves it aside, unless it is the unfinished
work of an attempt whose job begins again.
"""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from collections.abc import AsyncIterator, Callable, Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from aiofinetune._threads import in_thread
from aiofinetune.local._open_models import OpenModel
from aiofinetune.local._store.attempts import AttemptStore
from aiofinetune.local._store.database import StoreDatabase
from aiofinetune.local._store.files import FileStore
from aiofinetune.local._store.folder import Folder
from aiofinetune.local._store.jobs import JobStore
from aiofinetune.local._store.models import ModelStore
from aiofinetune.local._store.uploads import UploadStore

T = TypeVar("T")


class Store:
    """The state of the server. Every coroutine does its blocking work on a thread.

    The methods of its parts are coroutines, except for those under "In a transaction", which the parts call on the
    database's thread.

    Args:
        folder: The folder of the state; it is created if it does not exist.
        keeps_remote: Whether attempts that run on other machines go on after a restart; otherwise their jobs start
            again, as those that were trained on this machine do.
        open_models: The base models besides the built-in ones.
    """

    def __init__(self, folder: Path, *, keeps_remote: bool = False, open_models: Sequence[OpenModel] = ()) -> None:
        self.on_change: Callable[[Collection[str]], None] = lambda _jobs: None
        """Called on the event loop after each commit, with the ids of the jobs that the transaction changed."""
        self._folder = Folder(folder)
        self._keeps_remote = keeps_remote
        self._database = StoreDatabase(self._folder, self._report_change)
        self._file_threads = ThreadPoolExecutor(4, thread_name_prefix="aiofinetune-files")
        self.files = FileStore(self._database, self._folder.files, self._file_threads)
        self.uploads = UploadStore(self._database, self._folder.parts, self.files, self._file_threads)
        self.models = ModelStore(self._database, self._folder.models, self._file_threads, open_models)
        self.jobs = JobStore(self._database, self.files, self.models)
        self.attempts = AttemptStore(self._database, self._folder, self.files, self.models, self.jobs)

    @contextlib.asynccontextmanager
    async def opened(self) -> AsyncIterator[Store]:
        """Return a context manager in which the folder is open.

        Raises:
            ConfigurationError: The folder cannot be used: another server uses it, another version created it, a part
                of it is missing or damaged, or the system denies access to it.
        """
        self._loop = asyncio.get_running_loop()
        with self._file_threads:
            async with self._database.opened(self._resources()):
                await self.uploads.remove_unneeded()
                yield self

    async def in_thread(self, call: Callable[[], T]) -> T:
        """Run a blocking `call` on one of the threads for files, and return its result."""
        return await in_thread(self._file_threads, call)

    # On the database's thread

    @contextlib.contextmanager
    def _resources(self) -> Iterator[None]:
        """Lock the folder, open its database and make its jobs ready to run."""
        with self._folder.locked(), contextlib.ExitStack() as stack:
            is_new = self._folder.check()
            try:
                self._folder.make_parts()
                stack.enter_context(self._database.connected(self._folder.database))
                self._database.set_up(is_new=is_new)
                with self._database.committing():
                    self.jobs.drop_unset_hyperparams()
                    self.attempts.put_all_back("the server was restarted", keeps_remote=self._keeps_remote)
                self._folder.note_place()
                self._sort_out()
            except (OSError, sqlite3.Error) as error:
                raise self._folder.unusable(error) from error
            yield

    def _sort_out(self) -> None:
        """Move files aside that no row names, and log the files that a row names but that are missing."""
        rows = self._database.execute(
            "SELECT id FROM files UNION SELECT weights FROM models"
            " UNION SELECT weights FROM checkpoints WHERE weights IS NOT NULL UNION SELECT id FROM parts"
        )
        known = {name for (name,) in rows}
        self._folder.set_aside(known, self.attempts.is_remote_running, self.attempts.is_latest_of_a_job)
        self._folder.report_missing(known)

    def _report_change(self, jobs: Collection[str]) -> None:
        self._loop.call_soon_threadsafe(lambda: self.on_change(jobs))
