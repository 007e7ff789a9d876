"""What telemetry adds to a create: ``python -m benchmarks.telemetry_cost [CHECKOUT]``.

A client creates jobs one after the other at a stub server in another process, once some and once twice as many, so that
the start drops out. Two things are counted:

- The bytecode instructions of this package's own code. The count is exact.
- The instructions of the processor, under valgrind's cachegrind, of the whole program. They do not depend on how busy
  the machine is, but vary by up to 1 % with how the packets arrive.

With the folder of another checkout of this package, a row says what a create takes there with telemetry off. The last
two rows need opentelemetry-api and -sdk.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Final

_HERE: Final = Path(__file__).parent.parent
_CREATES: Final = 50
_VALGRIND: Final = ["valgrind", "--tool=cachegrind", "--cache-sim=no", "--cachegrind-out-file=/dev/null"]

_PROGRAM: Final = """
import asyncio, gc, sys
from aiofinetune import FineTuneRequest, FineTuneSession
times, mode, base_url, counts = int(sys.argv[1]), sys.argv[2], sys.argv[3], sys.argv[4] == "bytecode"
if mode != "off":
    from aiofinetune import telemetry
    if mode == "sdk":
        from opentelemetry.sdk.metrics import MeterProvider
        from opentelemetry.sdk.metrics.export import InMemoryMetricReader
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import SimpleSpanProcessor
        from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
        tracers = TracerProvider()
        tracers.add_span_processor(SimpleSpanProcessor(InMemorySpanExporter()))
        telemetry.instrument(tracer_provider=tracers, meter_provider=MeterProvider([InMemoryMetricReader()]))
    else:
        telemetry.instrument()
gc.disable()  # it would run at other moments in each run
count = 0
def trace(frame, event, _):
    global count
    if "/aiofinetune/" not in frame.f_code.co_filename:
        return None
    frame.f_trace_opcodes, frame.f_trace_lines = True, False
    count += event == "opcode"
    return trace
async def main():
    async with FineTuneSession("sk-benchmark", base_url=base_url) as session:
        for _ in range(times):
            await session.create_fine_tune(FineTuneRequest(training_file="file-1", model="ada"))
if counts:
    sys.settrace(trace)
asyncio.run(main())
sys.settrace(None)
print("bytecode", count)
"""


def _per_create(what: str, mode: str, checkout: Path) -> float | None:
    """What a create takes; None where it cannot be made."""
    once, twice = (_count(what, times, mode, checkout) for times in (_CREATES, 2 * _CREATES))
    return None if once is None or twice is None else (twice - once) / _CREATES


def _count(what: str, times: int, mode: str, checkout: Path) -> int | None:
    command, pipe = [sys.executable, "-m", "benchmarks.server"], subprocess.PIPE
    with subprocess.Popen(command, cwd=_HERE, text=True, stdin=pipe, stdout=pipe) as server:  # noqa: S603  # ours
        assert server.stdin is not None and server.stdout is not None  # noqa: S101, PT018  # for mypy
        base_url = f"http://127.0.0.1:{server.stdout.readline().strip()}/v1"
        tool = [] if what == "bytecode" else _VALGRIND
        python = [sys.executable, "-c", _PROGRAM, str(times), mode, base_url, what]
        environment = os.environ | {"PYTHONHASHSEED": "0", "PYTHONPATH": str(checkout)}
        done = subprocess.run(  # noqa: S603  # the program above
            [*tool, *python], cwd=checkout, env=environment, capture_output=True, text=True, check=False
        )
        server.stdin.close()
    found = re.search(r"bytecode (\d+)" if what == "bytecode" else r"I +refs: +([\d,]+)", done.stdout + done.stderr)
    return int(found[1].replace(",", "")) if found and done.returncode == 0 else None


def main() -> None:
    """Count, and print a table."""
    rows = {"telemetry off": ("off", _HERE), "on, no SDK": ("api", _HERE), "on, SDK in memory": ("sdk", _HERE)}
    if len(sys.argv) > 1:
        rows = {"the other checkout": ("off", Path(sys.argv[1]).resolve()), **rows}
    sys.stdout.write("| a create | bytecode of this package | instructions |\n|---|---:|---:|\n")
    for name, (mode, checkout) in rows.items():
        counts = [_per_create(what, mode, checkout) for what in ("bytecode", "instructions")]
        shown = ["-" if count is None else f"{count:,.0f}" for count in counts]
        sys.stdout.write(f"| {name} | {' | '.join(shown)} |\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
