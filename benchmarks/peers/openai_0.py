"""openai 0.28: with a session shared by all calls (variant ``shared``), or as it comes."""

# ruff: noqa: D102  # the harness says what each coroutine does

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Self

import aiohttp
import openai  # type: ignore[import-not-found,unused-ignore]  # in its own environment alone

from benchmarks.peers import harness


class OpenAI(harness.Client):
    """The module's own functions."""

    async def __aenter__(self) -> Self:
        openai.api_key = harness.KEY
        openai.api_base = self.base_url
        self._http = None
        if self.variant == "shared":
            self._http = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0), timeout=aiohttp.ClientTimeout(total=None)
            )
            openai.aiosession.set(self._http)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._http is not None:
            await self._http.close()

    async def create(self) -> str:
        job = await openai.FineTune.acreate(training_file=harness.TRAINING_FILE, model="ada")
        return str(job.id)

    async def list(self) -> int:
        jobs = (await openai.FineTune.alist()).data
        return len(jobs) if jobs[-1].training_files[0].id else 0

    async def stream(self) -> int:
        given = 0
        async for event in await openai.FineTune.astream_events(harness.JOB):
            given += bool(event.message)
        return given

    async def upload(self, path: Path) -> None:
        with path.open("rb") as file:
            await openai.File.acreate(file=file, purpose="fine-tune")

    async def download(self, path: Path) -> None:
        content = await openai.File.adownload(harness.TRAINING_FILE)
        path.write_bytes(content)  # noqa: ASYNC240  # as its users would


if __name__ == "__main__":
    harness.main(OpenAI)
