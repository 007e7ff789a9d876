"""What the log says of a session's calls, jobs and streams."""

from __future__ import annotations

import asyncio
import logging

import pytest

from aiofinetune import ConnectionLost
from tests.servers.rawserver import JOB, KEY, STREAM_HEAD, Received, answering, chunk, event, reply, talking_to
from tests.session.calls import FILE, MODELS, ONCE, REQUEST, create, list_models

BUSY = reply(429, {"error": {"message": "slow down"}}, Retry_After="0")


def lines(caplog: pytest.LogCaptureFixture, level: int) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno == level]


async def test_each_attempt_is_a_debug_record_with_fields(caplog: pytest.LogCaptureFixture) -> None:
    """An attempt is logged with its method, path, status, time, number and request id, as fields too."""
    caplog.set_level(logging.DEBUG, "aiofinetune")
    first, second = reply(500, b"", X_Request_ID="req-1"), reply(body=JOB | {"id": "ft-1"}, X_Request_ID="req-2")
    async with talking_to(answering(first, second)) as session:
        await session.retrieve_fine_tune("ft-1")
    told = [record.__dict__ for record in caplog.records if record.levelno == logging.DEBUG]
    fields = [[record[name] for name in ("method", "path", "status", "attempt", "request_id")] for record in told]
    assert fields == [["GET", "/fine-tunes/{}", 500, 1, "req-1"], ["GET", "/fine-tunes/{}", 200, 2, "req-2"]]
    assert all(0 < record["seconds"] < 60 for record in told)


async def test_an_attempt_without_a_reply_says_what_ended_it(caplog: pytest.LogCaptureFixture) -> None:
    """Where there is no status, the record names the error."""
    caplog.set_level(logging.DEBUG, "aiofinetune")

    async def handler(_request: Received, writer: asyncio.StreamWriter) -> None:
        writer.close()

    async with talking_to(handler, retry=ONCE) as session:
        with pytest.raises(ConnectionLost):
            await list_models(session)
    assert lines(caplog, logging.DEBUG)[0].startswith("GET /models: ConnectionLost in ")


async def test_a_job_that_was_created_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    """INFO says that a job was created, with its id as a field."""
    caplog.set_level(logging.INFO, "aiofinetune")
    async with talking_to(answering(reply(body=JOB))) as session:
        await create(session)
    (record,) = caplog.records
    assert record.getMessage() == f"created {JOB['id']}"
    assert record.__dict__["job_id"] == JOB["id"]


async def test_throttling_is_logged_once_with_its_end(caplog: pytest.LogCaptureFixture) -> None:
    """INFO says since when a session is throttled, once, and when its calls succeed again."""
    caplog.set_level(logging.INFO, "aiofinetune")
    async with talking_to(answering(BUSY, BUSY, reply(body=MODELS))) as session:
        await list_models(session)
    told = [line for line in lines(caplog, logging.INFO) if "retrying" not in line]
    assert [line.partition(" ")[0] for line in told] == ["throttled", "calls"]


async def test_a_stream_that_resumes_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    """INFO says that a broken event stream connects again, and that it is resumed."""
    caplog.set_level(logging.INFO, "aiofinetune")
    pieces = [chunk(event("a")), chunk(event("a")) + chunk(b"data: [DONE]\n\n") + chunk(b"")]

    async def handler(_request: Received, writer: asyncio.StreamWriter) -> None:
        writer.write(STREAM_HEAD + pieces.pop(0))
        writer.close()

    async with talking_to(handler) as session, session.stream_fine_tune_events("ft-1") as events:
        assert [each.message async for each in events] == ["a"]
    told = [line for line in lines(caplog, logging.INFO) if "stream" in line]
    assert len(told) == 2
    assert "reconnecting" in told[0]
    assert told[1] == "event stream of ft-1, resumed after failure 1"


async def test_neither_keys_nor_data_are_logged(caplog: pytest.LogCaptureFixture) -> None:
    """No record, nor any of its fields, holds the key, even if the service echoes it, or anything of the request."""
    caplog.set_level(logging.DEBUG, "aiofinetune")
    echo = reply(500, KEY.encode(), X_Request_ID=KEY)
    async with talking_to(answering(echo, reply(body=JOB), reply(body=JOB), reply(body=FILE))) as session:
        await session.retrieve_fine_tune("ft-1")
        await create(session)
        await session.upload_file(b"private data")
    told = [str(record.__dict__) + record.getMessage() for record in caplog.records if record.name == "aiofinetune"]
    assert len(told) >= 4
    assert not [each for each in told if KEY in each or "private" in each or REQUEST.training_file in each]
