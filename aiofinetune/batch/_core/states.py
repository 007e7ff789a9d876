"""The states of an attempt and of a batch, and which state follows which event.

Each table maps a state and an event to the state that follows. What has no row cannot happen, and is a bug where it
does. So the tables show what a batch never does:

- `SENDING` follows nothing but `IntentOnDisk`: no create leaves before its intent is on the disk.
- Of the states that follow a 2xx, none is followed by `READY` or `SENDING`: an accepted create is never sent again.
- `READY` follows `SENDING` only after a refusal in so many words, or where nothing left or the list is proof, and
  `UNKNOWN` only after `NothingMade`. What is withdrawn is `READY`.
- `ACTIVE` follows nothing but `JobIdOnDisk`: no job is followed whose id is not on the disk.
- Nothing follows `ENDED`: an attempt ends once.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from types import MappingProxyType
from typing import Final

from aiofinetune.batch._core import actions as act
from aiofinetune.batch._core import events as on


class AttemptState(Enum):
    """The state of an attempt."""

    READY = "ready"
    """Nothing of it is at the service: it waits for room, uploads its files, or has its intent written or withdrawn."""
    SENDING = "sending"
    """Its intent is on the disk, and the create may be at the service."""
    ACCEPTED = "accepted"
    """A 2xx came; which job it made is not known, or its id is not on the disk yet."""
    ACTIVE = "active"
    """The id of its job is on the disk, and the job has not ended as far as is known."""
    SETTLING = "settling"
    """Its job ended; the end is being written, and the results are being fetched."""
    ENDED = "ended"
    """It has an outcome that holds for later runs too, or it made no job."""
    UNKNOWN = "unknown"
    """It is not known whether it made a job, which, or what became of it; a later run looks again."""

    # Each table look-up hashes a state, and the hash of `Enum` is a function in Python.
    __hash__ = object.__hash__


class BatchState(Enum):
    """The state of a batch."""

    RUNNING = "running"
    """It reads and sends entries, and follows their jobs."""
    DRAINING = "draining"
    """It sends no more, and follows its jobs to their ends."""
    DETACHING = "detaching"
    """It sends no more, waits for what is being sent, and leaves its jobs."""
    DONE = "done"
    """Nothing is under way."""

    __hash__ = object.__hash__


# Under a name of its own each: Python 3.11 looks up a member of an enumeration by a function in Python.
READY: Final = AttemptState.READY
SENDING: Final = AttemptState.SENDING
ACCEPTED: Final = AttemptState.ACCEPTED
ACTIVE: Final = AttemptState.ACTIVE
SETTLING: Final = AttemptState.SETTLING
ENDED: Final = AttemptState.ENDED
UNKNOWN: Final = AttemptState.UNKNOWN
RUNNING: Final = BatchState.RUNNING
DRAINING: Final = BatchState.DRAINING
DETACHING: Final = BatchState.DETACHING
DONE: Final = BatchState.DONE

UNMADE: Final = (READY, SENDING, ACCEPTED)
"""The states of an attempt that is being sent, or waits to be."""

ATTEMPT_TABLE: Final[Mapping[tuple[AttemptState, type[on.AttemptEvent]], AttemptState]] = MappingProxyType({
    # Before anything leaves. The refusals in these rows are those of an upload.
    (READY, on.FilesUploaded): READY,
    (READY, on.CreateThrottled): READY,
    (READY, on.CreateRefused): READY,
    (READY, on.CreateBarred): READY,
    (READY, on.NotReached): READY,
    (READY, on.JournalFailed): READY,
    (READY, on.IntentOnDisk): SENDING,
    # After a refusal.
    (READY, on.IntentWithdrawn): READY,
    (READY, on.Rejected): ENDED,
    # No job was made.
    (SENDING, on.CreateNotSent): READY,
    (SENDING, on.CreateThrottled): READY,
    (SENDING, on.TooManyActive): READY,
    (SENDING, on.CreateRefused): READY,
    (SENDING, on.CreateBarred): READY,
    (SENDING, on.NotReached): READY,
    # A job was made.
    (SENDING, on.JobCreated): ACCEPTED,
    (SENDING, on.JobNamed): ACCEPTED,
    (SENDING, on.CreateAccepted): ACCEPTED,
    (SENDING, on.JobIdTaken): ACCEPTED,
    # A job may have been made.
    (SENDING, on.CreateUnclear): UNKNOWN,
    # A job was made. Its id has to be found and written.
    (ACCEPTED, on.AcceptedOnDisk): ACCEPTED,
    (ACCEPTED, on.JobCreated): ACCEPTED,
    (ACCEPTED, on.JobFound): ACCEPTED,
    (ACCEPTED, on.JobIdTaken): ACCEPTED,
    (ACCEPTED, on.JournalFailed): ACCEPTED,
    (ACCEPTED, on.CreateUnclear): UNKNOWN,
    (ACCEPTED, on.JobIdOnDisk): ACTIVE,
    # The reply named the job, and the call looks at it: the job is there, is there and unreadable, or is not there.
    (ACTIVE, on.JobCreated): ACTIVE,
    (ACTIVE, on.JobUnreadable): ACTIVE,
    (ACTIVE, on.CreateAccepted): ACCEPTED,
    # The job is followed.
    (ACTIVE, on.StreamFailed): ACTIVE,
    (ACTIVE, on.JobGoesOn): ACTIVE,
    (ACTIVE, on.JobEnded): SETTLING,
    (ACTIVE, on.JobVanished): UNKNOWN,
    (ACTIVE, on.GivenUp): UNKNOWN,
    # The job ended.
    (SETTLING, on.EndOnDisk): SETTLING,
    (SETTLING, on.JournalFailed): SETTLING,
    (SETTLING, on.ResultsFetched): ENDED,
    (SETTLING, on.Settled): ENDED,
    # The create of an earlier run, which may have made a job.
    (UNKNOWN, on.JobFound): ACCEPTED,
    (UNKNOWN, on.CreateUnclear): UNKNOWN,
    (UNKNOWN, on.NothingMade): READY,
})  # fmt: skip
"""Which state of an attempt follows which event."""

BATCH_TABLE: Final[Mapping[tuple[BatchState, type[on.Event]], BatchState]] = MappingProxyType({
    (RUNNING, on.SendingStopped): DRAINING,
    (RUNNING, on.Detached): DETACHING,
    (RUNNING, on.AllAnswered): DONE,
    (DRAINING, on.SendingStopped): DRAINING,
    (DRAINING, on.Detached): DETACHING,
    (DRAINING, on.AllAnswered): DONE,
    (DETACHING, on.SendingStopped): DETACHING,
    (DETACHING, on.Detached): DETACHING,
    (DETACHING, on.AllAnswered): DONE,
    (DONE, on.SendingStopped): DONE,
    (DONE, on.Detached): DONE,
})  # fmt: skip
"""Which state of a batch follows which event."""

_CREATE: Final = (act.UploadFiles, act.SendCreate)
_WRITES: Final = (act.WriteIntent, act.WithdrawIntent, act.WriteAccepted, act.WriteJobId, act.WriteEnd)
_SEARCH: Final = (act.SendCreate, act.ResumeCreate, act.SearchForCreate)

ANSWERS: Final[Mapping[type[on.AttemptEvent], tuple[type[act.AttemptAction] | None, ...]]] = MappingProxyType({
    on.FilesUploaded: (act.UploadFiles,),
    on.IntentOnDisk: (act.WriteIntent,),
    on.IntentWithdrawn: (act.WithdrawIntent,),
    # Without an action: the batch was stopped while the intent was written.
    on.CreateNotSent: (act.SendCreate, None),
    on.CreateThrottled: _CREATE,
    on.CreateRefused: _CREATE,
    on.CreateBarred: _CREATE,
    on.NotReached: _CREATE,
    on.TooManyActive: (act.SendCreate,),
    on.JobCreated: (act.SendCreate, act.ResumeCreate),
    on.JobNamed: (act.SendCreate,),
    on.CreateAccepted: (act.SendCreate, act.ResumeCreate),
    # Without an action: the core itself says so of a job id that is taken.
    on.CreateUnclear: (*_SEARCH, None),
    on.JobFound: (act.SearchForCreate,),
    on.NothingMade: (act.SearchForCreate,),
    on.AcceptedOnDisk: (act.WriteAccepted,),
    on.JobIdOnDisk: (act.WriteJobId,),
    on.JobIdTaken: (act.SendCreate, act.ResumeCreate, act.WriteJobId),
    on.StreamFailed: (act.FollowStream,),
    # Without an action: the list says so.
    on.JobEnded: (act.FollowStream, act.RetrieveJob, None),
    on.JobGoesOn: (act.RetrieveJob,),
    on.JobVanished: (act.FollowStream, act.RetrieveJob),
    on.JobUnreadable: (act.RetrieveJob, act.ResumeCreate),
    on.GivenUp: (act.RetrieveJob,),
    on.EndOnDisk: (act.WriteEnd,),
    on.ResultsFetched: (act.FetchResults,),
    on.JournalFailed: (act.UploadFiles, *_WRITES),
    # The core's own, once nothing is under way for the attempt.
    on.Rejected: (None,),
    on.Settled: (None,),
})  # fmt: skip
"""Which actions each event answers. An attempt has one action under way at most."""


class UnexpectedEvent(RuntimeError):
    """The shell sent an event that cannot follow: a bug, in the shell or in the core."""
