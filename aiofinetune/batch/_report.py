"""What a journal says of its entries, for people and other programs. Pure functions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

import attrs

from aiofinetune.batch._core import AttemptRecord
from aiofinetune.batch._journal import JournalContent
from aiofinetune.batch._outcomes import seconds_of


@attrs.frozen
class EntryReport:
    """One entry of a journal, by its last attempt."""

    label: str
    status: str
    """How far the entry is, as far as the journal knows.

    - ``"succeeded"``, ``"failed"``, ``"cancelled"``: how its job ended;
    - ``"active"``: its job was made, and had not ended when the journal was last written;
    - ``"sending"``: the batch is running, and may be sending the create;
    - ``"uncertain"``: it is not known whether a job was made; the next run looks for it;
    - ``"not sent"``: no job was made, because the create was refused or could not be sent.
    """
    attempt: int
    job: str | None
    """The job's id."""
    model: str | None
    """The tuned model."""
    sent_at: float | None
    """The Unix time at which the request was sent."""
    ended_at: float | None
    """The Unix time at which the end of the job was seen."""
    seconds: float | None
    error: str | None
    """What the service says of a job that failed."""
    is_left_out: bool
    """Whether the entry is no longer part of the batch."""


def report_entries(content: JournalContent) -> list[EntryReport]:
    """Return what a journal says of each entry, in the order of the first runs."""
    return [_report(record, content) for record in content.records]


def count_statuses(entries: Iterable[EntryReport]) -> str:
    """Return how many entries are how far, as text for people: ``"3 entries: 2 succeeded, 1 active"``."""
    counts = Counter(entry.status for entry in entries)
    words = ", ".join(f"{count} {status}" for status, count in counts.most_common())
    total = counts.total()
    return f"{total} {'entry' if total == 1 else 'entries'}" + (f": {words}" if words else "")


def _report(record: AttemptRecord, content: JournalContent) -> EntryReport:
    job = record.job
    return EntryReport(
        record.attempt.label,
        _status(record, is_running=content.is_running),
        record.attempt.number,
        record.job_id,
        None if job is None else job.fine_tuned_model,
        record.sent_at,
        record.ended_at,
        seconds_of(job, record.sent_at, record.ended_at),
        None if job is None or job.error is None else job.error.message or job.error.code,
        record.attempt.label in content.left_out,
    )


def _status(record: AttemptRecord, *, is_running: bool) -> str:
    if record.job is not None:
        return record.job.status
    if record.job_id is not None:
        return "active"
    if record.sent is None:
        return "not sent"
    return "sending" if is_running and not record.is_accepted else "uncertain"
