"""CPU time and memory of a check of training data: ``python -m benchmarks.data_check``.

The rows are sentences of Python's own documentation, which ships with it (`pydoc_data`), each with its number, so that
no two are the same. Each check runs in a process of its own; its memory is the peak resident size less that of the
same process before the check, when a file of one row has been checked.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from pydoc_data.topics import topics

from aiofinetune.data import check_file

_CELLS = "{:>12} {:>10} {:>10} {:>14}\n"


def write_rows(path: Path, rows: int, length: int) -> None:
    """Write rows with prompts of about `length` characters."""
    text = " ".join(" ".join(topics.values()).split())
    chooser = random.Random(0)  # noqa: S311  # not a secret
    with path.open("w", encoding="utf-8") as file:
        for number in range(rows):
            start = chooser.randrange(len(text) - length - 30)
            prompt, completion = text[start : start + length], text[start + length : start + length + 30]
            row = {"prompt": f"{number} {prompt} ->", "completion": f" {completion.strip()} END"}
            file.write(json.dumps(row) + "\n")


def measure(path: Path) -> None:
    """Check a file, and print the CPU time in seconds, the memory in bytes and the findings."""
    with tempfile.TemporaryDirectory() as folder:
        small = Path(folder) / "small.jsonl"
        small.write_text('{"prompt": "a ->", "completion": " b"}\n')
        check_file(small)
    idle, start = _peak(), time.process_time()
    report = check_file(path)
    seconds, memory = time.process_time() - start, _peak() - idle
    found = {finding.check: finding.count for finding in report.findings}
    sys.stdout.write(json.dumps({"rows": report.rows, "cpu": seconds, "memory": memory, "found": found}))


def _peak() -> int:
    # Not resource.getrusage(), which counts what the parent process held when it started this one.
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))


def main() -> None:
    """Write files of several sizes, check them, and print a table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.data_check", description=__doc__)
    parser.add_argument("--rows", type=int, nargs="+", default=[1000, 100_000], help="sizes of the files")
    parser.add_argument("--length", type=int, default=430, help="characters of a prompt")
    parser.add_argument("--file", type=Path, help="check this file, in this process")
    options = parser.parse_args()
    if options.file is not None:
        measure(options.file)
        return
    sys.stdout.write(_CELLS.format("rows", "MB", "CPU, s", "memory, MB"))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.jsonl"
        for rows in options.rows:
            write_rows(path, rows, options.length)
            command = [sys.executable, "-m", "benchmarks.data_check", "--file", str(path)]
            figures = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)  # noqa: S603  # this module
            size, memory = path.stat().st_size / 1e6, figures["memory"] / 1e6
            sys.stdout.write(_CELLS.format(f"{rows:,}", f"{size:.1f}", f"{figures['cpu']:.2f}", f"{memory:.1f}"))
            sys.stdout.flush()


if __name__ == "__main__":
    main()
