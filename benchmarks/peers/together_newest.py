"""The newest together, Together's own client.

Its ``fine_tuning.create`` asks for the limits of the model and for the price first; only its third call, which creates
the job, is made here.
"""

# ruff: noqa: D102  # the harness says what each coroutine does

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Self

import together  # type: ignore[import-not-found,unused-ignore]  # in its own environment alone
import together.types  # type: ignore[import-not-found,unused-ignore]  # likewise

from benchmarks.peers import harness


class Together(harness.Client):
    """One `AsyncTogether`, and its typed results."""

    async def __aenter__(self) -> Self:
        self._client = together.AsyncTogether(api_key=harness.KEY, base_url=self.base_url.removesuffix("/v1"))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._client.close()

    async def create(self) -> str:
        body = {"training_file": harness.TRAINING_FILE, "model": "ada"}
        return str((await self._client.post("/v1/fine-tunes", body=body, cast_to=together.types.FinetuneResponse)).id)

    async def list(self) -> int:
        jobs = (await self._client.fine_tuning.list()).data
        return len(jobs) if jobs[-1].training_file else 0

    async def stream(self) -> int:
        raise NotImplementedError("the service has no streams of events")

    async def upload(self, path: Path) -> None:
        raise NotImplementedError("not compared")

    async def download(self, path: Path) -> None:
        raise NotImplementedError("not compared")


if __name__ == "__main__":
    harness.main(Together)
