"""The runner of a batch: it performs what the core decides, and goes on deciding."""

from __future__ import annotations

import asyncio
import itertools

from aiofinetune import FineTuneRequest
from aiofinetune.batch._core import BatchCore, KnownEntry, Settings
from aiofinetune.batch._core import actions as act
from aiofinetune.batch._core import events as on
from aiofinetune.batch._records import Record
from aiofinetune.batch._runner import _AT_ONCE, Runner

REQUEST = FineTuneRequest(training_file="file-abc123", model="ada")


async def test_a_full_turn_of_records_is_followed_by_a_decision() -> None:
    """If as many jobs are made in one turn as are recorded at once, the creates after them are sent too."""
    core = BatchCore(Settings(concurrency=_AT_ONCE, max_streams=0))
    labels = iter(map(str, range(2 * _AT_ONCE)))
    together = asyncio.Barrier(_AT_ONCE)
    sent: list[str] = []

    async def read_earlier(_action: act.ReadEarlierRuns) -> on.Event:
        return on.EarlierRunsRead()

    async def read(action: act.ReadEntries) -> on.Event:
        entries = tuple(KnownEntry(label, REQUEST, sent=REQUEST) for label in itertools.islice(labels, action.most))
        return on.EntriesRead(entries) if entries else on.InputEnded()

    async def send(action: act.SendCreate) -> on.Event:
        sent.append(action.attempt.label)
        await together.wait()
        if len(sent) == 2 * _AT_ONCE and core.is_running:
            runner.tell(on.StopAsked())
        return on.JobCreated(action.attempt, f"ft-{action.attempt.label}", was_throttled=False)

    def intent(action: act.WriteIntent) -> Record:
        return Record(action.attempt, None, lambda _: on.IntentOnDisk(action.attempt, 1.0, None))

    def job_id(action: act.WriteJobId) -> Record:
        return Record(action.attempt, None, lambda _: on.JobIdOnDisk(action.attempt))

    runner = Runner(
        core,
        {act.ReadEarlierRuns: read_earlier, act.ReadEntries: read, act.SendCreate: send},
        {},
        {act.WriteIntent: intent, act.WriteJobId: job_id},
        None,
        lambda: None,
    )
    await runner.run()
    assert runner.finish is not None
    assert runner.finish.failure is None
    assert sorted(map(int, sent)) == list(range(2 * _AT_ONCE))
