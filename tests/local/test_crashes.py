"""The embedded server dies and comes back, again and again, while a client works with it."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import attrs

from aiofinetune import FineTune, FineTuneRequest, FineTuneSession, Retry

KEY: Final = "sk-crash-3c5e"
PATIENT: Final = Retry(attempts=10_000, base=0.05, cap=0.2, deadline=600, grace=0.5)
EXAMPLES: Final = "\n".join(json.dumps({"prompt": f"{number} ->", "completion": " x"}) for number in range(40)).encode()

SERVE: Final = """
import asyncio, sys
from aiofinetune.local import LocalServer

async def main(folder, port, key):
    async with LocalServer(folder, port=int(port), api_key=key) as server:
        print(server.base_url, flush=True)
        await asyncio.Event().wait()

asyncio.run(main(*sys.argv[1:]))
"""


@attrs.define
class Server:
    """The embedded server in a process of its own, always on one folder and one port."""

    folder: Path
    base_url: str = ""
    kills: int = 0
    process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        """Start it, on the port that it had before."""
        port = self.base_url.removesuffix("/v1").rpartition(":")[2] or "0"
        self.process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", SERVE, str(self.folder), port, KEY, stdout=asyncio.subprocess.PIPE
        )
        assert self.process.stdout is not None
        self.base_url = (await self.process.stdout.readline()).decode().strip()
        assert self.base_url, "the server did not start again"

    async def kill(self) -> None:
        """End it as a power cut would (SIGKILL)."""
        assert self.process is not None
        self.process.kill()
        await self.process.wait()
        self.kills += 1


@asynccontextmanager
async def running(folder: Path) -> AsyncIterator[Server]:
    server = Server(folder)
    await server.start()
    try:
        yield server
    finally:
        await server.kill()


async def test_killed_and_started_again(tmp_path: Path) -> None:
    """Whenever the server is killed, the client ends up with each job once, its events once, and its model."""
    given: dict[str, list[str]] = {}
    news = asyncio.Event()

    async def follow(session: FineTuneSession, job: FineTune) -> None:
        given[job.id] = []
        async with session.stream_fine_tune_events(job.id) as events:
            async for event in events:
                given[job.id].append(event.message)
                news.set()

    async def work(session: FineTuneSession, request: FineTuneRequest) -> FineTune:
        job = await session.create_fine_tune(request)
        _, job = await asyncio.gather(follow(session, job), session.wait(job.id))
        return job

    async with (
        running(tmp_path) as server,
        FineTuneSession(KEY, base_url=server.base_url, retry=PATIENT) as session,
        asyncio.TaskGroup() as group,
    ):
        file = await session.upload_file(EXAMPLES)
        request = FineTuneRequest(training_file=file.id, model="ada", n_epochs=1)
        jobs: list[asyncio.Task[FineTune]] = []
        for turns in (0, 40):
            # Equal jobs, of which some are just being created when the server dies, and others run.
            jobs += [group.create_task(work(session, request)) for _ in range(2)]
            for _ in range(turns):
                await asyncio.sleep(0)
            await server.kill()
            await server.start()
            news.clear()
            await news.wait()
            await server.kill()
            await server.start()
        finished = [await job for job in jobs]
        held = await session.list_fine_tunes()
        assert sorted(job.id for job in held) == sorted(job.id for job in finished)
        assert all(job.fine_tuned_model for job in finished)
        assert len({job.fine_tuned_model for job in finished}) == len(finished)
        for job in finished:
            assert given[job.id] == [event.message for event in await session.list_fine_tune_events(job.id)]
        assert server.kills == 4
