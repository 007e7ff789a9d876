"""The embedded server itself: starting, stopping, and what it refuses to be."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from aiofinetune.errors import ConfigurationError
from aiofinetune.local import LocalServer
from aiofinetune.local._routes import Handler
from aiofinetune.local._worker.calls import Refusal
from aiofinetune.local._worker.claiming import work
from tests.local.plainclient import Client, Connect
from tests.local.wire import FORM, FORM_NAME, address, form, read_reply, request_bytes


@pytest.mark.uvloop
async def test_the_server_leaves_nothing_behind(
    connect: Connect,
    examples: bytes,
    trainers: Callable[[Path], list[int]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """After the server, there is no task, thread, trainer or temporary folder, though a job was running."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    tasks = asyncio.all_tasks()
    async with LocalServer() as server, connect(server.base_url, server.api_key) as client:
        job = await client.create(examples, n_epochs=100_000)
        await client.reach(job["id"], "Completed epoch 1/100000")
        assert len(trainers(tmp_path)) == 1
    assert asyncio.all_tasks() == tasks
    assert not [thread.name for thread in threading.enumerate() if thread.name.startswith("aiofinetune")]
    assert trainers(tmp_path) == []
    assert list(tmp_path.iterdir()) == []
    assert server.api_key not in repr(server)


async def test_a_second_server_on_the_same_folder_is_refused(server: LocalServer, client: Client, data: Path) -> None:
    """The folder belongs to one server at a time, and the first is not disturbed."""
    with pytest.raises(ConfigurationError, match="another server"):
        async with LocalServer(data):
            pass
    await client.call("GET", "/models")


async def test_a_port_in_use_is_refused(server: LocalServer) -> None:
    """A port that cannot be had is the configuration's fault, and says so."""
    port = address(server)[1]
    with pytest.raises(ConfigurationError) as caught:
        async with LocalServer(port=port):
            pass
    assert str(caught.value) == f"cannot listen on 127.0.0.1, port {port}: Address already in use"


@pytest.mark.parametrize(
    "options",
    [
        *({"host": "0.0.0.0"}, {"host": "example.com"}),  # to see it refused
        *({"api_key": ""}, {"api_key": "a\n"}, {"api_key": 5}, {"models": ["x"]}),
    ],
)
def test_an_unsafe_configuration_is_refused(options: dict[str, Any]) -> None:
    """An open host needs a key of one's own, a key must fit into a header, and a model be one."""
    with pytest.raises(ConfigurationError):
        LocalServer(**options)


async def test_a_server_without_workers_says_so(server: LocalServer) -> None:
    """A worker at a server that takes none learns that, and not that its token is wrong."""
    with pytest.raises(Refusal, match="takes no workers; start it with --worker-token-file"):
        await work(f"{server.base_url}/attempts", "any-token-at-all", {})


async def test_without_numpy_the_server_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    """NumPy is needed when the server is entered, not when it is imported."""
    server = LocalServer()
    monkeypatch.setitem(sys.modules, "numpy", None)
    with pytest.raises(ConfigurationError, match=r"aiofinetune\[local\]"):
        await server.__aenter__()


async def test_a_client_may_hold_its_body_back(server: LocalServer) -> None:
    """``Expect: 100-continue`` asks for the body, and the file arrives."""
    body = form(FORM["purpose"], FORM["file"])
    head = request_bytes(
        *("POST", "/v1/files"), Content_Type=FORM_NAME, Content_Length=str(len(body)), Expect="100-Continue"
    )
    reader, writer = await asyncio.open_connection(*address(server))
    writer.write(head)
    assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
    writer.write(body)
    status, _, reply = await read_reply(reader)
    assert (status, json.loads(reply)["bytes"]) == (200, len(b"line\r\n\r\n--x\r\nline"))
    writer.close()
    await writer.wait_closed()


@pytest.mark.uvloop
async def test_a_server_listens_on_ipv6_too(connect: Connect) -> None:
    """The base URL of an IPv6 address has its brackets."""
    async with LocalServer(host="::1") as server, connect(server.base_url, server.api_key) as client:
        assert server.base_url.startswith("http://[::1]:")
        assert (await client.call("GET", "/models"))["data"]


async def test_a_server_that_runs_cannot_be_entered_again(server: LocalServer) -> None:
    """One object is one running server."""
    with pytest.raises(ConfigurationError, match="running already"):
        await server.__aenter__()


async def test_what_the_body_raises_comes_out_as_it_is() -> None:
    """The server wraps no exception of the block that it serves, cancellation included."""
    for failure in (ZeroDivisionError(), asyncio.CancelledError()):
        with pytest.raises(type(failure)) as caught:
            async with LocalServer():
                raise failure
        assert caught.value is failure


def test_a_server_runs_in_a_thread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Code that is not async calls a server in a thread, and nothing of it is left afterwards."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with LocalServer().in_thread() as server:
        with contextlib.closing(http.client.HTTPConnection(*address(server), timeout=60)) as connection:
            connection.request("GET", "/v1/models", headers={"Authorization": f"Bearer {server.api_key}"})
            assert json.load(connection.getresponse())["data"][0]["id"] == "ada"
        with pytest.raises(ZeroDivisionError), LocalServer().in_thread():
            raise ZeroDivisionError
    assert not [thread.name for thread in threading.enumerate() if thread.name.startswith("aiofinetune")]
    assert list(tmp_path.iterdir()) == []


def test_a_server_that_cannot_start_in_a_thread_says_why(tmp_path: Path) -> None:
    """What keeps a server from starting is raised where the thread was asked for."""
    (tmp_path / "data").touch()
    with pytest.raises(ConfigurationError, match="cannot be used"), LocalServer(tmp_path / "data").in_thread():
        pass


async def test_what_is_added_to_a_server_sees_only_requests_with_its_key(connect: Connect) -> None:
    """A middleware and a route of one's own are behind the key, and a middleware may answer instead of the server."""
    seen = list[str]()

    @web.middleware
    async def note(request: web.Request, handler: Handler) -> web.StreamResponse:
        seen.append(request.path)
        return await handler(request)

    async def greet(_request: web.Request) -> web.StreamResponse:
        return web.json_response({"greeting": "hello"})

    def extend(application: web.Application) -> None:
        application.middlewares.append(note)
        application.router.add_get("/v1/greeting", greet)

    async with LocalServer(extend=extend) as server:
        async with connect(server.base_url, "another-key") as stranger:
            await stranger.call("GET", "/greeting", status=401)
        async with connect(server.base_url, server.api_key) as client:
            assert await client.call("GET", "/greeting") == {"greeting": "hello"}
            await client.call("GET", "/models")
    assert seen == ["/v1/greeting", "/v1/models"]
