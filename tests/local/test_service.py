"""The example of a web service that fine-tunes in the background, as the README shows it."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import socket
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest

from aiofinetune import FineTuneSession
from aiofinetune.local import LocalServer
from tests.servers.batchserver import BatchServer
from tests.servers.rawserver import KEY

EXAMPLE = '''\
import asyncio
from collections.abc import AsyncIterator

from aiohttp import web

from aiofinetune import FineTuneError, FineTuneRequest, FineTuneSession

SESSION = web.AppKey("session", FineTuneSession)
GROUP = web.AppKey("group", asyncio.TaskGroup)
TUNES = web.AppKey("tunes", dict[str, asyncio.Task[str]])


async def background(app: web.Application) -> AsyncIterator[None]:
    """One session, and one group for all that runs beside the requests; both end with the service."""
    async with FineTuneSession() as session, asyncio.TaskGroup() as group:
        app[SESSION], app[GROUP], app[TUNES] = session, group, {}
        yield
        for tune in app[TUNES].values():
            tune.cancel()  # the jobs go on at the service


async def tune(session: FineTuneSession, data: bytes) -> str:
    """Train on `data`; say what came of it. An error is told, for one that left the group would end the service."""
    try:
        file = await session.upload_file(data)
        job = await session.create_fine_tune(FineTuneRequest(training_file=file.id, model="ada"))
        job = await session.wait(job.id)
    except FineTuneError as error:
        return f"failed: {error}"
    return f"made {job.fine_tuned_model}"


async def start(request: web.Request) -> web.Response:
    """POST /tunes/{name}: start training on the body, and answer at once."""
    app, name, data = request.app, request.match_info["name"], await request.read()
    if name in app[TUNES]:
        raise web.HTTPConflict(text="there is one of this name")
    app[TUNES][name] = app[GROUP].create_task(tune(app[SESSION], data))
    return web.Response(status=202)


async def result(request: web.Request) -> web.Response:
    """GET /tunes/{name}: wait for the outcome; who gives up waiting stops nothing."""
    if (tune := request.app[TUNES].get(request.match_info["name"])) is None:
        raise web.HTTPNotFound
    return web.Response(text=await asyncio.shield(tune))


app = web.Application()
app.cleanup_ctx.append(background)
app.add_routes([web.post("/tunes/{name}", start), web.get("/tunes/{name}", result)])

if __name__ == "__main__":
    web.run_app(app, host="127.0.0.1", port=0)
'''


@asynccontextmanager
async def serving(folder: Path, key: str, base_url: str) -> AsyncIterator[tuple[Process, str]]:
    """The example as a process, and its URL."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        free_port = listening.getsockname()[1]
    # Before 3.14, aiohttp does not say which port the system chose.
    (folder / "service.py").write_text(EXAMPLE.replace("port=0", f"port={free_port}"))
    environment = {
        "OPENAI_API_KEY": key,
        "OPENAI_BASE_URL": base_url,
        "PYTHONPATH": os.pathsep.join(sys.path),
        "PYTHONUNBUFFERED": "1",
    }
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-W", "error", "service.py"),
        cwd=folder,
        env=os.environ | environment,
        stdout=PIPE,
        stderr=PIPE,
    )
    try:
        assert process.stdout is not None
        found = re.search(r"http://\S+", (await process.stdout.readline()).decode())
        assert found is not None, (await process.communicate())[1].decode()
        async with asyncio.timeout(30):
            yield process, found[0]
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def end(process: Process) -> bytes:
    """Ask the service to end, as a supervisor does; what it said on stderr."""
    process.send_signal(signal.SIGTERM)
    _, stderr = await process.communicate()
    assert process.returncode == 0
    return stderr


async def test_it_tunes_in_the_background(tmp_path: Path) -> None:
    """It answers at once, gives the model's name to whoever waits for it, and ends in good order."""
    rows = b"\n".join(
        json.dumps({"prompt": f"{n} ->", "completion": " even" if n % 2 else " odd"}).encode() for n in range(20)
    )
    async with (
        LocalServer(tmp_path / "data") as server,
        serving(tmp_path, server.api_key, server.base_url) as (process, url),
    ):
        async with aiohttp.ClientSession(url) as http:
            async with http.post("/tunes/parity", data=rows) as reply:
                assert reply.status == 202
            async with http.post("/tunes/parity", data=rows) as reply:
                assert reply.status == 409
            async with http.get("/tunes/parity") as reply:
                told = await reply.text()
            async with http.post("/tunes/broken", data=b"no rows") as reply, http.get("/tunes/broken") as other:
                assert (await other.text()).startswith("failed: ")
        async with FineTuneSession(server.api_key, base_url=server.base_url) as session:
            (job,) = [job for job in await session.list_fine_tunes() if job.fine_tuned_model]
        assert told == f"made {job.fine_tuned_model}"
        assert await end(process) == b""


@pytest.mark.parametrize("moment", ["upload", "create", "wait"])
async def test_it_ends_while_jobs_are_active(moment: str, tmp_path: Path) -> None:
    """Asked to end in the midst of anything, it ends with status 0 and without a word, and cancels no job."""
    service = BatchServer(lasts=None)
    if moment != "wait":
        service.held[moment] = asyncio.Event()
    async with service.listening() as base_url, serving(tmp_path, KEY, base_url) as (process, url):
        async with aiohttp.ClientSession(url) as http, http.post("/tunes/one", data=b"{}") as reply:
            assert reply.status == 202
        await service.until(lambda: service.asked["stream" if moment == "wait" else moment] == 1)
        assert await end(process) == b""
    assert service.asked["cancel"] == 0
