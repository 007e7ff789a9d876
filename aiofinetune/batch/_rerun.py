"""See what a rerun of a batch finds in its journal, before it sends anything."""

from __future__ import annotations

import asyncio
import itertools
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

import attrs

from aiofinetune.batch._data_files import DataFiles
from aiofinetune.batch._journal import Journal
from aiofinetune.batch._manifest import Entry
from aiofinetune.errors import JournalUnusable
from aiofinetune.models import Status
from aiofinetune.session import FineTuneSession

_AT_ONCE: Final = 256
"""The number of entries that are looked up together, because each look-up waits for the journal's thread."""


@attrs.frozen
class Rerun:
    """What a journal knows of the entries of a batch."""

    changes: tuple[str, ...] = ()
    """What has changed since an earlier run sent it, as text for people."""
    succeeded: int = 0
    """The number of entries whose last job succeeded."""
    failed: int = 0
    """The number of entries whose last job failed or was cancelled."""


async def look_back(
    journal: Path,
    session: FineTuneSession,
    entries: Iterable[Entry],
    *,
    accept_changes: bool = False,
    accept_base_url: bool = False,
) -> Rerun:
    """Return what earlier runs of a batch did with its entries; nothing if there is no journal yet.

    Args:
        journal: The path of the journal.
        session: The session of the batch; nothing is sent.
        entries: All entries of the batch.
        accept_changes: Whether entries may have changed. Those that have are then not counted as ended, and those that
            are gone are left out of the batch from now on.
        accept_base_url: Whether the session's base URL may differ from that of the earlier runs.

    Raises:
        JournalUnusable: The journal is in use, damaged, or belongs to another base URL or dialect.
    """
    if not await asyncio.to_thread(os.path.exists, journal):
        return Rerun()
    changes: list[str] = []
    succeeded = failed = 0
    async with Journal(
        journal, session.base_url, session.dialect.name, accept_base_url=accept_base_url
    ).opened() as known:
        files = DataFiles(session, known)
        gone = await known.sent_labels()
        for some in _slices(entries):
            for entry, record in zip(some, await known.records(some), strict=True):
                if isinstance(record, JournalUnusable):
                    raise record
                if record is None or record.sent is None:
                    continue
                gone.pop(entry.label, None)
                if change := await files.change_of(record, entry.request):
                    changes.append(f"{entry.label}: {change}{_running(record.running_job)}")
                elif record.job is not None:
                    is_success = record.job.status == Status.SUCCEEDED
                    succeeded, failed = succeeded + is_success, failed + (not is_success)
        if accept_changes:
            # So that the next run need not accept it again.
            await known.leave_out(gone)
    changes += (f"{label}: was sent, but is no longer in the manifest{_running(job)}" for label, job in gone.items())
    return Rerun(tuple(changes), succeeded, failed)


def _running(job_id: str | None) -> str:
    return "" if job_id is None else f"; its job {job_id} may still run"


def _slices(entries: Iterable[Entry]) -> Iterable[Sequence[Entry]]:
    rest = iter(entries)
    while some := list(itertools.islice(rest, _AT_ONCE)):
        yield some
