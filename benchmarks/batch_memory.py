"""Memory that a batch takes over an idle session: ``python -m benchmarks.batch_memory [--journal] [NAME...]``.

active: so many jobs are active at once, and then all end at once.
turn: so many jobs, one after another: each ends as 16 more were created. The service lists all that have ended.

Each row is a process of its own. Memory is the resident set: held while all jobs are active, and the peak of the run.
The exponent is the slope between the logarithms of the numbers of jobs and of the peaks.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import json
import math
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Final, NamedTuple

from aiofinetune import FineTuneRequest, FineTuneSession
from aiofinetune.batch._batch import Batch
from benchmarks.stub import server_program, stub


class Case(NamedTuple):
    """What is measured.

    Args:
        name: What it is called on the command line.
        counts: The numbers of jobs.
        must: The most memory for the last of them, in MB.
        max_active: The most jobs that are active at once.
        server: More options of the stub.
    """

    name: str
    counts: tuple[int, ...]
    must: float
    max_active: int | None = None
    server: tuple[str, ...] = ()


CASES: Final = (
    Case("active", (400, 4000, 40_000), 120),
    Case("turn", (1000, 10_000, 100_000), 150, 32, ("lasts=16",)),
)


def memory(field: str) -> float:
    """Return a figure of this process's memory, in MB (proc(5), status)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:")) * 1024 / 1e6


async def measure(base_url: str, count: int, max_active: int | None, *, has_journal: bool) -> dict[str, float]:
    """Run a batch, and return its figures."""
    request = FineTuneRequest(training_file="file-0000000001", model="ada")
    found: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        journal = Path(folder) / "journal" if has_journal else None
        async with FineTuneSession("sk-none", base_url=base_url) as session:
            await session.create_fine_tune(request)
            requests = (FineTuneRequest(training_file="file-0000000001", model="ada") for _ in range(count))
            gc.collect()
            idle, begin = memory("VmRSS"), time.process_time()
            # The peak is counted from here on (proc(5), clear_refs).
            with contextlib.suppress(OSError):
                Path("/proc/self/clear_refs").write_text("5")  # noqa: ASYNC240  # no disk
            ended = 0
            async with Batch(
                session, requests, max_active=max_active, concurrency=32, poll_interval=1.0, journal=journal
            ) as batch:
                async for outcome in batch:
                    found.setdefault("held", memory("VmRSS") - idle)
                    ended += outcome.error is None
            if ended != count:
                sys.exit(f"{ended} of {count} jobs succeeded")
            return found | {"peak": memory("VmHWM") - idle, "cpu": time.process_time() - begin}


def figures(case: Case, count: int, program: list[str], *, has_journal: bool) -> dict[str, float]:
    """Measure one number of jobs, in a process of its own."""
    with stub(program, None, [f"batch={count + 1}", *case.server]) as base_url:
        command = [sys.executable, "-m", "benchmarks.batch_memory", "--child", base_url, str(count), case.name]
        command += ["--journal"] if has_journal else []
        found: dict[str, Any] = json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)  # noqa: S603  # this module
    return found


def main() -> None:
    """Measure each case, and print its table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.batch_memory", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(case.name for case in CASES))
    parser.add_argument("--journal", action="store_true", help="with a journal on the disk")
    parser.add_argument("--child", nargs=2, metavar=("URL", "COUNT"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    cases = [case for case in CASES if case.name in options.names or not options.names]
    if options.child:
        url, count = options.child
        found = asyncio.run(measure(url, int(count), cases[0].max_active, has_journal=options.journal))
        sys.stdout.write(json.dumps(found))
        return
    with tempfile.TemporaryDirectory() as folder:
        program = server_program(Path(folder))
        for case in cases:
            sys.stdout.write(
                f"| jobs: {case.name} | held, MB | peak, MB | KB a job | CPU, s |\n|---:|---:|---:|---:|---:|\n"
            )
            points = []
            for count in case.counts:
                row = figures(case, count, program, has_journal=options.journal)
                points.append((math.log(count), math.log(row["peak"])))
                cells = f"{row['held']:.1f} | {row['peak']:.1f} | {row['peak'] * 1e3 / count:.2f} | {row['cpu']:.1f}"
                sys.stdout.write(f"| {count:,} | {cells} |\n")
                sys.stdout.flush()
            slope = statistics.linear_regression(*zip(*points, strict=True)).slope
            sys.stdout.write(f"exponent {slope:.2f}; the last peak must be at most {case.must:.0f} MB\n\n")


if __name__ == "__main__":
    main()
