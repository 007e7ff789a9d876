"""The embedded server's connections: clients that hold one without a request lock nobody out."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import os
import resource
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from aiofinetune.local import LocalServer
from aiofinetune.local import _connections as connections
from aiofinetune.local._routes import bodies
from tests.local.plainclient import Client, Connect

HALF = b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\nX-Half: "
KEY = b"Authorization: Bearer a-key-for-tests\r\n"
FORM = b"Content-Type: multipart/form-data; boundary=x\r\nContent-Length: 1000000\r\n"
HALF_BODIES = {
    "JSON": b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\n" + KEY + b'Content-Length: 100\r\n\r\n{"model": ',
    "form": b"POST /v1/files HTTP/1.1\r\nHost: localhost\r\n" + KEY + FORM + b"\r\n--x\r\n",
    "file": b"POST /v1/files HTTP/1.1\r\nHost: localhost\r\n"
    + (KEY + FORM + b"\r\n--x\r\nContent-Disposition: form-data; name=file\r\n\r\nhalf"),
}


class Raw:
    """Connections of a client that keeps to no rules."""

    def __init__(self, base_url: str) -> None:
        parts = urlsplit(base_url)
        self._address = parts.hostname, parts.port
        self._writers: list[asyncio.StreamWriter] = []

    async def send(self, data: bytes) -> asyncio.StreamReader:
        """Open a connection, and send something."""
        reader, writer = await asyncio.open_connection(*self._address, limit=1 << 16)
        self._writers.append(writer)
        writer.write(data)
        return reader

    async def close(self) -> None:
        """Close all."""
        for writer in self._writers:
            writer.transport.abort()
        for writer in self._writers:
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()


@pytest.fixture
async def raw(server: LocalServer) -> AsyncIterator[Raw]:
    """Raw connections to the running server."""
    raw = Raw(server.base_url)
    yield raw
    await raw.close()


def error_of(reply: bytes, status: bytes) -> str:
    """Check that a whole reply has that status and the envelope; return the message."""
    head, _, body = reply.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 " + status)
    assert b"x-request-id: req-" in head
    error = json.loads(body)["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    return str(error["message"])


@contextlib.asynccontextmanager
async def served(folder: Path, descriptors: int) -> AsyncIterator[tuple[int, str]]:
    """Run the command's server with so few descriptors; give its process id and URL; its stderr goes to a file."""
    command = (
        f"ulimit -n {descriptors} && exec {sys.executable} -m aiofinetune serve --port 0 --local-data {folder}/data"
    )
    with (folder / "log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            *("sh", "-c", command),
            stdout=asyncio.subprocess.PIPE,
            stderr=log,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "AIOFINETUNE_API_KEY": "key"},
        )
    try:
        assert process.stdout is not None
        line = await process.stdout.readline()
        yield process.pid, line.decode().strip().removeprefix("export OPENAI_BASE_URL=")
        process.terminate()
        assert await process.wait() == 0
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.communicate()


async def test_half_headers_lock_nobody_out(tmp_path: Path, connect: Connect) -> None:
    """Among more half requests than there are descriptors a client is served, and little is logged."""
    async with served(tmp_path, 128) as (_, url):
        raw = Raw(url)
        for _ in range(200):
            await raw.send(HALF)
        async with asyncio.timeout(20), connect(url, "key") as client:
            await client.upload(b"x")
            await client.call("GET", "/models")
        await raw.close()
    lines = (tmp_path / "log").read_text().splitlines()
    assert len(lines) == 3
    assert "closing idle ones to accept new ones" in lines[2]


async def test_a_process_without_descriptors_accepts_again_when_there_are_some(
    tmp_path: Path, connect: Connect
) -> None:
    """Where the application around the server has taken the descriptors, connections without a request make room."""
    async with served(tmp_path, 1000) as (pid, url):
        async with connect(url, "key") as client:
            await client.call("GET", "/models")
        raw = Raw(url)
        for _ in range(5):
            await raw.send(HALF)
        used = len(list(Path(f"/proc/{pid}/fd").iterdir()))
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (used + 2, 1000))
        for _ in range(50):
            await raw.send(HALF)
        async with asyncio.timeout(20):
            while b"cannot accept a connection" not in (tmp_path / "log").read_bytes():
                await asyncio.sleep(0.01)
        await raw.close()
        async with asyncio.timeout(20), connect(url, "key") as client:
            await client.call("GET", "/models")
    assert len((tmp_path / "log").read_text().splitlines()) == 3


@pytest.mark.uvloop
async def test_headers_have_to_come_in_time(server: LocalServer, monkeypatch: pytest.MonkeyPatch, raw: Raw) -> None:
    """A client that sends half of its headers gets a 408 in the envelope, and its connection is closed."""
    monkeypatch.setattr(connections, "_HEADER_TIMEOUT", 0.05)
    readers = [await raw.send(HALF[:length]) for length in (1, 20, len(HALF))]
    async with asyncio.timeout(20):
        for reader in readers:
            assert "in time" in error_of(await reader.read(), b"408")


@pytest.mark.uvloop
async def test_a_connection_that_is_not_used_is_closed(
    server: LocalServer, monkeypatch: pytest.MonkeyPatch, raw: Raw
) -> None:
    """Between two requests, and before the first, a connection stays open for some time only."""
    monkeypatch.setattr(connections, "_IDLE_TIMEOUT", 0.05)
    unused = await raw.send(b"")
    used = await raw.send(b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\n" + KEY + b"\r\n")
    async with asyncio.timeout(20):
        assert await unused.read() == b""
        assert (await used.read()).startswith(b"HTTP/1.1 200 OK")


@pytest.mark.uvloop
@pytest.mark.parametrize("sent", HALF_BODIES.values(), ids=HALF_BODIES.keys())
async def test_bodies_have_to_come_in_time(
    client: Client, data: Path, monkeypatch: pytest.MonkeyPatch, raw: Raw, sent: bytes
) -> None:
    """A client that stops in the middle of its body gets a 408 in the envelope, and nothing of a file stays."""
    monkeypatch.setattr(bodies, "BODY_TIMEOUT", 0.05)
    reader = await raw.send(sent)
    async with asyncio.timeout(20):
        head = await reader.readuntil(b"\r\n\r\n")
        body = await reader.readuntil(b"}}")
    assert "in time" in error_of(head + body, b"408")
    assert list((data / "files").iterdir()) == []


@pytest.mark.uvloop
async def test_a_client_that_does_not_read_is_given_up(
    client: Client, monkeypatch: pytest.MonkeyPatch, raw: Raw
) -> None:
    """A download, or answers, that a client does not read are broken off."""
    file = await client.upload(bytes(20_000_000))
    for number in range(20):
        await client.upload(b"x", f"{number}-{'long' * 500}.jsonl")
    monkeypatch.setattr(connections, "_WRITE_TIMEOUT", 0.05)
    await client.call("GET", "/models")
    before = asyncio.all_tasks()
    for path, times in (("/v1/files/" + file["id"] + "/content", 1), ("/v1/files", 300)):
        await raw.send((f"GET {path} HTTP/1.1\r\nHost: localhost\r\n".encode() + KEY + b"\r\n") * times)
    while len(asyncio.all_tasks() - before) < 2:
        await asyncio.sleep(0)
    async with asyncio.timeout(20):
        while asyncio.all_tasks() - before:
            await asyncio.sleep(0.01)


@pytest.mark.uvloop
async def test_a_connection_too_many_is_refused_in_the_envelope(
    data: Path, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While all connections have a request under way, another one gets a 503; once one has ended, it is served."""
    monkeypatch.setattr(connections, "MAX_CONNECTIONS", 2)
    async with LocalServer(data, api_key="a-key-for-tests") as server:
        raw, other = Raw(server.base_url), Raw(server.base_url)
        await raw.send(HALF_BODIES["file"])
        await other.send(HALF_BODIES["file"])
        while len(list((data / "files").iterdir())) < 2:
            await asyncio.sleep(0)
        refused = Raw(server.base_url)
        reply = await (await refused.send(b"")).read()
        assert "reached its limit of connections" in error_of(reply, b"503")
        await raw.close()
        while len(list((data / "files").iterdir())) > 1:
            await asyncio.sleep(0)
        async with connect(server.base_url) as client:
            await client.call("GET", "/models")
        await other.close()
        await refused.close()


async def test_bytes_that_are_no_http_fill_no_log(
    server: LocalServer, client: Client, caplog: pytest.LogCaptureFixture, raw: Raw
) -> None:
    """Many malformed requests are logged as one line."""
    for _ in range(10):
        reply = await (await raw.send(b"GET / HTTP/1.1\r\nno header\r\n\r\n")).read()
        assert reply.startswith(b"HTTP/1.0 400")
    (record,) = caplog.records
    assert len(caplog.text.splitlines()) == 1
    assert "Error handling request" in record.getMessage()


@pytest.mark.uvloop
async def test_the_server_ends_though_clients_are_slow(client: Client, server: LocalServer, raw: Raw) -> None:
    """Uploads that stall, a download that nobody reads, and half headers do not keep the server."""
    form = io.BytesIO(bytes(20_000_000))
    file = await client.upload(form.getvalue())
    for sent in (HALF, *HALF_BODIES.values()):
        await raw.send(sent)
    await raw.send(f"GET /v1/files/{file['id']}/content HTTP/1.1\r\nHost: localhost\r\n".encode() + KEY + b"\r\n")
    await client.call("GET", "/models")
    async with asyncio.timeout(20):
        await server.__aexit__(None, None, None)
    await server.__aenter__()
