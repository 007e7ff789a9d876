"""Read what earlier runs of a batch left, and search for the jobs of their creates."""

from __future__ import annotations

import time
from typing import Final

from aiofinetune._jobs.recovery import Recovery
from aiofinetune.batch._core import actions as act
from aiofinetune.batch._core import events as on
from aiofinetune.batch._creates import owner_of
from aiofinetune.batch._no_journal import AnyJournal
from aiofinetune.batch._notices import log_search
from aiofinetune.models import CreateUncertain

_RECENT: Final = 3600.0
"""The number of seconds after which a job can no longer be taken for a new one, whatever the clocks show."""


class EarlierRuns:
    """What earlier runs left: creates whose jobs are not known, and the jobs that are another attempt's."""

    def __init__(self, recovery: Recovery, journal: AnyJournal) -> None:
        self._recovery = recovery
        self._journal = journal
        self._began = time.time()
        self.known: set[str] = set()
        """The ids of jobs that no other create can have made: the recent ones, or all if there is a search."""

    async def read(self, _action: act.ReadEarlierRuns) -> on.EarlierRunsRead:
        """Read the journal."""
        self._recovery.has_echoed |= await self._journal.has_echoed()
        lost = await self._journal.lost()
        owners = await self._journal.owners(0.0 if lost else self._began - _RECENT)
        self.known.update(owners)
        if lost:
            log_search(len(lost))
        return on.EarlierRunsRead(tuple(lost), owners)

    async def search(self, action: act.SearchForCreate) -> on.JobFound | on.NothingMade | on.CreateUnclear:
        """Search for the job of a create whose result an earlier run did not record before it ended."""
        try:
            job = await self._recovery.find(
                action.sent,
                action.sent_at,
                lost_at=self._began,
                lost=action.among,
                known=self.known,
                accepted=action.is_accepted,
                fine_tune_id=action.hint,
                key=action.key,
                owner=owner_of(action.attempt, action.sent_at),
            )
        except CreateUncertain as uncertain:
            return on.CreateUnclear(action.attempt, uncertain)
        if job is None:
            return on.NothingMade(action.attempt)
        self.known.add(job.id)
        return on.JobFound(action.attempt, job.id)
