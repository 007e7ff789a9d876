"""A Dask cluster on loopback: a scheduler and workers, each a process that can be killed."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import sys
from asyncio.subprocess import DEVNULL, Process
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import attrs


def free_port() -> int:
    """Return a port that nothing listens on."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port: int = listening.getsockname()[1]
        return port


@attrs.define
class Cluster:
    """A scheduler and its workers.

    Args:
        folder: The folder for temporary files.
        tls: Options that give the scheduler and the workers certificates.
    """

    folder: Path
    tls: Sequence[str] = ()
    port: int = attrs.field(factory=free_port)
    scheduler: Process | None = None
    workers: list[Process] = attrs.field(factory=list)

    @property
    def address(self) -> str:
        """The address of the scheduler, as the server has it."""
        return f"dask://127.0.0.1:{self.port}"

    async def start_scheduler(self) -> None:
        """Start the scheduler, on the port that it had before."""
        self.scheduler = await self._start("scheduler", "--host", self._host, "--port", str(self.port), "--no-show")
        while True:
            with contextlib.suppress(OSError):
                _, writer = await asyncio.open_connection("127.0.0.1", self.port)
                writer.close()
                return
            await asyncio.sleep(0.05)

    async def start_worker(self, *options: str) -> Process:
        """Start a worker with one thread."""
        worker = await self._start(
            "worker", f"{self._host}:{self.port}", "--nthreads", "1", "--no-nanny", "--no-dashboard", *options
        )
        self.workers.append(worker)
        return worker

    @property
    def _host(self) -> str:
        return "tls://127.0.0.1" if self.tls else "tcp://127.0.0.1"

    async def _start(self, *arguments: str) -> Process:
        return await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "dask", *arguments, *self.tls),
            cwd=self.folder,
            env={**os.environ, "TMPDIR": str(self.folder), "PYTHONPATH": os.pathsep.join(sys.path)},
            stdin=DEVNULL,
            stdout=DEVNULL,
            stderr=DEVNULL,
        )


async def kill(process: Process) -> None:
    """End a process as a power cut would (SIGKILL)."""
    with contextlib.suppress(ProcessLookupError):
        process.send_signal(signal.SIGKILL)
    await process.wait()


@asynccontextmanager
async def running(folder: Path, workers: int = 2, tls: Sequence[str] = ()) -> AsyncIterator[Cluster]:
    """Run a cluster during the block."""
    cluster = Cluster(folder, tls)
    try:
        await cluster.start_scheduler()
        for _ in range(workers):
            await cluster.start_worker()
        yield cluster
    finally:
        for process in (*cluster.workers, *([cluster.scheduler] if cluster.scheduler else [])):
            await kill(process)
