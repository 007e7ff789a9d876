"""Which event an error of a create's call is."""

from __future__ import annotations

from aiofinetune._jobs.recovery import NotSent
from aiofinetune.batch._core import events as on
from aiofinetune.batch._core.actions import AttemptId
from aiofinetune.errors import (
    APIError,
    AuthenticationFailed,
    ConfigurationError,
    FineTuneError,
    FineTuneUnreadable,
    JournalUnusable,
    PermissionDenied,
    QuotaExceeded,
    RateLimited,
    ServerError,
    TooManyJobs,
    TransportError,
)
from aiofinetune.models import CreateUncertain


def upload_failed(attempt: AttemptId, error: FineTuneError) -> on.AttemptEvent:
    """Return the event for an error that an upload of a request's files raised."""
    if isinstance(error, TooManyJobs):
        # Of a file, this can only mean that there are too many requests.
        return on.CreateThrottled(attempt, error, error.retry_after)
    if isinstance(error, ConfigurationError):
        # It may be about this file alone, such as an extra that reads it.
        return on.CreateRefused(attempt, error)
    return create_failed(attempt, error)


def create_failed(  # noqa: PLR0911  # a table of cases
    attempt: AttemptId, error: FineTuneError | NotSent, *, was_throttled: bool = False
) -> on.AttemptEvent:
    """Return the event for an error that the call of a create raised."""
    match error:
        case APIError(is_foreign=True):
            # No other create reaches the service either.
            return on.CreateBarred(attempt, error, was_throttled=was_throttled)
        case NotSent():
            return on.CreateNotSent(attempt, was_throttled=was_throttled)
        case JournalUnusable():
            return on.JournalFailed(attempt, error)
        case CreateUncertain():
            return on.CreateUnclear(attempt, error, was_throttled=was_throttled)
        case FineTuneUnreadable():
            return on.JobUnreadable(attempt, error)
        case QuotaExceeded() | AuthenticationFailed() | PermissionDenied() | ConfigurationError():
            # The last if the function that gives access tokens fails: no other create can be sent either.
            return on.CreateBarred(attempt, error, was_throttled=was_throttled)
        case TooManyJobs():
            return on.TooManyActive(attempt, error, was_throttled=was_throttled)
        case RateLimited():
            return on.CreateThrottled(attempt, error, error.retry_after, was_throttled=was_throttled)
        case TransportError() | ServerError():
            return on.NotReached(attempt, error, was_throttled=was_throttled)
    return on.CreateRefused(attempt, error, was_throttled=was_throttled)
