from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from aiofinetune import (
    AuthenticationFailed,
    FineTuneCancelled,
    FineTuneRequest,
    FineTuneSession,
    NotFound,
)
from aiofinetune.local import LocalServer
from tests.servers.rawserver import FAST

ROWS = b"\n".join(
    json.dumps({"prompt": f"{name} ->", "completion": f" {kind}"}).encode()
    for kind, name in [("bird", "wren"), ("bird", "owl"), ("fish", "carp"), ("fish", "eel")] * 4
)


@pytest_asyncio.fixture
async def server(tmp_path: Path) -> AsyncIterator[LocalServer]:
    async with LocalServer(tmp_path) as server:
        yield server


@pytest_asyncio.fixture
async def session(server: LocalServer) -> AsyncIterator[FineTuneSession]:
    async with FineTuneSession(server.api_key, base_url=server.base_url, retry=FAST) as session:
        yield session


@pytest.mark.uvloop
async def test_every_endpoint(session: FineTuneSession, tmp_path: Path) -> None:
    """Every endpoint of the embedded server answers the client with what the client takes, once around."""
    file = await session.upload_file(ROWS, filename="träin.jsonl")
    assert (file.filename, file.bytes, file.purpose) == ("träin.jsonl", len(ROWS), "fine-tune")
    assert [listed.id for listed in await session.list_files()] == [file.id]
    assert [listed.id for listed in await session.list_files("fine-tune")] == [file.id]
    assert (await session.retrieve_file(file.id)).id == file.id
    assert await session.download_file(file.id) == ROWS

    job = await session.create_fine_tune(
        FineTuneRequest(training_file=file.id, model="ada", n_epochs=1, batch_size=4, suffix="client test")
    )
    async with asyncio.timeout(60):
        async with session.stream_fine_tune_events(job.id) as events:
            told = [event async for event in events]
        done = await session.wait(job.id)
    assert (done.status, done.model, done.hyperparams.n_epochs) == ("succeeded", "ada", 1)
    assert await session.list_fine_tune_events(job.id) == tuple(told) == done.events
    assert (await session.retrieve_fine_tune(job.id)) == done
    assert [listed.id for listed in await session.list_fine_tunes()] == [job.id]

    rows = await session.results(job)
    assert [row.step for row in rows] == [1, 2, 3, 4]
    path = await session.download_file(done.result_files[0].id, tmp_path / "results.csv")
    assert path.read_bytes().startswith(b"step,")

    tuned = done.fine_tuned_model
    assert tuned is not None
    assert {"ada", tuned} <= {model.id for model in await session.list_models()}
    assert (await session.retrieve_model(tuned)).id == tuned
    completion = await session.create_completion(tuned, "wren ->", max_tokens=1, temperature=0, logprobs=1)
    assert isinstance(completion.text, str)
    assert len((await session.create_completion(tuned, ["a ->", "b ->"], max_tokens=1)).choices) == 2

    assert (await session.delete_model(tuned)).deleted
    assert (await session.delete_file(file.id)).deleted
    for gone in (session.retrieve_model(tuned), session.retrieve_file(file.id), session.download_file(file.id)):
        with pytest.raises(NotFound):
            await gone


@pytest.mark.uvloop
async def test_cancel(session: FineTuneSession) -> None:
    """A job that is cancelled ends its stream, and a wait for it says so."""
    file = await session.upload_file(ROWS)
    job = await session.create_fine_tune(FineTuneRequest(training_file=file.id, model="ada", n_epochs=10_000))
    async with asyncio.timeout(60):
        waiting = asyncio.create_task(session.wait(job.id))
        cancelled = await session.cancel_fine_tune(job.id)
        assert cancelled.id == job.id
        with pytest.raises(FineTuneCancelled):
            await waiting


async def test_wrong_key(server: LocalServer) -> None:
    """The embedded server knows its key, and none else."""
    async with FineTuneSession("sk-wrong", base_url=server.base_url) as session:
        with pytest.raises(AuthenticationFailed):
            await session.list_models()


@pytest.mark.parametrize("kind", ["job", "model", "file"])
async def test_not_found(kind: str, session: FineTuneSession) -> None:
    """What is not there is not found, whatever its id looks like."""
    for name in ("missing", "a/b", "ä?#", "%2e%2e", "{}"):
        call = {"job": session.retrieve_fine_tune, "model": session.retrieve_model, "file": session.retrieve_file}[kind]
        with pytest.raises(NotFound):
            await call(name)
