"""Bare aiohttp and orjson, as fast as they go: the limit, and what the others' ratios are to."""

# ruff: noqa: D102  # the harness says what each coroutine does

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import aiohttp
import orjson

from benchmarks.peers import harness

_PATHS: Final = {"fine-tunes": "/fine-tunes", "together": "/fine-tunes"}
"""Where the jobs of a dialect are; those of all others are in OpenAI's place, and come in pages."""


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

    @property
    def _jobs(self) -> str:
        return f"{self.base_url}{_PATHS.get(self.dialect, '/fine_tuning/jobs')}"

    async def create(self) -> str:
        body = orjson.dumps({"training_file": harness.TRAINING_FILE, "model": "ada"})
        headers = {"Content-Type": "application/json"}
        async with self._http.post(self._jobs, data=body, headers=headers) as reply:
            job: dict[str, str] = orjson.loads(await reply.read())
            return job["id"]

    async def list(self) -> int:
        jobs: Sequence[dict[str, Any]]
        jobs = (await self._page(self._jobs))["data"] if self.dialect in _PATHS else await self._pages()
        return len(jobs) if jobs[-1].get("training_file") or jobs[-1]["training_files"][0]["id"] else 0

    async def _pages(self) -> Sequence[dict[str, Any]]:
        # How long a page may be is not known of Nebius: this client leaves it to the service, and so does this program.
        limit = "" if self.dialect == "nebius" else "limit=100"
        page = await self._page(f"{self._jobs}?{limit}")
        jobs: list[dict[str, Any]] = page["data"]
        while page["has_more"]:
            page = await self._page(f"{self._jobs}?{limit}&after={jobs[-1]['id']}")
            jobs += page["data"]
        return jobs

    async def _page(self, url: str) -> dict[str, Any]:
        async with self._http.get(url) as reply:
            page: dict[str, Any] = orjson.loads(await reply.read())
            return page

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
