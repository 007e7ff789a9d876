"""The client in the dialect of OpenAI's jobs against the embedded server's `/fine_tuning/jobs`."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import attrs
import pytest

from aiofinetune import (
    BadRequest,
    FineTuneCancelled,
    FineTuneRequest,
    FineTuneSession,
    Method,
    NotFound,
    RequestInvalid,
)
from aiofinetune.dialects import DIALECTS
from aiofinetune.dialects._dialect import KEY_NAME
from aiofinetune.local import LocalServer
from tests.local.plainclient import KEY, jsonl
from tests.servers.rawserver import FAST

ROWS = jsonl((f"{name} ->", f" {kind}") for kind, name in [("bird", "wren"), ("bird", "owl"), ("fish", "carp")] * 4)
CHATS = b"".join(
    json.dumps({"messages": [{"role": "user", "content": name}, {"role": "assistant", "content": kind}]}).encode()
    + b"\n"
    for kind, name in [("bird", "wren"), ("fish", "carp")] * 4
)

IN_SMALL_PAGES = attrs.evolve(DIALECTS["jobs"], page_size=2, max_form=200, part_size=150)
"""The dialect with pages and parts so small that a few rows need several."""


@pytest.fixture
async def session(server: LocalServer) -> AsyncIterator[FineTuneSession]:
    async with FineTuneSession(KEY, base_url=server.base_url, dialect=IN_SMALL_PAGES, retry=FAST) as session:
        yield session


async def test_files_in_parts(session: FineTuneSession) -> None:
    """A file is uploaded in parts above the size of a form, and is a file like any other."""
    sent: list[int] = []
    assert len(ROWS) > 3 * IN_SMALL_PAGES.part_size
    file = await session.upload_file(ROWS, filename="träin.jsonl", progress=lambda done, _total: sent.append(done))
    assert (file.filename, file.bytes, file.purpose, sent[-1]) == ("träin.jsonl", len(ROWS), "fine-tune", len(ROWS))
    assert await session.retrieve_file(file.id) == file
    assert await session.download_file(file.id) == ROWS
    small = await session.upload_file(ROWS[:150], filename="small.jsonl")
    assert {listed.id for listed in await session.list_files("fine-tune")} == {file.id, small.id}
    assert (await session.delete_file(file.id)).deleted
    with pytest.raises(NotFound):
        await session.retrieve_file(file.id)


async def test_one_job(session: FineTuneSession, tmp_path: Path) -> None:
    """A job is created, followed and read to its results, its checkpoints and its model, which answers."""
    file = await session.upload_file(ROWS)
    request = FineTuneRequest(
        training_file=file.id,
        validation_file=file.id,
        model="ada",
        n_epochs=3,
        batch_size="auto",
        learning_rate_multiplier=0.2,
        suffix="s" * 64,
        seed=7,
        metadata={"team": "birds"},
    )
    job = await session.create_fine_tune(request)
    assert (job.object, job.hyperparams.n_epochs, job.seed) == ("fine_tuning.job", 3, 7)
    assert job.metadata is not None
    assert job.metadata.keys() == {"team", KEY_NAME}
    async with asyncio.timeout(60):
        async with session.stream_fine_tune_events(job.id) as events:
            told = [event async for event in events]
        done = await session.wait(job.id)
    assert (done.status, done.model, done.method, done.metadata) == ("succeeded", "ada", job.method, job.metadata)
    assert (done.trained_tokens or 0) > 0
    assert await session.list_fine_tune_events(job.id) == tuple(told)
    # The events are the same through the other API.
    async with (
        FineTuneSession(KEY, base_url=session.base_url) as reference,
        reference.stream_fine_tune_events(job.id) as events,
    ):
        assert [event.message async for event in events] == [event.message for event in told]

    rows = await session.results(job)
    assert [row.step for row in rows] == list(range(1, len(rows) + 1))
    assert rows[-1].validation_loss is not None
    path = await session.download_file(done.result_files[0].id, tmp_path / "results.csv")
    assert path.read_bytes().startswith(b"step,")
    last, *others = await session.list_checkpoints(job.id)
    assert last.metrics is not None
    assert last.metrics["train_loss"] > 0
    tuned = last.fine_tuned_model_checkpoint
    assert tuned is not None
    assert (tuned, len(others)) == (done.fine_tuned_model, 2)
    for name in (tuned, others[0].fine_tuned_model_checkpoint or ""):
        assert (await session.retrieve_model(name)).id == name
        completion = await session.create_completion(name, ["wren ->", "carp ->"], max_tokens=1, temperature=0)
        assert len(completion.choices) == 2
    assert (await session.delete_model(tuned)).deleted
    for gone in (session.retrieve_model(tuned), session.list_checkpoints("ftjob-x")):
        with pytest.raises(NotFound):
            await gone


async def test_list_of_several_pages(session: FineTuneSession) -> None:
    """Jobs are listed from page to page, newest first, with their metadata, which may have no room for a key."""
    file = await session.upload_file(ROWS)
    full = {f"name {number}": "" for number in range(16)}
    made = [
        await session.create_fine_tune(
            FineTuneRequest(training_file=file.id, model="ada", n_epochs="auto", metadata=metadata)
        )
        for metadata in (full, None, {"a": "b"})
    ]
    shown = await session.list_fine_tunes()
    assert [job.id for job in shown] == [job.id for job in made][::-1]
    assert [job.metadata for job in shown] == [job.metadata for job in made][::-1]
    assert [(job.metadata or {}).keys() for job in made] == [full.keys(), {KEY_NAME}, {"a", KEY_NAME}]
    assert [job.id async for job in session.iter_fine_tunes()] == [job.id for job in shown]
    assert [job.id for job in await session.list_fine_tunes(metadata={"a": "b"})] == [shown[0].id]
    assert [job.id async for job in session.iter_fine_tunes(metadata={"a": "c"})] == []


async def test_pause_resume_and_cancel(session: FineTuneSession) -> None:
    """A job is paused and goes on; a job that is cancelled ends its stream, and a wait for it says so."""
    file = await session.upload_file(ROWS)
    job = await session.create_fine_tune(FineTuneRequest(training_file=file.id, model="ada", n_epochs=50))
    async with asyncio.timeout(60):
        for _ in range(2):
            paused = await session.pause_fine_tune(job.id)
            assert (paused.status, paused.service_status) == ("pending", "paused")
        for _ in range(2):
            assert (await session.resume_fine_tune(job.id)).service_status != "paused"
        waiting = asyncio.create_task(session.wait(job.id))
        assert (await session.cancel_fine_tune(job.id)).status == "cancelled"
        assert (await session.cancel_fine_tune(job.id)).status == "cancelled"
        with pytest.raises(FineTuneCancelled) as caught:
            await waiting
        assert caught.value.events[-1].message == "Fine-tune cancelled"
        with pytest.raises(BadRequest, match="cancelled"):
            await session.resume_fine_tune(job.id)


async def test_lost_reply(server: LocalServer) -> None:
    """If the reply to a create is lost, the job is found by the key in its metadata, past jobs that look the same."""
    lost = 0

    async def lose(request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType) -> aiohttp.ClientResponse:
        nonlocal lost
        response = await handler(request)
        if request.method == "POST" and request.url.path.endswith("/jobs") and not lost:
            lost += 1
            response.close()
            raise aiohttp.ServerDisconnectedError
        return response

    async with (
        aiohttp.ClientSession(middlewares=(lose,)) as http,
        FineTuneSession(KEY, base_url=server.base_url, dialect=IN_SMALL_PAGES, retry=FAST, http=http) as one,
        FineTuneSession(KEY, base_url=server.base_url, dialect=IN_SMALL_PAGES, retry=FAST) as other,
    ):
        file = await one.upload_file(CHATS)
        request = FineTuneRequest(training_file=file.id, model="ada", n_epochs=1)
        made, *others = await asyncio.gather(
            one.create_fine_tune(request), *(other.create_fine_tune(request) for _ in range(4))
        )
        assert lost == 1
        assert {job.id for job in (made, *others)} == {job.id for job in await one.list_fine_tunes()}
        async with asyncio.timeout(60):
            assert (await one.wait(made.id)).fine_tuned_model is not None


async def test_what_is_refused(session: FineTuneSession) -> None:
    """What the server cannot train on, and what it cannot do, is refused, by the name of the field."""
    bad = await session.upload_file(b'{"prompt": "a"}\n')
    with pytest.raises(BadRequest, match="line 1: the key 'completion' is missing") as wrong:
        await session.create_fine_tune(FineTuneRequest(training_file=bad.id, model="ada"))
    assert wrong.value.param == "training_file"
    file = await session.upload_file(b'{"prompt": "a", "completion": " b"}\n')
    request = FineTuneRequest(training_file=file.id, model="ada")
    with pytest.raises(BadRequest) as refused:
        await session.create_fine_tune(attrs.evolve(request, method=Method("preference")))
    assert refused.value.param == "method.type"
    with pytest.raises(RequestInvalid, match="model"):
        await session.create_fine_tune(attrs.evolve(request, model=None))
