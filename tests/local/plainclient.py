"""A plain HTTP client for the embedded server, and the server in a process of its own."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import os
import ssl
import sys
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any, TypeAlias

import aiohttp

KEY = "a-key-for-tests"


class Client:
    """Calls a server as any HTTP client would, and reads its JSON."""

    def __init__(self, base_url: str, http: aiohttp.ClientSession) -> None:
        self.base_url = base_url
        self.http = http

    async def call(self, method: str, path: str, *, status: int = 200, **options: Any) -> Any:
        """Call, check the status, and return the JSON; of an error, what is in its envelope."""
        async with self.http.request(method, self.base_url + path, **options) as response:
            body = await response.json()
            assert response.status == status, body
            assert response.headers["x-request-id"]
            if status >= 400:
                assert body["error"].keys() == {"message", "type", "param", "code"}
                return body["error"]
            return body

    async def upload(self, content: bytes, filename: str = "train.jsonl") -> Any:
        """Upload a training file."""
        form = aiohttp.FormData()
        form.add_field("purpose", "fine-tune")
        form.add_field("file", io.BytesIO(content), filename=filename)
        return await self.call("POST", "/files", data=form)

    async def create(self, content: bytes, **parameters: object) -> Any:
        """Upload `content` and create a job with it, on ada unless another model is named."""
        file = await self.upload(content)
        return await self.call("POST", "/fine-tunes", json={"training_file": file["id"], "model": "ada", **parameters})

    async def follow(self, job_id: str) -> list[str]:
        """Follow a job's event stream to its end; return the messages."""
        return [message async for message in self.messages(job_id)]

    async def messages(self, job_id: str) -> AsyncIterator[str]:
        """Follow a job's event stream, a message at a time; fail unless it ends with [DONE]."""
        async with self.http.get(f"{self.base_url}/fine-tunes/{job_id}/events?stream=true") as response:
            assert response.status == 200
            line = b""
            async for line in response.content:
                if line.startswith(b"data: {"):
                    yield json.loads(line.removeprefix(b"data: "))["message"]
                elif line.startswith(b"data: "):
                    break
            assert line == b"data: [DONE]\n"
            assert await response.content.read() == b"\n"

    async def reach(self, job_id: str, message: str) -> None:
        """Wait until a job has told `message`."""
        async for told in self.messages(job_id):
            if told == message:
                break

    async def finish(self, job_id: str) -> Any:
        """Wait until a job is over and return it."""
        await self.follow(job_id)
        return await self.call("GET", f"/fine-tunes/{job_id}")


@asynccontextmanager
async def connected(
    base_url: str, key: str = KEY, *, tls: ssl.SSLContext | bool = True, seconds: float = 60
) -> AsyncIterator[Client]:
    """Give a client of the server at `base_url`; `tls` is what it checks the certificate with."""
    headers, timeout = {"Authorization": f"Bearer {key}"}, aiohttp.ClientTimeout(total=seconds)
    async with aiohttp.ClientSession(headers=headers, timeout=timeout, connector=aiohttp.TCPConnector(ssl=tls)) as http:
        yield Client(base_url, http)


Connect: TypeAlias = Callable[..., AbstractAsyncContextManager[Client]]


def jsonl(examples: Iterable[tuple[str, str]]) -> bytes:
    """Write a training file."""
    return b"".join(json.dumps({"prompt": p, "completion": c}).encode() + b"\n" for p, c in examples)


def find_trainers(data: Path) -> list[int]:
    """The processes that train for a server whose folder is under `data` (by Linux's /proc)."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            command = (process / "cmdline").read_bytes()
            if b"_engines/trainer.py" in command and bytes(data) in command:
                found.append(int(process.name))
    return found


SERVE = """
import asyncio, sys
from aiofinetune.local import LocalServer

async def serve():
    async with LocalServer(sys.argv[1], api_key=sys.argv[2]) as server:
        print(server.base_url, flush=True)
        await asyncio.Event().wait()

asyncio.run(serve())
"""


@asynccontextmanager
async def launched(data: Path) -> AsyncIterator[Client]:
    """Run a server in a process of its own, give a client of it, and kill it in the end as the kernel would."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", SERVE, str(data), KEY),
        stdout=asyncio.subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    try:
        assert process.stdout is not None
        async with connected((await process.stdout.readline()).decode().strip()) as client:
            yield client
            process.kill()
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.communicate()


Launch: TypeAlias = Callable[[Path], AbstractAsyncContextManager[Client]]
