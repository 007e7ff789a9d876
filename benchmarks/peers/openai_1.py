"""openai 1.7.1, the last with ``client.fine_tunes``."""

# ruff: noqa: D102  # the harness says what each coroutine does

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Self

import openai  # type: ignore[import-not-found,unused-ignore]  # in its own environment alone

from benchmarks.peers import harness


class OpenAI(harness.Client):
    """One `AsyncOpenAI`, and its typed results."""

    async def __aenter__(self) -> Self:
        self._client = openai.AsyncOpenAI(api_key=harness.KEY, base_url=self.base_url)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._client.close()

    async def create(self) -> str:
        return str((await self._client.fine_tunes.create(training_file=harness.TRAINING_FILE, model="ada")).id)

    async def list(self) -> int:
        jobs = (await self._client.fine_tunes.list()).data
        return len(jobs) if jobs[-1].training_files[0].id else 0

    async def stream(self) -> int:
        given = 0
        async for event in await self._client.fine_tunes.list_events(harness.JOB, stream=True):
            given += bool(event.message)
        return given

    async def upload(self, path: Path) -> None:
        with path.open("rb") as file:
            await self._client.files.create(file=file, purpose="fine-tune")

    async def download(self, path: Path) -> None:
        content = await self._client.files.content(harness.TRAINING_FILE)
        path.write_bytes(content.content)  # noqa: ASYNC240  # as its users would


if __name__ == "__main__":
    harness.main(OpenAI)
