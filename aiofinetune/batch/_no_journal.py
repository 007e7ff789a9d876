"""What a batch without a journal must remember: the labels of its entries, the owners of its jobs, and its uploads.

A journal keeps these in its database. Where nothing outlasts the process, dictionaries do, at 0.2 KB an entry: a batch
of 10,000 took 1.4 times the CPU with a temporary database. A note is made by the call itself, which returns its result.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import TypeAlias

from aiofinetune.batch._core import AttemptId, AttemptRecord
from aiofinetune.batch._journal import Journal, used_twice
from aiofinetune.batch._manifest import Entry
from aiofinetune.errors import JournalUnusable
from aiofinetune.models import FineTune, FineTuneRequest


class NoJournal:
    """Takes the place of a `Journal`, with the same methods; those that make notes are no coroutines."""

    def __init__(self) -> None:
        self._labels: set[str] = set()
        self._owners: dict[str, str] = {}
        """The attempts of the jobs, by the jobs' ids. Text, so that the garbage collector need not look at it."""
        self._files: dict[str, str] = {}
        """The ids of the files that were uploaded, by digest."""
        self._has_echoed = False

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[NoJournal]:
        """Return a context manager, as `Journal.opened` does."""
        yield self

    async def records(self, entries: Sequence[Entry]) -> list[AttemptRecord | JournalUnusable | None]:
        """Return None for each entry, or an error if its label was already used."""
        found: list[AttemptRecord | JournalUnusable | None] = []
        for entry in entries:
            found.append(used_twice(entry.label) if entry.label in self._labels else None)
            self._labels.add(entry.label)
        return found

    async def lost(self) -> list[AttemptRecord]:
        """Return nothing: there is no earlier run."""
        return []

    async def owners(self, since: float = 0.0) -> dict[str, AttemptId]:  # noqa: ARG002  # as the journal's
        """Return nothing: there is no earlier run."""
        return {}

    async def unfinished_elsewhere(self) -> dict[str, str | None]:
        """Return nothing: there is no earlier run."""
        return {}

    def intend(
        self, attempt: AttemptId, request: FineTuneRequest, sent: FineTuneRequest, at: float, key: str | None = None
    ) -> None:
        """Note nothing."""

    def withdraw(self, attempt: AttemptId) -> None:
        """Note nothing."""

    def accept(self, attempt: AttemptId, hint: str | None) -> None:  # noqa: ARG002  # as the journal's
        """Note that the attempt's job is not known."""
        name = _name_of(attempt)
        for job_id in [job_id for job_id, owner in self._owners.items() if owner == name]:
            del self._owners[job_id]

    def create(self, attempt: AttemptId, job_id: str) -> bool:
        """Note which job was made. Return False, and note nothing, if the job is another attempt's."""
        name = _name_of(attempt)
        return self._owners.setdefault(job_id, name) == name

    def end(self, attempt: AttemptId, job: FineTune, at: float) -> None:
        """Note nothing."""

    async def note_echo(self) -> None:
        """Note that the service's list has shown the key of a job."""
        self._has_echoed = True

    async def has_echoed(self) -> bool:
        """Return whether the service's list has shown the key of a job."""
        return self._has_echoed

    async def file_id(self, digest: str) -> str | None:
        """Return the id of the last file that was uploaded with a SHA-256 of its content."""
        return self._files.get(digest)

    async def digest(self, file_id: str) -> str | None:
        """Return the SHA-256 of an uploaded file's content."""
        return next((digest for digest, name in self._files.items() if name == file_id), None)

    async def keep_file(self, digest: str, file_id: str) -> None:
        """Note that a file was uploaded."""
        self._files[digest] = file_id


AnyJournal: TypeAlias = Journal | NoJournal


def _name_of(attempt: AttemptId) -> str:
    # A label is one line, so no label is the name of another's attempt.
    return attempt.label if attempt.number == 1 else f"{attempt.label}\n{attempt.number}"
