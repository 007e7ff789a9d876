"""Attempts to train jobs: how many run at once, which starts next, and that each job ends under one attempt only."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import attrs
import pytest

from aiofinetune.local import _queue as queue
from aiofinetune.local._machines import Machine, shared
from aiofinetune.local._open_models import OpenModel
from aiofinetune.local._queue import Jobs
from aiofinetune.local._store import Store
from aiofinetune.local._store.attempts import MOST_LOSSES, Attempt
from aiofinetune.local._trainers import Ended, EngineLost
from aiofinetune.local._trainers.remote import inputs_by_name, outputs_by_name
from aiofinetune.local._trainers.trainer import trainer_input
from aiofinetune.models import FineTuneRequest, Status
from tests.local.test_store import ROW, add_file

SUCCEEDED = b'{"type": "succeeded"}'


@attrs.define
class Held:
    """Trainers whose attempts run until a test ends them."""

    slots: int = 2
    resources: Sequence[Mapping[str, int]] = ({},)
    """Of each machine."""
    running: dict[str, asyncio.Future[None]] = attrs.field(factory=dict)
    """By job."""
    order: list[str] = attrs.field(factory=list)
    started: asyncio.Condition = attrs.field(factory=asyncio.Condition)

    def machines(self, running: Collection[Attempt]) -> Sequence[Machine]:
        """The machines, of which each attempt uses the first that has room."""
        return shared(self.resources, [attempt.needs for attempt in running])

    async def run(self, attempt: Attempt, on_line: Callable[[bytes], Awaitable[None]]) -> Ended:
        """Wait until the test ends this attempt, or the queue does."""
        ended = self.running[attempt.job.id] = asyncio.get_running_loop().create_future()
        async with self.started:
            self.order.append(attempt.job.id)
            self.started.notify_all()
        try:
            await ended
        finally:
            if self.running[attempt.job.id] is ended:
                del self.running[attempt.job.id]
        attempt.model_path.touch()
        attempt.results_path.touch()
        await on_line(SUCCEEDED)
        return Ended(is_well=True, how="well")

    async def until(self, count: int) -> None:
        """Wait until this number of attempts has started."""
        async with asyncio.timeout(30), self.started:
            await self.started.wait_for(lambda: len(self.order) >= count)


@asynccontextmanager
async def working(store: Store, trainers: Held, **needs: Mapping[str, int]) -> AsyncIterator[Jobs]:
    """Run the queue during the block."""
    jobs = Jobs(store, trainers, needs)
    running = asyncio.create_task(jobs.run())
    try:
        yield jobs
    finally:
        running.cancel()
        await asyncio.wait([running])


async def created(store: Store, *models: str) -> list[str]:
    """Create a job for each model; return their ids."""
    file = await add_file(store, ROW)
    return [(await store.jobs.create(FineTuneRequest(training_file=file, model=model))).id for model in models]


async def told(store: Store, job_id: str) -> list[str]:
    """What the events of a job say after its start was announced."""
    return [event.message for event in (await store.jobs.get(job_id)).events[3:]]


async def test_as_many_jobs_train_as_there_are_slots(data: Path) -> None:
    """With two slots the two oldest jobs train at once, and the third starts when one of them ends."""
    trainers = Held()
    async with Store(data).opened() as store:
        first, second, third = await created(store, "ada", "ada", "ada")
        async with working(store, trainers) as jobs:
            await trainers.until(2)
            assert trainers.order == [first, second]
            trainers.running[second].set_result(None)
            await trainers.until(3)
            assert sorted(trainers.running) == sorted((first, third))
            trainers.running[third].set_result(None)
            trainers.running[first].set_result(None)
            for job_id in (first, second, third):
                assert await jobs.feed(job_id).wait_until(Status.TERMINAL.__contains__) == "succeeded"
        assert len(await store.models.list()) == 4 + 3


async def test_a_resource_goes_to_the_oldest_job_that_needs_it(data: Path) -> None:
    """A job waits for its resources while others pass it, but no younger job takes what it waits for."""
    trainers = Held(slots=3, resources=[{"gpu": 2}])
    async with Store(data).opened() as store:
        one, two, small, other = await created(store, "babbage", "davinci", "babbage", "ada")
        async with working(store, trainers, babbage={"gpu": 1}, davinci={"gpu": 2}):
            await trainers.until(2)
            # `two` needs both, of which `one` has one; `small` could have the other, but is younger than `two`.
            assert trainers.order == [one, other]
            trainers.running[one].set_result(None)
            await trainers.until(3)
            assert trainers.order[2:] == [two]
            trainers.running[two].set_result(None)
            await trainers.until(4)
            assert trainers.order[3:] == [small]


async def test_a_job_without_its_resources_waits(data: Path) -> None:
    """A job that needs what the trainers do not have stays pending, until they have it."""
    trainers = Held()
    async with Store(data).opened() as store:
        (job,) = await created(store, "ada")
        async with working(store, trainers, ada={"gpu": 1}) as jobs:
            other = (await created(store, "babbage"))[0]
            await trainers.until(1)
            assert trainers.order == [other]
            trainers.resources = [{"gpu": 1}]
            jobs.look_again()
            await trainers.until(2)
            assert trainers.order == [other, job]


async def test_a_job_that_needs_more_than_each_machine_has(
    data: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A job for which no machine is enough stays pending and says why; it holds up nobody who fits one."""
    monkeypatch.setattr(queue, "_UNFIT_INTERVAL", 0.01)
    trainers = Held(slots=2, resources=[{"gpu": 1}, {"gpu": 1}])
    async with Store(data).opened() as store:
        two, one, other = await created(store, "babbage", "curie", "ada")
        async with working(store, trainers, babbage={"gpu": 2}, curie={"gpu": 1}) as jobs:
            await trainers.until(2)
            assert trainers.order == [one, other]
            words = "waits: it needs gpu=2, and no machine has that"
            async with asyncio.timeout(30):
                await jobs.feed(two).wait(3)
            trainers.running[other].set_result(None)
            await jobs.feed(other).wait_until(Status.TERMINAL.__contains__)
            assert trainers.order == [one, other]
            assert [event.message for event in (await store.jobs.get(two)).events].count(f"Fine-tune {words}") == 1
            trainers.resources = [{"gpu": 2}]
            jobs.look_again()
            trainers.running[one].set_result(None)
            await trainers.until(3)
            assert trainers.order == [one, other, two]
    assert [record.getMessage() for record in caplog.records if words in record.getMessage()] == [
        f"fine-tune {two} {words}"
    ]


async def test_a_job_whose_engine_is_lost_trains_again(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A job goes back into the queue with a word on why, and its other attempt makes its one model."""
    monkeypatch.setattr(queue, "_FIRST_PAUSE", 0.01)
    trainers = Held()
    async with Store(data).opened() as store:
        (job,) = await created(store, "ada")
        async with working(store, trainers) as jobs:
            await trainers.until(1)
            trainers.running[job].set_exception(EngineLost("its worker was lost"))
            await trainers.until(2)
            trainers.running[job].set_result(None)
            assert await jobs.feed(job).wait_until(Status.TERMINAL.__contains__) == "succeeded"
        messages = await told(store, job)
        assert messages[1] == "Fine-tune interrupted: its worker was lost. It will start again from the beginning"
        assert messages.count("Fine-tune started") == 2
        assert len([message for message in messages if message.startswith("Uploaded model")]) == 1


async def test_the_loss_of_one_worker_does_not_stop_others(data: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The queue does not pause for a worker that waits by itself or was stopped; the log names job and worker."""
    caplog.set_level("INFO")
    trainers = Held(slots=1)
    async with Store(data).opened() as store:
        (job,) = await created(store, "ada")
        async with working(store, trainers):
            for count, lost in enumerate(
                (
                    EngineLost("its worker failed", where="far-away", is_paced=True),
                    EngineLost("its worker was stopped", where="far-away", by_stop=True),
                    EngineLost("Dask's scheduler was lost"),
                ),
                1,
            ):
                await trainers.until(count)
                trainers.running[job].set_exception(lost)
            async with asyncio.timeout(30):
                while "paused" not in caplog.text:
                    await asyncio.sleep(0)
    told = [(each.levelname, each.getMessage()) for each in caplog.records if "started" not in each.getMessage()]
    assert [each for each in told if job in each[1]] == [
        ("WARNING", f"fine-tune {job} was interrupted on far-away: its worker failed"),
        ("INFO", f"fine-tune {job} was interrupted on far-away: its worker was stopped"),
        ("ERROR", f"training is paused for 1 s: Dask's scheduler was lost (fine-tune {job})"),
    ]


async def test_a_job_that_ends_its_workers_fails(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A job fails when its workers have ended ten times in a row; other interruptions only begin it again."""
    monkeypatch.setattr(queue, "_FIRST_PAUSE", 0.0)
    trainers = Held()
    async with Store(data).opened() as store:
        (job,) = await created(store, "ada")
        async with working(store, trainers) as jobs:
            for count in range(MOST_LOSSES * 2):
                await trainers.until(count + 1)
                by_job = count % 2 == 1
                trainers.running[job].set_exception(EngineLost("its worker was lost", by_job=by_job))
            assert await jobs.feed(job).wait_until(Status.TERMINAL.__contains__) == "failed"
        messages = await told(store, job)
        assert messages[-2].startswith(f"{MOST_LOSSES} attempts in a row ended with their workers")
        assert messages.count("Fine-tune started") == MOST_LOSSES * 2


async def test_a_job_that_gets_further_each_time_does_not_fail(data: Path) -> None:
    """An attempt that is lost after more epochs than those before shows that the job does not end its workers."""
    async with Store(data).opened() as store:
        (job,) = await created(store, "ada")
        for count in range(1, MOST_LOSSES * 2):
            attempt = await store.attempts.take_next()
            assert attempt is not None
            await store.attempts.add_remote(attempt, b"")
            await store.attempts.note_epoch(attempt, min(count, MOST_LOSSES), 100, 0)
            await store.attempts.put_back(attempt, "its worker was lost", by_job=True)
            assert (await store.jobs.get(job)).status == "pending"
        attempt = await store.attempts.take_next()
        assert attempt is not None
        await store.attempts.put_back(attempt, "its worker was lost", by_job=True)
        assert (await store.jobs.get(job)).status == "failed"


async def test_an_attempt_ends_though_its_job_is_running_again(data: Path) -> None:
    """When a job is paused and resumed at once, its old attempt ends, and another one trains it."""
    trainers = Held()
    async with Store(data).opened() as store:
        (job,) = await created(store, "ada")
        async with working(store, trainers):
            await trainers.until(1)
            old = trainers.running[job]
            async with asyncio.TaskGroup() as group:
                for change in (store.jobs.pause, store.jobs.resume):
                    group.create_task(change(job))
            await trainers.until(2)
            await asyncio.wait([old], timeout=30)
            assert old.cancelled()
            assert not trainers.running[job].done()


async def test_a_late_attempt_changes_nothing(data: Path) -> None:
    """Whatever an attempt reports after its job was put back, the job has its model from the other attempt alone."""
    async with Store(data).opened() as store:
        (job,) = await created(store, "ada")
        late = await store.attempts.take_next()
        assert late is not None
        await store.attempts.put_back(late, "why")
        attempt = await store.attempts.take_next()
        assert attempt is not None
        assert (attempt.job.id, attempt.id == late.id) == (job, False)
        for each in (late, attempt):
            each.model_path.touch()
            each.results_path.touch()
        before = await told(store, job)
        await store.attempts.note_validated(late)
        await store.attempts.note_epoch(late, 1, 4, 0)
        await store.attempts.note_failure(late, "no")
        await store.attempts.note_success(late)
        await store.attempts.put_back(late, "again")
        assert await told(store, job) == before
        assert not (await store.jobs.row(job)).is_validated
        await store.attempts.note_success(attempt)
        await store.attempts.clear(late)
        done = await store.jobs.get(job)
        assert done.fine_tuned_model is not None
        assert (await store.models.locate(done.fine_tuned_model)).weights == attempt.model_path
        assert [path.name for path in (data / "models").iterdir()] == [attempt.model_path.name]


async def test_a_restart_keeps_the_files_of_attempts_that_go_on(data: Path) -> None:
    """What a worker has uploaded stays over a restart; what is left of attempts that are over is removed.

    An attempt that no worker has begun does not go on, because its worker may never have heard of it.
    """
    async with Store(data).opened() as store:
        *_, waiting = await created(store, "ada", "ada", "ada")
        running, over, unknown = [await store.attempts.take_next() for _ in range(3)]
        assert running is not None
        assert over is not None
        assert unknown is not None
        for attempt in (running, over, unknown):
            await store.attempts.add_remote(attempt, b"")
            attempt.model_path.with_name(f"{attempt.model_path.name}.partial").touch()
        for attempt in (running, over):
            await store.attempts.note_runner(attempt, "0" * 32, "a machine")
        await store.attempts.put_back(over, "why")
    async with Store(data, keeps_remote=True).opened() as store:
        assert [attempt.id for attempt in await store.attempts.resumable({})] == [running.id]
        assert [path.name for path in (data / "models").iterdir()] == [f"{running.model_path.name}.partial"]
        assert not (data / "unknown").exists()
        assert (await store.jobs.get(waiting)).status == "pending"
    # A server that trains on its own machine trains the job again.
    async with Store(data).opened() as store:
        assert await store.attempts.resumable({}) == []
        assert list((data / "models").iterdir()) == []


async def test_a_trainer_elsewhere_gets_the_files_of_an_open_model(data: Path, tmp_path: Path) -> None:
    """The input of a trainer on another machine names all files by their paths in its folder, an open model's too."""
    folder = tmp_path / "an open model"
    (folder / "onnx").mkdir(parents=True)
    for name in ("config.json", "model.safetensors", ".hidden", "onnx/model.onnx"):
        (folder / name).touch()
    async with Store(data, open_models=[OpenModel("open", folder)]).opened() as store:
        await created(store, "open")
        attempt = await store.attempts.take_next()
        assert attempt is not None
    training = attempt.training_path.name
    asked = trainer_input(attempt, lambda path: path.name)
    assert (asked["training_path"], asked["model"], asked["validation_path"]) == (training, "open", None)
    assert isinstance(asked["open_model"], dict)
    assert asked["open_model"]["path"] == "an open model"
    assert str(tmp_path) not in str(asked)
    expected = {training, "an open model/config.json", "an open model/model.safetensors"}
    assert inputs_by_name(attempt).keys() == expected
    assert outputs_by_name(attempt).keys() == {asked["model_path"], asked["results_path"]}
