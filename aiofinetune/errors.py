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
    ├── CreateUncertain           whether a create made a job, or which, cannot be told
    ├── ProtocolViolation         the service answered with something its API does not allow
    │   └── FineTuneUnreadable    a create made a job whose id is known, and nothing else of it can be read
    ├── StreamInterrupted         an event stream ended before it said ``[DONE]``, again and again
    │   └── StreamHistoryChanged  the events told before are not those that the service tells now
    ├── FineTuneEnded             a job that was waited for ended without a model
    │   ├── FineTuneFailed
    │   └── FineTuneCancelled
    └── WaitTimeout               a job was not over in the time given                (also a TimeoutError)

All are imported from `aiofinetune`. Those that carry a job, an outcome or the problems of a manifest are defined beside
those classes, in `aiofinetune.models` and `aiofinetune.batch`. The cause, if there is one, is chained as ``__cause__``.
Cancellation is never one of these: it stays ``asyncio.CancelledError``.
"""

from __future__ import annotations

__all__ = [
    "APIError",
    "AuthenticationFailed",
    "BadRequest",
    "ConfigurationError",
    "Conflict",
    "ConnectFailed",
    "ConnectionLost",
    "DatasetError",
    "FineTuneError",
    "FineTuneUnreadable",
    "JournalUnusable",
    "LocalFileError",
    "NotFound",
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


class JournalUnusable(FineTuneError):
    """A batch's journal cannot be used: another process has it, it is damaged or gone, or it is of another batch."""


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


class WaitTimeout(FineTuneError, TimeoutError):
    """A job was not over in the time given; it goes on at the service."""
