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


SENDING: Final = (AttemptState.READY, AttemptState.SENDING, AttemptState.ACCEPTED)
"""The states of an attempt that is being sent, or waits to be."""


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


_READY, _SENDING, _ACCEPTED, _ACTIVE = (
    AttemptState.READY,
    AttemptState.SENDING,
    AttemptState.ACCEPTED,
    AttemptState.ACTIVE,
)
_SETTLING, _ENDED, _UNKNOWN = AttemptState.SETTLING, AttemptState.ENDED, AttemptState.UNKNOWN

ATTEMPT_TABLE: Final[Mapping[tuple[AttemptState, type[on.AttemptEvent]], AttemptState]] = MappingProxyType({
    # Before anything leaves. The refusals in these rows are those of an upload.
    (_READY, on.FilesUploaded): _READY,
    (_READY, on.CreateThrottled): _READY,
    (_READY, on.CreateRefused): _READY,
    (_READY, on.CreateBarred): _READY,
    (_READY, on.NotReached): _READY,
    (_READY, on.JournalFailed): _READY,
    (_READY, on.IntentOnDisk): _SENDING,
    # After a refusal.
    (_READY, on.IntentWithdrawn): _READY,
    (_READY, on.Rejected): _ENDED,
    # No job was made.
    (_SENDING, on.CreateNotSent): _READY,
    (_SENDING, on.CreateThrottled): _READY,
    (_SENDING, on.TooManyActive): _READY,
    (_SENDING, on.CreateRefused): _READY,
    (_SENDING, on.CreateBarred): _READY,
    (_SENDING, on.NotReached): _READY,
    # A job was made.
    (_SENDING, on.JobCreated): _ACCEPTED,
    (_SENDING, on.JobNamed): _ACCEPTED,
    (_SENDING, on.CreateAccepted): _ACCEPTED,
    (_SENDING, on.JobIdTaken): _ACCEPTED,
    # A job may have been made.
    (_SENDING, on.CreateUnclear): _UNKNOWN,
    # A job was made. Its id has to be found and written.
    (_ACCEPTED, on.AcceptedOnDisk): _ACCEPTED,
    (_ACCEPTED, on.JobCreated): _ACCEPTED,
    (_ACCEPTED, on.JobFound): _ACCEPTED,
    (_ACCEPTED, on.JobIdTaken): _ACCEPTED,
    (_ACCEPTED, on.JournalFailed): _ACCEPTED,
    (_ACCEPTED, on.CreateUnclear): _UNKNOWN,
    (_ACCEPTED, on.JobIdOnDisk): _ACTIVE,
    # The reply named the job, and the call looks at it: the job is there, is there and unreadable, or is not there.
    (_ACTIVE, on.JobCreated): _ACTIVE,
    (_ACTIVE, on.JobUnreadable): _ACTIVE,
    (_ACTIVE, on.CreateAccepted): _ACCEPTED,
    # The job is followed.
    (_ACTIVE, on.StreamFailed): _ACTIVE,
    (_ACTIVE, on.JobGoesOn): _ACTIVE,
    (_ACTIVE, on.JobEnded): _SETTLING,
    (_ACTIVE, on.JobVanished): _UNKNOWN,
    (_ACTIVE, on.GivenUp): _UNKNOWN,
    # The job ended.
    (_SETTLING, on.EndOnDisk): _SETTLING,
    (_SETTLING, on.JournalFailed): _SETTLING,
    (_SETTLING, on.ResultsFetched): _ENDED,
    (_SETTLING, on.Settled): _ENDED,
    # The create of an earlier run, which may have made a job.
    (_UNKNOWN, on.JobFound): _ACCEPTED,
    (_UNKNOWN, on.CreateUnclear): _UNKNOWN,
    (_UNKNOWN, on.NothingMade): _READY,
})  # fmt: skip
"""Which state of an attempt follows which event."""

_RUNNING, _DRAINING = BatchState.RUNNING, BatchState.DRAINING
_DETACHING, _DONE = BatchState.DETACHING, BatchState.DONE

BATCH_TABLE: Final[Mapping[tuple[BatchState, type[on.Event]], BatchState]] = MappingProxyType({
    (_RUNNING, on.SendingStopped): _DRAINING,
    (_RUNNING, on.Detached): _DETACHING,
    (_RUNNING, on.AllAnswered): _DONE,
    (_DRAINING, on.SendingStopped): _DRAINING,
    (_DRAINING, on.Detached): _DETACHING,
    (_DRAINING, on.AllAnswered): _DONE,
    (_DETACHING, on.SendingStopped): _DETACHING,
    (_DETACHING, on.Detached): _DETACHING,
    (_DETACHING, on.AllAnswered): _DONE,
    (_DONE, on.SendingStopped): _DONE,
    (_DONE, on.Detached): _DONE,
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
