"""What the embedded server costs as its store grows: ``python -m benchmarks.server_growth [--instant [--ended]]``.

For each number of jobs, a server of its own takes so many creates over HTTP, 16 at once; then it trains 100 of them (or
all, if there are fewer), and then it starts again on the same folder. The figures are the CPU time of the server's
process; what the trainers use is not counted. The exponent is the slope between the logarithms of the number of jobs
and of the CPU time: 1 for all creates together if one costs the same however many there are, 0 for one training.

With ``--instant``, the trainers train nothing, which takes a minute rather than ten. With ``--ended``, all jobs are
trained first, and 100 more are measured, so that the store has as many models, results and jobs that are over.
"""

from __future__ import annotations

import argparse
import asyncio
import math
import multiprocessing
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from multiprocessing.connection import Connection
from typing import Final

from aiofinetune import FineTuneRequest, FineTuneSession
from aiofinetune.local import LocalServer
from aiofinetune.local._store.attempts import Attempt
from aiofinetune.local._trainers import Ended, Trainers
from aiofinetune.local._trainers.local_process import LocalProcess
from aiofinetune.testing._instant import InstantTrainers

KEY: Final = "sk-growth"
JOBS: Final = (10, 100, 1000, 10_000)
TRAINED: Final = 100
AT_ONCE: Final = 16
LISTS: Final = 5
WARM: Final = 3
"""The number of jobs that come before, so that what a server does once does not count."""
DATA: Final = b'{"prompt": "a ->", "completion": " b"}\n{"prompt": "c ->", "completion": " d"}\n' * 4
MUST: Final = 1.1


class Gate:
    """Lets through as many attempts as the parent process asks for.

    Args:
        trainers: Train them.
        parent: A pipe, on which the number of further attempts comes.
    """

    slots = 1

    def __init__(self, trainers: Trainers, parent: Connection) -> None:
        self.machines = trainers.machines
        self._trainers = trainers
        self._parent = parent
        self._places = asyncio.Semaphore(0)
        asyncio.get_running_loop().add_reader(parent.fileno(), self._read)

    def _read(self) -> None:
        for _ in range(self._parent.recv()):
            self._places.release()

    async def run(self, attempt: Attempt, on_line: Callable[[bytes], Awaitable[None]]) -> Ended:
        """Wait for a place, and run the trainer."""
        await self._places.acquire()
        return await self._trainers.run(attempt, on_line)


def serve(parent: Connection, folder: str, is_instant: bool) -> None:  # noqa: FBT001  # of another process
    """Run a server until this process is killed; send the CPU time of its start, and its base URL."""

    async def run() -> None:
        trainers = Gate(InstantTrainers() if is_instant else LocalProcess(), parent)
        begin = time.process_time()
        async with LocalServer(folder, api_key=KEY, trainers=trainers) as server:
            parent.send((time.process_time() - begin, server.base_url))
            await asyncio.Event().wait()

    asyncio.run(run())


class Server:
    """A server in another process.

    Args:
        folder: Its folder.
        is_instant: Whether its trainers train nothing.
    """

    def __init__(self, folder: str, *, is_instant: bool) -> None:
        self.pipe, there = multiprocessing.Pipe()
        process = multiprocessing.get_context("spawn").Process(target=serve, args=(there, folder, is_instant))
        process.daemon = True
        process.start()
        assert process.pid is not None  # noqa: S101  # It was started.
        self._process = process
        self._clock = ~process.pid << 3 | 2  # Its CPU clock, as clock_getcpuclockid(3) makes it on Linux.
        self.start, self.base_url = self.pipe.recv()

    async def cost(self, call: Awaitable[object]) -> float:
        """Return the CPU time, in seconds, that the server takes during a call."""
        begin = time.clock_gettime(self._clock)
        await call
        return time.clock_gettime(self._clock) - begin

    def kill(self) -> None:
        """End it."""
        self._process.kill()
        self._process.join()


async def measure(server: Server, count: int, *, has_ended: bool) -> dict[str, float]:
    """Return the CPU times, in seconds, of a server with no jobs yet."""
    async with FineTuneSession(KEY, base_url=server.base_url) as session:
        file = await session.upload_file(DATA)
        request = FineTuneRequest(training_file=file.id, model="ada", n_epochs=1)

        async def create(many: int) -> None:
            left = iter(range(many))

            async def some() -> None:
                for _ in left:
                    await session.create_fine_tune(request)

            async with asyncio.TaskGroup() as group:
                for _ in range(AT_ONCE):
                    group.create_task(some())

        async def listed() -> list[str]:
            return [job.id for job in await session.list_fine_tunes()]

        async def train(ids: list[str]) -> None:
            server.pipe.send(len(ids))
            await session.wait(ids[-1])

        await create(WARM)
        await train(await listed())
        creates = await server.cost(create(count))
        ids = (await listed())[WARM:]
        if len(set(ids)) != count:
            sys.exit(f"{len(set(ids))} of {count} jobs are in the list")
        lists = [await server.cost(listed()) for _ in range(LISTS)]
        if has_ended:
            await train(ids)
            await create(TRAINED)
            ids = (await listed())[-TRAINED:]
        trained = await server.cost(train(ids[:TRAINED]))
        return {
            "creates": creates,
            "a create": creates / count,
            "a list": statistics.median(lists),
            "a training": trained / len(ids[:TRAINED]),
            "both": creates + trained,
        }


def main() -> None:
    """Measure each number of jobs, and print the tables."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.server_growth", description=__doc__)
    parser.add_argument("--instant", action="store_true", help="with trainers that train nothing")
    parser.add_argument("--ended", action="store_true", help="with as many jobs that are over")
    options = parser.parse_args()
    columns = ("creates", "a create", "a list", "a training", "a start", "both")
    sys.stdout.write("| jobs | creates, s |" + "".join(f" {name}, ms |" for name in columns[1:-1]) + "\n")
    sys.stdout.write("|---:" * len(columns) + "|\n")
    rows: list[dict[str, float]] = []
    for count in JOBS:
        with tempfile.TemporaryDirectory() as folder:
            server = Server(folder, is_instant=options.instant)
            row = asyncio.run(measure(server, count, has_ended=options.ended))
            server.kill()
            server = Server(folder, is_instant=options.instant)
            rows.append(row | {"a start": server.start})
            server.kill()
        cells = "".join(f" {rows[-1][name] * 1000:.2f} |" for name in columns[1:-1])
        sys.stdout.write(f"| {count:,} | {rows[-1]['creates']:.2f} |{cells}\n")
        sys.stdout.flush()
    for name in columns:
        points = [(math.log(count), math.log(row[name])) for count, row in zip(JOBS, rows, strict=True)]
        slope = statistics.linear_regression(*zip(*points, strict=True)).slope
        words = "all creates and the trainings" if name == "both" else "all creates" if name == "creates" else name
        sys.stdout.write(f"exponent of {words}: {slope:.2f}\n")
    sys.stdout.write(f"none may be more than {MUST}\n")


if __name__ == "__main__":
    main()
