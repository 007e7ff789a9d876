"""What the shell of a batch tells its core. Each event is one thing that the shell saw: a reply, a write, a request.

Like an action, an event is not changed after it is made.

The last events of this module are the core's own, and the shell never sends them: the core puts one in the place of an
event whose meaning depends on what it knows, so that the table of states has one row for each meaning.
"""

from __future__ import annotations

from collections.abc import Mapping

import attrs

from aiofinetune.batch._core.actions import AttemptId
from aiofinetune.errors import FineTuneError, JournalUnusable
from aiofinetune.models import CreateUncertain, FineTune, FineTuneRequest


@attrs.define
class AttemptRecord:
    """What the journal holds of one attempt."""

    attempt: AttemptId
    request: FineTuneRequest
    sent: FineTuneRequest | None = None
    """What was sent, if it was; None again once it is known that it made no job."""
    sent_at: float | None = None
    is_accepted: bool = False
    hint: str | None = None
    job_id: str | None = None
    job: FineTune | None = None
    """The job as it ended."""
    ended_at: float | None = None
    key: str | None = None
    """The key in the metadata of the create, if it carried one."""

    @property
    def running_job(self) -> str | None:
        """The id of its job, if no end of it is known."""
        return self.job_id if self.job is None else None


@attrs.define
class KnownEntry:
    """An entry of the input, and what the journal knows of it."""

    label: str
    request: FineTuneRequest
    last: AttemptRecord | None = None
    """Its last attempt."""
    change: str = ""
    """How the request, or a file that it names, differs from the last attempt's, as text for people."""
    problem: JournalUnusable | None = None
    """Why the journal cannot tell what it knows, or that the label is there twice."""
    sent: FineTuneRequest | None = None
    """What is sent for the request, if it is known: no file of it is a local path."""


@attrs.define
class Event:
    """The base class of all events."""


@attrs.define
class AttemptEvent(Event):
    """The base class of the events about one attempt."""

    attempt: AttemptId


# The input and earlier runs


@attrs.define
class Started(Event):
    """The batch was entered."""


@attrs.define
class EarlierRunsRead(Event):
    """The journal was read: the last attempts that were sent and whose job is not known, and the owners of job ids."""

    lost: tuple[AttemptRecord, ...] = ()
    owners: Mapping[str, AttemptId] = attrs.field(factory=dict)
    """The attempts of the jobs that earlier runs made recently, by the job's id."""


@attrs.define
class EntriesRead(Event):
    """Entries were read from the input."""

    entries: tuple[KnownEntry, ...]


@attrs.define
class InputEnded(Event):
    """The input has no more entries."""


@attrs.define
class InputFailed(Event):
    """Reading the input raised an error, which the batch raises."""

    error: Exception


@attrs.define
class JobFound(AttemptEvent):
    """The search for an earlier run's create found its job."""

    job_id: str


@attrs.define
class NothingMade(AttemptEvent):
    """The search for an earlier run's create proved that it made no job."""


# Sending


@attrs.define
class FilesUploaded(AttemptEvent):
    """All files of a request are at the service."""

    sent: FineTuneRequest
    """The request with their ids."""


@attrs.define
class IntentOnDisk(AttemptEvent):
    """The intent was written."""

    sent_at: float
    """The Unix time that was written with it."""
    key: str | None = None
    """The key that was written with it, if the create can carry one."""


@attrs.define
class IntentWithdrawn(AttemptEvent):
    """The journal holds that the intent made no job."""


@attrs.define
class CreateEvent(AttemptEvent):
    """The base class of the events that say what came of a create, or of an upload."""

    was_throttled: bool = attrs.field(default=False, kw_only=True)
    """Whether the service throttled the session in the meantime."""


@attrs.define
class CreateNotSent(CreateEvent):
    """The create was no longer wanted when its turn came, so it made no job."""


@attrs.define
class JobCreated(CreateEvent):
    """The call of a create returned its job."""

    job_id: str


@attrs.define
class JobNamed(CreateEvent):
    """A complete 2xx reply names the job, and does not describe it. The call waits with its look at the job."""

    job_id: str


@attrs.define
class CreateAccepted(CreateEvent):
    """A 2xx came that does not surely name the job. The call waits with its search of the list."""

    hint: str | None = None


@attrs.define
class CreateRefused(CreateEvent):
    """No job was made: the service refused the request, or a file of it cannot be used."""

    error: FineTuneError


@attrs.define
class CreateThrottled(CreateEvent):
    """No job was made: the service asks to slow down, for longer than the session waits."""

    error: FineTuneError
    retry_after: float | None = None


@attrs.define
class TooManyActive(CreateEvent):
    """No job was made: the service takes no more jobs until one ends."""

    error: FineTuneError


@attrs.define
class CreateBarred(CreateEvent):
    """No job was made, for a reason that holds for every create.

    The quota is used up, the key does not suffice, or what answers is no such service.
    """

    error: FineTuneError


@attrs.define
class NotReached(CreateEvent):
    """No job was made: there was no connection, or the service failed and its list is proof."""

    error: FineTuneError


@attrs.define
class CreateUnclear(CreateEvent):
    """It is not known whether a create made a job, or which: the search could not tell."""

    error: CreateUncertain


@attrs.define
class AcceptedOnDisk(AttemptEvent):
    """The journal holds that the service accepted the create."""


@attrs.define
class JobIdOnDisk(AttemptEvent):
    """The journal holds the job's id."""


@attrs.define
class JobIdTaken(AttemptEvent):
    """The id belongs to another attempt, as the core or the journal knows. Nothing was written."""


# Following


@attrs.define
class StreamFailed(AttemptEvent):
    """The job cannot be followed by its events."""

    error: FineTuneError


@attrs.define
class JobEnded(AttemptEvent):
    """The job ended, by its events or by the list."""

    job: FineTune
    error: FineTuneError | None = None
    """How it failed, if its events say so."""


@attrs.define
class JobRetrieved(AttemptEvent):
    """The job was retrieved; it may have ended or not."""

    job: FineTune


@attrs.define
class JobVanished(AttemptEvent):
    """The service no longer knows the job."""

    error: FineTuneError


@attrs.define
class JobUnreadable(AttemptEvent):
    """The job's id is known, and it cannot be retrieved or read now."""

    error: FineTuneError


@attrs.define
class ListRead(Event):
    """The service's list was read."""

    active: frozenset[str]
    """The ids of jobs that have not ended."""
    ended: Mapping[str, FineTune]
    """The jobs that have ended, by id; those of others need not be there."""
    unreadable: frozenset[str] = frozenset()
    """The ids of jobs that cannot be read; they count as active."""
    rows: int = 0
    """The number of jobs in the list."""


@attrs.define
class EndsListed(Event):
    """The service's list was read, and these are some of the jobs that have ended. The others follow.

    They come some at a time, because thousands may end between two looks.
    """

    ended: Mapping[str, FineTune]
    """The jobs, by id."""


@attrs.define
class ListFailed(Event):
    """The list could not be read."""

    error: FineTuneError


# Ends


@attrs.define
class EndOnDisk(AttemptEvent):
    """The journal holds how the job ended."""

    ended_at: float
    """The Unix time that was written with it."""


@attrs.define
class ResultsFetched(AttemptEvent):
    """The results file is there and was read, or could not be."""

    figures: Mapping[str, float] = attrs.field(factory=dict)
    error: FineTuneError | None = None


@attrs.define
class OutcomeTaken(AttemptEvent):
    """The iterator gave the outcome to the caller."""


# The run


@attrs.define
class JournalFailed(AttemptEvent):
    """A write for an attempt failed; it may be on the disk all the same."""

    error: JournalUnusable


@attrs.define
class ShellFailed(Event):
    """The progress callback, or something else that belongs to no attempt, raised an error."""

    error: Exception


@attrs.define
class StopAsked(Event):
    """The caller asked to send no more, and to leave active jobs running."""


@attrs.define
class LeaveAsked(Event):
    """The caller leaves the context."""

    cancels: bool = False
    """Whether to cancel the jobs that are active."""
    is_at_once: bool = False
    """Whether the caller was cancelled: the shell has ended all tasks, and nothing under way will be answered."""


@attrs.define
class TimersDue(Event):
    """The time of the last `WakeAt` has come."""


# The core's own


@attrs.define
class Rejected(AttemptEvent):
    """A refused attempt has no intent on the disk any more."""


@attrs.define
class JobGoesOn(AttemptEvent):
    """The job was retrieved, and has not ended."""


@attrs.define
class GivenUp(AttemptEvent):
    """The job could not be read for too long."""

    error: FineTuneError


@attrs.define
class Settled(AttemptEvent):
    """The end is on the disk, and no results are wanted."""


@attrs.define
class SendingStopped(Event):
    """The core sends no more, and follows its jobs to their ends."""


@attrs.define
class Detached(Event):
    """The core sends no more, and leaves its jobs."""


@attrs.define
class AllAnswered(Event):
    """Nothing is left to wait for."""
