"""aiofinetune."""

# ruff: noqa: D102  # the harness says what each coroutine does

from __future__ import annotations

import tempfile
from pathlib import Path
from types import TracebackType
from typing import Self

from aiofinetune import FineTuneRequest, FineTuneSession
from aiofinetune.batch._batch import Batch
from benchmarks.peers import harness


class Ours(harness.Client):
    """One `FineTuneSession`."""

    async def __aenter__(self) -> Self:
        self._session = FineTuneSession(harness.KEY, base_url=self.base_url, dialect=self.dialect)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._session.aclose()

    async def create(self) -> str:
        request = FineTuneRequest(training_file=harness.TRAINING_FILE, model="ada")
        return (await self._session.create_fine_tune(request)).id

    async def list(self) -> int:
        jobs = await self._session.list_fine_tunes()
        return len(jobs) if jobs[-1].training_files[0].id else 0

    async def stream(self) -> int:
        given = 0
        async with self._session.stream_fine_tune_events(harness.JOB) as events:
            async for event in events:
                given += bool(event.message)
        return given

    async def upload(self, path: Path) -> None:
        await self._session.upload_file(path)

    async def download(self, path: Path) -> None:
        await self._session.download_file(harness.TRAINING_FILE, path)

    async def batch(self, jobs: int) -> int:
        requests = (FineTuneRequest(training_file=harness.TRAINING_FILE, model="ada") for _ in range(jobs))
        ended = 0
        with tempfile.TemporaryDirectory() as folder:
            journal = Path(folder) / "journal" if self.variant == "journal" else None
            async with Batch(self._session, requests, concurrency=64, poll_interval=1.0, journal=journal) as batch:
                async for outcome in batch:
                    ended += outcome.error is None
        return ended


if __name__ == "__main__":
    harness.main(Ours)
