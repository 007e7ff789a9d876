"""Everything this package raises.

::

    FineTuneError
    ├── ConfigurationError        no key, an unusable base URL, a key about to travel over plain http
    ├── RequestInvalid            a wrong request, refused before anything was sent   (also a ValueError)
    ├── DatasetError              a training file that cannot be used                 (also a ValueError)
    ├── ManifestInvalid           a batch's manifest that is wrong, with all that is      (also a ValueError)
    ├── JournalUnusable           a batch's journal is in use, damaged, gone, or of another batch
    ├── BatchStopped              a batch ended before all its requests were sent
    ├── LocalFileError            a file on this machine could not be read or written
    ├── TransportError            no whole reply came
    │   ├── ConnectFailed         the request surely did not arrive
    │   ├── ConnectionLost        the request may have arrived; its reply did not
    │   └── ReplyTimeout          the same, and time ran out                          (also a TimeoutError)
    ├── APIError                  the service answered with an error
    │   ├── BadRequest            400, 422
    │   ├── AuthenticationFailed  401
    │   ├── PermissionDenied      403
    │   ├── NotFound              404
    │   ├── Conflict              409
    │   ├── RateLimited           429: too many requests; the only kind that is worth trying again soon
    │   │   ├── QuotaExceeded     429: a budget, or what is allowed a day, is used up
    │   │   └── TooManyJobs       429: as many jobs are active as are allowed
    │   └── ServerError           5xx
    ├── NotSent                   a create made no job, for nobody wanted it any more when it was its turn
    ├── CreateUncertain           whether a create made a job, or which, cannot be told
    ├── ProtocolViolation         the service answered with something its API does not allow
    │   └── FineTuneUnreadable    a create made a job whose id is known, and nothing else of it can be read
    ├── StreamInterrupted         an event stream ended before it said ``[DONE]``, again and again
    │   └── StreamHistoryChanged  the events told before are not those that the service tells now
    ├── FineTuneEnded             a job that was waited for ended without a model
    │   ├── FineTuneFailed
    │   └── FineTuneCancelled
    └── WaitTimeout               a job was not over in the time given                (also a TimeoutError)

The cause, if there is one, is chained as ``__cause__``. Cancellation is never one of these: it stays
``asyncio.CancelledError``.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from aiofinetune.batch import Outcome
    from aiofinetune.manifest import Problem
    from aiofinetune.models import FineTune, FineTuneEvent, FineTuneRequest

__all__ = [
    "APIError",
    "AuthenticationFailed",
    "BadRequest",
    "BatchStopped",
    "ConfigurationError",
    "Conflict",
    "ConnectFailed",
    "ConnectionLost",
    "CreateUncertain",
    "DatasetError",
    "FineTuneCancelled",
    "FineTuneEnded",
    "FineTuneError",
    "FineTuneFailed",
    "FineTuneUnreadable",
    "JournalUnusable",
    "LocalFileError",
    "ManifestInvalid",
    "NotFound",
    "NotSent",
    "PermissionDenied",
    "ProtocolViolation",
    "QuotaExceeded",
    "RateLimited",
    "ReplyTimeout",
    "RequestInvalid",
    "ServerError",
    "StreamHistoryChanged",
    "StreamInterrupted",
    "TooManyJobs",
    "TransportError",
    "WaitTimeout",
]


class FineTuneError(Exception):
    """Any failure of this package."""


class ConfigurationError(FineTuneError):
    """The session cannot be used as it was set up: no key, or a base URL that is wrong or unsafe."""


class RequestInvalid(FineTuneError, ValueError):
    """A wrong request, refused before anything was sent.

    Args:
        field: The parameter that is wrong, by the API reference's name.
        problem: What it got and what it may be.
    """

    def __init__(self, field: str, problem: str) -> None:
        super().__init__(field, problem)
        self.field = field
        self.problem = problem

    def __str__(self) -> str:
        return f"{self.field}: {self.problem}"


class DatasetError(FineTuneError, ValueError):
    """A training file that cannot be used.

    Args:
        path: The file, as its user knows it.
        line: The line, counted from 1; None when the file as a whole is wrong.
        problem: What was found and what is expected.
    """

    def __init__(self, path: str, line: int | None, problem: str) -> None:
        super().__init__(path, line, problem)
        self.path = path
        self.line = line
        self.problem = problem

    def __str__(self) -> str:
        where = self.path if self.line is None else f"{self.path}, line {self.line}"
        return f"{where}: {self.problem}"


class ManifestInvalid(FineTuneError, ValueError):
    """A batch's manifest that is wrong; it holds every problem, and nothing of it was sent.

    Args:
        path: The manifest.
        problems: What is wrong, in the manifest's order.
    """

    def __init__(self, path: str, problems: tuple[Problem, ...]) -> None:
        super().__init__(path, problems)
        self.path = path
        self.problems = problems

    def __str__(self) -> str:
        return "\n".join(f"{self.path}, line {it.line}, {it.field}: {it.words}" for it in self.problems)


class JournalUnusable(FineTuneError):
    """A batch's journal cannot be used: another process has it, it is damaged or gone, or it is of another batch."""


class BatchStopped(FineTuneError):
    """A batch ended before all its requests were sent; the cause, if there is one, is chained.

    What was sent is in the journal; running the batch again with the same journal goes on from there.
    """

    outcomes: tuple[Outcome, ...] = ()
    """Where `Batch.run` raises it: the outcomes of the requests that were sent."""


class LocalFileError(FineTuneError):
    """A file on this machine could not be read or written; the cause is chained."""


class TransportError(FineTuneError):
    """No whole reply came. Which subclass it is says whether the request may have arrived."""


class ConnectFailed(TransportError):
    """No connection was made, so the request surely did not arrive."""


class ConnectionLost(TransportError):
    """The connection broke before the reply was whole; the request may have arrived."""


class ReplyTimeout(TransportError, TimeoutError):
    """No whole reply came in the time given; the request may have arrived."""


class APIError(FineTuneError):
    """The service answered with an error.

    Args:
        status: The HTTP status; 200 for an error that arrived inside an event stream.
        message: What the service said, or the start of a body that is not the API's JSON.
        type: The error's type, such as ``"invalid_request_error"``.
        param: The parameter that the service blames.
        code: The error's code, such as ``"insufficient_quota"``.
        request_id: The service's name for the exchange (``x-request-id``), for its support.
        retry_after: Seconds that the service asks to wait (RFC 9110, section 10.2.3).
    """

    def __init__(
        self,
        status: int,
        message: str,
        type: str | None = None,
        param: str | None = None,
        code: str | None = None,
        request_id: str | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(status, message, type, param, code, request_id, retry_after)
        self.status = status
        self.message = message
        self.type = type
        self.param = param
        self.code = code
        self.request_id = request_id
        self.retry_after = retry_after

    def __str__(self) -> str:
        named = (("type", self.type), ("param", self.param), ("code", self.code), ("request id", self.request_id))
        details = ", ".join(f"{name} {value}" for name, value in named if value is not None)
        return f"{self.status}: {self.message}" + (f" ({details})" if details else "")


class BadRequest(APIError):
    """400 or 422: the service refused the request as wrong."""


class AuthenticationFailed(APIError):
    """401: the service does not know the key."""


class PermissionDenied(APIError):
    """403: the key may not do this."""


class NotFound(APIError):
    """404: there is no such job, file, model or path."""


class Conflict(APIError):
    """409: the object is in a state that does not allow this."""


class RateLimited(APIError):
    """429: too many requests in too short a time."""


class QuotaExceeded(RateLimited):
    """429: a budget, or what is allowed a day, is used up; trying again soon does not help."""


class TooManyJobs(RateLimited):
    """429: as many jobs are active as are allowed; a new one can be created when one of them is over."""


class ServerError(APIError):
    """5xx: the service, or a proxy before it, failed."""


class NotSent(FineTuneError):
    """A create made no job, for nobody wanted it any more when it was its turn to be sent."""


class CreateUncertain(FineTuneError):
    """It cannot be told whether a create made a job, or which: a person has to look.

    Args:
        request: What was asked for.
        since: When it was first sent, in Unix seconds by this machine's clock.
        candidates: Jobs of the service's list that it may have made; empty if the list could not be read.
        accepted: Whether the service accepted the create: then a job was made, but which one is not known.
        unreadable: Ids of further candidates: jobs of which nothing but the id could be read.
        fine_tune_id: The id that the reply to the create named, where it could not be confirmed to be the job's.
    """

    def __init__(
        self,
        request: FineTuneRequest,
        since: float,
        candidates: tuple[FineTune, ...] = (),
        accepted: bool = False,  # noqa: FBT001, FBT002  # by position: an exception is copied by its args
        unreadable: tuple[str, ...] = (),
        fine_tune_id: str | None = None,
    ) -> None:
        super().__init__(request, since, candidates, accepted, unreadable, fine_tune_id)
        self.request = request
        self.since = since
        self.candidates = candidates
        self.accepted = accepted
        self.unreadable = unreadable
        self.fine_tune_id = fine_tune_id

    @property
    def candidate_ids(self) -> tuple[str, ...]:
        """The ids of all jobs that it may have made, the one that the reply named first."""
        named = () if self.fine_tune_id is None else (self.fine_tune_id,)
        return tuple(dict.fromkeys((*named, *(job.id for job in self.candidates), *self.unreadable)))

    def __str__(self) -> str:
        since = min([self.since, *(job.created_at for job in self.candidates if job.created_at is not None)])
        # A service may give any number, and a record of a time any float.
        when = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(max(0, min(since, 253402300799))))
        request, ids = self.request, ", ".join(self.candidate_ids)
        return (
            (
                "the service accepted a create, so it made a job, but which one is not certain."
                if self.accepted
                else "the reply to a create was lost, and it may have made a job."
            )
            + f" Look in list_fine_tunes() for one of {when} or later with the training file {request.training_file},"
            f" model {request.model or '(any)'} and suffix {request.suffix or '(none)'}"
            + (f"; it may be {ids}" if ids else "")
            # The service's own words say what stands between, or what it meant.
            + (f"; the reply: {self.__cause__}" if self.accepted and self.__cause__ is not None else "")
        )


class ProtocolViolation(FineTuneError):
    """The service answered with something its API does not allow.

    The message says where in the reply it did not fit, as a path such as ``$.data[3].status``.
    """


class FineTuneUnreadable(ProtocolViolation):
    """A create made a job whose id is known, and nothing that the service says of the job can be read.

    Args:
        problem: What could not be read.
        fine_tune_id: The job's id: keep it, and do not create the job again.
    """

    def __init__(self, problem: str, fine_tune_id: str) -> None:
        super().__init__(problem, fine_tune_id)
        self.problem = problem
        self.fine_tune_id = fine_tune_id

    def __str__(self) -> str:
        return f"the create made the job {self.fine_tune_id}, which cannot be read: {self.problem}"


class StreamInterrupted(FineTuneError):
    """An event stream ended before it said ``[DONE]``, and could not be taken up again; the job may still run."""


class StreamHistoryChanged(StreamInterrupted):
    """On reconnecting, the service told other events than before, so that none can be trusted to be new."""


class FineTuneEnded(FineTuneError):
    """A job that was waited for ended without a model.

    Args:
        job: The job as the service last reported it.
        events: The last events of the job, oldest first.
    """

    def __init__(self, job: FineTune, events: tuple[FineTuneEvent, ...] = ()) -> None:
        super().__init__(job, events)
        self.job = job
        self.events = events

    def __str__(self) -> str:
        said = "; ".join(event.message for event in self.events[-3:])
        return f"fine-tune {self.job.id} {self.job.status}" + (f": {said}" if said else "")


class FineTuneFailed(FineTuneEnded):
    """The job failed; its last events say why."""


class FineTuneCancelled(FineTuneEnded):
    """The job was cancelled."""


class WaitTimeout(FineTuneError, TimeoutError):
    """A job was not over in the time given; it goes on at the service."""
