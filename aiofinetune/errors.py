"""The exceptions that this package raises.

::

    FineTuneError
    ├── ConfigurationError        no key, an unusable base URL, or a key that would travel over plain http
    ├── RequestInvalid            an invalid request, refused before anything is sent (also a ValueError)
    ├── DatasetError              a training file that cannot be used                 (also a ValueError)
    ├── ManifestInvalid           a batch's manifest is invalid; lists every problem  (also a ValueError)
    ├── JournalUnusable           a batch's journal is in use, damaged, missing, or belongs to another batch
    │   └── EntryChanged          an entry of a batch differs from what was sent under its label
    ├── BatchStopped              a batch ended before all its requests were sent
    ├── LocalFileError            a file on this machine could not be read or written
    ├── TransportError            no complete reply was received
    │   ├── ConnectFailed         the request certainly did not arrive
    │   ├── ConnectionLost        the request may have arrived; its reply did not
    │   └── ReplyTimeout          the request may have arrived; the time ran out      (also a TimeoutError)
    ├── APIError                  the service answered with an error
    │   ├── BadRequest            400, 422
    │   ├── AuthenticationFailed  401
    │   ├── PermissionDenied      403
    │   ├── NotFound              404
    │   │   └── NoResults         a job has no results file (not an answer of the service)
    │   ├── Conflict              409
    │   ├── RateLimited           429: too many requests; of the 429s, the only one worth retrying soon
    │   │   ├── QuotaExceeded     429: a budget or a daily allowance is used up
    │   │   └── TooManyJobs       429: the maximum number of jobs is active
    │   └── ServerError           5xx
    ├── CreateUncertain           it is not known whether a create made a job, or which job
    ├── ProtocolViolation         the service sent something that its API does not allow
    │   └── FineTuneUnreadable    a create made a job; its id is known, but the job cannot be read
    ├── StreamInterrupted         an event stream kept ending before ``[DONE]``
    │   └── StreamHistoryChanged  the replayed events differ from those sent before
    ├── FineTuneEnded             a job that was waited for ended without a model
    │   ├── FineTuneFailed
    │   └── FineTuneCancelled
    └── WaitTimeout               a job did not end in the time given                 (also a TimeoutError)

Import all of them from `aiofinetune`. Errors that carry a job, an outcome or the problems of a manifest are defined
beside those classes, in `aiofinetune.models` and `aiofinetune.batch`. The cause, if there is one, is chained as
``__cause__``. Cancellation is not in this tree: it stays ``asyncio.CancelledError``.
"""

from __future__ import annotations


class FineTuneError(Exception):
    """The base class of every error that this package raises."""


class ConfigurationError(FineTuneError):
    """The configuration cannot be used: there is no key, the base URL is unsafe, or an option is invalid."""


class RequestInvalid(FineTuneError, ValueError):
    """An invalid request, refused before anything is sent.

    Args:
        field: The name of the invalid parameter, as in the API reference.
        problem: The value that was passed and what is allowed.
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
        path: The file, as the user named it.
        line: The line number, starting at 1; None if the problem is with the file as a whole.
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
    """A batch's journal is in use by another process, damaged, missing, or belongs to another batch."""


class EntryChanged(JournalUnusable):
    """An entry of a batch, or its data file, has changed since the journal's batch sent it."""


class LocalFileError(FineTuneError):
    """A file on this machine could not be read or written; the cause is chained."""


class TransportError(FineTuneError):
    """No complete reply was received. The subclass says whether the request may have arrived."""


class ConnectFailed(TransportError):
    """No connection was made, so the request certainly did not arrive."""


class ConnectionLost(TransportError):
    """The connection broke before the reply was complete; the request may have arrived."""


class ReplyTimeout(TransportError, TimeoutError):
    """No complete reply was received in the time given; the request may have arrived."""


class APIError(FineTuneError):
    """The service answered with an error.

    Args:
        status: The HTTP status; 200 for an error that arrived inside an event stream.
        message: The service's message, or the start of a body that is not the API's JSON.
        type: The error's type, such as ``"invalid_request_error"``.
        param: The parameter that the service rejected.
        code: The error's code, such as ``"insufficient_quota"``.
        request_id: The service's id for the request (``x-request-id``), to quote to its support.
        retry_after: The number of seconds that the service asks the client to wait (RFC 9110, section 10.2.3).
        is_foreign: Whether what answers is no such service: a 404, 405 or 501 whose body is not the API's JSON.
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
        is_foreign: bool = False,  # noqa: FBT001, FBT002  # see the comment
    ) -> None:
        # Every argument goes to `args`, because copying and unpickling an exception call the class with its args.
        super().__init__(status, message, type, param, code, request_id, retry_after, is_foreign)
        self.status = status
        self.message = message
        self.type = type
        self.param = param
        self.code = code
        self.request_id = request_id
        self.retry_after = retry_after
        self.is_foreign = is_foreign

    def __str__(self) -> str:
        named = (("type", self.type), ("param", self.param), ("code", self.code), ("request id", self.request_id))
        details = ", ".join(f"{name} {value}" for name, value in named if value is not None)
        return f"{self.status}: {self.message}" + (f" ({details})" if details else "")


class BadRequest(APIError):
    """400 or 422: the service refused the request as invalid."""


class AuthenticationFailed(APIError):
    """401: the service does not accept the key."""


class PermissionDenied(APIError):
    """403: the key does not have permission for this call."""


class NotFound(APIError):
    """404: there is no such job, file, model or path."""


class NoResults(NotFound):
    """A job has no results file. The service did not answer with an error: the job names no such file.

    Args:
        fine_tune_id: The id of the job.
        fine_tune_status: The status of the job.
    """

    def __init__(self, fine_tune_id: str, fine_tune_status: str) -> None:
        super().__init__(404, fine_tune_id)
        # Copying and unpickling an exception call the class with its args.
        BaseException.__init__(self, fine_tune_id, fine_tune_status)
        self.fine_tune_id = fine_tune_id
        self.fine_tune_status = fine_tune_status
        self.message: str = self._words()

    def _words(self) -> str:
        known = f"fine-tune {self.fine_tune_id} has no results file"
        if self.fine_tune_status == "succeeded":
            return f"{known}, although it succeeded: the service does not name one"
        return f"{known}; its status is {self.fine_tune_status}, and a job has one once it has succeeded"

    def __str__(self) -> str:
        return self.message


class Conflict(APIError):
    """409: the object is in a state that does not allow this call."""


class RateLimited(APIError):
    """429: too many requests in a short time."""


class QuotaExceeded(RateLimited):
    """429: a budget or a daily allowance is used up; retrying soon does not help."""


class TooManyJobs(RateLimited):
    """429: the maximum number of jobs is active; a new job can be created once one of them ends."""


class ServerError(APIError):
    """5xx: the service, or a proxy in front of it, failed."""


class ProtocolViolation(FineTuneError):
    """The service sent something that its API does not allow.

    If a field of the reply is at fault, the message names it by a path such as ``$.data[3].status``.
    """


class FineTuneUnreadable(ProtocolViolation):
    """A create made a job and its id is known, but the service's description of the job cannot be read.

    Args:
        problem: What could not be read.
        fine_tune_id: The job's id. Keep it, and do not create the job again.
    """

    def __init__(self, problem: str, fine_tune_id: str) -> None:
        super().__init__(problem, fine_tune_id)
        self.problem = problem
        self.fine_tune_id = fine_tune_id

    def __str__(self) -> str:
        return f"the create made the job {self.fine_tune_id}, but the job cannot be read: {self.problem}"


class StreamInterrupted(FineTuneError):
    """An event stream ended before ``[DONE]`` and reconnecting failed; the job may still be running."""


class StreamHistoryChanged(StreamInterrupted):
    """After a reconnect the service replayed different events, so it is not known which events are new."""


class WaitTimeout(FineTuneError, TimeoutError):
    """A job did not end in the time given; it continues at the service."""
