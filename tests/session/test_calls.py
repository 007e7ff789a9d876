"""Each endpoint as it should go: what is sent, and what comes back; many at once."""

from __future__ import annotations

import asyncio
import contextlib
import gc
from asyncio import StreamWriter
from pathlib import Path
from typing import Any

import attrs
import pytest

from aiofinetune import FineTuneError, FineTuneSession, NoResults, NotFound, RequestInvalid, Retry
from aiofinetune.dialects._fine_tunes import FINE_TUNES
from tests.servers.rawserver import (
    FAST,
    JOB,
    KEY,
    Received,
    answering,
    event,
    knowing_file,
    reply,
    serve,
    session_for,
    talking_to,
    targets,
)
from tests.session.calls import ECHO, FILE, MODELS, ONCE, REQUEST, Call, create, list_models

pytestmark = pytest.mark.fastforward


# Each endpoint


JOBS = {"object": "list", "data": [JOB]}
EVENTS = {"object": "list", "data": [{"object": "fine-tune-event", "message": "hello"}]}
GONE = {"id": "x", "object": "file", "deleted": True}
COMPLETION = {"id": "cmpl-1", "choices": [{"text": " yes", "index": 0}]}


@pytest.mark.parametrize(
    ("call", "answer", "line"),
    [
        (create, JOB, "POST /v1/fine-tunes"),
        (lambda session: session.list_fine_tunes(), JOBS, "GET /v1/fine-tunes"),
        (lambda session: session.retrieve_fine_tune("ft-1"), JOB, "GET /v1/fine-tunes/ft-1"),
        (lambda session: session.cancel_fine_tune("ft-1"), JOB, "POST /v1/fine-tunes/ft-1/cancel"),
        (lambda session: session.list_fine_tune_events("ft-1"), EVENTS, "GET /v1/fine-tunes/ft-1/events"),
        (list_models, MODELS, "GET /v1/models"),
        (lambda session: session.retrieve_model("ada:ft-x/y"), {"id": "ada"}, "GET /v1/models/ada%3Aft-x%2Fy"),
        (lambda session: session.delete_model("ada:ft-x"), GONE, "DELETE /v1/models/ada%3Aft-x"),
        (lambda session: session.create_completion("ada", "hi"), COMPLETION, "POST /v1/completions"),
        (lambda session: session.upload_file(b"x"), FILE, "POST /v1/files"),
        (lambda session: session.list_files(), {"data": [FILE]}, "GET /v1/files"),
        (lambda session: session.list_files("fine-tune"), {"data": [FILE]}, "GET /v1/files?purpose=fine-tune"),
        (lambda session: session.retrieve_file("file-1"), FILE, "GET /v1/files/file-1"),
        (lambda session: session.delete_file("file-1"), GONE, "DELETE /v1/files/file-1"),
    ],
)
async def test_request_line(call: Call, answer: object, line: str) -> None:
    """Each coroutine calls its endpoint once, with the headers that every call has."""
    seen: list[Received] = []
    async with (
        serve(answering(reply(body=answer), seen=seen)) as url,
        FineTuneSession(KEY, base_url=url, organization="org-1") as session,
    ):
        assert await call(session)
    assert targets(seen) == [line]
    headers = seen[0].headers
    assert headers["authorization"] == f"Bearer {KEY}"
    assert headers["openai-organization"] == "org-1"
    assert headers["user-agent"].startswith("aiofinetune/")
    assert headers["accept"] == "application/json"
    assert headers["accept-encoding"] == "gzip, deflate"


async def test_download_request() -> None:
    """A download asks for the file's size, then for its content just as it is."""
    seen: list[Received] = []
    async with talking_to(answering(reply(body={**FILE, "bytes": 4}), reply(body=b"data"), seen=seen)) as session:
        assert await session.download_file("file-1") == b"data"
    assert targets(seen) == ["GET /v1/files/file-1", "GET /v1/files/file-1/content"]
    assert seen[1].headers["accept"] == "*/*"
    assert seen[1].headers["accept-encoding"] == "identity"


async def test_create() -> None:
    """A job is created by what was asked for as JSON, with a key that differs from job to job."""
    seen: list[Received] = []
    async with talking_to(answering(reply(body=JOB), reply(body={**JOB, "id": "ft-2"}), seen=seen)) as session:
        job = await session.create_fine_tune(REQUEST)
        await session.create_fine_tune(REQUEST)
    assert (job.id, job.status) == ("ft-1", "running")
    assert seen[0].body == b'{"training_file":"file-1","model":"ada","n_epochs":2}'
    assert seen[0].headers["content-type"] == "application/json"
    assert seen[0].headers["idempotency-key"] != seen[1].headers["idempotency-key"]


async def test_listings() -> None:
    """A listing is a tuple of what is in it, in the service's order."""
    data = [{"id": "b"}, {"id": "a"}]
    async with talking_to(answering(reply(body={"data": data}))) as session:
        assert [model.id for model in await session.list_models()] == ["b", "a"]
        assert [file.id for file in await session.list_files()] == ["b", "a"]
    async with talking_to(answering(reply(body=EVENTS))) as session:
        assert [said.message for said in await session.list_fine_tune_events("ft-1")] == ["hello"]
    async with talking_to(answering(reply(body=JOBS))) as session:
        assert [job.id for job in await session.list_fine_tunes()] == ["ft-1"]


@pytest.mark.parametrize(
    ("parameters", "body"),
    [
        ({"prompt": "hi"}, b'{"model":"ada","prompt":"hi"}'),
        ({"prompt": ("a", "b")}, b'{"model":"ada","prompt":["a","b"]}'),
        (
            {"prompt": "hi", "max_tokens": 1, "temperature": 0, "stop": ("\n",), "logprobs": 2, "seed": 7},
            b'{"model":"ada","prompt":"hi","max_tokens":1,"temperature":0,"stop":["\\n"],"logprobs":2,"seed":7}',
        ),
        ({"prompt": "hi", "stop": "\n"}, b'{"model":"ada","prompt":"hi","stop":"\\n"}'),
    ],
)
async def test_completion(parameters: dict[str, Any], body: bytes) -> None:
    """A completion is asked for with what was given, and nothing that was not."""
    seen: list[Received] = []
    async with talking_to(answering(reply(body=COMPLETION), seen=seen)) as session:
        completion = await session.create_completion("ada", **parameters)
    assert completion.text == " yes"
    assert seen[0].body == body


@pytest.mark.parametrize(
    "parameters", [{"prompt": "\ud800"}, {"prompt": "x", "seed": 2**64}, {"prompt": "x", "stop": [b"x"]}]
)
async def test_completion_that_json_cannot_hold(parameters: dict[str, Any]) -> None:
    """What JSON cannot hold is a wrong request, and nothing is sent."""
    async with session_for("http://127.0.0.1:1/v1") as session:
        with pytest.raises(RequestInvalid):
            await session.create_completion("ada", **parameters)


async def test_results(samples: Path) -> None:
    """The results of a job are its results file, read; a job that was listed before it had one is looked up again."""
    finished = {**JOB, "status": "succeeded", "result_files": [{"id": "file-r"}]}
    csv = reply(body=(samples / "compiled_results.csv").read_bytes())
    seen: list[Received] = []
    answers = answering(reply(body=JOB), reply(body=finished), csv, seen=seen)
    async with talking_to(knowing_file(0, answers)) as session:
        job = await session.retrieve_fine_tune("ft-1")
        rows = await session.results(job)
        assert [row.step for row in rows] == [1, 2, 3]
    assert targets(seen)[1:] == ["GET /v1/fine-tunes/ft-1", "GET /v1/files/file-r/content"]


async def test_no_results() -> None:
    """A job that has no results says so, with its status."""
    async with talking_to(answering(reply(body=JOB))) as session:
        job = await session.retrieve_fine_tune("ft-1")
        with pytest.raises(NoResults, match=r"^fine-tune ft-1 has no results file; its status is running"):
            await session.results(job)


async def test_retired_service() -> None:
    """A 404 of the reference's own service, which retired the endpoint, says what to do; no other service's does."""
    seen: list[Received] = []
    async with serve(answering(reply(404, {"error": "gone"}), seen=seen)) as url:
        async with session_for(url) as session:
            with pytest.raises(NotFound, match=r"^404: gone$"):
                await session.list_fine_tunes()
        async with FineTuneSession(KEY, base_url=url, dialect=attrs.evolve(FINE_TUNES, base_url=url)) as session:
            with pytest.raises(NotFound, match=r"^404: gone\. .*OPENAI_BASE_URL.*dialect=\"jobs\""):
                await session.list_fine_tunes()
    assert len(seen) == 2


async def test_create_of_no_request() -> None:
    """A dict is no request: the error says so, and nothing is sent."""
    seen: list[Received] = []
    async with talking_to(answering(reply(), seen=seen)) as session:
        with pytest.raises(RequestInvalid, match="expected a FineTuneRequest, got dict"):
            await session.create_fine_tune({"training_file": "file-1"})  # type: ignore[arg-type]  # it is the point
    assert seen == []


async def test_a_part_of_a_list(caplog: pytest.LogCaptureFixture) -> None:
    """Where the service keeps a part of a list back, the log says so."""
    async with talking_to(answering(reply(body={**MODELS, "has_more": True}))) as session:
        await session.list_models()
    assert caplog.messages == ["GET /models: the service sent only part of the list"]


# Many at once


async def test_many_calls() -> None:
    """More calls at once than may be under way wait their turn, and each gets its own reply."""

    async def handler(request: Received, writer: StreamWriter) -> None:
        await asyncio.sleep(0)
        writer.write(reply(body={"id": request.target.rpartition("/")[2]}))

    # Debugging asyncio costs more here than all else.
    asyncio.get_running_loop().set_debug(False)
    async with talking_to(handler) as session:
        models = await asyncio.gather(*(session.retrieve_model(f"m{number}") for number in range(300)))
    assert [model.id for model in models] == [f"m{number}" for number in range(300)]


async def test_nothing_is_left() -> None:
    """After failures of all kinds no task of the session's is left, and nothing warns of what was not closed."""
    async with talking_to(answering(*ECHO[:9]), retry=ONCE) as session:
        for _ in ECHO[:9]:
            with contextlib.suppress(FineTuneError):
                await session.list_models()
    await asyncio.sleep(0)
    gc.collect()
    assert asyncio.all_tasks() == {asyncio.current_task()}
    assert FAST.attempts == Retry().attempts
    assert event("x").endswith(b"\n\n")
