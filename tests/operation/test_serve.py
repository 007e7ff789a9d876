"""The log and the metrics of ``aiofinetune serve``."""

from __future__ import annotations

import contextlib
import json
import logging
import re
import signal
import sys
from collections.abc import AsyncIterator

import aiohttp
import pytest

from aiofinetune import AuthenticationFailed, ConfigurationError, FineTuneRequest, FineTuneSession
from aiofinetune.cli._serve import _start_log
from aiofinetune.local import LocalServer
from aiofinetune.local._access import Answered, Metrics, watch_requests
from aiofinetune.testing._instant import InstantTrainers
from tests.local.test_command_line import exported, running

ROWS = b'{"prompt": "a ->", "completion": " b"}\n' * 8


def with_key_of(server: LocalServer) -> aiohttp.ClientSession:
    return aiohttp.ClientSession(headers={"Authorization": f"Bearer {server.api_key}"})


async def test_serve_logs_requests_and_jobs_as_json() -> None:
    """With ``--log-format json`` each request, even a refused one, and a job's start and end are lines, all of JSON."""
    async with running("serve", "--port", "0", "--log-format", "json") as process:
        variables = await exported(process)
        async with FineTuneSession(variables["OPENAI_API_KEY"], base_url=variables["OPENAI_BASE_URL"]) as session:
            file = await session.upload_file(ROWS)
            job = await session.create_fine_tune(FineTuneRequest(training_file=file.id, model="ada", n_epochs=1))
            await session.wait(job.id)
        async with FineTuneSession("wrong-key", base_url=variables["OPENAI_BASE_URL"]) as session:
            with pytest.raises(AuthenticationFailed):
                await session.list_files()
        process.send_signal(signal.SIGINT)
        _, stderr = await process.communicate()
    lines = [json.loads(line) for line in stderr.splitlines()]
    answered = [(line["method"], line["route"], line["status"]) for line in lines if "route" in line]
    assert ("POST", "/v1/fine-tunes", 200) in answered
    assert ("GET", "/v1/fine-tunes/{id}", 200) in answered
    assert ("GET", "/v1/files", 401) in answered
    told = [line["message"] for line in lines if line.get("job_id") == job.id]
    assert told[0] == f"fine-tune {job.id} started"
    assert told[1].startswith(f"fine-tune {job.id}: succeeded after ")
    assert variables["OPENAI_API_KEY"].encode() not in stderr
    assert b"wrong-key" not in stderr


async def test_serve_logs_as_text() -> None:
    """With ``--log-format text`` a request is a line with its time and level."""
    async with running("serve", "--port", "0", "--log-format", "text") as process:
        variables = await exported(process)
        async with FineTuneSession(variables["OPENAI_API_KEY"], base_url=variables["OPENAI_BASE_URL"]) as session:
            await session.list_files()
        process.send_signal(signal.SIGINT)
        _, stderr = await process.communicate()
    (line,) = [line for line in stderr.decode().splitlines() if "GET" in line]
    assert " INFO GET /v1/files: 200 in " in line


def test_a_warning_has_its_time_without_a_format_too(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without ``--log-format`` a warning or an error is one line of text with its time and level; the rest is not."""
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    _start_log(None)
    logging.getLogger("aiofinetune.local").info("not this")
    logging.getLogger("aiofinetune.local").warning("this")
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z WARNING this\n", capsys.readouterr().err)


async def test_a_request_is_noted_by_its_route() -> None:
    """Ids do not become routes, and a path that no route has is "unknown": the number of routes is bounded."""
    seen: list[Answered] = []
    async with (
        LocalServer(extend=lambda application: watch_requests(application, seen.append)) as server,
        with_key_of(server) as http,
    ):
        for path in ("/files/file-1", "/no/such/path"):
            async with http.get(f"{server.base_url}{path}") as response:
                assert response.status == 404
    assert [(each.method, each.route, each.status) for each in seen] == [
        ("GET", "/v1/files/{id}", 404),
        ("GET", "unknown", 404),
    ]
    assert all(each.request_id for each in seen)


@contextlib.asynccontextmanager
async def measured() -> AsyncIterator[tuple[LocalServer, str]]:
    """A server with metrics and instant jobs, and the URL of its metrics."""
    metrics = Metrics(InstantTrainers())
    async with LocalServer(trainers=metrics, extend=metrics.extend) as server:
        yield server, server.base_url.removesuffix("/v1") + "/metrics"


async def test_metrics_count_requests_and_trainings() -> None:
    """``/metrics`` has the requests by route and status, and the trainings by how they ended."""
    pytest.importorskip("prometheus_client", reason="prometheus-client is not installed")
    async with measured() as (server, url), FineTuneSession(server.api_key, base_url=server.base_url) as session:
        file = await session.upload_file(ROWS)
        job = await session.create_fine_tune(FineTuneRequest(training_file=file.id, model="ada", n_epochs=1))
        await session.wait(job.id)
        async with with_key_of(server) as http, http.get(url) as response:
            assert response.headers["Content-Type"].startswith("text/plain; version=")
            lines = (await response.text()).splitlines()
    assert 'aiofinetune_request_seconds_count{method="POST",route="/v1/fine-tunes",status="200"} 1.0' in lines
    assert 'aiofinetune_training_seconds_count{end="succeeded"} 1.0' in lines
    assert "aiofinetune_trainings_running 0.0" in lines


async def test_metrics_need_the_key() -> None:
    """Whoever has no key gets no metrics."""
    pytest.importorskip("prometheus_client", reason="prometheus-client is not installed")
    async with measured() as (_server, url), aiohttp.ClientSession() as http, http.get(url) as response:
        assert response.status == 401


async def test_metrics_name_their_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without prometheus-client, ``--metrics`` says what to install."""
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    with pytest.raises(ConfigurationError, match=r"pip install 'aiofinetune\[metrics\]'"):
        Metrics()
