"""Run N random schedules, and say what they came to: ``python -m tests.fuzz.run_schedules 10000 [SEED [SERVICE]]``.

SERVICE is one of `tests.support.schedules.SERVICES`, by default ``fine-tunes``.
"""

from __future__ import annotations

import asyncio
import random
import sys
import time

from tests.support import fastforward, schedules

AT_ONCE = 12
"""Schedules under way at once, so that none waits for another's pauses."""


def say(text: str) -> None:
    """Print a line."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


async def main(count: int, seed: int, kind: str) -> int:
    """Run them; give the number of those that failed."""
    total, failures, begin = schedules.Figures(), 0, time.perf_counter()
    numbers = iter(range(count))

    async def work() -> None:
        nonlocal failures
        for number in numbers:
            choices = random.Random(seed + number)  # noqa: S311  # no secret
            steps = [schedules.make_step(choices.choice) for _ in range(choices.randint(1, 8))]
            try:
                total.add(await schedules.run(steps, kind))
            except Exception as error:  # noqa: BLE001  # whatever it is, it is what this looks for
                failures += 1
                say(f"schedule {seed + number}: {type(error).__name__}: {error}\n  {steps}")

    async with asyncio.TaskGroup() as group:
        for _ in range(AT_ONCE):
            group.create_task(work())
    say(f"{count} schedules of {kind} from seed {seed} in {time.perf_counter() - begin:.0f} s, {failures} failed")
    say(
        f"jobs: {total.created} created = {total.reported} reported + {total.created - total.reported} of the"
        f" {total.spoken_of} that an error or a note spoke of; {total.failed} creates failed and made none"
    )
    say(f"events: {total.sent} told, {total.given} given; {total.interrupted} streams were given up")
    say(f"files: {total.files_twice} were sent twice")
    return failures


if __name__ == "__main__":
    first_seed = int(sys.argv[2]) if len(sys.argv) > 2 else 0
    service = sys.argv[3] if len(sys.argv) > 3 else "fine-tunes"
    with asyncio.Runner(loop_factory=fastforward.FastForwardLoop) as runner:
        sys.exit(bool(runner.run(main(int(sys.argv[1]), first_seed, service))))
