"""Look at the service's whole list of jobs for a batch: as closely as it needs, in memory for the jobs that ended.

A job that has not ended is only counted, by its id and status. Of those that have, only the ones that are asked for are
read. On a list of 10,000 active jobs that takes a third of the CPU of reading each.
"""

from __future__ import annotations

import sys
import zlib
from collections import deque
from collections.abc import Callable, Container, Iterable, Iterator
from typing import Any, Final

from aiofinetune import structuring
from aiofinetune._http.caller import MAX_PAGES, Caller
from aiofinetune.dialects._dialect import KEY_NAME
from aiofinetune.dialects._long_list import Row, has_more
from aiofinetune.dialects._requests import Reply
from aiofinetune.models import FineTune, Status

_BLOCK: Final = 100
"""The number of jobs that ended and are read together, in about 2 ms. With five times as many, the garbage collector
goes through them while they are read, which takes a quarter of the time that reading takes."""
_MAX_PLAIN: Final = 100
"""The number of blocks that are kept as they are. More are compressed, to a fifth: of 40,000 jobs that all ended, they
took a quarter of a batch's memory. Fewer are not, because that takes 2 % of the CPU of a job."""


class Seen:
    """What a look saw.

    Args:
        is_wanted: Takes the id of a job that has ended, and returns whether to read the job.
        claims: The ids of jobs that were made through this base URL.
    """

    def __init__(self, is_wanted: Callable[[str], bool], claims: Container[str]) -> None:
        self.is_wanted = is_wanted
        self.claims = claims
        self.active: dict[str, str] = {}
        """The statuses of the jobs that have not ended, by id."""
        self.unreadable: set[str] = set()
        """The ids of the rows that have no status."""
        self.has_echoed = False
        """Whether a job has shown the key with which it was made."""
        self.last_id: str | None = None
        """The id of the last row."""
        self.rows = 0
        """The number of rows."""
        self._blocks: list[bytes] = []
        self._ended: list[Row] = []
        self._first_at: int | None = None
        self._last_at: int | None = None
        self._is_descending = True

    def add(self, rows: Iterable[Any]) -> None:  # Any: a service's JSON
        """Take the next rows, in the form of the reference. To take a row again does no harm."""
        for row in rows:
            self.rows += 1
            name, status = row.get("id"), row.get("status")
            if type(name) is not str or not name:
                self.last_id = None
                continue
            self.last_id = name
            self._note_time(row.get("created_at"))
            if not self.has_echoed and (metadata := row.get("metadata")):
                self.has_echoed = type(metadata) is dict and KEY_NAME in metadata and name in self.claims
            if type(status) is not str or not status:
                self.unreadable.add(name)
            elif status not in Status.TERMINAL:
                # As one object each: there are few statuses and many jobs.
                self.active[name] = sys.intern(status)
            elif self.is_wanted(name):
                self.active.pop(name, None)
                self._ended.append(row)
        self._pack()

    def _note_time(self, at: object) -> None:
        if type(at) is int:
            self._is_descending = self._is_descending and (self._last_at is None or at <= self._last_at)
            self._first_at = at if self._first_at is None else self._first_at
            self._last_at = at

    def has_reached(self, before: float) -> bool:
        """Return whether a list that has its newest jobs first has come to jobs that were made before a time.

        The order is not assumed: a list in any other order never has.
        """
        first, last = self._first_at, self._last_at
        return first is not None and last is not None and self._is_descending and last < before and first > last

    def _pack(self, at_least: int = _BLOCK) -> None:
        while len(self._ended) >= at_least:
            # As text, which takes a quarter of the memory of objects.
            block = structuring.dumps(self._ended[:_BLOCK])
            self._blocks.append(block if len(self._blocks) < _MAX_PLAIN else zlib.compress(block, 1))
            del self._ended[:_BLOCK]

    def ended(self, noted: structuring.Noted) -> Iterator[dict[str, FineTune]]:
        """Yield the jobs that have ended and are wanted, by id, some at a time, and forget them."""
        self._pack(at_least=1)
        blocks, self._blocks = deque(self._blocks), []
        for number in range(len(blocks)):
            found, block = {}, blocks.popleft()
            for row in structuring.loads(block if number < _MAX_PLAIN else zlib.decompress(block)):
                job = structuring.read_object(row, FineTune, noted)
                if job is None:
                    self.unreadable.add(row["id"])
                else:
                    found[job.id] = job
            yield found


async def look(
    caller: Caller, is_wanted: Callable[[str], bool], claims: Container[str], back_to: Callable[[Reply], float | None]
) -> Seen:
    """Read the list of jobs.

    Args:
        caller: Makes the calls.
        is_wanted: Takes the id of a job that has ended, and returns whether to read the job.
        claims: The ids of jobs that were made through this base URL.
        back_to: Returns the service's time of the oldest job that matters, from the first reply; None for all jobs.
            Where lists come in pages, newest first, older pages are not read.
    """
    endpoint, seen = caller.endpoints.list_rows, Seen(is_wanted, claims)
    after: str | None = None
    before: float | None = None
    cursors = {after}
    for number in range(MAX_PAGES):
        seen.last_id, rows = None, seen.rows
        fields, reply = await caller.read_rows(endpoint, after, seen.add)
        before = back_to(reply) if number == 0 else before
        is_last = not (caller.dialect.has_pages and has_more(fields, seen.rows - rows))
        after = seen.last_id
        # A service that ignores the cursor, or goes round in a circle, sends pages again.
        if is_last or after is None or after in cursors or (before is not None and seen.has_reached(before)):
            break
        cursors.add(after)
    return seen
