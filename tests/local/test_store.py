"""The server's folder: what it refuses to open, what it cleans up, and that nothing blocks or is lost on the way."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from aiofinetune._threads import in_thread
from aiofinetune.errors import ConfigurationError
from aiofinetune.local._store import Store
from aiofinetune.local._store.refused import Refused
from aiofinetune.models import File, FineTuneRequest

ROW = b'{"prompt": "a", "completion": "b"}\n'
"""A training file."""


async def test_a_folder_of_another_schema_is_refused(data: Path) -> None:
    """A folder that another version made is refused, and left as it is."""
    async with Store(data).opened():
        pass
    with sqlite3.connect(data / "server.sqlite3") as database:
        database.execute("PRAGMA user_version = 99")
    database.close()
    with pytest.raises(ConfigurationError, match="schema version 99"):
        async with Store(data).opened():
            pass


async def test_a_database_of_somebody_else_is_refused(data: Path) -> None:
    """A database with tables but without a schema version is not this server's."""
    data.mkdir()
    with sqlite3.connect(data / "server.sqlite3") as database:
        database.execute("CREATE TABLE theirs (a)")
    database.close()
    with pytest.raises(ConfigurationError, match="schema version 0"):
        async with Store(data).opened():
            pass


async def test_a_folder_that_cannot_be_used_is_refused(data: Path) -> None:
    """A path that is a file, or a database that is none, gives a clear error."""
    data.mkdir()
    (data / "server.sqlite3").write_bytes(b"no database " * 1000)
    for path, words in ((data, "is incomplete"), (data / "server.sqlite3", "cannot be used")):
        with pytest.raises(ConfigurationError, match=words):
            async with Store(path).opened():
                pass


async def test_a_file_that_is_not_kept_leaves_nothing(data: Path) -> None:
    """Without `keep`, a file taken in is gone, whether its writer failed or just stopped."""
    async with Store(data).opened() as store:
        with pytest.raises(ZeroDivisionError):
            async with store.files.receive() as incoming:
                await store.in_thread(lambda: incoming.write(b"half"))
                raise ZeroDivisionError
        assert list((data / "files").iterdir()) == []


async def test_a_transaction_that_fails_changes_nothing(data: Path) -> None:
    """A job whose validation file is missing is refused whole, and nobody is told of a change."""
    changed: list[object] = []
    async with Store(data).opened() as store:
        store.on_change = changed.append
        training = await add_file(store, ROW)
        with pytest.raises(Refused, match="file-unknown"):
            await store.jobs.create(FineTuneRequest(training_file=training, validation_file="file-unknown"))
        assert await store.jobs.list() == []
        await store.jobs.create(FineTuneRequest(training_file=training))
    assert len(changed) == 1


async def test_creations_at_once_all_get_their_place(data: Path) -> None:
    """A hundred jobs created together are all there, each with a queue number of its own."""
    async with Store(data).opened() as store:
        training = await add_file(store, ROW)
        request = FineTuneRequest(training_file=training, model="ada")
        jobs = await asyncio.gather(*(store.jobs.create(request) for _ in range(100)))
        assert {job.id for job in jobs} == {job_id for job_id, _ in await store.jobs.list()}
    places = {event.message for job in jobs for event in job.events if "Queue number" in event.message}
    assert places == {f"Fine-tune enqueued. Queue number: {place}" for place in range(100)}


async def test_creations_at_once_share_a_commit(data: Path) -> None:
    """What is asked for while the disk is busy goes there together: the first alone, the rest with one commit."""
    async with Store(data).opened() as store:
        request = FineTuneRequest(training_file=await add_file(store, ROW), model="ada")
        before = int((data / "commits").read_bytes())
        await asyncio.gather(*(store.jobs._add(request, 1) for _ in range(100)))
        assert int((data / "commits").read_bytes()) == before + 2


async def test_a_call_that_is_refused_harms_no_other(data: Path) -> None:
    """Of calls that share a commit, the one that cannot be is refused, and a file that another keeps is there."""
    async with Store(data).opened() as store, store.files.receive() as incoming:
        file = File(incoming.id, "a.jsonl", "fine-tune", 0, 0, status="processed")
        calls = (store.jobs.list(), store.files._adopt(incoming, file), store.files.get("file-unknown"))
        _, _, refused = await asyncio.gather(*calls, return_exceptions=True)
        assert isinstance(refused, Refused)
        assert await store.files.list() == (file,)
        assert store.files.path(file.id).exists()


async def test_a_cancelled_call_stays_until_its_thread_is_done() -> None:
    """Work on a thread never outlives the task that asked for it."""
    begun, release, finished = threading.Event(), threading.Event(), threading.Event()

    def work() -> None:
        begun.set()
        release.wait()
        finished.set()

    with ThreadPoolExecutor() as executor:
        task = asyncio.create_task(in_thread(executor, work))
        while not begun.is_set():
            await asyncio.sleep(0)
        for _ in range(3):
            # Once may be a timeout, and again a shutdown.
            task.cancel()
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            assert not task.done()
        release.set()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert finished.is_set()


async def add_file(store: Store, content: bytes) -> str:
    async with store.files.receive() as incoming:
        await store.in_thread(lambda: incoming.write(content))
        return (await store.files.keep(incoming, "a.jsonl", "fine-tune")).id
