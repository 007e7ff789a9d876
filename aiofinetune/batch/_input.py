"""Read the entries of a batch a few ahead, and what the journal knows of each."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterable, Iterable
from contextlib import aclosing
from typing import TypeAlias

from aiofinetune._observe import in_short
from aiofinetune.batch._core import AttemptRecord, KnownEntry
from aiofinetune.batch._core import actions as act
from aiofinetune.batch._core import events as on
from aiofinetune.batch._data_files import DataFiles
from aiofinetune.batch._manifest import Entry
from aiofinetune.batch._no_journal import AnyJournal
from aiofinetune.errors import FineTuneError, JournalUnusable, RequestInvalid
from aiofinetune.models import FineTuneRequest

_log = logging.getLogger("aiofinetune")

Requests: TypeAlias = Iterable[Entry | FineTuneRequest] | AsyncIterable[Entry | FineTuneRequest]


class Input:
    """Reads the requests of a batch in one task, which stays a few entries ahead of those that are asked for.

    Args:
        requests: The requests.
        ahead: The number of entries to read ahead.
        journal: What earlier runs recorded.
        data_files: Compares the requests' files with those of earlier runs.
    """

    def __init__(self, requests: Requests, ahead: int, journal: AnyJournal, data_files: DataFiles) -> None:
        self._requests = requests
        self._journal = journal
        self._data_files = data_files
        self._ahead = ahead
        # Not a queue, whose calls for each entry are a tenth of a rerun.
        self._read: deque[Entry] = deque()
        self._end: on.InputEnded | on.InputFailed | None = None
        """How the input ended, once all of it is read; None before."""
        self._has_some = asyncio.Event()
        self._has_room = asyncio.Event()

    async def read_all(self) -> None:
        """Read all requests, as fast as their entries are taken."""
        end: on.InputEnded | on.InputFailed = on.InputEnded()
        try:
            async with aclosing(_numbered(self._requests)) as entries:
                async for entry in entries:
                    if _is_cancelled():
                        break
                    self._read.append(entry)
                    self._has_some.set()
                    if len(self._read) >= self._ahead:
                        self._has_room.clear()
                        await self._has_room.wait()
        except (Exception, BaseExceptionGroup, asyncio.CancelledError) as failure:
            if _is_cancelled():
                # No more requests are needed, so an error that the input raises on being closed does not matter.
                if not isinstance(failure, asyncio.CancelledError):
                    _log.info("the input of requests failed as it was closed: %s", in_short(failure))
            elif isinstance(failure, Exception):
                end = on.InputFailed(failure)
            elif isinstance(failure, asyncio.CancelledError):
                error = FineTuneError("the input of requests raised CancelledError")
                error.__cause__ = failure
                end = on.InputFailed(error)
            else:
                raise
        if _is_cancelled():
            # Either the batch is over and nobody takes this, or the input cancelled this task itself and did not take
            # that back, and the batch must not wait for more.
            end = on.InputFailed(FineTuneError("the input of requests cancelled the task that reads it"))
        self._end = end
        self._has_some.set()

    async def take(self, action: act.ReadEntries) -> on.EntriesRead | on.InputEnded | on.InputFailed:
        """Return the next entries, at least one of them, or the end of the input."""
        while not self._read and self._end is None:
            self._has_some.clear()
            await self._has_some.wait()
        entries = [self._read.popleft() for _ in range(min(action.most, len(self._read)))]
        self._has_room.set()
        if self._end is not None and not entries:
            return self._end
        try:
            # They are looked up together, because each look-up waits for the journal's thread.
            records = await self._journal.records(entries)
            known = [
                KnownEntry(entry.label, entry.request, sent=self._data_files.sent(entry.request))
                if record is None
                else await self._known(entry, record)
                for entry, record in zip(entries, records, strict=True)
            ]
        except Exception as failure:  # noqa: BLE001  # raised to the caller that iterates
            return on.InputFailed(failure)
        return on.EntriesRead(tuple(known))

    async def _known(self, entry: Entry, record: AttemptRecord | JournalUnusable) -> KnownEntry:
        """Return an entry that an earlier run had, or whose label was used before."""
        if isinstance(record, JournalUnusable):
            return KnownEntry(entry.label, entry.request, problem=record)
        change = await self._data_files.change_of(record, entry.request)
        return KnownEntry(entry.label, entry.request, record, change, None, self._data_files.sent(entry.request))


async def _numbered(requests: Requests) -> AsyncGenerator[Entry, None]:
    """Yield the entries of a batch. The label of a request without one is its number, starting at 1."""
    number = 0
    if isinstance(requests, AsyncIterable):
        try:
            async for item in requests:
                number += 1
                yield _entry(item, number)
        finally:
            if isinstance(requests, AsyncGenerator):
                await requests.aclose()
    else:
        for item in requests:
            number += 1
            yield _entry(item, number)


def _entry(item: object, number: int) -> Entry:
    entry = item if isinstance(item, Entry) else Entry(str(number), item)  # type: ignore[arg-type]  # checked below
    if not isinstance(entry.request, FineTuneRequest):
        raise RequestInvalid("request", f"{number}: expected a FineTuneRequest, got {type(entry.request).__name__}")
    if not isinstance(entry.label, str) or not entry.label.isprintable():
        raise RequestInvalid("label", f"{number}: expected a single line of text, got {entry.label!r}")
    return entry


def _is_cancelled() -> bool:
    """Return whether the current task was cancelled, even if the cancellation was suppressed."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
