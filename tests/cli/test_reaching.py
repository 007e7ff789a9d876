"""The service is found before the first call: its port, and the /v1 of its base URL."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from aiofinetune.cli._reaching import reach
from aiofinetune.errors import ConnectFailed
from tests.cli import ashell, shell
from tests.servers.batchserver import BatchServer
from tests.servers.rawserver import answering, reply, serve

NOTHING = reply(body=b'{"object": "list", "data": []}')


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "home"))


@contextlib.contextmanager
def closed_port() -> Iterator[int]:
    """A port at which nothing listens."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        yield held.getsockname()[1]


async def test_a_missing_v1_is_guessed_at_and_said_once() -> None:
    """With a base URL without its /v1 a command works, and says once what to write."""
    server = BatchServer(lasts=None)
    job = server.add_job()
    async with server.listening() as url:
        short = url.removesuffix("/v1")
        told = await ashell("list", url=short)
        quiet = await ashell("list", "-q", url=short)
    assert (told.exit_code, job in told.stdout) == (0, True)
    (line,) = told.stderr.splitlines()
    assert line.endswith(f"there is no API at {short}, but at {url}, which is used; add the /v1")
    assert (quiet.exit_code, quiet.stderr) == (0, "")


async def test_an_api_without_v1_is_taken_as_it_is() -> None:
    """A service whose API is at the root is not asked for another, and nothing is said."""
    async with serve(answering(NOTHING)) as url:
        told = await ashell("models", url=url.removesuffix("/v1"))
    assert (told.exit_code, told.stderr) == (0, "no models\n")


async def test_where_there_is_no_api_at_all_the_base_url_is_doubted() -> None:
    """If neither has an API, the command says so, and to check the base URL."""
    async with serve(answering(reply(404, b"{}"))) as url:
        told = await ashell("list", url=url.removesuffix("/v1"))
    assert (told.exit_code, "Check --base-url" in told.stderr) == (4, True)


def test_a_closed_port_ends_a_command() -> None:
    """A port that is closed when a command starts ends it with status 4, and so a batch before its journal is begun."""
    Path("jobs.jsonl").write_text('{"training_file": "file-1"}')
    with closed_port() as port:
        url = f"http://127.0.0.1:{port}/v1"
        for words in (["list"], ["batch", "jobs.jsonl"]):
            told = shell(*words, "--retries", 1, url=url)
            assert told.exit_code == 4
            assert told.stderr.startswith(f"aiofinetune: could not connect to 127.0.0.1:{port}: Connection refused")
    assert not Path("jobs.jsonl.journal").exists()


async def test_a_command_that_is_to_wait_waits() -> None:
    """With --wait-for-service a command says what it waits for, and goes on when the service is there."""
    server = BatchServer()
    with closed_port() as port:
        said: list[str] = []
        waiting = asyncio.create_task(reach(f"http://127.0.0.1:{port}", retries=0, waits=True, say=said.append))
        async with asyncio.timeout(30):
            while not said:
                await asyncio.sleep(0)
    assert "could not connect to 127.0.0.1" in said[0]
    listening = await asyncio.start_server(lambda _reader, writer: writer.close(), "127.0.0.1", port)
    async with listening, asyncio.timeout(30):
        await waiting
    assert said[-1].startswith("the service can be reached, after ")
    async with server.listening() as url:
        assert (await ashell("list", "--wait-for-service", url=url)).exit_code == 0


async def test_what_cannot_be_connected_to_is_said_plainly() -> None:
    """A name without an address, and a proxy that is not there, are named."""
    with pytest.raises(ConnectFailed, match=r"could not connect to nowhere\.invalid:443: \w+"):
        await reach("https://nowhere.invalid/v1", retries=0, waits=False, say=print)


async def test_a_proxy_is_what_must_be_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    """Behind a proxy it is the proxy that takes the connection."""
    with closed_port() as port:
        monkeypatch.setenv("https_proxy", f"http://127.0.0.1:{port}")
        monkeypatch.setenv("no_proxy", "")
        with pytest.raises(ConnectFailed, match=f"could not connect to the proxy 127.0.0.1:{port}: Connection refused"):
            await reach("https://nowhere.invalid/v1", retries=0, waits=False, say=print)
