"""Batches whose journals are killed or damaged, and what a service knows of their jobs."""

from __future__ import annotations

import asyncio
import json
import os
import random
import shutil
import sqlite3
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Final

import attrs

from aiofinetune import Batch, Entry, FineTuneRequest, FineTuneSession, JournalUnusable
from tests.servers.batchserver import QUICK, BatchServer, talking_to
from tests.servers.rawserver import KEY

COUNT: Final = 8

CHILD: Final = """
import asyncio, sys
from aiofinetune import Batch, Entry, FineTuneRequest, FineTuneSession, Retry
from aiofinetune.models import CreateUncertain

async def main(url, key, journal, count, file):
    retry = Retry(attempts=5, base=0.01, cap=0.1, grace=0.4)
    wanted = [Entry(f"job-{n}", FineTuneRequest(training_file=file, n_epochs=n)) for n in range(1, int(count) + 1)]
    async with FineTuneSession(key, base_url=url, retry=retry) as session:
        print("begins", flush=True)
        async with Batch(session, wanted, journal=journal, concurrency=3, poll_interval=0.1) as batch:
            async for outcome in batch:
                assert outcome.error is None or isinstance(outcome.error, CreateUncertain), outcome.error
                print(outcome.job_id, flush=True)

asyncio.run(main(*sys.argv[1:]))
"""


def entries(file: str, count: int = COUNT) -> list[Entry]:
    return [Entry(f"job-{n}", FineTuneRequest(training_file=file, n_epochs=n)) for n in range(1, count + 1)]


@asynccontextmanager
async def child(url: str, journal: Path, file: str, count: int = COUNT) -> AsyncIterator[asyncio.subprocess.Process]:
    """Run a batch in a process of its own, which is killed in the end if it is not over."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", CHILD, url, KEY, str(journal), str(count), file),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    try:
        assert process.stdout is not None
        assert await process.stdout.readline() == b"begins\n"
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


@attrs.define
class Case:
    """A batch of which all was sent, its journal, and the service that knows what it made."""

    server: BatchServer
    session: FineTuneSession
    wanted: list[Entry]
    journal: Path

    async def run(self, path: Path) -> str:
        """Run the batch with another journal.

        Returns:
            "whole" if it gives all jobs, "refused" if the journal is, "another" if it gives others, and "doubled" if it
            makes one again.
        """
        jobs = dict(self.server.jobs)
        self.server.lasts = 0
        try:
            async with (
                asyncio.timeout(30),
                # Which knows of no job yet.
                FineTuneSession(KEY, base_url=self.session.base_url, retry=QUICK) as session,
                Batch(session, self.wanted, journal=path, poll_interval=0.01) as batch,
            ):
                outcomes = await batch.run()
        except JournalUnusable:
            outcomes = None
        doubled = self.server.jobs != jobs
        self.server.jobs = jobs
        if doubled:
            return "doubled"
        if outcomes is None:
            return "refused"
        known = {outcome.job_id for outcome in outcomes if outcome.error is None}
        return "whole" if known == jobs.keys() else "another"


@asynccontextmanager
async def sent(folder: Path, *, killed: bool) -> AsyncIterator[Case]:
    """A batch of which all was sent: three jobs ended, and of those that did not, a killed one knows two."""
    server = BatchServer(lasts=None)
    file = server.add_file("train.jsonl", b"train")
    journal = folder / "sweep.journal"
    wanted = entries(file)

    def hold(endpoint: str) -> str:
        if killed and endpoint == "create" and len(server.jobs) == 5:
            server.held.setdefault("create", asyncio.Event())
        return ""

    server.lose = hold
    async with talking_to(server) as session:
        async with (
            # The jobs belong to no call of the session that is given.
            FineTuneSession(KEY, base_url=session.base_url, retry=QUICK) as first,
            Batch(first, wanted, journal=journal, concurrency=3, poll_interval=0.1) as batch,
        ):
            await server.until(lambda: len(server.jobs) == COUNT)
            for job_id in list(server.jobs)[:3]:
                server.end(job_id)
                await anext(batch)
            left = journal.read_bytes()
            for event in server.held.values():
                event.set()
        if killed:
            # As `test_killed_at_random_moments` sees, a process that is killed leaves what the file holds.
            journal.write_bytes(left)
        server.held.clear()
        for job_id in list(server.jobs):
            server.end(job_id)
        yield Case(server, session, wanted, journal)


# What happens to files


def flipped(data: bytes, bit: int) -> bytes:
    """Give some bytes with one bit flipped."""
    number = int.from_bytes(data, "little") ^ 1 << bit
    return number.to_bytes(len(data), "little")


def corrupted(data: bytes, chance: random.Random) -> bytes:
    """Give some bytes that were damaged at random; they differ."""
    while True:
        start, end = sorted(chance.randrange(len(data) + 1) for _ in range(2))
        damaged = chance.choice(_DAMAGES)(data, start, end, chance)
        if damaged != data:
            return damaged


Damage = Callable[[bytes, int, int, random.Random], bytes]
_DAMAGES: Final[tuple[Damage, ...]] = (
    lambda data, start, _end, _chance: data[:start],
    lambda data, start, end, _chance: data[:start] + data[end:],
    lambda data, start, end, _chance: data[:start] + bytes(end - start) + data[end:],
    lambda data, start, end, chance: data[:start] + chance.randbytes(end - start) + data[end:],
    lambda data, start, end, chance: data[:start] + chance.randbytes(chance.randrange(1, 100)) + data[end:],
    lambda data, start, end, _chance: data[:end] + data[start:],
    lambda data, start, _end, chance: data + data[start:] + chance.randbytes(chance.randrange(100)),
    lambda data, start, end, _chance: data[start:end] + data[:start] + data[end:],
    lambda data, start, _end, chance: data[:start] + chance.randbytes(1) + data[start + 1 :],
    lambda data, _start, _end, chance: chance.randbytes(len(data)),
    lambda data, _start, _end, _chance: data.replace(b"\n", b"\r\n"),
    lambda data, start, end, _chance: data[:start] + b"\n" + data[end:],
)


# Journals of version 1


VERSION_1: Final = """
    PRAGMA locking_mode = EXCLUSIVE;
    PRAGMA journal_mode = WAL;
    BEGIN;
    CREATE TABLE entries (
        number INTEGER PRIMARY KEY, label TEXT UNIQUE NOT NULL, request BLOB NOT NULL, sent BLOB, sent_at REAL,
        job_id TEXT, job BLOB, ended_at REAL, run INTEGER NOT NULL);
    CREATE INDEX lost_entries ON entries (number) WHERE sent IS NOT NULL AND job_id IS NULL;
    CREATE TABLE files (number INTEGER PRIMARY KEY, id TEXT UNIQUE NOT NULL, digest TEXT NOT NULL);
    CREATE INDEX files_by_digest ON files (digest, number);
    CREATE TABLE runs (number INTEGER PRIMARY KEY, base_url TEXT NOT NULL);
    PRAGMA application_id = 0x61696674;
    PRAGMA user_version = 1;
    COMMIT;
"""


def write_version_1(case: Case, path: Path, *, killed: bool) -> None:
    """Write what a batch of version 1 knows of the jobs: how three ended, that two are active, and three are lost."""
    work = path.with_name("work")
    with closing(sqlite3.connect(work)) as db:
        db.executescript(VERSION_1)
        with db:
            db.execute("INSERT INTO runs (base_url) VALUES (?)", (case.session.base_url,))
            db.execute("INSERT INTO files (id, digest) VALUES ('file-9', 'digest')")
        jobs = {job["hyperparams"]["n_epochs"]: job for job in case.server.jobs.values()}
        for number, entry in enumerate(case.wanted, 1):
            job = jobs[number]
            request = json.dumps(entry.request.given()).encode()
            with db:
                db.execute(
                    "INSERT INTO entries (label, request, sent, sent_at, run) VALUES (?, ?, ?, ?, 1)",
                    (entry.label, request, request, float(job["created_at"])),
                )
            with db:
                if number <= 5:
                    db.execute("UPDATE entries SET job_id = ? WHERE label = ?", (job["id"], entry.label))
                if number <= 3:
                    values = (json.dumps(job).encode(), time.time(), entry.label)
                    db.execute("UPDATE entries SET job = ?, ended_at = ? WHERE label = ?", values)
        if killed:
            shutil.copyfile(f"{work}-wal", f"{path}-wal")
            shutil.copyfile(work, path)
    if not killed:
        shutil.copyfile(work, path)
    work.unlink()
