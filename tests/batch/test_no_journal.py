"""What a batch remembers without a journal."""

from __future__ import annotations

import pytest

from aiofinetune import Batch, Entry, FineTuneRequest, JournalUnusable
from aiofinetune.batch._core import AttemptId
from aiofinetune.batch._no_journal import NoJournal
from tests.servers.batchserver import BatchServer, talking_to


async def test_a_label_that_is_there_twice_is_found_long_after_its_entry_ended() -> None:
    """The second of two entries with one label ends the batch with an error that names the label."""
    server = BatchServer()
    request = FineTuneRequest(training_file=server.add_file("train.jsonl", b"train"))
    entries = [*(Entry(str(number), request) for number in range(30)), Entry("0", request)]
    async with talking_to(server) as session, Batch(session, entries, poll_interval=0.05) as batch:
        with pytest.raises(JournalUnusable, match="'0' is used twice"):
            await batch.run()
    assert len(server.jobs) <= 30


def test_a_job_belongs_to_one_attempt() -> None:
    """A job's id is taken from a second attempt, and free again once its first is not known to have it."""
    notes, first, second = NoJournal(), AttemptId("a"), AttemptId("a").next
    assert notes.create(first, "ft-1")
    assert notes.create(first, "ft-1")
    assert not notes.create(second, "ft-1")
    notes.accept(first, None)
    assert notes.create(second, "ft-1")
