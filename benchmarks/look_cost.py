"""CPU time of a batch's looks at the list, as a share of one core: ``python -m benchmarks.look_cost``.

The service lists so many active jobs, all of this batch. A look is all that a batch does for one: the core asks for it,
the list is read, and the core takes what it says. Its figure is the least of several; its share is over the time from
one look to the next, by the default interval. The exponent is the slope between the logarithms.
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

from aiofinetune import FineTuneRequest, FineTuneSession
from aiofinetune.batch._core import BatchCore, Settings
from aiofinetune.batch._core import actions as act
from aiofinetune.batch._core import events as on
from aiofinetune.batch._core.looks import SECONDS_A_ROW
from aiofinetune.batch._follower import Follower
from aiofinetune.batch._no_journal import NoJournal
from benchmarks.stub import server_program, stub

ACTIVE: Final = (10, 100, 1000, 10_000)
LOOKS: Final = 7
MUST: Final = 0.05
"""The most that looks may take of a core."""


def handled(core: BatchCore, event: on.Event, now: float) -> list[act.Action]:
    """Return what follows from an event that comes alone."""
    return core.handle(event, now) + core.go_on(now)


def followed(count: int) -> BatchCore:
    """Return a core that follows so many jobs by the list."""
    core = BatchCore(Settings(max_streams=0))
    handled(core, on.Started(), 0.0)
    handled(core, on.EarlierRunsRead(), 0.0)
    request = FineTuneRequest(training_file="file-0000000001", model="ada")
    names = [act.AttemptId(str(number)) for number in range(1, count + 1)]
    records = [on.AttemptRecord(it, request, request, 1.0, job_id=f"ft-{int(it.label):010}") for it in names]
    handled(core, on.EntriesRead(tuple(on.KnownEntry(it.attempt.label, request, it) for it in records)), 0.0)
    return core


async def cost(base_url: str, count: int) -> float:
    """Return the CPU time of one look, in seconds."""
    core, costs, now = followed(count), [], 0.0
    async with FineTuneSession("sk-none", base_url=base_url) as session:
        follower = Follower(session, NoJournal(), None, 8, core.active_labels)
        for _ in range(LOOKS):
            now += 1e6
            begin = time.process_time()
            (action,) = (it for it in handled(core, on.TimersDue(), now) if isinstance(it, act.LookAtList))
            event = await follower.look(action)
            handled(core, event, now)
            costs.append(time.process_time() - begin)
            if not isinstance(event, on.ListRead) or len(event.active) != count or core.counts().active != count:
                sys.exit(f"expected {count} active jobs, got {event!r:.200}")
    return min(costs)


def main() -> None:
    """Measure each number of jobs, and print a table."""
    sys.stdout.write("| active jobs | CPU of a look, ms | seconds to the next | share |\n|---:|---:|---:|---:|\n")
    points = []
    with tempfile.TemporaryDirectory() as folder:
        program = server_program(Path(folder))
        for count in ACTIVE:
            with stub(program, None, [f"jobs={count}", "active=1"]) as base_url:
                seconds = asyncio.run(cost(base_url, count))
            interval = max(Settings().poll_interval, count * SECONDS_A_ROW)
            points.append((math.log(count), math.log(seconds)))
            cells = f"{count:,} | {seconds * 1000:.2f} | {interval:.0f} | {seconds / interval:.2%}"
            sys.stdout.write(f"| {cells} |\n")
            sys.stdout.flush()
    slope = statistics.linear_regression(*zip(*points, strict=True)).slope
    sys.stdout.write(f"exponent {slope:.2f} (must be at most 1.1); the share must be at most {MUST:.0%}\n")


if __name__ == "__main__":
    main()
