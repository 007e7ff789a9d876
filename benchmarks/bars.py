"""The bars of what one operation costs, each over bare aiohttp: ``python -m benchmarks.bars [--rounds N] [NAME...]``.

Both sides run in this Python, in turns, against the stub on another core. A figure is the CPU of the process, user and
system, which counts what a busy machine adds; the ratio is the median over the rounds, with the least and the most.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Final, NamedTuple

from benchmarks.stub import TIMEOUT, figures_of, server_program, stub


class Bar(NamedTuple):
    """One operation, and what it may cost.

    Args:
        name: What it is called on the command line.
        work: What the peers' programs call it.
        must: The most that it may cost, over bare aiohttp.
        hope: Better still.
        calls: The number of calls.
        concurrency: The number of calls at once.
        size: What one call returns.
        server: The options of the stub.
        variant: That of our program.
    """

    name: str
    work: str
    must: float
    hope: float
    calls: int
    concurrency: int = 1
    size: int = 0
    server: tuple[str, ...] = ()
    variant: str = ""


BARS: Final = (
    Bar("create", "create", 1.45, 1.3, 8000, 64),
    Bar("batch", "batch", 2.0, 1.6, 10_000, size=10_000, server=("batch=10000",)),
    Bar("batch-journal", "batch", 2.6, 2.0, 10_000, size=10_000, server=("batch=10000",), variant="journal"),
    Bar("streams", "stream", 1.15, 1.05, 1000, 1000, 10, ("every=1000", "events=10")),
    Bar("download", "download", 1.15, 1.0, 1, server=(f"bytes={256 << 20}",)),
)


def cpu(bar: Bar, script: str, variant: str, server: list[str], folder: Path) -> float | None:
    """Run one side of a bar; return its CPU in seconds, or None if it failed."""
    with stub(server, None, list(bar.server)) as base_url:
        found = figures_of(
            [
                *(sys.executable, "-m", f"benchmarks.peers.{script}", bar.work, "--base-url", base_url),
                *("--variant", variant, "--count", str(bar.calls), "--size", str(bar.size)),
                *("--concurrency", str(bar.concurrency), "--timeout", str(TIMEOUT)),
                *("--file", str(folder / "download.bin"), "--unwatched"),
            ]
        )
    # No side replaces what the one before it wrote, nor runs while the system writes that to the disk.
    (folder / "download.bin").unlink(missing_ok=True)
    if "cpu" not in found:
        sys.stderr.write(f"{bar.name}, {script}: {found['error']}\n")
        return None
    return float(found["cpu"])


def ratios(bar: Bar, rounds: int, server: list[str], folder: Path) -> list[float]:
    """Return what our side costs over the bare one, of each round."""
    found = []
    for _ in range(rounds):
        bare = cpu(bar, "bare", "", server, folder)
        ours = cpu(bar, "ours", bar.variant, server, folder)
        if bare is not None and ours is not None:
            found.append(ours / bare)
    return found


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.bars", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(bar.name for bar in BARS))
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    sys.stdout.write("| over bare aiohttp | median | least | most | must | hope |\n|---|---:|---:|---:|---:|---:|\n")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        server = server_program(folder)
        for bar in BARS:
            if options.names and bar.name not in options.names:
                continue
            found = ratios(bar, options.rounds, server, folder)
            cells = [f"{value:.2f}" for value in (statistics.median(found), min(found), max(found))] if found else []
            cells = cells or ["failed", "", ""]
            sys.stdout.write(f"| {bar.name} | {' | '.join(cells)} | {bar.must} | {bar.hope} |\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
