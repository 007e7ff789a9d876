"""What the core of a batch asks its shell to do. Each action is one call, one write, or one thing to tell the caller.

An action about an attempt is answered by one event about the same attempt, which `ANSWERS` in
`aiofinetune.batch._core.states` says.

Nothing changes an action, nor an event, after it is made. They are not frozen, because a frozen one takes three times
as long to make, and each job takes a dozen: an eighth of what the core takes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import attrs

from aiofinetune.batch._outcomes import OutcomeStatus
from aiofinetune.errors import FineTuneError
from aiofinetune.models import FineTune, FineTuneRequest


class AttemptId(NamedTuple):
    """One attempt at an entry."""

    label: str
    number: int = 1
    """The first attempt of a label is 1; a retry, or a changed request, makes the next."""

    @property
    def next(self) -> AttemptId:
        """The attempt that takes the place of this one."""
        return AttemptId(self.label, self.number + 1)


@attrs.define
class Action:
    """The base class of all actions."""


@attrs.define
class AttemptAction(Action):
    """The base class of the actions about one attempt."""

    attempt: AttemptId


# The input and earlier runs


@attrs.define
class ReadEarlierRuns(Action):
    """Read from the journal what earlier runs left."""


@attrs.define
class ReadEntries(Action):
    """Read entries from the input, at least one and at most `most`, and the journal's record of each."""

    most: int


@attrs.define
class SearchForCreate(AttemptAction):
    """Search the service for the job of a create that an earlier run sent."""

    sent: FineTuneRequest
    sent_at: float
    is_accepted: bool
    hint: str | None
    key: str | None
    among: tuple[FineTuneRequest, ...]
    """The requests of all creates whose job is not known, `sent` among them: their jobs may look alike."""


# Sending


@attrs.define
class UploadFiles(AttemptAction):
    """Upload the local files that a request names, where need be."""

    request: FineTuneRequest


@attrs.define
class WriteIntent(AttemptAction):
    """Write to the journal that a create is about to be sent."""

    request: FineTuneRequest
    """What the caller asked for."""
    sent: FineTuneRequest
    """The same with ids in place of local paths."""
    key: str | None = None
    """The key of an earlier create of the same attempt, which the service refused."""


@attrs.define
class SendCreate(AttemptAction):
    """Send the create, whose intent is on the disk."""

    sent: FineTuneRequest
    sent_at: float
    """The Unix time that its intent gives."""
    key: str | None = None
    """The key to send in its metadata, if it can carry one."""


@attrs.define
class WithdrawIntent(AttemptAction):
    """Write to the journal that what was sent surely made no job."""


@attrs.define
class WriteAccepted(AttemptAction):
    """Write to the journal that the service accepted a create, by a reply that does not surely name the job."""

    hint: str | None
    """The id that the reply names, which may be the job's."""


@attrs.define
class WriteJobId(AttemptAction):
    """Write to the journal which job an attempt made."""

    job_id: str


@attrs.define
class ResumeCreate(AttemptAction):
    """Let the call of a create go on, which waited for its note to be on the disk, and now searches for its job."""


# Following


@attrs.define
class FollowStream(AttemptAction):
    """Follow a job by its events until it ends."""

    job_id: str


@attrs.define
class LookAtList(Action):
    """Read the service's list of jobs.

    `EndsListed` is answered by another one, about the same reading of the list, once few ends are in hand.
    """

    since: float | None
    """The Unix time since when the jobs that matter were sent; None if all jobs matter."""


@attrs.define
class RetrieveJob(AttemptAction):
    """Retrieve a job."""

    job_id: str


@attrs.define
class CancelJob(Action):
    """Cancel a job, and log a failure to do so. Nothing waits for the answer."""

    job_id: str


@attrs.define
class LeaveJob(Action):
    """Say that a job that may still run is no longer followed, because its entry has another request now."""

    label: str
    job_id: str


# Ends


@attrs.define
class WriteEnd(AttemptAction):
    """Write to the journal how a job ended."""

    job: FineTune


@attrs.define
class FetchResults(AttemptAction):
    """Download a job's results file and read its figures."""

    job: FineTune
    is_replayed: bool
    """Whether the job ended in an earlier run, which may have downloaded the file."""


@attrs.define
class ReportOutcome(Action):
    """Put an outcome where the iterator takes it."""

    attempt: AttemptId
    status: OutcomeStatus
    request: FineTuneRequest
    job_id: str | None
    job: FineTune | None
    error: FineTuneError | None
    sent_at: float | None
    ended_at: float | None
    """The Unix time at which the end was written; None if none was, which is now."""
    figures: Mapping[str, float]
    is_replayed: bool
    """Whether an earlier run knew the outcome."""


# The run


@attrs.define
class WakeAt(Action):
    """Send `TimersDue` at a time. It replaces the time of the action before."""

    at: float


@attrs.define
class Finish(Action):
    """End the iteration after the outcomes that were reported, and end all tasks."""

    failure: Exception | None
    """What to raise, if the batch failed."""
    why: str | None
    """Why not all entries were sent; None if they were."""
    cause: FineTuneError | None
