"""Trainers on a Dask cluster; where distributed is not installed, only what the server says of that."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from aiofinetune.errors import ConfigurationError
from aiofinetune.local import LocalServer
from aiofinetune.local import _queue as queue
from aiofinetune.local._machines import Machine
from aiofinetune.local._trainers import dask_engine
from aiofinetune.local._trainers.dask_engine import DaskEngine
from aiofinetune.local._trainers.remote import RemoteTrainers
from tests.local.plainclient import KEY, Connect
from tests.servers import dask_cluster


def test_without_dask_the_server_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    """The error names the extra."""
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(ConfigurationError, match=r"pip install 'aiofinetune\[dask\]'"):
        DaskEngine("dask://127.0.0.1:8786")


@pytest.mark.parametrize(
    "address", ["dask://", "dask://127.0.0.1", "dask://127.0.0.1:x", "dask://a@127.0.0.1:1", "dask://127.0.0.1:1/x"]
)
def test_an_address_that_is_none(address: str) -> None:
    """An address is a host and a port."""
    pytest.importorskip("distributed", reason="distributed is not installed")
    with pytest.raises(ConfigurationError, match="expected dask://HOST:PORT"):
        DaskEngine(address)


def test_a_scheduler_without_tls_is_refused() -> None:
    """A scheduler runs what it is sent, so without TLS it must be on loopback."""
    pytest.importorskip("distributed", reason="distributed is not installed")
    with pytest.raises(ConfigurationError, match="start it with TLS"):
        DaskEngine("dask://scheduler.example.com:8786")


def test_each_worker_of_dask_is_a_machine() -> None:
    """What the workers have is not added up: a job runs on one."""
    pytest.importorskip("distributed", reason="distributed is not installed")
    engine = DaskEngine("dask://127.0.0.1:8786")
    worker = {"nthreads": 1, "resources": {"gpu": 1.0}}
    engine._note_workers({"a": worker, "b": worker}, lambda: None)
    assert engine.machines((), [{"gpu": 2}, {"gpu": 1}]) == [
        Machine({"gpu": 1}, {"gpu": 0}),
        Machine({"gpu": 1}, {"gpu": 1}),
    ]


async def test_a_scheduler_that_is_none_is_said_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """While the scheduler cannot be used, the server tries again and again, and does not fill its log with that."""
    pytest.importorskip("distributed", reason="distributed is not installed")
    monkeypatch.setattr(dask_engine, "_RETRY_INTERVAL", 0.01)
    attempts = asyncio.Semaphore(0)

    async def refuse(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        writer.close()
        attempts.release()

    server = await asyncio.start_server(refuse, "127.0.0.1", 0)
    async with server:
        engine = DaskEngine(f"dask://127.0.0.1:{server.sockets[0].getsockname()[1]}")
        monkeypatch.setattr(dask_engine, "_CONNECT_TIMEOUT", 0.2)
        async with asyncio.timeout(60), engine.opened(lambda: None):
            while len([record for record in caplog.records if "no connection" in record.getMessage()]) < 1:
                await asyncio.sleep(0.01)
            while not attempts.locked():
                await attempts.acquire()
            for _ in range(3):
                await attempts.acquire()
        assert engine.slots(0) == 0
    assert len([record for record in caplog.records if "no connection" in record.getMessage()]) == 1


async def test_dask_trains_jobs_and_survives_its_deaths(
    data: Path,
    tmp_path: Path,
    connect: Connect,
    examples: bytes,
    trainers: Callable[[Path], list[int]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Two workers train two jobs at once; when one is killed, and when the scheduler is, its job begins again.

    If only the server's connection to the scheduler is lost, it does not.
    """
    pytest.importorskip("distributed", reason="distributed is not installed")
    monkeypatch.setattr(queue, "_FIRST_PAUSE", 0.01)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    async with (
        dask_cluster.running(tmp_path) as cluster,
        LocalServer(data, api_key=KEY, remote=RemoteTrainers(engine := DaskEngine(cluster.address))) as server,
        connect(server.base_url) as client,
    ):
        jobs = [(await client.create(examples, n_epochs=100))["id"] for _ in range(2)]
        for job in jobs:
            await client.reach(job, "Completed epoch 1/100")
        assert len(trainers(tmp_path)) == 2
        await dask_cluster.kill(cluster.workers[0])
        await cluster.start_worker()
        assert cluster.scheduler is not None
        messages = [await client.follow(job) for job in jobs]
        assert [told[-1] for told in messages] == ["Fine-tune succeeded"] * 2
        assert sum(told.count("Fine-tune started") for told in messages) == 3

        # A connection that is lost is nothing to a worker that has begun.
        job = (await client.create(examples, n_epochs=100))["id"]
        await client.reach(job, "Completed epoch 1/100")
        await engine._client.close()
        messages = [await client.follow(job)]
        assert (messages[0][-1], messages[0].count("Fine-tune started")) == ("Fine-tune succeeded", 1)

        job = (await client.create(examples, n_epochs=100))["id"]
        await client.reach(job, "Completed epoch 1/100")
        await dask_cluster.kill(cluster.scheduler)
        await cluster.start_scheduler()
        for _ in range(2):
            await cluster.start_worker()
        assert (await client.follow(job))[-1] == "Fine-tune succeeded"
        async with asyncio.timeout(30):
            while trainers(tmp_path) or any(tmp_path.glob("aiofinetune-attempt-*")):
                await asyncio.sleep(0.05)
        assert len((await client.call("GET", "/models"))["data"]) == 4 + 4
