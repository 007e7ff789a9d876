"""Requests for a batch, and batches run to their end."""

from __future__ import annotations

import asyncio
import errno
import os
from pathlib import Path

import pytest

from aiofinetune import FineTuneRequest
from aiofinetune.batch._batch import Batch
from aiofinetune.batch._manifest import Entry
from aiofinetune.batch._outcomes import BatchStopped, Outcome
from tests.servers.batchserver import BatchServer

POLL = 0.02


def entries(server: BatchServer, count: int) -> list[Entry]:
    """Requests of a batch, unlike one another, with a file that is at the service."""
    file = server.add_file("train.jsonl", b"train")
    return [
        Entry(f"job-{number}", FineTuneRequest(training_file=file, model="ada", n_epochs=number))
        for number in range(1, count + 1)
    ]


async def outcomes_of(batch: Batch) -> list[Outcome]:
    """Run a batch to its end."""
    async with asyncio.timeout(60), batch:
        return await batch.run()


async def stopped(batch: Batch) -> tuple[list[Outcome], BatchStopped]:
    """Run a batch until it sends no more; its outcomes, and why."""
    outcomes = []
    async with asyncio.timeout(60), batch:
        try:
            async for outcome in batch:
                outcomes.append(outcome)  # noqa: PERF401  # those before it stops count
        except BatchStopped as error:
            return outcomes, error
    pytest.fail("the batch did not stop")


def write(folder: Path, name: str, content: str) -> str:
    path = folder / name
    path.write_text(content)
    return str(path)


def fill_disk(monkeypatch: pytest.MonkeyPatch, *, for_what: bytes = b"") -> None:
    """Let the disk be full for what is written to a place of a file and contains `for_what`."""
    write_at = os.pwrite

    def pwrite(file: int, data: memoryview, offset: int) -> int:
        if for_what in bytes(data):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write_at(file, data, offset)

    monkeypatch.setattr(os, "pwrite", pwrite)
