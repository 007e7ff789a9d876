# ruff: noqa: S311, T201  # by chance, and it tells
"""Drive the core of a batch at random, to see its promises broken: ``python -m benchmarks.batch_core STEPS``.

The model of `tests.batch.coremodel` is the service, the disk and the shell. Each batch has a seed of its own, so that
what is found can be found again: ``python -m benchmarks.batch_core STEPS SEED`` begins there. ``tables`` prints the
tables of states.
"""

from __future__ import annotations

import random
import sys
import time
from collections import Counter

from aiofinetune.batch._core import ATTEMPT_TABLE, BATCH_TABLE
from tests.batch.coremodel import drive
from tests.batch.corerules import RULES, Broken

BATCH = 200
"""The number of steps after which a batch is driven to its end."""


def main(steps: int, seed: int) -> int:
    """Drive batches; print the steps and the findings, and return the number of findings."""
    begin = time.perf_counter()
    found: Counter[str] = Counter()
    done = batches = 0
    while done < steps:
        try:
            done += drive(random.Random(seed + batches), BATCH)
        except Broken as broken:
            done += BATCH
            found[broken.rule] += 1
            print(f"seed {seed + batches}: {broken}")
        batches += 1
    took = time.perf_counter() - begin
    print(f"{done:,} steps in {batches:,} batches, from seed {seed}; {took:.0f} s, {1e6 * took / done:.0f} µs a step")
    for rule in RULES:
        print(f"  {found[rule]:6} findings: {rule}")
    return found.total()


def show_tables() -> None:
    """Print the tables of states."""
    print("| an attempt that is | and | is then |\n|---|---|---|")
    for (state, event), after in ATTEMPT_TABLE.items():
        print(f"| {state.name} | {event.__name__} | {after.name} |")
    print("\n| a batch that is | and | is then |\n|---|---|---|")
    for (batch_state, happened), then in BATCH_TABLE.items():
        print(f"| {batch_state.name} | {happened.__name__} | {then.name} |")


if __name__ == "__main__":
    if sys.argv[1:] == ["tables"]:
        show_tables()
        sys.exit()
    arguments = [int(argument) for argument in sys.argv[1:]]
    sys.exit(main(*(arguments + [1_000_000, 0][len(arguments) :])) > 0)
