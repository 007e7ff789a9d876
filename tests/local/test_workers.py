"""Workers on other machines: what a server and a worker make of each other, over HTTP on loopback."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from aiofinetune.errors import AuthenticationFailed
from aiofinetune.local import LocalServer
from aiofinetune.local._trainers.claims import Claims
from aiofinetune.local._trainers.remote import RemoteTrainers
from aiofinetune.local._worker.claiming import work
from tests.local.plainclient import KEY, Client, Connect

WORKER = "a-token-for-workers"


@asynccontextmanager
async def serving(data: Path, port: int = 0) -> AsyncIterator[LocalServer]:
    """A server that gives its attempts to workers."""
    async with LocalServer(
        data, port=port, api_key=KEY, remote=RemoteTrainers(Claims()), worker_token=WORKER
    ) as server:
        yield server


@asynccontextmanager
async def working(server: LocalServer, **resources: int) -> AsyncIterator[asyncio.Task[None]]:
    """A worker in this process, which is stopped in the end."""
    worker = asyncio.create_task(work(f"{server.base_url}/attempts", WORKER, resources))
    try:
        yield worker
    finally:
        worker.cancel()
        await asyncio.wait([worker])


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder in which workers make theirs."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    return folder


async def test_a_worker_trains_jobs(data: Path, connect: Connect, examples: bytes, temporary: Path) -> None:
    """A worker trains one job after the other, also from a model that it made, and leaves nothing."""
    async with serving(data) as server, connect(server.base_url) as client, working(server):
        job = await client.finish((await client.create(examples, n_epochs=2))["id"])
        assert job["status"] == "succeeded", job["events"]
        messages = [event["message"] for event in job["events"]]
        assert [message for message in messages if message.startswith("Training on ")]
        assert messages.index("Completed epoch 1/2") < messages.index("Completed epoch 2/2")
        further = await client.finish((await client.create(examples, n_epochs=1, model=job["fine_tuned_model"]))["id"])
        assert further["status"] == "succeeded", further["events"]
        asked = {"model": further["fine_tuned_model"], "prompt": "3 is", "max_tokens": 1, "temperature": 0}
        assert (await client.call("POST", "/completions", json=asked))["choices"]
        assert list(temporary.iterdir()) == []


async def test_a_worker_and_this_machine_make_the_same_model(
    data: Path, connect: Connect, examples: bytes, tmp_path: Path
) -> None:
    """The model and the results of a worker are those that the server itself would have made, to the byte."""

    async def made(folder: Path, client: Client) -> list[bytes]:
        job = await client.finish((await client.create(examples, n_epochs=1))["id"])
        async with client.http.get(f"{client.base_url}/files/{job['result_files'][0]['id']}/content") as response:
            return [await response.read(), *(path.read_bytes() for path in (folder / "models").iterdir())]

    async with serving(data) as server, connect(server.base_url) as client, working(server):
        by_worker = await made(data, client)
    async with LocalServer(tmp_path / "other", api_key=KEY) as server, connect(server.base_url) as client:
        assert await made(tmp_path / "other", client) == by_worker


async def test_a_cancelled_job_ends_its_trainer(
    data: Path, connect: Connect, examples: bytes, temporary: Path, trainers: Callable[[Path], list[int]]
) -> None:
    """When a job is cancelled, the worker ends its trainer, and is ready for the next job."""
    async with serving(data) as server, connect(server.base_url) as client, working(server):
        job = await client.create(examples, n_epochs=100_000)
        await client.reach(job["id"], "Completed epoch 1/100000")
        assert len(trainers(temporary)) == 1
        await client.call("POST", f"/fine-tunes/{job['id']}/cancel")
        async with asyncio.timeout(30):
            while trainers(temporary) or any(temporary.iterdir()):
                await asyncio.sleep(0.01)
        assert (await client.finish((await client.create(examples, n_epochs=1))["id"]))["status"] == "succeeded"


async def test_a_worker_that_stops_gives_its_job_back(
    data: Path, connect: Connect, examples: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker that is stopped tells the server, and the next worker trains the job from its beginning."""
    monkeypatch.setattr("aiofinetune.local._queue._FIRST_PAUSE", 0.01)
    async with serving(data) as server, connect(server.base_url) as client:
        async with working(server):
            job = await client.create(examples, n_epochs=60)
            await client.reach(job["id"], "Completed epoch 1/60")
        lost = "Fine-tune interrupted: its worker was stopped. It will start again from the beginning"
        await client.reach(job["id"], lost)
        async with working(server):
            messages = await client.follow(job["id"])
        assert messages.count("Completed epoch 1/60") == 2
        assert messages[-1] == "Fine-tune succeeded"


async def test_an_attempt_goes_on_over_a_restart_of_the_server(data: Path, connect: Connect, examples: bytes) -> None:
    """A job that a worker trains is not trained anew when the server restarts: its events go on where they were."""
    async with serving(data) as server, connect(server.base_url) as client:
        worker = asyncio.create_task(work(f"{server.base_url}/attempts", WORKER, {}))
        job = await client.create(examples, n_epochs=100)
        await client.reach(job["id"], "Completed epoch 1/100")
    port = int(server.base_url.removesuffix("/v1").rpartition(":")[2])
    try:
        async with serving(data, port) as server, connect(server.base_url) as client:
            messages = await client.follow(job["id"])
    finally:
        worker.cancel()
        await asyncio.wait([worker])
    assert messages.count("Fine-tune started") == 1
    epochs = [message for message in messages if message.startswith("Completed epoch")]
    assert epochs == [f"Completed epoch {number}/100" for number in range(1, 101)]
    assert messages[-1] == "Fine-tune succeeded"


async def test_a_wrong_token_claims_nothing(data: Path) -> None:
    """A worker whose token is wrong ends with a word on why."""
    async with serving(data) as server:
        for token in ("wrong", KEY):
            with pytest.raises(AuthenticationFailed, match="does not know this token"):
                await work(f"{server.base_url}/attempts", token, {})
    with contextlib.suppress(FileNotFoundError):
        assert not list((data / "runs").iterdir())
