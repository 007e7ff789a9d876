"""What it takes to read a service's JSON, in instructions: ``python -m benchmarks.reading [CHECKOUT]``.

Each work is done by an interpreter of its own under valgrind's cachegrind, whose counts do not depend on how busy the
machine is: once as often as the work says, and once three times as often, so that what the start takes drops out. With
the folder of another checkout of this package both are counted, and the ratio is ours over the other's.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Final, NamedTuple

_HERE: Final = Path(__file__).parent.parent


class Work(NamedTuple):
    """One thing to read.

    Args:
        name: In words.
        body: A Python expression of the JSON value, by the names of the program below.
        call: What reads it, with `body` in bytes.
        times: How often, at first.
        units: How many of what is named one call reads.
    """

    name: str
    body: str
    call: str
    times: int
    units: int = 1


WORKS: Final = (
    Work("a create's reply", "JOB | {'events': [EVENT]}", "read_reply(body, FineTune)", 1000),
    Work("an event", "EVENT", "read_reply(body, FineTuneEvent)", 2000),
    Work(
        "an event among 100",
        "EVENT",
        "[read(loads(body), None) for read in [quick_reader(FineTuneEvent)] * 100]",
        30,
        100,
    ),
    Work("a list of 10,000 jobs", "{'data': [JOB] * 10_000}", "read_reply(body, Listing[FineTune])", 1),
    Work(
        "the same, each with a field that does not fit",
        "{'data': [JOB | {'updated_at': 'soon'}] * 10_000}",
        "read_reply(body, Listing[FineTune])",
        1,
    ),
    Work(
        "the same, each with four such fields",
        "{'data': [JOB | {'updated_at': 'soon', 'model': 7, 'result_files': [7], 'hyperparams': {'n_epochs': 'max'}}]"
        " * 10_000}",
        "read_reply(body, Listing[FineTune])",
        1,
    ),
    Work(
        "the same, with times in ISO 8601",
        "{'data': [JOB | dict.fromkeys(['created_at', 'updated_at'], '2023-11-14T22:13:20.123Z')] * 10_000}",
        "read_reply(body, Listing[FineTune])",
        1,
    ),
)

_PROGRAM: Final = """
import json, sys, types
# The package without its __init__, which imports what reads nothing.
sys.modules["aiofinetune"] = package = types.ModuleType("aiofinetune")
package.__path__ = [sys.argv[1]]
try:
    from aiofinetune.structuring import loads, quick_reader, read_reply
except ImportError:
    from aiofinetune.wire import read_reply
from aiofinetune.models import FineTune, FineTuneEvent, Listing

EVENT = {"object": "fine-tune-event", "created_at": 1614807352, "level": "info", "message": "Completed epoch 1/4"}
FILE = {"object": "file", "id": "file-1", "bytes": 1547276, "created_at": 1610062281, "filename": "train.jsonl",
        "purpose": "fine-tune"}
JOB = {"object": "fine-tune", "id": "ft-1", "model": "ada", "created_at": 1614807352, "updated_at": 1614807865,
       "hyperparams": {"n_epochs": 4, "batch_size": 8, "prompt_loss_weight": 0.01, "learning_rate_multiplier": 0.1},
       "organization_id": "org-1", "training_files": [FILE], "validation_files": [],
       "result_files": [FILE | {"id": "file-2"}], "status": "succeeded",
       "fine_tuned_model": "ada:ft-acmeco-2021-03-03-21-44-20"}
body = json.dumps(%(body)s).encode()
for _ in range(int(sys.argv[2])):
    %(call)s
"""


def instructions(work: Work, checkout: Path) -> float | None:
    """What a unit of a work takes; None where it cannot be done."""
    counts = [_count(work, checkout, times) for times in (work.times, 3 * work.times)]
    if None in counts:
        return None
    once, thrice = counts
    return (thrice - once) / (2 * work.times * work.units)  # type: ignore[operator]  # neither is None


def _count(work: Work, checkout: Path, times: int) -> int | None:
    program = textwrap.dedent(_PROGRAM) % {"body": work.body, "call": work.call}
    tool = ["valgrind", "--tool=cachegrind", "--cache-sim=no", "--cachegrind-out-file=/dev/null"]
    python = [sys.executable, "-c", program, str(checkout / "aiofinetune"), str(times)]
    done = subprocess.run(  # noqa: S603  # the program above
        [*tool, *python], env=os.environ | {"PYTHONHASHSEED": "0"}, capture_output=True, text=True, check=False
    )
    found = re.search(r"I +refs: +([\d,]+)", done.stderr)
    return int(found[1].replace(",", "")) if found and done.returncode == 0 else None


def main() -> None:
    """Count, and print a table."""
    other = Path(sys.argv[1]) if len(sys.argv) > 1 else None
    sys.stdout.write("| instructions | ours | other | ratio |\n|---|---|---|---|\n")
    for work in WORKS:
        ours, theirs = (None if checkout is None else instructions(work, checkout) for checkout in (_HERE, other))
        ratio = f"{ours / theirs:.3f}" if ours and theirs else "-"
        sys.stdout.write(f"| {work.name} | {_shown(ours)} | {_shown(theirs)} | {ratio} |\n")
        sys.stdout.flush()


def _shown(count: float | None) -> str:
    return "-" if count is None else f"{count:,.0f}"


if __name__ == "__main__":
    main()
