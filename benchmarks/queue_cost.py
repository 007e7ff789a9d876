"""CPU time of the embedded server with a long queue: ``python -m benchmarks.queue_cost``.

The table shows the CPU time of one create, cancel, end and list for each number of pending jobs, and its ratio to the
time with 100 pending jobs. An end includes the start of the next job. Each figure is the median of single calls, made
one after the other. The server is another process, and its trainers train nothing: each ends when this process asks
it to. So only the server itself is measured.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import statistics
import sys
import time
from collections.abc import Awaitable, Callable, Collection, Iterable, Sequence
from multiprocessing.connection import Connection
from typing import Final

from aiofinetune import FineTuneRequest, FineTuneSession
from aiofinetune.local import LocalServer
from aiofinetune.local._machines import Machine, shared
from aiofinetune.local._store.attempts import Attempt
from aiofinetune.local._trainers import Ended

KEY: Final = "sk-queue"
PENDING: Final = (100, 1000, 4000, 10_000)
CALLS: Final = 60
"""The number of creates for each row of the table; half of the jobs are then cancelled, and half end."""
LISTS: Final = 9
"""The number of lists for each row."""


class Trainers:
    """Trainers that succeed when the parent process asks them to.

    Args:
        parent: A pipe, which receives a message from each trainer that starts, and sends one to end it.
    """

    slots = 1

    def __init__(self, parent: Connection) -> None:
        self._parent = parent
        self._may_end = asyncio.Semaphore(0)
        asyncio.get_running_loop().add_reader(parent.fileno(), self._read)

    def _read(self) -> None:
        self._parent.recv()
        self._may_end.release()

    def machines(self, running: Collection[Attempt]) -> Sequence[Machine]:
        """One machine that has nothing."""
        return shared([{}], [attempt.needs for attempt in running])

    async def run(self, attempt: Attempt, on_line: Callable[[bytes], Awaitable[None]]) -> Ended:
        """Wait for the parent, and write an empty model and empty results."""
        self._parent.send(None)
        await self._may_end.acquire()
        attempt.model_path.touch()
        attempt.results_path.touch()
        await on_line(b'{"type": "succeeded"}')
        return Ended(is_well=True, how="well")


def serve(parent: Connection) -> None:
    """Run a server until this process is killed."""

    async def run() -> None:
        async with LocalServer(api_key=KEY, trainers=Trainers(parent)) as server:
            parent.send(server.base_url)
            await asyncio.Event().wait()

    asyncio.run(run())


class Bench:
    """The measurements of one server.

    Args:
        session: A session with the server.
        child: The pipe to its trainers.
        pid: The id of its process.
    """

    def __init__(self, session: FineTuneSession, child: Connection, pid: int) -> None:
        self._session = session
        self._child = child
        self._clock = ~pid << 3 | 2  # The CPU clock of another process, as clock_getcpuclockid(3) makes it on Linux.
        self._pending: list[str] = []

    async def upload(self) -> None:
        """Upload the training file of all jobs, and create a job that runs."""
        file = await self._session.upload_file(b'{"prompt": "a", "completion": "b"}\n')
        self._request = FineTuneRequest(training_file=file.id, model="ada")
        await self._session.create_fine_tune(self._request)
        await asyncio.to_thread(self._child.recv)

    async def measure(self, pending: int) -> dict[str, float]:
        """Return the CPU time in seconds of each kind of call while about `pending` jobs are pending."""
        more = pending - CALLS // 2 - len(self._pending)  # The creates below make it `pending` on average.
        for start in range(0, more, 200):
            await asyncio.gather(*(self._create() for _ in range(start, min(start + 200, more))))
        return {
            "create": await self._each(self._create() for _ in range(CALLS)),
            "cancel": await self._each(self._cancel() for _ in range(CALLS // 2)),
            "end": await self._each(self._end() for _ in range(CALLS // 2)),
            "list": await self._each(self._session.list_fine_tunes() for _ in range(LISTS)),
        }

    async def _each(self, calls: Iterable[Awaitable[object]]) -> float:
        costs = []
        for call in calls:
            begin = time.clock_gettime(self._clock)
            await call
            costs.append(time.clock_gettime(self._clock) - begin)
        return statistics.median(costs)

    async def _create(self) -> None:
        job = await self._session.create_fine_tune(self._request)
        self._pending.append(job.id)

    async def _cancel(self) -> None:
        await self._session.cancel_fine_tune(self._pending.pop(len(self._pending) // 2))

    async def _end(self) -> None:
        self._child.send(None)
        await asyncio.to_thread(self._child.recv)
        self._pending.pop(0)


async def main(child: Connection, pid: int) -> None:
    """Measure, and print a table."""
    base_url = await asyncio.to_thread(child.recv)
    first: dict[str, float] = {}
    async with FineTuneSession(KEY, base_url=base_url) as session:
        bench = Bench(session, child, pid)
        await bench.upload()
        for pending in PENDING:
            figures = await bench.measure(pending)
            first = first or figures
            if first is figures:
                sys.stdout.write("| pending |" + "".join(f" {name}, ms | ratio |" for name in figures) + "\n")
                sys.stdout.write("|---" * (2 * len(figures) + 1) + "|\n")
            cells = (f" {cost * 1000:.2f} | {cost / first[name]:.2f} |" for name, cost in figures.items())
            sys.stdout.write(f"| {pending:,} |{''.join(cells)}\n")
            sys.stdout.flush()


if __name__ == "__main__":
    here, there = multiprocessing.Pipe()
    server = multiprocessing.get_context("spawn").Process(target=serve, args=(there,), daemon=True)
    server.start()
    assert server.pid is not None  # noqa: S101  # It was started.
    asyncio.run(main(here, server.pid))
    server.kill()
