"""Each exit status, reached by a command, in both APIs of jobs."""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.cli import ashell
from tests.cli.test_processes import running
from tests.servers.rawserver import Received, event, reply, serve

DIALECTS = {
    "fine-tunes": {"id": "ft-1", "object": "fine-tune", "created_at": 1},
    "jobs": {"id": "ftjob-1", "object": "fine_tuning.job", "created_at": 1},
}
"""A job of each."""


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "home"))


@pytest.fixture(params=DIALECTS)
def dialect(request: pytest.FixtureRequest) -> str:
    """Each API of jobs."""
    name: str = request.param
    return name


@asynccontextmanager
async def service(dialect: str, *, status: str = "succeeded", refuses: bool = False) -> AsyncIterator[tuple[str, str]]:
    """A service that has one job, and loses the reply to each create; its base URL, and the job's id."""
    job = {**DIALECTS[dialect], "status": status, "model": "ada", "training_files": [{"id": "file-1"}]}
    page = {"object": "list", "has_more": False}

    async def answer(request: Received, writer: asyncio.StreamWriter) -> None:
        path = request.target.partition("?")[0]
        if request.method == "POST":
            writer.transport.abort()
        elif refuses:
            writer.write(reply(401, b'{"error": {"message": "Wrong key"}}'))
        elif "stream=true" in request.target:
            writer.write(reply(200, event("Created") + b"data: [DONE]\n\n", content_type="text/event-stream"))
        elif path.endswith("/events"):
            writer.write(as_json({**page, "data": [{"object": "event", "message": "Created", "created_at": 1}]}))
        elif path.endswith(str(job["id"])):
            writer.write(as_json(job))
        elif path.endswith("/files"):
            writer.write(as_json({**page, "data": []}))
        else:
            writer.write(reply(404, b'{"error": {"message": "no list here"}}'))

    async with serve(answer) as url:
        yield url, str(job["id"])


def as_json(value: dict[str, Any]) -> bytes:
    return reply(200, json.dumps(value).encode())


async def test_0_done(dialect: str) -> None:
    """What was asked for is there."""
    async with service(dialect) as (url, job):
        assert (await ashell("get", job, "--dialect", dialect, url=url)).exit_code == 0


async def test_1_failed(dialect: str) -> None:
    """A job that is followed failed."""
    async with service(dialect, status="failed") as (url, job):
        assert (await ashell("follow", job, "--dialect", dialect, url=url)).exit_code == 1


async def test_2_wrong_use(dialect: str) -> None:
    """A parameter is wrong."""
    for words in (["file-1", "--n-epochs", 0], ["file-1", "--seed", "x"]):
        told = await ashell("create", *words, "-m", "ada", "--dialect", dialect, url="http://127.0.0.1:9/v1")
        assert told.exit_code == 2


async def test_3_refused(dialect: str) -> None:
    """The key is refused."""
    async with service(dialect, refuses=True) as (url, job):
        assert (await ashell("get", job, "--dialect", dialect, url=url)).exit_code == 3


async def test_4_not_reached(dialect: str) -> None:
    """Nothing listens."""
    told = await ashell("list", "--dialect", dialect, "--retries", 0, url="http://127.0.0.1:9/v1")
    assert told.exit_code == 4


async def test_4_no_such_service(dialect: str) -> None:
    """Some web server answers, which knows neither the paths nor the methods of the API."""
    Path("jobs.toml").write_text('[[requests]]\ntraining_file = "file-1"\nmodel = "ada"')

    async def answer(request: Received, writer: asyncio.StreamWriter) -> None:
        writer.write(reply(501 if request.method == "POST" else 404, b"<!DOCTYPE HTML>", content_type="text/html"))

    async with serve(answer) as url:
        for words in (["list"], ["get", "ft-1"], ["create", "file-1", "-m", "ada"], ["batch", "jobs.toml"]):
            told = await ashell(*words, "--dialect", dialect, url=url)
            assert (told.exit_code, "Check --base-url" in told.stdout + told.stderr) == (4, True), told.stderr
    assert "0 rejected" in told.stdout


async def test_5_wrong_data(dialect: str) -> None:
    """The data of a create and a manifest are wrong, and nothing is sent."""
    Path("train.jsonl").write_text('{"prompt": "a", "completion": "b"}\n{"prompt"\n')
    Path("jobs.toml").write_text('[[requests]]\ntraining_file = "gone.jsonl"\nmodel = "ada"')
    for words in (["create", "train.jsonl", "-m", "ada"], ["batch", "jobs.toml"]):
        told = await ashell(*words, "--dialect", dialect, url="http://127.0.0.1:9/v1")
        assert told.exit_code == 5, told.stderr
    told = await ashell(
        "create", "train.jsonl", "-m", "ada", "--no-data-check", "--retries", 0, url="http://127.0.0.1:9/v1"
    )
    assert told.exit_code == 4


async def test_6_journal_unusable(dialect: str) -> None:
    """What is to be the journal is none."""
    Path("jobs.toml").write_text('[[requests]]\ntraining_file = "file-1"\nmodel = "ada"')
    Path("jobs.toml.journal").write_text("notes")
    async with service(dialect) as (url, _job):
        assert (await ashell("batch", "jobs.toml", "--dialect", dialect, url=url)).exit_code == 6


async def test_7_uncertain(dialect: str) -> None:
    """The reply to a create is lost, and no list can tell."""
    async with service(dialect) as (url, _job):
        told = await ashell("create", "file-1", "-m", "ada", "--dialect", dialect, "--retries", 0, url=url)
    assert told.exit_code == 7, told.stderr


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
async def test_130_and_143_interrupted(number: signal.Signals, status: int) -> None:
    """A command that follows a job of the jobs API is interrupted; that of the reference has its test elsewhere."""
    async with (
        service("jobs", status="running") as (url, job),
        running("follow", job, "--dialect", "jobs", url=url) as process,
    ):
        assert process.stdout is not None
        assert (await process.stdout.readline()).endswith(b"  Created\n")
        process.send_signal(number)
        await process.communicate()
    assert process.returncode == status
