"""CPU time and memory of a batch whose entries have all ended, run again: ``python -m benchmarks.resume_cost``.

Each number of entries has a process of its own, which writes their journal first. No service is asked: the journal has
all that the run needs. The exponent is the slope between the logarithms.
"""

from __future__ import annotations

import asyncio
import json
import math
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from aiofinetune import FineTune, FineTuneRequest, FineTuneSession, structuring
from aiofinetune.batch._batch import Batch
from aiofinetune.batch._journal_file import JournalFile

SIZES: Final = (1000, 10_000, 100_000)
MUST: Final = 15.0
"""Seconds for 100,000 entries."""
BASE_URL: Final = "http://127.0.0.1:9/v1"


def notes(path: Path, count: int) -> Iterator[bytes]:
    """Yield what a run writes of `count` jobs."""
    yield structuring.dumps(
        {"note": "open", "base_url": BASE_URL, "dialect": "fine-tunes", "path": str(path), "at": 1.0}
    )
    request = {"training_file": "file-0000000001", "model": "ada"}
    for number in range(1, count + 1):
        about = {"label": str(number), "attempt": 1}
        job = FineTune(id=f"ft-{number}", status="succeeded", model="ada", created_at=1, fine_tuned_model="ada:ft-x")
        yield structuring.dumps({"note": "intend", **about, "request": request, "sent": request, "at": 1.0})
        yield structuring.dumps({"note": "create", **about, "job_id": job.id})
        yield structuring.dumps({"note": "end", **about, "job": structuring.write_reply(job), "at": 2.0})


async def resume(path: Path, count: int) -> None:
    """Run the batch to its end."""
    requests = (FineTuneRequest(training_file="file-0000000001", model="ada") for _ in range(count))
    async with (
        FineTuneSession("sk-none", base_url=BASE_URL) as session,
        Batch(session, requests, journal=path) as batch,
    ):
        ended = 0
        async for outcome in batch:
            ended += outcome.is_replayed
    if ended != count:
        sys.exit(f"{ended} of {count} entries were replayed")


def measure(count: int) -> None:
    """Measure in this process, and print the figures."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(os.path.realpath(folder)) / "journal"
        file = JournalFile(path)
        file.open()
        list(file.lines())
        file.add(notes(path, count))
        file.close()
        idle, begin = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
        asyncio.run(resume(path, count))
        cpu, peak = time.process_time() - begin, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    sys.stdout.write(json.dumps({"cpu": cpu, "memory": (peak - idle) / 1024}))


def main() -> None:
    """Measure each size, and print a table."""
    if len(sys.argv) > 1:
        measure(int(sys.argv[1]))
        return
    sys.stdout.write("| ended entries | CPU, s | ms an entry | memory over idle, MiB |\\n|---:|---:|---:|---:|\\n")
    points = []
    for count in SIZES:
        command = [sys.executable, "-m", "benchmarks.resume_cost", str(count)]
        found = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)  # noqa: S603  # this module
        points.append((math.log(count), math.log(found["cpu"])))
        cells = f"{count:,} | {found['cpu']:.2f} | {found['cpu'] / count * 1000:.3f} | {found['memory']:.1f}"
        sys.stdout.write(f"| {cells} |\n")
        sys.stdout.flush()
    slope = statistics.linear_regression(*zip(*points, strict=True)).slope
    sys.stdout.write(f"exponent {slope:.2f} (must be at most 1.1); 100,000 entries must take {MUST:.0f} s at most\n")


if __name__ == "__main__":
    main()
