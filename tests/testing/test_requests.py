"""What a server was asked, and how another process asks for faults."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from typing import Any

import attrs
import pytest
from aiohttp import web

from aiofinetune import ConfigurationError, FineTuneSession
from aiofinetune.dialects import DIALECTS
from aiofinetune.local import LocalServer
from aiofinetune.testing import FineTuneServer
from aiofinetune.testing.__main__ import main
from aiofinetune.testing._endpoints import NAMES
from aiofinetune.testing._middleware import _below
from tests.local.plainclient import Client, connected, jsonl

EXAMPLES = jsonl([("wren ->", " bird")])


async def test_requests_are_recorded(fine_tune_server: FineTuneServer, client: Client) -> None:
    """Each request is there with its endpoint, JSON, query, headers but for the key, and its reply's status."""
    job = await client.create(EXAMPLES)
    await client.call("GET", "/fine-tunes?limit=2")
    await client.call("GET", "/fine_tuning/jobs/none", status=404)
    requests = fine_tune_server.requests
    assert requests.endpoints == ["upload", "create", "list", "retrieve"]
    assert [str(asked) for asked in requests[1:3]] == ["POST /fine-tunes", "GET /fine-tunes"]
    create = requests.only("create")
    assert create.json == {"training_file": job["training_files"][0]["id"], "model": "ada"}
    assert (create.status, requests[2].query, requests[-1].status) == (200, {"limit": "2"}, 404)
    assert create.headers["content-type"] == "application/json"
    assert fine_tune_server.api_key not in repr([create.headers, requests])
    assert repr(requests[0]) == "<upload: POST /files -> 200>"


@pytest.mark.parametrize("dialect", sorted(DIALECTS))
async def test_no_record_has_the_key(fine_tune_server: FineTuneServer, dialect: str) -> None:
    """Whichever header a dialect sends the key in, no record of its requests has it."""
    server = fine_tune_server
    async with FineTuneSession(server.api_key, base_url=server.url_of(dialect), dialect=dialect) as session:
        await session.upload_file(EXAMPLES)
        await session.list_fine_tunes()
    assert len(server.requests) >= 2
    assert {asked.status for asked in server.requests} <= {200, 302}
    assert server.api_key not in repr([attrs.asdict(asked) for asked in server.requests])


async def test_a_request_without_the_key_is_recorded(fine_tune_server: FineTuneServer, client: Client) -> None:
    """A wrong key is refused as ever; the request is in the record, and meets no fault."""
    await client.call("GET", "/models")
    fine_tune_server.faults.fail_next("any", times=None)
    # On the same connection.
    await client.call("POST", "/fine-tunes", json={}, headers={"Authorization": "Bearer another-key"}, status=401)
    assert [(asked.endpoint, asked.status) for asked in fine_tune_server.requests] == [
        ("list_models", 200),
        ("create", 401),
    ]
    assert fine_tune_server.faults.pending


async def test_a_body_that_is_no_json_is_recorded_without(fine_tune_server: FineTuneServer, client: Client) -> None:
    """The server itself says what is wrong with a body."""
    options: dict[str, Any] = {"data": b"{", "headers": {"Content-Type": "application/json"}}
    error = await client.call("POST", "/fine-tunes", status=400, **options)
    assert "not JSON" in error["message"]
    assert fine_tune_server.requests.only("create").json is None


async def test_an_assertion_shows_what_was_asked(fine_tune_server: FineTuneServer, client: Client) -> None:
    """Where one request was expected, the failure shows all; a wrong name is an error of the test."""
    await client.call("GET", "/models")
    with pytest.raises(AssertionError, match=r"one request to 'create', got 0 among \[<list_models: GET /models"):
        fine_tune_server.requests.only("create")
    with pytest.raises(ConfigurationError, match="'craete'"):
        fine_tune_server.requests.to("craete")


async def test_another_process_asks_for_faults(fine_tune_server: FineTuneServer, client: Client) -> None:
    """Faults are asked for, listed and forgotten over HTTP, and neither is recorded nor meets a fault."""
    await client.call("POST", "/testing/faults/fail_next", json={"endpoint": "any", "status": 503, "times": None})
    await client.call("POST", "/testing/faults/hold_jobs")
    listed = (await client.call("GET", "/testing/faults"))["data"]
    assert listed == list(fine_tune_server.faults.pending)
    assert len(listed) == 2
    await client.call("GET", "/models", status=503)
    assert (await client.call("DELETE", "/testing/faults"))["data"] == []
    job = await client.create(EXAMPLES)
    assert (await client.finish(job["id"]))["status"] == "succeeded"
    asked = (await client.call("GET", "/testing/requests"))["data"]
    assert [each["endpoint"] for each in asked] == ["list_models", "upload", "create", "events", "retrieve"]
    assert (asked[0]["status"], asked[2]["json"]["model"]) == (503, "ada")


@pytest.mark.parametrize(
    ("path", "body", "status", "message"),
    [
        ("explode", {}, 404, "No such fault"),
        ("_add", {}, 404, "No such fault"),
        ("fail_next", {"endpoint": "craete"}, 400, "endpoint: expected one of"),
        ("fail_next", {"endpoint": "create", "sttaus": 429}, 400, "sttaus"),
        ("fail_next", {}, 400, "endpoint"),
        ("slow", [1], 400, "not a JSON object"),
    ],
    ids=str,
)
async def test_a_wrong_fault_is_refused(client: Client, path: str, body: object, status: int, message: str) -> None:
    """Another process is told what is wrong with what it asks for."""
    error = await client.call("POST", f"/testing/faults/{path}", json=body, status=status)
    assert message in error["message"]


def test_the_command_says_what_it_does(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Its help is plain text, without the marks of a docstring."""
    monkeypatch.setattr(sys, "argv", ["testing", "--help"])
    with pytest.raises(SystemExit):
        main()
    shown = capsys.readouterr().out
    assert "Run a server of tests on its own" in shown
    assert "`" not in shown


async def test_a_server_of_tests_runs_on_its_own() -> None:
    """The command prints what points a client at the server, takes faults over HTTP, and ends with SIGTERM."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "aiofinetune.testing", "--port", "0", "--api-key", "a key"),
        stdout=asyncio.subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    try:
        assert process.stdout is not None
        lines = [(await process.stdout.readline()).decode() for _ in range(2)]
        assert lines[1] == "export OPENAI_API_KEY='a key'\n"
        async with connected(lines[0].strip().removeprefix("export OPENAI_BASE_URL="), "a key") as client:
            await client.call("POST", "/testing/faults/fail_next", json={"endpoint": "list_models", "status": 503})
            await client.call("GET", "/models", status=503)
        process.terminate()
        assert await process.wait() == 0
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.communicate()


async def test_every_endpoint_has_a_name() -> None:
    """The names are those of the server's routes, neither more nor fewer."""
    routes = set[str]()

    def note(application: web.Application) -> None:
        for route in application.router.routes():
            if route.method in ("GET", "POST", "PUT", "DELETE") and route.resource is not None:
                routes.add(f"{route.method} {_below(route.resource.canonical)}")

    async with LocalServer(extend=note):
        assert routes == set(NAMES)
