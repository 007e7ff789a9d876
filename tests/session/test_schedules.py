"""Any interleaving of calls and faults: nothing made twice, nothing lost, nothing untrue."""

from __future__ import annotations

import asyncio

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support import schedules
from tests.support.fastforward import FastForwardLoop


@st.composite
def steps(draw: st.DrawFn) -> list[schedules.Step]:
    """A schedule of a few steps."""
    count = draw(st.integers(1, 8))
    return [schedules.make_step(lambda options: draw(st.sampled_from(options))) for _ in range(count)]


@given(steps=steps())
@settings(max_examples=150)
def test_schedules(steps: list[schedules.Step]) -> None:
    """After any schedule the service holds the jobs that were reported, and each stream gave its job's events once."""
    with asyncio.Runner(loop_factory=FastForwardLoop) as runner:
        runner.run(schedules.run(steps))


@given(steps=steps(), kind=st.sampled_from(sorted(set(schedules.SERVICES) - {"fine-tunes"})))
@settings(max_examples=40)
def test_schedules_of_jobs(steps: list[schedules.Step], kind: str) -> None:
    """So it is at services of OpenAI's jobs, with metadata, without, and changed, whole and in small pages."""
    with asyncio.Runner(loop_factory=FastForwardLoop) as runner:
        runner.run(schedules.run(steps, kind))
