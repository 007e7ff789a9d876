"""CPU time of a batch's looks at the list, as a share of one core: ``python -m benchmarks.look_cost``.

The service lists so many active jobs, all of this batch. A look's figure is the least of several; its share is over the
time from one look to the next, by the default interval. The exponent is the slope between the logarithms.
"""

from __future__ import annotations

import asyncio
import math
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Final

from aiofinetune import FineTuneSession
from aiofinetune.batch._core import Settings
from aiofinetune.batch._core.looks import SECONDS_A_ROW
from benchmarks.stub import server_program, stub

ACTIVE: Final = (10, 100, 1000, 10_000)
LOOKS: Final = 7
MUST: Final = 0.05
"""The most that looks may take of a core."""


async def cost(base_url: str) -> float:
    """Return the CPU time of one look, in seconds."""
    async with FineTuneSession("sk-none", base_url=base_url) as session:
        costs = []
        for _ in range(LOOKS):
            begin = time.process_time()
            await session._recovery.look(None, lambda _job_id: False)  # noqa: SLF001  # what a batch calls
            costs.append(time.process_time() - begin)
    return min(costs)


def main() -> None:
    """Measure each number of jobs, and print a table."""
    sys.stdout.write("| active jobs | CPU of a look, ms | seconds to the next | share |\n|---:|---:|---:|---:|\n")
    points = []
    with tempfile.TemporaryDirectory() as folder:
        program = server_program(Path(folder))
        for count in ACTIVE:
            with stub(program, None, [f"jobs={count}", "active=1"]) as base_url:
                seconds = asyncio.run(cost(base_url))
            interval = max(Settings().poll_interval, count * SECONDS_A_ROW)
            points.append((math.log(count), math.log(seconds)))
            cells = f"{count:,} | {seconds * 1000:.2f} | {interval:.0f} | {seconds / interval:.2%}"
            sys.stdout.write(f"| {cells} |\n")
            sys.stdout.flush()
    slope = statistics.linear_regression(*zip(*points, strict=True)).slope
    sys.stdout.write(f"exponent {slope:.2f} (must be at most 1.1); the share must be at most {MUST:.0%}\n")


if __name__ == "__main__":
    main()
