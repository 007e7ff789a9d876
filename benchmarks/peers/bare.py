"""Bare aiohttp and orjson, as fast as they go: the limit, and what the others' ratios are to."""

# ruff: noqa: D102  # the harness says what each coroutine does

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Any, Self

import aiohttp
import orjson

from benchmarks.peers import harness


class Bare(harness.Client):
    """One shared `aiohttp.ClientSession`, and dicts."""

    async def __aenter__(self) -> Self:
        self._http = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0),
            headers={"Authorization": f"Bearer {harness.KEY}"},
            timeout=aiohttp.ClientTimeout(total=None),
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._http.close()

    async def create(self) -> str:
        body = orjson.dumps({"training_file": harness.TRAINING_FILE, "model": "ada"})
        headers = {"Content-Type": "application/json"}
        async with self._http.post(f"{self.base_url}/fine-tunes", data=body, headers=headers) as reply:
            job: dict[str, str] = orjson.loads(await reply.read())
            return job["id"]

    async def list(self) -> int:
        async with self._http.get(f"{self.base_url}/fine-tunes") as reply:
            jobs: list[dict[str, Any]] = orjson.loads(await reply.read())["data"]
        return len(jobs) if jobs[-1]["training_files"][0]["id"] else 0

    async def stream(self) -> int:
        events = 0
        async with self._http.get(f"{self.base_url}/fine-tunes/{harness.JOB}/events?stream=true") as reply:
            async for line in reply.content:
                if line.startswith(b"data: "):
                    data = line[6:].strip()
                    if data == b"[DONE]":
                        break
                    events += bool(orjson.loads(data)["message"])
        return events

    async def upload(self, path: Path) -> None:
        with path.open("rb") as file:
            form = aiohttp.FormData({"purpose": "fine-tune"})
            form.add_field("file", file, filename=path.name)
            async with self._http.post(f"{self.base_url}/files", data=form) as reply:
                orjson.loads(await reply.read())["id"]

    async def download(self, path: Path) -> None:
        async with self._http.get(f"{self.base_url}/files/{harness.TRAINING_FILE}/content") as reply:
            with path.open("wb") as file:
                async for piece in reply.content.iter_chunked(256 << 10):
                    file.write(piece)


if __name__ == "__main__":
    harness.main(Bare)
