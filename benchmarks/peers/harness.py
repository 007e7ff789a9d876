"""What all peers' programs share: one command line, and one line of figures as JSON.

It needs nothing but the standard library, for it runs in every peer's environment.
"""

from __future__ import annotations

import abc
import argparse
import asyncio
import contextlib
import gc
import json
import os
import resource
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

KEY: Final = "sk-benchmark"
TRAINING_FILE: Final = "file-0000000001"
JOB: Final = "ft-0000000001"

_TICK: Final = 0.005
"""Seconds between two looks at the clock: a stall shorter than this does not show."""


class Client(abc.ABC):
    """A peer at work.

    Args:
        base_url: Of the stub, with its ``/v1``.
        variant: Which of the peer's ways to use.
        dialect: What the service speaks.
    """

    def __init__(self, base_url: str, variant: str, dialect: str) -> None:
        self.base_url = base_url
        self.variant = variant
        self.dialect = dialect

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        return None

    @abc.abstractmethod
    async def create(self) -> str:
        """Create a job; give its id."""

    @abc.abstractmethod
    async def list(self) -> int:
        """List the jobs; give their number, the last one's fields having been read."""

    @abc.abstractmethod
    async def stream(self) -> int:
        """Read a job's events to the end; give the number."""

    @abc.abstractmethod
    async def upload(self, path: Path) -> None:
        """Upload a file."""

    @abc.abstractmethod
    async def download(self, path: Path) -> None:
        """Download a file."""

    async def batch(self, jobs: int) -> int:
        """Create many jobs, and list them; give the number of those that ended."""
        await repeated(self.create, jobs, 64)
        return await self.list()


async def repeated(call: Callable[[], Awaitable[object]], count: int, concurrency: int) -> None:
    """Make `count` calls, so many of them at once."""
    left = iter(range(count))

    async def work() -> None:
        for _ in left:
            await call()

    async with asyncio.TaskGroup() as group:
        for _ in range(min(concurrency, count)):
            group.create_task(work())


def main(make: Callable[[str, str, str], Client]) -> None:
    """Do the work that the command line names, and print its figures.

    Args:
        make: Makes the client, of a base URL, a variant and a dialect.
    """
    parser = argparse.ArgumentParser()
    parser.add_argument("work", choices=("create", "list", "stream", "upload", "download", "batch"))
    parser.add_argument("--base-url", required=True)
    parser.add_argument("--variant", default="")
    parser.add_argument("--dialect", default="fine-tunes")
    parser.add_argument("--loop", choices=("asyncio", "uvloop"), default="asyncio")
    parser.add_argument("--count", type=int, required=True, help="calls; for a batch, jobs")
    parser.add_argument("--size", type=int, default=0, help="what each call should give: jobs or events")
    parser.add_argument("--concurrency", type=int, default=1)
    parser.add_argument("--file", type=Path)
    parser.add_argument("--core", type=int)
    parser.add_argument(
        "--unwatched", action="store_true", help="measure no stall, whose watch takes CPU by the second"
    )
    parser.add_argument("--timeout", type=float, default=120)
    options = parser.parse_args()
    if options.core is not None:
        os.sched_setaffinity(0, {options.core})
    _, most_files = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most_files, most_files))
    try:
        with asyncio.Runner(loop_factory=_loop_factory(options.loop)) as runner:
            figures = runner.run(asyncio.wait_for(_measured(make, options), options.timeout))
    except Exception as failure:  # noqa: BLE001  # whatever a peer fails with is its result
        error: BaseException = failure
        while isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        words = f"no end after {options.timeout:.0f} s" if isinstance(error, TimeoutError) else str(error)
        figures = {"error": f"{type(error).__name__}: {' '.join(words.split())[:200]}"}
    sys.stdout.write(json.dumps(figures) + "\n")
    sys.stdout.flush()
    # Some peers leave threads or connections that keep an interpreter from ending.
    os._exit(0)


def _loop_factory(name: str) -> Callable[[], asyncio.AbstractEventLoop] | None:
    if name == "asyncio":
        return None
    import uvloop  # noqa: PLC0415  # in the environments of its peers alone

    factory: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
    return factory


async def _measured(make: Callable[[str, str, str], Client], options: argparse.Namespace) -> dict[str, Any]:
    async with make(options.base_url, options.variant, options.dialect) as client:
        if options.work != "batch":
            await client.create()
        work = _work(client, options)
        if options.work in ("create", "list"):
            await work(min(options.count, options.concurrency))
        gc.collect()
        idle = _memory("VmRSS")
        # The peak is counted from here on (proc(5), clear_refs).
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")  # noqa: ASYNC240  # no disk
        async with contextlib.nullcontext(list[float]()) if options.unwatched else _watched() as stalls:
            before = resource.getrusage(resource.RUSAGE_SELF)
            begin = time.perf_counter()
            await work(options.count)
            wall = time.perf_counter() - begin
            after = resource.getrusage(resource.RUSAGE_SELF)
        return {
            "cpu": after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime,
            "wall": wall,
            "peak": max(0, _memory("VmHWM") - idle),
            "stall": max(stalls, default=0.0),
        }


def _work(client: Client, options: argparse.Namespace) -> Callable[[int], Awaitable[None]]:
    """What is measured, as a function of the number of calls."""

    async def checked(call: Callable[[], Awaitable[int]]) -> None:
        given = await call()
        if given != options.size:
            raise RuntimeError(f"gave {given} of {options.size}")

    async def batch(count: int) -> None:
        await checked(lambda: client.batch(count))

    calls: dict[str, Callable[[], Awaitable[object]]] = {
        "create": client.create,
        "list": lambda: checked(client.list),
        "stream": lambda: checked(client.stream),
        "upload": lambda: client.upload(options.file),
        "download": lambda: client.download(options.file),
    }
    if options.work == "batch":
        return batch
    return lambda count: repeated(calls[options.work], count, options.concurrency)


@contextlib.asynccontextmanager
async def _watched() -> AsyncIterator[list[float]]:
    """Note by how many seconds the loop was late, each time that it was."""
    late = []

    async def watch() -> None:
        while True:
            due = time.perf_counter() + _TICK
            await asyncio.sleep(_TICK)
            late.append(time.perf_counter() - due)

    watcher = asyncio.create_task(watch())
    await asyncio.sleep(0)
    try:
        yield late
        # A stall at the very end shows only at the next tick.
        await asyncio.sleep(2 * _TICK)
    finally:
        watcher.cancel()


def _memory(field: str) -> int:
    """A figure of this process's memory, in bytes (proc(5), status)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"the system does not tell {field}")
