"""The queue of jobs: the places that jobs announce, the cost of a call while many are pending, and old records."""

from __future__ import annotations

import asyncio
import datetime as dt
import json
import random
import sqlite3
from collections import defaultdict
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final

import pytest

from aiofinetune.local import LocalServer
from aiofinetune.local._store import Store
from aiofinetune.local._store.attempts import Attempt
from aiofinetune.local._store.refused import Refused
from aiofinetune.models import FineTune, FineTuneRequest
from tests.local.plainclient import KEY, Client, Connect
from tests.local.test_store import ROW, add_file

NEAR: Final = 10
"""The last place in the queue at which a job announces each step."""


class Queue:
    """A model of the queue, which checks the place of every pending job after each change."""

    def __init__(self) -> None:
        self.pending: list[str] = []
        self.running: str | None = None
        self.announced: defaultdict[str, list[int]] = defaultdict(list)

    def add(self, job_id: str) -> None:
        """Put a new job at the end."""
        self.pending.append(job_id)
        self._announce(job_id)

    def start(self) -> None:
        """Start the first job."""
        self.running = self.pending.pop(0)
        self._announce()

    def put_back(self) -> None:
        """Put the running job back, if there is one."""
        if self.running is not None:
            self.pending.insert(0, self.running)
            again, self.running = self.running, None
            self._announce(again)

    def remove(self, job_id: str) -> None:
        """Remove a job that is over."""
        if job_id == self.running:
            self.running = None
        else:
            self.pending.remove(job_id)
        self._announce()

    def _announce(self, new: str | None = None) -> None:
        for place, job_id in enumerate(self.pending, int(self.running is not None)):
            if job_id == new or (place < self.announced[job_id][-1] and place <= NEAR):
                self.announced[job_id].append(place)


@pytest.mark.parametrize("seed", range(4))
async def test_jobs_announce_their_places(data: Path, seed: int) -> None:
    """Whatever happens, jobs announce the same places as when the place of every pending job is checked each time."""
    chance, queue = random.Random(seed), Queue()  # noqa: S311  # nothing secret
    async with Store(data).opened() as store:
        request = FineTuneRequest(training_file=await add_file(store, ROW), model="ada")
        attempt: Attempt | None = None
        for _ in range(150):
            match chance.choice(("create", "create", "cancel", "start", "fail", "succeed", "put back", "refuse")):
                case "create":
                    jobs = await asyncio.gather(*(store.jobs._add(request, 1) for _ in range(chance.randint(1, 4))))
                    for job in jobs:
                        queue.add(job.id)
                case "cancel" if active := [*queue.pending, *([queue.running] if queue.running else [])]:
                    job_id = chance.choice(active)
                    await store.jobs.cancel(job_id)
                    queue.remove(job_id)
                case "start" if queue.pending and not queue.running:
                    attempt = await store.attempts.take_next()
                    queue.start()
                case "fail" if queue.running and attempt is not None:
                    await store.attempts.note_failure(attempt, "why")
                    queue.remove(queue.running)
                case "succeed" if queue.running and attempt is not None:
                    attempt.results_path.touch()
                    await store.attempts.note_success(attempt)
                    queue.remove(queue.running)
                case "put back" if attempt is not None:
                    await store.attempts.put_back(attempt, "why")
                    queue.put_back()
                case "refuse":
                    # Both share a transaction, as another is under way; it is rolled back, and the first runs again.
                    requests = (request, FineTuneRequest(training_file="file-no"))
                    earlier = asyncio.create_task(places(store))
                    new, refused = await asyncio.gather(
                        *(store.jobs._add(request, 1) for request in requests), return_exceptions=True
                    )
                    await earlier
                    assert isinstance(refused, Refused)
                    assert isinstance(new, FineTune)
                    queue.add(new.id)
            assert await places(store) == queue.announced
        assert max(map(len, queue.announced.values())) > 5


async def places(store: Store) -> dict[str, list[int]]:
    """Return the places that each job has announced so far."""
    announced = defaultdict(list)

    def read() -> None:
        rows = store.jobs.database.execute("SELECT job, message FROM events ORDER BY job, position")
        for job_id, message in rows:
            if message.startswith("Fine-tune enqueued. Queue number: "):
                announced[job_id].append(int(message.rpartition(" ")[2]))

    await store.jobs.database.run(read)
    return announced


async def test_a_restart_counts_the_active_jobs(data: Path) -> None:
    """The place of a job that is created after a restart counts the jobs that were created before it."""
    async with Store(data).opened() as store:
        request = FineTuneRequest(training_file=await add_file(store, ROW), model="ada")
        jobs = [await store.jobs.create(request) for _ in range(4)]
        await store.attempts.take_next()
        await store.jobs.cancel(jobs[2].id)
    async with Store(data).opened() as store:
        last = await store.jobs.create(request)
        announced = await places(store)
        assert [announced[job.id] for job in (*jobs, last)] == [[0, 0], [1], [2], [3, 2], [3]]


async def test_no_call_looks_at_all_pending_jobs(data: Path) -> None:
    """A create, a start, an end and a cancel take as many steps of SQLite with 2,000 pending jobs as with 50."""
    async with Store(data).opened() as store:
        request = FineTuneRequest(training_file=await add_file(store, ROW), model="ada")

        async def fill(count: int) -> list[str]:
            # Unlike `create`, which first counts the examples on a thread, this keeps the order.
            return [job.id for job in await asyncio.gather(*(store.jobs._add(request, 1) for _ in range(count)))]

        taken: list[Attempt | None] = []

        async def take() -> None:
            taken.append(await store.attempts.take_next())

        async def end() -> None:
            attempt = taken[-1]
            assert attempt is not None
            await store.attempts.note_failure(attempt, "why")

        async def wait() -> None:
            # All need what is not free.
            assert await store.attempts.take_next([], {"ada": {"gpu": 1}}) is None

        async def measure(last: str) -> dict[str, int]:
            return {
                "create": await count_steps(store, lambda: store.jobs.create(request)),
                "start": await count_steps(store, take),
                "end": await count_steps(store, end),
                "cancel": await count_steps(store, lambda: store.jobs.cancel(last)),
                "wait": await count_steps(store, wait),
            }

        jobs = await fill(50)
        few = await measure(jobs[-1])
        jobs += await fill(1950)
        many = await measure(jobs[-1])
    assert {name: steps for name, steps in many.items() if steps > few[name] * 1.2} == {}


async def test_no_end_looks_at_all_that_were_made(data: Path) -> None:
    """The end of a job takes few more steps where 2,000 models are there, and the name of its model is new.

    Jobs that end faster than one a second use up the seconds that names have.
    """
    async with Store(data).opened() as store:
        request = FineTuneRequest(training_file=await add_file(store, ROW), model="ada")
        start = dt.datetime.now(dt.UTC)

        async def end() -> None:
            await store.jobs.create(request)
            attempt = await store.attempts.take_next()
            assert attempt is not None
            attempt.results_path.touch()
            await store.attempts.note_success(attempt)

        def fill() -> None:
            for second in range(2000):
                name = f"ada:ft-local-{start + dt.timedelta(seconds=second):%Y-%m-%d-%H-%M-%S}"
                store.jobs.database.execute("INSERT OR IGNORE INTO models VALUES (NULL, ?, 'ada', 1, '')", (name,))

        few = await count_steps(store, end)
        await store.jobs.database.run(fill)
        many = await count_steps(store, end)
        before = {model.id for model in await store.models.list()}
        await end()
        (name,) = {model.id for model in await store.models.list()} - before
    assert many < few * 2
    assert name > f"ada:ft-local-{start + dt.timedelta(seconds=2000):%Y-%m-%d-%H-%M-%S}"


async def count_steps(store: Store, call: Callable[[], Awaitable[object]]) -> int:
    """Return how many steps of SQLite's virtual machine a call takes."""
    steps = 0

    def count() -> None:
        nonlocal steps
        steps += 1

    connection = store.jobs.database.connection
    connection.set_progress_handler(count, 1)
    try:
        await call()
    finally:
        connection.set_progress_handler(None, 1)
    return steps


async def test_a_job_in_the_list_is_the_job_without_its_events(client: Client, examples: bytes) -> None:
    """The list shows a job as its own endpoint does, except for the events, whatever its status is."""
    done = await client.create(examples, n_epochs=1, suffix="one")
    await client.finish(done["id"])
    running = await client.create(examples, n_epochs=100_000)
    await client.reach(running["id"], "Fine-tune started")
    cancelled = await client.create(examples, validation_file=(await client.upload(examples))["id"])
    await client.call("POST", f"/fine-tunes/{cancelled['id']}/cancel")
    await client.create(examples, compute_classification_metrics=None)
    shown = (await client.call("GET", "/fine-tunes"))["data"]
    assert [job["status"] for job in shown] == ["succeeded", "running", "cancelled", "pending"]
    for job in shown:
        whole = await client.call("GET", f"/fine-tunes/{job['id']}")
        del whole["events"]
        assert job == whole


async def test_a_folder_whose_records_hold_null_hyperparameters(data: Path, connect: Connect, examples: bytes) -> None:
    """Lists leave out the null hyperparameters that earlier servers stored; everything else in a record is kept."""
    async with LocalServer(data, api_key=KEY) as server, connect(server.base_url) as client:
        job = await client.finish((await client.create(examples, n_epochs=1))["id"])
    with sqlite3.connect(data / "server.sqlite3") as database:
        ((record,),) = database.execute("SELECT record FROM jobs")
        old = json.loads(record)
        old["hyperparams"] |= dict.fromkeys(("compute_classification_metrics", "classification_betas"))
        old["of_a_later_server"] = [1]
        database.execute("UPDATE jobs SET record = ?", (json.dumps(old).encode(),))
    database.close()
    async with LocalServer(data, api_key=KEY) as server, connect(server.base_url) as client:
        (shown,) = (await client.call("GET", "/fine-tunes"))["data"]
        assert shown["hyperparams"] == job["hyperparams"]
        assert shown["of_a_later_server"] == [1]
        assert await client.call("GET", f"/fine-tunes/{job['id']}") == job
